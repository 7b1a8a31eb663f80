"""Models that go to the other library and come back, bit for bit, and those that can't go."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pairs import CAPTIONS, Pair, clips, tiny_model
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, MusicgenConfig, MusicgenForConditionalGeneration, T5Config

from encore import assets
from encore.api import Batch
from encore.backends.musicgen import MusicgenBackend
from encore.cli.app import run
from encore.errors import InputError, UsageError
from encore_audiocraft import configs, keys, packages
from encore_audiocraft.backend import AudiocraftBackend
from encore_audiocraft.convert import convert


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_model_comes_back_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    written = convert(str(pair.audiocraft), tmp_path / "back", "transformers")
    assert written.keys() >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert same(weights(tmp_path / "back"), weights(pair.transformers))
    before, after = (MusicgenConfig.from_pretrained(path) for path in (pair.transformers, tmp_path / "back"))
    for part in ("decoder", "audio_encoder", "text_encoder"):
        old, new = getattr(before, part).to_dict(), getattr(after, part).to_dict()
        skipped = {"architectures", "dtype", "_name_or_path", "transformers_version"}
        assert {k: v for k, v in old.items() if k not in skipped} == {k: v for k, v in new.items() if k not in skipped}
    again = convert(str(tmp_path / "back"), tmp_path / "again", "audiocraft")
    assert again.keys() >= {"state_dict.bin", "compression_state_dict.bin", "t5/model.safetensors", "t5/tokenizer.json"}
    for name in (packages.LM, packages.CODEC):
        first, second = packages.read(pair.audiocraft / name), packages.read(tmp_path / "again" / name)
        assert same(first[packages.STATE], second[packages.STATE])
        first_config, second_config = OmegaConf.create(first["xp.cfg"]), OmegaConf.create(second["xp.cfg"])
        assert first_config == second_config


def test_a_configuration_as_it_is_published(mono: Pair, tmp_path: Path) -> None:
    """With interpolations, arguments of the conditioners, and options that were added or renamed over the years."""
    source = shutil.copytree(mono.audiocraft, tmp_path / "source")
    for file, changes in (
        (
            packages.LM,
            {"conditioners.args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}, "deep": "${channels}"},
        ),
        (
            packages.CODEC,
            {"seanet.channels": "${channels}", "encodec.sample_rate": "${sample_rate}", "encodec.renorm": 1},
        ),
    ):
        package = packages.read(source / file)
        cfg = OmegaConf.create(package["xp.cfg"])
        for path, value in changes.items():
            OmegaConf.update(cfg, path, value, merge=False)
        packages.write(source / file, {**package, "xp.cfg": OmegaConf.to_yaml(cfg)})
    convert(str(source), tmp_path / "back", "transformers")
    assert same(weights(tmp_path / "back"), weights(mono.transformers))
    batch = Batch.of(clips(2, 20, 12))
    ours, theirs = AudiocraftBackend.load(str(source)), AudiocraftBackend.load(str(mono.audiocraft))
    torch.testing.assert_close(ours.losses(batch), theirs.losses(batch), rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.encode(torch.ones(1, 1, 800)), theirs.encode(torch.ones(1, 1, 800)))
    ours.save(tmp_path / "back")
    assert packages.read(tmp_path / "back" / packages.LM)["xp.cfg"] == packages.read(source / packages.LM)["xp.cfg"]


def test_the_embedded_model_comes_back_byte_for_byte_and_plays_the_same(tmp_path: Path) -> None:
    convert("tiny", tmp_path / "audiocraft", "audiocraft")
    convert(str(tmp_path / "audiocraft"), tmp_path / "back", "transformers")
    original = assets.model_folder("tiny")
    assert original is not None
    assert (tmp_path / "back/model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert (tmp_path / "back/tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()
    model, there = MusicgenBackend.load("tiny"), AudiocraftBackend.load(str(tmp_path / "audiocraft"))
    back = MusicgenBackend.load(str(tmp_path / "back"))
    assert back.max_frames == there.max_frames == model.max_frames
    captions = ["lonely flute over lute", "brass band march"]
    played = model.generate(captions, seconds=1.0, seed=1)
    assert torch.equal(played, back.generate(captions, seconds=1.0, seed=1))
    assert torch.equal(played, there.generate(captions, seconds=1.0, seed=1))
    assert torch.equal(model.decode(played), there.decode(played))
    sound = model.decode(played) + 0.01 * torch.randn(2, 1, 16000)
    assert torch.equal(model.encode(sound), there.encode(sound))


def write_other(folder: Path, **codec: object) -> Path:
    """A model that uses what the tiny ones leave out: residual layers, shortcuts, causal codec, text as wide as it."""
    source = tiny_model.write_tiny_musicgen(folder)
    old = MusicgenConfig.from_pretrained(source)
    encodec = EncodecConfig(
        sampling_rate=8000, target_bandwidths=[3 * 5 * 100 / 1000], num_filters=4, upsampling_ratios=[5, 4, 4],
        hidden_size=8, codebook_size=32, num_lstm_layers=2, num_residual_layers=2, normalize=False, audio_channels=1,
        pad_mode="constant", **codec,
    )  # fmt: skip
    text = T5Config(**{**old.text_encoder.to_dict(), "d_model": 24})
    old.decoder.num_codebooks, old.decoder.ffn_dim = 3, 48
    old.decoder.max_position_embeddings = 4096
    torch.manual_seed(0)
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(text_encoder=text, audio_encoder=encodec, decoder=old.decoder)
    )
    with torch.no_grad():
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
        for weight in model.decoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(source)
    return source


@pytest.mark.parametrize("shortcut", [True, False])
def test_other_codecs_and_text_of_the_models_own_width(tmp_path: Path, shortcut: bool) -> None:
    source = write_other(tmp_path / "source", use_conv_shortcut=shortcut, use_causal_conv=shortcut)
    assert keys.PROJECTION + "weight" not in weights(source)
    convert(str(source), tmp_path / "there", "audiocraft")
    convert(str(tmp_path / "there"), tmp_path / "back", "transformers")
    assert same(weights(tmp_path / "back"), weights(source))
    ours, theirs = AudiocraftBackend.load(str(tmp_path / "there")), MusicgenBackend.load(str(source))
    assert ours.max_frames == theirs.max_frames == 3000
    sound = torch.randn(2, 1, 4000)
    codes = theirs.encode(sound)
    assert torch.equal(ours.encode(sound), codes)
    assert torch.equal(ours.decode(codes), theirs.decode(codes))
    batch = Batch.of(clips(3, 30, 12, 20))
    mask = theirs.token_mask(batch)
    with torch.no_grad():
        assert (ours.logits(batch) - theirs.logits(batch))[mask].abs().max() <= 1e-4
    package = packages.read(tmp_path / "there" / packages.LM)
    package[packages.STATE][keys.TEXT.format("description") + "bias"][0] = 1
    packages.write(tmp_path / "there" / packages.LM, package)
    with pytest.raises(InputError, match="text of its own width"):
        convert(str(tmp_path / "there"), tmp_path / "no", "transformers")


def test_weights_in_several_files_and_under_older_names(pair: Pair, tmp_path: Path) -> None:
    """Published checkpoints are sharded, and name weight norm's tensors as torch did before."""
    source = shutil.copytree(pair.transformers, tmp_path / "source")
    state = {keys._norm(name, 1): value for name, value in weights(source).items()}
    assert any(name.endswith("weight_g") for name in state)
    (source / "model.safetensors").unlink()
    state["decoder.model.decoder.embed_positions.weights"] = torch.zeros(60, 24)  # what was once kept with the rest
    state["text_encoder.encoder.embed_tokens.weight"] = state["text_encoder.shared.weight"].clone()
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = {name: state[name] for name in part}
        save_file(shard, source / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    convert(str(source), tmp_path / "there", "audiocraft")
    for name in (packages.LM, packages.CODEC):
        first, second = packages.read(pair.audiocraft / name), packages.read(tmp_path / "there" / name)
        assert same(first[packages.STATE], second[packages.STATE])


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name",
    [
        "decoder.lm_heads.1.weight",
        "audio_encoder.encoder.layers.0.conv.bias",
        "text_encoder.shared.weight",
        "extra.bias",
    ],
)
def test_weights_that_are_not_whole_are_refused(mono: Pair, tmp_path: Path, name: str) -> None:
    source = shutil.copytree(mono.transformers, tmp_path / "source")
    state = weights(source)
    if state.pop(name, None) is None:
        state[name] = torch.ones(3)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"is not whole: {name}"):
        convert(str(source), tmp_path / "out", "audiocraft")
    back = shutil.copytree(mono.audiocraft, tmp_path / "back")
    for file, lost in ((packages.LM, "linears.1.weight"), (packages.CODEC, "encoder.model.0.conv.conv.bias")):
        package = packages.read(back / file)
        kept = package[packages.STATE].pop(lost)
        packages.write(back / file, package)
        with pytest.raises(InputError, match=r"is not whole: (decoder\.lm_heads|audio_encoder\.encoder)"):
            convert(str(back), tmp_path / "out", "transformers")
        packages.write(back / file, {**package, packages.STATE: {**package[packages.STATE], lost: kept}})
    assert not (tmp_path / "out").exists()


