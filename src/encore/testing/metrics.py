"""The checks of a metric: the rows that it gives of a small model in several roles."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, get_args

import torch
from torch import Tensor

from encore import plugins
from encore.api import Backend, Clip, ClipSet, Metric, Result, Role
from encore.errors import EncoreError
from encore.evaluate.evaluation import SharedEvaluation
from encore.hashing import module_sha256
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
    return run_checks(CHECKS, MetricSubject(target, fixture), first=check_measure, **how)


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


class MetricSubject(Subject):
    """A metric with its rows under several conditions."""

    def __init__(self, target: type[Metric], fixture: Fixture) -> None:
        super().__init__(target, fixture)
        self._rows: dict[Any, list[Result]] = {}
        self.moved: set[str] = set()  # shared random generators
        self.effects: set[str] = set()  # what it changed

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
        self, without: Sequence[str] = (), *, reverse: bool = False, tokens: bool = True, empty: bool = False
    ) -> WatchedEvaluation:
        """An evaluation with two generations per caption, artists, genres and files.

        Args:
            without: roles, sets, "embedder".
            reverse: tracks in reverse order; the windows of a track keep theirs.
            tokens: False for models without them.
            empty: the sets it is without are there, and empty.
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
        embedder = "latents,clap-tiny" if "embedder" in self.needs else "latents"  # the second reads text and has tags
        return WatchedEvaluation(
            models, clips, embedder=None if "embedder" in without else embedder, force=True, draws=2,
            track_metadata=metadata, recordings=recordings,
        )  # fmt: skip

    def rows(self, without: Sequence[str] = (), *, salt: int = 1, **how: Any) -> list[Result]:
        """The metric's rows, computed once for each set of arguments.

        Raises:
            Skip: its needs are not met, or it raises an EncoreError to say that it can't measure.
        """
        key = (tuple(without), salt, *how.items())
        if key not in self._rows:
            evaluation = self.evaluation(without, **how)
            unmet = evaluation.unmet(self.target.spec)
            if unmet:
                raise Skip(f"{unmet}, which it needs")
            clips = [(clip, clip.codes.clone()) for chosen in evaluation.clips.values() for clip in chosen]
            before = {role: _state(model) for role, model in evaluation.models.items()}
            shared = seed_shared(salt)
            try:
                self._rows[key] = list(self.target().measure(evaluation))
            except EncoreError as error:
                raise Skip(f"it can't measure: {error.message}") from error
            self.moved |= {shared.moved()} - {""}
            states = {role: _state(model) for role, model in evaluation.models.items()}
            self.effects |= {
                f"changes the {role} model: weights, mode, or what requires a gradient"
                for role in states
                if states[role] != before[role]
            }
            self.effects |= {
                f"writes into the codes of {clip.track}" for clip, codes in clips if not codes.equal(clip.codes)
            }
            self.effects |= {f"writes into what evaluation.{name} returned" for name in evaluation.changed()}
        return self._rows[key]


def _state(model: Backend) -> tuple[object, ...]:
    trainable = [weight.requires_grad for weight in model.module.parameters()]
    return module_sha256(model.module, *model.frozen().values()), model.module.training, trainable


@torch.no_grad()
def _recorded(model: Backend, clips: Sequence[Clip]) -> list[Tensor]:
    """Stands for the clips' files: their codes decoded, a little softer, mono [S] each."""
    return [0.9 * model.decode(clip.codes[None].to(model.device))[0].float().mean(0).cpu() for clip in clips]


def _label(row: Result) -> str:
    return f"the row {row.metric} ({row.model}, {row.set})"


def _need_values(rows: Sequence[Any]) -> None:
    """Raise the fault of a row's figures, or of no rows."""
    need(rows, "gives no row: what can't be measured is a row with `why`, never left out")
    for row in rows:
        given, low, high, label = row.value, row.low, row.high, _label(row)
        if given is None:
            need(isinstance(row.why, str) and row.why.strip(), f"{label} has no value and no `why`")
            need(low is None and high is None, f"{label} has an interval and no value")
            continue
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
    rows: list[Any] = subject.rows()
    need(rows, "no row: what can't be measured is a row with `why`, never left out")
    odd = sorted({type(row).__name__ for row in rows if not isinstance(row, Result)})
    need(not odd, f"rows of type {listed(odd)}, not encore.api.Result")
    return None if any(row.value is not None for row in rows) else f"it measures nothing here: {rows[0].why}"


