"""When the learning rate decays, over how long, and when a run with an adaptive one ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encore.api import Batch, LossMethod, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import InputError, PluginError
from encore.hashing import module_sha256
from encore.options import TrainOptions
from encore.stop_signals import Interrupted, StopFlag
from encore.store.run_folder import Checkpoints
from encore.unlearn.engine import Clips, Engine, Loop
from encore.unlearn.lr_schedule import Decay, Schedule, near_targets, usual_steps
from encore.unlearn.monitor import Snapshot


def options(**given: Any) -> TrainOptions:
    settings = {"schedule": "adaptive", "steps": 100, "decay_steps": 20, "warmup": 0, "stop": "never"}
    return TrainOptions(**{**settings, **given})


def schedule(begin: int | None = None, over: int = 0, **given: Any) -> Schedule:
    return Schedule(options(**given), Decay(begin, over))


def look(*short: float, lost: float = 0.0) -> Snapshot:
    """Tracks of level 3 that are so many times what counts as near (.15) below it."""
    forget = {f"t{i}": 3.0 - 0.15 * one for i, one in enumerate(short)}
    return Snapshot(
        forget, target_nll=dict.fromkeys(forget, 3.0), tolerance=dict.fromkeys(forget, 0.15), harm={"memorised": lost}
    )


FAR = look(19.0)
THERE = look(0.0)


# ------------------------------------------------------------------------------------------------------- fixed shapes


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_fixed_schedule_is_a_warm_up_times_a_decay_with_a_floor(kind: str) -> None:
    made = schedule(schedule=kind, steps=40, warmup=5)
    for step in range(40):
        passed = step / 40
        decayed = {"linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2, "constant": 1.0}[kind]
        assert made.share(step) == pytest.approx(min(1, (step + 1) / 6) * max(decayed, 0.05), rel=1e-12)
    assert made.steps == 40


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_fixed_schedule_ends_no_run_and_begins_no_decay(kind: str) -> None:
    made = schedule(schedule=kind, max_seconds=10.0)
    assert not made.is_done(THERE, 99, 9.0)
    assert made.decay == Decay()


# ---------------------------------------------------------------------------------------------------------- adaptive


def test_until_the_decay_begins_the_rate_is_constant() -> None:
    made = schedule(warmup=4)
    assert [made.share(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert made.share(99) == 1.0
    assert made.steps == 100


def test_a_decay_is_a_cosine_to_the_lowest_rate_and_stays_there() -> None:
    made = schedule(begin=30, over=20)
    for passed in range(21):
        expected = max(0.08, (1 + math.cos(math.pi * passed / 20)) / 2)
        assert made.share(30 + passed) == pytest.approx(expected, rel=1e-12)
    assert made.share(30) == 1.0
    assert made.share(40) == pytest.approx(0.5)
    assert {made.share(step) for step in range(50, 80)} == {0.08}


@pytest.mark.parametrize(
    ("seen", "begins"),
    [
        (look(0.0, 0.0), True),
        (look(5.9, 5.9), True),
        (look(6.1, 6.1), False),  # on average too far
        (look(-9.0, 9.9), True),  # one beyond its level makes up for another on average
        (look(-9.0, 10.1), False),  # but none may be farther than that
        (look(9.9, 9.9), False),
        (Snapshot({"t": 1.0}), False),  # nothing tells where they should be
    ],
)
def test_a_decay_begins_when_the_forget_tracks_are_near_their_levels(seen: Snapshot, begins: bool) -> None:
    made = schedule()
    assert not made.is_done(seen, 10, 1.0)
    assert made.decay == (Decay(10, 20) if begins else Decay())
    assert not made.is_done(THERE, 20, 2.0)
    assert made.decay.begin == (10 if begins else 20), "once begun it does not begin again"


def test_a_decay_waits_for_the_method_which_is_asked_near_the_levels_only() -> None:
    made, answers = schedule(), iter([False, True])
    assert not made.is_done(FAR, 10, 1.0, lambda: pytest.fail("asked too early"))
    assert not made.is_done(THERE, 12, 1.0, lambda: next(answers))
    assert made.decay == Decay()
    assert not made.is_done(THERE, 14, 1.0, lambda: next(answers))
    assert made.decay == Decay(14, 20)
    made.is_done(THERE, 20, 2.0, lambda: pytest.fail("asked too late"))
    late = schedule()
    late.is_done(THERE, 19, 1.0, lambda: False)
    assert late.decay == Decay()
    late.is_done(THERE, 20, 1.0, lambda: pytest.fail("asked too late"))
    assert late.decay.begin == 20, "a fifth of the steps is the most that it waits for the method"
    far = schedule()
    far.is_done(FAR, 29, 1.0)
    assert far.decay == Decay()
    far.is_done(FAR, 30, 1.0, lambda: False)
    assert far.decay.begin == 30, "three tenths of the steps are the most that it waits for the levels"


def test_what_was_lost_has_no_part_in_when_a_decay_begins() -> None:
    made = schedule()
    made.is_done(look(0.0, lost=50.0), 10, 1.0)
    assert made.decay.begin == 10


@pytest.mark.parametrize(
    ("given", "step", "seconds", "begins"),
    [
        ({}, 29, 1e9, False),  # seconds do not count without a bound
        ({}, 30, 0.0, True),
        ({"max_seconds": 100.0}, 10, 29.9, False),
        ({"max_seconds": 100.0}, 10, 30.1, True),
        ({"max_seconds": 100.0}, 30, 1.0, True),
    ],
)
def test_a_decay_begins_at_three_tenths_of_what_is_allowed_whatever_was_forgotten(
    given: dict[str, float], step: int, seconds: float, begins: bool
) -> None:
    made = schedule(**given)
    assert not made.is_done(FAR, step, seconds)
    assert (made.decay.begin == step) is begins


@pytest.mark.parametrize(
    ("given", "step", "seconds", "over"),
    [
        ({}, 30, 1.0, 20),
        ({"decay_steps": 90}, 30, 1.0, 70),  # no more steps are allowed
        ({"max_seconds": 40.0}, 30, 20.0, 20),  # 30 more fit
        ({"max_seconds": 25.0}, 30, 20.0, 7),  # at 1.5 steps a second, 7.5 more
        ({"max_seconds": 25.0, "steps": 33}, 30, 20.0, 3),
        ({"max_seconds": 20.0}, 30, 20.0, 1),
        ({"max_seconds": 20.0}, 30, 25.0, 1),
        ({"max_seconds": 20.0}, 30, 0.0, 20),  # a clock that has not moved
        ({"steps": 30}, 30, 1.0, 1),
    ],
)
def test_a_decay_is_shortened_to_what_is_left(given: dict[str, float], step: int, seconds: float, over: int) -> None:
    made = schedule(**given)
    made.is_done(THERE, step, seconds)
    assert made.decay == Decay(step, over)


@pytest.mark.parametrize(
    ("seen", "step", "ends"),
    [
        (THERE, 50, True),  # the rate is the lowest
        (THERE, 49, False),  # .08 of the peak, and few steps to average
        (THERE, 30, False),
        (look(0.0, lost=0.49), 50, True),
        (look(0.0, lost=0.51), 50, False),  # memorised retain has no margin yet
        (Snapshot(**{**vars(THERE), "harm": {"memorised": 0.0, "holdout": 1.0}}), 50, True),
        (Snapshot(**{**vars(THERE), "harm": {"memorised": 0.0, "holdout": 1.01}}), 50, False),  # not everything is kept
        (Snapshot(**{**vars(THERE), "harm": {}}), 50, True),  # nothing is memorised
        (look(1.9, 1.9), 50, True),
        (look(2.1, 2.1), 50, False),  # forgotten not well enough, on average
        (look(-4.0, 3.9), 50, True),
        (look(-4.0, 4.1), 50, False),  # or one of them
        (FAR, 50, False),
        (Snapshot({"t": 9.0}), 50, False),  # nothing tells where they should be
    ],
)
def test_an_adaptive_run_ends_when_the_rate_is_low_and_all_is_forgotten_and_kept(
    seen: Snapshot, step: int, ends: bool
) -> None:
    assert schedule(begin=30, over=20).is_done(seen, step, 1.0) is ends


def test_a_run_waits_no_longer_than_its_patience() -> None:
    assert schedule(begin=30, over=20).steps == 80  # 2.5 decays after it began
    assert schedule(begin=30, over=5).steps == 43  # 12.5 are 13 steps
    assert schedule(begin=30, over=40).steps == 100  # nor than is allowed
    assert schedule().steps == 100


def test_near_is_measured_by_each_tracks_own_range() -> None:
    seen = Snapshot(
        {"a": 2.0, "b": 0.9}, target_nll={"a": 3.0, "b": 1.0}, tolerance={"a": 0.5, "b": 0.1}
    )  # 2 and 1 below
    assert near_targets(seen, mean=1.51, track=2.01)
    assert not near_targets(seen, mean=1.49, track=2.01)
    assert not near_targets(seen, mean=1.51, track=1.99)


def test_a_loss_that_is_not_finite_is_near_no_level() -> None:
    assert not near_targets(look(float("nan")), mean=6, track=10)
    assert not near_targets(look(0.0, float("nan")), mean=6, track=10)


def test_the_usual_length_is_a_decay_after_a_fifth_of_the_steps() -> None:
    assert usual_steps(options(steps=300, decay_steps=90)) == 150
    assert usual_steps(options(steps=60, decay_steps=90)) == 60
    assert usual_steps(options(schedule="linear", steps=300)) == 300


def test_a_rate_that_is_low_since_it_warms_up_ends_no_run() -> None:
    slow = schedule(2, 20, warmup=50)
    assert slow.share(3) < 0.1
    assert not slow.averages(3)
    assert not slow.is_done(look(0.0), 3, 1.0)


# ---------------------------------------------------------------------------------------------------- in the loop


class Plain(LossMethod):
    """-L_f + L_r, at a rate that `prepare` finds where the options have none."""

    spec = MethodSpec("plain", "", "", needs=frozenset({"retain"}))
    Options = TrainOptions

    def prepare(self, session: Session) -> None:
        session.lr = 1e-3
        session.chosen["lr"] = "0.001: for a test"

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)


class Unreachable(Plain):
    """Its levels are out of reach: such a run takes all steps."""

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        session.target_nll = dict.fromkeys((clip.track for clip in session.forget), 99.0)


@pytest.mark.parametrize("wrong", [{"t9": 3.0}, {"t0": 3.0}, dict.fromkeys(["t0", "t1", "t2", "t3", "t4"], 0.0)])
def test_levels_are_of_every_forget_track_and_above_nothing(
    backend: MusicgenBackend, clips: Clips, wrong: dict[str, float]
) -> None:
    class Wrong(Plain):
        def prepare(self, session: Session) -> None:
            super().prepare(session)
            session.target_nll = wrong

    with pytest.raises(PluginError, match="a target NLL above 0 for every forget track"):
        Engine(backend, clips).run(Wrong(TrainOptions(steps=2)))


def engine_with(backend: MusicgenBackend, clips: Clips, looks: list[Snapshot], **given: Any) -> Engine:
    """An engine that sees these looks, the last one again and again."""
    made = Engine(backend, clips, **given)
    left = list(looks)
    made.monitor.snapshot = lambda: left.pop(0) if len(left) > 1 else left[0]  # type: ignore[method-assign]
    return made


def steps_of(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if "grad_norm" in line]


def test_the_loop_follows_the_schedule_and_ends_early(backend: MusicgenBackend, clips: Clips) -> None:
    lines: list[Any] = []
    settings = options(lr=1e-3, steps=40, decay_steps=4, eval_every=2)
    looks = [FAR, look(0.0, lost=9.0), look(0.0, lost=9.0), look(0.0, lost=0.5), look(0.0, lost=0.0)]
    outcome = engine_with(backend, clips, looks, record=lines.append).run(Plain(settings))
    assert outcome.steps == 8  # the decay began after 4 and took 4; at 6 the rate was half of the peak
    share = [1, 1, 1, 1, 1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]
    assert [line["lr"] for line in steps_of(lines)] == pytest.approx([1e-3 * one for one in share])
    assert [line["of"] for line in steps_of(lines)] == [40] * 4 + [14] * 4
    assert outcome.chosen["steps"].startswith("8: the rate decayed from step 4")
    assert outcome.chosen["lr"] == "0.001: for a test"
    assert outcome.best == looks[3]


def test_the_state_that_a_run_ends_for_is_its_result(backend: MusicgenBackend, clips: Clips) -> None:
    """One before, whose retain had not recovered, may have a better score by chance."""
    settings = options(lr=1e-3, steps=40, decay_steps=4, eval_every=2)
    better = replace(look(0.0, lost=9.0), score=-5.0)
    looks = [FAR, look(0.0, lost=9.0), better, replace(look(0.0, lost=0.5), score=1.0)]
    outcome = engine_with(backend, clips, looks).run(Plain(settings))
    assert outcome.steps == 8
    assert outcome.best == looks[3]


def test_what_never_recovers_ends_with_patience(backend: MusicgenBackend, clips: Clips) -> None:
    lost = look(0.0, lost=9.0)
    settings = options(lr=1e-3, steps=40, decay_steps=4, eval_every=3)
    lines: list[Any] = []
    assert engine_with(backend, clips, [lost], record=lines.append).run(Plain(settings)).steps == 13  # 3 + 2.5 · 4
    assert "snapshot" in lines[-1]


def test_at_the_full_rate_no_state_is_the_best_one(backend: MusicgenBackend, clips: Clips) -> None:
    """Its retain has not recovered yet, however good its score; once the decay began, the best one is kept."""
    scores = [1.0, 5.0, 3.0, 4.0]
    looks = [
        Snapshot(**{**vars(FAR if i < 1 else look(0.0, lost=9.0)), "score": score}) for i, score in enumerate(scores)
    ]
    settings = options(lr=1e-3, steps=8, decay_steps=20, eval_every=1)
    weights: list[str] = []
    engine = Engine(
        backend, clips, record=lambda line: "snapshot" in line and weights.append(module_sha256(backend.module))
    )
    engine.monitor.snapshot = lambda: looks[min(len(weights), 3)]  # type: ignore[method-assign]
    outcome = engine.run(Plain(settings))
    assert outcome.best is not None
    assert outcome.best.score == 3.0
    assert module_sha256(backend.module) == weights[2]


LOST = [True, True, False, True, True, True, False, True]


@pytest.mark.parametrize(
    ("given", "step", "watched"),
    [
        ({}, 1, True),
        ({}, 10, True),
        ({}, 11, False),  # after the first snapshot, the weights kept are not the base's
        ({"lr": 1e-3}, 10, False),  # a rate that the user asked for stays
        ({"schedule": "linear"}, 10, False),
        ({"steps": 30}, 10, False),  # too few steps are left
        ({"max_seconds": 3.0}, 10, False),
    ],
)
def test_first_steps_at_a_rate_of_the_methods_own_are_watched(given: dict[str, Any], step: int, watched: bool) -> None:
    tested = schedule(**{"lr": None, "eval_every": 10, "warmup": 4} | given)
    assert tested.is_watched(step, 1.0) is watched


def test_a_run_that_restart_if_lost_has_half_of_its_peak_and_all_of_its_time() -> None:
    tested = schedule(lr=None, eval_every=10, warmup=4)
    for step in range(4, 8):
        assert tested.restart_if_lost(step, True) is (step == 7)
    for step in range(8, 16):
        assert tested.restart_if_lost(step, step > 11) is (step == 15)
    assert tested.peak_share == 0.25
    assert [tested.share(step) for step in (15, 19, 20)] == pytest.approx([0.2, 1.0, 1.0])
    assert tested.is_watched(25, 1.0)
    assert not tested.is_watched(30, 1.0), "three tenths of the steps are the most that it begins again after"
    tested.is_done(FAR, 44, 1.0)
    assert tested.decay.begin is None
    tested.is_done(FAR, 45, 1.0)
    assert tested.decay.begin == 45, "three tenths of the steps are counted from where it began"


@pytest.mark.parametrize(("every", "again"), [(10, [False] * 8), (3, [False] * 5 + [True] + [False] * 2), (1, LOST)])
def test_a_run_recovers_from_single_steps_without_memorised_retain(every: int, again: list[bool]) -> None:
    """It begins again where all steps up to its first snapshot are lost, if these are fewer than four."""
    tested = schedule(lr=None, eval_every=every, warmup=4)
    assert [tested.restart_if_lost(step, lost) for step, lost in enumerate(LOST, 1)] == again


def test_the_loop_restart_if_lost_from_the_base(backend: MusicgenBackend, clips: Clips, tmp_path: Path) -> None:
    """The weights are those of a run at half the rate; a run interrupted between two lost steps comes to the same."""
    settings = options(lr=None, steps=20, eval_every=3, warmup=2, checkpoint_seconds=0, batch_size=3, dropout=True)
    lost = [True] * 3

    def engine(**given: Any) -> Engine:
        made = engine_with(backend.clone(), clips, [FAR], **given)

        def has_lost() -> bool:
            assert not made.backend.module.training, (
                "dropout would change the measurement, and what the next step draws"
            )
            return bool(lost) and lost.pop(0)

        made.monitor.has_lost_memorised = has_lost  # type: ignore[method-assign]
        return made

    lines: list[Any] = []
    before, hashes = module_sha256(backend.module), dict[int, str]()
    straight = engine()

    def record(line: Any) -> None:
        lines.append(line)
        if "event" in line:
            hashes[line["step"]] = module_sha256(straight.backend.module)

    straight.record = record
    outcome = straight.run(Plain(settings))
    assert hashes == {3: before}
    share = [1 / 3, 2 / 3, 1, 1 / 6, 1 / 3, 1 / 2, 1 / 2]
    assert [line["step"] for line in lines if "snapshot" in line][:2] == [6, 9], "snapshots are counted from there"
    assert [line["lr"] for line in steps_of(lines)[:7]] == pytest.approx([1e-3 * part for part in share])
    assert outcome.chosen["lr"].startswith("0.001: for a test, times 0.5, with which the run restarted after step 3")

    lost[:], stop = [True] * 3, StopFlag()

    def stop_at(line: Any) -> None:
        stop.number = 15 if line.get("step") == 2 and "grad_norm" in line else stop.number

    with pytest.raises(Interrupted):
        engine(checkpoints=Checkpoints(tmp_path, "x"), stop=stop, record=stop_at).run(Plain(settings))
    resumed = engine(checkpoints=Checkpoints(tmp_path, "x"))
    assert resumed.run(Plain(settings)).chosen == outcome.chosen
    assert module_sha256(resumed.backend.module) == module_sha256(straight.backend.module)


def interrupted(
    backend: MusicgenBackend, clips: Clips, settings: TrainOptions, folder: Path, step: int
) -> dict[str, Any]:
    """Stop a run after a step; the state that it kept."""
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        if line.get("step") == step and "grad_norm" in line:
            stop.number = 15

    engine = Engine(backend.clone(), clips, checkpoints=Checkpoints(folder, "x"), stop=stop, record=stop_at)
    with pytest.raises(Interrupted):
        engine.run(Unreachable(settings))
    return json.loads((sorted(folder.iterdir())[-1] / "state.json").read_text())


@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_run_stopped_before_in_or_after_its_decay_resumes_to_the_same_weights(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, at: int
) -> None:
    settings = options(steps=12, decay_steps=3, eval_every=2, checkpoint_seconds=0, dropout=True, batch_size=3)
    straight = backend.clone()
    whole = Engine(straight, clips).run(Unreachable(settings))
    # Three tenths of the 12 steps have passed at the second look.
    assert whole.chosen["steps"].startswith("12: the rate decayed from step 4")
    state = interrupted(backend, clips, settings, tmp_path, at)
    assert state["step"] == at
    begun = {"begin": 4, "steps": 3} if at >= 4 else {"begin": None, "steps": 0}
    assert state["decay"] == begun | {"restarted_at": 0, "halvings": 0, "lost": 0}
    again = backend.clone()
    torch.rand(17)
    lines: list[Any] = []
    outcome = Engine(again, clips, checkpoints=Checkpoints(tmp_path, "x"), record=lines.append).run(
        Unreachable(settings)
    )
    assert {"event": "resumed", "phase": 1, "step": at} in lines
    assert module_sha256(again.module) == module_sha256(straight.module)
    assert (outcome.steps, outcome.best, outcome.chosen) == (whole.steps, whole.best, whole.chosen)


@pytest.mark.parametrize("decay", [{"begin": "soon", "steps": 3}, {"begin": -1, "steps": 0}, {"begin": 4}, 7])
def test_a_checkpoint_whose_decay_is_damaged_is_refused(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, decay: object
) -> None:
    settings = options(lr=1e-3, steps=6, checkpoint_seconds=0)
    state = interrupted(backend, clips, settings, tmp_path, 3)
    newest = sorted(tmp_path.iterdir())[-1]

    def fill(folder: Path) -> None:
        for file in newest.glob("*.safetensors"):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "state.json").write_text(json.dumps({**state, "decay": decay}))

    Checkpoints(tmp_path, "x").save(2_000_000, fill)
    with pytest.raises(InputError):
        Engine(backend.clone(), clips, checkpoints=Checkpoints(tmp_path, "x")).run(Plain(settings))


@pytest.fixture
def a_second_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the engine takes a second."""
    clock = [0.0]
    monkeypatch.setattr("encore.unlearn.engine._now", lambda: clock[0])
    backward = Loop._backward

    def tick(loop: Loop, *rest: Any) -> dict[str, float]:
        clock[0] += 1
        return backward(loop, *rest)

    monkeypatch.setattr(Loop, "_backward", tick)


