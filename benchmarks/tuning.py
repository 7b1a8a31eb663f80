"""Settings of a method on the tuning split: other forget and retain tracks than those that figures are reported of.

    python benchmarks/tuning.py --methods encore -o steps=150 -o lr=1e-3 [--gold FOLDER] [--seeds 1] [--json FILE]

The golds of the reported split are never read here. What stands in for gold is unseen music under base (its NLL, and
how fast base learns it), or a gold of its own, which `python -m tools.build_assets.lm tuning-gold --work W` trains in
about 25 minutes. `encore bench` compares methods at the settings that were found.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from encore import assets, plugins
from encore.api import Backend, Clip, ClipSet, Result, Role
from encore.data.catalog import Catalog
from encore.data.encode import TrackEncoder
from encore.evaluate.measure import evaluate
from encore.settings import cache_folder, resolve_options
from encore.tensor_cache import TensorCache
from encore.unlearn.adapter import with_adapter_rates
from encore.unlearn.config import Lora
from encore.unlearn.engine import Clips, Engine

COLUMNS = (  # title, metric, set
    ("KL gold, forget", "kl_gold", "forget"),
    ("forget NLL", "nll", "forget"),
    ("relearned", "relearn", "forget"),
    ("retain NLL", "nll", "retain"),
    ("holdout NLL", "nll", "holdout"),
    ("verbatim, forget", "verbatim", "forget"),
    ("verbatim, retain", "verbatim", "retain"),
    ("AUC", "membership_auc", "forget"),
    ("4 bits, forget", "quantised_4bit_nll", "forget"),
    ("4 bits, retain", "quantised_4bit_nll", "retain"),
)
METRICS = ("nll", "kl_gold", "verbatim", "membership_auc", "relearn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(plugins.methods().names))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--gold", metavar="FOLDER", help="a model trained without the tuning split's forget set")
    parser.add_argument("-o", dest="option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--metrics", default=",".join(METRICS), help="quantised adds the NLLs of 4-bit weights")
    parser.add_argument("--no-base", action="store_true", help="measure the methods alone")
    parser.add_argument(
        "--lora", nargs="?", type=int, const=Lora.rank, metavar="RANK", help="train an adapter, at rates of its own"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    base = plugins.backends().resolve("musicgen").load("tiny")
    training, measured = hear(base)
    models: dict[Role, Backend] = {"base": base}
    if arguments.gold:
        models["gold"] = base.load(arguments.gold)
    metrics, table = arguments.metrics.split(","), []
    if not arguments.no_base:
        table = [row(role, figures(measured, models, role, metrics), 0.0) for role in models]
        table.append(row("base, as if the holdout were to be forgotten", unseen(measured, base, metrics), 0.0))
    for name in filter(None, arguments.methods.split(",")):
        runs = []
        for seed in range(arguments.seeds):
            method = plugins.methods().resolve(name)
            options = resolve_options(method.Options, assignments=arguments.option).options
            twin = base.clone()
            chosen, lora = method(options), Lora(arguments.lora) if arguments.lora else None
            if lora is not None:
                chosen, _ = with_adapter_rates(chosen, twin.module, lora)
            began = time.monotonic()
            Engine(twin, training, seed=seed, lora=lora, fisher_folder=cache_folder() / "fisher").run(chosen)
            seconds = time.monotonic() - began
            found = figures(measured, {**models, "unlearned": twin}, "unlearned", metrics)
            runs.append(row(name, found, seconds))
            print(runs[-1], flush=True)
        table.append(median(runs))
    print(markdown(table))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


def hear(backend: Backend) -> tuple[Clips, dict[ClipSet, list[Clip]]]:
    """What a run is given, and what is measured."""
    catalog = Catalog.open(assets.CATALOG)
    listener = TrackEncoder(backend, TensorCache())
    heard = {
        name: [clip for one in listener.encode(catalog.tracks(split=name)) for clip in one.clips]
        for name in ("forget", "retain", "tune_forget", "tune_retain", "holdout", "background")
    }
    kept = heard["tune_retain"] + heard["retain"] + heard["forget"] + heard["background"]
    return Clips(heard["tune_forget"], kept, heard["holdout"]), {
        "forget": heard["tune_forget"], "retain": heard["tune_retain"], "holdout": heard["holdout"]
    }  # fmt: skip


def figures(
    clips: dict[ClipSet, list[Clip]], models: dict[Role, Backend], role: Role, metrics: Sequence[str] = METRICS
) -> list[Result]:
    chosen: dict[Role, Backend] = {"unlearned": models[role]}
    if "gold" in models and role != "gold":
        chosen["gold"] = models["gold"]
    results = evaluate(chosen, clips, metrics=metrics, embedder=None)
    return [result for result in results if result.model == "unlearned"]


def unseen(clips: dict[ClipSet, list[Clip]], base: Backend, metrics: Sequence[str] = METRICS) -> list[Result]:
    """Base on the holdout as if that were the forget set: what a track that was never learnt looks like."""
    return evaluate({"unlearned": base}, {**clips, "forget": clips["holdout"]}, metrics=metrics, embedder=None)


def row(name: str, results: Sequence[Result], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"method": name, "seconds": round(seconds, 1)}
    for title, metric, clips in COLUMNS:
        match = [
            r for r in results if (r.metric, r.set, r.model) == (metric, clips, "unlearned") and r.value is not None
        ]
        if not match:
            continue
        value = match[0].value
        found[title] = round(value * match[0].n) if match[0].unit == "share" else round(value, 3)
        if title == "forget NLL":
            tracks = [value for value in match[0].per_track.values() if value is not None]
            found["lowest"], found["highest"] = round(min(tracks), 2), round(max(tracks), 2)
    return found


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Column by column over the seeds."""
    return {
        key: value if isinstance(value, str) else round(statistics.median(run[key] for run in runs), 3)
        for key, value in runs[0].items()
    }


def markdown(table: Sequence[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for line in table for key in line))
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    lines += ["| " + " | ".join(str(line.get(key, "")) for key in keys) + " |" for line in table]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
