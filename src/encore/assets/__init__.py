"""The embedded model and its music: where they lie, and which names `--model` knows them by."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
MODELS = {"tiny": "encore-tiny", "tiny-gold": "encore-tiny-gold", "tiny-gold2": "encore-tiny-gold2"}
CLAP = "clap-tiny"
CATALOG = FOLDER / "metadata.jsonl"
FORGET = FOLDER / "forget.txt"  # the list of its split "forget"


def model_folder(name: str) -> Path | None:
    """Folder of an embedded model ("tiny", "tiny-gold", "tiny-gold2"), None for any other name."""
    return FOLDER / MODELS[name] if name in MODELS else None
