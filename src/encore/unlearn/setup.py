"""What `encore forget` and `encore train` settle in the same way: device, precision, adapter, memory, processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from torch import nn

from encore import distributed
from encore.api import Backend, Method
from encore.errors import UsageError
from encore.plugins import backends
from encore.store.dates import utc_now
from encore.store.environment import hardware, peak_bytes, pick_device, pick_precision
from encore.store.model_name import model_name
from encore.store.run_folder import RunFolder
from encore.unlearn import sharding, step_rules
from encore.unlearn.activations import Setting, uses_checkpoints
from encore.unlearn.adapter import (
    adapter_size,
    check_peft,
    refuse_unadaptable,
    unadaptable_weights,
    with_adapter_rates,
)
from encore.unlearn.config import ForgetConfig, RunConfig, TrainConfig
from encore.unlearn.engine import Engine, TrainResult

MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True)
class Setup(Generic[MethodT]):
    """What a run is done with, once the model is known.

    Args:
        method: with the learning rates of an adapter, where there is one.
        precision: "fp32", or "bf16" for autocast.
        checkpoint_activations: whether activations are computed again in the backward pass.
        adapter_rates: the learning rates that an adapter changed, by option.
        notes: one sentence each for the user.
    """

    method: MethodT
    precision: Literal["fp32", "bf16"]
    checkpoint_activations: bool
    adapter_rates: Mapping[str, float]
    notes: tuple[str, ...] = ()


def check_settings(request: RunConfig) -> None:
    """Check device, precision, model family and adapter, before any track is searched for.

    Raises:
        UsageError: one of them can't be used.
        MissingExtraError: peft is needed, and not installed.
    """
    pick_precision(request.precision, pick_device(request.device))
    backends().get(request.backend)
    check_choice("--checkpoint-activations", request.checkpoint_activations, get_args(Setting))
    if request.lora is not None:
        check_peft()
    if request.shard:
        if distributed.size() == 1:
            raise UsageError("--shard splits the model over processes, and there is one", "start it with torchrun")
        if request.lora is not None:
            raise UsageError("--shard splits the weights that are trained, and an adapter has few", "leave --shard out")


def check_method(request: RunConfig, method: Method) -> None:
    """Check that a method can train an adapter, or a split model, where that is asked for, and its options.

    Raises:
        UsageError: it can't, or its options do not fit it.
    """
    step_rules.check(method)
    if request.shard:
        sharding.check(method)
    if request.lora is not None:
        refuse_unadaptable(method)


def settle(
    request: RunConfig, method: MethodT, backend: Backend, default_rates: Mapping[str, float] | None = None
) -> Setup[MethodT]:
    """What follows from the model.

    Args:
        request: the configuration.
        method: has not run yet.
        backend: the model, without an adapter.
        default_rates: learning rates that a method uses where its option is None, by option.

    Raises:
        UsageError: the adapter fits no layer, or activations can't be checkpointed.
    """
    weights = list(backend.module.parameters())
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    rates: Mapping[str, float] = {}
    if request.lora is not None:
        trained = adapter_size(backend.module, request.lora)
        method, rates = with_adapter_rates(method, backend.module, request.lora, default_rates)
    setting: Any = request.checkpoint_activations
    checkpoints = uses_checkpoints(setting, backend, method, trained=trained, adapter=request.lora is not None)
    checkpoints = distributed.first(checkpoints)
    notes = []
    if checkpoints and setting == "auto":
        notes.append(
            "activations are computed again in the backward pass, since the weights and their optimiser take more than "
            "half of the memory; --checkpoint-activations off keeps them"
        )
    if request.lora is not None and (left := unadaptable_weights(backend.module)):
        notes.append(
            f"the adapter leaves {len(left)} matrices as they are, since they are not weights of linear layers: "
            f"{left[0]}{' and others' if len(left) > 1 else ''}"
        )
    precision = distributed.first(pick_precision(request.precision, pick_device(request.device), total))
    return Setup(method, precision, checkpoints, rates, tuple(notes))


def disk_bytes(request: RunConfig, backend: Backend, *, checkpoints: int, copies: int) -> int:
    """Largest size of a run folder.

    Args:
        request: the configuration.
        backend: the model, without an adapter.
        checkpoints: how many there are at most.
        copies: of the trained weights in each.
    """
    weights = trained = _bytes(backend.module)
    if request.lora is not None:
        trained = 4 * adapter_size(backend.module, request.lora)
    return copies * checkpoints * trained + weights + sum(map(_bytes, backend.frozen().values()))


def run_folder(request: ForgetConfig | TrainConfig) -> AbstractContextManager[RunFolder | None]:
    """The folder, which one process writes."""
    return RunFolder(request.out, resume=request.resume) if distributed.rank() == 0 else nullcontext()


def write_model(folder: RunFolder, request: RunConfig, engine: Engine, card: str) -> None:
    """Write a run's `model`, and its `adapter` where it is to be kept.

    Args:
        folder: of the run.
        request: the configuration.
        engine: has run.
        card: the model's `README.md`.
    """
    with folder.staged("model") as staging:
        engine.backend.save(staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
    if engine.adapter is not None and request.keep_adapter:
        with folder.staged("adapter") as staging:
            engine.adapter.save(staging, base=model_name(request.model), revision=request.revision)


def costs_json(stage: str, seconds: Mapping[str, float], outcome: TrainResult, device: str) -> dict[str, Any]:
    """What a finished run took: the entries `timings`, `cost` and `finished` of `run.json`.

    Args:
        stage: the entry of `seconds` that is the run itself.
        seconds: duration of each stage.
        outcome: of the engine.
        device: of the run.
    """
    timings = {name: round(value, 3) for name, value in seconds.items()}
    cost = {
        "seconds": timings[stage],
        "peak_bytes": peak_bytes(device),
        "tokens_per_second": round(outcome.tokens / seconds[stage], 1),
    }
    return {"timings": timings, "cost": cost, "finished": utc_now()}


def hardware_json(device: str) -> dict[str, Any]:
    """The entry `hardware` of `run.json`: that of the first process, with the number of processes if there are more."""
    processes = {"processes": distributed.size()} if distributed.size() > 1 else {}
    return {**hardware(device), **processes}


def with_adapter_origin(origins: Mapping[str, str], rates: Mapping[str, float]) -> dict[str, str]:
    """Origins of options: "adapter" for the rates that an adapter changed."""
    scaled = [name for name in rates if origins.get(name, "default") == "default"]
    return {**origins, **dict.fromkeys(scaled, "adapter")}


def check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    """Check the value of a flag.

    Raises:
        UsageError: it is none of the choices.
    """
    if value not in choices:
        raise UsageError(f"{flag} can't be {value!r}", f"give {', '.join(choices[:-1])} or {choices[-1]}")


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
