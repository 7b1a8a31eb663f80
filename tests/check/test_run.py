"""A whole check of a model without tokens, and with a gold that is the model itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tests.latent_model import LatentBackend

from encore.check import evidence, run
from encore.check.config import CheckConfig
from encore.check.run import check_tracks


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


def test_what_gold_does_as_well_is_no_evidence(studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    music, model = studio / "music", str(studio / "model")
    monkeypatch.setattr(evidence, "memorised_below", lambda holdout, size: 100.0)  # every NLL counts as memorised
    monkeypatch.setattr(evidence, "KNOWN_SHARE", 100.0)
    (tmp_path / "list.txt").write_text("one.wav\ttuba\n")
    config = CheckConfig(
        model, "musicgen", str(tmp_path / "list.txt"), holdout=str(music / "holdout.txt"), gold=model, draws=1,
        roots=[music],
    )  # fmt: skip
    result = check_tracks(config, tmp_path / "out")
    (track,) = result["tracks"]
    assert track["evidence"]["nll"]["gold"] == track["evidence"]["nll"]["value"] < 100
    assert track["verdict"] == "no_sign"
    assert "reference" in result["list"]["scores"]
    assert any(note.startswith("the model has memorised held-out music") for note in result["notes"])
