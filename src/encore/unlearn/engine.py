"""One training loop for every loss method, and the session that edit methods work in.

The loop owns the optimiser, precision, micro-batches, snapshots, stopping, checkpoints and guards. A method only
defines the loss of a clip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encore.api import Backend, Batch, Clip, EditMethod, LossMethod, Method, Phase, Reference, Session, Step
from encore.curvature.fisher_cache import cached_fisher
from encore.errors import EncoreError, InputError, PluginError
from encore.hashing import module_sha256
from encore.stop_signals import StopFlag
from encore.store import schemas
from encore.store.run_folder import Checkpoints, read_json
from encore.unlearn.lr_schedule import Decay, Schedule
from encore.unlearn.monitor import Snapshot, StoppingMonitor
from encore.unlearn.track_clipping import TrackClipping
from encore.unlearn.weight_average import WeightAverage, copied_weights

MAX_BAD_STEPS = 5  # non-finite steps in a row before a run gives up
Record = Callable[[Mapping[str, Any]], None]
LossOf = Callable[[Step, Batch], Tensor]


@dataclass
class Clips:
    """The clips of a run. `holdout` may be empty; `retain` may be empty where the method does not need it."""

    forget: Sequence[Clip]
    retain: Sequence[Clip]
    holdout: Sequence[Clip]


class FrozenReference(Reference):
    """A frozen copy of the model before the run. The NLL of a clip at noise 0 is computed once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend.clone()
        self._backend.module.requires_grad_(False).eval()
        self._nll: dict[Clip, float] = {}

    @property
    def module(self) -> torch.nn.Module:
        """Its weights; don't change them."""
        return self._backend.module

    @torch.no_grad()
    def nll(self, batch: Batch) -> Tensor:
        if batch.noise_index:  # this noise is used once
            return self._backend.losses(batch)
        missing = [clip for clip in batch.clips if clip not in self._nll]
        if missing:
            values = self._backend.losses(Batch.of(missing, batch.codes.device)).tolist()
            self._nll.update(zip(missing, values, strict=True))
        return torch.tensor([self._nll[clip] for clip in batch.clips], device=batch.codes.device)

    @torch.no_grad()
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        return self._backend.logits(batch, unconditional=unconditional)

    @torch.no_grad()
    def hidden(self, batch: Batch, depth: float) -> Tensor:
        return self._backend.hidden(batch, depth)


class ShuffledSampler:
    """Draws clips without replacement, in passes over the set, each pass shuffled."""

    def __init__(self, generator: torch.Generator, queue: Sequence[int] = ()) -> None:
        self.generator = generator
        self.queue = list(queue)

    def take(self, allowed: Sequence[int], count: int) -> list[int]:
        """`count` of the allowed indices (all of them where there are fewer)."""
        if count >= len(allowed):
            return list(allowed)
        taken: list[int] = []
        permitted = set(allowed)
        while len(taken) < count:
            if not self.queue:
                order = torch.randperm(len(allowed), generator=self.generator).tolist()
                self.queue = [allowed[i] for i in order]
            index = self.queue.pop()
            if index in permitted and index not in taken:
                taken.append(index)
        return taken


@dataclass
class TrainResult:
    """The outcome of a run.

    Args:
        steps: optimiser steps taken.
        tokens: codes, or values of latents, trained on, counted each time.
        earlier_seconds: duration of earlier processes, up to the checkpoint that this one resumed. Steps that were
            lost and repeated count twice, here and in `tokens`.
        reached_target: whether every forget track reached its target NLL; None without targets.
        before: the base model.
        best: the model that the run ends with.
        micro_batch_size: the last one used.
        skipped_steps: steps skipped because a loss or gradient was not finite.
        chosen: option name -> the value that the method or the schedule chose, and why.
    """

    steps: int = 0
    tokens: int = 0
    earlier_seconds: float = 0.0
    reached_target: bool | None = None
    before: Snapshot | None = None
    best: Snapshot | None = None
    micro_batch_size: int | None = None
    skipped_steps: int = 0
    chosen: dict[str, str] = field(default_factory=dict)


