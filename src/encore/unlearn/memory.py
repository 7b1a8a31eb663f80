"""Memory that a run holds, by its settings, computed from sizes: what would make a run fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from encore.api import Backend, Batch, Clip, LossMethod, Method
from encore.errors import EncoreError, UsageError
from encore.unlearn import bf16_weights
from encore.unlearn.activations import checkpointed
from encore.unlearn.adapter import Adapter, adapter_size, refuse_unadaptable
from encore.unlearn.config import Lora, OptimizerStates, RunConfig, WeightType
from encore.unlearn.eight_bit import check_bitsandbytes
from encore.unlearn.step_rules import held_copies

FLOAT = 4  # bytes; weights, gradients and moments are float32 where nothing else is asked for
MOMENTS = 2  # of AdamW
BYTES = dict(zip(get_args(OptimizerStates), (FLOAT, 1), strict=True))  # of a moment; scales of 8-bit blocks are few


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of a run, at the end of a forward pass.

    Args:
        weights: the model's trainable part.
        training: gradient and moments of each trained weight, the rest of its float32 value where it is in bfloat16,
            and, on the CPU, its best and averaged values.
        reference: the frozen copy of the base, and other frozen models of the method (`Method.frozen_copies`).
        activations: tensors that autograd keeps for the backward pass of a micro-batch.
    """

    weights: int
    training: int
    reference: int
    activations: int

    def split(self, processes: int) -> Memory:
        """Memory of one of several processes that split weights and training state (`--fsdp`)."""
        weights, training = (-(-part // processes) for part in (self.weights, self.training))
        return Memory(weights, training, self.reference, self.activations)

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.training + self.reference + self.activations


@dataclass(frozen=True)
class Settings:
    """Settings that memory depends on; without an adapter (`lora`), a run trains all weights."""

    lora: Lora | None = None
    checkpoint_activations: bool = False
    weights: WeightType = "fp32"
    optimizer_states: OptimizerStates = "fp32"

    @classmethod
    def of(cls, request: RunConfig, *, checkpoint_activations: bool = False) -> Settings:
        """The settings of a configuration; whether activations are checkpointed may follow from the model."""
        types: Any = {"weights": request.weights, "optimizer_states": request.optimizer_states}
        return cls(request.lora, checkpoint_activations, **types)

    @property
    def flags(self) -> str:
        """The flags of `encore forget` that choose it."""
        flags = {
            "--adapter lora": self.lora is not None,
            "--checkpoint-activations on": self.checkpoint_activations,
            f"--weights {self.weights}": self.weights != "fp32",
            f"--optimizer-states {self.optimizer_states}": self.optimizer_states != "fp32",
        }
        return " ".join(flag for flag, used in flags.items() if used)


def held(backend: Backend, method: Method, settings: Settings) -> Memory:
    """The memory of a run of a method that trains, without activations, from the numbers of weights.

    Args:
        backend: the model, without an adapter.
        method: its options and needs.
        settings: of the run.

    Raises:
        UsageError: the adapter fits no layer.
    """
    weights = list(backend.module.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    model, count = _bytes(weights, settings.weights), sum(weight.numel() for weight in trained)
    gradient, adapter = _bytes(trained, settings.weights), 0
    remainder = FLOAT * count - gradient
    if settings.lora is not None:
        count = adapter_size(backend.module, settings.lora)
        gradient, adapter, remainder = FLOAT * count, FLOAT * count, 0
    copies = 1 + (getattr(method.options, "schedule", "") == "adaptive") if backend.device.type == "cpu" else 0
    copies += held_copies(method.options)
    copies += (1 + 1 + MOMENTS) * method.trained_copies  # each in float32, with its gradient and moments
    training = gradient + remainder + (MOMENTS * BYTES[settings.optimizer_states] + copies * FLOAT) * count
    frozen = method.frozen_copies + ("reference" in method.spec.needs and settings.lora is None)
    return Memory(model + adapter, training, frozen * model, 0)


def memories(
    backend: Backend, method: Method, clips: Sequence[Clip], choices: Sequence[Settings], *, bf16: bool
) -> Iterator[tuple[Settings, Memory]]:
    """The memory of a run of a method that trains, with each of some settings; the backend is left as it is.

    Each is computed when it is requested; activations are measured once per kind of model.

    Args:
        backend: the model.
        method: its options and needs.
        clips: the run's; the longest is what activations are computed of, by one forward pass.
        choices: settings of the run, and others.
        bf16: whether autocast is on.

    Raises:
        EncoreError: the method can't train an adapter or bfloat16 weights, or the model's blocks can't be checkpointed,
            as the first settings have it. Of the others those that can't be used are left out.
    """
    longest = max(clips, key=lambda clip: clip.codes.shape[-1])
    options = method.options
    micro_batch = min(
        getattr(options, "micro_batch_size", 8),
        max(getattr(options, "forget_batch_size", 0), getattr(options, "batch_size", 0), 1),
    )
    measured: dict[tuple[Lora | None, WeightType, bool], int] = {}
    for settings in choices:
        kind = settings.lora, settings.weights, settings.checkpoint_activations
        try:
            check(method, settings)
            if kind not in measured:
                with _as_in_the_run(backend, settings):
                    autocast = bf16 or settings.weights == "bf16"
                    everything = measured.get((*kind[:2], False))
                    if everything is None:
                        everything = saved_bytes(backend, [longest], bf16=autocast)
                        measured[*kind[:2], False] = everything
                    if settings.checkpoint_activations:
                        inputs = saved_bytes(backend, [longest], bf16=autocast, checkpoint_activations=True)
                        # A checkpointed block's own activations exist one block at a time, when it is run again.
                        measured[kind] = inputs + (everything - inputs) // len(backend.blocks)
            found = replace(held(backend, method, settings), activations=micro_batch * measured[kind])
        # peft is missing, the method or the model does not allow it, or a copy of the model does not fit
        except (EncoreError, torch.OutOfMemoryError):
            if settings == choices[0]:
                raise
            continue
        yield settings, found


def check(method: Method, settings: Settings) -> None:
    """Check that a method can run with settings.

    Raises:
        UsageError: it can't train an adapter or bfloat16 weights, or has no AdamW whose states can be in 8 bits.
        MissingExtraError: bitsandbytes is needed, and not installed.
    """
    if settings.lora is not None:
        refuse_unadaptable(method)
    elif settings.weights == "bf16":
        bf16_weights.check(method)
    if settings.optimizer_states == "8bit":
        if getattr(method.options, "optim", "") in ("", "sign"):
            raise UsageError(
                f"--optimizer-states 8bit is an AdamW, and this run of {method.spec.name!r} has none",
                "leave --optimizer-states out",
            )
        check_bitsandbytes()


@contextmanager
def _as_in_the_run(backend: Backend, settings: Settings) -> Iterator[None]:
    """Inside the context the model has the adapter and the type of weights of a run."""
    adapter = Adapter(backend, settings.lora, seed=0) if settings.lora is not None else None
    names = () if adapter is None else adapter.parameters.keys()
    try:
        halved = bf16_weights.bf16_weights(backend.module, names, to_disk=False)
        with halved if settings.weights == "bf16" else nullcontext():
            yield
    finally:
        if adapter is not None:
            adapter.remove()


def saved_bytes(backend: Backend, clips: Sequence[Clip], *, bf16: bool, checkpoint_activations: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass of the loss of clips, in one micro-batch.

    Args:
        backend: the model, with or without an adapter.
        clips: at least one.
        bf16: whether autocast is on.
        checkpoint_activations: whether the blocks keep their inputs only.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in backend.module.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; the tensors are held, so that no address is used twice

    def count(tensor: Tensor) -> None:  # no backward pass follows, so that the graph need not hold anything
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if checkpoint_activations:
            stack.enter_context(checkpointed(backend.blocks))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing))
        stack.enter_context(torch.autocast(backend.device.type, dtype=torch.bfloat16, enabled=bf16))
        backend.losses(Batch.of(clips, backend.device))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def smaller(settings: Settings, method: Method, *, fsdp: bool = False) -> list[Settings]:
    """Other settings of a run that take less memory: each keeps what the run has already.

    Args:
        settings: those of the run.
        method: its method.
        fsdp: whether the run splits its weights over processes.
    """
    if not isinstance(method, LossMethod):
        return []
    lora = settings.lora or Lora()
    changes = (
        {"checkpoint_activations": True},
        {"lora": lora},
        {"lora": lora, "checkpoint_activations": True},
        {"lora": lora, "checkpoint_activations": True, "weights": "bf16"},
        {"checkpoint_activations": True, "weights": "bf16", "optimizer_states": "8bit"},
    )
    possible = changes[:1] if fsdp else changes  # what the others change can't be combined with --fsdp
    others = [replace(settings, **change) for change in possible]  # type: ignore[arg-type]
    return [other for other in dict.fromkeys(others) if other != settings]


def available_bytes(device: torch.device) -> int | None:
    """Memory of a device that is free now; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.exists():
        available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        return int(available[1]) * 1024 if available else None
    return None


def _bytes(weights: Sequence[nn.Parameter], kind: WeightType) -> int:
    """Bytes of weights; matrices may be in bfloat16."""
    return sum(weight.numel() * (2 if kind == "bf16" and weight.ndim > 1 else FLOAT) for weight in weights)