@pytest.mark.usefixtures("a_second_each")
@pytest.mark.parametrize("kind", ["adaptive", "constant"])
def test_seconds_end_a_run_with_a_look(backend: MusicgenBackend, clips: Clips, kind: str) -> None:
    lines: list[Any] = []
    settings = options(lr=1e-3, schedule=kind, steps=100, eval_every=50, max_seconds=7.0)
    outcome = Engine(backend, clips, record=lines.append).run(Plain(settings))
    assert outcome.steps == 7
    assert [line["step"] for line in lines if "snapshot" in line] == [7]
    assert outcome.best is not None


@pytest.mark.usefixtures("a_second_each")
def test_seconds_of_earlier_processes_count(backend: MusicgenBackend, clips: Clips, tmp_path: Path) -> None:
    settings = options(lr=1e-3, steps=100, eval_every=50, max_seconds=7.0, checkpoint_seconds=0)
    assert interrupted(backend, clips, settings, tmp_path, 3)["seconds"] == 3
    outcome = Engine(backend.clone(), clips, checkpoints=Checkpoints(tmp_path, "x")).run(Plain(settings))
    assert outcome.steps == 7


def test_a_rate_of_the_options_goes_before_the_methods_own(backend: MusicgenBackend, clips: Clips) -> None:
    for given, expected in ({"lr": None}, 1e-3), ({"lr": 7e-4}, 7e-4):
        lines: list[Any] = []
        Engine(backend.clone(), clips, record=lines.append).run(Plain(options(steps=1, **given)))
        assert [line["lr"] for line in steps_of(lines)] == [expected]


