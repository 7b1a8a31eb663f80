"""What reading the tracks of a run costs the first and the second time: `python benchmarks/intake.py [--songs 200]`.

Makes songs (FLAC, every fourth MP3) and lists of them in a folder that is deleted afterwards, with a cache of
its own, and takes the intake of `encore forget --model tiny` apart, each time in a new process: `list` (the lists are
read, files hashed, duplicates looked for) and `encode` (decoding, codes, text encodings). The bar: the second run's at
most 2 s. `--compare N M` measures instead how long N and M songs take to be compared, from their fingerprints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 22_050
SCALE = (0, 2, 4, 5, 7, 9, 11, 12, 14, 16)


def song(seed: int, seconds: float, rate: int) -> NDArray[np.float32]:
    """Chords, a tune and a beat, all drawn from the seed; float32 [S]."""
    rng = np.random.default_rng(seed)
    total = int(seconds * rate)
    sound = np.zeros(total, np.float32)
    beat, key = float(rng.uniform(0.2, 0.6)), float(rng.uniform(80, 200))
    turn = 2 * np.pi * np.arange(4_096) / 4_096
    voice = sum(rng.uniform(0.3, 1.0) ** k * np.sin(k * turn) for k in range(1, 5)).astype(np.float32)
    for begin in np.arange(0, seconds - 0.05, beat):
        place = int(begin * rate)
        length = min(int(rate * rng.choice([1, 2, 4]) * beat), total - place)
        at = np.arange(length, dtype=np.float32)
        fade = np.exp(at * np.float32(-rng.uniform(1, 6) / rate))
        for pitch in rng.choice(SCALE, rng.integers(1, 4)):
            step = key * 2 ** (pitch / 12 + rng.integers(0, 2)) * 4_096 / rate
            sound[place : place + length] += voice[(at * np.float32(step)).astype(np.int32) & 4_095] * fade
        if rng.random() < 0.5:
            hit = rng.standard_normal(min(length, rate // 20)).astype(np.float32)
            sound[place : place + len(hit)] += 0.3 * hit * np.exp(-np.arange(len(hit)) / np.float32(rate / 80))
    return 0.7 * sound / np.abs(sound).max()


def make_songs(folder: Path, count: int, seconds: float) -> None:
    """Songs and the lists `forget.txt` (half), `retain.txt` and `holdout.txt` (a quarter each)."""
    names = []
    for seed in range(count):
        name = f"{seed:04d}.{'flac' if seed % 4 else 'mp3'}"
        soundfile.write(folder / name, song(seed, seconds, RATE), RATE)
        names.append(f"{name}\tsong number {seed}, made by a bench\n")
    cuts = {"forget": names[: count // 2], "retain": names[count // 2 : -count // 4], "holdout": names[-count // 4 :]}
    for kind, members in cuts.items():
        (folder / f"{kind}.txt").write_text("".join(members))


def measure(folder: Path) -> dict[str, float]:
    """One run's intake, in this process."""
    from encore import plugins
    from encore.unlearn import run as runs

    method = plugins.methods().resolve("graddiff")
    request = runs.ForgetConfig(
        folder / "forget.txt", folder / "out", retain=str(folder / "retain.txt"), holdout=folder / "holdout.txt"
    )
    begun = time.perf_counter()
    chosen = runs.choose(request)
    listed = time.perf_counter() - begun
    prepared = runs.prepare(request, method(method.Options()), tracks=chosen)
    encode = prepared.seconds["hear"]
    return {"list": listed, "encode": encode, "both": listed + encode}


def compare(first: int, second: int, seconds: float) -> dict[str, float]:
    """Seconds to compare so many songs with so many, from fingerprints; the first of each side are the same song."""
    from encore.data.duplicates import Fingerprints
    from encore.data.fingerprints import RATE as LOW_RATE
    from encore.data.fingerprints import fingerprint

    with tempfile.TemporaryDirectory() as folder:
        from encore.tensor_cache import TensorCache

        prints = Fingerprints(TensorCache(folder))
        sides: list[list[str]] = [[], []]
        begun = time.perf_counter()
        for side, count in enumerate((first, second)):
            for number in range(count):
                made = fingerprint(song(number * 2 + side if number else 0, seconds, LOW_RATE))
                name = f"{side}-{number:05d}"
                prints.keep(name, made)
                sides[side].append(name)
        made_in = time.perf_counter() - begun
        begun = time.perf_counter()
        found = prints.alike(*sides, lambda stage, done, of: None)
        taken = time.perf_counter() - begun
    return {"make": made_in, "compare": taken, "found": float(sum(map(len, found.values())))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--songs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--compare", type=int, nargs=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    rows: dict[str, dict[str, float]] = {}
    if arguments.compare:
        rows["compare"] = compare(*arguments.compare, arguments.seconds)
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_songs(folder, arguments.songs, arguments.seconds)
            time.sleep(3)  # a file is trusted to be what it was when it has been left alone for 2 s
            for run in ("first", "second"):
                done = subprocess.run(
                    [sys.executable, __file__, "--measure", str(folder)], check=True, stdout=subprocess.PIPE, text=True,
                    env={**os.environ, "ENCORE_CACHE": str(folder / "cache")},
                )  # fmt: skip
                rows[run] = json.loads(done.stdout.splitlines()[-1])
    for name, row in rows.items():
        print(f"{name:8}" + "".join(f"  {what} {value:8.2f}" for what, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
