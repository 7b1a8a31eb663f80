"""Pairs of embedding sets, and the script that had fadtk measure the distance between them.

fadtk asks for numpy < 2 and transformers < 5, and so can't be installed beside Encore. It ran once, in an environment
of its own, and what it said is in `fadtk.json` beside this file:

    pip install numpy==1.26.4 scipy==1.13.1 torch librosa soundfile hypy-utils
    pip install --no-deps fadtk==1.1.0 torchaudio==2.11.0    # beside a torch without CUDA: delete torchaudio/lib/*.so
    python tests/metrics/utility/fadtk_oracle.py > tests/metrics/utility/fadtk.json
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PAIRS = {  # name -> rows of the first set, rows of the second, columns, decades that their deviations fall by, seed
    "one column": (40, 60, 1, 0, 1),
    "many rows": (400, 500, 16, 0, 2),
    "as wide as VGGish": (1000, 800, 128, 0, 3),
    "hardly more rows than columns": (70, 72, 64, 0, 4),
    "deviations from 1 to 0.001": (300, 300, 32, 3, 5),
    "nearly singular": (300, 300, 32, 9, 6),
    "fewer rows than columns": (24, 24, 32, 0, 7),
}
SINGULAR = {"nearly singular", "fewer rows than columns"}


def pair(name: str) -> tuple[Floats, Floats]:
    """Two sets [n, D], [m, D] of different means and covariances, no two columns independent."""
    first, second, width, decades, seed = PAIRS[name]
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    mix = np.eye(width) + 0.3 * rng.normal(size=(width, width)) / np.sqrt(width)
    deviations = 10.0 ** -np.linspace(0, decades, width)
    x = rng.normal(size=(first, width)) * deviations
    y = (0.1 + rng.normal(size=(second, width)) @ mix) * deviations
    return x @ rotation, y @ rotation


def main() -> None:
    import fadtk

    def fad(x: Floats, y: Floats) -> float:
        return float(fadtk.calc_frechet_distance(*fadtk.calc_embd_statistics(x), *fadtk.calc_embd_statistics(y)))

    made_with = {name: version(name) for name in ("fadtk", "numpy", "scipy")}
    made = {
        "made_with": {"python": platform.python_version(), **made_with},
        "fad": {name: fad(*pair(name)) for name in PAIRS},
        "fad_of_the_first_with_itself": {name: fad(pair(name)[0], pair(name)[0]) for name in PAIRS},
    }
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
