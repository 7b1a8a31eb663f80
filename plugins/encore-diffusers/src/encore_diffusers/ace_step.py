"""ACE-Step 1.5 (Gong et al., "ACE-Step: A Step Towards Music Generation Foundation Model", arXiv 2506.00045, and its
successor): a transformer trained as a rectified flow on the latents of a 1-D autoencoder.

It is given captions as text, without lyrics and without a recording to take the timbre from, as its pipeline gives
them. Neither encodings nor music may be padded (its transformer takes no mask), so rows of other lengths run apart.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor

from encore_diffusers.base import Conditioning, DiffusionBackend

WINDOW_SECONDS = 30.0  # longer tracks are cut into windows; it generates minutes, at a memory that grows as fast
TIMBRE_SECONDS = 30.0  # of silence, where there is no recording to take the timbre from


class AceStep(DiffusionBackend):
    """`AceStepPipeline`; what encodes conditions is trained with the transformer, as it was.

    The text also says how long the music is; it says `WINDOW_SECONDS` here for every clip, so that a caption has one
    encoding.
    """

    name = "ace-step"
    pipeline = "AceStepPipeline"
    library = "ace_step"
    trained = ("transformer", "condition_encoder")
    kept = {
        "vae": "codec",
        "text_encoder": "text_encoder",
        "audio_tokenizer": "audio_tokenizer",
        "audio_token_detokenizer": "audio_token_detokenizer",
    }
    logit_mean = -0.4  # `timestep_mu` of the published checkpoints' configuration; the deviation is 1

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        vae, config = self.parts["vae"], self.parts["transformer"].config
        self.sample_rate = vae.config.sampling_rate
        self.channels = vae.config.audio_channels
        self.frame_rate = self.sample_rate / vae.hop_length
        self.codebooks = config.audio_acoustic_hidden_dim
        self.max_frames = int(WINDOW_SECONDS * self.frame_rate)
        self.guided = not self.pipe.is_turbo
        self.inference_steps = 8 if self.pipe.is_turbo else 50
        self._lyrics: Tensor | None = None

    def _fixed(self) -> Sequence[str]:
        """What text and silence never use: guidance away from no caption, and a token that no layer reads."""
        return ["condition_encoder.null_condition_emb", "condition_encoder.timbre_encoder.special_token"]

    def _latents(self, waveforms: Tensor) -> Tensor:
        return self.parts["vae"].encode(waveforms).latent_dist.mode()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        return self.parts["vae"].decode(codes.to(self.device)).sample

    def _read(self, caption: str) -> Tensor:
        return self._encoded(caption)[0][0]

    @torch.no_grad()
    def _encoded(self, caption: str) -> tuple[Tensor, Tensor]:
        """States of the caption [1, L, D], and embeddings of no lyrics [1, M, D]."""
        text, _, lyrics, _ = self.pipe.encode_prompt(caption, "", self.device, audio_duration=WINDOW_SECONDS)
        return text, lyrics

    # ------------------------------------------------------------------------------------------------- the denoiser

    def _batch_key(self, caption: str, frames: int) -> Hashable:
        return frames, len(self.encode_text([caption])[0])

    def _prepare(self, captions: Sequence[str], frames: Sequence[int], *, unconditional: bool = False) -> Conditioning:
        encoder, count = self.parts["condition_encoder"], len(captions)
        if self._lyrics is None:
            self._lyrics = self._encoded("")[1]
        text = torch.stack(self.encode_text(captions))  # [N, L, D]
        lyrics = self._lyrics.expand(count, -1, -1)
        states, _ = encoder(
            text_hidden_states=text,
            text_attention_mask=torch.ones(text.shape[:2], dtype=torch.bool, device=self.device),
            lyric_hidden_states=lyrics,
            lyric_attention_mask=torch.ones(lyrics.shape[:2], dtype=torch.bool, device=self.device),
            refer_audio_acoustic_hidden_states_packed=self._silence(
                math.ceil(TIMBRE_SECONDS * self.frame_rate), count, repeated=False
            ),
            refer_audio_order_mask=torch.arange(count, device=self.device),
        )
        if unconditional:
            states = encoder.null_condition_emb.expand_as(states)
        silence = self._silence(frames[0], count)  # all rows are of one length
        generated = torch.ones_like(silence)  # all of it
        return {"states": states, "context": torch.cat([silence, generated], -1)}

    def _silence(self, frames: int, count: int, *, repeated: bool = True) -> Tensor:
        """The latents of silence that the model comes with, [N, T, K]."""
        silence = self.parts["condition_encoder"].silence_latent
        if repeated and silence.shape[1] < frames:
            silence = silence.repeat(1, math.ceil(frames / silence.shape[1]), 1)
        return silence[:, :frames].expand(count, -1, -1)

    def _predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.parts["transformer"](
            hidden_states=noisy.mT, timestep=timestep, timestep_r=timestep,
            encoder_hidden_states=conditioning["states"], context_latents=conditioning["context"], return_dict=False,
        )[0].mT  # fmt: skip

    # --------------------------------------------------------------------------------------------------- the sampler

    def _schedule(self, scheduler: Any) -> None:
        """Equal steps of t from 1 to 0, moved toward noise: t → 3 t / (1 + 2 t)."""
        times = torch.linspace(1, 0, self.inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=(3 * times / (1 + 2 * times)).tolist(), device=self.device)

    def _guide(self, conditional: Tensor, unconditional: Tensor, guidance: float, memory: dict[str, Any]) -> Tensor:
        """Adaptive projected guidance (Sadat et al., arXiv 2410.02416), with the pipeline's settings."""
        momentum = memory.setdefault("momentum", MomentumBuffer(momentum=-0.75))
        return normalized_guidance(
            conditional, unconditional, guidance - 1, momentum,
            eta=0.0, norm_threshold=2.5, use_original_formulation=True, norm_dim=(2,),
        )  # fmt: skip
