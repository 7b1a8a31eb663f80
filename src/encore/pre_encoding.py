"""`encore encode`: the codes of a whole catalogue, in shards, by several processes.

The catalogue is read in parts of `SHARD_TRACKS` records, and each part becomes one shard, so memory does not depend on
the catalogue's size. A shard is in the index when its file is complete: a run that was killed is continued by the same
command. What changed in the catalogue since, and files that were replaced, are encoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from encore.api import Backend
from encore.data.catalog import Catalog, find_catalog, read_records
from encore.data.encode import TrackEncoder
from encore.data.manifest import Record
from encore.data.open_files import Caps, spot
from encore.data.shard_writing import CatalogRow, Encoded, IndexWriter, WrittenShard, write_shard, writing_index
from encore.data.shards import FORMAT, INDEX, SHARD_TRACKS, FileState, codec_identity, file_state, grouped
from encore.data.tracks import Track
from encore.errors import MOST, EncoreError, InputError, UsageError, one_line, together
from encore.evaluate.parallel import start_fork
from encore.plugins import backends
from encore.reporter import Reporter
from encore.stop_signals import StopFlag, stop_on_signals
from encore.store.environment import pick_device
from encore.store.model_name import model_name
from encore.store.run_folder import check_folder, locked
from encore.tensor_cache import TensorCache
from encore.text import printable

CAPS = Caps(total=64 << 30, lines=100_000_000, line=256 << 10)  # the catalogue is never in memory as a whole
AHEAD = 2  # shards per process that may wait for an earlier one
SKIP = "--skip-unreadable leaves them out"


@dataclass(frozen=True)
class EncodeConfig:
    """What to encode.

    Args:
        catalog: the catalogue, see `Catalog.open`.
        out: folder of the shards.
        model: folder or hub name.
        backend: name of the model family.
        revision: of a hub model.
        offline: use downloaded files only.
        device: as in `encore.store.environment.pick_device`.
        roots: further folders that the catalogue's files may be in.
        workers: processes; None: one for each core on a CPU, else one.
        skip_unreadable: leave out tracks that can't be read.
    """

    catalog: Path
    out: Path
    model: str
    backend: str = "musicgen"
    revision: str | None = None
    offline: bool = False
    device: str = "auto"
    roots: tuple[Path, ...] = ()
    workers: int | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True)
class _Part:
    """Records of a catalogue that become one shard."""

    number: int
    sha256: str
    records: tuple[Record, ...]


def encode_catalog(config: EncodeConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Encode a catalogue into shards.

    Returns:
        Numbers of "tracks", "clips", "skipped", "shards" and "bytes", of shards "written" now, and "notes".

    Raises:
        UsageError: the folder has shards of another catalogue or model, or other files.
        InputError: the catalogue, the model or a track can't be used; the shards of all other tracks are written.
        EncoreError: another process uses the folder, or a process was killed.
        Interrupted: a signal came.
    """
    reporter = reporter or Reporter()
    source = find_catalog(config.catalog)
    device = pick_device(config.device)
    check_folder(config.out)
    _refuse_others(config.out)
    reporter.progress("load model", 0, 1)
    load = partial(
        backends().resolve(config.backend).load, model_name(config.model), revision=config.revision,
        offline=config.offline, device=device,
    )  # fmt: skip
    backend = load()
    about = {
        "codec": codec_identity(backend), "model": model_name(config.model), "catalog": str(source.resolve()),
        "folder": os.path.realpath(source.parent),
    }  # fmt: skip
    notes: list[str] = []
    errors: list[InputError] = []
    workers = config.workers or (_cores() if backend.device.type == "cpu" else 1)
    parts = [(part.number, part.sha256) for part in _parts(source, [])]
    total = len(parts)
    if not total:
        raise InputError(f"{printable(source)}: the catalogue is empty")
    written = 0
    with locked(config.out), stop_on_signals() as stop, writing_index(config.out, about) as index:
        _refuse_other_content(config.out, index.before, about)
        changed = [number for number, digest in parts if not index.is_done(number, digest)]
        # Without the option, tracks that were left out are tried again; their shards stay until they can be read.
        tried_again = set() if config.skip_unreadable else index.skipping()
        replaced = {number: path for number, path in index.replaced().items() if number < total}
        changed = sorted({*changed, *replaced})
        encoded_again = [*changed, *tried_again, *index.numbers(total)]
        _refuse_lost_audio(index, encoded_again, source, next(iter(replaced.values()), ""))
        index.begin()
        index.cut(total)
        index.drop(changed)
        todo = (
            part
            for part in _parts(source, notes)
            if part.number in tried_again or not index.is_done(part.number, part.sha256)
        )
        work = partial(_encode_part, source=source, config=config)
        for shard, failures in _in_processes(work, todo, workers, load, backend, stop):
            reporter.progress("encode", shard.number, total)
            if not failures or config.skip_unreadable:
                failures = index.add(replace(shard, skipped=[error.message for error in failures]))
                written += not failures
            errors += failures[: MOST + 1 - len(errors)]
        if errors:
            if all(index.is_done(number, digest) for number, digest in parts):
                with contextlib.suppress(InputError):  # no track at all can be read
                    index.finish(notes)  # the folder is as it was
            error = together(errors)
            skip = "" if config.skip_unreadable else SKIP
            raise InputError(error.message, "\n".join(filter(None, [error.hint, skip, "the same command continues"])))
        reporter.progress("encode", total, total)
        return {**index.finish(notes), "written": written, "notes": notes}


