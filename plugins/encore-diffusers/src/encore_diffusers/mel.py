"""Log-mel spectrograms as HiFi-GAN's vocoders take them (Kong et al., arXiv 2010.05646), which AudioLDM is trained on.

diffusers has the way back only: its pipelines decode mel spectrograms, and never compute them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

FFT = 1024  # samples a window, at 16 kHz (Liu et al., "AudioLDM", arXiv 2301.12503, section 4)
FLOOR = 1e-5  # magnitudes below are taken as this


def log_mel(waveforms: Tensor, *, sample_rate: int, hop: int, bins: int) -> Tensor:
    """Waveforms [N, S] at `sample_rate` -> natural log of mel magnitudes [N, S / hop, bins]; S a multiple of hop.

    Bands are Slaney's, from 0 to half the rate, each of area 1; windows are Hann's, centred on their frames.
    """
    around = (FFT - hop) // 2
    padded = nn.functional.pad(waveforms[:, None], (around, FFT - hop - around), mode="reflect")[:, 0]
    window = torch.hann_window(FFT, device=waveforms.device)
    spectrum = torch.stft(padded, FFT, hop, window=window, center=False, return_complex=True).abs()  # [N, F, T]
    bands = mel_filter_bank(FFT // 2 + 1, bins, 0.0, sample_rate / 2, sample_rate, norm="slaney", mel_scale="slaney")
    weights = torch.from_numpy(bands).to(spectrum)  # [F, bins]
    return (spectrum.mT @ weights).clamp(min=FLOOR).log()
