"""How much of a batch is padding, with clips cut into micro-batches as they were drawn and by their length.

    python benchmarks/padding.py

Simulated: lengths of tracks are drawn at random, cut into windows of 30 s as `encore forget` does, and batches of
windows are drawn without replacement. No model is needed.
"""

from __future__ import annotations

import numpy as np

RATE, WINDOW, LEAST = 50, 1500, 25  # frames
CUTS = ((8, 8), (8, 4), (8, 2), (16, 4), (64, 16), (512, 16))  # clips in a step or pass, and per micro-batch
DRAWS = 400


def windows(seconds: np.ndarray) -> np.ndarray:
    """Frames of all windows of tracks."""
    lengths: list[int] = []
    for frames in (seconds * RATE).astype(int):
        lengths += [WINDOW] * (frames // WINDOW)
        if frames % WINDOW >= LEAST:
            lengths.append(frames % WINDOW)
    return np.array(lengths)


def padding(lengths: np.ndarray, count: int, micro: int, by_length: bool, draw: np.random.Generator) -> float:
    """Share of the frames of `DRAWS` batches that are padding."""
    frames = padded = 0
    for _ in range(DRAWS):
        batch = draw.choice(lengths, count, replace=False)
        if by_length:
            batch = np.sort(batch)
        for part in np.split(batch, count // micro):
            frames += part.sum()
            padded += part.max() * micro
    return 1 - frames / padded


def main() -> None:
    draw = np.random.default_rng(0)
    catalogues = {
        "songs of 2 to 5 min": windows(draw.uniform(120, 300, 3000)),
        "excerpts of 5 to 30 s": windows(draw.uniform(5, 30, 20_000)),
        "2 s to 5 min, log-uniform": windows(np.exp(draw.uniform(np.log(2), np.log(300), 6000))),
    }
    print("| tracks | " + " | ".join(f"{count} in {micro}s" for count, micro in CUTS) + " |")
    print("|---" * (len(CUTS) + 1) + "|")
    for name, lengths in catalogues.items():
        cells = [[padding(lengths, *cut, by_length, draw) for by_length in (False, True)] for cut in CUTS]
        print(f"| {name} | " + " | ".join(f"{drawn:.2f}, {kept:.2f}" for drawn, kept in cells) + " |")


if __name__ == "__main__":
    main()
