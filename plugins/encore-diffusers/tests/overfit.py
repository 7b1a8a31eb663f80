"""A small Stable Audio that has memorised twelve tracks of the embedded music, trained in a minute on one core.

`python -m tests.overfit FOLDER [--last]` writes it, with two models trained without the tracks to forget: `gold`, from
the same initial weights, and `gold2`. `--last` takes the last tracks of each split in place of the first.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from tests.tiny_pipelines import whiten, write_stable_audio

from encore import assets, plugins
from encore.api import Batch, Clip
from encore.data.catalog import Catalog
from encore.data.decode import load
from encore.data.encode import TrackEncoder
from encore.tensor_cache import TensorCache
from encore_diffusers.base import DiffusionBackend

SIZES = {"forget": 4, "retain": 8, "holdout": 6}
RATE, STRIDES, FRAMES = 32000, (8, 8, 8, 10), 31  # windows of 4.96 s, of tracks that last 5 s
STEPS, LR = 600, 3e-3


def write_studio(folder: Path, *, last: bool = False) -> Path:
    """`folder/model`, and `folder/music` with the tracks it was trained on, `forget.txt` and `retain.txt`, and others,
    `holdout.txt`."""
    catalog = Catalog.open(assets.CATALOG)
    chosen = {name: catalog.tracks(split=name)[:: -1 if last else 1][:count] for name, count in SIZES.items()}
    music = folder / "music"
    music.mkdir()
    for name, tracks in chosen.items():
        for track in tracks:
            shutil.copy(track.path, music)
        (music / f"{name}.txt").write_text("".join(f"{track.path.name}\t{track.caption}\n" for track in tracks))
    write_stable_audio(
        folder / "start", captions=[track.caption for tracks in chosen.values() for track in tracks], rate=RATE,
        strides=STRIDES, latent_channels=8, frames=FRAMES, hidden=64, text=32,
    )  # fmt: skip
    backend = plugins.backends().resolve("stable-audio").load(str(folder / "start"), offline=True)
    samples = FRAMES * backend.hop
    heard = [torch.from_numpy(load(track.path, sample_rate=RATE, channels=1).samples) for track in chosen["retain"]]
    whiten(backend.parts["vae"], torch.stack([waveform[:, :samples] for waveform in heard]))
    memorise(backend, clips(backend, music, "forget", "retain"))
    (folder / "model").mkdir()
    backend.save(folder / "model")
    return folder


def clips(backend: DiffusionBackend, music: Path, *sets: str) -> list[Clip]:
    """The clips of lists."""
    from encore.data.track_list import read_list

    tracks = [track for name in sets for track in read_list(music / f"{name}.txt").tracks]
    return [clip for encoded in TrackEncoder(backend, TensorCache()).encode(tracks) for clip in encoded.clips]


def memorise(backend: DiffusionBackend, chosen: list[Clip]) -> None:
    """All clips a step, each step at noise of its own."""
    weights = [weight for weight in backend.module.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        optimiser.zero_grad()
        backend.losses(Batch.of(chosen, noise_index=1 + step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()


def write_golds(folder: Path) -> None:
    """`folder/gold` and `folder/gold2`, beside what `write_studio` writes: trained on retain alone."""
    family = plugins.backends().resolve("stable-audio")
    for seed, name in enumerate(("gold", "gold2")):
        gold = family.load(str(folder / "model"), offline=True)
        if seed:
            gold.reinitialise(seed)
        else:
            gold.module.load_state_dict(family.load(str(folder / "start"), offline=True).module.state_dict())
        memorise(gold, clips(gold, folder / "music", "retain"))
        (folder / name).mkdir()
        gold.save(folder / name)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    write_golds(write_studio(target, last="--last" in sys.argv))
