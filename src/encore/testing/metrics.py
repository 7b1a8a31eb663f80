"""The checks of a metric: the rows that it gives of a small model in several roles."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from encore import plugins
from encore.api import Backend, Clip, ClipSet, Metric, Result, Role
from encore.curvature.fisher import clips_sha256
from encore.errors import EncoreError, PluginError
from encore.evaluate.embedder_choice import open_embedders
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.result_cache import Key, ResultCache
from encore.hashing import module_sha256
from encore.results.rules import rule
from encore.testing.core import CheckResult, ContractViolation, Skip, describe, listed, need, run_checks
from encore.testing.fixture import Fixture, LatentBackend, Subject, as_latents
from encore.testing.state import seed_shared, undisturbed

NOISE: Mapping[Role, float] = {"base": 0.0, "unlearned": 0.05, "gold": 0.1, "gold2": 0.12}
"""How far each role's weights are from base's, in standard deviations of each parameter."""
SETS: tuple[ClipSet, ...] = get_args(ClipSet)
MODELS = (*get_args(Role), "none")
DIRECTIONS = ("gold", "lower", "higher", "base")
SHARED = ("nll", "token_mask", "token_logprobs", "predictions", "kl", "continuations", "generations", "embeddings")
TOLERANCE = 1e-4  # relative, of figures whose sums run in another order


def run(target: type[Metric], fixture: Fixture, **how: Any) -> tuple[CheckResult, ...]:
    """Check a metric on one small model in four roles; see `run_checks`."""
    return run_checks(CHECKS, MetricSubject(target, fixture), **how)


class WatchedEvaluation(SharedEvaluation):
    """Remembers the shared objects that it returned."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        self._returned: list[tuple[str, Any, bytes]] = []
        super().__init__(*given, **settings)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in SHARED:
            return value

        def call(*given: Any, **settings: Any) -> Any:
            result = value(*given, **settings)
            self._returned.append((name, result, pickle.dumps(result)))
            return result

        return call

    def changed(self) -> set[str]:
        """The functions whose results have changed since."""
        return {name for name, result, before in self._returned if pickle.dumps(result) != before}


