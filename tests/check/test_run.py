"""A whole check of a model without tokens, and with golds that know the tracks or don't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.latent_model import LatentBackend

from encore import memorised
from encore.backends.musicgen import MusicgenBackend
from encore.check import evidence, run
from encore.check.config import CheckConfig
from encore.check.run import check_tracks
from encore.errors import InputError


def test_a_model_without_tokens_is_tested_for_membership_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = SimpleNamespace(resolve=lambda name: LatentBackend)
    monkeypatch.setattr(run, "plugins", SimpleNamespace(backends=lambda: family))
    random = np.random.default_rng(0)
    for folder, names in (("mine", "ab"), ("others", "cdef")):
        (tmp_path / folder).mkdir()
        for name in names:
            soundfile.write(tmp_path / folder / f"{name}.wav", random.uniform(-0.5, 0.5, 3000), 6000)
    config = CheckConfig("latent", "latent", str(tmp_path / "mine"), holdout=str(tmp_path / "others"), cache=False)
    result = check_tracks(config, tmp_path / "out")
    tried = {test["test"]: test["tried"] for test in result["tests"]}
    assert tried["membership of each track"]
    assert not tried["generations from captions"]
    assert not tried["excerpts at other offsets"]
    assert result["list"]["scores"] == ["loss", "zlib"]
    for track in result["tracks"]:
        assert track["verdict"] == "no_sign"
        assert track["evidence"]["membership"]["p"] >= 0.2
        assert track["evidence"]["nll"]["unit"] == "loss"
    assert "2 of 2 files have no caption beside them" in result["notes"][0]
    assert (tmp_path / "out/check.html").exists()


@pytest.fixture
def with_gold(studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], dict[str, Any]]:
    """Check one track with a gold that predicts it worse, where NLLs below the given share of the entropy count."""
    music, models = studio / "music", [str(studio / "model"), str(tmp_path / "other")]
    other = MusicgenBackend.load(models[0])
    other.reinitialise(1)
    other.save(tmp_path / "other")
    monkeypatch.setattr(evidence, "memorised_below", lambda holdout, size: 100.0)
    (tmp_path / "list.txt").write_text("one.wav\ttuba\n")

    def check(share: float) -> dict[str, Any]:
        monkeypatch.setattr(memorised, "KNOWN_SHARE", share)
        config = CheckConfig(
            models[0], "musicgen", str(tmp_path / "list.txt"), holdout=str(music / "holdout.txt"), gold=models[1],
            samples=1, roots=[music],
        )  # fmt: skip
        result = check_tracks(config, tmp_path / "out")
        nll = result["tracks"][0]["evidence"]["nll"]
        if nll["gold"] < nll["value"]:
            models.reverse()
            return check(share)
        return result

    return check


def test_what_gold_does_as_well_is_no_evidence(with_gold: Callable[[float], dict[str, Any]]) -> None:
    nll = with_gold(0.0)["tracks"][0]["evidence"]["nll"]
    result = with_gold((nll["value"] + nll["gold"]) / 2 / nll["entropy"])
    (track,) = result["tracks"]
    assert track["evidence"]["nll"]["gold"] < 100
    assert track["evidence"]["similarity"].keys() == {"chroma", "melody", "onset", "bleu", "edit"}
    assert track["verdict"] == "no_sign"
    assert "reference" in result["list"]["scores"]


def test_a_gold_that_has_memorised_a_track_is_no_excuse(with_gold: Callable[[float], dict[str, Any]]) -> None:
    result = with_gold(100.0)
    (track,) = result["tracks"]
    assert track["verdict"] == "memorised"
    assert any(note.startswith("gold itself has memorised one.wav") for note in result["notes"])
    assert any(note.startswith("the model has memorised held-out music") for note in result["notes"])


def test_the_model_itself_is_no_gold(studio: Path, tmp_path: Path) -> None:
    model = str(studio / "model")
    config = CheckConfig(model, "musicgen", str(studio / "music/forget.txt"), gold=model)
    with pytest.raises(InputError, match="gold has the same weights as the model"):
        check_tracks(config, tmp_path / "out")
