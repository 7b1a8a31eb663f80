"""Small weights under the released names, sounds, and the script that had the authors' own packages hear them.

Neither hear21passt (which asks for torchaudio and torchvision) nor torchvggish is a dependency. They ran once, in an
environment of their own, and what they said is in `released.json` beside this file:

    pip install numpy==2.4.6 torch==2.13.0 soundfile resampy
    pip install --no-deps hear21passt==0.0.26 torchvggish==0.2 torchaudio==2.11.0
    python tests/embedders/released_oracle.py > tests/embedders/released.json

Beside a torch without CUDA delete torchaudio/lib/*.so. hear21passt calls torch.stft as torch no longer allows, and
imports timm for downloads only: `hear21passt_network` below stands in for both.
"""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

PASST = {"width": 128, "heads": 2, "blocks": 2, "tags": 10}
VGGISH = {"channels": (4, 6, 8, 8, 10, 10), "layers": (240, 32, 32, 16)}
SOUNDS = {  # embedder -> seconds of each sound
    "passt": (0.7, 3.3, 10.0),
    "vggish": (0.98, 5.0),
}
RATES = {"passt": 32_000, "vggish": 16_000}


def sound(embedder: str, seconds: float) -> Tensor:
    """A chord that fades out, in noise, [S]."""
    time = np.arange(round(seconds * RATES[embedder])) / RATES[embedder]
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.18, 329.63, 1760.0))
    noise = np.random.default_rng(0).normal(size=len(time))
    return torch.from_numpy(0.1 * chord * np.exp(-time / 2) + 0.02 * noise).float()


def passt_weights() -> dict[str, Tensor]:
    width, tags = PASST["width"], PASST["tags"]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "dist_token": (1, 1, width), "new_pos_embed": (1, 2, width),
        "freq_new_pos_embed": (1, width, 12, 1), "time_new_pos_embed": (1, width, 1, 99),
        "patch_embed.proj.weight": (width, 1, 16, 16), "patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for block in range(PASST["blocks"]):
        for name, outs, ins in (
            ("norm1", width, 0), ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("norm2", width, 0),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            shapes[f"blocks.{block}.{name}.weight"] = (outs, ins) if ins else (outs,)
            shapes[f"blocks.{block}.{name}.bias"] = (outs,)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,), "head.0.weight": (width,), "head.0.bias": (width,)}
    shapes |= {"head.1.weight": (tags, width), "head.1.bias": (tags,)}
    shapes |= {"head_dist.weight": (tags, width), "head_dist.bias": (tags,)}
    return _drawn(shapes)


def vggish_weights() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}
    for place, narrow, wide in zip((0, 3, 6, 8, 11, 13), (1, *VGGISH["channels"]), VGGISH["channels"], strict=False):
        shapes |= {f"features.{place}.weight": (wide, narrow, 3, 3), f"features.{place}.bias": (wide,)}
    for place, narrow, wide in zip((0, 2, 4), VGGISH["layers"], VGGISH["layers"][1:], strict=False):
        shapes |= {f"embeddings.{place}.weight": (wide, narrow), f"embeddings.{place}.bias": (wide,)}
    return _drawn(shapes)


def _drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that keep a signal's size, whatever the width; those of layer norms lie about 1."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape) * (1.5 / np.sqrt(np.prod(shape[1:])) if len(shape) in (2, 4) else 0.3)
        one = len(shape) == 1 and name.endswith("weight")
        found[name] = torch.from_numpy(values + one).float()
    return found


def hear21passt_network() -> tuple[nn.Module, nn.Module]:
    """The package's spectrogram and network, in evaluation mode."""
    stand_in = types.ModuleType("timm.models._hub")
    stand_in.download_cached_file = None  # type: ignore[attr-defined]
    sys.modules |= {"timm": types.ModuleType("timm"), "timm.models": types.ModuleType("timm.models")}
    sys.modules["timm.models._hub"] = stand_in
    stft = torch.stft
    torch.stft = lambda *given, **named: torch.view_as_real(stft(*given, **(named | {"return_complex": True})))
    from hear21passt.models import passt
    from hear21passt.models.preprocess import AugmentMelSTFT

    passt.first_RUN = False  # or it prints every shape
    mel = AugmentMelSTFT(
        n_mels=128, sr=32_000, win_length=800, hopsize=320, n_fft=1024, freqm=48, timem=192, htk=False, fmin=0.0,
        fmax=15_000, norm=1, fmin_aug_range=10, fmax_aug_range=2000,
    )  # fmt: skip
    network = passt.PaSST(
        img_size=(128, 998), stride=(10, 10), embed_dim=PASST["width"], num_heads=PASST["heads"],
        depth=PASST["blocks"], num_classes=PASST["tags"], distilled=True,
    )  # fmt: skip
    network.load_state_dict(passt_weights())
    return mel.eval(), network.eval()


def torchvggish_network() -> nn.Module:
    """The package's network with narrower layers, without its last ReLU: what fadtk takes of it."""
    from torchvggish.torchvggish import VGG

    layers: list[nn.Module] = []
    for wide, narrow, pooled in zip(VGGISH["channels"], (1, *VGGISH["channels"]), (1, 1, 0, 1, 0, 1), strict=False):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2, 2)] if pooled else [])]
    network = VGG(nn.Sequential(*layers), postprocess=False)
    a, b, c, d = VGGISH["layers"]
    network.embeddings = nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d))
    network.load_state_dict(vggish_weights())
    return network.eval()


@torch.no_grad()
def main() -> None:
    from torchvggish.vggish_input import waveform_to_examples

    mel, passt = hear21passt_network()
    vggish = torchvggish_network()
    told: dict[str, object] = {
        "made_with": {n: version(n) for n in ("hear21passt", "torchvggish", "torch", "torchaudio")}
    }
    heard = [passt(mel(sound("passt", seconds)[None])[:, None]) for seconds in SOUNDS["passt"]]
    told["passt"] = [vectors[0].tolist() for _, vectors in heard]
    told["passt_logits"] = [logits[0].tolist() for logits, _ in heard]
    examples = [waveform_to_examples(sound("vggish", seconds).numpy(), 16_000) for seconds in SOUNDS["vggish"]]
    told["vggish"] = [vggish(one).mean(0).tolist() for one in examples]
    json.dump(json.loads(json.dumps(told), parse_float=lambda text: float(f"{float(text):.6g}")), sys.stdout)
    print()


if __name__ == "__main__":
    main()
