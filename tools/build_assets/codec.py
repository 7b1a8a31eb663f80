"""The codec: transformers' EncodecModel, 16 kHz, 50 frames a second, 4 codebooks of 512; about 0.7 M parameters.

It hears retained and tuning songs and background, never a forget or holdout song: so these sets are alike to it, and
the gold models have nothing of the forget set in them, not even in the codec.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from .corpus import Item, read
from .mdct import init_mdct
from .rvq import init_codebooks, quantise
from .synth import FRAME, RATE

CODEBOOKS, VOCAB = 4, 512
JOINT_STEPS, DECODER_STEPS = 1000, 1100
SEED = 0
WINDOW, EDGE = 60, 4  # frames a training crop, of which the first EDGE carry no loss: they lack left context
RESOLUTIONS = ((2048, 512, 80), (1024, 256, 80), (512, 128, 40), (256, 64, 20))  # FFT, hop, mel bands


def make() -> Any:
    """Untrained codec. Exactly one target bandwidth makes exactly CODEBOOKS codebooks."""
    config = EncodecConfig(
        sampling_rate=RATE,
        target_bandwidths=[CODEBOOKS * math.log2(VOCAB) * (RATE // FRAME) / 1000],
        num_filters=24,
        upsampling_ratios=[20, 16],
        hidden_size=96,
        codebook_size=VOCAB,
        num_lstm_layers=1,
        num_residual_layers=0,
        use_causal_conv=False,
        normalize=False,
        chunk_length_s=None,
        overlap=None,
    )
    model = EncodecModel(config)
    if model.config.num_quantizers != CODEBOOKS:
        raise RuntimeError(f"the codec has {model.config.num_quantizers} codebooks, not {CODEBOOKS}")
    return model


def _spectrum(x: Tensor, fft: int, hop: int) -> Tensor:
    s = torch.stft(x, fft, hop, window=torch.hann_window(fft), return_complex=True)
    return (s.real.pow(2) + s.imag.pow(2) + 1e-9).sqrt()


def _mel(fft: int, bands: int) -> Tensor:
    """Triangular mel filters of unit area, [bands, fft/2 + 1]."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    low = 2595 * math.log10(1 + 30 / 700)
    points = 700 * (10 ** (np.linspace(low, top, bands + 2) / 2595) - 1)
    f = np.linspace(0, RATE / 2, fft // 2 + 1)
    rise = (f[None] - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    fall = (points[2:, None] - f[None]) / (points[2:] - points[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(rise, fall))
    return torch.tensor(bank / np.maximum(bank.sum(1, keepdims=True), 1e-8), dtype=torch.float32)


MEL = {(fft, bands): _mel(fft, bands) for fft, _, bands in RESOLUTIONS}


def reconstruction_loss(y: Tensor, x: Tensor, wave_weight: float = 20.0) -> Tensor:
    """L1 on the wave, and spectral convergence, log and log-mel distance at four resolutions; [B, samples] each."""
    loss = wave_weight * (y - x).abs().mean()
    for fft, hop, bands in RESOLUTIONS:
        a, b, mel = _spectrum(y, fft, hop), _spectrum(x, fft, hop), MEL[fft, bands]
        parts = (a - b).norm() / (b.norm() + 1e-6)
        parts = parts + 2 * (torch.log10(a + 1e-3) - torch.log10(b + 1e-3)).abs().mean()
        parts = parts + 3 * (torch.log10(mel @ a + 1e-4) - torch.log10(mel @ b + 1e-4)).abs().mean()
        loss = loss + parts / len(RESOLUTIONS)
    return loss


def si_sdr(y: Tensor, x: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, [B, samples] -> [B]."""
    y, x = y - y.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
    target = (y * x).sum(-1, keepdim=True) / (x.pow(2).sum(-1, keepdim=True) + 1e-9) * x
    return 10 * torch.log10(target.pow(2).sum(-1) / ((y - target).pow(2).sum(-1) + 1e-9) + 1e-9)


@torch.no_grad()
def encode(model: Any, audio: NDArray[np.float32] | Tensor) -> Tensor:
    """Codes of whole clips, [N, samples] -> [N, CODEBOOKS, frames]."""
    model.eval()
    parts = torch.as_tensor(audio).split(8)
    return torch.cat([model.encode(x[:, None], return_dict=True).audio_codes[0] for x in parts])


@torch.no_grad()
def decode(model: Any, codes: Tensor) -> Tensor:
    """[N, CODEBOOKS, frames] -> [N, samples]."""
    model.eval()
    return torch.cat([model.decode(c[None], [None]).audio_values[:, 0] for c in codes.split(8)])


def heard(items: list[Item], background: int) -> tuple[list[int], list[int]]:
    """Indices of the songs and of the first `background` background clips that the codec may hear."""
    songs = [i for i, x in enumerate(items) if x["split"] in ("retain", "tune_forget", "tune_retain")]
    return songs, [i for i, x in enumerate(items) if x["split"] == "background"][:background]


class Crops:
    """Random crops of WINDOW frames; one in five at a clip's very start or end, so that edges are learnt."""

    def __init__(self, audio: Tensor, songs: int, song_share: float = 0.4, batch: int = 5) -> None:
        self.audio, self.songs, self.share, self.batch = audio, songs, song_share, batch
        self.last = audio.shape[1] // FRAME - WINDOW

    def __call__(self) -> tuple[list[tuple[int, int]], Tensor]:
        """[(clip, first frame)] and the audio [batch, WINDOW·FRAME]."""
        places = []
        for _ in range(self.batch):
            song = torch.rand(()) < self.share
            clip = int(torch.randint(self.songs, ())) if song else int(torch.randint(self.songs, len(self.audio), ()))
            edge = torch.rand(()) < 0.2
            start = int(torch.randint(2, ())) * self.last if edge else int(torch.randint(self.last + 1, ()))
            places.append((clip, start))
        return places, torch.stack([self.audio[c, s * FRAME : (s + WINDOW) * FRAME] for c, s in places])

    def loss(self, places: list[tuple[int, int]], y: Tensor, x: Tensor) -> Tensor:
        """Reconstruction loss without each crop's first and last frames, except at true clip edges."""
        y, cut = y[:, : x.shape[1]], EDGE * FRAME
        loss = reconstruction_loss(y[:, cut:-cut], x[:, cut:-cut])
        edges = [i for i, (_, s) in enumerate(places) if s in (0, self.last)]
        return loss + 4.0 * (y[edges] - x[edges]).abs().mean() if edges else loss


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 2.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def train(
    items: list[Item], work: Path, rate: float = 1e-3, joint: int = JOINT_STEPS, after: int = DECODER_STEPS
) -> Path:
    """Trains and saves the codec under `work`/codec, in float16; returns the folder (at once if it exists)."""
    out = work / "codec"
    if (out / "model.safetensors").exists():
        return out
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    songs, ground = heard(items, 360)
    audio = torch.from_numpy(read([items[i] for i in songs + ground]))
    model, crops, began = make(), Crops(audio, len(songs)), time.time()
    init_mdct(model, audio[: len(songs) + 32])
    with torch.no_grad():
        model.eval()
        latents = torch.cat([model.encoder(x[:, None]).transpose(1, 2).reshape(-1, 96) for x in audio.split(8)])
    init_codebooks(model, latents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-5)
    model.train()
    for step in range(joint):
        places, x = crops()
        z, commitment = quantise(model, model.encoder(x[:, None]))
        loss = crops.loss(places, model.decoder(z)[:, 0], x)
        _step(optimizer, loss + 0.25 * commitment, rate * min(1, (step + 1) / 50) * (1 - 0.7 * step / joint))
        if step % 100 == 0:
            print(f"codec: joint {step}/{joint}, loss {loss.item():.3f}, {time.time() - began:.0f} s", flush=True)
    # Encoder and codebooks now stand still and are rounded, so that the codes below are those of the shipped file.
    round_to_half(model)
    codes = encode(model, audio)
    with torch.no_grad():
        quantised = torch.cat([model.quantizer.decode(c.transpose(0, 1)) for c in codes.split(16)])  # [N, D, frames]
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-5)
    model.train()
    for step in range(after):
        places, x = crops()
        y = model.decoder(torch.stack([quantised[c, :, s : s + WINDOW] for c, s in places]))[:, 0]
        loss = crops.loss(places, y, x)
        cosine = 0.5 * (1 + math.cos(math.pi * step / after)) * 0.97 + 0.03
        _step(optimizer, loss, rate * min(1, (step + 1) / 50) * cosine)
        if step % 100 == 0:
            print(f"codec: decoder {step}/{after}, loss {loss.item():.3f}, {time.time() - began:.0f} s", flush=True)
    round_to_half(model)
    model.half().save_pretrained(out)
    return out


@torch.no_grad()
def round_to_half(model: torch.nn.Module) -> None:
    """Rounds weights and buffers to float16 values, kept as float32."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())


def load(folder: Path) -> Any:
    return EncodecModel.from_pretrained(folder, dtype=torch.float32).eval()


def measure(folder: Path, items: list[Item]) -> dict[str, Any]:
    """SI-SDR in dB per split, and how many codes of each codebook the songs and 200 background clips use."""
    model, out, used = load(folder), {}, []
    for split in ("forget", "retain", "holdout", "background"):
        audio = torch.from_numpy(read([x for x in items if x["split"] == split][:200]))
        codes = encode(model, audio)
        used.append(codes)
        out[split] = round(float(si_sdr(decode(model, codes)[:, : audio.shape[1]], audio).mean()), 2)
    every = torch.cat(used)
    return {"si_sdr_db": out, "codes_used": [len(every[:, k].unique()) for k in range(CODEBOOKS)]}
