"""Copies what was built into the assets folder: models, tracks, metadata, licence, build.json."""

import json
import shutil
from pathlib import Path
from typing import Any

from .corpus import Item, write_metadata
from .lm import FOLDERS
from .scores import SCORES

CLAP = "clap-tiny"

LICENCE = """# Licence of these assets

Everything in this folder may be used, changed and passed on freely.

- **Melodies**: in the public domain. Composers, or the tradition and the first known date, are in the table below.
- **Transcriptions, arrangements, sounds, background clips, captions** (`tracks/`, `metadata.jsonl`): made for Encore by
  `tools/build_assets`, with its own synthesiser and no foreign samples; CC0-1.0.
- **Models** (`encore-tiny*`): trained from nothing on these tracks and on more clips of the same generator; Apache-2.0.
  No foreign weights are in them.
- **CLAP** (`clap-tiny`): trained from nothing on background clips of that generator and their captions; Apache-2.0.

Titles and artists of the background clips are made up.

| melody | by | file |
|---|---|---|
"""


def licence() -> str:
    return LICENCE + "".join(f"| {s.title} | {s.artist} | `tracks/{s.id}.flac` |\n" for s in SCORES)


def megabytes(out: Path) -> float:
    """Size of all files under `out` except its Python sources, in MB."""
    files = (p for p in out.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc"))
    return sum(p.stat().st_size for p in files) / 1e6


def install(items: list[Item], work: Path, out: Path) -> None:
    """Replaces the tracks, metadata, licence and every model that `work` has."""
    shutil.rmtree(out / "tracks", ignore_errors=True)
    write_metadata(items, out)
    (out / "LICENSE.md").write_text(licence())
    for name in FOLDERS.values():
        if (work / "models" / name / "model.safetensors").exists():
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(work / "models" / name, out / name)


def install_clap(work: Path, out: Path) -> None:
    """Replaces the CLAP by the one that `work` has."""
    shutil.rmtree(out / CLAP, ignore_errors=True)
    shutil.copytree(work / CLAP, out / CLAP)
    for file in (out / CLAP).iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone


def write_build(out: Path, record: dict[str, Any]) -> None:
    (out / "build.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
