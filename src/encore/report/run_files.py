"""What a report is made of: a run's files, read and checked, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from encore.api import Result
from encore.errors import InputError
from encore.files import naming, parsed_json
from encore.results.findings import Finding, findings
from encore.results.targets import SummaryRow, summary
from encore.store import schemas
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.meta_json import RowTrust, trust_key, trust_of_run
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics
from encore.store.run_folder import LOG, complete_run, read_json

REPORT = "report.html"
MAX_LOG = 256 << 20  # bytes of a log that are read
MOMENTS = {"before": "base", "after": "unlearned", "gold": "gold"}  # last word of a sample's file name -> role


@dataclass(frozen=True)
class Sample:
    """A WAV that one model generated for one track's caption; those of the set `similar` are most similar to it."""

    path: Path
    set: str
    role: str
    track: str
    caption: str
    variant: str = ""  # in `similar`: how it was generated, "greedy", "sample 1" or "short"
    kinds: tuple[str, ...] = ()  # in `similar`: what is similar, "chroma", "melody", "onset"


@dataclass(frozen=True)
class RunFiles:
    """A measured run.

    Args:
        folder: the run's folder.
        request: its `request.json`.
        run: its `run.json`.
        results: rows of `metrics.json`.
        evaluation: `evaluation.json`, how the rows were measured; empty for a run of an older Encore.
        snapshots: the snapshots of `log.jsonl`, oldest first, each with `at`: steps since the run began.
        samples: the audio files.
    """

    folder: Path
    request: Mapping[str, Any]
    run: Mapping[str, Any]
    results: list[Result]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    snapshots: list[Mapping[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @cached_property
    def table(self) -> list[SummaryRow]:
        """The rows that have targets or labels, judged."""
        return summary(self.results)

    @cached_property
    def findings(self) -> list[Finding]:
        """What a reader must not miss, worst first."""
        return findings(self.results)

    @cached_property
    def trust(self) -> dict[tuple[str, str], RowTrust]:
        """Of a bench's trial: what `encore bench --meta` found of the rows, by metric and set."""
        return trust_of_run(self.folder, trust_key(self.request, self.evaluation))

    @property
    def unit(self) -> str:
        """What losses are in."""
        return str(self.run.get("unit", "nats/token"))

    @property
    def loss(self) -> str:
        """What a person calls a model's loss on a track."""
        return "NLL" if self.unit == "nats/token" else "loss"


def read_run(run: Path, *, measured: Path | None = None) -> RunFiles:
    """Read a complete and measured run.

    Args:
        measured: where `metrics.json` and the samples are, if not in the run's folder.

    Raises:
        InputError: it is no run, it did not finish, it was not measured, or a file of it can't be read.
    """
    measured = measured or run
    record, request = complete_run(run)
    if not (measured / METRICS).exists():
        raise InputError(f"{measured} has no {METRICS}: the run was not measured yet", f"measure it: encore eval {run}")
    how = read_json(measured / EVALUATION, schemas.Evaluation) if (measured / EVALUATION).exists() else {}
    results = read_metrics(measured / METRICS)
    snapshots: list[Mapping[str, Any]] = list(_snapshots(run / LOG))
    samples = list(_samples(measured / "samples"))
    return RunFiles(run, request, record, results, how, snapshots, samples)


def _snapshots(log: Path) -> Iterator[dict[str, Any]]:
    """One a step, the last that was taken: a run that was resumed went over some steps twice."""
    if not log.is_file() or log.stat().st_size > MAX_LOG:
        return
    taken: dict[tuple[int, int], dict[str, Any]] = {}
    with naming(log):
        text = log.read_text("utf-8", "replace")
    for line in text.splitlines():
        try:
            record = parsed_json(line, LOG)
            if not isinstance(record, dict) or "snapshot" not in record:
                continue
            parsed_json(json.dumps(record["snapshot"]), LOG, schemas.Snapshot)
        except InputError:  # a line that was torn by a kill
            continue
        phase, step = record.get("phase", 1), record.get("step")
        if isinstance(phase, int) and isinstance(step, int):
            taken[phase, step] = record["snapshot"]
    begins, last_phase, last_step = 0, 0, 0
    for (phase, step), snapshot in sorted(taken.items()):
        if phase != last_phase:
            begins, last_phase = begins + last_step, phase
        last_step = step
        yield {**snapshot, "at": begins + step}


def _samples(folder: Path) -> Iterator[Sample]:
    """What the index lists and is there; a name or a link that leads out of the folder is left out."""
    index, real = folder / "index.json", folder.parent.resolve() / folder.name
    if not index.exists():
        return
    entries = read_json(index)
    for entry in entries if isinstance(entries, list) else []:
        name = str(entry.get("file", "")) if isinstance(entry, dict) else ""
        kind, _, rest = name.partition("/")
        moment = rest.removesuffix(".wav").rpartition(".")[2]
        path = folder / kind / rest
        if "/" in rest or ".." in (kind, rest) or moment not in MOMENTS or not path.is_file():
            continue
        if path.resolve() != real / kind / rest:
            continue
        kinds = tuple(map(str, entry["kinds"])) if isinstance(entry.get("kinds"), list) else ()
        track, caption, variant = (str(entry.get(name, "")) for name in ("track", "caption", "variant"))
        yield Sample(path, kind, MOMENTS[moment], track, caption, variant, kinds)
