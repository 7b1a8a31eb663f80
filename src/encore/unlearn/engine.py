"""One training loop for every loss method, and the session that edit methods work in.

The loop owns the optimiser, precision, micro-batches, snapshots, stopping, checkpoints and guards. A method only
defines the loss of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
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
        before: the base model.
        best: the model that the run ends with.
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
        self._average = WeightAverage(backend.module)
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
        with self._autocast():
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

    # ----------------------------------------------------------------------------------------------------- the loop

    def train(self, method: LossMethod) -> None:
        """Run the loop; ends with the best weights in the backend."""
        options, module = method.options, self.backend.module
        peak = options.lr if options.lr is not None else self._lr
        if peak is None:
            raise PluginError(f"method {method.spec.name!r} has no learning rate: set one in Options or in prepare")
        uses_retain = "retain" in method.spec.needs and bool(self._retain)
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        if not self.fsdp:
            distributed.copy_first(weights)
        rules = StepRules(method, module, self._masks, self.generator)
        optimizer = rules.optimizer(peak)
        if self.optimizer_states == "8bit":
            optimizer = eight_bit(optimizer, method.spec.name)
        peaks = [group["lr"] for group in optimizer.param_groups]
        state = LoopState(pending=list(range(len(self.clips.forget))), micro_batch_size=options.micro_batch_size)
        clipping = None
        if options.per_track_clip is not None:
            clipping = TrackClipping(module, options.per_track_clip, self.generator, self.record)
        trained = None if self.adapter is None else self.adapter.parameters.keys()
        best = copied_weights(module, trained)
        self._average = WeightAverage(module, trained)
        self._phase += 1
        torch.manual_seed(self.seed)  # dropout draws from torch's own generator
        checkpoints = LoopCheckpoints(
            self.checkpoints, self._phase, self.backend, method, optimizer, self._average, self.generator
        )
        if (resumed := checkpoints.load(state)) is not None:
            best = resumed
            self.outcome.earlier_seconds += state.seconds
            self.outcome.tokens += state.tokens
            self.record({"event": "resumed", "phase": self._phase, "step": state.step})
        distributed.vary_dropout(state.step)
        forget_draw = ShuffledSampler(self.generator, state.forget_queue)
        retain_draw = ShuffledSampler(self.generator, state.retain_queue)
        schedule = Schedule(options, state.decay, forgets=bool(self.clips.forget))
        last_checkpoint = _now()
        bad = 0
        while state.step < schedule.steps:
            signal, due = self._interruption(_now() - last_checkpoint >= options.checkpoint_seconds)
            if signal or due:
                state.forget_queue, state.retain_queue = forget_draw.queue, retain_draw.queue
                state.seconds, state.tokens = self._seconds(), self.outcome.tokens
                if checkpoints.save(state, best):
                    self.record({"event": "checkpoint", "phase": self._phase, "step": state.step})
                last_checkpoint = _now()
                if signal:
                    raise Interrupted(signal)
            lr_share = schedule.share(state.step)
            for group, group_peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = group_peak * schedule.peak_share * lr_share
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
                forget or (), state.step, retain or (),
            )  # fmt: skip
            drawn = self.generator.get_state()
            while True:
                losses, short = dict[str, float](), False
                try:
                    losses = self._backward(method, step, forget, retain, state, clipping, rules)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not _out_of_memory(error) or state.micro_batch_size == 1 or self.fsdp:
                        raise
                    short = True
                if not any(distributed.largest([short])):
                    break
                optimizer.zero_grad(set_to_none=True)
                self.generator.set_state(drawn)
                state.micro_batch_size = max(1, state.micro_batch_size // 2)
                self.record({"event": "out of memory", "step": state.step, "micro_batch_size": state.micro_batch_size})
            losses = dict(zip(losses, distributed.totals([*losses.values()]), strict=True))
            if not self.fsdp:
                distributed.add_gradients(weights)
            if state.step == 0 and phase == "both":
                checks.check_gradients(method, self.backend.module, optimizer, self._masks)
            distributed.synchronise(self.generator)  # a loss may draw by the size of its batch
            masks.mask_gradients(module, self._masks)
            norm = float(sharding.whole(torch.nn.utils.clip_grad_norm_(weights, options.max_grad_norm)))
            if math.isfinite(norm) and all(math.isfinite(value) for value in losses.values()):
                if self.weight_type == "bf16":
                    bf16_weights.step(optimizer)
                else:
                    optimizer.step()
                with torch.no_grad():
                    method.after_step(step)
                masks.restore_masked(module, self._masks, best)
                if schedule.averages(state.step):
                    self._average.update()
                bad = 0
            else:
                bad += 1
                state.skipped_steps += 1
                if bad == MAX_BAD_STEPS:
                    load_weights(module, best, trained)
                    raise EncoreError(
                        f"the loss was not finite for {MAX_BAD_STEPS} steps in a row (step {state.step})",
                        "lower --lr, or use --precision fp32; the last good checkpoint is kept",
                    )
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            self.outcome.tokens += sum(clip.codes.numel() for clip in (*(forget or ()), *(retain or ())))
            seconds = distributed.first(self._seconds())
            late = options.max_seconds is not None and seconds >= options.max_seconds
            self.record(
                {"phase": self._phase, "step": state.step, "of": schedule.steps, "lr": optimizer.param_groups[0]["lr"]}
                | {"grad_norm": norm if math.isfinite(norm) else None}
                | {name: value if math.isfinite(value) else None for name, value in losses.items()}
            )
            if schedule.is_watched(state.step, seconds):
                module.eval()
                if self.monitor.has_lost_memorised():
                    schedule.begin_again(state.step)
                    load_weights(module, best, trained)  # the base's, as there was no snapshot since
                    optimizer.state.clear()
                    self.record({"event": "begun again", "step": state.step, "peak_share": schedule.peak_share})
                    continue
            since = state.step - state.decay.start
            if since % options.eval_every == 0 or late or state.step == schedule.steps:
                if state.decay.begin is None and options.schedule == "adaptive":
                    state.best = None  # at the full rate, retain has not recovered yet
                module.eval()
                with self._average.applied():
                    snapshot = self.monitor.snapshot()
                    over = schedule.is_done(snapshot, state.step, seconds, partial(_ready, method, step))
                    # An adaptive run keeps the weights it ends with: an earlier score may be better by chance.
                    latest = over or options.select == "last"
                    if latest or state.best is None or snapshot.rank(options.stop) <= state.best.rank(options.stop):
                        state.best, best = snapshot, copied_weights(module, trained)
                weighed = {"retain_weight": state.retain_weight} if options.retain_budget is not None else {}
                self.record(
                    {"phase": self._phase, "step": state.step, "of": schedule.steps, "snapshot": snapshot.as_dict()}
                    | weighed
                )
                state.retain_weight = rules.next_retain_weight(state.retain_weight, self.monitor.first, snapshot)
                if late or over:
                    break
                if options.stop == "target" and self.monitor.holdout_nll is not None and method.uses_forget:
                    state.pending = [i for i, clip in enumerate(self.clips.forget) if not snapshot.reached(clip.track)]
                    if not state.pending and (snapshot.retain_ok or not (uses_retain or method.uses_penalty)):
                        break
        load_weights(module, best, trained)
        module.eval()
        if state.decay.begin is not None and state.step > state.decay.begin:
            self.outcome.chosen["steps"] = (
                f"{state.step}: the rate decayed from step {state.decay.begin} over {state.decay.steps} steps, when "
                "the forget tracks were near their target NLLs or time was short"
            )
        if options.retain_budget is not None:
            self.outcome.chosen["retain_weight"] = (
                f"{state.retain_weight:.3g}: that of the retain loss after the last dual step"
            )
        if state.decay.halvings and "lr" in self.outcome.chosen:
            self.outcome.chosen["lr"] += (
                f", times {schedule.peak_share:g}, with which the run began again after step {state.decay.start}, when "
                "memorised retain was lost"
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
        state: LoopState,
        clipping: TrackClipping | None,
        rules: StepRules,
    ) -> dict[str, float]:
        """Add the gradients of mean(forget_loss) + mean(retain_loss) + penalty, a micro-batch at a time."""
        sums, micro = {}, state.micro_batch_size
        for name, clips, loss_of in (
            ("forget_loss", forget, method.forget_loss),
            ("retain_loss", retain, method.retain_loss),
        ):
            if not clips:
                continue
            clips = by_length(clips)

            def compute(part: Sequence[Clip], name: str = name, loss_of: LossOf = loss_of) -> Tensor:
                batch = Batch.of(part, self.backend.device, noise_index=state.step + 1)
                with self._autocast():
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

            sums[name] = rules.add(name, add, state.retain_weight)
        penalty = method.penalty(step)
        if penalty is not None:
            checks.check_loss(method, "penalty", penalty)
            penalty = penalty / distributed.size()  # every process computes it
            penalty.backward()
            sums["penalty"] = penalty.item()
        return sums

    def _interruption(self, due: bool) -> tuple[int, bool]:
        """The signal that any process received, 0 for none, and whether a checkpoint is due in any."""
        number, due_anywhere = distributed.largest([self.stop.number or 0, due])
        return int(number), bool(due_anywhere)

    def _seconds(self) -> float:
        """Duration of the run so far, over all processes."""
        return self.outcome.earlier_seconds + _now() - self.started

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
                if _out_of_memory(error):
                    raise
                raise UsageError(
                    f"a {self.backend.name} model can't compute with bfloat16 weights: {one_line(error)}",
                    "leave --weights out",
                ) from error
            yield

    def _autocast(self) -> AbstractContextManager[Any]:
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
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or micro_batch_size == 1:
                    raise
                micro_batch_size = micro_batch_size // 2
                self.record({"event": "out of memory", "micro_batch_size": micro_batch_size})
        distributed.add(fisher.values.values())
        return {name: value / len(clips) for name, value in fisher.values.items()}


def _ready(method: LossMethod, step: Step) -> bool:
    return distributed.first(method.ready(step))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _now() -> float:
    import time

    return time.monotonic()
