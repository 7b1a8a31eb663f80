"""Start of the codec: a SEANet whose first stages are a two-level MDCT filterbank.

Trained from random weights, a codec this small needs hours; started as a transform that nearly reconstructs its input,
it needs minutes. The first convolution passes the wave, stage A is an MDCT of s1 bands on the wave, stage B one of s2
coefficients inside each band of which the most energetic are kept; the decoder is the transpose. Amplitudes are scaled
by `gain` so that the ELUs between act almost linearly.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import EncodecModel


def mdct(bands: int) -> Tensor:
    """Sine-windowed MDCT basis, [bands, 2·bands]."""
    n, k = torch.arange(2 * bands), torch.arange(bands)[:, None]
    window = torch.sin(math.pi / (2 * bands) * (n + 0.5))
    return math.sqrt(2 / bands) * window * torch.cos(math.pi / bands * (n + 0.5 + bands / 2) * (k + 0.5))


def _small(weight: Tensor, eps: float = 1e-2) -> Tensor:
    return eps * torch.randn_like(weight) / math.sqrt(weight[0].numel())


def _convs(stack: Any) -> list[Any]:
    return [layer.conv for layer in stack.layers if hasattr(layer, "conv")]


def _set(conv: Any, weight: Tensor) -> None:
    conv.weight = weight  # through weight_norm's right inverse
    conv.bias.zero_()


@torch.no_grad()
def init_mdct(model: EncodecModel, audio: Tensor, gain: float = 0.15) -> None:
    """Sets the weights in place; `audio` [N, samples] tells which coefficients carry energy."""
    config: Any = model.config
    if config.use_causal_conv or config.num_residual_layers or len(config.upsampling_ratios) != 2:
        raise ValueError("init_mdct needs a non-causal SEANet of two stages without residual layers")
    s2, s1 = config.upsampling_ratios
    kept = 4 * config.num_filters
    basis_a, basis_b = mdct(s1), mdct(s2)
    left, left2 = s1 - s1 // 2, s2 - s2 // 2
    bands = F.conv1d(F.pad(audio[:, None], (left, s1 - left)), basis_a[:, None], stride=s1)  # [N, s1, T]
    flat = F.pad(bands, (left2, s2 - left2)).reshape(-1, 1, bands.shape[-1] + s2)
    energy = F.conv1d(flat, basis_b[:, None], stride=s2).view(len(bands), s1, s2, -1).pow(2).mean((0, 3))
    top = energy.flatten().topk(kept).indices.tolist()

    enc, dec = _convs(model.encoder), _convs(model.decoder)
    w = _small(enc[0].weight) * 10 * gain
    w[0] = 0
    w[0, 0, w.shape[-1] // 2] = gain
    _set(enc[0], w)
    w = _small(enc[1].weight)
    w[:s1] *= 0.1
    w[:s1, 0] = basis_a
    _set(enc[1], w)
    w = _small(enc[2].weight) * 0.1
    for o, i in enumerate(top):
        w[o, i // s2] = basis_b[i % s2]
    _set(enc[2], w)
    for conv in (enc[3], dec[0]):
        w = _small(conv.weight)
        for o in range(min(config.hidden_size, kept)):
            w[o] *= 0.1
            w[o, o, w.shape[-1] // 2] = 1
        _set(conv, w)
    w = _small(dec[1].weight) * 0.1
    for o, i in enumerate(top):
        w[o, i // s2] = basis_b[i % s2]
    _set(dec[1], w)
    w = _small(dec[2].weight) * 0.1
    w[:s1, 0] = basis_a
    _set(dec[2], w)
    w = _small(dec[3].weight)
    w[0, 0] = 0
    w[0, 0, w.shape[-1] // 2] = 1 / gain
    _set(dec[3], w)
    for stack in (model.encoder, model.decoder):
        layers: Any = stack.layers
        for layer in layers:
            if hasattr(layer, "lstm"):
                for parameter in layer.lstm.parameters():
                    parameter.mul_(0.3)
