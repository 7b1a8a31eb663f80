"""Checkpoints that lie, are damaged or run code: refused in a sentence, and never run."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pairs import Pair

from encore.errors import InputError
from encore_audiocraft import packages
from encore_audiocraft.backend import AudiocraftBackend


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def copy(mono: Pair, tmp_path: Path) -> Path:
    return shutil.copytree(mono.audiocraft, tmp_path / "model")


def rewrite(path: Path, change: Callable[[Any, dict[str, torch.Tensor]], None]) -> None:
    """Change the configuration and the weights of a checkpoint."""
    package = torch.load(path, weights_only=True)
    cfg = OmegaConf.create(package["xp.cfg"])
    change(cfg, package["best_state"])
    torch.save({**package, "xp.cfg": OmegaConf.to_yaml(cfg)}, path)


@pytest.mark.parametrize("file", [packages.LM, packages.CODEC])
@pytest.mark.parametrize("how", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(copy: Path, tmp_path: Path, file: str, how: Any) -> None:
    package = torch.load(copy / file, weights_only=True)
    with open(copy / file, "wb") as stream:
        how({**package, "version": Evil(tmp_path / "ran")}, stream)
    with pytest.raises(InputError, match=r"holds more than weights|can't be read") as refused:
        AudiocraftBackend.load(str(copy))
    assert file in refused.value.message
    assert refused.value.exit_code == 3
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 no archive either"])
def test_damage_is_refused(copy: Path, content: bytes) -> None:
    (copy / packages.LM).write_bytes(content)
    with pytest.raises(InputError, match=r"state_dict\.bin"):
        AudiocraftBackend.load(str(copy))


def test_a_cut_file_is_refused(copy: Path) -> None:
    path = copy / packages.CODEC
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="can't be read"):
        AudiocraftBackend.load(str(copy))


@pytest.mark.parametrize(
    "package",
    [
        [],
        {"best_state": {}},
        {"best_state": {"a": 1}, "xp.cfg": ""},
        {"best_state": [], "xp.cfg": ""},
        {"pretrained": 3},
    ],
    ids=str,
)
def test_other_contents_are_refused(copy: Path, package: Any) -> None:
    torch.save(package, copy / packages.LM)
    with pytest.raises(InputError, match="not what audiocraft exports"):
        AudiocraftBackend.load(str(copy))


@pytest.mark.parametrize("cfg", ["", "[1, 2]", "a: [", "a: ${nowhere:x}", "\t- x", "lm_model: transformer_lm"])
def test_configurations_that_are_none_are_refused(copy: Path, cfg: str) -> None:
    for file in (packages.LM, packages.CODEC):
        package = torch.load(copy / file, weights_only=True)
        torch.save({**package, "xp.cfg": cfg}, copy / file)
        with pytest.raises(InputError):
            AudiocraftBackend.load(str(copy))
        torch.save(package, copy / file)


def change(path: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda cfg, state: OmegaConf.update(cfg, path, value, merge=False)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("transformer_lm.num_layers", 10**9), "its weights are of 2"),
        (change("transformer_lm.dim", 48), "its weights are of 24"),
        (change("transformer_lm.card", 2**31), "its weights are of 32"),
        (change("transformer_lm.hidden_scale", 10), "can't load"),
        (change("transformer_lm.no_such_option", 1), "can't load"),
        (lambda cfg, state: state.pop("out_norm.weight"), "can't load"),
        (lambda cfg, state: state.update(extra=torch.zeros(1)), "can't load"),
        (change("dataset.segment_duration", -1), "can't load"),
        (change("lm_model", "transformer_lm_magnet"), "no next token"),
        (change("codebooks_pattern.modeling", "parallel"), "delays alone"),
        (change("codebooks_pattern.delay.delays", [0, 1, 2]), "can't load"),
        (change("transformer_lm.memory_efficient", False), "padded text can't be masked"),
        (change("transformer_lm.causal", False), "not causal"),
        (change("conditioners.self_wav", {"model": "style", "style": {}}), "conditioned on style"),
        (change("conditioners.other", {"model": "t5", "t5": {"name": "t5-base"}}), "2 text conditioners"),
        (change("conditioners.description.t5.finetune", True), "trained along"),
        (change("fuser.sum", ["description"]), "fuses conditions by sum"),
        (change("interleave_stereo_codebooks", {"use": True, "per_timestep": True}), "left and right in time"),
        (change("interleave_stereo_codebooks", {"use": True}), "not the one its language model"),
        (change("compression_model_n_q", 7), "has not the 7 codebooks"),
    ],
)
def test_models_that_do_not_fit_are_refused(copy: Path, edit: Callable[[Any, Any], None], message: str) -> None:
    rewrite(copy / packages.LM, edit)
    with pytest.raises(InputError, match=message):
        AudiocraftBackend.load(str(copy))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("seanet.n_filters", 8), "can't load the codec"),
        (change("compression_model", "dac"), "can't load the codec"),
        (change("encodec.renormalize", True), "normalises its input"),
    ],
)
def test_codecs_that_do_not_fit_are_refused(copy: Path, edit: Callable[[Any, Any], None], message: str) -> None:
    rewrite(copy / packages.CODEC, edit)
    with pytest.raises(InputError, match=message):
        AudiocraftBackend.load(str(copy))


def test_folders_that_lack_something_are_refused(copy: Path, mono: Pair, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks state_dict\.bin") as refused:
        AudiocraftBackend.load(str(mono.transformers))
    assert "encore convert" in refused.value.hint
    shutil.rmtree(copy / "t5")
    with pytest.raises(InputError, match="lacks its text encoder"):
        AudiocraftBackend.load(str(copy))
    rewrite(copy / packages.LM, change("conditioners.description.t5.name", "t5-base"))
    with pytest.raises(InputError, match="can't load google-t5/t5-base, the text encoder"):
        AudiocraftBackend.load(str(copy), offline=True)
    with pytest.raises(InputError, match="there is no model 'small'"):
        AudiocraftBackend.load("small")
    with pytest.raises(InputError, match="can't fetch nobody/nothing"):
        AudiocraftBackend.load("nobody/nothing", offline=True)


def test_a_hub_model_is_taken_from_the_cache(mono: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client lays it out, where audiocraft would look; the text encoder comes along here."""
    kept = tmp_path / "cache" / "models--owner--name"
    shutil.copytree(mono.audiocraft, kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("offline, and a connection is made"))
    backend = AudiocraftBackend.load("owner/name", offline=True)
    assert backend.codebooks == 2
    with pytest.raises(InputError, match="can't fetch owner/name"):
        AudiocraftBackend.load("owner/name", revision="other", offline=True)