def test_without_any_rate_it_is_the_methods_fault(backend: MusicgenBackend, clips: Clips) -> None:
    class Without(Plain):
        def prepare(self, session: Session) -> None:
            pass

    before = module_sha256(backend.module)
    with pytest.raises(PluginError, match="'plain' has no learning rate"):
        Engine(backend, clips).run(Without(options(lr=None)))
    assert module_sha256(backend.module) == before


def test_levels_of_the_methods_own_are_what_a_run_is_judged_by(backend: MusicgenBackend, clips: Clips) -> None:
    class Levels(Plain):
        def prepare(self, session: Session) -> None:
            super().prepare(session)
            session.target_nll = {clip.track: 1.0 + i for i, clip in enumerate(clips.forget)}

    engine = Engine(backend, clips)
    outcome = engine.run(Levels(options(steps=2, eval_every=1)))
    expected = {clip.track: 1.0 + i for i, clip in enumerate(clips.forget)}
    assert outcome.before is not None
    assert outcome.best is not None
    assert outcome.before.target_nll == outcome.best.target_nll == expected


def test_a_run_ends_with_the_mean_of_the_weights_at_its_low_rate(backend: MusicgenBackend, clips: Clips) -> None:
    seen: list[dict[str, Tensor]] = []  # after each step
    engine = engine_with(backend.clone(), clips, [FAR, look(0.0, lost=9.0)])
    module = engine.backend.module

    def record(line: Any) -> None:
        if "grad_norm" in line:
            seen.append({name: value.detach().double().clone() for name, value in module.state_dict().items()})

    engine.record = record
    outcome = engine.run(Plain(options(lr=1e-3, steps=12, decay_steps=4, eval_every=2)))
    assert outcome.steps == 12
    # The decay begins after 4 steps; a step that 8 or more others came before is at the lowest rate.
    late = seen[8:]
    for name, value in module.state_dict().items():
        expected = sum(one[name] for one in late) / len(late)
        assert torch.allclose(value.double(), expected, atol=1e-6), name
    moved = max(float((seen[-1][name] - value).abs().max()) for name, value in module.state_dict().items())
    assert moved > 1e-6, "the mean is not the last state"
