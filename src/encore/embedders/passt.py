"""PaSST, a tagger (Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from encore.embedders.pretrained import windows
from encore.embedders.released import Released

BINS, WINDOW, HOP = 1024, 800, 320  # samples of a Fourier transform, of its window, and of a hop
PATCH, STRIDE = 16, 10  # frames and mel bands
ROWS, COLUMNS = 12, 99  # patches of 128 bands and of ten seconds
HEAD = 64  # width of an attention head
NAMES = {  # a block's, as they were released -> as torch has them
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}


class Passt(Released):
    """The mean of class and distillation token, [N, 768]; tags are the softmax over AudioSet's 527 classes.

    The checkpoint and the softmax are those of the KL that MusicGen and its successors report (audiocraft's
    `PasstKLDivergenceMetric`), although several tags may apply at once. Audio longer than ten seconds is cut into
    windows, and vectors and tags are averaged. Other checkpoints of the same shape work as well; those with other
    patches or lengths are refused. The authors' package is not used: it needs torchaudio and torchvision, which can't
    be imported with a torch without CUDA, and a removed signature of torch.stft. The tags are named by AudioSet's
    indices, as the checkpoint has no names.
    """

    sample_rate = 32_000
    seconds = 10
    address = "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt"

    def __init__(self, network: nn.Module, identity: str, device: torch.device) -> None:
        super().__init__(network, identity, device)
        self.tag_names: Sequence[str] = tuple(f"AudioSet {i}" for i in range(len(network.get_parameter("head.1.bias"))))

    @classmethod
    def network_of(cls, weights: Mapping[str, Tensor]) -> nn.Module:
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        with torch.device("meta"):  # neither draws weights that are overwritten, nor touches the shared generator
            network = Network(len(weights["norm.bias"]), len(weights["head.1.bias"]), len(blocks))
        renamed = {name: value for name, value in weights.items() if not name.startswith("head_dist.")}  # of training
        for old, new in NAMES.items():
            renamed = {name.replace(f".{old}", f".{new}"): value for name, value in renamed.items()}
        network.load_state_dict(renamed, assign=True)
        return network

    @torch.no_grad()
    def embed_with_tags(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        vectors, tags = [], []
        for waveform in waveforms.float().cpu():
            mel = torch.stack([log_mel(window) for window in windows(waveform, self.seconds * self.sample_rate)])
            pooled, logits = self.network(mel.to(self.device))
            vectors.append(pooled.mean(0).cpu())
            tags.append(logits.softmax(-1).mean(0).cpu())
        return torch.stack(vectors), torch.stack(tags)

    def embed(self, waveforms: Tensor) -> Tensor:
        return self.embed_with_tags(waveforms)[0]

    def tags(self, waveforms: Tensor) -> Tensor:
        return self.embed_with_tags(waveforms)[1]


@cache
def _bank() -> Tensor:
    """[513, 128]"""
    bank = mel_filter_bank(
        BINS // 2 + 1, 128, 0.0, 15_000.0, 32_000, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    return torch.from_numpy(bank).float()


def log_mel(waveform: Tensor) -> Tensor:
    """[S] -> pre-emphasised, on a Kaldi mel scale, log, shifted and scaled as the network was trained, [128, T].

    Audio shorter than one patch is padded with silence.
    """
    waveform = nn.functional.pad(waveform, (0, max(0, (PATCH - 1) * HOP + 1 - len(waveform))))
    waveform = waveform[1:] - 0.97 * waveform[:-1]
    window = torch.hann_window(WINDOW, periodic=False)
    spectrum = torch.stft(waveform, BINS, HOP, WINDOW, window, return_complex=True).abs() ** 2  # [513, T]
    return ((_bank().T @ spectrum + 1e-5).log() + 4.5) / 5


class Network(nn.Module):
    """A transformer over patches of a spectrogram, whose places are the sum of one for time and one for frequency."""

    def __init__(self, width: int, tags: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, ROWS, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, COLUMNS))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, width, PATCH, STRIDE)})
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, max(1, width // HEAD), 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-6,
                    batch_first=True, norm_first=True,
                )
                for _ in range(depth)
            )
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tags))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 128, T] -> vectors [N, D] and logits [N, C]"""
        patches = self.patch_embed["proj"](mel[:, None])  # [N, D, rows, columns]
        patches = patches + self.freq_new_pos_embed + self.time_new_pos_embed[..., : patches.shape[-1]]
        tokens = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        hidden = torch.cat([tokens.expand(len(mel), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        vectors = self.norm(self.blocks(hidden)[:, :2]).mean(1)
        return vectors, self.head(vectors)
