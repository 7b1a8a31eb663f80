"""Find the tracks and models of a run after its folder was moved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encore import assets
from encore.api import ClipSet
from encore.data.catalog import Catalog
from encore.data.file_info import FileCache
from encore.data.shards import INDEX, open_shards
from encore.data.tracks import Piece, Track
from encore.errors import InputError, together
from encore.text import printable

MOVED = "put it back where the run found it, or name the folder it was moved to: encore eval RUN --root FOLDER"


@dataclass
class PathRelocator:
    """Finds a run's files, also after the folder with the files and the run was moved.

    A file is searched for at its recorded path, then at the same path relative to the run's folder, then below `roots`,
    then among the embedded tracks. Its hash must be that in `request.json`. Of a track in shards, the folder of the
    shards is.

    Args:
        then: the run's folder when it was run.
        now: the run's folder today.
        roots: folders that files were moved to. `a/b/c.wav` is searched for as `a/b/c.wav`, `b/c.wav` and `c.wav` in
            each; shards may also be the folder itself.
    """

    then: Path
    now: Path
    roots: Sequence[Path] = ()

    def model(self, name: str) -> str:
        """The current path of a model's folder; any other name unchanged."""
        return str(self._moved(Path(name))) if os.path.isabs(name) else name

    def find_all(self, sets: Mapping[ClipSet, Sequence[Track]]) -> dict[ClipSet, list[Track]]:
        """The tracks of all sets with their current paths.

        Raises:
            InputError: files are missing or changed; the message names all of them.
        """
        result: dict[ClipSet, list[Track]] = {name: [] for name in sets}
        errors: list[InputError] = []
        for name, tracks in sets.items():
            for track in tracks:
                try:
                    result[name].append(self.find(track))
                except InputError as error:
                    errors.append(error)
        if errors:
            raise together(errors)
        return result

    def find(self, track: Track) -> Track:
        """The track with its current path.

        Raises:
            InputError: its file is missing or changed.
        """
        if track.shards is not None:
            shards = self._moved(track.shards)
            if not shards.exists():
                roots = [root for root in self.roots if (root / INDEX).exists()]
                if not roots:
                    raise InputError(f"the shards in {printable(track.shards)} are missing", MOVED)
                shards = roots[0]
            if open_shards(shards).of_file(track.sha256) is None:
                raise InputError(
                    f"{printable(track.id)} is not in the shards in {printable(shards)}",
                    "put the shards back that the run read",
                )
            return replace(track, shards=shards)
        path = self._moved(track.path)
        if not path.exists():
            embedded = Catalog.open(assets.CATALOG)
            paths = [embedded.folder / record.path for record in embedded.by_known_sha256(track.sha256)]
            path = next(iter(paths), path)
        if not path.exists():
            raise InputError(f"{printable(track.path)} is missing", MOVED)
        if FileCache().sha256(path) != track.sha256:
            raise InputError(
                f"{printable(path)} is not the file that the run read: its hash differs", "put the original file back"
            )
        return replace(track, path=path)

    def _moved(self, path: Path) -> Path:
        if path.exists():
            return path
        beside = Path(os.path.normpath(self.now.resolve() / os.path.relpath(path, self.then)))
        if beside.exists():
            return beside
        names = path.relative_to(path.anchor).parts
        moved = (root.joinpath(*names[start:]) for root in self.roots for start in range(len(names)))
        return next((candidate.resolve() for candidate in moved if candidate.exists()), beside)


def listed_track(entry: Mapping[str, Any]) -> Track:
    """The track of an entry in `request.json`."""
    meta = {"split": entry["split"], "genre": entry.get("genre")}  # written since 0.1: older runs don't have it
    captions = entry.get("captions") or [entry["caption"]]
    return Track(
        entry["id"], Path(entry["file"]), captions[0], entry["sha256"], line=entry.get("line"),
        artist=entry.get("artist"), meta=meta, more_captions=tuple(captions[1:]),
        caption_source=entry.get("caption_source", ""),
        pieces=tuple(Piece(**piece) for piece in entry.get("pieces", ())),
        shards=Path(entry["shards"]) if entry.get("shards") else None,
    )  # fmt: skip
