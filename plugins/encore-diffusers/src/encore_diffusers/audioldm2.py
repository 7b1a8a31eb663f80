"""AudioLDM 2 (Liu et al., "AudioLDM 2: Learning Holistic Audio Generation with Self-supervised Pretraining", arXiv
2308.05734): a U-Net on the latents of a mel spectrogram, given T5's states and what GPT-2 makes of them and CLAP's.

Latents [C, T, F] of the autoencoder are kept as K = C · F channels of T frames.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from encore.errors import InputError
from encore_diffusers.base import Conditioning, DiffusionBackend
from encore_diffusers.mel import log_mel

WINDOW_SECONDS = 10.24  # what it was trained on (section 4.1 of the first paper, arXiv 2301.12503)


class AudioLdm2(DiffusionBackend):
    """`AudioLDM2Pipeline` for music and sounds; the U-Net is trained, all that reads captions stays as it is."""

    name = "audioldm2"
    pipeline = "AudioLDM2Pipeline"
    library = "audioldm2"
    trained = ("unet",)
    kept = {
        "vae": "codec",
        "vocoder": "vocoder",
        "text_encoder": "text_encoder",
        "text_encoder_2": "text_encoder_2",
        "projection_model": "projection_model",
        "language_model": "language_model",
    }
    inference_steps = 200  # the pipeline's own default
    channels = 1

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        if type(self.parts["text_encoder_2"]).__name__ != "T5EncoderModel":
            raise InputError("this AudioLDM 2 checkpoint generates speech from phonemes, not music from captions")
        vae, vocoder = self.parts["vae"].config, self.parts["vocoder"].config
        self.sample_rate = vocoder.sampling_rate
        self._shrunk = 2 ** (len(vae.block_out_channels) - 1)  # mel frames a latent frame, mel bins a latent bin
        self._mel_hop = math.prod(vocoder.upsample_rates)  # samples a mel frame
        self._bins = vocoder.model_in_dim
        self.frame_rate = self.sample_rate / (self._mel_hop * self._shrunk)
        self._planes = vae.latent_channels  # C
        self.codebooks = self._planes * self._bins // self._shrunk
        self.max_frames = int(WINDOW_SECONDS * self.frame_rate)

    def _latents(self, waveforms: Tensor) -> Tensor:
        mel = log_mel(waveforms[:, 0], sample_rate=self.sample_rate, hop=self._mel_hop, bins=self._bins)
        planes = self.parts["vae"].encode(mel[:, None]).latent_dist.mode()  # [N, C, T, F]
        return self._folded(planes * self.parts["vae"].config.scaling_factor)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        planes = self._unfolded(codes.to(self.device)) / self.parts["vae"].config.scaling_factor
        mel = self.parts["vae"].decode(planes).sample[:, 0]  # [N, mel frames, bins]
        wanted = codes.shape[-1] * self.hop
        waveforms = self.parts["vocoder"](mel)
        rest = max(0, wanted - waveforms.shape[-1])  # a vocoder may leave some samples out at the end
        return nn.functional.pad(waveforms, (0, rest))[:, None, :wanted]

    def _folded(self, planes: Tensor) -> Tensor:
        return planes.transpose(2, 3).flatten(1, 2)  # [N, C, T, F] -> [N, C F, T]

    def _unfolded(self, latents: Tensor) -> Tensor:
        return latents.unflatten(1, (self._planes, -1)).transpose(2, 3)

    def _read(self, caption: str, tokens: int | None = None) -> Tensor:
        """GPT-2's sequence [M, D'] and then T5's states [L, D], the narrower one filled up with zeros.

        The pipeline's own loop over GPT-2 needs a class that can generate, which `GPT2Model`, in published checkpoints,
        no longer is under transformers 5.

        Args:
            tokens: pad what T5 reads to so many; GPT-2 does not see the padding, but counts it.
        """
        clap, clap_tokens = self.parts["text_encoder"], self._tokens("tokenizer", caption)
        features = clap.get_text_features(**clap_tokens)
        pooled = getattr(features, "pooler_output", features)[:, None]  # [1, 1, D]
        read = self._tokens("tokenizer_2", caption, tokens)
        states = self.parts["text_encoder_2"](**read).last_hidden_state  # [1, L, D]
        projected = self.parts["projection_model"](
            hidden_states=pooled, hidden_states_1=states, attention_mask=read["attention_mask"].new_ones(1, 1),
            attention_mask_1=read["attention_mask"],
        )  # fmt: skip
        made, mask = projected.hidden_states, projected.attention_mask
        model = getattr(self.parts["language_model"], "transformer", self.parts["language_model"])
        for _ in range(self._made):
            last = model(inputs_embeds=made, attention_mask=mask).last_hidden_state[:, -1:]
            made, mask = torch.cat([made, last], 1), torch.cat([mask, mask.new_ones(1, 1)], 1)
        made, states = made[0, -self._made :], states[0, : int(read["attention_mask"].sum())]
        width = max(states.shape[-1], made.shape[-1])
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[-1])) for part in (made, states)])

    def _tokens(self, tokenizer: str, caption: str, count: int | None = None) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, each [1, L]; padded to a count where there is one."""
        chosen = self.parts[tokenizer]
        most = chosen.model_max_length if count is None else count
        padding = "do_not_pad" if count is None else "max_length"
        read = chosen([caption], padding=padding, truncation=True, max_length=most, return_tensors="pt").to(self.device)
        return {"input_ids": read.input_ids, "attention_mask": read.attention_mask}

    @property
    def _made(self) -> int:
        """How many vectors GPT-2 makes, M."""
        return self.parts["language_model"].config.max_new_tokens

    # ------------------------------------------------------------------------------------------------- the denoiser

    def _batch_key(self, caption: str, frames: int) -> Hashable:
        return frames

    def _prepare(self, captions: Sequence[str], frames: Sequence[int], *, unconditional: bool = False) -> Conditioning:
        read = self.encode_text(captions)
        if unconditional:  # no caption, padded to the length of this one, is what the pipeline guides away from
            read = [self._read("", len(one) - self._made) for one in read]
        made = self._made
        states = pad_sequence([one[made:, : self.parts["text_encoder_2"].config.d_model] for one in read], True)
        lengths = torch.tensor([len(one) - made for one in read], device=self.device)
        return {
            "made": torch.stack([one[:made, : self.parts["language_model"].config.n_embd] for one in read]),
            "states": states,
            "real": torch.arange(states.shape[1], device=self.device) < lengths[:, None],
        }

    def _predict(self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = self.parts["unet"](
            self._unfolded(noisy), timestep, encoder_hidden_states=conditioning["made"],
            encoder_hidden_states_1=conditioning["states"], encoder_attention_mask_1=conditioning["real"],
            return_dict=False,
        )[0]  # fmt: skip
        return self._folded(prediction)