def edited(folder: Path, source: Path, **changes: object) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        part, _, name = path.rpartition("__")
        (config[part] if part else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "musicgen_melody"}, "not a MusicGen one"),
        ({"decoder__activation_function": "relu"}, "activation_function = relu"),
        ({"decoder__scale_embedding": True}, "scale_embedding = True"),
        ({"audio_encoder__normalize": True}, "normalises"),
        ({"audio_encoder__codebook_dim": 4}, "codebook_dim"),
        ({"audio_encoder__num_filters": "many"}, "can't load"),
    ],
    ids=str,
)
def test_what_audiocraft_can_not_express_is_refused(
    mono: Pair, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    source = edited(tmp_path / "source", mono.transformers, **change)
    with pytest.raises(InputError, match=message):
        convert(str(source), tmp_path / "out", "audiocraft")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("transformer_lm.norm_first", False, "norm_first = False"),
        ("transformer_lm.bias_ff", True, "bias_ff = True"),
        ("transformer_lm.layer_scale", 0.1, "layer_scale = 0.1"),
        ("transformer_lm.positional_embedding", "rope", "positional_embedding = rope"),
        ("codebooks_pattern.delay.delays", [0, 2], "delays its codebooks"),
        ("fuser.cross", [], "otherwise than by cross attention"),
        ("conditioners", None, "can't read"),
    ],
)
def test_what_transformers_can_not_express_is_refused(
    mono: Pair, tmp_path: Path, path: str, value: object, message: str
) -> None:
    source = shutil.copytree(mono.audiocraft, tmp_path / "source")
    package = packages.read(source / packages.LM)
    cfg = OmegaConf.create(package["xp.cfg"])
    OmegaConf.update(cfg, path, value, merge=False)
    packages.write(source / packages.LM, {**package, "xp.cfg": OmegaConf.to_yaml(cfg)})
    with pytest.raises(InputError, match=message):
        convert(str(source), tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


def test_a_codec_transformers_has_not_is_refused(mono: Pair) -> None:
    cfg = OmegaConf.create(packages.read(mono.audiocraft / packages.CODEC)["xp.cfg"])
    for path, value in {"seanet.norm": "time_group_norm", "seanet.decoder.final_activation": "Tanh"}.items():
        other = OmegaConf.create(OmegaConf.to_container(cfg))
        OmegaConf.update(other, path, value)
        with pytest.raises(InputError, match="no option for"):
            configs.encodec(other, "a model")
    with pytest.raises(InputError, match="not an EnCodec"):
        configs.encodec(OmegaConf.create({"compression_model": "other"}), "a model")


def test_feed_forward_widths_survive_as_factors() -> None:
    for width in range(8, 200, 8):
        for feed_forward in range(8, 500, 7):
            assert int(configs._scale(feed_forward, width) * width) == feed_forward


def test_bandwidths_give_as_many_codebooks() -> None:
    for ratios in ([8, 5, 4, 4], [20, 16], [7, 5], [10, 8]):
        for bins in (32, 512, 1024, 2048):
            for books in (1, 3, 4, 8, 16):
                codec = _codec(ratios, bins, books)
                assert configs.encodec(codec, "m").num_quantizers == books, (ratios, bins, books)


def _codec(ratios: list[int], bins: int, books: int) -> object:
    seanet = {
        "channels": 1, "dimension": 8, "n_filters": 4, "n_residual_layers": 1, "kernel_size": 7, "last_kernel_size": 7,
        "residual_kernel_size": 3, "dilation_base": 2, "compress": 2, "lstm": 2, "pad_mode": "constant",
        "causal": False, "true_skip": True, "ratios": ratios, "encoder": {}, "decoder": {"trim_right_ratio": 1.0},
        "norm_params": {}, **configs.SAME_SEANET,
    }  # fmt: skip
    encodec = {
        "quantizer": "rvq",
        "sample_rate": 100 * math.prod(ratios) // 2 - 1,
    }  # no whole number of frames a second
    return OmegaConf.create(
        {"compression_model": "encodec", "encodec": encodec, "seanet": seanet, "rvq": {"bins": bins, "n_q": books}}
    )


# ----------------------------------------------------------------------------------------------------- the command


def test_command_writes_and_refuses_with_the_right_exit_codes(
    mono: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder will do
    assert run(["convert", str(mono.transformers), str(out), "--to", "audiocraft", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["files"]["state_dict.bin"] == (out / "state_dict.bin").stat().st_size
    assert same(
        packages.read(out / packages.LM)[packages.STATE],
        packages.read(mono.audiocraft / packages.LM)[packages.STATE],
    )
    for arguments, code, sentence in (
        ([str(mono.transformers), str(out), "--to", "audiocraft"], 2, "is not empty"),
        ([str(mono.audiocraft), str(tmp_path / "a"), "--to", "audiocraft"], 3, "in the format of audiocraft already"),
        ([str(mono.transformers), str(tmp_path / "a"), "--to", "transformers"], 3, "is not an audiocraft model"),
        (["tiny", str(tmp_path / "a"), "--to", "transformers"], 3, "in the format of transformers already"),
        (["tinny", str(tmp_path / "a"), "--to", "audiocraft"], 3, "there is no model 'tinny'"),
        (["tiny", str(tmp_path / "a"), "--to", "jax"], 2, "jax"),
        ([str(tmp_path), str(tmp_path / "a"), "--to", "audiocraft"], 3, "can't load"),
        (["nobody/nothing", str(tmp_path / "a"), "--to", "audiocraft", "--offline"], 3, "can't fetch nobody/nothing"),
    ):
        assert run(["convert", *arguments]) == code, arguments
        assert sentence in " ".join(capfd.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["out"]


def test_a_run_is_converted_by_its_folder(mono: Pair, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(mono.transformers, tmp_path / "run" / "model")
    (tmp_path / "run" / "request.json").write_text("{}")
    with pytest.raises(InputError, match="did not finish"):
        convert(str(tmp_path / "run"), tmp_path / "out", "audiocraft")
    (tmp_path / "run" / "run.json").write_text("{}")
    convert(str(tmp_path / "run"), tmp_path / "out", "audiocraft")
    assert AudiocraftBackend.load(str(tmp_path / "out")).generate(CAPTIONS[:1], seconds=0.1).shape == (1, 2, 10)


def test_a_failed_write_leaves_nothing(mono: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("encore_audiocraft.convert.save_file", full)
    with pytest.raises(Exception, match="disk is full"):
        convert(str(mono.transformers), tmp_path / "out", "audiocraft")
    with pytest.raises(UsageError, match="is not empty"):
        convert(str(mono.transformers), mono.audiocraft, "audiocraft")
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == []
