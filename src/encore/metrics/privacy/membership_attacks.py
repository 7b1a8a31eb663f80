"""More ways to tell that tracks were trained on: five scores beside LOSS and Min-K, and all of them tested together."""

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
    compressed,
    lowest_mean,
    min_k,
    negated,
    tpr_row,
)
from encore.metrics.privacy.model_free import blind_warning
from encore.metrics.rows import by_track, given, not_finite, unmeasured

Scores = dict[str, float]  # a track id -> score; higher means more of a member


class MembershipAttacks(Metric):
    """Forget tracks as members against holdout tracks, a score a row: `membership_auc_NAME`, and its TPR at 1 % FPR.

    - `zlib`: -NLL / compressed size of the code stream (Carlini et al., arXiv 2012.07805, section 4.2). They divide the
      NLL per token by the size of the whole text; here both are per token, so that long tracks compare with short ones.
    - `minkpp`: mean of the lowest 20 % of (log p(x_t) - μ_t) / σ_t, μ_t and σ_t the mean and spread of log p under the
      model's own prediction (Min-K++, Zhang et al., arXiv 2404.02936, equation 3).
    - `gradnorm`: -‖∇ NLL‖, of a track's windows the mean: a memorised track leaves hardly any gradient (Nasr et al.,
      arXiv 1812.00910). It is one L2 norm over all trainable weights; others take one norm per layer, or their mean.
      Also of models without tokens.
    - `reference`: NLL of another model that never heard the tracks, less the model's: what is hard for all music of its
      kind is taken out (Watson et al., arXiv 2111.08440). The other is gold, and gold2 for gold itself.
    - `caption`: mean of log p(x | caption) - log p(x | no caption): a member is tied to its caption (after Zhai et al.,
      arXiv 2405.14800, who do so for images).

    `membership_p` is the smallest of all attacks' two-sided Mann-Whitney p-values, LOSS and Min-K among them, adjusted
    by Holm for their number: over-unlearning tells on a track as well. Its `details["attacks"]` has every attack, its
    `per_track` the Holm-adjusted conformal p-value of each track under LOSS: with F forget tracks against n of holdout
    none is below F / (n + 1), so that it takes 20 F holdout tracks to tell a single one; its note is the warning of
    the surest of the blind scores.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in given(evaluation, *MODELS):
            tested: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {}
            for name, (score, why_not) in ATTACKS.items():
                why = not_finite(evaluation, model, "forget") or not_finite(evaluation, model, "holdout")
                why = why or why_not(evaluation, model)
                if why:
                    if name not in BESIDE:
                        yield unmeasured(f"membership_auc_{name}", model, "forget", why, unit="AUC")
                        yield unmeasured(f"membership_tpr_at_1_fpr_{name}", model, "forget", why, unit="share")
                    continue
                tested[name] = score(evaluation, model, "forget"), score(evaluation, model, "holdout")
                if name not in BESIDE:
                    yield auc_row(f"membership_auc_{name}", model, *tested[name])
                    yield tpr_row(f"membership_tpr_at_1_fpr_{name}", model, *tested[name])
            yield self._together(model, tested, blind_warning(evaluation))

    def _together(
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
        single = stats.holm(stats.conformal_p(list(members.values()), list(others.values())))
        return Result(
            "membership_p", model, "forget", min(adjusted), n=len(members) + len(others), unit="p", direction="higher",
            per_track=dict(zip(members, single.tolist(), strict=True)), note=warning,
            details={"attacks": attacks, "strongest": min(attacks, key=lambda name: attacks[name]["p"])},
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- scores


def zlib_score(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Less the NLL a token over the bytes a token that zlib needs."""
    shrunk = compressed(evaluation.clips[clips])  # less the bytes a token
    return {track: nll / shrunk[track] for track, nll in evaluation.nll(model, clips).items()}


