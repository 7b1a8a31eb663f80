"""A MusicGen from transformers' format to audiocraft's and back: weights by `keys`, configurations by `configs`.

Weights go from file to file, in the type they are stored in; no model is built. audiocraft needs the text encoder that
transformers keeps with the rest: it is written beside the weights, in `t5/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EncodecFeatureExtractor,
    GenerationConfig,
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)

from encore import assets
from encore.errors import InputError, first_line
from encore.hub import fetchable, pretrained, quiet_transformers
from encore.store.run_folder import staged_folder
from encore_audiocraft import backend, configs, keys, kinds, language, packages
from encore_audiocraft.codec import open_encodec
from encore_audiocraft.packages import State
from encore_audiocraft.refusals import source_of
from encore_audiocraft.text import BESIDE, LOAD_ERRORS, TextEncoder

PARTS = {"audio_encoder.": "codec", "text_encoder.": "text"}  # how transformers' names of frozen parts begin
COPIES = (  # in older checkpoints: what transformers computes, and a tensor that another name has already
    "decoder.model.decoder.embed_positions.weights", "text_encoder.encoder.embed_tokens.weight",
)  # fmt: skip
READABLE = ("*.json", "*.safetensors", "*.model")


def convert(model: str, out: Path, to: str, *, revision: str | None = None, offline: bool = False) -> dict[str, int]:
    """Write `model` in the format of the library `to` ("transformers", "audiocraft") into a new or empty folder.

    Returns:
        the files written, with their sizes in bytes.

    Raises:
        UsageError: the folder is not empty, or a file.
        InputError: the model is not in the other library's format, or has what that one can't express.
    """
    source = source_of(model, out, to)
    embedded = assets.model_folder(source)
    with quiet_transformers(), staged_folder(out.resolve()) as staging:
        if to == "audiocraft":
            folder = embedded or _transformers_folder(source, revision, offline)
            _to_audiocraft(folder, staging, model)
        else:
            _to_transformers(backend.fetch(source, revision=revision, offline=offline), staging, model, offline)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in files}


def _transformers_folder(source: str, revision: str | None, offline: bool) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    here = offline or not fetchable(source, revision)
    try:
        found = snapshot_download(source, revision=revision, local_files_only=here, allow_patterns=list(READABLE))
    except (OSError, ValueError, RuntimeError) as error:  # the hub's errors are OSErrors and ValueErrors
        raise InputError(
            f"can't fetch {source}: {first_line(error)}",
            "a hub model must have been downloaded before, or the hub be reachable and --offline left out",
        ) from error
    return Path(found)


# -------------------------------------------------------------------------------------------------- to audiocraft


def _to_audiocraft(folder: Path, out: Path, model: str) -> None:
    try:
        config = pretrained(AutoConfig, folder, local_files_only=True)
        if config.model_type != "musicgen":
            raise InputError(f"{model} is a {config.model_type} model, not a MusicGen one")
        tokenizer = pretrained(AutoTokenizer, folder, local_files_only=True)
        state = keys.modern({name: value for name, value in _safetensors(folder).items() if name not in COPIES})
        guidance = 3.0
        if (folder / "generation_config.json").is_file():
            guidance = pretrained(GenerationConfig, folder, local_files_only=True).guidance_scale or guidance
        speech_config, sound_config = configs.to_audiocraft(config, float(guidance), model)
        _refuse_incomplete(state, config, model)
        parts = _parts(state)
        up = configs.transposed_layers(config.audio_encoder)
        speech = keys.language_to_audiocraft(parts["language"], configs.TEXT, config.decoder.hidden_size)
        sound = keys.codec_to_audiocraft(parts["codec"], up)
    except LOAD_ERRORS as error:
        raise InputError(
            f"can't read {model} as a MusicGen of transformers: {first_line(error)}",
            "the folder needs config.json, model.safetensors and the tokenizer's files, as save_pretrained writes them",
        ) from error
    about = {"version": "1.3.0", "exported": True}
    for name, weights, cfg in ((packages.LM, speech, speech_config), (packages.CODEC, sound, sound_config)):
        packages.write(out / name, {packages.STATE: weights, packages.CONFIG: cfg, **about})
    text = config.text_encoder
    text.architectures, text.dtype = ["T5EncoderModel"], next(iter(parts["text"].values())).dtype
    text.save_pretrained(out / BESIDE)
    tokenizer.save_pretrained(out / BESIDE)
    _save(parts["text"], out / BESIDE)


def _safetensors(folder: Path) -> State:
    """All tensors of a folder, whether in one file or in several."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise OSError("there is no model.safetensors")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    yield name, file.get_tensor(name)

    return dict(tensors())


