"""What `encore forget` and `encore train` settle in the same way: device, precision, adapter, memory, processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from torch import nn

from encore import distributed
from encore.api import Backend, Method
from encore.errors import UsageError
from encore.plugins import backends
from encore.reporter import Reporter
from encore.store import schemas
from encore.store.dates import utc_now
from encore.store.environment import hardware, peak_bytes, pick_device, pick_precision
from encore.store.model_name import model_name
from encore.store.run_folder import RunFolder, locked, read_json
from encore.unlearn import memory, sharding, step_rules
from encore.unlearn.activations import Setting, uses_checkpoints
from encore.unlearn.adapter import (
    adapter_size,
    check_peft,
    unadaptable_weights,
    with_adapter_rates,
)
from encore.unlearn.config import ForgetConfig, OptimizerStates, RunConfig, TrainConfig, WeightType
from encore.unlearn.eight_bit import check_bitsandbytes
from encore.unlearn.engine import Engine, Record, TrainResult
from encore.unlearn.memory import Settings
from encore.unlearn.records import check_other_run

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
    """Check device, precision, types, model family and adapter, before any track is searched for.

    Raises:
        UsageError: one of them can't be used.
        MissingExtraError: peft or bitsandbytes is needed, and not installed.
    """
    pick_precision(request.precision, pick_device(request.device))
    backends().get(request.backend)
    check_choice("--checkpoint-activations", request.checkpoint_activations, get_args(Setting))
    check_choice("--weights", request.weights, get_args(WeightType))
    check_choice("--optimizer-states", request.optimizer_states, get_args(OptimizerStates))
    if request.weights == "bf16" and request.precision == "fp32":
        raise UsageError("weights in bfloat16 are computed with in bf16, not in fp32", "leave --precision out")
    if request.optimizer_states == "8bit":
        check_bitsandbytes()
    if request.lora is not None:
        check_peft()
    if request.fsdp:
        if distributed.size() == 1:
            raise UsageError("--fsdp splits the model over processes, and there is one", "start it with torchrun")
        if request.lora is not None:
            raise UsageError("--fsdp splits the weights that are trained, and an adapter has few", "leave --fsdp out")
        for flag, value in (("--weights", request.weights), ("--optimizer-states", request.optimizer_states)):
            if value != "fp32":
                raise UsageError(f"{flag} {value} can't be combined with --fsdp", "leave one of them out")


def check_method(request: RunConfig, method: Method) -> None:
    """Check a method's options, and that it can run with an adapter, `--fsdp` and the types of numbers requested.

    Raises:
        UsageError: it can't, or its options do not fit it.
    """
    step_rules.check(method)
    if request.fsdp:
        sharding.check(method)
    memory.check(method, Settings.of(request))


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
    rates: Mapping[str, float] = {}
    if request.lora is not None:
        method, rates = with_adapter_rates(method, backend.module, request.lora, default_rates)
    setting: Any = request.checkpoint_activations
    held = memory.held(backend, method, Settings.of(request)).total
    checkpoints = distributed.first(uses_checkpoints(setting, backend, held))
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
    total = sum(weight.numel() for weight in backend.module.parameters())
    precision = distributed.first(pick_precision(request.precision, pick_device(request.device), total))
    if request.weights == "bf16":
        precision = "bf16"
    return Setup(method, precision, checkpoints, rates, tuple(notes))


def engine_settings(
    request: RunConfig, precision: Literal["fp32", "bf16"], checkpoint_activations: bool
) -> dict[str, Any]:
    """The arguments of `Engine` that the flags and `settle` decide on."""
    return {
        "seed": request.seed, "precision": precision, "checkpoint_activations": checkpoint_activations,
        "lora": request.lora, "weight_type": request.weights, "optimizer_states": request.optimizer_states,
        "fsdp": request.fsdp,
    }  # fmt: skip


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


def is_complete(request: ForgetConfig | TrainConfig) -> bool:
    """Whether the run to resume is complete."""
    return request.resume and (request.out / "run.json").exists()


def complete_run(request: ForgetConfig | TrainConfig, definition: Mapping[str, Any]) -> dict[str, Any] | None:
    """Contents of `run.json` where the run to resume is already complete; else None.

    Files left by a process that was killed at the very end are removed.

    Args:
        request: the configuration.
        definition: entries of `request.json` that must be the same.

    Raises:
        UsageError: it is another run.
        InputError: a file of it can't be read.
        EncoreError: another process uses the folder.
    """
    if not is_complete(request):
        return None
    with locked(request.out):
        run: dict[str, Any] = read_json(request.out / "run.json", schemas.Run)
        check_other_run(request.out / "request.json", definition)
    return run


def recorder(folder: RunFolder | None, reporter: Reporter, stage: str, started: float, track: Record | None) -> Record:
    """The `record` of an engine: lines go to `log.jsonl`, to a tracker, and to the progress bar.

    Args:
        folder: of the run; None in a process that writes nothing.
        reporter: receives progress.
        stage: name of the loop's progress.
        started: when the run started, by `time.monotonic`.
        track: receives each line, beside the log.
    """

    def record(line: Mapping[str, Any]) -> None:
        if folder:
            folder.log({"seconds": round(time.monotonic() - started, 3), **line})
            if track:
                track(line)
        if "of" in line:
            reporter.progress(line.get("stage", stage), line["step"], line["of"], line)

    return record


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
