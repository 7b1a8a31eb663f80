"""One training loop for every loss method, and the session that edit methods work in.

The loop owns the optimiser, precision, micro-batches, snapshots, stopping, checkpoints and guards. A method only
defines the loss of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from encore import distributed
from encore.api import Backend, Batch, Clip, EditMethod, LossMethod, Method, Phase, Reference, Session, Step
from encore.api.data import by_length
from encore.curvature.fisher_cache import cached_fisher
from encore.errors import EncoreError, Interrupted, PluginError, UsageError, one_line
from encore.hashing import module_sha256
from encore.stop_signals import StopFlag
from encore.store.run_folder import Checkpoints
from encore.unlearn import bf16_weights, checks, masks, sharding
from encore.unlearn.activations import checkpointed
from encore.unlearn.adapter import Adapter, refuse_unadaptable
from encore.unlearn.attention import attention_by_products, prefers_products
from encore.unlearn.config import Lora, OptimizerStates, WeightType
from encore.unlearn.eight_bit import eight_bit
from encore.unlearn.loop_checkpoint import LoopCheckpoints, LoopState
from encore.unlearn.lr_schedule import Schedule
from encore.unlearn.monitor import Snapshot, StoppingMonitor
from encore.unlearn.reference import Source, reference_of
from encore.unlearn.sampling import Clips, ShuffledSampler
from encore.unlearn.step_rules import StepRules
from encore.unlearn.track_clipping import Compute, TrackClipping
from encore.unlearn.weight_average import WeightAverage, copied_weights, load_weights

MAX_BAD_STEPS = 5  # non-finite steps in a row before a run gives up
Record = Callable[[Mapping[str, Any]], None]
LossOf = Callable[[Step, Batch], Tensor]


@dataclass
class TrainResult:
    """The outcome of a run.

    Args:
        steps: optimiser steps taken.
        tokens: codes, or values of latents, trained on, counted each time.
        earlier_seconds: duration of earlier processes, up to the checkpoint that this one resumed. Steps that were
            lost and repeated count twice, here and in `tokens`.
        reached_target: whether every forget track reached its target NLL; None without targets.
        before: snapshot of the base.
        best: snapshot of the weights that the run ends with.
        micro_batch_size: the last one used.
        skipped_steps: steps skipped because a loss or gradient was not finite.
        chosen: option name -> the value that the method or the schedule chose, and why.
        reference: what the method compared with the base by; None where it does not.
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
    reference: Source | None = None


