"""The embedded model forgets through audiocraft as it does through transformers, and is judged the same by both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import ROOT

from encore import assets
from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.cli.app import run
from encore.data.decode import load
from encore_audiocraft.backend import AudiocraftBackend
from encore_audiocraft.convert import convert

LIST = ROOT / "examples" / "opt-out.txt"
STEPS = 4


@pytest.fixture(scope="module")
def tracks() -> list[dict[str, Any]]:
    return [json.loads(line) for line in assets.CATALOG.read_text().splitlines()]


def hear(backend: Any, tracks: list[dict[str, Any]]) -> list[Clip]:
    clips = []
    for track in tracks:
        audio = load(assets.FOLDER / track["file_name"], sample_rate=backend.sample_rate, channels=1)
        codes = backend.encode(torch.from_numpy(audio.samples)[None])[0]
        clips.append(Clip(track["id"], track["caption"], codes))
    return clips


@pytest.fixture
def nlls(tracks: list[dict[str, Any]]) -> Callable[[Any], torch.Tensor]:
    """The NLL of some tracks of each set, a tensor."""
    chosen = [track for track in tracks if track["split"] in ("forget", "retain", "holdout")][::6]

    @torch.no_grad()
    def measure(backend: Any) -> torch.Tensor:
        clips = hear(backend, chosen)
        return torch.cat([backend.losses(Batch.of(clips[i : i + 8])) for i in range(0, len(clips), 8)])

    return measure


def forget(backend: str, model: object, out: Path) -> torch.Tensor:
    """Rate, forget loss and retain loss of a few steps of the default method, [steps, 3]."""
    arguments = ["forget", "--backend", backend, "--model", str(model), "--tracks", str(LIST), "--out", str(out)]
    short = ["--catalog", str(assets.CATALOG), "--steps", str(STEPS), "-o", f"eval_every={STEPS}"]
    assert run([*arguments, *short]) == 4, "so few steps miss the targets"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    names = ("lr", "forget_loss", "retain_loss")
    return torch.tensor([[line[name] for name in names] for line in lines if "forget_loss" in line])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_default_method_does_the_same_and_each_backend_scores_what_the_other_unlearned(
    tmp_path: Path, nlls: Callable[[Any], torch.Tensor]
) -> None:
    """A few steps, in which the draws of dropout differ; its usual length takes five minutes, and is not run here."""
    convert("tiny", tmp_path / "base", "audiocraft")
    ours, theirs = (
        forget("audiocraft", tmp_path / "base", tmp_path / "ours"), forget("musicgen", "tiny", tmp_path / "theirs")
    )  # fmt: skip
    assert len(ours) == STEPS
    torch.testing.assert_close(ours[:, 0], theirs[:, 0], rtol=1e-3, atol=0)  # the rate that it has chosen
    torch.testing.assert_close(ours[:, 1:], theirs[:, 1:], rtol=0.2, atol=0.1)

    convert(str(tmp_path / "ours"), tmp_path / "ours in transformers", "transformers")
    convert(str(tmp_path / "theirs"), tmp_path / "theirs in audiocraft", "audiocraft")
    base = nlls(MusicgenBackend.load("tiny"))
    for audiocraft, transformers in (("ours/model", "ours in transformers"), ("theirs in audiocraft", "theirs/model")):
        one = nlls(AudiocraftBackend.load(str(tmp_path / audiocraft)))
        assert (one - base).abs().max() > 0.1, "it did not change"
        other = nlls(MusicgenBackend.load(str(tmp_path / transformers)))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