class ModelResults(ResultCache):
    """Scores, generations and embeddings of the models, computed once for all evaluations of a metric.

    They are the evaluation's, and not checked here. What the metric itself keeps is computed each time. Models count as
    the same whatever becomes of their weights, so that determinism is checked without it.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._kept: dict[Key, Mapping[str, Tensor]] = {}
        self._numbers: WeakKeyDictionary[Backend, str] = WeakKeyDictionary()
        self._next = itertools.count()

    def key(self, name: Hashable, settings: Hashable, models: Sequence[Backend], clips: Sequence[Clip]) -> Key:
        if isinstance(name, tuple) and name[0] == "metric":
            return ()
        numbers = [self._numbers.setdefault(model, str(next(self._next))) for model in models]
        return (repr([name, settings, [clip.track for clip in clips]]), clips_sha256(clips), *numbers)

    def get(self, key: Key) -> Mapping[str, Tensor] | None:
        kept = self._kept.get(key)
        return None if kept is None else {name: tensor.clone() for name, tensor in kept.items()}

    def put(self, key: Key, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        stored = super().put(key, tensors)
        if key:
            self._kept[key] = {name: tensor.clone() for name, tensor in stored.items()}
        return stored


class MetricSubject(Subject):
    """A metric with its rows under several conditions."""

    def __init__(self, target: type[Metric], fixture: Fixture) -> None:
        super().__init__(target, fixture)
        self._rows: dict[Any, list[Result]] = {}
        self._results = ModelResults()
        self.moved: set[str] = set()  # shared random generators
        self.changed: set[str] = set()  # models
        self.written: set[str] = set()  # clips and shared results that it wrote into

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        with super().undisturbed(), undisturbed(*self.models.values()):
            yield

    @cached_property
    @torch.no_grad()
    def models(self) -> dict[Role, Backend]:
        """The base in four roles, with more and more noise on its weights."""
        models: dict[Role, Backend] = {role: self.fixture.base.clone() for role in NOISE}
        for seed, (role, model) in enumerate(models.items()):
            generator = torch.Generator().manual_seed(seed)
            for weight in model.module.parameters():
                if NOISE[role] and weight.numel() > 1:
                    noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                    weight.add_(NOISE[role] * weight.std() * noise)
        return models

    @cached_property
    def clips(self) -> dict[ClipSet, list[Clip]]:
        """A few clips per set; the last forget clip is another window of the first one's track."""
        clips = self.fixture.clips
        forget = [*clips.forget[:2], clips.forget[-1]]
        return {"forget": forget, "retain": list(clips.retain[:4]), "holdout": list(clips.holdout[:2])}

    def evaluation(
        self,
        without: Sequence[str] = (),
        *,
        reverse: bool = False,
        tokens: bool = True,
        empty: bool = False,
        cached: bool = True,
    ) -> WatchedEvaluation:
        """An evaluation with two generations per caption, artists, genres and files.

        Args:
            without: roles, sets, "embedder".
            reverse: tracks in reverse order; the windows of a track keep theirs.
            tokens: False for models without them.
            empty: the sets it is without are there, and empty.
            cached: results of the models may come from an earlier evaluation.
        """
        models = {role: model for role, model in self.models.items() if role not in without}
        names: list[ClipSet] = [name for name in SETS if empty or name not in without]
        clips = {name: [] if name in without else self.clips[name] for name in names}
        if not tokens:
            models = {role: LatentBackend(model) for role, model in models.items()}
            clips = {name: as_latents(chosen) for name, chosen in clips.items()}
        if reverse:
            order = [clip.track for chosen in clips.values() for clip in chosen]
            clips = {n: sorted(chosen, key=lambda clip: -order.index(clip.track)) for n, chosen in clips.items()}
        shared = {self.clips[name][0].track for name in ("forget", "retain")}
        tracks = sorted({clip.track for chosen in self.clips.values() for clip in chosen})
        metadata = {t: {"artist": "A" if t in shared else f"of {t}", "genre": f"of {t}"} for t in tracks}
        first = next(iter(models.values()))
        recordings = {name: partial(_recorded, first, chosen) for name, chosen in clips.items() if chosen}
        embedders = {} if "embedder" in without else open_embedders("latents", first, offline=True)[0]
        if embedders and "embedder" in self.needs:
            embedders |= self.fixture.clap
        return WatchedEvaluation(
            models, clips, embedder=embedders, force=True, samples_per_caption=2, track_metadata=metadata,
            recordings=recordings, cache=self._results if cached else None,
        )  # fmt: skip

    @property
    def first_word(self) -> str:
        """The word that the names of the metric's rows begin with."""
        return str(self.target.spec.name).replace("-", "_").partition("_")[0]

    def rows(self, without: Sequence[str] = (), *, salt: int = 1, **how: Any) -> list[Result]:
        """The metric's rows, computed once for each set of arguments.

        Raises:
            Skip: its needs are not met.
            EncoreError: the metric can't measure.
        """
        key = (tuple(without), salt, *how.items())
        if key not in self._rows:
            evaluation = self.evaluation(without, cached=salt == 1, **how)
            unmet = evaluation.unmet(self.target.spec)
            if unmet:
                raise Skip(f"{unmet}, which it needs")
            clips = [(clip, clip.codes.clone()) for chosen in evaluation.clips.values() for clip in chosen]
            before = {role: _state(model) for role, model in evaluation.models.items()}
            shared = seed_shared(salt)
            self._rows[key] = list(self.target().measure(evaluation))
            self.moved |= {shared.moved()} - {""}
            changed = [role for role, model in evaluation.models.items() if _state(model) != before[role]]
            self.changed |= set(changed)
            self.written |= {f"the codes of {clip.track}" for clip, codes in clips if not codes.equal(clip.codes)}
            self.written |= {f"what evaluation.{name} returned" for name in evaluation.changed()}
        return self._rows[key]

    def measured(self) -> list[Result]:
        """The rows where all is there; skip the check where the metric raises, which another check reports."""
        try:
            return self.rows()
        except Skip:
            raise
        except Exception as error:
            raise Skip("the metric does not run, see 'measure'") from error


def _state(model: Backend) -> tuple[object, ...]:
    trainable = [weight.requires_grad for weight in model.module.parameters()]
    return module_sha256(model.module, *model.frozen().values()), model.module.training, trainable


@torch.no_grad()
def _recorded(model: Backend, clips: Sequence[Clip]) -> list[Tensor]:
    """Stands for the clips' files: their codes decoded, a little softer, mono [S] each."""
    return [0.9 * model.decode(clip.codes[None].to(model.device))[0].float().mean(0).cpu() for clip in clips]


def _label(row: Result) -> str:
    return f"the row {row.metric} ({row.model}, {row.set})"