def check_names(subject: MetricSubject) -> None:
    """Rows name a known model and set, are unique, and begin with the first word of the metric's name."""
    name = subject.target.spec.name
    word, others = name.replace("-", "_").partition("_")[0], set(plugins.metrics().names) - {name}
    seen: set[tuple[str, str, str]] = set()
    for row in subject.rows():
        need(row.model in MODELS, f"{_label(row)} names the model {row.model!r}; known are {', '.join(MODELS)}")
        need(row.set in SETS, f"{_label(row)} names the set {row.set!r}; known are {', '.join(SETS)}")
        begins = row.metric.replace("-", "_").startswith(word)
        need(begins, f"{_label(row)} is called {row.metric!r}, which does not begin with {word!r}")
        other = row.metric in others and name != f"{row.metric}_{row.set}"  # fad_holdout: fad, measured on holdout
        need(not other, f"{_label(row)} has the name of another metric")
        key = (row.metric, row.model, row.set)
        need(key not in seen, f"{_label(row)} is there twice")
        seen.add(key)


def check_values(subject: MetricSubject) -> None:
    """Values are finite, or None with `why`, within their interval; a row reads back from JSON; units are known."""
    _need_values(subject.rows())
    for row in subject.rows():
        label = _label(row)
        need(row.direction in DIRECTIONS, f"{label} has the direction {row.direction!r}")
        need(isinstance(row.unit, str), f"{label} has the unit {row.unit!r}")
        need(isinstance(row.note, (str, type(None))), f"{label} has the note {row.note!r}")
        try:
            text = json.dumps(asdict(row), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ContractViolation(f"{label} can't be written as JSON: {error}") from error
        again = Result(**json.loads(text)).per_track
        need(again == dict(row.per_track), f"{label} is not read back from JSON as it was")


def check_per_track(subject: MetricSubject) -> None:
    """per_track has a finite figure or None per track of the row's set, no more than n."""
    for row in subject.rows():
        label, tracks = _label(row), {clip.track for clip in subject.clips[row.set]}  # type: ignore[index]
        foreign = sorted(map(str, row.per_track.keys() - tracks))
        need(not foreign, f"{label} has figures of {listed(foreign)}, which is no track of {row.set}")
        odd = [track for track, figure in row.per_track.items() if figure is not None and not math.isfinite(figure)]
        need(not odd, f"{label} has a figure of {listed(odd)} that is not finite, and must be None")
        need(len(row.per_track) <= max(row.n, 0), f"{label} has {len(row.per_track)} tracks and n = {row.n}")


def check_determinism(subject: MetricSubject) -> None:
    """Two runs give the same rows, whatever the state of the shared random generators."""
    first, moved = subject.rows(), sorted(subject.moved)
    need(not moved, f"it draws from, or seeds, {listed(moved)} shared random generator; evaluation.seed is for that")
    _need_same("two runs differ:", first, subject.rows(salt=2), 0.0)
    need(repr(first) == repr(subject.rows(salt=2)), "two runs differ: in a note, in details or in their order")


def check_order(subject: MetricSubject) -> None:
    """The order of the tracks changes no figure."""
    _need_same("with the tracks in reverse order,", subject.rows(), subject.rows(reverse=True), TOLERANCE)


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


def check_side_effects(subject: MetricSubject) -> None:
    """Models, clips and the results that the evaluation shares are not changed."""
    subject.rows()
    need(not subject.effects, f"it {listed(sorted(subject.effects))}")


def check_needs(subject: MetricSubject) -> None:
    """Without what it does not need, also tokens, it gives rows, perhaps with `why`, and does not fail."""

    def fault(names: Sequence[str]) -> str:
        tokens = "logits" not in names
        try:
            for empty in (False, True) if set(names) & set(SETS) else (False,):
                _need_values(subject.rows([name for name in names if name != "logits"], empty=empty, tokens=tokens))
        except Skip:
            return ""
        except ContractViolation as error:
            return str(error)
        except Exception as error:
            return describe(error)
        return ""

    names = (*NOISE, "retain", "holdout", "embedder")
    absent = [name for name in names if name not in subject.needs]
    if not {"base", "gold", "gold2"} & subject.needs:
        absent.remove("unlearned")  # there is always one model
    groups = [[name] for name in absent] if fault(absent) else []
    groups += [absent, *[["logits"] for _ in range("logits" not in subject.needs)]]
    for group in groups:
        need(not fault(group), f"without {listed(group)} it {fault(group)}; its spec's needs lack {group[0]!r}")


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