def _parts(source: Path, notes: list[str]) -> Iterator[_Part]:
    for number, records in enumerate(grouped(read_records(source, CAPS, notes), SHARD_TRACKS)):
        digest = hashlib.sha256(repr(records).encode("utf-8", "backslashreplace")).hexdigest()
        yield _Part(number, digest, tuple(records))


def _refuse_others(out: Path) -> None:
    if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()) and not (out / INDEX).exists():
        raise UsageError(f"{printable(out)} holds other files", "give a new or empty folder with --out")


def _refuse_other_content(out: Path, before: dict[str, Any], about: dict[str, Any]) -> None:
    if before and before.get("format") != FORMAT:
        raise UsageError(
            f"{printable(out)} was written by another version of Encore", "give another folder with --out, or remove it"
        )
    for key, what in (("catalog", "another catalogue"), ("codec", "another model")):
        if before and before.get(key) != about[key]:
            named = before.get("catalog" if key == "catalog" else "model")
            raise UsageError(
                f"{printable(out)} holds the codes of {what}, {printable(named)}", "give another folder with --out"
            )


def _refuse_lost_audio(index: IndexWriter, shards: Sequence[int], source: Path, replaced: str) -> None:
    """Refuse to encode shards again whose codes are all that is left of a track that the catalogue still names.

    Args:
        replaced: a file that was replaced, which is why a shard is to be encoded again; empty: the catalogue changed.
    """
    gone = {file for file, path in index.files(shards) if not os.path.exists(path)}
    if not gone:
        return
    needed = sorted(gone & {record.path for part in _parts(source, []) for record in part.records})
    if needed:
        more = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
        if replaced:
            raise UsageError(
                f"{printable(replaced)} was replaced, and can't be encoded again with its shard: the audio of "
                f"{printable(needed[0])}{more} is gone, and the shard has its codes",
                "put the earlier file back, and encode the new one under another name into a folder of its own",
            )
        raise UsageError(
            f"{printable(needed[0])}{more} can't be encoded again: the audio is gone, and the shard has its codes",
            "leave the catalogue's earlier lines as they were, and encode new tracks into a folder of their own",
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ----------------------------------------------------------------------------------------------------------- one shard


def _encode_part(
    backend: Backend, part: _Part, *, source: Path, config: EncodeConfig
) -> tuple[WrittenShard, list[InputError]]:
    """Encode the tracks of some records, and write their shard; also the errors of tracks that can't be read.

    With errors, and without `skip_unreadable`, an earlier shard stays as it is.
    """
    errors: list[InputError] = []
    catalog = Catalog(source, part.records, config.roots)
    encoder = TrackEncoder(backend, TensorCache())
    encoded: list[Encoded] = []
    tracks = catalog.tracks(errors=errors)
    copies = _copies(catalog, tracks)
    for track in tracks:
        state = _state(catalog, track)  # before the file is read, so that a later change is noticed
        try:
            decoding, windows = encoder.fresh(track)
        except InputError as error:
            errors.append(track.refusal(error))
            continue
        (record, *_) = catalog.records_of(track.path, track.sha256)
        more = copies.get(track.sha256, ())
        encoded.append(Encoded(track, record.path, state, decoding=decoding, windows=windows, copies=more))
    if errors and not config.skip_unreadable:
        return WrittenShard(part.number, part.sha256, "", (), (), (), (), 0), errors
    with torch.no_grad():
        shard = write_shard(config.out, part.number, part.sha256, encoded, lambda text: backend.encode_text([text])[0])
    backend.text_embeddings.clear()
    return shard, errors


def _copies(catalog: Catalog, tracks: Sequence[Track]) -> dict[str, list[CatalogRow]]:
    """Rows that repeat the file of a track, by its hash."""
    places = {track.place for track in tracks}
    rows: dict[str, list[CatalogRow]] = {}
    for record in catalog.records:
        if spot(catalog.name, record.line) in places:
            continue
        with contextlib.suppress(InputError):  # it is among the errors of `Catalog.tracks`
            copy = catalog.track(record)
            rows.setdefault(copy.sha256, []).append(CatalogRow(copy, record.path, _state(catalog, copy)))
    return rows


def _state(catalog: Catalog, track: Track) -> FileState | None:
    """The state of a track's file, where the catalogue does not have its hash."""
    hashed = any(record.sha256 for record in catalog.records_of(track.path, track.sha256))
    return None if hashed else file_state(track.path)


# ----------------------------------------------------------------------------------------------------------- processes

Work = Callable[[Backend, _Part], tuple[WrittenShard, list[InputError]]]


def _in_processes(
    work: Work, parts: Iterator[_Part], workers: int, load: Callable[[], Backend], backend: Backend, stop: StopFlag
) -> Iterator[tuple[WrittenShard, list[InputError]]]:
    """The results of the parts, in order, with a bounded number of parts in memory.

    Processes on a CPU are forks, which share the model's memory; others load it again.
    """
    if workers == 1:
        for part in parts:
            yield work(backend, part)
            stop.check()
        return
    fork = sys.platform.startswith("linux") and backend.device.type == "cpu"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of its threads at the fork
    team = [_Worker(work, backend if fork else None, load) for _ in range(workers)]
    try:
        yield from _ordered(team, parts, stop)
    finally:
        for worker in team:
            worker.end()


def _ordered(
    team: Sequence[_Worker], parts: Iterator[_Part], stop: StopFlag
) -> Iterator[tuple[WrittenShard, list[InputError]]]:
    order: deque[int] = deque()  # numbers of the parts that are out
    results: dict[int, tuple[WrittenShard, list[InputError]]] = {}
    idle = list(team)
    more = True
    while more or order:
        while more and idle and len(order) < AHEAD * len(team):
            part = next(parts, None)
            more = part is not None
            if part is not None:
                order.append(part.number)
                idle.pop().give(part)
        ready = wait([worker.pipe for worker in team if worker.busy], timeout=0.2)
        for worker in team:
            if worker.pipe in ready:
                shard, errors = worker.take()
                results[shard.number] = shard, errors
                idle.append(worker)
        stop.check()
        while order and order[0] in results:
            yield results.pop(order.popleft())


class _Worker:
    """A process that encodes parts.

    Args:
        work: encodes one part.
        backend: the model, for a fork; None: the process loads it.
        load: loads it.
    """

    def __init__(self, work: Work, backend: Backend | None, load: Callable[[], Backend]) -> None:
        context: Any = multiprocessing.get_context("spawn" if backend is None else "fork")
        self.pipe, other = context.Pipe()
        self.busy = False
        self.process = context.Process(target=_serve, args=(other, work, backend, load), daemon=True)
        start_fork(self.process)
        other.close()

    def give(self, part: _Part) -> None:
        """Let it encode a part."""
        self.busy = True
        try:
            self.pipe.send(part)
        except OSError as error:
            raise _killed() from error

    def take(self) -> tuple[WrittenShard, list[InputError]]:
        """Its result.

        Raises:
            EncoreError: it failed.
        """
        self.busy = False
        try:
            result = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise _killed() from error
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]

    def end(self) -> None:
        """Stop it at once: an unfinished shard is encoded again next time."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _killed() -> EncoreError:
    return EncoreError(
        "a process that encodes was killed, probably for want of memory",
        "give fewer --workers; the same command continues with the rest",
    )


def _serve(pipe: Connection, work: Work, backend: Backend | None, load: Callable[[], Backend]) -> None:
    """Encode parts until the pipe is closed."""
    for number in ("SIGINT", "SIGHUP"):  # these reach the whole group, and the parent stops its processes
        if hasattr(signal, number):
            signal.signal(getattr(signal, number), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # each core has a process; a fork must not use the threads of its parent
    try:
        backend = backend or load()
        while True:
            pipe.send(work(backend, pipe.recv()))
    except EOFError:
        return
    except EncoreError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(EncoreError(f"encoding failed: {one_line(error)}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
