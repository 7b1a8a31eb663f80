"""MusicGen (Copet et al., arXiv 2306.05284) through Meta's audiocraft, in audiocraft's own checkpoint format."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encore.api import Backend, Batch
from encore.delay_pattern import by_frame, generate_codes, inputs_of, predicted
from encore.errors import InputError, first_line
from encore.hub import fetchable
from encore_audiocraft import codec as codecs
from encore_audiocraft import language, packages
from encore_audiocraft.configs import longest
from encore_audiocraft.packages import Package
from encore_audiocraft.text import TextEncoder


class AudiocraftBackend(Backend):
    """A MusicGen of audiocraft: text-to-music, melody (used without a melody) or stereo.

    Its folder holds `state_dict.bin` and `compression_state_dict.bin`, and may hold the text encoder in `t5/`. See
    `encore.api.Backend` for the contract; `save` writes audiocraft's format, which is torch.save's and not safetensors.
    """

    name = "audiocraft"
    module: nn.Module

    def __init__(
        self, spoken: language.Language, codec: Any, text: TextEncoder, written: tuple[Package, Package]
    ) -> None:
        """
        Args:
            written: the packages that the two parts came from, without their weights.
        """
        self.language, self.codec, self.text, self.written = spoken, codec, text, written
        self.module = spoken.lm
        self.delays, self.channels = spoken.delays, spoken.channels
        self.codebooks, self.codebook_size = len(spoken.delays), int(spoken.lm.card)
        self.sample_rate, self.frame_rate = int(codec.sample_rate), float(codec.frame_rate)
        self.hop = round(self.sample_rate / self.frame_rate)  # samples per codec frame
        self.max_frames = longest(spoken.cfg, self.frame_rate)
        self.device = next(spoken.lm.parameters()).device
        self.text_embeddings: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------------------ load, save

    @classmethod
    def load(
        cls, model: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu"
    ) -> AudiocraftBackend:
        folder = fetch(model, revision=revision, offline=offline)
        speech, sound = packages.read(folder / packages.LM), packages.read(folder / packages.CODEC)
        if packages.STATE not in speech:
            raise InputError(f"{folder / packages.LM} holds no language model")
        spoken = language.build(speech[packages.STATE], packages.config(speech, folder / packages.LM), model)
        codec = codecs.build(sound, model, used=spoken.cfg.get("compression_model_n_q"), offline=offline)
        if codec.num_codebooks * spoken.channels != len(spoken.delays) or codec.cardinality != spoken.lm.card:
            raise InputError(f"the codec of {model} is not the one its language model was trained on")
        text = TextEncoder.open(spoken.text_encoder, folder, offline=offline)
        for part in (spoken.lm, codec, text):
            part.to(device)
        return cls(spoken, codec, text, (_hollow(speech), _hollow(sound)))

    def save(self, folder: Path) -> None:
        speech, sound = self.written
        state = {**self.language.lm.state_dict(), **self.language.aside}
        packages.write(folder / packages.LM, packages.with_state(speech, _plain(state, speech)))
        kept = _plain(self.codec.state_dict(), sound) if packages.STATE in sound else {}
        packages.write(folder / packages.CODEC, packages.with_state(sound, kept))
        if self.text.beside:
            self.text.save(folder)

    def clone(self) -> AudiocraftBackend:
        spoken = replace(self.language, lm=copy.deepcopy(self.language.lm))
        twin = AudiocraftBackend(spoken, self.codec, self.text, self.written)
        twin.text_embeddings = self.text_embeddings
        return twin

    def frozen(self) -> Mapping[str, nn.Module]:
        return {"codec": self.codec, "text_encoder": self.text}

    def reinitialise(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.language.lm.load_state_dict(language.fresh_state(self.language))

    # --------------------------------------------------------------------------------------------- codec and text

    @torch.no_grad()
    def encode(self, waveforms: Tensor) -> Tensor:
        if waveforms.shape[1] != self.channels:
            raise ValueError(f"{waveforms.shape[1]} audio channels given, the model has {self.channels}")
        codes, _ = self.codec.encode(waveforms.flatten(0, 1)[:, None].to(self.device))  # [N * C, K / C, T]
        return codecs.interleaved(codes, self.channels)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.codec.decode(codecs.mono(codes.to(self.device), self.channels))  # [N * C, 1, S]
        return audio.reshape(len(codes), self.channels, -1)[..., : codes.shape[-1] * self.hop]

    @torch.no_grad()
    def latents(self, codes: Tensor) -> Tensor:
        latents: Tensor = self.codec.decode_latent(codecs.mono(codes.to(self.device), self.channels))  # [N * C, D, T]
        return latents.reshape(-1, self.channels, *latents.shape[1:]).mean(1)

    def encode_text(self, captions: Sequence[str]) -> list[Tensor]:
        for caption in captions:
            if caption not in self.text_embeddings:
                self.text_embeddings[caption] = self.text(caption)
        return [self.text_embeddings[caption] for caption in captions]

    def _states(self, captions: Sequence[str], unconditional: bool = False) -> list[Tensor]:
        """Text states, one [L, D] a caption; none at all for no caption, which audiocraft reads as an empty one."""
        states = self.encode_text(captions)
        if unconditional:
            return [states[0][:0] for _ in captions]
        return [one if caption else one[:0] for caption, one in zip(captions, states, strict=True)]

    # ------------------------------------------------------------------------------------------------ likelihood

    def token_mask(self, batch: Batch) -> Tensor:
        return predicted(batch.frames, batch.codes.shape[-1], self.delays)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        if self.language.prefixed:  # runs clips apart, by the length of their captions
            return super().blocks
        layers: nn.ModuleList = self.language.lm.transformer.layers
        return list(layers)

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        states = self._states(batch.captions, unconditional)
        codes = batch.codes.to(self.device)
        if not self.language.prefixed:
            return self._logits(codes, states)
        # Captions of one length at a time: a prefix moves the music after it, and padding would move it further.
        rows: dict[int, list[int]] = {}
        for row, one in enumerate(states):
            rows.setdefault(len(one), []).append(row)
        parts = [self._logits(codes[chosen], [states[row] for row in chosen]) for chosen in rows.values()]
        order = torch.tensor([row for chosen in rows.values() for row in chosen], device=self.device)
        return parts[0] if len(parts) == 1 else torch.cat(parts)[order.argsort()]

    def _logits(self, codes: Tensor, states: Sequence[Tensor]) -> Tensor:
        given, keep = self.language.conditions(states)
        inputs = inputs_of(codes, self.delays, self.codebook_size)
        with self.language.masking_text(keep):
            by_step = self.language.lm(inputs, [], given)  # [N, K, T, V]
        return torch.stack([by_frame(by_step[:, k], delay) for k, delay in enumerate(self.delays)], 1)

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
        states = self._states(captions)
        settings: dict[str, Any] = {"guidance": guidance, "temperature": temperature, "top_k": top_k}
        if self.language.prefixed and len({len(one) for one in states}) > 1:
            alone = [
                self.generate(
                    [caption], seconds=seconds, prompt=None if prompt is None else prompt[row : row + 1],
                    seed=seed + row, **settings,
                )
                for row, caption in enumerate(captions)
            ]  # fmt: skip
            return torch.cat(alone)
        lm = self.language.lm
        given, keep = self.language.conditions(states, absent=len(captions) if guidance != 1.0 else 0)
        with self.language.masking_text(keep), lm.streaming():
            return generate_codes(
                lambda tokens: lm(tokens, [], given)[:, :, -1], count=len(captions),
                frames=round(seconds * self.frame_rate), delays=self.delays, start=self.codebook_size, prompt=prompt,
                device=self.device, seed=seed, **settings,
            )  # fmt: skip


def fetch(model: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder with a model's two files: itself, or where the hub's client keeps them.

    Raises:
        InputError: it lacks them, or the hub does not give them.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = _from_hub(model, revision, offline)
    for name in (packages.LM, packages.CODEC):
        if not (folder / name).is_file():
            raise InputError(
                f"{model} is not an audiocraft model: it lacks {name}",
                "a model of transformers opens with --backend musicgen; encore convert turns one into the other",
            )
    return folder


def _from_hub(model: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download

    here = offline or not fetchable(model, revision, packages.LM)
    cache = os.environ.get("AUDIOCRAFT_CACHE_DIR")  # where audiocraft itself keeps them
    try:
        files = [
            hf_hub_download(model, name, revision=revision, local_files_only=here, cache_dir=cache)
            for name in (packages.LM, packages.CODEC)
        ]
    except (OSError, ValueError, RuntimeError) as error:  # the hub's errors are OSErrors and ValueErrors
        raise InputError(
            f"can't fetch {model}: {first_line(error)}",
            "a hub model must have been downloaded before, or the hub be reachable and --offline left out",
        ) from error
    return Path(files[0]).parent


def _hollow(package: Package) -> Package:
    """Everything but the weights, whose names and order stay."""
    return {key: dict.fromkeys(value) if key == packages.STATE else value for key, value in package.items()}


def _plain(state: Mapping[str, Tensor], package: Package) -> packages.State:
    """Weights in the order they had, on the CPU, each with its own storage."""
    return {name: state[name].detach().cpu().clone().contiguous() for name in package[packages.STATE]}