def test_a_codec_that_is_only_named_is_loaded_by_name(copy: Path, mono: Pair) -> None:
    """What audiocraft exports for models on a published codec; here the name is a folder of transformers."""
    from transformers import MusicgenForConditionalGeneration

    codec = MusicgenForConditionalGeneration.from_pretrained(mono.transformers).audio_encoder
    codec.save_pretrained(copy / "encodec")
    torch.save({"pretrained": str(copy / "encodec"), "exported": True, "version": "1.3.0"}, copy / packages.CODEC)
    backend, plain = AudiocraftBackend.load(str(copy)), AudiocraftBackend.load(str(mono.audiocraft))
    sound = torch.randn(2, 1, 3200)
    codes = plain.encode(sound)
    assert torch.equal(backend.encode(sound), codes)
    assert torch.equal(backend.decode(codes), plain.decode(codes))
    assert torch.equal(backend.latents(codes), plain.latents(codes))
    saved = copy / "saved"
    saved.mkdir()
    backend.save(saved)
    assert packages.read(saved / packages.CODEC) == packages.read(copy / packages.CODEC)
    for name, message in ({"dac_44khz": "is a DAC", "nobody/nothing": "can't load nobody/nothing"}).items():
        torch.save({"pretrained": name}, copy / packages.CODEC)
        with pytest.raises(InputError, match=message):
            AudiocraftBackend.load(str(copy), offline=True)


def test_a_write_that_fails_leaves_the_old_file(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (copy / packages.LM).read_bytes()

    def full(package: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        packages.write(copy / packages.LM, {})
    assert (copy / packages.LM).read_bytes() == before
    assert {path.name for path in copy.iterdir()} == {packages.LM, packages.CODEC, "t5"}
