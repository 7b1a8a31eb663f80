"""Estimate time, memory and disk of a run: a few of its steps are measured on a copy of the model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from encore import distributed
from encore.api import Backend, Batch, LossMethod, Method
from encore.api.method import RETAIN_SAMPLE
from encore.data.encoded_tracks import clips_of
from encore.settings import cache_folder
from encore.store.environment import peak_bytes
from encore.unlearn.engine import Engine
from encore.unlearn.lr_schedule import usual_steps
from encore.unlearn.memory import Settings, available_bytes, memories, smaller
from encore.unlearn.run import Prepared
from encore.unlearn.sampling import Clips
from encore.unlearn.setup import engine_settings

TRIAL_STEPS, LEAST_STEPS = 40, 3
TRIAL_SECONDS = 12.0
"""As many steps as fit are measured: any random batch may need more memory than those before. With the default method
on the embedded model the peak grows from .70 GB (1 step) over .78 (10) and .90 (40) to 1.02 GB (all); see `_growth`."""
SOME = 64  # retain clips among which the longest is looked for


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a run.

    Args:
        seconds: duration of forgetting: preparation, steps and snapshots; None where no step was measured, since the
            run does not fit.
        peak_bytes: peak memory, as in `run.json`: of the process, or on a GPU of torch's allocations there.
        disk_bytes: largest size of the run folder.
        free_bytes: memory that the device has for it; None where the system does not say.
        alternatives: flags that make the run smaller -> its peak memory with them.
    """

    seconds: float | None
    peak_bytes: int
    disk_bytes: int
    free_bytes: int | None = None
    alternatives: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.free_bytes is None or self.peak_bytes <= self.free_bytes

    def __str__(self) -> str:
        sizes = f"{size(self.peak_bytes)} of memory, {size(self.disk_bytes)} of disk"
        return f"about {duration(self.seconds)}, {sizes}" if self.seconds is not None else sizes


class _TrialOver(Exception):
    """Ends a trial."""


def estimate(prepared: Prepared) -> Estimate:
    """Measure the first steps of a run on a copy of its model.

    How long a run with an adaptive schedule takes depends on what it forgets: `usual_steps` are expected.

    For a method that edits weights directly, the time is extrapolated from one forward and backward pass, and the
    memory from the tensors that such methods hold. A run that does not fit by the sizes of its tensors is not tried.
    """
    device = prepared.backend.device
    clips = Clips(*(clips_of(tracks) for tracks in (prepared.forget, prepared.retain, prepared.holdout)))
    if not clips.retain and "retain" in prepared.method.spec.needs:  # --retain self: as many clips will be generated
        clips.retain = clips.forget
    before = peak_bytes(str(device))
    free = available_bytes(device)
    if free is not None:
        free += before  # what this process holds already
    settings = Settings.of(prepared.request, checkpoint_activations=prepared.checkpoint_activations)
    some = [*clips.forget, *(clips.retain[i] for i in range(min(SOME, len(clips.retain))))]  # retain may be streamed
    seconds: float | None = None
    peak, savings, bf16 = before, dict[str, int](), prepared.precision == "bf16"
    if isinstance(prepared.method, LossMethod):
        choices = [settings, *smaller(settings, prepared.method, fsdp=prepared.request.fsdp)]
        sizes = memories(prepared.backend, prepared.method, some, choices, bf16=bf16)
        _, whole = next(sizes)
        memory = whole.split(distributed.size()) if prepared.request.fsdp else whole
        loaded = sum(weight.numel() * weight.element_size() for weight in prepared.backend.module.parameters())
        peak += memory.total - loaded
    if distributed.first(free is None or peak <= free):
        seconds, peak = _trial(prepared, clips)
    if isinstance(prepared.method, LossMethod):  # after the trial, whose peak is that of the process
        savings = {other.flags: whole.total - less.total for other, less in sizes if less.total < whole.total}
    lighter = {flags: peak - saved for flags, saved in sorted(savings.items(), key=lambda item: item[1])}
    return Estimate(seconds, max(before, peak), prepared.disk_bytes(), free, lighter)