@dataclass
class _State:
    """The state of the loop that a checkpoint saves beside tensors.

    `averaged`: number of steps in the weight average; `seconds`, `tokens`: of the whole run, over all processes.
    """

    step: int = 0
    forget_queue: list[int] = field(default_factory=list)
    retain_queue: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    best: Snapshot | None = None
    decay: Decay = field(default_factory=Decay)
    averaged: int = 0
    micro_batch_size: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Engine:
    """Runs one method on one backend.

    Args:
        backend: the model; its trainable weights are changed in place.
        clips: the clips to forget, to keep, and to compare with.
        seed: of every random draw.
        precision: "fp32", or "bf16" for autocast.
        checkpoints: where to save the loop's state; None saves none.
        fisher_folder: cache folder of Fisher diagonals; None caches none.
        record: receives a mapping for every step and every snapshot (`log.jsonl`).
        stop: a flag that signals set.
        started: when this process started the run, by `time.monotonic`; None: now.
    """

    def __init__(
        self,
        backend: Backend,
        clips: Clips,
        *,
        seed: int = 0,
        precision: Literal["fp32", "bf16"] = "fp32",
        checkpoints: Checkpoints | None = None,
        fisher_folder: Path | None = None,
        record: Record = lambda _: None,
        stop: StopFlag | None = None,
        started: float | None = None,
    ) -> None:
        self.backend = backend
        self.clips = clips
        self.seed = seed
        self.precision = precision
        self.checkpoints = checkpoints
        self.fisher_folder = fisher_folder
        self.record = record
        self.stop = stop if stop is not None else StopFlag()
        self.started = started if started is not None else _now()
        self.generator = torch.Generator().manual_seed(seed)
        self.outcome = TrainResult()
        self.monitor = StoppingMonitor(backend, clips.forget, clips.retain, clips.holdout, seed=seed)
        self._reference: Reference | None = None
        self._retain = clips.retain
        self._masks: Mapping[str, Tensor] = {}
        self._lr: float | None = None
        self._average = WeightAverage(backend.module)
        self._phase = 0

    def run(self, method: Method) -> TrainResult:
        """Apply the method and leave the result in the backend, in evaluation mode.

        Raises:
            EncoreError: the loss was not finite several steps in a row, or the final weights are not finite.
            PluginError: the method changed a frozen part, or breaks its contract in another way.
        """
        frozen = {name: module_sha256(part) for name, part in self.backend.frozen().items()}
        weights = {name: tensor.shape for name, tensor in self.backend.module.state_dict().items()}
        session = self.session(method)
        self.outcome.before = self.monitor.first
        if isinstance(method, LossMethod):
            method.prepare(session)
            self._retain, self._masks, self._lr = session.retain, session.masks, session.lr
            if session.target_nll:
                tracks = {clip.track for clip in self.clips.forget}
                if session.target_nll.keys() != tracks or min(session.target_nll.values()) <= 0:
                    raise PluginError(
                        f"method {method.spec.name!r}: prepare must set a target NLL above 0 for every forget track, "
                        "or for none"
                    )
                self.monitor.set_targets(session.target_nll)
                self.outcome.before = self.monitor.first
            self.outcome.chosen |= session.chosen
            self._train(method, session)
        elif isinstance(method, EditMethod):
            method.edit(session)
            self.backend.module.eval()
            self.outcome.best = self.monitor.snapshot()
        else:
            raise PluginError(f"method {method.spec.name!r} is neither a LossMethod nor an EditMethod")
        self._check_result(method, frozen, weights)
        return self.outcome

    def session(self, method: Method) -> Session:
        """The inputs of a method before any change: only what its spec needs."""
        if "reference" in method.spec.needs:
            self._reference = FrozenReference(self.backend)

        def train(inner: LossMethod) -> None:
            if not hasattr(inner, "spec"):
                inner.spec = method.spec  # type: ignore[misc]
            self._train(inner, session)

        session = Session(
            self.backend, self.clips.forget, self.clips.retain, self.clips.holdout, self._reference, self.generator,
            self.seed, self.monitor.holdout_nll, train, self.fisher if "fisher" in method.spec.needs else None,
        )  # fmt: skip
        return session

    def _train(self, method: LossMethod, session: Session) -> None:
        self.train(method)
        with torch.no_grad():
            method.finish(session)

    def _check_result(self, method: Method, frozen: Mapping[str, str], weights: Mapping[str, torch.Size]) -> None:
        for name, part in self.backend.frozen().items():
            if module_sha256(part) != frozen[name]:
                raise PluginError(f"method {method.spec.name!r} changed the {name}, which must stay as it was")
        state = self.backend.module.state_dict()
        changed = [name for name in {**weights, **state} if name not in state or weights.get(name) != state[name].shape]
        if changed:
            raise PluginError(
                f"method {method.spec.name!r} left other weights than the model had, first of all {changed[0]}: "
                "merge what it adds in finish"
            )
        for name, weight in state.items():
            if not torch.isfinite(weight).all():
                raise EncoreError(
                    f"method {method.spec.name!r} left non-finite weights in {name}", "lower --lr; nothing was saved"
                )

    # ----------------------------------------------------------------------------------------------------- the loop

    def train(self, method: LossMethod) -> None:
        """Run the loop; ends with the best weights in the backend."""
        options, module = method.options, self.backend.module
        peak = options.lr if options.lr is not None else self._lr
        if peak is None:
            raise PluginError(f"method {method.spec.name!r} has no learning rate: set one in Options or in prepare")
        uses_retain = "retain" in method.spec.needs and bool(self._retain)
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        optimizer = method.optimizer(weights, peak)
        peaks = [group["lr"] for group in optimizer.param_groups]
        state = _State(pending=list(range(len(self.clips.forget))), micro_batch_size=options.micro_batch_size)
        clipping = None
        if options.per_track_clip is not None:
            clipping = TrackClipping(module, options.per_track_clip, self.generator, self.record)
        best = copied_weights(module)
        self._average = WeightAverage(module)
        self._phase += 1
        torch.manual_seed(self.seed)  # dropout draws from torch's own generator
        resumed = self._resume(method, optimizer, state)
        if resumed is not None:
            best = resumed
        forget_draw = ShuffledSampler(self.generator, state.forget_queue)
        retain_draw = ShuffledSampler(self.generator, state.retain_queue)
        schedule = Schedule(options, state.decay)
        last_checkpoint = _now()
        bad = 0
        while state.step < schedule.steps:
            if self.stop or _now() - last_checkpoint >= options.checkpoint_seconds:
                state.forget_queue, state.retain_queue = forget_draw.queue, retain_draw.queue
                self._save(method, optimizer, state, best)
                last_checkpoint = _now()
                self.stop.check()
            lr_share = schedule.share(state.step)
            for group, group_peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = group_peak * lr_share
            forget = retain = None
            phase = method.phase(state.step)
            if phase not in get_args(Phase):
                raise PluginError(f"method {method.spec.name!r}: phase returned {phase!r}, not both, forget or retain")
            if method.uses_forget and state.pending and phase != "retain":
                forget = [self.clips.forget[i] for i in forget_draw.take(state.pending, options.forget_batch_size)]
            if uses_retain and phase != "forget":
                everything = range(len(self._retain))
                retain = [self._retain[i] for i in retain_draw.take(everything, options.batch_size)]
            module.train(options.dropout)
            progress = state.step / schedule.steps
            step = Step(
                self.backend, self._reference, self.generator, progress, self.monitor.holdout_nll, lr_share,
                forget or (), state.step,
            )  # fmt: skip
            drawn = self.generator.get_state()
            while True:
                try:
                    losses = self._backward(
                        method, step, forget, retain, state.step + 1, state.micro_batch_size, clipping
                    )
                    break
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not _out_of_memory(error) or state.micro_batch_size == 1:
                        raise
                    optimizer.zero_grad(set_to_none=True)
                    self.generator.set_state(drawn)
                    state.micro_batch_size = max(1, state.micro_batch_size // 2)
                    self.record(
                        {"event": "out of memory", "step": state.step, "micro_batch_size": state.micro_batch_size}
                    )
            self._mask_gradients()
            norm = float(torch.nn.utils.clip_grad_norm_(weights, options.max_grad_norm))
            if math.isfinite(norm) and all(math.isfinite(value) for value in losses.values()):
                optimizer.step()
                with torch.no_grad():
                    method.after_step(step)
                self._restore_masked(best)
                if schedule.averages(state.step):
                    self._average.update()
                bad = 0
            else:
                bad += 1
                state.skipped_steps += 1
                if bad == MAX_BAD_STEPS:
                    _restore(module, best)
                    raise EncoreError(
                        f"the loss was not finite for {MAX_BAD_STEPS} steps in a row (step {state.step})",
                        "lower --lr, or use --precision fp32; the last good checkpoint is kept",
                    )
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            self.outcome.tokens += sum(clip.codes.numel() for clip in (*(forget or ()), *(retain or ())))
            seconds = self.outcome.earlier_seconds + _now() - self.started
            late = options.max_seconds is not None and seconds >= options.max_seconds
            self.record(
                {"phase": self._phase, "step": state.step, "of": schedule.steps, "lr": optimizer.param_groups[0]["lr"]}
                | {"grad_norm": norm if math.isfinite(norm) else None}
                | {name: value if math.isfinite(value) else None for name, value in losses.items()}
            )
            if state.step % options.eval_every == 0 or late or state.step == schedule.steps:
                if state.decay.begin is None and options.schedule == "adaptive":
                    state.best = None  # at the full rate, retain has not recovered yet
                module.eval()
                with self._average.applied():
                    snapshot = self.monitor.snapshot()
                    over = schedule.is_done(snapshot, state.step, seconds, partial(method.ready, step))
                    # An adaptive run keeps the weights it ends with: an earlier score may be better by chance.
                    latest = over or options.select == "last"
                    if latest or state.best is None or snapshot.rank(options.stop) <= state.best.rank(options.stop):
                        state.best, best = snapshot, copied_weights(module)
                self.record(
                    {"phase": self._phase, "step": state.step, "of": schedule.steps, "look": snapshot.as_dict()}
                )
                if late or over:
                    break
                if options.stop == "target" and self.monitor.holdout_nll is not None and method.uses_forget:
                    state.pending = [i for i, clip in enumerate(self.clips.forget) if not snapshot.reached(clip.track)]
                    if not state.pending and (snapshot.retain_ok or not (uses_retain or method.uses_penalty)):
                        break
        _restore(module, best)
        module.eval()
        if state.decay.begin is not None and state.step > state.decay.begin:
            self.outcome.chosen["steps"] = (
                f"{state.step}: the rate decayed from step {state.decay.begin} over {state.decay.steps} steps, when "
                "the forget tracks were near their target NLLs or time was short"
            )
        self.outcome.steps += state.step
        self.outcome.skipped_steps += state.skipped_steps
        self.outcome.best = state.best
        self.outcome.micro_batch_size = state.micro_batch_size
        if state.best is not None and self.monitor.holdout_nll is not None:
            self.outcome.reached_target = all(state.best.reached(clip.track) for clip in self.clips.forget)

    def _backward(
        self,
        method: LossMethod,
        step: Step,
        forget: Sequence[Clip] | None,
        retain: Sequence[Clip] | None,
        draw: int,
        micro: int,
        clipping: TrackClipping | None,
    ) -> dict[str, float]:
        """Add the gradients of mean(forget_loss) + mean(retain_loss) + penalty, a micro-batch at a time."""
        sums = {}
        for name, clips, loss_of in (
            ("forget_loss", forget, method.forget_loss),
            ("retain_loss", retain, method.retain_loss),
        ):
            if not clips:
                continue

            def compute(part: Sequence[Clip], name: str = name, loss_of: LossOf = loss_of) -> Tensor:
                batch = Batch.of(part, self.backend.device, noise_index=draw)
                with self._autocast():
                    losses = loss_of(step, batch)
                if losses.shape != (len(batch),):
                    raise PluginError(
                        f"method {method.spec.name!r}: {name} returned shape {tuple(losses.shape)} for {len(batch)} "
                        "clips, and must return one loss per clip"
                    )
                return losses

            if clipping is not None:
                sums[name] = clipping.add(name, compute, clips, micro)
                continue
            total = 0.0
            for start in range(0, len(clips), micro):
                loss = compute(clips[start : start + micro]).sum() / len(clips)
                loss.backward()
                total += loss.item()
            sums[name] = total
        penalty = method.penalty(step)
        if penalty is not None:
            penalty.backward()
            sums["penalty"] = penalty.item()
        return sums

    def _mask_gradients(self) -> None:
        """Zero the gradients of masked weights, so that they gather no momentum and don't count in the clipped norm."""
        for name, mask in self._masks.items():
            gradient = self.backend.module.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0)

    @torch.no_grad()
    def _restore_masked(self, best: Mapping[str, Tensor]) -> None:
        """Undo weight decay on masked weights; `best` has their values, which never change."""
        for name, mask in self._masks.items():
            weight = self.backend.module.get_parameter(name)
            weight.copy_(torch.where(mask, weight, best[name]))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.backend.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    # ------------------------------------------------------------------------------------------------------- Fisher

    def fisher(
        self, clips: Sequence[Clip], labels: Literal["empirical", "sampled"], micro_batch_size: int
    ) -> dict[str, Tensor]:
        """See `Session.fisher`. When memory runs out, the micro-batch is halved."""

        def progress(done: int, of: int) -> None:
            self.record({"stage": "fisher", "step": done, "of": of})
            self.stop.check()

        while True:
            try:
                with torch.enable_grad():  # a method may call this under no_grad
                    fisher = cached_fisher(
                        self.backend, clips, self.fisher_folder, mode=labels, micro_batch_size=micro_batch_size,
                        seed=self.seed, progress=progress,
                    )  # fmt: skip
                return {name: value / fisher.samples for name, value in fisher.values.items()}
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or micro_batch_size == 1:
                    raise
                micro_batch_size = micro_batch_size // 2
                self.record({"event": "out of memory", "micro_batch_size": micro_batch_size})

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _save(
        self, method: LossMethod, optimizer: torch.optim.Optimizer, state: _State, best: Mapping[str, Tensor]
    ) -> None:
        if self.checkpoints is None:
            return
        state.averaged = self._average.steps
        state.seconds, state.tokens = self.outcome.earlier_seconds + _now() - self.started, self.outcome.tokens
        slots = {
            f"{i}.{key}": value for i, slots in optimizer.state_dict()["state"].items() for key, value in slots.items()
        }
        moments = {key: value for key, value in slots.items() if isinstance(value, Tensor)}
        plain = {key: value for key, value in slots.items() if not isinstance(value, Tensor)}

        def fill(folder: Path) -> None:
            save_file(copied_weights(self.backend.module), folder / "module.safetensors")
            save_file(dict(best), folder / "best.safetensors")
            if self._average.steps:
                save_file(self._average.weights, folder / "mean.safetensors")
            draws = {"generator": self.generator.get_state(), "dropout": torch.get_rng_state()}
            save_file(moments | draws, folder / "optimizer.safetensors")
            save_file(_tensors(method), folder / "method.safetensors")
            saved = asdict(state) | {"phase": self._phase, "optimizer": plain}
            (folder / "state.json").write_text(json.dumps(saved))

        self.checkpoints.save(self._phase * 1_000_000 + state.step, fill)
        self.record({"event": "checkpoint", "phase": self._phase, "step": state.step})

    def _resume(self, method: LossMethod, optimizer: torch.optim.Optimizer, state: _State) -> dict[str, Tensor] | None:
        """Load the newest checkpoint of this phase; returns the best weights so far, None without a checkpoint."""
        folder = self.checkpoints.latest() if self.checkpoints else None
        if folder is None:
            return None
        saved = read_json(folder / "state.json", schemas.State)
        if saved.pop("phase") != self._phase:
            return None
        try:
            return self._restore_from(folder, saved, method, optimizer, state)
        except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint {folder} is not of this run: {line}", f"remove {folder.parent}, and resume again"
            ) from error

    def _restore_from(
        self,
        folder: Path,
        saved: dict[str, Any],
        method: LossMethod,
        optimizer: torch.optim.Optimizer,
        state: _State,
    ) -> dict[str, Tensor]:
        plain = saved.pop("optimizer", {})
        vars(state).update(saved)
        state.best = Snapshot(**saved["best"]) if saved["best"] else None
        state.decay = Decay(**saved["decay"])
        self.outcome.earlier_seconds += state.seconds
        self.outcome.tokens += state.tokens
        _restore(self.backend.module, load_file(folder / "module.safetensors"))
        self._average.steps = state.averaged
        if state.averaged:
            self._average.weights = load_file(folder / "mean.safetensors", device=str(self.backend.device))
        moments = load_file(folder / "optimizer.safetensors")
        self.generator.set_state(moments.pop("generator"))
        torch.set_rng_state(moments.pop("dropout"))
        blank = optimizer.state_dict()
        slots: dict[int, dict[str, Any]] = {}
        for key, value in (moments | plain).items():
            index, slot = key.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict(blank | {"state": slots})
        if (folder / "method.safetensors").exists():
            method.load_state_dict(load_file(folder / "method.safetensors", device=str(self.backend.device)))
        self.record({"event": "resumed", "phase": self._phase, "step": state.step})
        return load_file(folder / "best.safetensors")


def _tensors(method: LossMethod) -> dict[str, Tensor]:
    state = method.state_dict()
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise PluginError(f"method {method.spec.name!r}: state_dict must return tensors by name, and nothing nested")
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _restore(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    module.load_state_dict(dict(weights))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _now() -> float:
    import time

    return time.monotonic()
