"""VGGish (Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from encore.embedders.released import Released

WINDOW, HOP, BINS = 400, 160, 512  # samples of a frame, from one frame to the next, and of its Fourier transform
FRAMES = 96  # of an example, which are .96 s, side by side
CONVOLUTIONS = ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True))  # place; is it pooled after?


class Vggish(Released):
    """The mean over a sound's examples of .96 s of the last layer before its ReLU, [N, 128].

    Published FADs use the same output, without PCA and quantisation, but pool the examples of all sounds, where here
    each sound has one vector: figures don't compare. The rest after the last full example is ignored; audio shorter
    than one is padded with silence.
    """

    sample_rate = 16_000
    address = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"

    @classmethod
    def network_of(cls, weights: Mapping[str, Tensor]) -> nn.Module:
        with torch.device("meta"):  # neither draws weights that are overwritten, nor touches the shared generator
            network = Network(weights)
        network.load_state_dict(weights, assign=True)
        return network

    @torch.no_grad()
    def embed(self, waveforms: Tensor) -> Tensor:
        vectors = [self.network(examples(waveform).to(self.device)).mean(0) for waveform in waveforms.float().cpu()]
        return torch.stack(vectors).cpu()


def examples(waveform: Tensor) -> Tensor:
    """[S] -> log-mel spectrograms of its examples, [W, 96, 64]."""
    least = (FRAMES - 1) * HOP + WINDOW
    waveform = nn.functional.pad(waveform, (0, max(0, least - len(waveform))))
    frames = waveform.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    bank = mel_filter_bank(BINS // 2 + 1, 64, 125.0, 7500.0, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True)
    mel = torch.fft.rfft(frames, BINS).abs() @ torch.from_numpy(bank).float()  # [T, 64]
    return (mel + 0.01).log().unfold(0, FRAMES, FRAMES).transpose(1, 2)


class Network(nn.Module):
    """Six convolutions and three layers, as wide as the weights say, under the released names."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, pooled in CONVOLUTIONS:
            wide, narrow = weights[f"features.{place}.weight"].shape[:2]
            layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if pooled else [])]
        self.features = nn.Sequential(*layers)
        widths = [weights["embeddings.0.weight"].shape[1], *(len(weights[f"embeddings.{i}.bias"]) for i in (0, 2, 4))]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.embeddings = nn.Sequential(*layers[:-1])

    def forward(self, mel: Tensor) -> Tensor:
        """[W, 96, 64] -> [W, 128]"""
        return self.embeddings(self.features(mel[:, None]).permute(0, 2, 3, 1).flatten(1))