def _need_value(row: Any) -> None:
    """Raise the fault of a row's figures."""
    given, low, high, label = row.value, row.low, row.high, _label(row)
    if given is None:
        need(isinstance(row.why, str) and row.why.strip(), f"{label} has no value and no `why`")
        need(low is None and high is None, f"{label} has an interval and no value")
        return
    need(isinstance(given, (int, float)) and type(given) is not bool, f"{label} has the value {given!r}: no number")
    need(math.isfinite(given), f"{label} has the value {given}: what is not finite is None, with `why`")
    need(row.why is None, f"{label} has a value and also says why it has none: {row.why}")
    need((low is None) == (high is None), f"{label} has one end of an interval, {low} to {high}")
    slack = 1e-9 * (1 + abs(given))
    inside = low is None or high is None or low - slack <= given <= high + slack
    need(inside, f"{label} has the value {given} outside its interval, {low} to {high}")
    need(type(row.n) is int and row.n > 0, f"{label} has a value with n = {row.n!r} tracks")


def check_measure(subject: MetricSubject) -> str | None:
    """measure gives Results, at least one, where all that it needs is there."""
    try:
        rows: list[Any] = subject.rows()
    except EncoreError as error:
        return f"it can't measure: {error.message}"
    need(rows, "no row: what can't be measured is a row with `why`, never left out")
    odd = sorted({type(row).__name__ for row in rows if not isinstance(row, Result)})
    need(not odd, f"rows of type {listed(odd)}, not encore.api.Result")
    return None if any(row.value is not None for row in rows) else f"it measures nothing here: {rows[0].why}"


def check_names(subject: MetricSubject) -> None:
    """Rows name a known model and set, are unique, and begin with the first word of the metric's name."""
    name = subject.target.spec.name
    word, others = subject.first_word, set(plugins.metrics().names) - {name}
    seen: set[tuple[str, str, str]] = set()
    for row in subject.measured():
        need(row.model in MODELS, f"{_label(row)} names the model {row.model!r}; known are {', '.join(MODELS)}")
        need(row.set in SETS, f"{_label(row)} names the set {row.set!r}; known are {', '.join(SETS)}")
        begins = row.metric.replace("-", "_").startswith(word)
        need(begins, f"{_label(row)} is called {row.metric!r}, which does not begin with {word!r}")
        other = row.metric in others and name != f"{row.metric}_{row.set}"  # fad_holdout: fad, measured on holdout
        need(not other, f"{_label(row)} has the name of another metric")
        key = (row.metric, row.model, row.set)
        need(key not in seen, f"{_label(row)} is there twice")
        seen.add(key)


def check_row_specs(subject: MetricSubject) -> None:
    """The rows that its spec declares begin with the first word of its name, and their rules can be imported."""
    for row in subject.target.spec.rows:
        begins = row.name.replace("-", "_").startswith(subject.first_word)
        need(begins, f"it declares a row {row.name!r}, which does not begin with {subject.first_word!r}")
        need(bool(row.target) == bool(row.judge), f"the row {row.name!r} has a target or a rule (judge), but not both")
        if row.judge:
            try:
                rule(row.judge)
            except PluginError as error:
                raise ContractViolation(f"the row {row.name!r}: {error.message}") from error


def check_values(subject: MetricSubject) -> None:
    """A value is a finite number, or None with `why`; low ≤ value ≤ high, or no interval."""
    for row in subject.measured():
        _need_value(row)


def check_units(subject: MetricSubject) -> None:
    """direction is gold, lower, higher or base; unit and note are texts."""
    for row in subject.measured():
        need(row.direction in DIRECTIONS, f"{_label(row)} has the direction {row.direction!r}")
        need(isinstance(row.unit, str), f"{_label(row)} has the unit {row.unit!r}")
        need(isinstance(row.note, (str, type(None))), f"{_label(row)} has the note {row.note!r}")


