"""Memory that a run holds, by its settings, computed from sizes: what would make a run fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, EditMethod, Method
from encore.errors import EncoreError
from encore.unlearn.activations import checkpointed
from encore.unlearn.adapter import Adapter, refuse_unadaptable
from encore.unlearn.config import Lora
from encore.unlearn.step_rules import held_copies

FLOAT = 4  # bytes; weights, gradients and moments are float32
MOMENTS = 2  # of AdamW


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of a run, at the end of a forward pass.

    Args:
        weights: the model's trainable part.
        training: gradient and moments of each trained weight, and, on the CPU, its best and averaged values.
        reference: the frozen copy of the base.
        activations: tensors that autograd keeps for the backward pass of a micro-batch.
    """

    weights: int
    training: int
    reference: int
    activations: int

    def split(self, processes: int) -> Memory:
        """Memory of one of several processes that split weights and training state (`--shard`)."""
        weights, training = (-(-part // processes) for part in (self.weights, self.training))
        return Memory(weights, training, self.reference, self.activations)

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.training + self.reference + self.activations


@dataclass(frozen=True)
class Settings:
    """Settings that memory depends on; None is a run that trains all weights."""

    lora: Lora | None = None
    checkpoint_activations: bool = False

    @property
    def flags(self) -> str:
        """The flags of `encore forget` that choose it."""
        flags = ["--adapter lora"] if self.lora else []
        return " ".join([*flags, *(["--checkpoint-activations on"] if self.checkpoint_activations else [])])


def memory_of(backend: Backend, method: Method, clips: Sequence[Clip], settings: Settings, *, bf16: bool) -> Memory:
    """The memory of a run of a method that trains. The backend is left as it is.

    Args:
        backend: the model.
        method: its options and needs.
        clips: the run's; the longest is what activations are computed of, by one forward pass.
        settings: of the run.
        bf16: whether autocast is on.

    Raises:
        EncoreError: the method can't train an adapter, or the model's blocks can't be checkpointed.
    """
    options = method.options
    weights = sum(weight.numel() for weight in backend.module.parameters()) * FLOAT
    micro_batch = min(
        getattr(options, "micro_batch_size", 8),
        max(getattr(options, "forget_batch_size", 0), getattr(options, "batch_size", 0), 1),
    )
    longest = max(clips, key=lambda clip: clip.codes.shape[-1])
    trained_module = backend.clone() if settings.lora else backend
    adapter = 0
    if settings.lora:
        refuse_unadaptable(method)
        parameters = Adapter(trained_module, settings.lora, seed=0).parameters
        adapter = sum(weight.numel() for weight in parameters.values()) * FLOAT
    activations = saved_bytes(
        trained_module, [longest], bf16=bf16, checkpoint_activations=settings.checkpoint_activations
    )
    trained = adapter or sum(w.numel() for w in backend.module.parameters() if w.requires_grad) * FLOAT
    copies = 1 + (getattr(options, "schedule", "") == "adaptive") if backend.device.type == "cpu" else 0
    reference = weights if "reference" in method.spec.needs and not settings.lora else 0
    copies += held_copies(options)
    return Memory(weights + adapter, (1 + MOMENTS + copies) * trained, reference, micro_batch * activations)


def saved_bytes(backend: Backend, clips: Sequence[Clip], *, bf16: bool, checkpoint_activations: bool = False) -> int:
    """Bytes that autograd keeps for the backward pass of the loss of clips, in one micro-batch.

    A checkpointed block's own activations exist one block at a time, when it is run again.

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

    def measured(checkpoints: bool) -> int:
        kept.clear()
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if checkpoints:
                stack.enter_context(checkpointed(backend.blocks))
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing))
            stack.enter_context(torch.autocast(backend.device.type, dtype=torch.bfloat16, enabled=bf16))
            backend.losses(Batch.of(clips, backend.device))
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        kept.clear()
        return size

    everything = measured(False)
    if not checkpoint_activations:
        return everything
    inputs = measured(True)
    return inputs + (everything - inputs) // len(backend.blocks)


def alternatives(
    backend: Backend,
    method: Method,
    clips: Sequence[Clip],
    settings: Settings,
    *,
    bf16: bool,
    now: Memory | None = None,
) -> dict[str, int]:
    """How much less memory other settings of the same run take, in bytes, by their flags; those that save some.

    Args:
        backend: the model, before the run.
        method: of the run.
        clips: of the run.
        settings: of the run.
        bf16: whether autocast is on.
        now: memory of the run with its own settings, where it was computed before.
    """
    if isinstance(method, EditMethod):
        return {}
    now = now or memory_of(backend, method, clips, settings, bf16=bf16)
    saved: dict[str, int] = {}
    for lora in dict.fromkeys((settings.lora, settings.lora or Lora())):
        for checkpoints in dict.fromkeys((settings.checkpoint_activations, True)):
            other = replace(settings, lora=lora, checkpoint_activations=checkpoints)
            if other == settings:
                continue
            try:
                less = now.total - memory_of(backend, method, clips, other, bf16=bf16).total
            # peft is missing, the method or the model does not allow it, or a copy of the model does not fit
            except (EncoreError, torch.OutOfMemoryError):
                continue
            if less > 0:
                saved[other.flags] = less
    return saved


def available_bytes(device: torch.device) -> int | None:
    """Memory of a device that is free now; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.exists():
        available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        return int(available[1]) * 1024 if available else None
    return None
