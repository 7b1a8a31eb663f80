"""MusicGen (Copet et al., "Simple and Controllable Music Generation", arXiv 2306.05284) through transformers.

The decoder predicts K codebooks under a delay pattern: at step s it predicts frame s - d_k of codebook k, with
d_k = k (mono) or k // 2 (stereo, whose codebooks are interleaved left, right). Of a window of T frames, T steps are
run, so that T - d_k tokens of codebook k are predicted, as audiocraft counts them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, MusicgenForConditionalGeneration

from encore import assets
from encore.api import Backend, Batch, Clip
from encore.backends.musicgen_steps import StepDecoder
from encore.delay_pattern import by_frame, generate_codes, inputs_of, predicted
from encore.errors import InputError
from encore.hub import fetchable, pretrained, quiet_transformers, tried

PASSING = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
AUDIOCRAFT_FILE = "compression_state_dict.bin"  # of a MusicGen in audiocraft's format
WINDOW_SECONDS = 30.0  # what MusicGen was trained on (paper, section 3.1); longer tracks are cut into windows


class MusicgenBackend(Backend):
    """A `MusicgenForConditionalGeneration`, mono or stereo; see `encore.api.Backend` for the contract."""

    name = "musicgen"
    module: nn.ModuleDict

    def __init__(self, model: MusicgenForConditionalGeneration, processor: Any) -> None:
        decoder, codec = model.config.decoder, model.config.audio_encoder
        if model.decoder.config._attn_implementation is None:
            # Without an implementation transformers builds no causal mask at all: later tokens would leak.
            model.decoder.set_attn_implementation("sdpa")
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.channels = decoder.audio_channels
        self.codebooks = decoder.num_codebooks
        self.codebook_size = decoder.vocab_size
        self.sample_rate = codec.sampling_rate
        self.hop = math.prod(codec.upsampling_ratios)  # samples per codec frame
        self.frame_rate = self.sample_rate / self.hop
        self.delays = [k // self.channels for k in range(self.codebooks)]
        # A window is played in as many more steps as the last codebook is late, and those need positions too.
        positions = decoder.max_position_embeddings - self.delays[-1]
        self.max_frames = min(int(WINDOW_SECONDS * self.frame_rate), positions)
        self.device = model.device
        parts = {"decoder": model.decoder}
        if hasattr(model, "enc_to_dec_proj"):
            parts["enc_to_dec_proj"] = model.enc_to_dec_proj
        self.module = nn.ModuleDict(parts).requires_grad_(True).eval()  # a new ModuleDict says that it trains
        self.text_embeddings: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------------------ load, save

    @classmethod
    @quiet_transformers()
    def load(
        cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu"
    ) -> MusicgenBackend:
        source = str(assets.model_folder(model) or model)
        where: dict[str, Any] = {"revision": revision, "local_files_only": offline or not fetchable(source, revision)}
        where |= {"what": " as a MusicGen model", "hint": _hint(model)}
        config = pretrained(AutoConfig, source, **where)
        if config.model_type != "musicgen":
            raise InputError(
                f"{model} is a {config.model_type} model, not a MusicGen one",
                "`encore backends` lists the model families that are installed",
            )
        if config.audio_encoder.normalize or config.audio_encoder.chunk_length_s:
            raise InputError(f"the codec of {model} normalises or chunks its input, which this backend can't invert")
        network, loading = pretrained(
            MusicgenForConditionalGeneration, source, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True, **where,
        )  # fmt: skip
        processor = pretrained(AutoProcessor, source, **where)
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise InputError(f"{model} lacks {len(missing)} weights, first of all {missing[0]}")
        _refuse_unusable(model, config, processor)
        backend = cls(network.to(device), processor)
        with tried(f"can't use {model} as a MusicGen model", _hint(model)):
            backend._try()
        return backend

    @torch.no_grad()
    def _try(self) -> None:
        """Use each part once, as this class does: some settings fail only then, and what a subclass does is its own."""
        codes = MusicgenBackend.encode(self, torch.zeros(1, self.channels, 2 * self.hop))
        MusicgenBackend.decode(self, codes)
        MusicgenBackend.logits(self, Batch.of([Clip("", "a", codes[0])], self.device))
        self.text_embeddings.clear()

    @quiet_transformers()
    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def clone(self) -> MusicgenBackend:
        shared = {id(part): part for part in self.frozen().values()}
        # One copy of both: an adapter may stand between `module` and a part of the model.
        model, module = copy.deepcopy((self.model, self.module), dict(shared))
        twin = type(self)(model, self.processor)
        twin.module = module.requires_grad_(True).eval()
        twin.text_embeddings = self.text_embeddings
        return twin

    def frozen(self) -> Mapping[str, nn.Module]:
        return {"codec": self.model.audio_encoder, "text_encoder": self.model.text_encoder}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.decoder.model.decoder.layers)

    @property
    def settings(self) -> str:
        """Hash of the configuration and the vocabulary: the same weights under others are another model."""
        vocabulary = sorted(self.processor.tokenizer.get_vocab().items())
        settings = _without_provenance(self.model.config.to_dict()), vocabulary
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def reinitialise(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            for part in self.module.modules():
                loaded: Any
                for loaded in (part, *part.parameters(recurse=False)):
                    loaded._is_hf_initialized = False  # else transformers leaves it as it is
                self.model.decoder._init_weights(part)

    # --------------------------------------------------------------------------------------------- codec and text

    @torch.no_grad()
    def encode(self, waveforms: Tensor) -> Tensor:
        count, channels, samples = waveforms.shape
        if channels != self.channels:
            raise ValueError(f"{channels} audio channels given, the model has {self.channels}")
        mono = waveforms.reshape(count * channels, 1, samples).to(self.device)
        codes = self.model.audio_encoder.encode(mono, return_dict=True).audio_codes[0]  # [N * C, K / C, T]
        codes = codes.reshape(count, channels, -1, codes.shape[-1])
        return codes.transpose(1, 2).flatten(1, 2)  # [N, K, T], left and right interleaved

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        count, _, frames = codes.shape
        split = codes.reshape(count, -1, self.channels, frames).transpose(1, 2)  # [N, C, K / C, T]
        audio = self.model.audio_encoder.decode(split.flatten(0, 1)[None].to(self.device), [None]).audio_values
        return audio.reshape(count, self.channels, -1)[..., : frames * self.hop]

    @torch.no_grad()
    def latents(self, codes: Tensor) -> Tensor:
        count = len(codes)
        split = codes.to(self.device).reshape(count, -1, self.channels, codes.shape[-1])
        latents = self.model.audio_encoder.quantizer.decode(split.permute(1, 0, 2, 3).flatten(1, 2))  # [N * C, D, T]
        return latents.reshape(count, self.channels, *latents.shape[1:]).mean(1)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        for caption in captions:
            if caption not in self.text_embeddings:
                tokens = self.processor.tokenizer([caption], return_tensors="pt").to(self.device)
                states = self.model.text_encoder(
                    input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
                ).last_hidden_state
                self.text_embeddings[caption] = states[0]
        return [self.text_embeddings[caption] for caption in captions]

    def _text_states(self, captions: Sequence[str], unconditional: bool) -> tuple[Tensor, Tensor]:
        """Projected text states [N, L, D] and mask [N, L]; zeros and all-False without a condition."""
        states = nn.utils.rnn.pad_sequence(self.encode_text(captions), batch_first=True)
        lengths = torch.tensor([len(self.text_embeddings[caption]) for caption in captions], device=self.device)
        mask = torch.arange(states.shape[1], device=self.device) < lengths[:, None]
        if unconditional:
            mask = torch.zeros_like(mask)
        if "enc_to_dec_proj" in self.module:
            states = self.module["enc_to_dec_proj"](states)
        return states * mask[..., None], mask

    # ------------------------------------------------------------------------------------------------ likelihood

    def token_mask(self, batch: Batch) -> Tensor:
        return predicted(batch.frames, batch.codes.shape[-1], self.delays)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        states, text_mask = self._text_states(batch.captions, unconditional)
        inputs = inputs_of(batch.codes.to(self.device), self.delays, self.codebook_size)
        hidden = self.model.decoder.model(
            inputs.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=text_mask, use_cache=False
        ).last_hidden_state  # [N, T, D], step by step
        heads = zip(self.model.decoder.lm_heads, self.delays, strict=True)
        return torch.stack([head(by_frame(hidden, delay)) for head, delay in heads], 1)  # [N, K, T, V]

    # ------------------------------------------------------------------------------------------------ generation

    @torch.no_grad()
    def generate(
        self,
        captions: Sequence[str],
        *,
        seconds: float,
        prompt: Tensor | None = None,
        seed: int = 0,
        guidance: float = 3.0,
        temperature: float = 1.0,
        top_k: int = 250,
    ) -> Tensor:
        states, mask = self._text_states(captions, unconditional=False)
        if guidance != 1.0:
            states, mask = torch.cat([states, torch.zeros_like(states)]), torch.cat([mask, torch.zeros_like(mask)])
        frames = round(seconds * self.frame_rate)
        return generate_codes(
            StepDecoder(self.model.decoder, states, mask, frames + self.delays[-1]), count=len(captions), frames=frames,
            delays=self.delays, start=self.codebook_size, prompt=prompt, device=self.device, seed=seed,
            guidance=guidance, temperature=temperature, top_k=top_k,
        )  # fmt: skip


def _without_provenance(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what only tells where and with what it was written."""
    kept = {key: value for key, value in config.items() if key not in PASSING}
    return {key: _without_provenance(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _refuse_unusable(model: str, config: Any, processor: Any) -> None:
    """Refuse settings that the network was built with, and that leave nothing to train or to generate."""
    decoder, codec, text = config.decoder, config.audio_encoder, config.text_encoder
    needed = ("audio_channels", "num_codebooks", "vocab_size", "max_position_embeddings", "num_hidden_layers")
    sizes = {f"decoder.{name}": getattr(decoder, name) for name in needed}
    sizes |= {f"audio_encoder.upsampling_ratios.{i}": ratio for i, ratio in enumerate(codec.upsampling_ratios)}
    sizes["audio_encoder.sampling_rate"] = codec.sampling_rate
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise InputError(f"config.json of {model} has {name} {value!r}, which must be a whole number above 0")
    reason = ""
    if decoder.audio_channels > 2 or decoder.num_codebooks % decoder.audio_channels:
        reason = f"{decoder.num_codebooks} codebooks for {decoder.audio_channels} channels"
    elif codec.codebook_size > decoder.vocab_size:
        reason = f"a codec of {codec.codebook_size} codes, and a decoder that knows {decoder.vocab_size}"
    elif decoder.max_position_embeddings <= decoder.num_codebooks // decoder.audio_channels:
        reason = f"{decoder.max_position_embeddings} positions, too few for {decoder.num_codebooks} codebooks"
    elif max(processor.tokenizer.get_vocab().values(), default=0) >= text.vocab_size:
        reason = f"a tokenizer with more words than the {text.vocab_size} of its text encoder"
    if reason:
        raise InputError(f"{model} can't be used: it has {reason}")


def _hint(model: str) -> str:
    if (Path(model) / AUDIOCRAFT_FILE).exists():
        return "it is a checkpoint of audiocraft: --backend audiocraft opens it, which is a plugin (encore-audiocraft)"
    if Path(model).is_dir():
        return (
            "the folder needs config.json, model.safetensors and the tokenizer's files, as save_pretrained writes "
            "them; a model of another family is opened with --backend, see `encore backends`"
        )
    return "a hub model must have been downloaded before, or the hub be reachable and --offline left out"
