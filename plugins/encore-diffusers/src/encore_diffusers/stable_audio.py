"""Stable Audio (Evans et al., "Long-form music generation with latent diffusion", arXiv 2404.10301; "Stable Audio
Open", arXiv 2407.14358): a transformer on the latents of a 1-D autoencoder, given T5's states and the length.

It is trained on windows of one length, shorter music followed by silence, with the length of the music as an input. So
a clip is encoded here: padded with silence, its length as a condition, and the loss taken over its frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encore_diffusers.base import Conditioning, DiffusionBackend


class StableAudio(DiffusionBackend):
    """`StableAudioPipeline`; the projections of text and seconds are trained with the transformer, as they were."""

    name = "stable-audio"
    pipeline = "StableAudioPipeline"
    library = "stable_audio"
    trained = ("transformer", "projection_model")
    kept = {"vae": "codec", "text_encoder": "text_encoder"}
    inference_steps = 100  # the pipeline's own default

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        vae, config = self.parts["vae"], self.parts["transformer"].config
        self.sample_rate = vae.config.sampling_rate
        self.channels = vae.config.audio_channels
        self.frame_rate = self.sample_rate / vae.hop_length
        self.codebooks = config.in_channels
        self.max_frames = config.sample_size
        self._silence: Tensor | None = None

    def _fixed(self) -> Sequence[str]:
        return ["transformer.time_proj.weight"]  # random Fourier features, which diffusers does not train

    def _latents(self, waveforms: Tensor) -> Tensor:
        return self.parts["vae"].encode(waveforms).latent_dist.mode()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.parts["vae"].decode(codes.to(self.device)).sample

    def _read(self, caption: str) -> Tensor:
        tokenizer = self.parts["tokenizer"]
        tokens = tokenizer([caption], truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt")
        return self.parts["text_encoder"](tokens.input_ids.to(self.device)).last_hidden_state[0]

    # ------------------------------------------------------------------------------------------------- the denoiser

    def _batch_key(self, caption: str, frames: int) -> Hashable:
        return None  # captions are padded with zeros, music with silence

    def _window(self, frames: int) -> int:
        return self.max_frames

    def _windowed(self, latents: Tensor) -> Tensor:
        frames = latents.shape[-1]
        if frames == self.max_frames:
            return latents
        if self._silence is None:
            silence = torch.zeros(1, self.channels, self.max_frames * self.hop, device=self.device)
            with torch.no_grad():
                self._silence = self._latents(silence)[0]
        return torch.cat([latents, self._silence[:, frames:]], -1)

    def _prepare(self, captions: Sequence[str], frames: Sequence[int], *, unconditional: bool = False) -> Conditioning:
        project = self.parts["projection_model"]
        read = self.encode_text(captions)
        most = self.parts["tokenizer"].model_max_length
        lengths = torch.tensor([len(states) for states in read], device=self.device)
        states = pad_sequence([*read, read[0].new_zeros(most, read[0].shape[-1])], batch_first=True)[:-1]  # [N, L, D]
        real = torch.arange(states.shape[1], device=self.device) < lengths[:, None]
        text = project(text_hidden_states=states).text_hidden_states * real[..., None]
        end = torch.tensor(frames, dtype=torch.float32, device=self.device) / self.frame_rate
        seconds = project(start_seconds=torch.zeros_like(end), end_seconds=end)
        start, end = seconds.seconds_start_hidden_states, seconds.seconds_end_hidden_states  # [N, 1, D]
        states = torch.cat([text, start, end], 1)
        return {"states": torch.zeros_like(states) if unconditional else states, "seconds": torch.cat([start, end], 2)}

    def _predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = self.parts["transformer"]
        rotary = get_1d_rotary_pos_embed(
            transformer.config.attention_head_dim // 2, noisy.shape[-1] + 1, use_real=True, repeat_interleave_real=False
        )
        return transformer(
            noisy, timestep, encoder_hidden_states=conditioning["states"], global_hidden_states=conditioning["seconds"],
            rotary_embedding=tuple(part.to(self.device) for part in rotary), return_dict=False,
        )[0]  # fmt: skip