def check_json(subject: MetricSubject) -> None:
    """A row is written as JSON and reads back the same."""
    for row in subject.measured():
        try:
            text = json.dumps(asdict(row), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ContractViolation(f"{_label(row)} can't be written as JSON: {error}") from error
        again = Result(**json.loads(text))
        same = json.dumps(asdict(again), allow_nan=False) == text and again.per_track == dict(row.per_track)
        need(same, f"{_label(row)} is not read back from JSON as it was")


def check_per_track(subject: MetricSubject) -> None:
    """per_track has a finite figure or None per track of the row's set, no more than n."""
    for row in subject.measured():
        label, tracks = _label(row), {clip.track for clip in subject.clips[row.set]}  # type: ignore[index]
        foreign = sorted(map(str, row.per_track.keys() - tracks))
        need(not foreign, f"{label} has figures of {listed(foreign)}, which is no track of {row.set}")
        odd = [track for track, figure in row.per_track.items() if figure is not None and not math.isfinite(figure)]
        need(not odd, f"{label} has a figure of {listed(odd)} that is not finite, and must be None")
        need(len(row.per_track) <= max(row.n, 0), f"{label} has {len(row.per_track)} tracks and n = {row.n}")


def check_determinism(subject: MetricSubject) -> None:
    """Two runs give the same rows, whatever the state of the shared random generators."""
    first, moved = subject.measured(), sorted(subject.moved)
    need(not moved, f"it draws from, or seeds, {listed(moved)} shared random generator; evaluation.seed is for that")
    _need_same("two runs differ:", first, subject.rows(salt=2), 0.0)
    need(repr(first) == repr(subject.rows(salt=2)), "two runs differ: in a note, in details or in their order")


def check_order(subject: MetricSubject) -> None:
    """The order of the tracks changes no figure."""
    _need_same("with the tracks in reverse order,", subject.measured(), subject.rows(reverse=True), TOLERANCE)


def _need_same(condition: str, rows: Iterable[Result], others: Iterable[Result], tolerance: float) -> None:
    before, after = (
        {
            f"{name} of {_label(row)}": figure
            for row in some
            for name, figure in {"value": row.value, "low": row.low, "high": row.high, **row.per_track}.items()
        }
        for some in (rows, others)
    )
    only = sorted(before.keys() ^ after.keys())
    need(not only, f"{condition} there is once only: {listed(only)}")
    for name, a in before.items():
        b = after[name]
        same = repr(a) == repr(b) or (a is not None and b is not None and abs(a - b) <= tolerance * (1 + abs(a)))
        need(same, f"{condition} {name} is {b} and was {a}")


def check_models(subject: MetricSubject) -> None:
    """The models are not changed: weights, frozen parts, mode."""
    subject.measured()
    changed = listed(sorted(subject.changed))
    need(not changed, f"it changes the {changed} model: weights, mode, or what requires a gradient")


def check_shared_objects(subject: MetricSubject) -> None:
    """Clips, and the results that the evaluation shares, are not changed."""
    subject.measured()
    need(not subject.written, f"it writes into {listed(sorted(subject.written))}")


def check_absent(subject: MetricSubject) -> None:
    """Without what it does not need, it gives rows, perhaps with `why`, and does not fail."""
    subject.measured()
    optional = [name for name in (*NOISE, "retain", "holdout", "embedder") if name not in subject.needs]
    if not {"base", "gold", "gold2"} & subject.needs:
        optional.remove("unlearned")  # there is always one model

    def fault(names: Sequence[str]) -> str:
        """Also where a set that is absent is there, and empty."""
        settings = (False, True) if set(names) & set(SETS) else (False,)
        return next(filter(None, (_fault(subject, names, empty=empty) for empty in settings)), "")

    whole = fault(optional)
    for name in optional if whole else []:  # which of them it was
        kind = "an embedder" if name == "embedder" else f"{name} {'tracks' if name in SETS else 'model'}"
        need(not fault([name]), f"without {kind} it {fault([name])}; its spec's needs lack {name!r}")
    need(not whole, f"without {listed(optional)} it {whole}")


def check_without_tokens(subject: MetricSubject) -> None:
    """With models without tokens it gives rows, perhaps with `why`, or its spec needs logits."""
    if "logits" in subject.needs:
        raise Skip("it needs logits")
    subject.measured()
    fault = _fault(subject, tokens=False)
    need(not fault, f"with models without tokens it {fault}; its spec's needs lack 'logits'")


def _fault(subject: MetricSubject, without: Sequence[str] = (), **how: Any) -> str:
    """What is wrong with the rows under some conditions; an EncoreError is no fault: the metric can't measure."""
    try:
        rows = subject.rows(without, **how)
        need(rows, "gives no row: what can't be measured is a row with `why`, never left out")
        for row in rows:
            _need_value(row)
    except ContractViolation as error:
        return str(error)
    except Skip:
        raise
    except EncoreError:
        return ""
    except Exception as error:
        return describe(error)
    return ""


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