class Engine:
    """Runs one method on one backend.

    Args:
        backend: the model; its trainable weights are changed in place.
        clips: the clips to forget, to keep, and to compare with.
        seed: of every random draw.
        precision: "fp32", or "bf16" for autocast.
        lora: train an adapter in place of the model's weights, and merge it at the end; None: train the weights.
        checkpoint_activations: whether blocks keep their inputs only, and are computed again in the backward pass.
        weight_type: of the matrices while the run trains; those in bfloat16 keep their float32 values apart, and are
            computed with under autocast.
        optimizer_states: "8bit" for moments of AdamW in 8 bits.
        checkpoints: where to save the loop's state; None saves none.
        fisher_folder: cache folder of Fisher diagonals; None caches none.
        record: receives a mapping for every step and every snapshot (`log.jsonl`).
        stop: a flag that signals set.
        started: when this process started the run, by `time.monotonic`; None: now.
        fsdp: split weights, gradients and optimiser state over the processes while the loop runs.
    """

    def __init__(
        self,
        backend: Backend,
        clips: Clips,
        *,
        seed: int = 0,
        precision: Literal["fp32", "bf16"] = "fp32",
        lora: Lora | None = None,
        checkpoint_activations: bool = False,
        weight_type: WeightType = "fp32",
        optimizer_states: OptimizerStates = "fp32",
        checkpoints: Checkpoints | None = None,
        fisher_folder: Path | None = None,
        record: Record = lambda _: None,
        stop: StopFlag | None = None,
        started: float | None = None,
        fsdp: bool = False,
    ) -> None:
        self.backend = backend
        self.fsdp = fsdp
        self.clips = clips
        self.seed = seed
        self.precision = precision
        self.lora = lora
        self.adapter: Adapter | None = None
        self.checkpoint_activations = checkpoint_activations
        self.weight_type: WeightType = weight_type
        self.optimizer_states: OptimizerStates = optimizer_states
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
        self._phase = 0

    def run(self, method: Method) -> TrainResult:
        """Apply the method and leave the result in the backend, in evaluation mode.

        Raises:
            EncoreError: the loss was not finite several steps in a row, or the final weights are not finite.
            InputError: the loss of the model is not finite before the run.
            PluginError: the method changed a frozen part, or breaks its contract in another way.
        """
        checks.check_base(self.monitor.first, self.backend.unit)
        frozen = {name: module_sha256(part) for name, part in self.backend.frozen().items()}
        weights = {name: tensor.shape for name, tensor in self.backend.module.state_dict().items()}
        if self.lora is not None:
            refuse_unadaptable(method)
            self.adapter = Adapter(self.backend, self.lora, seed=self.seed)
        with ExitStack() as stack:
            if self.checkpoint_activations:
                stack.enter_context(checkpointed(self.backend.blocks))
            sets = (self.clips.forget, self.clips.retain, self.clips.holdout)
            if prefers_products(str(self.backend.device), self.precision, sets):
                stack.enter_context(attention_by_products(self.backend.module))
            if self.weight_type == "bf16":
                stack.enter_context(self._bf16_weights(method))
                self.monitor.measure_base_again()  # all snapshots are of weights in bfloat16
            self._apply(method)
        if self.adapter is not None:
            self.adapter.merge()
        self._check_result(method, frozen, weights)
        return self.outcome

    def _apply(self, method: Method) -> None:
        session = self.session(method)
        self.outcome.before = self.monitor.first
        if isinstance(method, LossMethod):
            self._prepare(method, session)
            self._train(method, session)
        elif isinstance(method, EditMethod):
            method.edit(session)
            self.backend.module.eval()
            self.outcome.best = self.monitor.snapshot()
        else:
            raise PluginError(f"method {method.spec.name!r} is neither a LossMethod nor an EditMethod")

    def _prepare(self, method: LossMethod, session: Session) -> None:
        """Let a loss method inspect the data, and take over what it set in the session."""
        method.prepare(session)
        self._retain, self._masks, self._lr = session.retain, session.masks, distributed.first(session.lr)
        if self.adapter is not None and self._masks:
            raise UsageError(
                f"method {method.spec.name!r} selects single weights to train, which an adapter does not have",
                "leave --adapter out",
            )
        if self.weight_type == "bf16" and self._masks:
            raise UsageError(
                f"method {method.spec.name!r} restores single weights after each step, in float32",
                "leave --weights out",
            )
        distributed.copy_first(self._masks.values())
        if session.target_nll:
            tracks = {clip.track for clip in self.clips.forget}
            if session.target_nll.keys() != tracks or min(session.target_nll.values()) <= 0:
                raise PluginError(
                    f"method {method.spec.name!r}: prepare must set a target NLL above 0 for every forget track, "
                    "or for none"
                )
            self.monitor.set_targets(distributed.first(session.target_nll))
            self.outcome.before = self.monitor.first
        self.outcome.chosen |= session.chosen

    def session(self, method: Method) -> Session:
        """The inputs of a method before any change: only what its spec needs."""
        with self.autocast():
            self._reference, self.outcome.reference = reference_of(
                method, self.backend, self.clips.forget, adapter=self.adapter
            )

        def train(inner: LossMethod) -> None:
            if not hasattr(inner, "spec"):
                inner.spec = method.spec  # type: ignore[misc]
            self._prepare(inner, session)
            self._train(inner, session)

        session = Session(
            self.backend, self.clips.forget, self.clips.retain, self.clips.holdout, self._reference, self.generator,
            self.seed, self.monitor.holdout_nll, train, self.fisher if "fisher" in method.spec.needs else None,
        )  # fmt: skip
        return session

    def _train(self, method: LossMethod, session: Session) -> None:
        with self._sharded(method):
            self.train(method)
        with torch.no_grad():
            method.finish(session)

    def train(self, method: LossMethod) -> None:
        """Run the loop; ends with the best weights in the backend."""
        self._phase += 1
        Loop(self, method).run()

    @contextmanager
    def _sharded(self, method: LossMethod) -> Iterator[None]:
        """Split the model over the processes inside the context, where that is asked for."""
        if not self.fsdp:
            yield
            return
        sharding.check(method)
        if self._masks:
            raise UsageError(f"method {method.spec.name!r} trains some weights of a layer, not others", sharding.HINT)
        whole = self.backend
        distributed.copy_first(whole.module.parameters())
        with sharding.sharded(whole) as self.backend:
            self.monitor.backend = self.backend
            yield
        self.backend = self.monitor.backend = whole

    def _check_result(self, method: Method, frozen: Mapping[str, str], weights: Mapping[str, torch.Size]) -> None:
        checks.check_result(method, self.backend, frozen, weights)

    @contextmanager
    def _bf16_weights(self, method: Method) -> Iterator[None]:
        """Inside the context matrices are in bfloat16, and everything is computed under autocast."""
        if self.adapter is None:
            bf16_weights.check(method)
        adapter = () if self.adapter is None else self.adapter.parameters.keys()
        # Weights change while autocast is on, so that it must not keep its copies of them.
        autocast = torch.autocast(self.backend.device.type, dtype=torch.bfloat16, cache_enabled=False)
        with bf16_weights.bf16_weights(self.backend.module, adapter), autocast:
            try:
                with torch.no_grad():
                    self.backend.losses(
                        Batch.of([*self.clips.forget[:1], *self.clips.retain[:1]][:1], self.backend.device)
                    )
            except RuntimeError as error:
                if distributed.is_out_of_memory(error):
                    raise
                raise UsageError(
                    f"a {self.backend.name} model can't compute with bfloat16 weights: {one_line(error)}",
                    "leave --weights out",
                ) from error
            yield

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that losses are computed in."""
        if self.weight_type == "bf16":  # it is on during the whole run
            return nullcontext()
        return torch.autocast(self.backend.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    # ------------------------------------------------------------------------------------------------------- Fisher

    def fisher(
        self, clips: Sequence[Clip], labels: Literal["empirical", "sampled"], micro_batch_size: int
    ) -> dict[str, Tensor]:
        """See `Session.fisher`. When memory runs out, the micro-batch is halved."""
        part = distributed.share(clips)

        def progress(done: int, of: int) -> None:
            self.record({"stage": "fisher", "step": done, "of": of})
            self.stop.check()

        while True:
            try:
                with torch.enable_grad():  # a method may call this under no_grad
                    fisher = cached_fisher(
                        self.backend, part, self.fisher_folder if part else None, mode=labels,
                        micro_batch_size=micro_batch_size, seed=self.seed, progress=progress,
                    )  # fmt: skip
                break
            except RuntimeError as error:
                if not distributed.is_out_of_memory(error) or micro_batch_size == 1:
                    raise
                micro_batch_size = micro_batch_size // 2
                self.record({"event": "out of memory", "micro_batch_size": micro_batch_size})
        distributed.add(fisher.values.values())
        return {name: value / len(clips) for name, value in fisher.values.items()}


class Loop:
    """The steps of one loss method: from the weights in the engine's backend to the best ones.

    Begins at the newest checkpoint, where there is one.

    Args:
        engine: the run that the loop is part of; its backend, monitor and outcome are changed.
        method: prepared.

    Raises:
        PluginError: neither options nor `prepare` set a learning rate.
    """

    def __init__(self, engine: Engine, method: LossMethod) -> None:
        options, module = method.options, engine.backend.module
        peak = options.lr if options.lr is not None else engine._lr
        if peak is None:
            raise PluginError(f"method {method.spec.name!r} has no learning rate: set one in Options or in prepare")
        self.engine, self.method, self.options, self.module = engine, method, options, module
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        if not engine.fsdp:
            distributed.copy_first(self.weights)
        self.rules = StepRules(method, module, engine._masks, engine.generator)
        self.optimizer = self.rules.optimizer(peak)
        if engine.optimizer_states == "8bit":
            self.optimizer = eight_bit(self.optimizer, method.spec.name)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.state = LoopState(pending=list(range(len(engine.clips.forget))), micro_batch_size=options.micro_batch_size)
        self.clipping = None
        if options.per_track_clip is not None:
            self.clipping = TrackClipping(module, options.per_track_clip, engine.generator, engine.record)
        self.trained = None if engine.adapter is None else engine.adapter.parameters.keys()
        self.best = copied_weights(module, self.trained)
        self.average = WeightAverage(module, self.trained)
        torch.manual_seed(engine.seed)  # dropout draws from torch's own generator
        self.checkpoints = LoopCheckpoints(
            engine.checkpoints, engine._phase, engine.backend, method, self.optimizer, self.average, engine.generator
        )
        self._resume()
        distributed.vary_dropout(self.state.step)
        self.forget_draw = ShuffledSampler(engine.generator, self.state.forget_queue)
        self.retain_draw = ShuffledSampler(engine.generator, self.state.retain_queue)
        self.schedule = Schedule(options, self.state.decay, forgets=bool(engine.clips.forget))
        self.last_checkpoint = _now()
        self.bad_steps = 0  # in a row

    @property
    def uses_retain(self) -> bool:
        return "retain" in self.method.spec.needs and bool(self.engine._retain)

    def run(self) -> None:
        """Take all steps; ends with the best weights in the backend, in evaluation mode.

        Raises:
            EncoreError: the loss was not finite several steps in a row.
            Interrupted: a signal asked to stop; the state is in a checkpoint.
            PluginError: the method breaks its contract.
        """
        state, options, engine = self.state, self.options, self.engine
        while state.step < self.schedule.steps:
            self._save_if_due()
            step = self._next_step()
            losses = self._accumulated(step)
            norm = self._update(step, losses)
            state.step += 1
            engine.outcome.tokens += sum(clip.codes.numel() for clip in (*step.forget, *step.retain))
            seconds = distributed.first(self._seconds())
            self._record_step(losses, norm)
            if self.schedule.is_watched(state.step, seconds) and self._restart_if_lost():
                continue
            late = options.max_seconds is not None and seconds >= options.max_seconds
            since = state.step - state.decay.restarted_at
            due = since % options.eval_every == 0 or late or state.step == self.schedule.steps
            if due and (self._snapshot_ends_run(step, seconds) or late or self._drop_finished_tracks()):
                break
        load_weights(self.module, self.best, self.trained)
        self.module.eval()
        self._set_outcome()

    # ------------------------------------------------------------------------------------------------------- one step

    def _next_step(self) -> Step:
        """Set the rate, and draw the clips of a step."""
        engine, state, options, method = self.engine, self.state, self.options, self.method
        lr_share = self.schedule.share(state.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.schedule.peak_share * lr_share
        self.phase = method.phase(state.step)
        if self.phase not in get_args(Phase):
            raise PluginError(f"method {method.spec.name!r}: phase returned {self.phase!r}, not both, forget or retain")
        forget: Sequence[Clip] = ()
        retain: Sequence[Clip] = ()
        if method.uses_forget and state.pending and self.phase != "retain":
            indices = self.forget_draw.take(state.pending, options.forget_batch_size)
            forget = [engine.clips.forget[i] for i in indices]
        if self.uses_retain and self.phase != "forget":
            indices = self.retain_draw.take(range(len(engine._retain)), options.batch_size)
            retain = [engine._retain[i] for i in indices]
        self.module.train(options.dropout)
        progress = state.step / self.schedule.steps
        return Step(
            engine.backend, engine._reference, engine.generator, progress, engine.monitor.holdout_nll, lr_share, forget,
            state.step, retain, state.harm,
        )  # fmt: skip

    def _accumulated(self, step: Step) -> dict[str, float]:
        """Add up the gradients of a step over all processes; its losses. Halves the micro-batch if memory runs out."""
        engine, state = self.engine, self.state
        generator_state = engine.generator.get_state()
        while True:
            losses, short = dict[str, float](), False
            try:
                losses = self._backward(step)
            except RuntimeError as error:
                if not distributed.is_out_of_memory(error) or state.micro_batch_size == 1 or engine.fsdp:
                    raise
                short = True
            if not any(distributed.largest([short])):
                break
            self.optimizer.zero_grad(set_to_none=True)
            engine.generator.set_state(generator_state)
            state.micro_batch_size = max(1, state.micro_batch_size // 2)
            engine.record({"event": "out of memory", "step": state.step, "micro_batch_size": state.micro_batch_size})
        losses = dict(zip(losses, distributed.totals([*losses.values()]), strict=True))
        if not engine.fsdp:
            distributed.add_gradients(self.weights)
        if state.step == 0 and self.phase == "both":
            checks.check_gradients(self.method, self.module, self.optimizer, engine._masks)
        distributed.synchronise(engine.generator)  # a loss may draw by the size of its batch
        return losses

    def _backward(self, step: Step) -> dict[str, float]:
        """Add the gradients of mean(forget_loss) + mean(retain_loss) + penalty, a micro-batch at a time."""
        method, clipping, micro = self.method, self.clipping, self.state.micro_batch_size
        sums = {}
        for name, clips, loss_of in (
            ("forget_loss", step.forget, method.forget_loss),
            ("retain_loss", step.retain, method.retain_loss),
        ):
            if not clips:
                continue
            clips = by_length(clips)

            def compute(part: Sequence[Clip], name: str = name, loss_of: LossOf = loss_of) -> Tensor:
                batch = Batch.of(part, self.engine.backend.device, noise_index=self.state.step + 1)
                with self.engine.autocast():
                    losses = loss_of(step, batch)
                checks.check_loss(method, name, losses)
                if losses.shape != (len(batch),):
                    raise PluginError(
                        f"method {method.spec.name!r}: {name} returned shape {tuple(losses.shape)} for {len(batch)} "
                        "clips, and must return one loss per clip"
                    )
                return losses

            def add(name: str = name, clips: Sequence[Clip] = clips, compute: Compute = compute) -> float:
                if clipping is not None:
                    return clipping.add(name, compute, clips, micro)
                total = 0.0
                for part in distributed.batches(clips, micro):
                    loss = compute(part or clips[:1]).sum() / len(clips)
                    if not part:  # this process has no clip left, and draws the same random numbers as the others
                        loss = 0 * loss
                    loss.backward()
                    total += loss.item()
                return total

            sums[name] = self.rules.add(name, add, self.state.retain_weight)
        penalty = method.penalty(step)
        if penalty is not None:
            checks.check_loss(method, "penalty", penalty)
            penalty = penalty / distributed.size()  # every process computes it
            penalty.backward()
            sums["penalty"] = penalty.item()
        return sums

    def _update(self, step: Step, losses: Mapping[str, float]) -> float:
        """Update the weights, or skip a step that is not finite; the norm of the gradient before it is clipped."""
        engine, state = self.engine, self.state
        masks.mask_gradients(self.module, engine._masks)
        norm = float(sharding.whole(torch.nn.utils.clip_grad_norm_(self.weights, self.options.max_grad_norm)))
        if math.isfinite(norm) and all(math.isfinite(value) for value in losses.values()):
            if engine.weight_type == "bf16":
                bf16_weights.step(self.optimizer)
            else:
                self.optimizer.step()
            with torch.no_grad():
                self.method.after_step(step)
            masks.restore_masked(self.module, engine._masks, self.best)
            if self.schedule.averages(state.step):
                self.average.update()
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            state.skipped_steps += 1
            if self.bad_steps == MAX_BAD_STEPS:
                load_weights(self.module, self.best, self.trained)
                raise EncoreError(
                    f"the loss was not finite for {MAX_BAD_STEPS} steps in a row (step {state.step})",
                    f"give an --lr below {max(self.peaks):.2g}"
                    + (", or use --precision fp32" if engine.precision == "bf16" else ""),
                )
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # ------------------------------------------------------------------------------------------- between steps

    def _restart_if_lost(self) -> bool:
        """Restart from the base at half of the peak, where memorised retain stays lost."""
        self.module.eval()
        step = self.state.step
        if not self.schedule.restart_if_lost(step, self.engine.monitor.has_lost_memorised()):
            return False
        load_weights(self.module, self.best, self.trained)  # the base's, as there was no snapshot since
        self.optimizer.state.clear()
        self.engine.record({"event": "restarted", "step": step, "peak_share": self.schedule.peak_share})
        return True

    def _snapshot_ends_run(self, step: Step, seconds: float) -> bool:
        """Take a snapshot, and keep the weights if they are the best; whether an adaptive run ends with it."""
        engine, state, options = self.engine, self.state, self.options
        if state.decay.begin is None and options.schedule == "adaptive":
            state.best = None  # at the full rate, retain has not recovered yet
        self.module.eval()
        with self.average.applied():
            snapshot = engine.monitor.snapshot()
            over = self.schedule.is_done(snapshot, state.step, seconds, lambda: self._is_ready(step))
            # An adaptive run keeps the weights it ends with: an earlier score may be better by chance.
            latest = over or options.select == "last"
            if latest or state.best is None or snapshot.rank(options.stop) <= state.best.rank(options.stop):
                state.best, self.best = snapshot, copied_weights(self.module, self.trained)
        self.latest, state.harm = snapshot, snapshot.harm
        weighed = {"retain_weight": state.retain_weight} if options.retain_budget is not None else {}
        engine.record({**self._place(), "snapshot": snapshot.as_dict(), **weighed})
        state.retain_weight = self.rules.next_retain_weight(state.retain_weight, engine.monitor.first, snapshot)
        return over

    def _is_ready(self, step: Step) -> bool:
        return distributed.first(self.method.ready(step))

    def _drop_finished_tracks(self) -> bool:
        """Leave out the forget tracks that the last snapshot has at their targets; whether no work is left."""
        method = self.method
        if self.options.stop != "target" or not self.latest.target_nll or not method.uses_forget:
            return False
        clips = enumerate(self.engine.clips.forget)
        self.state.pending = [i for i, clip in clips if not self.latest.reached(clip.track)]
        return not self.state.pending and (self.latest.retain_ok or not (self.uses_retain or method.uses_penalty))

    # ------------------------------------------------------------------------------------- checkpoints and records

    def _resume(self) -> None:
        """Continue from the newest checkpoint of this loop, where there is one."""
        engine, state = self.engine, self.state
        best = self.checkpoints.load(state)
        if best is not None:
            self.best = best
            engine.outcome.earlier_seconds += state.seconds
            engine.outcome.tokens += state.tokens
            engine.record({"event": "resumed", "phase": engine._phase, "step": state.step})

    def _save_if_due(self) -> None:
        """Write a checkpoint where it is time, or a process received a signal.

        Raises:
            Interrupted: one did.
        """
        engine, state = self.engine, self.state
        due = _now() - self.last_checkpoint >= self.options.checkpoint_seconds
        signal, due_anywhere = map(int, distributed.largest([engine.stop.number or 0, due]))
        if not signal and not due_anywhere:
            return
        state.forget_queue, state.retain_queue = self.forget_draw.queue, self.retain_draw.queue
        state.seconds, state.tokens = self._seconds(), engine.outcome.tokens
        if self.checkpoints.save(state, self.best):
            engine.record({"event": "checkpoint", "phase": engine._phase, "step": state.step})
        self.last_checkpoint = _now()
        if signal:
            raise Interrupted(signal)

    def _seconds(self) -> float:
        """Duration of the run so far, over all processes."""
        return self.engine.outcome.earlier_seconds + _now() - self.engine.started

    def _place(self) -> dict[str, Any]:
        return {"phase": self.engine._phase, "step": self.state.step, "of": self.schedule.steps}

    def _record_step(self, losses: Mapping[str, float], norm: float) -> None:
        figures = {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": norm, **losses}
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.engine.record({**self._place(), **finite})

    def _set_outcome(self) -> None:
        outcome, state = self.engine.outcome, self.state
        if state.decay.begin is not None and state.step > state.decay.begin:
            outcome.chosen["steps"] = (
                f"{state.step}: the rate decayed from step {state.decay.begin} over {state.decay.steps} steps, when "
                "the forget tracks were near their target NLLs or time was short"
            )
        if self.options.retain_budget is not None:
            outcome.chosen["retain_weight"] = (
                f"{state.retain_weight:.3g}: that of the retain loss after the last dual step"
            )
        if state.decay.halvings and "lr" in outcome.chosen:
            outcome.chosen["lr"] += (
                f", times {self.schedule.peak_share:g}, with which the run restarted after step "
                f"{state.decay.restarted_at}, when memorised retain was lost"
            )
        outcome.steps += state.step
        outcome.skipped_steps += state.skipped_steps
        outcome.best = state.best
        outcome.micro_batch_size = state.micro_batch_size
        if state.best is not None and state.best.target_nll:
            outcome.reached_target = all(state.best.reached(clip.track) for clip in self.engine.clips.forget)


def _now() -> float:
    import time

    return time.monotonic()
