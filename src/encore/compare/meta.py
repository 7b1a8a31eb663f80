"""`encore bench --meta`: do the metrics tell models that hold the tracks from models that don't?

After the meta-evaluation of OpenUnlearning (Dorna et al., arXiv 2506.12618), on models of which it is known by their
training alone whether they hold the forget tracks:

- Models that hold them: base; base with weights rounded to 8 and 4 bits, trained a few steps on retain tracks, or again
  on the forget tracks; gold and gold2 trained on the forget tracks.
- Models that don't: gold and gold2, plain, rounded, and trained a few steps on retain tracks.

"A few steps" are those of the metric `relearn`, at its learning rate and at five times that ("fast"). The results of
methods are in neither group: what they hold is not known. Each model is measured in the place of the unlearned one; a
form of gold is compared with gold2, and one of gold2 with gold, so that no model is its own standard.

The score s of a row grows with what it finds of the tracks: the value v where low is good, -v where high is good,
(v(gold) - v) · sign(v(gold) - v(base)) where gold's value is: the distance from gold toward base, below 0 for a model
that is over-forgotten. Faithfulness is the AUC of s, the share of pairs of a model that holds the tracks and one that
doesn't in which s is higher for the first, ties counted half. The verdict is "incomplete" until all models of both
groups have a value.

Robustness is measured on the trials that the row puts nearer to gold than to base, s ≤ (s(gold) + s(base)) / 2. With
' for the value after relearning on the forget tracks, and " after rounding, whichever of 8 and 4 bits shows more:

    relearning    r = min((s'(gold) - s(gold)) / (s'(trial) - s(trial)), 1), at least 0; 1 where s' ≤ s in the trial
    quantisation  q = 1 - (s"(trial) - s(trial)) / (s(base) - s(gold)), within [0, 1]
    robustness    2 r̄ q̄ / (r̄ + q̄) of the means over trials

r is the paper's equation. Its q, the ratio of the values before and after, needs a scale with a zero and more values
above it; the scale here has gold at its zero, where a good trial is, so the difference is taken in units of base's.
`order` is Kendall's τ-b between the trials' scores before and after each attack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from encore import __version__, plugins, stats
from encore.api import Backend, Clip, ClipSet, Result, Role
from encore.compare.plan import Plan, is_complete, plan_tracks
from encore.curvature.fisher import clips_sha256
from encore.errors import PluginError, UsageError
from encore.evaluate.embedder_choice import default_embedders
from encore.evaluate.evaluation import SharedEvaluation
from encore.evaluate.inputs import EvaluationInputs, OtherWeightsError, open_inputs
from encore.evaluate.measure import check_failures, measure
from encore.evaluate.result_cache import ResultCache, evaluation_cache
from encore.metrics.robustness.quantized import round_weights
from encore.metrics.robustness.relearn import LR, STEPS, RelearnFast, evenly_spaced
from encore.relearning import relearn
from encore.reporter import Reporter
from encore.results.targets import named, spec_of
from encore.store.meta_json import NAME, SCHEMA, RowTrust, Verdict, read_meta, trial_key
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics
from encore.store.model_name import model_sha256
from encore.store.run_folder import read_json, write_json

BITS = {"8bit": 8, "4bit": 4}
TRAINING: Mapping[str, tuple[ClipSet, float]] = {  # form -> the tracks it is trained on, the learning rate
    "retain": ("retain", LR), "retain-fast": ("retain", RelearnFast.lr),
    "forget": ("forget", LR), "forget-fast": ("forget", RelearnFast.lr),
}  # fmt: skip
RELEARNED = ("forget", "forget-fast")
UNCHANGED = ("", "8bit", "4bit", "retain", "retain-fast")  # forms that hold what their model holds
ATTACKS = ("forget", "8bit", "4bit")  # forms of a trial
LEAST_TRIALS = 3
GOLDS: Mapping[Role, Role] = {"gold": "gold2", "gold2": "gold"}  # a gold -> the one that its forms are compared with

Row = Mapping[str, Any]  # metric, set, direction; values "model", "base" and "gold", None where not measured


@dataclass(frozen=True)
class ZooModel:
    """A model that the metrics are tried on.

    Args:
        source: "base", "gold", "gold2" or a trial's name.
        form: one of `UNCHANGED`, `RELEARNED`.
        gold: the role of the gold model that it is compared with.
        holds: whether it holds the forget tracks; None if that is unknown, or it is not among the models of the AUC.
    """

    source: str
    form: str = ""
    gold: Role = "gold"
    holds: bool | None = None

    @property
    def name(self) -> str:
        """Its name in `meta.json`: "gold2 4bit vs gold"."""
        return " ".join(filter(None, (self.source, self.form, "vs", self.gold)))


def zoo(trials: Sequence[str], *, retain: bool = True) -> list[ZooModel]:
    """All models to measure; the plain trials are measured already.

    Args:
        trials: names of trials.
        retain: whether there are retain tracks to train on.
    """
    unchanged = [form for form in UNCHANGED if retain or not form.startswith("retain")]
    models = [ZooModel("base", form, holds=True) for form in (*unchanged, *RELEARNED)]
    for source, other in GOLDS.items():
        models += [ZooModel(source, form, other, holds=False) for form in unchanged]
        models += [ZooModel(source, form, other, holds=True) for form in RELEARNED]
    models += [ZooModel("gold"), ZooModel("gold", "forget")]  # what a trial's relearning is compared with
    return models + [ZooModel(trial, form) for trial in trials for form in ATTACKS]


def meta_evaluate(
    plan: Plan, out: Path, *, metrics: Sequence[str] | None = None, reporter: Reporter | None = None
) -> list[RowTrust]:
    """Measure the models and write `meta.json`, after each model; models that were measured are kept.

    Args:
        plan: of the bench in `out`.
        out: folder of the bench, which the caller has locked.
        metrics: names of metrics; None for those of the bench. Rows of other metrics in `meta.json` stay.
        reporter: receives progress, and why a metric is left out.

    Returns:
        The rows that judge the forget tracks.

    Raises:
        UsageError: the bench has lists, no second gold or no measured trial, a trial is not measured as the bench now
            measures, or no metric judges the forget tracks.
        InputError: a model or `meta.json` can't be read.
        PluginError: metrics failed; all others are in `meta.json`.
    """
    if plan.list_names:
        raise UsageError(
            "--meta needs trials on all of a bench's tracks, and this bench has lists", "name a bench without lists"
        )
    reporter = reporter or Reporter()
    names = judging(plan, metrics)
    tracks = plan_tracks(plan, out)
    config = plan.eval_config(tracks.forget)
    golds = config.golds
    if lacking := [role for role in GOLDS if role not in golds]:
        raise UsageError(
            f"{out} has no {lacking[0]}: too few models without the tracks are known to try a metric on",
            "give the bench --gold and --gold2, two models trained without the tracks; `encore train --seed` makes one",
        )
    measured = [trial for trial in plan.trials if (out / trial.name / METRICS).exists()]
    trials = [trial.name for trial in measured if trial.requests == 1]
    if not trials:
        raise UsageError(f"no trial of {out} is measured yet", f"run the bench first: encore bench --out {out} …")
    before = read_meta(out)
    inputs = open_inputs(
        golds["gold"], tracks, others={"base": plan.model, **golds}, backend=plan.backend, revision=plan.revision,
        device=plan.device, offline=plan.offline, seed=plan.eval_seed, reporter=reporter,
    )  # fmt: skip
    models: dict[str, Any] = dict(before.get("models", {}))
    bench = _Zoo(plan, out, inputs, names, reporter)
    hashes = bench.hashes("base", *GOLDS)
    if stale := [trial.name for trial in measured if not is_complete(plan, trial, out, tracks, config, hashes)]:
        raise UsageError(
            f"the trial {stale[0]} is not measured with the present settings, models and plugins",
            f"run the bench first: encore bench --out {out} …",
        )
    key = trial_key(out / trials[0])
    members = zoo(trials, retain=bool(inputs.clips.get("retain")))
    for member in members:  # of other weights, settings or code: not to be mixed with new values
        if member.name in models and models[member.name]["key"] != bench.key(member):
            del models[member.name]
    rows: list[RowTrust] = []
    for number, member in enumerate(members):
        reporter.progress("meta", number, len(members), {"model": member.name})
        models[member.name] = bench.measured(member, models.get(member.name))
        rows = trusted(members, models, _of_trials(out, trials))
        write_json(
            out / NAME,
            {
                "schema": SCHEMA, "encore": __version__, "key": key, "models": models,
                "rows": [asdict(row) for row in rows],
            },
        )  # fmt: skip
    reporter.progress("meta", len(members), len(members))
    if bench.failed:
        raise PluginError("; ".join(bench.failed), "all other metrics were tried; the same command retries these")
    return rows


def judging(plan: Plan, metrics: Sequence[str] | None = None) -> list[str]:
    """The metrics with a row that judges the forget tracks.

    Args:
        plan: of the bench.
        metrics: names of metrics; None for those of the bench. Where neither names any, those whose packages are not
            installed are left out.

    Raises:
        UsageError: a named metric has no such row, or none of the bench's has.
        UnknownNameError: there is no metric of a name.
    """
    registry = plugins.metrics()
    chosen = plan.metrics if metrics is None else metrics
    specs = (
        [entry.spec for entry in registry if (plan.full or not entry.spec.full) and not entry.missing()]
        if chosen is None
        else [registry.get(name).spec for name in chosen]
    )
    judges = {spec.name: any(row.judge and row.set == "forget" for row in spec.rows) for spec in specs}
    if metrics is not None and not all(judges.values()):
        name = next(name for name, does in judges.items() if not does)
        raise UsageError(
            f"the metric {name} has no target for the forget tracks", "`encore metrics NAME` lists targets"
        )
    if not any(judges.values()):
        raise UsageError(
            "no metric of this bench judges the forget tracks", "name some: --metrics nll,verbatim,kl_gold"
        )
    return [name for name, does in judges.items() if does]


class _Zoo:
    """Makes and measures models of one bench."""

    def __init__(
        self, plan: Plan, out: Path, inputs: EvaluationInputs, metrics: Sequence[str], reporter: Reporter
    ) -> None:
        self.plan, self.out, self.metrics, self.reporter = plan, out, list(metrics), reporter
        self.models: Mapping[str, Backend] = dict(inputs.models.items())
        self.inputs = inputs
        self.failed: list[str] = []  # a sentence for each metric that failed
        needs = {need for name in metrics for need in plugins.metrics().get(name).spec.needs}
        asked = plan.embedder or default_embedders(self.models["base"])
        self.embedder = asked if "embedder" in needs else None
        self._cache = ResultCache(evaluation_cache())
        self._plugins = plugins.installed()
        self._sha256: dict[str, str] = {}
        self._trial: tuple[str, Backend] | None = None

    def measured(self, member: ZooModel, before: Row | None) -> dict[str, Any]:
        """The entry of `meta.json`, with what was measured before in the same way."""
        entry: dict[str, Any] = {"key": self.key(member), "measured": {}, "rows": []} | dict(before or {})
        versions = {name: plugins.metrics().get(name).spec.version for name in self.metrics}
        missing = [name for name, version in versions.items() if entry["measured"].get(name) != version]
        evaluation = self._evaluation(member) if missing else None
        for name in missing:
            new = self._rows(evaluation, name, member) if evaluation else []
            if new:
                replaced = {(row["metric"], row["set"]) for row in new}
                kept = [row for row in entry["rows"] if (row["metric"], row["set"]) not in replaced]
                entry |= {"measured": {**entry["measured"], name: versions[name]}, "rows": [*kept, *new]}
            else:  # its rows stay incomplete: other models need not be measured
                self.metrics.remove(name)
        return entry

    def _rows(self, evaluation: SharedEvaluation, name: str, member: ZooModel) -> list[dict[str, Any]]:
        """A metric's rows of a model; none if it failed or has no value, for a reason that is kept or noted."""
        try:
            results = measure(evaluation, [name])
            check_failures(results)
        except PluginError as error:
            self.failed.append(f"{error.message} (the model {member.name})")
            return []
        rows = rows_of(results)
        if not rows:
            why = next((row.why for row in results if row.why), "it gave no value on the forget tracks")
            self.reporter.note(f"{name} is left out (the model {member.name}): {why}")
        return rows

    def _evaluation(self, member: ZooModel) -> SharedEvaluation:
        copy = self._source(member.source).clone()
        if member.form in BITS:
            round_weights(copy.module, BITS[member.form])
        elif member.form:
            self._train(copy, *TRAINING[member.form])
        models: dict[Role, Backend] = {
            "base": self.models["base"], "unlearned": copy, "gold": self.models[member.gold]
        }  # fmt: skip
        return SharedEvaluation(
            models, self.inputs.clips, seed=self.plan.eval_seed, embedder=self.embedder, offline=self.plan.offline,
            recordings=self.inputs.recordings, samples_per_caption=self.plan.samples_per_caption, force=self.plan.force,
            track_metadata=self.inputs.track_metadata, cache=self._cache,
        )  # fmt: skip

    @cached_property
    def _batches(self) -> SharedEvaluation:
        """Splits clips into passes."""
        return SharedEvaluation({"base": self.models["base"]}, self.inputs.clips, embedder=None)

    def _train(self, backend: Backend, clips: ClipSet, lr: float) -> None:
        training: Sequence[Clip] = self.inputs.clips[clips]
        if clips != "forget":
            training = evenly_spaced(training, len({clip.track for clip in self.inputs.clips["forget"]}))
        with torch.no_grad():
            backend.encode_text(sorted({clip.caption for clip in training}))
        for _ in relearn(backend, list(self._batches.batches(training)), lr=lr, steps=STEPS):
            pass

    def _source(self, source: str) -> Backend:
        if source in self.models:
            return self.models[source]
        if self._trial is None or self._trial[0] != source:
            family = plugins.backends().resolve(self.plan.backend)
            device = self.models["base"].device
            model = family.load(str(self.out / source / "model"), offline=self.plan.offline, device=str(device))
            if model_sha256(model) != self._hash(source):
                raise OtherWeightsError(
                    f"the weights in {self.out / source / 'model'} are not those the run wrote", "run the bench again"
                )
            self._trial = (source, model)
        return self._trial[1]

    def hashes(self, *roles: Role) -> dict[Role, str]:
        """Hashes of models by role."""
        return {role: self._hash(role) for role in roles}

    def _hash(self, source: str) -> str:
        if source not in self._sha256:
            self._sha256[source] = (
                model_sha256(self.models[source])
                if source in self.models
                else str(read_json(self.out / source / "run.json")["unlearned_sha256"])
            )
        return self._sha256[source]

    def key(self, member: ZooModel) -> str:
        """Hash of what an entry's values depend on."""
        parts = [
            __version__, self._plugins, [self._hash(name) for name in (member.source, "base", member.gold)],
            member.form, STEPS, LR, self._clips_sha256, self.plan.eval_seed,
            self.plan.samples_per_caption, self.plan.embedder, self.plan.force,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _clips_sha256(self) -> str:
        return clips_sha256(list(chain.from_iterable(self.inputs.clips.values())))


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows that judge the forget tracks, with the values of the model, base and gold."""
    values: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        values.setdefault((result.metric, result.set), {})[result.model] = result
    rows = []
    for (metric, clips), by_role in values.items():
        spec, own = spec_of(metric, clips), by_role.get("unlearned")
        if spec is None or not spec.judge or clips != "forget" or own is None or own.value is None:
            continue
        others = {role: by_role[role].value if role in by_role else None for role in ("base", "gold")}
        direction = spec.direction or own.direction
        rows.append({"metric": metric, "set": clips, "direction": direction, "model": own.value, **others})
    return rows


def _of_trials(out: Path, trials: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    return {trial: rows_of(read_metrics(out / trial / METRICS)) for trial in trials}


# ------------------------------------------------------------------------------------------------------------ formulas


def score(row: Row) -> float | None:
    """What a row finds of the tracks, see the module; None without the value that it is compared with."""
    value, direction = float(row["model"]), row["direction"]
    if direction == "gold":
        if row["gold"] is None or row["base"] is None:
            return None
        gold, base = float(row["gold"]), float(row["base"])
        return (gold - value) * ((gold > base) - (gold < base))
    return -value if direction == "higher" else value


def trusted(
    members: Sequence[ZooModel], models: Mapping[str, Row], trials: Mapping[str, Sequence[Row]]
) -> list[RowTrust]:
    """Faithfulness and robustness of every row of the models of the AUC.

    Args:
        members: the models.
        models: entries of `meta.json` by name, with `rows`; models that are not measured yet are absent.
        trials: rows of the plain trials by name.
    """
    scores = _scores(members, models, trials)
    keys = sorted({key for model, values in scores.items() if model.holds is not None for key in values})
    return [_trusted(key, members, {model: values.get(key) for model, values in scores.items()}) for key in keys]


Key = tuple[str, str]


def _scores(
    members: Sequence[ZooModel], models: Mapping[str, Row], trials: Mapping[str, Sequence[Row]]
) -> dict[ZooModel, dict[Key, float]]:
    known: Iterator[tuple[ZooModel, Sequence[Row]]] = chain(
        ((member, models[member.name]["rows"]) for member in members if member.name in models),
        ((ZooModel(trial), rows) for trial, rows in trials.items()),
    )
    return {
        model: {(row["metric"], row["set"]): value for row in rows if (value := score(row)) is not None}
        for model, rows in known
    }


def _trusted(key: Key, members: Sequence[ZooModel], scores: Mapping[ZooModel, float | None]) -> RowTrust:
    spec = spec_of(*key)
    groups = [
        [value for member in members if member.holds is side and (value := scores.get(member)) is not None]
        for side in (True, False)
    ]
    holds, lacks = groups
    faithful: dict[str, Any] = {}
    verdict: Verdict = "incomplete"
    if holds and lacks:
        auc = stats.auc(holds, lacks)
        low, high = stats.auc_interval(auc, len(holds), len(lacks))
        faithful = {"auc": auc, "low": low, "high": high}
        if len(holds) + len(lacks) == sum(member.holds is not None for member in members):
            verdict = "yes" if low > 0.5 else "no"
    robust = robustness(scores)
    metric, clips = key
    label = named(spec, metric).label if spec else ""
    return RowTrust(metric, clips, label or metric, verdict, holds=len(holds), lacks=len(lacks), **faithful, **robust)


def robustness(scores: Mapping[ZooModel, float | None]) -> dict[str, Any]:
    """The fields of `RowTrust` from `relearning` to `order`, see the module.

    Args:
        scores: of one row, by model.
    """
    trials = sorted({model.source for model in scores if model.source not in ("base", *GOLDS)})
    attacked = ([scores.get(ZooModel(trial, form)) for form in ("", *ATTACKS)] for trial in trials)
    complete = [known for values in attacked if len(known := [v for v in values if v is not None]) == len(values)]
    order: dict[str, float] = {}
    for number, form in enumerate(ATTACKS, 1):
        tau = _tau([values[0] for values in complete], [values[number] for values in complete])
        order |= {} if tau is None else {form: tau}
    base, gold, relearned = (
        scores.get(ZooModel("base", holds=True)), scores.get(ZooModel("gold")), scores.get(ZooModel("gold", "forget"))
    )  # fmt: skip
    fields: dict[str, Any] = {"relearning": None, "quantisation": None, "robustness": None, "trials": 0, "order": order}
    if base is None or gold is None or relearned is None or base <= gold:
        return fields
    forgotten = [values for values in complete if values[0] <= (gold + base) / 2]
    fields["trials"] = len(forgotten)
    if len(forgotten) < LEAST_TRIALS:
        return fields
    r = fmean(_relearning(values[1] - values[0], relearned - gold) for values in forgotten)
    q = fmean(_within(1 - (max(values[2:]) - values[0]) / (base - gold)) for values in forgotten)
    return fields | {"relearning": r, "quantisation": q, "robustness": 2 * r * q / (r + q) if r + q else 0.0}


def _relearning(trial: float, gold: float) -> float:
    return 1.0 if trial <= 0 else _within(gold / trial)


def _within(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _tau(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Kendall's τ-b; None with fewer than `LEAST_TRIALS` trials, or if one side has no order."""
    from scipy.stats import kendalltau

    if len(before) < LEAST_TRIALS or len(set(before)) < 2 or len(set(after)) < 2:
        return None
    return float(kendalltau(before, after).statistic)
