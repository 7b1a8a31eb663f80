"""Actual forgetting: a model that generates twelve tracks from their captions, and then only the eight to keep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.overfit import FRAMES, clips, write_studio

from encore import plugins

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the overfitted model and its music."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCORE_CACHE", str(folder / "cache"))
        return write_studio(folder)


def similarities(model: Path, music: Path, name: str) -> list[float]:
    """How alike what the model generates from the captions is to the tracks: cosines of latents."""
    backend = plugins.backends().resolve("stable-audio").load(str(model), offline=True)
    backend.inference_steps = 20
    chosen = clips(backend, music, name)
    seconds = FRAMES / backend.frame_rate
    played = backend.generate([clip.caption for clip in chosen], seconds=seconds, guidance=1.0)
    tracks = torch.stack([clip.codes for clip in chosen])
    return torch.cosine_similarity(played.flatten(1), tracks.flatten(1)).tolist()


def test_the_default_method_forgets_tracks_and_keeps_the_rest(studio, call, monkeypatch):
    monkeypatch.setenv("ENCORE_CACHE", str(studio / "cache"))
    music, out = studio / "music", studio / "run"
    done = subprocess.run(  # as a process of its own
        [
            sys.executable, "-m", "encore", "forget", "--backend", "stable-audio", "--model", studio / "model",
            "--tracks", music / "forget.txt", "--retain", music / "retain.txt", "--holdout", music / "holdout.txt",
            "--out", out,
        ], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(call("eval", out, "--metrics", "nll,membership_auc,relearn", "--json").out)
    rows = {(row["metric"], row["model"], row["set"]): row["value"] for row in measured["results"]}
    level = rows["nll", "base", "holdout"]
    assert rows["nll", "base", "forget"] < 0.5 * level  # there was something to forget
    assert rows["membership_auc", "base", "forget"] == 1.0
    assert rows["nll", "unlearned", "forget"] == pytest.approx(level, rel=0.1)
    assert rows["nll", "unlearned", "retain"] <= 1.015 * rows["nll", "base", "retain"]
    assert 0.3 < rows["membership_auc", "unlearned", "forget"] < 0.7
    assert rows["relearn", "base", "forget"] < 0.25 * rows["relearn", "unlearned", "forget"]
    base = {name: similarities(studio / "model", music, name) for name in ("forget", "retain", "holdout")}
    unlearned = {name: similarities(out / "model", music, name) for name in ("forget", "retain")}
    assert min(base["forget"]) > max(base["holdout"])  # memorised
    assert max(unlearned["forget"]) < min(base["forget"])
    known, unknown, left = (sum(own) / len(own) for own in (base["forget"], base["holdout"], unlearned["forget"]))
    assert left - unknown < known - left  # more like what was held out than like what was known
    for before, after in zip(base["retain"], unlearned["retain"], strict=True):
        assert after > before - 0.05
