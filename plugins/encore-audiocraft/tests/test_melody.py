"""A melody model, played and scored without a melody: against audiocraft's own conditioner, given silence.

audiocraft's conditioner separates a melody's stems with demucs, and takes its chroma with torchaudio and librosa; of
silence none of them has anything to say, so that here they are replaced by what is left of them.
"""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pairs import CAPTIONS, Pair, clips
from torch import nn

from encore.api import Batch
from encore.hashing import module_sha256
from encore_audiocraft import packages
from encore_audiocraft.backend import AudiocraftBackend
from encore_audiocraft.library import building, open_musicgen

CHROMA = {"sample_rate": 8000, "n_chroma": 12, "radix2_exp": 12, "match_len_on_eval": False, "n_eval_wavs": 100}


class Spectrogram(nn.Module):
    """torchaudio's, as far as it is used: power, centred, with a window that is part of the weights."""

    def __init__(self, n_fft: int, win_length: int, hop_length: int, **_: object) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        spec = torch.stft(wav.flatten(0, -2), self.n_fft, self.hop, window=self.window, return_complex=True)
        return spec.abs().square().reshape(*wav.shape[:-1], *spec.shape[-2:])


@pytest.fixture
def demucs(monkeypatch: pytest.MonkeyPatch) -> None:
    from audiocraft.modules import chroma

    filters = types.SimpleNamespace(chroma=lambda **k: np.ones((k["n_chroma"], k["n_fft"] // 2 + 1), np.float32))
    monkeypatch.setattr(chroma, "filters", filters)
    transforms = types.SimpleNamespace(Spectrogram=Spectrogram)
    monkeypatch.setattr(chroma, "torchaudio", types.SimpleNamespace(transforms=transforms))
    module: Any = types.ModuleType("demucs")
    separator = nn.Identity()
    separator.sources = ["drums", "bass", "other", "vocals"]
    module.pretrained = types.SimpleNamespace(get_model=lambda name: separator)
    monkeypatch.setitem(sys.modules, "demucs", module)


@pytest.fixture(params=[("prepend", True), ("prepend", False), ("cross", True)], ids=str)
def folder(request: pytest.FixtureRequest, mono: Pair, tmp_path: Path, demucs: None) -> Path:
    """The mono model with a melody beside its text, as MusicGen Melody has it, before or across its layers."""
    from audiocraft.models import builders

    where, argmax = request.param
    package = packages.read(mono.audiocraft / packages.LM)
    cfg = OmegaConf.create(package["xp.cfg"])
    cfg.conditioners.self_wav = {"model": "chroma_stem", "chroma_stem": {**CHROMA, "argmax": argmax}}
    for way in ("cross", "prepend"):
        cfg.fuser[way] = ["self_wav", "description"] if way == where else []
    torch.manual_seed(0)
    (tmp_path / "t5").symlink_to(mono.audiocraft / "t5")
    from audiocraft.modules.conditioners import T5Conditioner

    if "./t5" not in T5Conditioner.MODELS:
        open_musicgen(mono.audiocraft)  # lists the text encoder that lies beside
    with contextlib.chdir(tmp_path), building():
        state = builders.get_lm_model(cfg).state_dict()
    state = {name: 3 * value if "linears" in name else value for name, value in state.items()}
    assert any(name.endswith("self_wav.chroma.spec.window") for name in state)
    packages.write(tmp_path / packages.LM, {**package, "best_state": state, "xp.cfg": OmegaConf.to_yaml(cfg)})
    (tmp_path / packages.CODEC).symlink_to(mono.audiocraft / packages.CODEC)
    return tmp_path


def given(theirs: Any, captions: list[str]) -> list[Any]:
    attributes, _ = theirs._prepare_tokens_and_attributes(captions, None)
    return attributes


def test_melody_models_are_scored_as_audiocraft_scores_them_without_a_melody(folder: Path) -> None:
    backend, theirs = AudiocraftBackend.load(str(folder)), open_musicgen(folder)
    alone = []
    for clip in clips(2, 20, 31, 12):
        with torch.no_grad():
            out = theirs.lm.compute_predictions(clip.codes[None], given(theirs, [clip.caption]))
            ours = backend.logits(Batch.of([clip]))
        torch.testing.assert_close(out.logits[out.mask], ours[out.mask], rtol=1e-5, atol=1e-5)
        alone.append(backend.losses(Batch.of([clip])).detach())
    together = backend.losses(Batch.of(clips(2, 20, 31, 12))).detach()
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    first, second = clips(2, 20, 20)
    a = backend.logits(Batch.of([first]), unconditional=True)
    b = backend.logits(Batch.of([type(first)("x", second.caption, first.codes)]), unconditional=True)
    assert torch.equal(a, b), "without a condition no caption is left, nor its length"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_melody_models_play_as_audiocraft_does_without_a_melody(folder: Path, guidance: float) -> None:
    backend, theirs = AudiocraftBackend.load(str(folder)), open_musicgen(folder)
    ours = backend.generate(CAPTIONS, seconds=0.2, temperature=0, guidance=guidance)
    for row, caption in enumerate(CAPTIONS):
        with torch.no_grad():
            codes = theirs.lm.generate(
                None, given(theirs, [caption]), max_gen_len=20, use_sampling=False, cfg_coef=guidance
            )  # fmt: skip
        assert torch.equal(ours[row : row + 1], codes)
    drawn = backend.generate(CAPTIONS, seconds=0.2, seed=4, guidance=guidance)
    assert torch.equal(drawn[2:], backend.generate(CAPTIONS[2:], seconds=0.2, seed=6, guidance=guidance))


def test_melody_models_are_saved_with_what_their_conditioner_keeps(folder: Path, tmp_path: Path) -> None:
    backend = AudiocraftBackend.load(str(folder))
    backend.losses(Batch.of(clips(2, 20, 31))).sum().backward()
    assert all(weight.grad is not None for weight in backend.module.parameters())
    saved = tmp_path / "saved"
    saved.mkdir()
    backend.save(saved)
    before, after = packages.read(folder / packages.LM), packages.read(saved / packages.LM)
    assert list(before["best_state"]) == list(after["best_state"])
    assert all(torch.equal(before["best_state"][name], after["best_state"][name]) for name in before["best_state"])
    assert module_sha256(AudiocraftBackend.load(str(saved)).module) == module_sha256(backend.module)
    open_musicgen(saved)
