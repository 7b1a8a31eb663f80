"""One training loop for every loss method, and the session that edit methods work in.

The loop owns the optimiser, precision, micro-batches, the looks at the data, stopping, checkpoints and guards. A
method only says what a clip's loss is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encore.api import Backend, Batch, Clip, EditMethod, LossMethod, Method, Reference, Session, Step
from encore.curvature.fisher_cache import cached_fisher
from encore.errors import EncoreError, InputError, PluginError
from encore.hashing import module_sha256
from encore.signals import StopFlag
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
    """The base model as it was before the run. The NLL of a clip is computed once a draw of noise."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend.clone()
        self._backend.module.requires_grad_(False).eval()
        self._nll: dict[Clip, float] = {}

    @property
    def module(self) -> torch.nn.Module:
        """Its weights, which nobody may change."""
        return self._backend.module

    @torch.no_grad()
    def nll(self, batch: Batch) -> Tensor:
        if batch.noise_index:  # this noise is never seen again
            return self._backend.losses(batch)
        missing = [clip for clip in batch.clips if clip not in self._nll]
        if missing:
            values = self._backend.losses(Batch.of(missing, batch.codes.device)).tolist()
            self._nll.update(zip(missing, values, strict=True))
        return torch.tensor([self._nll[clip] for clip in batch.clips], device=batch.codes.device)

    @torch.no_grad()
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        return self._backend.logits(batch, unconditional=unconditional)


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
    """What a run came to.

    `tokens`: codes, or values of latents, that were trained on, each time counted; `earlier_seconds`: what processes
    took before this one, up to the checkpoint it went on from. Both count what was done twice, as it cost twice.
    `chosen`: what the method or the schedule chose by itself, with the reason, by the name of the option.
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
    """Everything that a checkpoint must bring back.

    `averaged`: how many steps the mean of the weights is of; `seconds`, `tokens`: of the whole run, by all processes.
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
        clips: what to forget, keep, and compare with.
        seed: of every random draw.
        precision: "fp32", or "bf16" for autocast.
        checkpoints: where to keep the loop's state; None keeps none.
        fishers: folder where Fishers are kept; None keeps none.
        record: receives a mapping for every step and every look (`log.jsonl`).
        stop: a flag that signals set.
        began: when this process began to work on the run, of `time.monotonic`; None: now.
    """

    def __init__(
        self,
        backend: Backend,
        clips: Clips,
        *,
        seed: int = 0,
        precision: Literal["fp32", "bf16"] = "fp32",
        checkpoints: Checkpoints | None = None,
        fishers: Path | None = None,
        record: Record = lambda _: None,
        stop: StopFlag | None = None,
        began: float | None = None,
    ) -> None:
        self.backend = backend
        self.clips = clips
        self.seed = seed
        self.precision = precision
        self.checkpoints = checkpoints
        self.fishers = fishers
        self.record = record
        self.stop = stop if stop is not None else StopFlag()
        self.began = began if began is not None else _now()
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
            EncoreError: the loss was not finite several steps in a row, or the weights are not at the end.
            PluginError: the method changed a part that must stay frozen, or breaks the contract otherwise.
        """
        frozen = {name: module_sha256(part) for name, part in self.backend.frozen().items()}
        session = self.session(method)
        self.outcome.before = self.monitor.first
        if isinstance(method, LossMethod):
            method.prepare(session)
            self._retain, self._masks, self._lr = session.retain, session.masks, session.lr
            if session.target_nll:
                tracks = {clip.track for clip in self.clips.forget}
                if session.target_nll.keys() != tracks or min(session.target_nll.values()) <= 0:
                    raise PluginError(
                        f"method {method.spec.name!r}: prepare must set a level above 0 for every forget track, or none"
                    )
                self.monitor.set_levels(session.target_nll)
                self.outcome.before = self.monitor.first
            self.outcome.chosen |= session.chosen
            self.train(method)
        elif isinstance(method, EditMethod):
            method.edit(session)
            self.backend.module.eval()
            self.outcome.best = self.monitor.look()
        else:
            raise PluginError(f"method {method.spec.name!r} is neither a LossMethod nor an EditMethod")
        self._check_result(method, frozen)
        return self.outcome

    def session(self, method: Method) -> Session:
        """What a method is given, before anything is changed: no more than its spec says that it needs."""
        if "reference" in method.spec.needs:
            self._reference = FrozenReference(self.backend)
        return Session(
            self.backend, self.clips.forget, self.clips.retain, self.clips.holdout, self._reference, self.generator,
            self.seed, self.monitor.holdout_nll, self.train, self.fisher if "fisher" in method.spec.needs else None,
        )  # fmt: skip

    def _check_result(self, method: Method, frozen: Mapping[str, str]) -> None:
        for name, part in self.backend.frozen().items():
            if module_sha256(part) != frozen[name]:
                raise PluginError(f"method {method.spec.name!r} changed the {name}, which must stay as it was")
        for name, weight in self.backend.module.state_dict().items():
            if not torch.isfinite(weight).all():
                raise EncoreError(
                    f"method {method.spec.name!r} left non-finite weights in {name}", "lower --lr; nothing was saved"
                )

    # ----------------------------------------------------------------------------------------------------- the loop

    def train(self, method: LossMethod) -> None:
        """The loop itself; ends with the best weights in the backend."""
        options, module = method.options, self.backend.module
        peak = options.lr if options.lr is not None else self._lr
        if peak is None:
            raise PluginError(f"method {method.spec.name!r} has no learning rate: set one in Options or in prepare")
        uses_retain = "retain" in method.spec.needs and bool(self._retain)
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.95), weight_decay=options.weight_decay)
        state = _State(pending=list(range(len(self.clips.forget))), micro_batch_size=options.micro_batch_size)
        clipping = None
        if options.per_track_clip is not None:
            clipping = TrackClipping(module, options.per_track_clip, self.generator, self.record)
        best = copied_weights(module)
        self._average = WeightAverage(module)
        self._phase += 1
        torch.manual_seed(self.seed)  # dropout draws from torch's own generator
        resumed = self._resume(optimizer, state)
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
                self._save(optimizer, state, best)
                last_checkpoint = _now()
                self.stop.check()
            lr_share = schedule.share(state.step)
            for group in optimizer.param_groups:
                group["lr"] = peak * lr_share
            forget = retain = None
            if method.uses_forget and state.pending:
                forget = [self.clips.forget[i] for i in forget_draw.take(state.pending, options.forget_batch_size)]
            if uses_retain:
                everything = range(len(self._retain))
                retain = [self._retain[i] for i in retain_draw.take(everything, options.batch_size)]
            module.train(options.dropout)
            progress = state.step / schedule.steps
            step = Step(
                self.backend, self._reference, self.generator, progress, self.monitor.holdout_nll, lr_share,
                forget or (),
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
            seconds = self.outcome.earlier_seconds + _now() - self.began
            late = options.max_seconds is not None and seconds >= options.max_seconds
            self.record(
                {"phase": self._phase, "step": state.step, "of": schedule.steps, "lr": optimizer.param_groups[0]["lr"]}
                | {"grad_norm": norm if math.isfinite(norm) else None}
                | {name: value if math.isfinite(value) else None for name, value in losses.items()}
            )
            if state.step % options.eval_every == 0 or late or state.step == schedule.steps:
                if state.decay.begin is None and options.schedule == "adaptive":
                    state.best = None  # at the full rate nothing has recovered yet
                module.eval()
                with self._average.applied():
                    look = self.monitor.look()
                    over = schedule.enough(look, state.step, seconds, partial(method.ready, step))
                    # What an adaptive run ends for is taken: an earlier look may have a better score by chance.
                    if over or state.best is None or look.rank(options.stop) <= state.best.rank(options.stop):
                        state.best, best = look, copied_weights(module)
                self.record({"phase": self._phase, "step": state.step, "of": schedule.steps, "look": look.as_dict()})
                if late or over:
                    break
                if options.stop == "target" and self.monitor.holdout_nll is not None and method.uses_forget:
                    state.pending = [i for i, clip in enumerate(self.clips.forget) if not look.reached(clip.track)]
                    if not state.pending and (look.retain_ok or not (uses_retain or method.uses_penalty)):
                        break
        _restore(module, best)
        module.eval()
        if state.decay.begin is not None and state.step > state.decay.begin:
            self.outcome.chosen["steps"] = (
                f"{state.step}: the rate began to decay after {state.decay.begin}, the forget tracks being near their "
                f"levels or time short, over {state.decay.steps} more"
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

            def ask(
                part: Sequence[Clip], name: str = name, loss_of: Callable[[Step, Batch], Tensor] = loss_of
            ) -> Tensor:
                batch = Batch.of(part, self.backend.device, noise_index=draw)
                with self._autocast():
                    losses = loss_of(step, batch)
                if losses.shape != (len(batch),):
                    raise PluginError(
                        f"method {method.spec.name!r}: {name} returned shape {tuple(losses.shape)} for {len(batch)} "
                        "clips, and must return one loss a clip"
                    )
                return losses

            if clipping is not None:
                sums[name] = clipping.add(name, ask, clips, micro)
                continue
            total = 0.0
            for start in range(0, len(clips), micro):
                loss = ask(clips[start : start + micro]).sum() / len(clips)
                loss.backward()
                total += loss.item()
            sums[name] = total
        penalty = method.penalty(step)
        if penalty is not None:
            penalty.backward()
            sums["penalty"] = penalty.item()
        return sums

    def _mask_gradients(self) -> None:
        """Without a gradient, masked weights gather no momentum, and have no part in the norm that is clipped."""
        for name, mask in self._masks.items():
            gradient = self.backend.module.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0)

    @torch.no_grad()
    def _restore_masked(self, best: Mapping[str, Tensor]) -> None:
        """Undo what weight decay did to masked weights; they are the same in every state of the run, so in `best`."""
        for name, mask in self._masks.items():
            weight = self.backend.module.get_parameter(name)
            weight.copy_(torch.where(mask, weight, best[name]))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.backend.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    # ------------------------------------------------------------------------------------------------------- Fisher

    def fisher(
        self, clips: Sequence[Clip], labels: Literal["empirical", "sampled"], micro_batch_size: int
    ) -> dict[str, Tensor]:
        """See `Session.fisher`. In place of memory that runs out, fewer clips a pass are taken."""

        def progress(done: int, of: int) -> None:
            self.record({"stage": "fisher", "step": done, "of": of})
            self.stop.check()

        while True:
            try:
                with torch.enable_grad():  # an edit as a whole may stand under no_grad
                    found = cached_fisher(
                        self.backend, clips, self.fishers, mode=labels, micro_batch_size=micro_batch_size,
                        seed=self.seed, progress=progress,
                    )  # fmt: skip
                return {name: value / found.samples for name, value in found.values.items()}
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or micro_batch_size == 1:
                    raise
                micro_batch_size = micro_batch_size // 2
                self.record({"event": "out of memory", "micro_batch_size": micro_batch_size})

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _save(self, optimizer: torch.optim.Optimizer, state: _State, best: Mapping[str, Tensor]) -> None:
        if self.checkpoints is None:
            return
        state.averaged = self._average.steps
        state.seconds, state.tokens = self.outcome.earlier_seconds + _now() - self.began, self.outcome.tokens
        moments = {
            f"{i}.{key}": value for i, slots in optimizer.state_dict()["state"].items() for key, value in slots.items()
        }

        def fill(folder: Path) -> None:
            save_file(copied_weights(self.backend.module), folder / "module.safetensors")
            save_file(dict(best), folder / "best.safetensors")
            if self._average.steps:
                save_file(self._average.weights, folder / "mean.safetensors")
            draws = {"generator": self.generator.get_state(), "dropout": torch.get_rng_state()}
            save_file(moments | draws, folder / "optimizer.safetensors")
            (folder / "state.json").write_text(json.dumps(asdict(state) | {"phase": self._phase}))

        self.checkpoints.save(self._phase * 1_000_000 + state.step, fill)
        self.record({"event": "checkpoint", "phase": self._phase, "step": state.step})

    def _resume(self, optimizer: torch.optim.Optimizer, state: _State) -> dict[str, Tensor] | None:
        """Bring back the newest checkpoint of this phase; the best weights so far, or None where there is none."""
        folder = self.checkpoints.latest() if self.checkpoints else None
        if folder is None:
            return None
        saved = read_json(folder / "state.json", schemas.State)
        if saved.pop("phase") != self._phase:
            return None
        try:
            return self._restore_from(folder, saved, optimizer, state)
        except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint {folder} is not of this run: {line}", f"remove {folder.parent}, and resume again"
            ) from error

    def _restore_from(
        self, folder: Path, saved: dict[str, Any], optimizer: torch.optim.Optimizer, state: _State
    ) -> dict[str, Tensor]:
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
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            index, slot = key.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict(blank | {"state": slots})
        self.record({"event": "resumed", "phase": self._phase, "step": state.step})
        return load_file(folder / "best.safetensors")


def _restore(module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    module.load_state_dict(dict(weights))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _now() -> float:
    import time

    return time.monotonic()
