"""Experiment trackers: the figures of a run in TensorBoard or Weights & Biases.

Both are used directly: accelerate's trackers start a second TensorBoard run for the options, can't continue a Weights &
Biases run, and need the distributed state of accelerate.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from encore.errors import MissingExtraError, UsageError, one_line

Line = Mapping[str, Any]
Note = Callable[[str], None]


class Tracker(Protocol):
    """Receives the figures of a run."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Receive figures by name."""

    def close(self, failed: bool) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, folder: Path, options: Mapping[str, Any], offline: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_hparams(dict(options), {}, run_name=".")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandB:
    """A run of the project `encore`, or of WANDB_PROJECT; a resumed run is continued."""

    def __init__(self, folder: Path, options: Mapping[str, Any], offline: bool) -> None:
        import wandb

        request = (folder / "request.json").read_bytes()  # stays the same when the run is resumed
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "encore", name=folder.resolve().name, dir=str(folder),
            config=dict(options), id=hashlib.sha256(request).hexdigest()[:16], resume="allow",
            mode="offline" if offline else None,
            # Else it sends the command line, which may name a requester, and what is printed, which names tracks.
            settings=wandb.Settings(x_disable_meta=True, console="off"),
        )  # fmt: skip

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


TRACKERS: Mapping[str, Callable[[Path, Mapping[str, Any], bool], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
_INSTALL = {"tensorboard": 'pip install "encore-music[trackers]"', "wandb": 'pip install "wandb>=0.19"'}


def check_tracker(name: str) -> None:
    """Check that a tracker can be used.

    Raises:
        UsageError: there is no such tracker.
        MissingExtraError: its package is not installed.
    """
    if name not in TRACKERS:
        raise UsageError(f"there is no tracker {name!r}", f"one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise MissingExtraError(f"--tracker {name} needs {name}, which is not installed", _INSTALL[name])


@contextmanager
def tracking(
    name: str | None, folder: Path, options: Mapping[str, Any], note: Note, *, offline: bool = False
) -> Iterator[Callable[[Line], None]]:
    """A function that sends a line of `log.jsonl` to a tracker.

    A tracker that fails is noted once and receives nothing more; the run continues.

    Args:
        name: of the tracker; None sends nothing.
        folder: the run's folder, with `request.json`.
        options: hyperparameters of the run.
        note: receives a sentence for the user.
        offline: whether the tracker must not use the network.
    """
    tracker: Tracker | None = None

    def attempt(action: Callable[[Tracker], None]) -> None:
        nonlocal tracker
        try:
            if tracker is not None:
                action(tracker)
        except Exception as error:
            tracker = None
            note(f"{name} failed and receives nothing more: {one_line(error)}; log.jsonl has every figure")

    phase, steps, earlier = None, 0, 0  # each phase counts its steps from 1, a tracker counts through

    def send(line: Line) -> None:
        nonlocal phase, steps, earlier
        if "phase" not in line or "of" not in line:
            return
        if line["phase"] != phase:
            phase, earlier = line["phase"], earlier + steps
        steps = line["step"]
        figures = figures_of(line)
        attempt(lambda tracker: tracker.log(figures, earlier + steps))

    if name is not None:
        try:
            tracker = TRACKERS[name](folder, {key: _plain(value) for key, value in options.items()}, offline)
        except Exception as error:
            note(f"{name} can't be used: {one_line(error)}; log.jsonl has every figure")
    failed = True
    try:
        yield send
        failed = False
    finally:
        attempt(lambda tracker: tracker.close(failed))


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def figures_of(line: Line) -> dict[str, float]:
    """The figures of a step or a snapshot; of tracks their mean, never their names."""
    snapshot = line.get("snapshot")
    if snapshot is None:
        numbers = {key: value for key, value in line.items() if key not in ("phase", "step", "of")}
        return {f"train/{key}": value for key, value in numbers.items() if isinstance(value, (int, float))}
    means = {
        "forget": snapshot["forget"], "forget_target": snapshot["target_nll"],
        "memorised_retain": snapshot["memorised"], "other_retain": snapshot["not_memorised"],
    }  # fmt: skip
    figures = {f"nll/{key}": sum(values.values()) / len(values) for key, values in means.items() if values}
    if snapshot["holdout"] is not None:
        figures["nll/holdout"] = snapshot["holdout"]
    return figures
