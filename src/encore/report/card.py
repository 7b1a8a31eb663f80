"""The model's card: `model/README.md` as the Hugging Face hub reads it, with the figures as its `model-index`."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from encore.api import Result
from encore.report.figures import NAMES
from encore.report.formatting import number, unit_text
from encore.results.targets import SummaryRow, summary
from encore.store.run_folder import write_bytes
from encore.text import printable

TAGS = ["music", "text-to-audio", "machine-unlearning", "encore"]
TASK = "text-to-audio"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~-])")  # <, > and & become entities


def write_card(run: Path, record: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Replace the card of a run's model with one that has its figures."""
    if (run / "model").is_dir():
        write_bytes(run / "model" / "README.md", model_card(record, results).encode("utf-8"))


def model_card(record: Mapping[str, Any], results: Sequence[Result] = ()) -> str:
    """What was done to the model, what was measured, and what it does not promise.

    Args:
        record: what `run.json` holds. results: rows of `metrics.json`; empty before the run was measured.
    """
    from huggingface_hub import ModelCardData

    base = str(record["model"]["name"])
    count = record["tracks"]["forget"]
    lines = [line for line in summary(results) if _figure(line, "unlearned") is not None]
    name = printable(Path(base).name) or "model"
    data = ModelCardData(
        model_name=f"{name}, without {count} tracks",
        library_name=record.get("library") or None,
        pipeline_tag=TASK,
        base_model=base if HUB_NAME.fullmatch(base) and not os.path.isabs(base) else None,
        tags=TAGS,
        eval_results=[_eval_result(line) for line in lines] or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(record, name, count, lines)) + "\n"


def training_card(record: Mapping[str, Any]) -> str:
    """The card of a model of `encore train`.

    Args:
        record: the entries of `run.json` from `model` to `outcome`.
    """
    from huggingface_hub import ModelCardData

    base, count = str(record["model"]["name"]), record["tracks"]["trained"]
    name = printable(Path(base).name) or "model"
    data = ModelCardData(
        model_name=f"{name}, trained on {count} tracks", library_name=record.get("library") or None,
        pipeline_tag=TASK, base_model=base if HUB_NAME.fullmatch(base) and not os.path.isabs(base) else None,
        tags=["music", "text-to-audio", "encore"],
    )  # fmt: skip
    outcome = record["outcome"]
    left_out = f", and none of the {count} left out" if (count := record["tracks"]["left_out"]) else ""
    lines = [
        f"# {text(name)}, trained on {record['tracks']['trained']} tracks",
        "",
        f"Fine-tuned with Encore {record['versions']['encore']} from {text(name)} with weights of SHA-256 "
        f"`{record['model']['sha256']}`, in {outcome['steps']} steps (seed {record['seed']}): a base or a gold for "
        f"measuring unlearning. It was trained on the tracks in `request.json`{left_out}.",
        "",
        "## Licence",
        "",
        "The licence of the base model and the rights in the tracks apply to this model too.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _eval_result(line: SummaryRow) -> Any:
    from huggingface_hub import EvalResult

    row = line.figures["unlearned"]
    extra = {"low": row.low, "high": row.high, "n": row.n, "unit": row.unit}
    return EvalResult(
        task_type=TASK,
        dataset_type=f"encore-{line.set}",
        dataset_name=f"the run's {line.set} tracks",
        dataset_split=line.set,
        metric_type=line.metric,
        metric_name=line.label,
        metric_value=row.value,
        metric_args={key: value for key, value in extra.items() if value not in (None, "")},
    )


def _body(record: Mapping[str, Any], name: str, count: int, lines: Sequence[SummaryRow]) -> Iterator[str]:
    yield f"# {text(name)}, without {count} tracks"
    yield ""
    yield (
        f"Made with Encore {record['versions']['encore']} by the method `{record['method']}` in "
        f"{record['outcome']['steps']} steps (seed {record['seed']}), from {text(name)} with weights of SHA-256 "
        f"`{record['model']['sha256']}`."
    )
    yield ""
    yield (
        "It was made to forget tracks. Nothing here proves that they were deleted: the figures say which tests found "
        "evidence of them, and what forgetting cost the rest of the music."
    )
    yield ""
    if record["outcome"].get("collapsed"):
        yield "**The run damaged the rest of the music: don't use this model.**"
        yield ""
    yield "## Figures"
    yield ""
    if lines:
        yield from _table(lines, record)
    else:
        yield "None yet. `encore eval` on this model's run folder measures them."
    yield ""
    yield "## Licence"
    yield ""
    yield "The licence of the base model applies to this model too."


def _table(lines: Sequence[SummaryRow], record: Mapping[str, Any]) -> Iterator[str]:
    roles = [role for role in ("base", "unlearned", "gold") if any(role in line.figures for line in lines)]
    yield f"| figure | {' | '.join(NAMES[role] for role in roles)} | target | |"
    yield "| --- |" + " --- |" * (len(roles) + 2)
    for line in lines:
        cells = [number(_figure(line, role)) for role in roles]
        met = {True: "reached", False: "missed", None: ""}[line.met]
        yield f"| {line.label} | {' | '.join(cells)} | {line.target} | {met} |"
    yield ""
    yield (
        f"Likelihoods are in {unit_text(record.get('unit', 'nats/token'))}; verbatim figures are shares of tracks. "
        "*Gold* is the same model trained without the tracks. Intervals are in the metadata above, all else in "
        "`metrics.json`."
    )


def _figure(line: SummaryRow, role: str) -> float | None:
    row = line.figures.get(role)
    return row.value if row is not None else None


def text(name: str) -> str:
    """A stranger's name as Markdown that stands for itself."""
    return html.escape(MARKS.sub(r"\\\1", printable(name)))
