"""100 000 tracks in shards: how fast the index opens, a clip is read and `encore forget` begins, and in what memory.

    python benchmarks/shards.py --work FOLDER [--tracks 100000]

Encodes the embedded catalogue with `encore encode`, and puts synthetic tracks behind it in the same folder: 5 s of
random codes each, a caption of its own, an encoding of random numbers, and no audio file. Then, each in a process of
its own: the index is opened and 10 000 clips are read in random order; `encore forget` forgets the embedded list with
the catalogue less the list as retain, until its first steps are logged. Memory is what a process has at most
(VmHWM), less that of one that forgets the same list with the embedded catalogue's shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS, WORDS = 5.0, 12  # of a synthetic track; vectors of a caption's encoding


def encode_embedded(folder: Path) -> None:
    """The embedded catalogue in shards."""
    from encore import assets
    from encore.pre_encoding import EncodeConfig, encode_catalog

    encode_catalog(EncodeConfig(assets.FOLDER, folder, "tiny", device="cpu", workers=1))


def generate(folder: Path, count: int) -> None:
    """Put synthetic tracks behind those that are in a folder of shards."""
    import torch

    from encore.backends.musicgen import MusicgenBackend
    from encore.data.file_info import Decoding
    from encore.data.shard_writing import Encoded, write_shard, writing_index
    from encore.data.shards import SHARD_TRACKS, open_shards
    from encore.data.tracks import Track

    about = open_shards(folder).about
    backend = MusicgenBackend.load("tiny", offline=True)
    width = backend.encode_text(["a"])[0].shape[-1]
    frames = int(SECONDS * backend.frame_rate)
    draw = torch.Generator().manual_seed(0)

    def track(number: int) -> Encoded:
        name = f"synthetic-{number:07d}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        codes = torch.randint(backend.codebook_size, (backend.codebooks, frames), generator=draw, dtype=torch.int16)
        decoding = Decoding(hashlib.sha256(digest.encode()).hexdigest(), 32_000, 1, int(SECONDS * 32_000), "flac")
        path = Path("/nowhere", f"{name}.flac")
        whole = Track(
            name, path, f"synthetic piece {number}", digest, artist=f"artist {number % 5000}",
            isrc=f"XX{number:010d}", meta={"split": "background", "genre": "noise"}, caption_source="catalogue",
        )  # fmt: skip
        return Encoded(whole, path.name, decoding=decoding, windows=[codes])

    def text(_: str) -> torch.Tensor:
        return torch.randn(WORDS, width, generator=draw)

    keys = ("codec", "model", "catalog", "folder")
    with writing_index(folder, {key: about[key] for key in keys}) as index:
        index.begin()
        for shard, first in enumerate(range(0, count, SHARD_TRACKS), 1):
            tracks = [track(number) for number in range(first, min(count, first + SHARD_TRACKS))]
            index.add(write_shard(folder, shard, str(shard), tracks, text))
        print(index.finish(()))


def read(folder: Path) -> None:
    """Open the index, and read clips in random order."""
    from encore.backends.musicgen import MusicgenBackend
    from encore.data.encode import TrackEncoder
    from encore.data.shards import ShardCatalog, ShardTracks
    from encore.tensor_cache import TensorCache

    backend = MusicgenBackend.load("tiny", offline=True)
    encoder = TrackEncoder(backend, TensorCache(folder / ".cache"))
    before, started = memory(), time.perf_counter()
    catalog = ShardCatalog(folder)
    tracks = catalog.tracks()
    assert isinstance(tracks, ShardTracks)
    clips = encoder.stream(tracks).clips
    opened = time.perf_counter() - started
    places = random.Random(0).sample(range(len(clips)), min(10_000, len(clips)))
    seconds, texts = [], []
    for place in places:
        started = time.perf_counter()
        clip = clips[place]
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        backend.encode_text([clip.caption])
        texts.append(time.perf_counter() - started)
    for name, taken in (("clip", sorted(seconds)), ("text encoding", sorted(texts))):
        mean, median, p99 = sum(taken) / len(taken), taken[len(taken) // 2], taken[len(taken) * 99 // 100]
        print(f"{name}: mean {1e3 * mean:.3f} ms, median {1e3 * median:.3f} ms, 99 % below {1e3 * p99:.3f} ms")
    print(f"index opened in {opened:.3f} s; memory + {(memory() - before) / 1e6:.0f} MB after {len(places)} clips")


def memory() -> int:
    """Most bytes that this process had resident."""
    return peak(os.getpid())


def peak(process: int) -> int:
    """Most bytes that a process had resident; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def cpu_seconds(process: int) -> float:
    """Seconds that a process has computed, in all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_step(folder: Path, out: Path, method: str, steps: int) -> tuple[float, float, int]:
    """Seconds from the start of `encore forget` to its first step, those it computed, and its peak memory.

    Args:
        steps: the run is stopped after this many.
    """
    from encore import assets

    command = [
        sys.executable, "-m", "encore", "forget", "--tracks", assets.FORGET, "--catalog", folder, "--method", method,
        "--out", out, "--quiet", "--device", "cpu",
    ]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), env={**os.environ, "ENCORE_CACHE": str(out) + "-cache"})
    seconds, computed, most = 0.0, 0.0, 0
    while process.poll() is None:
        time.sleep(0.05)
        most = max(most, peak(process.pid))
        taken = [line["step"] for line in lines(out / "log.jsonl") if "grad_norm" in line]
        if taken and not seconds:
            seconds, computed = time.perf_counter() - started, cpu_seconds(process.pid)
        if len(taken) >= steps:
            process.kill()
            process.wait()
    return seconds, computed, most


def lines(path: Path) -> Iterator[dict[str, object]]:
    """The lines of a log that are there so far."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # half a line
                return


def main() -> None:
    """Generate what is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder; what is there is used again")
    parser.add_argument("--tracks", type=int, default=100_000, help="synthetic tracks")
    parser.add_argument("--method", default="encore")
    parser.add_argument("--steps", type=int, default=20, help="steps of encore forget before it is stopped")
    parser.add_argument("--only", choices=("generate", "read", "forget"))
    asked = parser.parse_args()
    small, large = asked.work / "embedded", asked.work / f"tracks-{asked.tracks}"
    if not small.exists():
        encode_embedded(small)
    if not large.exists():
        shutil.copytree(small, large)
        generate(large, asked.tracks)
    if asked.only in (None, "read"):
        read(large)
    if asked.only in (None, "forget"):
        run = f"{asked.method}-{int(time.time())}"
        few = first_step(small, asked.work / f"{run}-small", asked.method, asked.steps)
        many = first_step(large, asked.work / f"{run}-large", asked.method, asked.steps)
        for name, (seconds, computed, most) in {"154": few, f"{154 + asked.tracks:,}": many}.items():
            print(f"{name} tracks: first step after {seconds:.1f} s ({computed:.1f} s computed), {most / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
