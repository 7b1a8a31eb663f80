"""Token likelihoods and divergences, shared by backends, methods and metrics."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def token_logprobs(logits: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each code, in float32 (float64 for logits of it).

    Args:
        logits: [N, K, T, V], any float type.
        codes: int64 [N, K, T].
        mask: bool [N, K, T].

    Returns:
        [N, K, T], 0 where the mask is False (also where a logit there is not finite).
    """
    nll = F.cross_entropy(wide(unmasked(logits, mask)), unmasked(codes, mask), reduction="none")  # [masked tokens]
    return nll.new_zeros(codes.shape).masked_scatter(mask, -nll)


def token_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each clip, a mean over its unmasked tokens: (1/n) Σ w_t CE_t, in float32 or wider.

    Args:
        logits: [N, K, T, V], any float type.
        targets: codes, int64 [N, K, T], or probabilities, float [N, K, T, V].
        mask: bool [N, K, T].
        weights: [N, K, T], one weight per token; default: 1. They are not normalised.

    Returns:
        [N], nats per token.
    """
    loss = F.cross_entropy(wide(unmasked(logits, mask)), unmasked(targets, mask), reduction="none")  # [masked tokens]
    if weights is not None:
        loss = loss * unmasked(weights, mask)
    return clip_mean(loss.new_zeros(mask.shape).masked_scatter(mask, loss), mask)


def unmasked(values: Tensor, mask: Tensor) -> Tensor:
    """`values[mask]`, [..., *rest] -> [masked tokens, *rest], with a gradient that is several times faster on a CPU.

    Raises:
        IndexError: the mask is not of the shape of the first dimensions.
    """
    if values.shape[: mask.ndim] != mask.shape:
        raise IndexError(f"a mask {list(mask.shape)} for values {list(values.shape)}")
    rows = values.flatten(0, mask.ndim - 1)
    return rows if mask.all() else rows.index_select(0, mask.flatten().nonzero().squeeze(1))


def clip_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each clip's unmasked tokens: [N, K, T] -> [N]."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2))


def kl_divergence(target_logits: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """KL(target ‖ model) per token, nats: logits [N, K, T, V] of both -> [N, K, T], 0 where masked."""
    target = F.log_softmax(wide(unmasked(target_logits, mask)), -1)
    model = F.log_softmax(wide(unmasked(logits, mask)), -1)
    kl = F.kl_div(model, target, log_target=True, reduction="none").sum(-1)
    return kl.new_zeros(mask.shape).masked_scatter(mask, kl)


def jensen_shannon(target_logits: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """Jensen-Shannon divergence per token, nats, at most log 2.

    ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, p and q the softmax of `target_logits` and `logits`.

    Args:
        target_logits: [N, K, T, V], any float type.
        logits: [N, K, T, V].
        mask: bool [N, K, T].

    Returns:
        [N, K, T], 0 where masked.
    """
    target = F.log_softmax(wide(unmasked(target_logits, mask)), -1)
    model = F.log_softmax(wide(unmasked(logits, mask)), -1)
    mean = torch.logaddexp(target, model) - math.log(2)
    parts = [F.kl_div(mean, each, log_target=True, reduction="none").sum(-1) for each in (target, model)]
    divergence = (parts[0] + parts[1]) / 2
    return divergence.new_zeros(mask.shape).masked_scatter(mask, divergence)


def wide(values: Tensor) -> Tensor:
    """float64 as it is, all else as float32."""
    return values if values.dtype == torch.float64 else values.float()


def code_entropy(codes: Tensor) -> float:
    """Mean over K codebooks of the entropy of their codes' frequencies, nats, for codes [K, T].

    This is the lowest NLL per token of a model that predicts every code by its frequency in the clip.
    """
    shares = [row.unique(return_counts=True)[1] / codes.shape[-1] for row in codes]
    return sum(float(-(share * share.log()).sum()) for share in shares) / len(shares)
