"""Membership inference: five scores beside LOSS and Min-K, and a combined test of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore import stats
from encore.api import Backend, Batch, Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.curvature import UnsupportedParameterError, capture
from encore.metrics.privacy.membership import (
    MIN_K,
    MODELS,
    auc_row,
    lowest_mean,
    min_k,
    negated,
    negated_zlib_size,
    tpr_row,
)
from encore.metrics.privacy.model_free import baseline_warning
from encore.metrics.rows import available_roles, by_track, not_finite, unmeasured

Scores = dict[str, float]  # track id -> score; higher means member


class MembershipAttacks(Metric):
    """Forget tracks as members, holdout tracks as non-members: `membership_auc_NAME` and TPR at 1 % FPR per score.

    - `zlib`: -NLL / compressed size of the code stream (Carlini et al., arXiv 2012.07805, section 4.2). They divide the
      NLL per token by the size of the whole text; here both are per token, so that tracks of any length compare.
    - `minkpp`: mean of the lowest 20 % of (log p(x_t) - μ_t) / σ_t, μ_t and σ_t the mean and standard deviation of
      log p under the model's prediction (Min-K++, Zhang et al., arXiv 2404.02936, equation 3).
    - `gradnorm`: -‖∇ NLL‖, the mean over a track's windows: memorised tracks have small gradients (Nasr et al., arXiv
      1812.00910). It is one L2 norm over all trainable weights; others take one norm per layer, or their mean. Also for
      models without tokens.
    - `reference`: NLL of a reference model that was not trained on the tracks, minus the model's, which removes a
      track's intrinsic difficulty (Watson et al., arXiv 2111.08440). The reference is gold, and gold2 for gold itself.
    - `caption`: mean of log p(x | caption) - log p(x | no caption): a member depends on its caption (after Zhai et al.,
      arXiv 2405.14800, who do so for images).

    `membership_p` is the smallest two-sided Mann-Whitney p-value over all attacks, including LOSS and Min-K, after
    Holm's correction for their number. Two-sided, since over-unlearning also reveals membership. `details["attacks"]`
    has every attack. `per_track` is the Holm-adjusted conformal p-value of each track under LOSS: with F forget and n
    holdout tracks none is below F / (n + 1), so a single track needs 20 F holdout tracks. The note is the warning of
    the most significant score of the model-free baseline.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in available_roles(evaluation, *MODELS):
            tested: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {}
            for name, (score, why_not) in ATTACKS.items():
                why = not_finite(evaluation, model, "forget") or not_finite(evaluation, model, "holdout")
                why = why or why_not(evaluation, model)
                if why:
                    if name not in REPORTED:
                        yield unmeasured(f"membership_auc_{name}", model, "forget", why, unit="AUC")
                        yield unmeasured(f"membership_tpr_at_1_fpr_{name}", model, "forget", why, unit="share")
                    continue
                tested[name] = score(evaluation, model, "forget"), score(evaluation, model, "holdout")
                if name not in REPORTED:
                    yield auc_row(f"membership_auc_{name}", model, *tested[name])
                    yield tpr_row(f"membership_tpr_at_1_fpr_{name}", model, *tested[name])
            yield self._combined(model, tested, baseline_warning(evaluation))

    def _combined(
        self, model: Role, tested: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], warning: str | None
    ) -> Result:
        pairs = {
            name: (list(members.values()), list(others.values()))
            for name, (members, others) in tested.items()
            if all(map(math.isfinite, (*members.values(), *others.values())))
        }
        if not pairs:
            return unmeasured("membership_p", model, "forget", "no attack has a score for every track", unit="p")
        raw = [stats.rank_test(*scores) for scores in pairs.values()]
        adjusted = stats.holm(raw).tolist()
        attacks = {
            name: {"auc": stats.auc(*scores), "p": p, "p_holm": p_holm}
            for (name, scores), p, p_holm in zip(pairs.items(), raw, adjusted, strict=True)
        }
        members, others = next(iter(tested.values()))
        per_track = stats.holm(stats.conformal_p(list(members.values()), list(others.values())))
        return Result(
            "membership_p", model, "forget", min(adjusted), n=len(members) + len(others), unit="p", direction="higher",
            per_track=dict(zip(members, per_track.tolist(), strict=True)), note=warning,
            details={"attacks": attacks, "strongest": min(attacks, key=lambda name: attacks[name]["p"])},
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- scores


def zlib_score(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Minus the NLL per token over the zlib-compressed bytes per token."""
    sizes = negated_zlib_size(evaluation.clips[clips])
    return {track: nll / sizes[track] for track, nll in evaluation.nll(model, clips).items()}


def min_k_plus(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Mean of the lowest 20 % of each track's standardised log-likelihoods."""
    tensors = evaluation.cached_on_disk(
        ("membership_attacks", "minkpp, floor", MIN_K),
        lambda: {"scores": torch.tensor(list(_min_k_plus(evaluation, model, clips).values()), dtype=torch.float64)},
        models=[model], clips=evaluation.clips[clips],
    )  # fmt: skip
    tracks = sorted({clip.track for clip in evaluation.clips[clips]})
    return dict(zip(tracks, tensors["scores"].tolist(), strict=True))


@torch.no_grad()
def _min_k_plus(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    backend, tokens = evaluation.backend(model), dict[str, list[Tensor]]()
    for part in evaluation.batches(evaluation.clips[clips]):
        batch = Batch.of(part, backend.device)
        logits, masks = backend.logits(batch), backend.token_mask(batch)
        for clip, row, mask in zip(part, logits, masks, strict=True):
            frames = clip.codes.shape[-1]
            valid = mask[:, :frames]
            codes = clip.codes.to(row.device)[valid]
            tokens.setdefault(clip.track, []).append(standardised(row[:, :frames][valid], codes).cpu())
    return {track: lowest_mean(torch.cat(parts)) for track, parts in sorted(tokens.items())}


def standardised(logits: Tensor, codes: Tensor) -> Tensor:
    """(log p(code) - μ) / σ under the model's prediction, float32, [n]; 0 if the prediction is uniform or one-hot.

    Args:
        logits: [n, V].
        codes: [n].
    """
    logp = logits.float().log_softmax(-1)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    std = ((p * (logp - mean[:, None]).square()).sum(-1)).sqrt()
    centred = logp.gather(-1, codes[:, None])[:, 0] - mean
    return torch.where((std < 1e-6) & (centred.abs() < 1e-6), 0.0, centred / std.clamp(min=1e-6))


def gradient_norm(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Minus the norm of each clip's loss gradient, the mean over a track's clips."""
    members, backend = evaluation.clips[clips], evaluation.backend(model)
    tensors = evaluation.cached_on_disk(
        ("membership_attacks", "norms"),
        lambda: {"norms": torch.cat([gradient_norms(backend, part) for part in evaluation.batches(members)])},
        models=[model], clips=members,
    )  # fmt: skip
    return by_track(members, (-tensors["norms"]).tolist(), [1.0] * len(members))


def gradient_norms(backend: Backend, clips: Sequence[Clip]) -> Tensor:
    """‖∇ loss_n‖ of each clip over all trainable weights, [N].

    One backward pass, or one per clip for a model with a parameter that `capture` does not support.
    """
    try:
        with capture(backend.module, norms=True) as captured:
            backend.losses(Batch.of(clips, backend.device)).sum().backward()
        return captured.sq_norms.double().sqrt().cpu()
    except UnsupportedParameterError:
        weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
        squares = []
        for clip in clips:
            loss = backend.losses(Batch.of([clip], backend.device)).sum()
            parts = torch.autograd.grad(loss, weights, materialize_grads=True)
            squares.append(sum(float(part.double().square().sum()) for part in parts))
        return torch.tensor(squares, dtype=torch.float64).sqrt()


def reference_gap(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """The reference's NLL minus the model's."""
    reference = evaluation.nll(_reference(model), clips)
    return {track: reference[track] - nll for track, nll in evaluation.nll(model, clips).items()}


def caption_contrast(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Mean over tokens of log p(x | caption) - log p(x | no caption)."""
    with_caption = evaluation.token_logprobs(model, clips)
    without = evaluation.token_logprobs(model, clips, unconditional=True)
    gaps = [float((a.double() - b.double()).sum()) for a, b in zip(with_caption, without, strict=True)]
    return by_track(evaluation.clips[clips], gaps, [int(mask.sum()) for mask in evaluation.token_mask(clips)])


def _loss(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    return negated(evaluation.nll(model, clips))


def _reference(model: Role) -> Role:
    return "gold2" if model == "gold" else "gold"


# ------------------------------------------------------------------------------- requirements: why a score is missing


def _nothing(evaluation: Evaluation, model: Role) -> str:
    return ""


def _tokens(evaluation: Evaluation, model: Role) -> str:
    return "" if evaluation.backend(model).has_tokens else "the model has no tokens"


def _reference_model(evaluation: Evaluation, model: Role) -> str:
    return "" if _reference(model) in evaluation.models else f"no {_reference(model)} model was given"


REPORTED = ("loss", "mink")  # reported by `Membership`, and part of the combined test here
ATTACKS: dict[str, tuple[Callable[[Evaluation, Role, ClipSet], Scores], Callable[[Evaluation, Role], str]]] = {
    "loss": (_loss, _nothing),
    "mink": (min_k, _tokens),
    "zlib": (zlib_score, _nothing),
    "minkpp": (min_k_plus, _tokens),
    "gradnorm": (gradient_norm, _nothing),
    "reference": (reference_gap, _reference_model),
    "caption": (caption_contrast, _tokens),
}
