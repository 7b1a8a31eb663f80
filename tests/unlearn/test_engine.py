"""The loop: what it optimises, when it stops, what it survives, and that a resumed run is the same run."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encore.api import Batch, Clip, EditMethod, LossMethod, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.curvature import backend_fisher
from encore.errors import EncoreError, PluginError
from encore.hashing import module_sha256
from encore.options import Options, TrainOptions
from encore.plugins import methods
from encore.stop_signals import Interrupted, StopFlag
from encore.store.run_folder import Checkpoints
from encore.unlearn.engine import Engine
from encore.unlearn.monitor import Snapshot
from encore.unlearn.reference import FrozenReference
from encore.unlearn.sampling import Clips


class Plain(LossMethod):
    """-L_f + L_r."""

    spec = MethodSpec("plain", "", "", needs=frozenset({"retain"}))
    Options = TrainOptions

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        return -step.backend.losses(batch)


class Ascent(Plain):
    spec = MethodSpec("ascent", "", "")


def options(**given: Any) -> TrainOptions:
    return TrainOptions(**{"steps": 4, "eval_every": 2, "stop": "never", "batch_size": 4, "lr": 1e-3} | given)


def run(backend: MusicgenBackend, clips: Clips, method: Any, **engine: Any) -> Engine:
    made = Engine(backend, clips, **engine)
    made.run(method)
    return made


def test_one_step_is_adamw_on_the_mean_over_clips(backend: MusicgenBackend, clips: Clips) -> None:
    slow = backend.clone()
    settings = options(steps=1, warmup=0, batch_size=7, forget_batch_size=5, max_grad_norm=1e9, eval_every=1)
    # The best checkpoint is the state before or after the step, whichever scores better; the record has both.
    lines: list[Any] = []
    engine = run(backend, clips, Plain(settings), record=lines.append)
    assert engine.outcome.tokens == sum(clip.codes.numel() for clip in (*clips.forget, *clips.retain))
    optimizer = torch.optim.AdamW(slow.module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    per_clip = [-slow.losses(Batch.of([clip]))[0] / 5 for clip in clips.forget]
    per_clip += [slow.losses(Batch.of([clip]))[0] / 7 for clip in clips.retain]
    sum(per_clip).backward()  # type: ignore[union-attr]
    norm = torch.nn.utils.clip_grad_norm_(slow.module.parameters(), 1e9)
    optimizer.step()
    assert lines[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for ours, theirs in zip(backend.module.parameters(), slow.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_change_nothing(backend: MusicgenBackend, clips: Clips, micro: int) -> None:
    whole, parts = backend.clone(), backend.clone()
    run(whole, clips, Plain(options()))
    run(parts, clips, Plain(options(micro_batch_size=micro)))
    for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_clips_of_similar_length_share_a_micro_batch(backend: MusicgenBackend, clips: Clips) -> None:
    class Lengths(Plain):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            seen.append(batch.frames.tolist())
            return super().forget_loss(step, batch)

    seen: list[list[int]] = []
    cut = [Clip(c.track, c.caption, c.codes[:, : 6 + 3 * (i % 3)]) for i, c in enumerate(clips.forget * 2)]
    settings = options(steps=1, forget_batch_size=6, micro_batch_size=2)
    run(backend.clone(), Clips(cut[:6], clips.retain, []), Lengths(settings))
    assert seen == [[12, 12], [9, 9], [6, 6]]


@pytest.mark.parametrize(("name", "given"), [("rl", {}), ("encore", {"dropout": False})])
def test_micro_batches_change_no_draw(tiny_folder: Path, clips: Clips, name: str, given: dict[str, Any]) -> None:
    backend = MusicgenBackend.load(str(tiny_folder), offline=True)  # clones share the frozen parts
    backend.model.double()
    chosen, ends = methods().resolve(name), []
    for micro in (16, 2):
        copy = backend.clone()
        settings = {"steps": 3, "eval_every": 3, "stop": "never", "select": "last", "micro_batch_size": micro} | given
        run(copy, clips, chosen(chosen.Options(**settings)))
        ends.append(copy.module.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=0, atol=1e-10)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(backend: MusicgenBackend, clips: Clips) -> None:
    calm, pressed = backend.clone(), backend.clone()

    class Pressed(Plain):
        def retain_loss(self, step: Step, batch: Batch) -> Tensor:
            if len(batch) > 2:
                raise torch.OutOfMemoryError("not that many")
            return super().retain_loss(step, batch)

    run(calm, clips, Plain(options()))
    lines: list[Any] = []
    engine = run(pressed, clips, Pressed(options()), record=lines.append)
    assert engine.outcome.micro_batch_size == 2
    assert [line["micro_batch_size"] for line in lines if line.get("event") == "out of memory"] == [8, 4, 2]
    for a, b in zip(calm.module.parameters(), pressed.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_a_forgotten_track_is_left_alone_and_the_run_ends_when_all_are_there(
    backend: MusicgenBackend, clips: Clips
) -> None:
    asked: list[set[str]] = []

    class Watched(Ascent):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            asked.append({clip.track for clip in batch.clips})
            return super().forget_loss(step, batch)

    class Learn(Ascent):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            return step.backend.losses(batch)

    # Make forget far likelier than holdout first.
    Engine(backend, Clips(clips.forget, [], [])).train(Learn(options(steps=60, lr=5e-3, eval_every=60)))
    engine = run(backend, clips, Watched(options(steps=200, lr=2e-3, eval_every=1, stop="target", warmup=0)), seed=1)
    outcome = engine.outcome
    assert outcome.before is not None
    assert outcome.best is not None
    assert max(outcome.before.forget.values()) < 0.8 * engine.monitor.holdout_nll  # type: ignore[operator]
    assert outcome.reached_target
    assert outcome.steps < 200
    sizes = [len(tracks) for tracks in asked]
    assert sizes[0] == 5
    assert sizes[-1] < 5, "no track reached the level before the others: the test shows nothing"
    assert all(outcome.best.reached(clip.track) for clip in clips.forget)


def stands(forget: dict[str, float], lost: float) -> Snapshot:
    """A look with a level of 3 for every track."""
    levels, near = dict.fromkeys(forget, 3.0), dict.fromkeys(forget, 0.15)
    return Snapshot(forget, holdout=3.0, target_nll=levels, tolerance=near, harm={"memorised": lost}, score=1.0)


def test_once_all_tracks_are_there_retain_is_trained_until_it_is_kept(backend: MusicgenBackend, clips: Clips) -> None:
    asked: list[str] = []

    class Watched(Plain):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            asked.append("forget")
            return super().forget_loss(step, batch)

        def retain_loss(self, step: Step, batch: Batch) -> Tensor:
            asked.append("retain")
            return super().retain_loss(step, batch)

    engine = Engine(backend, clips)
    there = {clip.track: 9.0 for clip in clips.forget}
    short = {clip.track: 0.1 for clip in clips.forget}
    looks = iter(stands(forget, lost) for forget, lost in ((there, 4.0), (short, 4.0), (there, 1.5), (there, 0.9)))
    engine.monitor.snapshot = lambda: next(looks)  # type: ignore[method-assign]
    engine.train(Watched(options(steps=9, eval_every=1, stop="target")))
    assert asked == ["forget", "retain", "retain", "forget", "retain", "retain"]
    assert engine.outcome.steps == 4


@pytest.mark.parametrize("dropout", [False, True])
def test_a_resumed_run_ends_in_the_same_weights(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, dropout: bool
) -> None:
    settings = options(steps=7, checkpoint_seconds=0, dropout=dropout, batch_size=3, forget_batch_size=2)
    straight, broken = backend.clone(), backend.clone()
    run(straight, clips, Plain(settings))
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        if line.get("step") == 5:
            stop.number = 15

    with pytest.raises(Interrupted) as caught:
        run(broken, clips, Plain(settings), checkpoints=Checkpoints(tmp_path, "x"), stop=stop, record=stop_at)
    assert caught.value.exit_code == 143
    lines: list[Any] = []
    again = backend.clone()
    torch.rand(17)  # whatever the global generator has done meanwhile
    run(again, clips, Plain(settings), checkpoints=Checkpoints(tmp_path, "x"), record=lines.append)
    assert {"event": "resumed", "phase": 1, "step": 5} in lines
    assert module_sha256(again.module) == module_sha256(straight.module)


def test_a_resumed_run_counts_what_it_cost_before(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sometimes(Plain):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            bad = math.isclose(step.progress, 2 / 7)  # the third step
            return super().forget_loss(step, batch) * (float("nan") if bad else 1.0)

    clock = itertools.count()
    monkeypatch.setattr("encore.unlearn.engine._now", lambda: float(next(clock)))
    settings = options(steps=7, checkpoint_seconds=0, batch_size=3, forget_batch_size=2)
    straight = run(backend.clone(), clips, Sometimes(settings)).outcome
    assert (straight.skipped_steps, straight.earlier_seconds) == (1, 0.0)
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        if line.get("step") == 5:
            stop.number = 15

    checkpoints = Checkpoints(tmp_path, "x")
    began = next(clock)
    with pytest.raises(Interrupted):
        run(backend.clone(), clips, Sometimes(settings), checkpoints=checkpoints, stop=stop, record=stop_at)
    took = next(clock) - began
    state = json.loads((sorted(tmp_path.iterdir())[-1] / "state.json").read_text())
    assert 0 < state["seconds"] < took
    again = run(backend.clone(), clips, Sometimes(settings), checkpoints=checkpoints).outcome
    assert (again.steps, again.tokens, again.skipped_steps) == (7, straight.tokens, 1)
    assert again.earlier_seconds == state["seconds"]


def test_a_checkpoint_that_tells_no_cost_is_gone_on_from(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path
) -> None:
    settings = options(steps=4, checkpoint_seconds=0)
    run(backend.clone(), clips, Plain(settings), checkpoints=Checkpoints(tmp_path, "x"))
    newest = sorted(tmp_path.iterdir())[-1]
    kept = json.loads((newest / "state.json").read_text())
    Checkpoints(tmp_path, "x").save(
        1_000_009, lambda folder: _without(newest, folder, kept, "seconds", "tokens", "skipped_steps")
    )
    lines: list[Any] = []
    outcome = run(
        backend.clone(), clips, Plain(settings), checkpoints=Checkpoints(tmp_path, "x"), record=lines.append
    ).outcome
    assert "resumed" in [line.get("event") for line in lines]
    assert (outcome.steps, outcome.earlier_seconds) == (4, 0.0)


def _without(old: Path, folder: Path, state: dict[str, Any], *names: str) -> None:
    for name in ("module", "best", "optimizer"):
        (folder / f"{name}.safetensors").write_bytes((old / f"{name}.safetensors").read_bytes())
    (folder / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k not in names}))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path
) -> None:
    settings = options(steps=6, checkpoint_seconds=0)
    checkpoints = Checkpoints(tmp_path, "x")
    straight, broken = backend.clone(), backend.clone()
    run(straight, clips, Plain(settings))
    run(broken, clips, Plain(settings), checkpoints=checkpoints)
    newest = sorted(tmp_path.iterdir())[-1]
    for name in ("module.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"):
        data = bytearray((newest / name).read_bytes())
        data[len(data) // 2] ^= 1
        kept = (newest / name).read_bytes()
        (newest / name).write_bytes(data)
        found = checkpoints.latest()
        assert found is not None
        assert found.name < newest.name
        (newest / name).write_bytes(kept)
    assert Checkpoints(tmp_path, "another run").latest() is None
    (newest / "module.safetensors").unlink()
    again = backend.clone()
    run(again, clips, Plain(settings), checkpoints=checkpoints)
    assert module_sha256(again.module) == module_sha256(straight.module)


def test_non_finite_steps_are_skipped_and_five_in_a_row_end_the_run(backend: MusicgenBackend, clips: Clips) -> None:
    class Sometimes(Plain):
        calls = 0
        every = 3

        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            self.calls += 1
            return super().forget_loss(step, batch) * (float("nan") if self.calls % self.every == 0 else 1.0)

    engine = run(backend.clone(), clips, Sometimes(options(steps=7)))
    assert engine.outcome.skipped_steps == 2

    class Always(Sometimes):
        every = 1

    failing = backend.clone()
    before = module_sha256(failing.module)
    with pytest.raises(EncoreError, match="5 steps in a row"):
        run(failing, clips, Always(options(steps=20)))
    assert module_sha256(failing.module) == before


class NoOptions(Options):
    pass


def edit(change: Any, name: str = "edit") -> EditMethod:
    class Edit(EditMethod):
        spec = MethodSpec(name, "", "")
        Options = NoOptions

        def edit(self, session: Session) -> None:
            with torch.no_grad():
                change(session)

    return Edit(NoOptions())


def test_a_method_that_touches_the_codec_or_leaves_nan_is_caught(backend: MusicgenBackend, clips: Clips) -> None:
    def codec(session: Session) -> None:
        next(session.backend.frozen()["codec"].parameters()).add_(1)

    def nan(session: Session) -> None:
        next(session.backend.module.parameters()).fill_(float("nan"))

    with pytest.raises(EncoreError, match="non-finite weights in"):
        run(backend.clone(), clips, edit(nan))
    frozen = next(backend.frozen()["codec"].parameters())
    kept = frozen.detach().clone()
    try:
        with pytest.raises(PluginError, match="changed the codec"):
            run(backend.clone(), clips, edit(codec))
    finally:
        with torch.no_grad():
            frozen.copy_(kept)


def test_weights_a_method_masks_stay_bit_identical(backend: MusicgenBackend, clips: Clips) -> None:
    class Masked(Plain):
        def prepare(self, session: Session) -> None:
            for name, weight in session.backend.module.named_parameters():
                weight.requires_grad_("lm_heads" in name)

    before = {name: weight.detach().clone() for name, weight in backend.module.named_parameters()}
    run(backend, clips, Masked(options(weight_decay=0.1, steps=5)))
    changed = {n for n, w in backend.module.named_parameters() if not torch.equal(w, before[n])}
    assert changed == {name for name in before if "lm_heads" in name}


def test_the_reference_is_the_model_before_the_run(backend: MusicgenBackend, clips: Clips) -> None:
    seen: list[tuple[float, float]] = []

    class Snapshot(Plain):
        spec = MethodSpec("look", "", "", needs=frozenset({"retain", "reference"}))

        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            assert step.reference is not None
            now = step.backend.losses(batch)
            seen.append((step.reference.nll(batch).mean().item(), now.mean().item()))
            return -now

    base = backend.clone()
    run(backend, clips, Snapshot(options(forget_batch_size=5)))
    expected = base.losses(Batch.of(clips.forget)).mean().item()
    assert [reference for reference, _ in seen] == pytest.approx([expected] * 4, rel=1e-5)
    assert seen[-1][1] != pytest.approx(expected, rel=1e-4)


def test_reference_nll_is_remembered_a_clip(backend: MusicgenBackend, clips: Clips) -> None:
    reference = FrozenReference(backend)
    with torch.no_grad():
        next(backend.module.parameters()).add_(1)
    assert torch.equal(reference.nll(Batch.of(clips.forget[:2])), reference.nll(Batch.of(clips.forget[:2])))
    mixed = reference.nll(Batch.of(clips.forget[1:4]))
    assert mixed[0] == reference.nll(Batch.of(clips.forget[:2]))[1]


def test_wrong_loss_shape_is_the_methods_fault(backend: MusicgenBackend, clips: Clips) -> None:
    class Scalar(Plain):
        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            return step.backend.losses(batch).mean()

    with pytest.raises(PluginError, match="one loss per clip"):
        run(backend, clips, Scalar(options()))


# ---------------------------------------------------------------------------------------- penalty, masks and Fisher


@pytest.mark.parametrize("micro", [1, 2, 16])
def test_a_penalty_counts_once_a_step_however_batches_are_cut(
    backend: MusicgenBackend, clips: Clips, micro: int
) -> None:
    class Decay(Plain):
        def penalty(self, step: Step) -> Tensor:
            return 3 * torch.stack([weight.square().sum() for weight in step.backend.module.parameters()]).sum()

    lines: list[Any] = []
    twin = backend.clone()
    settings = options(steps=1, batch_size=7, forget_batch_size=5, micro_batch_size=micro)
    run(backend, clips, Decay(settings), record=lines.append)
    penalty = 3 * sum(weight.square().sum() for weight in twin.module.parameters())
    (penalty - twin.losses(Batch.of(clips.forget)).mean() + twin.losses(Batch.of(clips.retain)).mean()).backward()  # type: ignore[union-attr]
    norm = sum(weight.grad.square().sum() for weight in twin.module.parameters()) ** 0.5  # type: ignore[union-attr]
    line = next(line for line in lines if "grad_norm" in line)
    assert line["penalty"] == pytest.approx(penalty.item(), rel=1e-4)
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_once_all_tracks_are_there_a_penalty_goes_on_until_retain_is_kept(
    backend: MusicgenBackend, clips: Clips
) -> None:
    class Held(Ascent):
        def penalty(self, step: Step) -> Tensor:
            return torch.stack([weight.square().sum() for weight in step.backend.module.parameters()]).sum()

    lines: list[Any] = []
    engine = Engine(backend, clips, record=lines.append)
    there = {clip.track: 9.0 for clip in clips.forget}
    looks = iter(stands(there, lost) for lost in (4.0, 1.5, 0.9))
    engine.monitor.snapshot = lambda: next(looks)  # type: ignore[method-assign]
    engine.train(Held(options(steps=9, eval_every=1, stop="target")))
    assert [sorted({"forget_loss", "penalty"} & line.keys()) for line in lines if "grad_norm" in line] == [
        ["forget_loss", "penalty"], ["penalty"], ["penalty"],
    ]  # fmt: skip


def test_a_penalty_is_not_clipped_by_track(backend: MusicgenBackend, clips: Clips) -> None:
    class Decay(Plain):
        def penalty(self, step: Step) -> Tensor:
            return 3 * torch.stack([weight.square().sum() for weight in step.backend.module.parameters()]).sum()

    lines: list[Any] = []
    norm = 6 * sum(weight.detach().square().sum() for weight in backend.module.parameters()) ** 0.5  # type: ignore[union-attr]
    run(backend, clips, Decay(options(steps=1, per_track_clip=1e-9)), record=lines.append)
    line = next(line for line in lines if "grad_norm" in line)
    assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


class Sparse(Plain):
    """Trains every other weight of one parameter, none of a second, all of the rest."""

    def prepare(self, session: Session) -> None:
        for name, weight in session.backend.module.named_parameters():
            if name.endswith("layers.0.fc1.weight"):
                session.masks[name] = (torch.arange(weight.numel()) % 2 == 0).view(weight.shape)
            elif name.endswith("layers.1.fc2.weight"):
                session.masks[name] = torch.zeros(weight.shape, dtype=torch.bool)


def test_masked_entries_stay_bit_identical_and_the_rest_is_trained(backend: MusicgenBackend, clips: Clips) -> None:
    before = {name: weight.detach().clone() for name, weight in backend.module.named_parameters()}
    run(backend, clips, Sparse(options(weight_decay=0.5, steps=6, dropout=True)))
    for name, weight in backend.module.named_parameters():
        moved = weight != before[name]
        if name.endswith("layers.0.fc1.weight"):
            assert not moved.flatten()[1::2].any()
            assert moved.flatten()[::2].all()
        elif name.endswith("layers.1.fc2.weight"):
            assert not moved.any()
        else:
            assert moved.any(), name


def test_masked_entries_have_no_part_in_the_clipped_norm(backend: MusicgenBackend, clips: Clips) -> None:
    batch = {"steps": 1, "batch_size": 7, "forget_batch_size": 5}
    lines: list[Any] = []
    twin = backend.clone()
    run(backend, clips, Sparse(options(**batch)), record=lines.append)
    losses = -twin.losses(Batch.of(clips.forget)).mean() + twin.losses(Batch.of(clips.retain)).mean()
    losses.backward()
    total = 0.0
    for name, weight in twin.module.named_parameters():
        assert weight.grad is not None
        gradient = weight.grad.double().flatten()
        if name.endswith("layers.0.fc1.weight"):
            gradient = gradient[::2]
        if not name.endswith("layers.1.fc2.weight"):
            total += gradient.square().sum().item()
    assert next(line["grad_norm"] for line in lines if "grad_norm" in line) == pytest.approx(total**0.5, rel=1e-4)


def test_a_resumed_run_keeps_its_masks(backend: MusicgenBackend, clips: Clips, tmp_path: Path) -> None:
    settings = options(steps=7, checkpoint_seconds=0, weight_decay=0.5)
    straight, broken, again = (backend.clone() for _ in range(3))
    run(straight, clips, Sparse(settings))
    stop = StopFlag()

    def stop_at(line: Any) -> None:
        if line.get("step") == 5:
            stop.number = 15

    with pytest.raises(Interrupted):
        run(broken, clips, Sparse(settings), checkpoints=Checkpoints(tmp_path, "x"), stop=stop, record=stop_at)
    run(again, clips, Sparse(settings), checkpoints=Checkpoints(tmp_path, "x"))
    assert module_sha256(again.module) == module_sha256(straight.module)


def fisher_of(found: list[Any], needs: frozenset[str] = frozenset({"fisher"}), **asked: Any) -> EditMethod:
    class Ask(EditMethod):
        spec = MethodSpec("ask", "", "", needs=needs)
        Options = NoOptions

        def edit(self, session: Session) -> None:
            session.backend.module.train()  # what it was in must not matter
            with torch.no_grad():
                found.append(session.fisher(session.forget, **asked))

    return Ask(NoOptions())


@pytest.mark.parametrize("labels", ["empirical", "sampled"])
def test_a_sessions_fisher_is_the_mean_over_clips_and_kept(
    backend: MusicgenBackend, clips: Clips, tmp_path: Path, labels: Any
) -> None:
    whole = backend_fisher(backend, clips.forget, mode=labels, micro_batch_size=2, seed=4)
    found: list[Any] = []
    lines: list[Any] = []
    for _ in range(2):
        run(
            backend, clips, fisher_of(found, labels=labels, micro_batch_size=2), seed=4, fisher_folder=tmp_path,
            record=lines.append,
        )  # fmt: skip
        found[-1]["next"] = found[-1].popitem()  # the caller's own: what it does to it does not come back
    assert [line["step"] for line in lines if line.get("stage") == "fisher"] == [2, 4, 5]  # once, not twice
    for result in found:
        assert all(torch.equal(result[n], v / 5) for n, v in whole.values.items() if n in result)
    assert len(found[0]) == len(found[1]) == len(whole.values)


def test_a_fisher_must_be_declared(backend: MusicgenBackend, clips: Clips) -> None:
    with pytest.raises(PluginError, match="must declare it"):
        run(backend, clips, fisher_of([], needs=frozenset()))


def test_a_fisher_pass_stops_on_a_signal(backend: MusicgenBackend, clips: Clips) -> None:
    stop = StopFlag()

    def record(line: Any) -> None:
        if line.get("stage") == "fisher":
            stop.number = 2

    found: list[Any] = []
    with pytest.raises(Interrupted):
        run(backend, clips, fisher_of(found, micro_batch_size=1), stop=stop, record=record)
    assert not found


def test_a_fisher_that_does_not_fit_takes_fewer_clips_a_pass(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = backend_fisher(backend, clips.forget, micro_batch_size=1)
    small, losses = 1, backend.losses
    found: list[Any] = []
    lines: list[Any] = []

    def scarce(batch: Batch) -> Tensor:
        if torch.is_grad_enabled() and len(batch) > small:
            raise torch.OutOfMemoryError("no more")
        return losses(batch)

    monkeypatch.setattr(backend, "losses", scarce)
    run(backend, clips, fisher_of(found, labels="empirical", micro_batch_size=4), record=lines.append)
    assert [line["micro_batch_size"] for line in lines if line.get("event") == "out of memory"] == [2, 1]
    assert all(torch.equal(value, expected.values[name] / 5) for name, value in found[0].items())
    small = 0
    with pytest.raises(torch.OutOfMemoryError):
        run(backend, clips, fisher_of(found, labels="empirical", micro_batch_size=1))