def min_k_plus(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Mean of the lowest 20 % of each track's standardised log-likelihoods."""
    made = evaluation.cached_on_disk(
        ("membership_attacks", "minkpp, floor", MIN_K),
        lambda: {"scores": torch.tensor(list(_min_k_plus(evaluation, model, clips).values()), dtype=torch.float64)},
        models=[model], clips=evaluation.clips[clips],
    )  # fmt: skip
    tracks = sorted({clip.track for clip in evaluation.clips[clips]})
    return dict(zip(tracks, made["scores"].tolist(), strict=True))


@torch.no_grad()
def _min_k_plus(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    backend, tokens = evaluation.backend(model), dict[str, list[Tensor]]()
    for piece in evaluation.batches(evaluation.clips[clips]):
        batch = Batch.of(piece, backend.device)
        logits, mask = backend.logits(batch), backend.token_mask(batch)
        for clip, row, kept in zip(piece, logits, mask, strict=True):
            frames = clip.codes.shape[-1]
            valid = kept[:, :frames]
            codes = clip.codes.to(row.device)[valid]
            tokens.setdefault(clip.track, []).append(standardised(row[:, :frames][valid], codes).cpu())
    return {track: lowest_mean(torch.cat(parts)) for track, parts in sorted(tokens.items())}


def standardised(logits: Tensor, codes: Tensor) -> Tensor:
    """(log p(code) - μ) / σ over the model's own prediction: logits [n, V], codes [n] -> [n], float32.

    A prediction that is uniform, or sure of one code alone, has no spread; its own code then counts 0.
    """
    logp = logits.float().log_softmax(-1)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    spread = ((p * (logp - mean[:, None]).square()).sum(-1)).sqrt()
    own = logp.gather(-1, codes[:, None])[:, 0] - mean
    return torch.where((spread < 1e-6) & (own.abs() < 1e-6), 0.0, own / spread.clamp(min=1e-6))


def gradient_norm(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """Less the norm of each clip's gradient of its loss, the mean over a track's clips."""
    chosen, backend = evaluation.clips[clips], evaluation.backend(model)
    made = evaluation.cached_on_disk(
        ("membership_attacks", "norms"),
        lambda: {"norms": torch.cat([gradient_norms(backend, piece) for piece in evaluation.batches(chosen)])},
        models=[model], clips=chosen,
    )  # fmt: skip
    return by_track(chosen, (-made["norms"]).tolist(), [1.0] * len(chosen))


def gradient_norms(backend: Backend, clips: Sequence[Clip]) -> Tensor:
    """‖∇ loss_n‖ of each clip over all trainable weights, [N], from one backward pass.

    A model with a weight that one pass can't serve takes a pass a clip; the norms are the same.
    """
    try:
        with capture(backend.module, norms=True) as taken:
            backend.losses(Batch.of(clips, backend.device)).sum().backward()
        return taken.sq_norms.double().sqrt().cpu()
    except UnsupportedParameterError:
        weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
        squares = []
        for clip in clips:
            loss = backend.losses(Batch.of([clip], backend.device)).sum()
            parts = torch.autograd.grad(loss, weights, materialize_grads=True)
            squares.append(sum(float(part.double().square().sum()) for part in parts))
        return torch.tensor(squares, dtype=torch.float64).sqrt()


def reference_gap(evaluation: Evaluation, model: Role, clips: ClipSet) -> Scores:
    """The reference's NLL less the model's."""
    known = evaluation.nll(_reference(model), clips)
    return {track: known[track] - nll for track, nll in evaluation.nll(model, clips).items()}


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


# ------------------------------------------------------------------------------------------- where they can't work


def _always(evaluation: Evaluation, model: Role) -> str:
    return ""


def _tokens(evaluation: Evaluation, model: Role) -> str:
    return "" if evaluation.backend(model).has_tokens else "the model has no tokens"


def _referred(evaluation: Evaluation, model: Role) -> str:
    return "" if _reference(model) in evaluation.models else f"no {_reference(model)} model was given"


BESIDE = ("loss", "mink")  # have rows of their own in `membership_auc`; tested here with the rest
ATTACKS: dict[str, tuple[Callable[[Evaluation, Role, ClipSet], Scores], Callable[[Evaluation, Role], str]]] = {
    "loss": (_loss, _always),
    "mink": (min_k, _tokens),
    "zlib": (zlib_score, _always),
    "minkpp": (min_k_plus, _tokens),
    "gradnorm": (gradient_norm, _always),
    "reference": (reference_gap, _referred),
    "caption": (caption_contrast, _tokens),
}