def _refuse_incomplete(state: State, config: MusicgenConfig, model: str) -> None:
    """Compare transformers' names and shapes with those of the model that its configuration describes."""
    with torch.device("meta"):
        described = MusicgenForConditionalGeneration(config).state_dict()
    wanted = {name: tuple(value.shape) for name, value in described.items() if name not in COPIES}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:
        name, _ = min(wanted.items() ^ found.items())
        raise InputError(
            f"{model} is not whole: {name} should be {list(wanted.get(name, ())) or 'absent'}, "
            f"and is {list(found.get(name, ())) or 'absent'}",
            "its configuration and its weights must be those of one model",
        )


def _parts(state: State) -> dict[str, State]:
    """Tensors by part, frozen parts without the prefix of their names."""
    parts: dict[str, State] = {"language": {}, "codec": {}, "text": {}}
    for name, value in state.items():
        prefix = next((prefix for prefix in PARTS if name.startswith(prefix)), "")
        parts[PARTS.get(prefix, "language")][name.removeprefix(prefix)] = value
    return parts


# ------------------------------------------------------------------------------------------------ to transformers


def _to_transformers(folder: Path, out: Path, model: str, offline: bool) -> None:
    speech, sound = packages.read(folder / packages.LM), packages.read(folder / packages.CODEC)
    cfg = packages.config(speech, folder / packages.LM)
    try:
        kinds.check_unfit(speech[packages.STATE], cfg, model)
        codec_state, codec_config = _codec(sound, model, offline)
        name = cfg.conditioners[configs.TEXT].t5.name
        text_config, tokenizer, text_state = _text(name, folder, offline)
        config, generation = configs.to_transformers(cfg, codec_config, text_config, model)
        weights = keys.language_to_transformers(speech[packages.STATE], configs.TEXT)
        if text_config.d_model == config.decoder.hidden_size:
            _drop_projection(weights, model)
    except (*language.BUILD_ERRORS, *LOAD_ERRORS) as error:
        raise InputError(
            f"can't read {model} as a MusicGen of audiocraft: {first_line(error)}",
            "its xp.cfg and its weights must be those of one model, as audiocraft exports it",
        ) from error
    for prefix, part in PARTS.items():
        weights |= {prefix + key: value for key, value in (codec_state if part == "codec" else text_state).items()}
    _refuse_incomplete(weights, config, model)
    config.architectures = ["MusicgenForConditionalGeneration"]
    config.dtype = next(iter(speech[packages.STATE].values())).dtype
    config.save_pretrained(out)
    generation.save_pretrained(out)
    features = EncodecFeatureExtractor(
        feature_size=config.decoder.audio_channels, sampling_rate=codec_config.sampling_rate
    )
    MusicgenProcessor(features, tokenizer).save_pretrained(out)
    _save(weights, out)


def _codec(package: packages.Package, model: str, offline: bool) -> tuple[State, Any]:
    if packages.ELSEWHERE in package:
        encodec = open_encodec(package[packages.ELSEWHERE], model, offline=offline)
        return encodec.state_dict(), encodec.config
    config = configs.encodec(packages.config(package, model), model)
    return keys.codec_to_transformers(package[packages.STATE]), config


def _text(name: str, folder: Path, offline: bool) -> tuple[T5Config, Any, State]:
    beside = folder / BESIDE
    if beside.is_dir():  # as it is stored
        return pretrained(T5Config, beside), pretrained(T5Tokenizer, beside), _safetensors(beside)
    text = TextEncoder.open(name, folder, offline=offline)
    state = text.t5.state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared`
    return text.t5.config, text.tokenizer, state


def _drop_projection(weights: State, model: str) -> None:
    """transformers projects text only where its width differs; what is dropped must have changed nothing."""
    weight, bias = weights.pop(keys.PROJECTION + "weight"), weights.pop(keys.PROJECTION + "bias")
    if not (weight == weight.new_zeros(()).expand_as(weight).clone().fill_diagonal_(1)).all() or bias.any():
        raise InputError(f"{model} projects text of its own width, which transformers has no weights for")


def _save(state: State, folder: Path) -> None:
    tensors = {name: value.contiguous().clone() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
