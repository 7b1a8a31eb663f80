"""Tiny models in both formats, and clips for them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch

from encore.api import Clip

ROOT = Path(__file__).resolve().parents[3]


def _from_the_repositorys_tests(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"encore_tests_{name}", ROOT / "tests" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_model, slow = _from_the_repositorys_tests("tiny_model"), _from_the_repositorys_tests("curvature/slow")
CAPTIONS, CODES = tiny_model.CAPTIONS, tiny_model.CODES


class Pair(NamedTuple):
    """One model in both formats."""

    transformers: Path
    audiocraft: Path


def make_pair(folder: Path, channels: int = 1, dropout: float = 0.0) -> Pair:
    from encore_audiocraft.convert import convert

    source = tiny_model.write_tiny_musicgen(folder / "transformers", channels=channels, dropout=dropout)
    convert(str(source), folder / "audiocraft", "audiocraft")
    return Pair(source, folder / "audiocraft")


def clips(codebooks: int, *lengths: int, seed: int = 0) -> list[Clip]:
    """Random clips of so many frames; their captions differ in length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Clip(str(i), CAPTIONS[i % len(CAPTIONS)], torch.randint(CODES, (codebooks, t), generator=generator))
        for i, t in enumerate(lengths)
    ]
