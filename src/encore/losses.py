"""The arithmetic of token likelihoods, shared by backends, methods and metrics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_logprobs(logits: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """log p of each code, in float32.

    Args:
        logits: [N, K, T, V], any float type.
        codes: int64 [N, K, T].
        mask: bool [N, K, T].

    Returns:
        [N, K, T], 0 where the mask is False (also where a logit there is not finite).
    """
    nll = F.cross_entropy(logits[mask].float(), codes[mask], reduction="none")  # [masked tokens]
    return torch.zeros(codes.shape, device=logits.device).masked_scatter(mask, -nll)


def clip_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over a clip's unmasked tokens: [N, K, T] -> [N]."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2))


def kl_divergence(target_logits: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """KL(target ‖ model) a token, nats, from log-probabilities: [N, K, T, V] twice -> [N, K, T], 0 where masked."""
    target = F.log_softmax(target_logits[mask].float(), -1)
    model = F.log_softmax(logits[mask].float(), -1)
    kl = F.kl_div(model, target, log_target=True, reduction="none").sum(-1)
    return torch.zeros(mask.shape, device=logits.device).masked_scatter(mask, kl)


def code_entropy(codes: Tensor) -> float:
    """Mean entropy of the distributions of K codebooks in codes [K, T], nats: the NLL per token of the best guess that
    looks at nothing but how often a code occurs."""
    shares = [own.unique(return_counts=True)[1] / codes.shape[-1] for own in codes]
    return sum(float(-(share * share.log()).sum()) for share in shares) / len(shares)
