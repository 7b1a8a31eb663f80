from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from encore.api import Result
from encore.compare.plan import Plan, Trial
from encore.store.metrics_json import write_metrics
from encore.store.run_folder import write_json

TRACKS = tuple(f"t{n}" for n in range(8))
Figures = Mapping[str, float]  # nll, kl, retain, relearned, verbatim, seconds: what a made trial measured


@pytest.fixture
def cell_of(tmp_path: Path) -> Callable[..., None]:
    """Write a measured trial by hand: `cell_of("ga", 0, nll=4.0, kl=1.0, …)`; of a track, the mean ± a little."""

    def write(method: str, seed: int, requests: int = 1, **figures: float) -> None:
        folder = tmp_path / Trial(method, seed, requests).name
        folder.mkdir(parents=True)
        write_metrics(folder / "metrics.json", rows(figures))
        track = {"id": "t0", "sha256": "0", "caption": "c"}
        write_json(folder / "request.json", {"forget": [track], "retain": [], "holdout": []})
        write_json(
            folder / "evaluation.json", {"seed": 0, "samples_per_caption": 1, "models": {"base": "b", "gold": "g"}}
        )
        for run in [folder / str(n + 1) for n in range(requests)] if requests > 1 else [folder]:
            run.mkdir(exist_ok=True)
            peak = int(1e9 * figures.get("peak", 1.0))
            write_json(run / "run.json", {"timings": {"forget": figures["seconds"]}, "cost": {"peak_bytes": peak}})

    return write


def rows(figures: Figures) -> list[Result]:
    def row(metric: str, model: str, clips: str, value: float, n: int = 8, unit: str = "nats/token") -> Result:
        apart = 0.0 if unit == "share" else 0.01
        tracks = {track: value + apart * (i - 3.5) for i, track in enumerate(TRACKS)}
        return Result(metric, model, clips, value, n=n, unit=unit, per_track=tracks)

    return [
        row("nll", "base", "forget", 0.02), row("nll", "gold", "forget", 4.0), row("nll", "base", "retain", 0.02, 24),
        row("nll", "unlearned", "forget", figures["nll"]), row("nll", "unlearned", "retain", figures["retain"], 24),
        row("kl_gold", "base", "forget", 5.63), row("kl_gold", "gold2", "forget", 1.0),
        row("kl_gold", "unlearned", "forget", figures["kl"]),
        row("relearn", "gold", "forget", 3.5), row("relearn", "unlearned", "forget", figures["relearned"]),
        row("verbatim", "unlearned", "forget", figures["verbatim"] / 8, unit="share"),
        row("verbatim", "gold", "forget", 0.0, unit="share"), row("verbatim", "base", "forget", 1.0, unit="share"),
    ]  # fmt: skip


@pytest.fixture
def plan() -> Plan:
    return Plan(methods={"good": (), "bad": ()}, seeds=(0, 1))
