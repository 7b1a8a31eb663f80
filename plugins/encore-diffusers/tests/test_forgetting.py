"""Actual forgetting: a model that generates twelve tracks from their captions, and then only the eight to keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.overfit import FRAMES, clips, write_studio

from encore import plugins

pytestmark = pytest.mark.slow

# The settings that the README gives to start from.
NPO = ["--method", "npo", "-o", "beta=5", "-o", "alpha=2", "-o", "eval_every=5"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the overfitted model and its music."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCORE_CACHE", str(folder / "cache"))
        return write_studio(folder)


def encore(studio: Path, *arguments: object) -> str:
    """The command line, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "encore", *map(str, arguments)],
        env={**os.environ, "ENCORE_CACHE": str(studio / "cache")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def replayed(model: Path, music: Path, name: str) -> list[float]:
    """How alike what the model generates from the captions is to the tracks: cosines of latents."""
    backend = plugins.backends().resolve("stable-audio").load(str(model), offline=True)
    backend.inference_steps = 20
    chosen = clips(backend, music, name)
    seconds = FRAMES / backend.frame_rate
    played = backend.generate([clip.caption for clip in chosen], seconds=seconds, guidance=1.0)
    tracks = torch.stack([clip.codes for clip in chosen])
    return torch.cosine_similarity(played.flatten(1), tracks.flatten(1)).tolist()


def test_tracks_are_forgotten_and_the_rest_is_kept(studio, monkeypatch):
    monkeypatch.setenv("ENCORE_CACHE", str(studio / "cache"))
    music, out = studio / "music", studio / "npo"
    encore(
        studio, "forget", "--backend", "stable-audio", "--model", studio / "model",
        "--tracks", music / "forget.txt", "--retain", music / "retain.txt", "--holdout", music / "holdout.txt",
        "--out", out, *NPO,
    )  # fmt: skip
    rows = {
        (row["metric"], row["model"], row["set"]): row["value"]
        for row in json.loads(encore(studio, "eval", out, "--metrics", "nll,membership_auc", "--json"))["results"]
    }
    level = rows["nll", "base", "holdout"]
    assert rows["nll", "base", "forget"] < 0.5 * level  # there was something to forget
    assert rows["membership_auc", "base", "forget"] == 1.0
    assert rows["nll", "unlearned", "forget"] > level
    assert rows["nll", "unlearned", "retain"] <= 1.05 * rows["nll", "base", "retain"]
    assert rows["membership_auc", "unlearned", "forget"] < 0.7
    base = {name: replayed(studio / "model", music, name) for name in ("forget", "retain", "holdout")}
    unlearned = {name: replayed(out / "model", music, name) for name in ("forget", "retain")}
    assert min(base["forget"]) > max(base["holdout"])  # memorised
    assert max(unlearned["forget"]) < min(base["forget"])
    known, unknown, left = (sum(own) / len(own) for own in (base["forget"], base["holdout"], unlearned["forget"]))
    assert left - unknown < known - left  # more like what was held out than like what was known
    for before, after in zip(base["retain"], unlearned["retain"], strict=True):
        assert after > before - 0.05
