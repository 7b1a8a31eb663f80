"""Folders that are not what they should be: one clear sentence, exit 3, and no code or pickle of theirs is ever run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import MusicLDMPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tests.tiny_pipelines import CAPTIONS, write_audioldm2

from encore import plugins
from encore.errors import InputError
from encore_diffusers.folder import INDEX, open_parts

WEIGHTS = {
    "stable-audio": "transformer/diffusion_pytorch_model.safetensors",
    "ace-step": "condition_encoder/diffusion_pytorch_model.safetensors",
    "audioldm2": "language_model/model.safetensors",
}


@pytest.fixture
def folder(family: str, folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(folders[family], tmp_path / "model")


def load(family: str, folder: object) -> None:
    plugins.backends().resolve(family).load(str(folder), offline=True)


def refused(family: str, folder: object, match: str) -> InputError:
    with pytest.raises(InputError, match=match) as caught:
        load(family, folder)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_folder_without_a_pipeline(family, tmp_path):
    error = refused(family, tmp_path, "is not a diffusers pipeline")
    assert INDEX in error.hint


def test_a_model_of_another_family_names_its_backend(family, folders):
    others = {"stable-audio": "ace-step", "ace-step": "audioldm2", "audioldm2": "stable-audio"}
    error = refused(family, folders[others[family]], "is a .*Pipeline, not a")
    assert error.hint == f"--backend {others[family]}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("MusicLDMPipeline", "MusicLDM can't be opened: .* fails at the first caption"),
        ("AudioLDMPipeline", "AudioLDM can't be opened: diffusers has given its pipeline up"),
        ("StableAudio3Pipeline", "Stable Audio 3 is not supported yet"),
    ],
)
def test_families_that_can_not_be_opened_say_why(family, folder, name, why):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "_class_name": name}))
    error = refused(family, folder, why)
    assert "stable-audio" in error.hint


def test_musicldm_fails_for_the_reason_that_is_given(folders):
    """Where this passes no more, MusicLDM may be supported."""
    parts = open_parts(str(folders["audioldm2"]), "AudioLDM2Pipeline", "audioldm2", revision=None, offline=True)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "feature_extractor", "scheduler", "vocoder")
    pipe = MusicLDMPipeline(unet=unet, **{name: parts[name] for name in names})
    with pytest.raises(AttributeError, match="has no attribute 'to'"):
        pipe(CAPTIONS[0], num_inference_steps=1)


@pytest.mark.parametrize("text", ["", "[]", '{"_class_name": 3', "\x00"])
def test_a_damaged_index(family, folder, text):
    (folder / INDEX).write_text(text)
    refused(family, folder, "can't load")


def test_missing_weights(family, folder):
    (folder / WEIGHTS[family]).unlink()
    error = refused(family, folder, "can't load")
    assert "safetensors" in error.hint


def test_truncated_weights(family, folder):
    path = folder / WEIGHTS[family]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(family, folder, "can't load")


def test_a_lying_header(family, folder):
    path = folder / WEIGHTS[family]
    path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(family, folder, "can't load")


def test_pickles_are_not_read(family, folder, tmp_path):
    """A pickle that would leave a file behind, under the names that diffusers and transformers look for."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "was-run",)

    for path in list(folder.rglob("*.safetensors")):
        torch.save({"weight": Evil()}, path.with_suffix(".bin"))
        torch.save({"weight": Evil()}, path.parent / "pytorch_model.bin")
        path.unlink()
    refused(family, folder, "can't load")
    assert not (tmp_path / "was-run").exists()


def test_a_weight_that_is_missing_is_not_drawn_at_random(family, folder):
    path = folder / WEIGHTS[family]
    weights = load_file(path)
    lost = sorted(weights)[3]
    save_file({name: value for name, value in weights.items() if name != lost}, path, metadata={"format": "pt"})
    refused(family, folder, "1 missing weights, first of all")


def test_a_weight_of_another_shape(family, folder):
    path = folder / WEIGHTS[family]
    weights = load_file(path)
    name = next(name for name, value in sorted(weights.items()) if value.dim() == 2)
    weights[name] = weights[name][:-1].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    refused(family, folder, "can't load|mismatched")


def test_weights_that_are_not_numbers(family, folder):
    path = folder / WEIGHTS[family]
    weights = load_file(path)
    weights[sorted(weights)[0]].view(-1)[0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    refused(family, folder, "weights that are not numbers")


def test_code_of_a_model_is_never_run(family, folder, tmp_path):
    index = json.loads((folder / INDEX).read_text())
    (folder / "vae" / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    (folder / INDEX).write_text(json.dumps({**index, "vae": ["evil", "AutoencoderOobleck"]}))
    refused(family, folder, "code of its own")
    (folder / INDEX).write_text(json.dumps({**index, "_class_name": ["evil", "StableAudioPipeline"]}))
    refused(family, folder, "class of its own")
    assert not (tmp_path / "was-run").exists()


def test_a_part_that_is_missing(family, folder):
    index = json.loads((folder / INDEX).read_text())
    del index["scheduler"]
    (folder / INDEX).write_text(json.dumps(index))
    refused(family, folder, "has no scheduler")


def test_speech_is_not_music(tmp_path):
    """AudioLDM 2 for speech reads phonemes with VITS."""
    folder = write_audioldm2(tmp_path / "speech")
    family = plugins.backends().resolve("audioldm2")
    parts = open_parts(str(folder), "AudioLDM2Pipeline", "audioldm2", revision=None, offline=True)
    with pytest.raises(InputError, match="speech from phonemes"):
        family({**parts, "text_encoder_2": torch.nn.Linear(2, 2)})


@pytest.mark.parametrize("name", ["nobody/no-such-model", "../../etc", "tinyy"])
def test_names_that_lead_nowhere(family, name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    refused(family, name, "can't load|there is no model")


def test_the_hub_is_asked_for_the_index(family, monkeypatch):
    """A diffusers repository has no config.json."""
    asked = []

    def session():
        class Session:
            def head(self, address, **_):
                asked.append(address)
                return type("Answer", (), {"status_code": 404})

        return Session()

    monkeypatch.setattr("huggingface_hub.utils.get_session", session)
    with pytest.raises(InputError, match="the hub has no model 'owner/name'"):
        plugins.backends().resolve(family).load("owner/name", revision="abc")
    assert [address.split("/", 3)[3] for address in asked] == [f"owner/name/resolve/abc/{INDEX}"]
