"""Metrics with one fault each. `fault`: the check that must name it, and words of its sentence; `also`: other checks
that can't but notice; `needs`: what its spec declares."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import torch

from encore.api import Metric, MetricSpec, RowSpec
from encore.metrics.memorization.nll import Nll

_calls = itertools.count()


class Broken(Metric):
    """The NLL of each set, as one row a role, named `broken`."""

    fault: tuple[str, ...]
    also: tuple[str, ...] = ()
    needs = frozenset()
    rows: tuple[RowSpec, ...] = ()

    def measure(self, evaluation):
        for row in Nll().measure(evaluation):
            if row.metric == "nll":
                yield self.change(replace(row, metric="broken"), evaluation)

    def change(self, row, evaluation):
        return row


class GivesNoRow(Broken):
    fault = ("measure", "no row")
    also = ("names", "absent", "without_tokens")

    def measure(self, evaluation):
        return []


class GivesTuples(Broken):
    fault = ("measure", "rows of type tuple")
    also = ("names", "values", "units", "per_track", "json", "determinism", "order", "absent", "without_tokens")

    def measure(self, evaluation):
        return [("broken", "base", "forget", 1.0)]


class Crashes(Broken):
    fault = ("measure", "raised ZeroDivisionError", "broken_metrics.py, line")

    def change(self, row, evaluation):
        return replace(row, value=1 / 0)


class OtherModel(Broken):
    fault = ("names", "the model 'ours'")

    def change(self, row, evaluation):
        return replace(row, model="ours" if row.model == "gold" else row.model)


class OtherSet(Broken):
    fault = ("names", "the set 'train'")
    also = ("per_track",)

    def change(self, row, evaluation):
        return replace(row, set="train" if row.set == "retain" else row.set)


class NameOfAnother(Broken):
    fault = ("names", "'nll'", "does not begin with 'broken'")

    def change(self, row, evaluation):
        return replace(row, metric="nll")


class RowTwice(Broken):
    fault = ("names", "there twice")

    def measure(self, evaluation):
        rows = list(super().measure(evaluation))
        return [*rows, rows[-1]]


class NanWithoutWhy(Broken):
    fault = ("values", "value nan", "None, with `why`")
    also = ("json", "absent", "without_tokens")

    def change(self, row, evaluation):
        return replace(row, value=math.nan)


class NoneWithoutWhy(Broken):
    fault = ("values", "no value and no `why`")
    also = ("absent", "without_tokens")

    def change(self, row, evaluation):
        return replace(row, value=None, low=None, high=None) if row.set == "forget" else row


class ValueOutsideItsInterval(Broken):
    fault = ("values", "outside its interval")
    also = ("absent", "without_tokens")

    def change(self, row, evaluation):
        return replace(row, low=row.value + 1, high=row.value + 2) if row.value is not None else row


class HalfAnInterval(Broken):
    fault = ("values", "one end of an interval")
    also = ("absent", "without_tokens")

    def change(self, row, evaluation):
        return replace(row, low=None, high=row.value) if row.value is not None else row


class RestsOnNothing(Broken):
    fault = ("values", "n = 0")
    also = ("absent", "without_tokens", "per_track")

    def change(self, row, evaluation):
        return replace(row, n=0)


class OtherDirection(Broken):
    fault = ("units", "direction 'up'")

    def change(self, row, evaluation):
        return replace(row, direction="up")


class ClipsForTracks(Broken):
    fault = ("per_track", "is no track of")

    def change(self, row, evaluation):
        return replace(row, per_track={f"{track}#0": value for track, value in row.per_track.items()})


class CountsClips(Broken):
    fault = ("per_track", "tracks and n = 1")

    def change(self, row, evaluation):
        return replace(row, n=1) if row.value is not None else row


class TensorsInDetails(Broken):
    fault = ("json", "can't be written as JSON", "Tensor")

    def change(self, row, evaluation):
        return replace(row, details={"curve": torch.zeros(2)})


class AddsNoise(Broken):
    """To the weights of a model, which it restores: what it reads of the model comes from a shared result."""

    fault = ("determinism", "two runs differ")
    also = ("order", "absent", "without_tokens")

    def measure(self, evaluation):
        weights = next(evaluation.models["unlearned"].module.parameters()).data
        before = weights.clone()
        weights += 0.1 * next(_calls) * weights.std()
        yield from super().measure(evaluation)
        weights.copy_(before)


class CountsCalls(Broken):
    fault = ("determinism", "two runs differ")
    also = ("order",)

    def change(self, row, evaluation):
        return replace(
            row, details={"calls": next(_calls)}, value=row.value and row.value + next(_calls), low=None, high=None
        )


class DrawsFromNumpy(Broken):
    fault = ("determinism", "numpy's shared random generator")

    def change(self, row, evaluation):
        np.random.permutation(3)  # noqa: NPY002
        return row


class FirstClipOnly(Broken):
    fault = ("order", "in reverse order", "value of")

    def change(self, row, evaluation):
        if row.value is None:
            return row
        first = evaluation.clips[row.set][0].track
        return replace(row, value=row.per_track[first], low=None, high=None)


class TrainsTheModel(Broken):
    """An attack on the model itself, in place of a clone."""

    fault = ("models", "changes the base model")
    also = ("determinism", "order")

    def change(self, row, evaluation):
        for model in list(evaluation.models.values())[:1]:
            with torch.no_grad():
                next(model.module.parameters()).mul_(1.0001)
        return row


class LeavesTrainingMode(Broken):
    fault = ("models", "mode")
    also = ("determinism", "absent", "without_tokens", "order")

    def change(self, row, evaluation):
        if "base" in evaluation.models:
            evaluation.models["base"].module.train()
        return row


class WritesIntoClips(Broken):
    fault = ("shared_objects", "writes into the codes of")
    also = ("determinism", "order")

    def change(self, row, evaluation):
        for clip in evaluation.clips.get(row.set, ()):
            clip.codes[:, 0] = 0
        return row


class WritesIntoWhatIsShared(Broken):
    fault = ("shared_objects", "evaluation.token_logprobs")
    needs = frozenset({"logits"})

    def change(self, row, evaluation):
        for clip in evaluation.token_logprobs(row.model, "forget"):
            clip.exp_()
        return row


class NeedsGoldUndeclared(Broken):
    fault = ("absent", "without gold model", "KeyError", "lack 'gold'")

    def change(self, row, evaluation):
        return replace(row, details={"gold": evaluation.nll("gold", "forget")}, why=row.why)


class NeedsHoldoutUndeclared(Broken):
    fault = ("absent", "without holdout tracks", "lack 'holdout'")

    def change(self, row, evaluation):
        evaluation.nll(row.model if row.model in evaluation.models else "control", "holdout")
        return row


class TakesAnEmptySetForAFullOne(Broken):
    fault = ("absent", "without retain tracks", "IndexError")

    def change(self, row, evaluation):
        if "retain" in evaluation.clips:
            return replace(row, details={"first": evaluation.clips["retain"][0].track})
        return row


class CountsOneGenerationACaption(Broken):
    fault = ("measure", "raised ValueError")
    needs = frozenset({"base"})

    def change(self, row, evaluation):
        tracks = sorted({clip.track for clip in evaluation.clips["forget"]})
        return replace(row, details=dict(zip(tracks, map(len, evaluation.generations("base", "forget")), strict=True)))


class ForgetsThatFilesMayBeAtHand(Broken):
    fault = ("measure", "raised TypeError")

    def change(self, row, evaluation):
        facts = evaluation.track_metadata.get(row.set) if evaluation.has_audio("forget") else {}
        return replace(row, details=dict(facts))


class LeavesOutWhatIsAbsent(Broken):
    fault = ("absent", "without retain tracks", "no row")

    def measure(self, evaluation):
        return [row for row in super().measure(evaluation) if evaluation.clips.get("retain")]


class NeedsTokensUndeclared(Broken):
    fault = ("without_tokens", "raised AssertionError", "lack 'logits'")

    def change(self, row, evaluation):
        for clip in evaluation.clips["forget"]:
            assert not clip.codes.is_floating_point(), "codes are counted"
        return row


class NamesNoRule(Broken):
    fault = ("row_specs", "there is no rule 'encore.results.rules:nothing'")
    rows = (RowSpec("broken", "forget", "a row", target="near gold's", judge="encore.results.rules:nothing"),)


class NamesARowOfAnother(Broken):
    fault = ("row_specs", "declares a row 'nll', which does not begin with 'broken'")
    rows = (RowSpec("nll", "forget", "a row"),)


class HasATargetAndNoRule(Broken):
    fault = ("row_specs", "'broken' has a target or a rule (judge), but not both")
    rows = (RowSpec("broken", "forget", "a row", target="near gold's"),)


ALL = [one for one in list(globals().values()) if isinstance(one, type) and issubclass(one, Broken)]
for one in ALL:
    one.spec = MetricSpec("broken", "", "", needs=one.needs, rows=one.rows)
ALL = ALL[1:]
