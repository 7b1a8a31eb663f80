"""Which tracks were unlearned? Attacks on the request itself: by the unlearned model alone, and with base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore import stats
from encore.api import Batch, Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.privacy.model_free import baseline_warning
from encore.metrics.robustness.relearn import evenly_spaced
from encore.metrics.rows import available_roles, not_finite, unmeasured, windows_by_track

FEATURES = ("nll", "entropy", "confidence", "rank")
MOST_RETAIN = 40  # tracks
LEAST = 3  # tracks of each set
PERMUTATIONS = 999

Floats = NDArray[np.float64]


class UnlearningInference(Metric):
    """Can an attacker tell which tracks were unlearned from what unlearning did to the model's predictions?

    Forgetting must not point at what was forgotten: predictions that are flatter, or more surely wrong, than those for
    other music name the tracks even where nothing of them can be generated (FUMA, Deepak et al., "Identifying
    Unlearned Data in LLMs via Membership Inference Attacks", EMNLP 2025). The features of a track are means over its
    tokens, given the true past: NLL, entropy of the prediction, log-probability of the likeliest code, and logarithm of
    the true code's rank. A linear classifier is fitted to some tracks and tested on others
    (`stats.learned_separation`):

    - `unlearning_inference_p`: forget against holdout, by the model alone. p of a permutation test, least .001;
      `details["auc"]` has the AUC.
    - `unlearning_inference_auc_pair`: AUC of forget against holdout for an attacker who also has base, from the changes
      of these features since base. Such an attacker sees what gold does not know either, so gold's AUC is near 1 where
      base had memorised the tracks. No unlearning can hide that: compare with gold's figure.
    - `unlearning_inference_auc_pair_retain`: the same against retain tracks (at most 40, evenly spaced). The three sets
      are those of the tri-class attack of Fu et al. (TC-UMIA, arXiv 2605.01129), two at a time.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        names = {"p": "p", "auc_pair": "AUC", "auc_pair_retain": "AUC"}
        for model in available_roles(evaluation, "base", "unlearned", "gold", "gold2"):
            for name, unit in names.items():
                others: ClipSet = "retain" if name == "auc_pair_retain" else "holdout"
                metric = f"unlearning_inference_{name}"
                if name != "p" and (model == "base" or "base" not in evaluation.models):
                    if model == "unlearned":
                        yield unmeasured(metric, model, "forget", "no base model was given", unit=unit)
                    continue
                if not evaluation.clips.get(others):
                    if model == "unlearned":
                        yield unmeasured(metric, model, "forget", f"there are no {others} tracks", unit=unit)
                    continue
                yield _row(evaluation, metric, model, others, pair=name != "p")


def _row(evaluation: Evaluation, metric: str, model: Role, others: ClipSet, *, pair: bool) -> Result:
    unit = "AUC" if pair else "p"
    roles: list[Role] = ["base", model] if pair else [model]
    reasons = (not_finite(evaluation, role, clips) for role in roles for clips in ("forget", others))  # type: ignore[arg-type]
    tracks = _tracks(evaluation, "forget")
    sizes = len(tracks), len(_tracks(evaluation, others))
    reason = next(filter(None, reasons), "")
    if min(sizes) < LEAST:
        reason = f"there are {sizes[0]} forget and {sizes[1]} {others} tracks, and it takes {LEAST} of each"
    if reason:
        return unmeasured(metric, model, "forget", reason, unit=unit)
    members, rest = _features(evaluation, model, "forget"), _features(evaluation, model, others)
    if pair:
        members, rest = members - _features(evaluation, "base", "forget"), rest - _features(evaluation, "base", others)
    placements, p = stats.learned_separation(
        members, rest, seed=evaluation.seed, permutations=0 if pair else PERMUTATIONS
    )
    auc = float(placements.mean())
    interval = stats.auc_interval(auc, *sizes)
    low, high = interval if pair else (None, None)
    return Result(
        metric, model, "forget", auc if pair else p, low, high, n=sum(sizes), unit=unit,
        direction="gold" if pair else "higher", per_track=dict(zip(tracks, placements.tolist(), strict=True)),
        details={"auc": auc, "auc_interval": list(interval), "forget": sizes[0], others: sizes[1]},
        note=None if pair else baseline_warning(evaluation),
    )  # fmt: skip


def _clips(evaluation: Evaluation, clips: ClipSet) -> Sequence[Clip]:
    members = evaluation.clips[clips]
    return evaluation.cached(
        ("unlearning_inference", clips), lambda: evenly_spaced(members, MOST_RETAIN) if clips == "retain" else members
    )


def _tracks(evaluation: Evaluation, clips: ClipSet) -> list[str]:
    return sorted({clip.track for clip in _clips(evaluation, clips)})


def _features(evaluation: Evaluation, model: Role, clips: ClipSet) -> Floats:
    """Features [tracks, F] of a set's tracks, in the order of their ids."""
    members = _clips(evaluation, clips)
    tensors = evaluation.cached_on_disk(
        ("unlearning_inference", *FEATURES), lambda: _measured(evaluation, model, members), models=[model],
        clips=members,
    )  # fmt: skip
    sums, tokens = tensors["sums"], tensors["tokens"]
    place = {id(clip): i for i, clip in enumerate(members)}
    rows = []
    for _, windows in sorted(windows_by_track(members).items()):
        places = [place[id(clip)] for clip in windows]
        rows.append((sums[places].sum(0) / tokens[places].sum()).numpy())
    return np.stack(rows)


@torch.no_grad()
def _measured(evaluation: Evaluation, model: Role, clips: Sequence[Clip]) -> dict[str, Tensor]:
    """Sums of the features over each clip's tokens, [N, F], and the numbers of tokens, [N]."""
    backend, sums, tokens = evaluation.backend(model), [], []
    for part in evaluation.batches(clips):
        batch = Batch.of(part, backend.device)
        logits, masks = backend.logits(batch), backend.token_mask(batch)
        for row, codes, mask in zip(logits, batch.codes, masks, strict=True):
            sums.append(token_features(row[mask], codes[mask]).double().sum(0).cpu())
            tokens.append(mask.sum().cpu())
    return {"sums": torch.stack(sums), "tokens": torch.stack(tokens)}


def token_features(logits: Tensor, codes: Tensor) -> Tensor:
    """`FEATURES` of tokens, [n, 4].

    Args:
        logits: [n, V].
        codes: the true codes, [n].
    """
    logp = logits.float().log_softmax(-1)
    true = logp.gather(-1, codes[:, None])
    entropy = -(logp.exp() * logp).sum(-1)
    rank = (logp > true).sum(-1) + 1
    return torch.stack([-true[:, 0], entropy, logp.amax(-1), rank.log()], -1)
