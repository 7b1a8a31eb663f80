"""The estimate against what a run then takes, and its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.forked import Forked

from encore import assets
from encore.plugins import methods
from encore.unlearn import estimate as estimates
from encore.unlearn.config import ForgetConfig
from encore.unlearn.engine import Loop
from encore.unlearn.estimate import TRIAL_SECONDS, Estimate, estimate
from encore.unlearn.monitor import StoppingMonitor
from encore.unlearn.run import prepare


def asked(studio: Path, name: str, **options: object):
    chosen = methods().resolve(name)
    music = studio / "music"
    request = ForgetConfig(
        music / "forget.txt", Path("run"), model=str(studio / "model"), retain=str(music / "retain.txt"),
        holdout=music / "holdout.txt", device="cpu",
    )  # fmt: skip
    return prepare(request, chosen(chosen.Options(**options)))


@pytest.mark.parametrize(
    ("seconds", "peak", "disk", "words"),
    [
        (322.2, 139_460_608, 85_983_232, "about 5 min, 133 MiB of memory, 82 MiB of disk"),
        (42.4, 3 << 30, 12 << 30, "about 42 s, 3.0 GiB of memory, 12.0 GiB of disk"),
        (9000, 1, 1, "about 2.5 h, 0 MiB of memory, 0 MiB of disk"),
    ],
)
def test_case_E9_an_estimate_reads_as_a_person_would_say_it(seconds, peak, disk, words):
    assert str(Estimate(seconds, peak, disk)) == words


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "ssd"])
def test_case_D16_the_memory_a_dry_run_expects_is_what_the_run_takes(method, tmp_path, embedded_cache, monkeypatch):
    """In processes of their own, whose peaks are compared."""
    monkeypatch.chdir(tmp_path)
    tracks = [json.loads(line) for line in assets.CATALOG.read_text().splitlines()]
    flags = ["forget", "--tracks", ROOT / "examples/opt-out.txt", "--method", method, "--json", "--out", "run"]
    for split in ("retain", "holdout"):
        few = [f"id:{track['id']}" for track in tracks if track["split"] == split][:16]
        Path(f"{split}.txt").write_text("\n".join(few) + "\n")
        flags += [f"--{split}", f"{split}.txt"]
    flags += ["--steps", "12"] if method == "npo" else []
    cache = {"ENCORE_CACHE": str(embedded_cache)}
    assert Forked([*flags, "--dry-run"], Path("plan"), cache).wait(500) == 0, Path("plan").read_text()
    plan, _ = json.JSONDecoder().raw_decode("{" + Path("plan").read_text().partition("\n{")[2])
    assert not Path("run").exists()
    assert Forked(flags, Path("log"), cache).wait(500) in (0, 4), Path("log").read_text()  # 4: a target was missed
    run = json.loads(Path("run/run.json").read_text())
    assert plan["expected_bytes"] == pytest.approx(run["cost"]["peak_bytes"], rel=0.1)
    assert plan["expected_disk_bytes"] >= sum(path.stat().st_size for path in Path("run").rglob("*"))


def test_case_D16_seconds_follow_from_the_steps_that_were_measured(studio, monkeypatch):
    """On a clock that ticks a second per step: 2 of preparation, 40 steps, and looks of half a second."""
    prepared = asked(studio, "graddiff", steps=40, eval_every=10, stop="never")
    clock = [0.0]

    def tick(seconds: float):
        clock[0] += seconds

    monkeypatch.setattr(estimates.time, "monotonic", lambda: clock[0])
    method = type(prepared.method)
    look, backward, begin = StoppingMonitor.snapshot, Loop._backward, method.prepare
    monkeypatch.setattr(StoppingMonitor, "snapshot", lambda judge: (tick(0.5), look(judge))[1])
    monkeypatch.setattr(Loop, "_backward", lambda loop, *rest: (tick(1.0), backward(loop, *rest))[1])
    monkeypatch.setattr(method, "prepare", lambda self, session: (tick(2.0), begin(self, session)))
    assert estimate(prepared).seconds == pytest.approx(2 + 40 + (40 / 10 + 2) * 0.5)
    assert clock[0] <= TRIAL_SECONDS + 3  # the trial itself is short


def test_case_D16_a_peak_that_grows_with_the_draws_is_extrapolated():
    """The maximum of n exponential draws grows with log n; a peak that stays is taken as it is."""
    grown = [100, 200, 200 + 10 * 1, 200 + 10 * 2]  # after step 4: 20 above step 2, 10 / ln 2 · ln 2 per doubling
    assert estimates._growth(grown, 16) == 40  # two doublings more
    assert estimates._growth([100, 200, 200, 200], 1000) == 0
    assert estimates._growth([100, 200], 1000) == estimates._growth(grown, 4) == 0
