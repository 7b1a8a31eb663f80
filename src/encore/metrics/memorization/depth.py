"""Depth of unlearning: hidden states of one model are put into another, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from encore.api import Backend, Batch, Evaluation, Metric, Result, Role
from encore.hidden_states import replaced_output
from encore.metrics.rows import available_roles, by_track, mean_row, not_finite, unmeasured

MOST_DEPTHS = 8  # blocks after which states are replaced, evenly spaced over the network
KNOWLEDGE = 0.05  # τ: rise of the NLL from which a depth counts as holding the track; nats per token


class Depth(Metric):
    """Unlearning Depth Score: how much of a track is missing from a model's hidden states, 0 as in base, 1 as in gold.

    The hidden states of a source model S after block l take the place of base's, and base computes the rest (Lee, Kim
    and Jo, "Measuring the Depth of LLM Unlearning via Activation Patching", arXiv 2605.24614, section 3):

        Δ_l(S) = NLL of base with S's states after block l - NLL of base
        depth  = Σ_l Δ_l(gold) · clip(Δ_l(S) / Δ_l(gold), 0, 1) / Σ_l Δ_l(gold),  over the l with Δ_l(gold) > τ = .05

    for each forget track, over all its tokens; the row is the mean. A model that suppresses a track only near its
    output has states from which base still reads it. Base is 0 and gold 1 by definition. `details["into_base"]` is
    Δ_l(S), the mean over tracks, at `details["after"]`; `details["from_base"]` is the reverse: the NLL of S with base's
    states after block l, which falls at an early block where S's later blocks still know what to make of the track.

    States of two models can be exchanged only where both were trained from the same weights. Gold must come from
    base's own initial weights for that; where already its first states are as foreign to base as its last ones
    (`details["into_base"]` of gold does not rise), the score says little.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        models = available_roles(evaluation, "unlearned", "gold2")
        if reason := next(filter(None, (not_finite(evaluation, role, "forget") for role in (*models, "gold"))), ""):
            yield unmeasured("depth", "unlearned", "forget", reason)
            return
        gold = _curves(evaluation, "gold")
        for model in ["base", "gold", *models]:
            curves = gold if model == "gold" else _curves(evaluation, model)  # type: ignore[arg-type]
            details: dict[str, object] = {"after": _after(evaluation.backend("base"))}
            details |= {name: _means(by_depth) for name, by_depth in curves.items()}
            tracks = depths(curves["into_base"], gold["into_base"])
            if tracks:
                yield mean_row("depth", model, "forget", tracks, evaluation, direction="higher", details=details)
            else:
                yield unmeasured(
                    "depth",
                    model,
                    "forget",
                    "base predicts the tracks as well from gold's hidden states as from its own",
                    details=details,
                )


Curve = list[dict[str, float]]  # for each depth, track id -> nats per token


def depths(source: Curve, gold: Curve) -> dict[str, float]:
    """The score of each track; those are left out of which gold's states lack nothing.

    Args:
        source: Δ of a model's states, for each depth.
        gold: Δ of gold's states, for each depth.
    """
    scores = {}
    for track in gold[0]:
        pairs = [(by_track[track], reference[track]) for by_track, reference in zip(source, gold, strict=True)]
        known = [(delta, reference) for delta, reference in pairs if reference > KNOWLEDGE]
        if known:
            erased = sum(min(max(delta, 0.0), reference) for delta, reference in known)
            scores[track] = erased / sum(reference for _, reference in known)
    return scores


def _curves(evaluation: Evaluation, model: Role) -> dict[str, Curve]:
    """Both curves of a model."""
    base, source, forget = evaluation.backend("base"), evaluation.backend(model), evaluation.clips["forget"]
    if model == "base":
        plain = evaluation.nll("base", "forget")
        after = _after(base)
        return {"into_base": [dict.fromkeys(plain, 0.0) for _ in after], "from_base": [dict(plain) for _ in after]}
    tensors = evaluation.cached_on_disk(
        ("depth", MOST_DEPTHS),
        lambda: {"into_base": _patched(evaluation, base, source), "from_base": _patched(evaluation, source, base)},
        models=["base", model], clips=forget,
    )  # fmt: skip
    counts = [int(mask.sum()) for mask in evaluation.token_mask("forget")] if base.has_tokens else [1] * len(forget)
    plain = evaluation.nll("base", "forget")

    def tracks(losses: Tensor) -> dict[str, float]:
        totals = [loss * count for loss, count in zip(losses.double().tolist(), counts, strict=True)]
        return by_track(forget, totals, counts)

    into = [{t: nll - plain[t] for t, nll in tracks(losses).items()} for losses in tensors["into_base"]]
    return {"into_base": into, "from_base": [tracks(losses) for losses in tensors["from_base"]]}


@torch.no_grad()
def _patched(evaluation: Evaluation, target: Backend, source: Backend) -> Tensor:
    """Losses [depths, N] of the forget clips under one model with the hidden states of another."""
    blocks, rows = target.blocks, []
    for after in _after(target):
        losses = []
        for part in evaluation.batches(evaluation.clips["forget"]):
            batch = Batch.of(part, target.device)
            states = source.hidden(batch, after / len(blocks))
            with replaced_output(blocks[after - 1], states):
                losses.append(target.losses(batch).cpu())
        rows.append(torch.cat(losses))
    return torch.stack(rows)


def _after(backend: Backend) -> list[int]:
    """The numbers of blocks after which states are replaced."""
    count = len(backend.blocks)
    steps = min(count, MOST_DEPTHS)
    return [round((i + 1) * count / steps) for i in range(steps)]


def _means(curve: Curve) -> list[float]:
    return [sum(tracks.values()) / len(tracks) for tracks in curve]