def _trial(prepared: Prepared, clips: Clips) -> tuple[float, int]:
    """Seconds and peak memory of the run, from its first steps on a copy of its model."""
    backend = prepared.backend.clone()
    ends: list[float] = []
    peaks: list[int] = []

    def record(line: Mapping[str, Any]) -> None:
        if "grad_norm" in line:
            ends.append(time.monotonic())
            peaks.append(peak_bytes(str(backend.device)))
            over = len(ends) == TRIAL_STEPS or (len(ends) >= LEAST_STEPS and ends[-1] - started > TRIAL_SECONDS)
            if distributed.first(over):
                raise _TrialOver

    engine = Engine(
        backend, clips, fisher_folder=cache_folder() / "fisher", record=record,
        **engine_settings(prepared.request, prepared.precision, prepared.checkpoint_activations),
    )  # fmt: skip
    started = time.monotonic()
    engine.monitor.snapshot()
    snapshot_seconds = time.monotonic() - started
    method = type(prepared.method)(prepared.method.options)
    if isinstance(method, LossMethod):
        started = time.monotonic()
        with contextlib.suppress(_TrialOver):
            engine.run(method)
        seconds = _loop_seconds(method, started, ends, snapshot_seconds)
    else:
        seconds = _edit_seconds(method, backend, clips, snapshot_seconds)
    weights = sum(weight.numel() * weight.element_size() for weight in backend.module.parameters())
    peak = peak_bytes(str(backend.device))
    if isinstance(method, LossMethod):
        peak += _growth(peaks, usual_steps(method.options))
    # A run has no copy of the model, unlike the trial. An edit has Fisher diagonals and a trained copy.
    peak += -weights if isinstance(method, LossMethod) else 4 * weights
    return seconds, peak


def _loop_seconds(method: LossMethod, started: float, ends: list[float], snapshot_seconds: float) -> float:
    """Duration of a method whose first steps ended at these times, by `time.monotonic`."""
    options = method.options
    if len(ends) < 2:  # the whole run has at most one step
        return ends[-1] - started + 2 * snapshot_seconds if ends else 2 * snapshot_seconds
    between = (len(ends) - 1) // options.eval_every  # snapshots after the first step and before the last
    # The mean, since some steps do more than others, such as an attack.
    step_seconds = max(0.0, ends[-1] - ends[0] - between * snapshot_seconds) / (len(ends) - 1)
    preparation = max(0.0, ends[0] - started - step_seconds)
    steps = usual_steps(options)
    snapshots = steps // options.eval_every + 2  # the first one, and one at the end
    return preparation + steps * step_seconds + snapshots * snapshot_seconds


def _growth(peaks: list[int], steps: int) -> int:
    """By how much the peak of all steps exceeds that of the measured ones.

    The maximum of random draws grows with the logarithm of their number. The slope is taken from the second step on,
    when the optimiser's state exists.
    """
    if len(peaks) < LEAST_STEPS or steps <= len(peaks):
        return 0
    return int((peaks[-1] - peaks[1]) / math.log(len(peaks) / 2) * math.log(steps / len(peaks)))


def _edit_seconds(method: Method, backend: Backend, clips: Clips, snapshot_seconds: float) -> float:
    """Duration of a method that edits weights: a pass per clip for its Fisher, and the steps in its options."""
    options = method.options
    size = getattr(options, "micro_batch_size", 8)
    sample = [*clips.forget, *clips.retain[:size]][:size]
    seconds = []
    for _ in range(2):  # the first pass warms up
        started = time.monotonic()
        backend.losses(Batch.of(sample, backend.device)).sum().backward()
        seconds.append(time.monotonic() - started)
    clip_seconds = seconds[-1] / len(sample)
    passes = len(clips.forget) + min(len(clips.retain), RETAIN_SAMPLE) if "fisher" in method.spec.needs else 0
    per_step = min(getattr(options, "forget_batch_size", 0), len(clips.forget))
    if "retain" in method.spec.needs:
        per_step += getattr(options, "batch_size", 0)
    return (getattr(options, "steps", 0) * per_step + passes) * clip_seconds + 2 * snapshot_seconds


def duration(seconds: float) -> str:
    """Format seconds as "40 s", "5 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Format bytes as "82 MiB" or "3.0 GiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
