"""Finds the tracks and models of a bundle by hash: in the run, below `--root`, or in the package."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encore import assets
from encore.data.catalog import Catalog
from encore.data.decode import load
from encore.data.open_files import file_sha256
from encore.data.relocate import PathRelocator, listed_track
from encore.data.shards import ShardCatalog, catalog_at
from encore.data.splits import reported
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import EncoreError, InputError
from encore.evaluate.inputs import RETAIN_TRACKS
from encore.evidence.redaction import described_sha256
from encore.plugins import backends
from encore.store.model_name import model_sha256
from encore.store.run_folder import read_json, write_json

SETS = ("forget", "retain", "holdout")
LISTS = (".txt", ".m3u", ".m3u8")  # suffixes of lists of tracks; other files are catalogues
SHOWN = 3  # tracks named in a message


@dataclass
class Inputs:
    """A run's folder to measure.

    Args:
        folder: folder with `request.json` (with current paths), `run.json` and the model.
        golds: the gold models that were found, by role.
        absent: reasons by set or role that can't be measured.
    """

    folder: Path
    golds: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def find_inputs(
    folder: Path,
    how: Mapping[str, Any],
    *,
    run: Path | None = None,
    roots: Sequence[Path] = (),
    catalogs: Sequence[Path] = (),
) -> Inputs:
    """Find tracks and models, and write their paths to the folder's `request.json`.

    Args:
        folder: folder with the bundle's `request.json`, `run.json` and, if included, its model.
        how: the bundle's `evaluation.json`.
        run: the run's folder, whose request has the original paths.
        roots: folders that are searched recursively, by hash.
        catalogs: catalogues or lists with the captions of tracks that the bundle has only hashes of.

    Raises:
        InputError: a record, a root or the catalogue can't be read.
    """
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root} is not a folder", "--root names a folder that holds tracks or models")
    request = read_json((run or folder) / "request.json")
    try:
        finder = _Finder(request, run, roots, catalogs)
        inputs = Inputs(folder)
        for name in SETS:
            request[name], lost = finder.tracks(request[name], int(how["seed"]) if name == "retain" else None)
            if lost:
                more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
                inputs.absent[name] = f"{name} tracks not found: {', '.join(lost[:SHOWN])}{more}"
        base = request["model"]
        base["name"] = finder.model(str(base["name"]), str(base["sha256"])) or base["name"]
        for role, gold in how["golds"].items():
            place = finder.model(str(gold), str(how["models"].get(role)), role)
            if place is None:
                inputs.absent[role] = f"{role} model not found: {gold}"
            else:
                inputs.golds[role] = place
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"the bundle's request.json can't be read: {error!r}") from error
    write_json(folder / "request.json", {**request, "folder": str(folder)})
    if run is not None:
        for name in ("model", "retain-self"):
            if (run / name).is_dir() and not (folder / name).exists():
                (folder / name).symlink_to((run / name).resolve(), target_is_directory=True)
    return inputs


class _Finder:
    """Finds files by hash; folders are searched only if something is missing."""

    def __init__(
        self, request: Mapping[str, Any], run: Path | None, roots: Sequence[Path], catalogs: Sequence[Path]
    ) -> None:
        self.run, self.roots, self.family = run, roots, str(request["model"]["backend"])
        self.moved = PathRelocator(Path(request["folder"]), run) if run is not None else None
        self.embedded = Catalog.open(assets.CATALOG)
        self.catalogs = [catalog_at(path, roots) for path in catalogs if path.suffix not in LISTS]
        lists = [read_list(path, roots=roots).tracks for path in catalogs if path.suffix in LISTS]
        self.listed = {track.sha256: track for tracks in lists for track in tracks}
        self._hashes: dict[str, Path] | None = None
        self._samples: dict[str, Path] | None = None

    def tracks(self, entries: Sequence[Mapping[str, Any]], seed: int | None) -> tuple[list[dict[str, Any]], list[str]]:
        """The entries of a set with current paths, and the ids of tracks that are not found.

        Args:
            seed: seed of an evaluation that measures a sample of the set; None if it measures all.
        """
        wanted = {str(entry["id"]) for entry in entries}
        if seed is not None:
            listed = [listed_track({"file": "", "caption": "", **entry}) for entry in entries]
            wanted = {track.id for track in reported(listed, RETAIN_TRACKS, seed)}
        located, lost = [], []
        for entry in entries:
            if str(entry["id"]) not in wanted:
                located.append({"file": "", "caption": "", **entry})  # listed, so that the same sample is drawn
                continue
            if (shards := self._shards(entry)) is not None:
                whole = self._described(entry, Path(str(entry.get("file") or "")))
                if whole is not None:
                    located.append({**whole, "file": whole.get("file") or "", "shards": str(shards)})
                    continue
            path = self._path(entry)
            whole = self._described(entry, path) if path is not None else None
            if path is None or whole is None:
                lost.append(str(entry["id"]) + ("" if path is None else " (its caption is not known)"))
            else:
                located.append({**whole, "file": str(path), "sha256": file_sha256(path)})
        return ([] if lost else located), lost

    def model(self, name: str, sha256: str, role: str = "") -> str | None:
        """The folder of a model in its original place or below the roots, else its name.

        Args:
            name: name or folder of the model.
            sha256: hash of its weights, which decides between folders of the same name.
            role: role of a gold model.
        """
        if assets.model_folder(name):
            return name
        if self.run is not None:
            kept = self.run / "evaluation.json"
            recorded = read_json(kept).get("golds", {}).get(role) if role and kept.exists() else name
            if isinstance(recorded, str) and Path(recorded).name == Path(name).name:
                place = self.moved.model(recorded) if self.moved else recorded
                if Path(place).is_dir():
                    return place
        base, walks = os.path.basename(name), (os.walk(root) for root in self.roots)
        folders = [above for walk in walks for above, _, files in walk if os.path.basename(above) == base and files]
        places = [str(Path(above).resolve()) for above in folders]
        if len(places) > 1:
            places = [place for place in places if self._weights(place) == sha256]
        if places:
            return places[0]
        return name if "/" in name and not os.path.isabs(name) else None

    def _weights(self, place: str) -> str:
        try:
            return model_sha256(backends().resolve(self.family).load(place, offline=True, device="cpu"))
        except EncoreError:
            return ""

    # ------------------------------------------------------------------------------------------------------ files

    def _shards(self, entry: Mapping[str, Any]) -> Path | None:
        """The folder of shards that holds a track: that of the run, or a catalogue."""
        if entry.get("shards") and self.moved is not None:
            try:
                return self.moved.find(listed_track(entry)).shards
            except InputError:
                pass
        shards = (catalog for catalog in self.catalogs if isinstance(catalog, ShardCatalog))
        return next((one.folder for one in shards if one.by_known_sha256(str(entry["sha256"]))), None)

    def _path(self, entry: Mapping[str, Any]) -> Path | None:
        if self.moved is not None:
            try:
                return self.moved.find(listed_track(entry)).path
            except InputError:
                pass
        digest = str(entry["sha256"])
        path = self._by_hash().get(digest)
        if path is None:
            places = (self.embedded.folder / record.path for record in self.embedded.by_known_sha256(digest))
            path = next((place for place in places if place.is_file() and file_sha256(place) == digest), None)
        return path or self._by_samples().get(str(entry["pcm_sha256"]))

    def _by_hash(self) -> dict[str, Path]:
        if self._hashes is None:
            self._hashes = {file_sha256(path): path for path in self._files()}
        return self._hashes

    def _by_samples(self) -> dict[str, Path]:
        """Files that are the same recording in another container: a track's FLAC for its WAV."""
        if self._samples is None:
            self._samples = {}
            for path in self._by_hash().values():
                try:
                    self._samples[load(path, sample_rate=16_000, channels=1).sha256_pcm] = path
                except InputError:  # no audio
                    continue
        return self._samples

    def _files(self) -> Iterator[Path]:
        for root in self.roots:
            for above, _, names in os.walk(root):
                paths = (Path(above, name) for name in sorted(names))
                yield from (path.resolve() for path in paths if path.is_file())

    # ----------------------------------------------------------------------------------------------- descriptions

    def _described(self, entry: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
        """The entry with caption, artist and genre; None where those at hand are not those that were used."""
        if "described_sha256" not in entry:
            return dict(entry)
        for track in self._known(str(entry["sha256"]), path):
            description = {"caption": track.caption, "artist": track.artist, "genre": track.meta.get("genre")}
            description["captions"] = list(getattr(track, "captions", [track.caption]))
            if described_sha256(description) == entry["described_sha256"]:
                return {**entry, **description}
        return None

    def _known(self, digest: str, path: Path) -> Iterator[Track]:
        """The track as described by each catalogue, then by the file."""
        if digest in self.listed:
            yield self.listed[digest]
        for catalog in (*self.catalogs, self.embedded):
            for record in catalog.by_sha256(digest):
                try:
                    yield catalog.track(record, path=path)
                except InputError:
                    continue
        try:
            line = io.BytesIO(os.fsencode(path) + b"\n")
            yield from read_list("-", roots=[*self.roots, path.parent], stdin=line).tracks
        except InputError:
            return


def as_kept(rows: Any) -> list[dict[str, Any]]:
    """Rows after a round trip through JSON."""
    return list(json.loads(json.dumps(rows)))
