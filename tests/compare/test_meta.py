"""Which metrics tell models apart: the formulas against slow ones, fake metrics, and a bench of a real model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import combinations
from math import copysign
from pathlib import Path

import pytest
import torch

from encore.api import Result, Role
from encore.backends.musicgen import MusicgenBackend
from encore.compare import meta
from encore.compare.leaderboard import leaderboard
from encore.compare.meta import ZooModel, meta_evaluate, robustness, rows_of, score, trusted, zoo
from encore.compare.plan import Plan, check_plan, plan_tracks, unfinished, write_plan
from encore.compare.tables import write_leaderboard
from encore.compare.trial import run_cell
from encore.errors import InputError, PluginError, UsageError
from encore.metrics.robustness.quantized import rounded
from encore.reporter import Reporter
from encore.store.meta_json import RowTrust, read_meta, read_trust
from encore.store.run_folder import write_json

TRIALS = ("npo/seed-0", "npo/seed-1", "ga/seed-0", "ga/seed-1")
Values = Callable[[ZooModel], float]


def entries(value: Values, metric: str = "verbatim", direction: str = "lower", gold: float = 0.0):
    """What `meta.json` would hold of a metric with these values, and the rows of the plain trials."""

    def row(model: ZooModel) -> dict[str, object]:
        own = {"model": value(model), "base": None, "gold": gold}
        return {"metric": metric, "set": "forget", "direction": direction, **own}

    models = {model.name: {"rows": [row(model)]} for model in zoo(TRIALS)}
    return models, {trial: [row(ZooModel(trial))] for trial in TRIALS}


def found(value: Values, **how: object) -> RowTrust:
    (row,) = trusted(zoo(TRIALS), *entries(value, **how))  # type: ignore[arg-type]
    return row


# ------------------------------------------------------------------------------------------------------------ formulas


def slow_auc(holds: list[float], lacks: list[float]) -> float:
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in holds for b in lacks)
    return won / (len(holds) * len(lacks))


def slow_tau(before: list[float], after: list[float]) -> float:
    """Kendall's τ-b, pair by pair."""

    def signs(values: list[float]) -> list[float]:
        return [copysign(1, a - b) if a != b else 0.0 for a, b in combinations(values, 2)]

    x, y = signs(before), signs(after)
    return sum(a * b for a, b in zip(x, y, strict=True)) / (sum(map(abs, x)) * sum(map(abs, y))) ** 0.5


@pytest.mark.parametrize("seed", range(8))
def test_the_formulas_against_slow_ones(seed: int) -> None:
    draw = random.Random(seed)
    values: dict[ZooModel, float] = {}
    for model in [*zoo(TRIALS), *map(ZooModel, TRIALS)]:  # base above all: trials are between it and gold
        above = 3.0 if model.source == "base" else 1.0 if model.holds else 0.0
        values[model] = above + round(draw.random(), 1)  # with ties
    values[ZooModel("gold")], values[ZooModel("gold", "forget")] = 0.0, 0.3
    row = found(values.__getitem__)

    holds, lacks = ([values[m] for m in zoo(TRIALS) if m.holds is side] for side in (True, False))
    assert (row.holds, row.lacks) == (len(holds), len(lacks)) == (11, 10)
    assert row.auc == pytest.approx(slow_auc(holds, lacks))

    base, gold = values[ZooModel("base", holds=True)], values[ZooModel("gold")]
    rs, qs = [], []
    for trial in TRIALS:
        plain = values[ZooModel(trial)]
        assert plain - gold <= (base - gold) / 2
        recovered = values[ZooModel(trial, "forget")] - plain
        rs.append(1.0 if recovered <= 0 else max(0.0, min(1.0, 0.3 / recovered)))
        back = max(values[ZooModel(trial, bits)] - plain for bits in ("8bit", "4bit")) / (base - gold)
        qs.append(1 - min(1.0, max(0.0, back)))
    r, q = sum(rs) / 4, sum(qs) / 4
    assert row.trials == 4
    assert (row.relearning, row.quantisation) == (pytest.approx(r), pytest.approx(q))
    assert row.robustness == pytest.approx(2 / (1 / r + 1 / q))
    assert row.order is not None
    for form, tau in row.order.items():
        before = [values[ZooModel(trial)] for trial in TRIALS]
        assert tau == pytest.approx(slow_tau(before, [values[ZooModel(trial, form)] for trial in TRIALS]))


def test_score_grows_with_what_is_found_of_the_tracks() -> None:
    row = {"model": 3.0, "gold": 4.5}
    assert score(row | {"direction": "lower"}) == 3.0
    assert score(row | {"direction": "higher"}) == -3.0
    assert score(row | {"direction": "gold"}) == 1.5 == score({"model": 6.0, "gold": 4.5, "direction": "gold"})
    assert score({"model": 3.0, "gold": None, "direction": "gold"}) is None


# -------------------------------------------------------------------------------------------------------- fake metrics


def test_a_metric_that_always_says_the_same_is_not_trusted() -> None:
    for direction in ("lower", "higher", "gold"):
        row = found(lambda _: 0.7, direction=direction)
        assert (row.auc, row.trusted) == (0.5, "no")
        assert (row.robustness, row.trials, row.order) == (None, 0, {})  # base shows no more than gold


def nll(model: ZooModel) -> float:
    """Base's tracks are memorised, a few steps half restore them in gold; trials suppress: a step brings all back."""
    if model.source in TRIALS:
        return {"": 4.1 + 0.1 * TRIALS.index(model.source), "forget": 0.2}.get(model.form, 4.0)
    return 0.1 if model.source == "base" else 2.0 if model.form.startswith("forget") else 4.0


def test_a_metric_that_looks_at_nll_alone_is_faithful_and_is_not_robust_where_tracks_are_suppressed() -> None:
    row = found(nll, metric="nll", direction="gold", gold=4.0)
    assert (row.auc, row.trusted) == (1.0, "yes")
    assert row.low is not None
    assert 0.5 < row.low < 1
    assert row.trials == 4
    gained = [3.8 - (0.1 + 0.1 * n) for n in range(4)]  # |0.2 - 4| after, |4.1 + 0.1 n - 4| before; gold's is 2
    assert row.relearning == pytest.approx(sum(2 / gain for gain in gained) / 4)
    assert row.quantisation == 1.0


def test_a_metric_the_wrong_way_round_or_of_training_as_such_is_not_trusted() -> None:
    assert found(lambda model: -nll(model), direction="higher").auc == 0.0
    assert found(lambda model: -nll(model), direction="higher").trusted == "no"
    changed = found(lambda model: float(bool(model.form)))  # finds that a model was changed, whatever it holds
    assert changed.trusted == "no"


def test_few_models_and_few_trials_say_nothing() -> None:
    models, trials = entries(nll, "nll", "gold", 4.0)
    few = {name: models[name] for name in list(models) if name.startswith(("base", "gold vs", "gold forget vs gold"))}
    (row,) = trusted(zoo(TRIALS), few, dict(list(trials.items())[:2]))
    assert (row.trusted, row.lacks, row.auc) == ("too few models", 1, 1.0)
    assert row.text.startswith("too few models, AUC 1.00 (0.")
    assert row.text.endswith(" to 1.00), 8 and 1 models")
    assert (row.trials, row.relearning, row.robustness) == (0, None, None)
    only_base = {name: models[name] for name in models if name.startswith("base")}
    (row,) = trusted(zoo(TRIALS), only_base, {})
    assert (row.auc, row.text) == (None, "too few models: 7 and 0 models")


def test_a_trial_that_the_row_does_not_say_has_forgotten_is_no_evidence_of_its_robustness() -> None:
    remembered = {TRIALS[0]: 1.0}  # nearer to base's 0.1 than to gold's 4
    row = found(lambda m: remembered.get(m.source, nll(m)), metric="nll", direction="gold", gold=4.0)
    assert row.trials == 3
    scores = {ZooModel("base", holds=True): 1.0, ZooModel("gold"): 0.0, ZooModel("gold", "forget"): 0.0}
    scores |= {ZooModel(trial, form): 0.1 for trial in TRIALS for form in ("", *meta.ATTACKS)}
    assert robustness(scores)["robustness"] == 1.0
    scores |= {ZooModel(trial, "forget"): 0.2 for trial in TRIALS}  # and gold shows nothing after the same steps
    assert (robustness(scores)["relearning"], robustness(scores)["robustness"]) == (0.0, 0.0)


def test_the_rows_that_judge_the_forget_tracks() -> None:
    results = [
        Result("nll", role, clips, 1.0) for role in ("base", "unlearned", "gold") for clips in ("forget", "retain")
    ]
    results += [Result("epsilon", "unlearned", "forget", 1.0), Result("verbatim", "unlearned", "forget", None, why="x")]
    results += [Result("membership_p", "unlearned", "forget", 0.5, direction="higher")]
    assert rows_of(results) == [
        {"metric": "nll", "set": "forget", "direction": "gold", "model": 1.0, "base": 1.0, "gold": 1.0},
        {"metric": "membership_p", "set": "forget", "direction": "higher", "model": 0.5, "base": None, "gold": None},
    ]


# --------------------------------------------------------------------------------------------------------- leaderboard


def trust(metric: str, trusted: str) -> dict[str, object]:
    row = RowTrust(metric, "forget", f"{metric}, forget", trusted, 0.5, 0.3, 0.7, 11, 10, order={})  # type: ignore[arg-type]
    return asdict(row)


def test_a_metric_that_does_not_tell_models_apart_does_not_count_in_the_order(tmp_path, plan, cell_of) -> None:
    near = {"nll": 4.1, "kl": 1.1, "retain": 0.03, "relearned": 3.4, "replays": 0, "seconds": 1}
    for seed in (0, 1):
        cell_of("good", seed, **near | {"nll": 1.0, "relearned": 0.2})
        cell_of("bad", seed, **near | {"kl": 2.0})  # worse by KL alone
    meta_json = {"schema": 1, "encore": "0", "models": {}}
    board = leaderboard(plan, tmp_path)
    assert [line.name for line in board.lines] == ["bad", "good"]
    assert board.lines[0].judged["forget targets"] == 4
    write_json(tmp_path / "meta.json", meta_json | {"rows": [trust("nll", "no"), trust("relearn", "no")]})
    board = leaderboard(plan, tmp_path)
    assert [line.name for line in board.lines] == ["good", "bad"]
    assert board.lines[0].judged["forget targets"] == 2
    assert board.lines[0].figures["forget targets"] == (2, 2)
    write_leaderboard(tmp_path, board, [])
    page = (tmp_path / "leaderboard.md").read_text()
    assert "models that don't: nll, forget; relearn, forget." in page
    assert "| nll, forget | no | 0.50 (0.30 to 0.70) | 11 and 10 | 0 | – | – | – | – |" in page
    assert json.loads((tmp_path / "leaderboard.json").read_text())["trust"][0]["trusted"] == "no"
    rows = [trust("nll", "yes"), trust("relearn", "too few models"), trust("kl_gold", "no")]
    write_json(tmp_path / "meta.json", meta_json | {"rows": rows})
    board = leaderboard(plan, tmp_path)
    assert [line.name for line in board.lines] == ["bad", "good"]
    assert board.lines[0].judged["forget targets"] == 3
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(InputError, match=r"meta\.json"):
        leaderboard(plan, tmp_path)


def test_where_kl_is_not_trusted_a_model_may_be_far_from_gold_and_forget(tmp_path, cell_of) -> None:
    cell_of("good", 0, nll=4.1, kl=5.0, retain=0.03, relearned=3.4, replays=0, seconds=1)
    plan = Plan(methods={"good": ()}, seeds=(0,))
    assert leaderboard(plan, tmp_path).lines[0].forgets is False
    write_json(tmp_path / "meta.json", {"schema": 1, "models": {}, "rows": [trust("kl_gold", "no")]})
    assert leaderboard(plan, tmp_path).lines[0].forgets is True


# ------------------------------------------------------------------------------------------------------- a real bench


@pytest.fixture(scope="module")
def bench(_studio, tmp_path_factory) -> tuple[Plan, Path]:
    """A trial of two steps, and golds with other weights."""
    folder = tmp_path_factory.mktemp("meta")
    golds: dict[Role, str] = {}
    for seed, role in enumerate(("gold", "gold2"), 1):
        model = MusicgenBackend.load(str(_studio / "model"))
        model.reinitialise(seed)
        model.save(folder / role)
        golds[role] = str(folder / role)  # type: ignore[index]
    music = _studio / "music"
    plan = Plan(
        methods={"graddiff": ("steps=2",)}, seeds=(0,), model=str(_studio / "model"), tracks=str(music / "forget.txt"),
        catalog=str(music / "catalog.jsonl"), holdout=str(music / "holdout.txt"), metrics=("nll", "neighbours"),
        golds=golds,  # type: ignore[arg-type]
    )  # fmt: skip
    return plan, folder / "bench"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The metrics of each call of `measure`."""
    calls: list[list[str]] = []

    def measure(evaluation, metrics):
        calls.append(list(metrics))
        return original(evaluation, metrics)

    original = meta.measure
    monkeypatch.setattr(meta, "measure", measure)
    return calls


def few(trials, *, retain=True):
    """Some of the models: of gold2 it itself, of gold no trained form that holds the tracks, and one on retain."""
    return [
        model
        for model in zoo(trials, retain=retain)
        if model.form != "retain-fast"
        and (model.source not in ("gold", "gold2") or model.holds is None or model.form in ("", "8bit", "4bit"))
        and (model.source != "gold2" or not model.form)
    ]


def test_a_bench_is_tried_once_and_goes_on(studio, bench, counted, monkeypatch, call) -> None:
    plan, out = bench
    write_plan(plan, out)
    with pytest.raises(UsageError, match="no trial of"):
        meta_evaluate(plan, out)
    run_cell(out, "graddiff/seed-0", Reporter())
    before = {path: path.stat().st_mtime_ns for path in (out / "graddiff").rglob("*") if path.is_file()}

    monkeypatch.setattr(meta, "zoo", few)
    original = meta.measure

    def killed(evaluation, metrics):
        if len(counted) == 4:
            raise KeyboardInterrupt
        return original(evaluation, metrics)

    monkeypatch.setattr(meta, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        meta_evaluate(plan, out)
    assert len(read_meta(out)["models"]) == 4
    monkeypatch.setattr(meta, "measure", original)
    rows = meta_evaluate(plan, out)
    assert [(row.metric, row.set, row.holds, row.lacks) for row in rows] == [("nll", "forget", 6, 4)]
    assert read_trust(out) == rows
    names = [model.name for model in few(["graddiff/seed-0"])]
    assert len(counted) == len(names) == len(set(names)) == 15  # `neighbours` judges retain alone
    assert all(metrics == ["nll"] for metrics in counted)
    models = read_meta(out)["models"]
    assert list(models) == names

    # what was measured is what it is said to be
    def value(name: str, of: str = "model") -> float:
        return models[name]["rows"][0][of]

    assert value("base vs gold") == value("base vs gold", "base") == value("gold vs gold2", "base")
    assert value("gold vs gold2") == value("gold2 vs gold", "gold") == value("graddiff/seed-0 4bit vs gold", "gold")
    assert value("base forget-fast vs gold") < value("base forget vs gold") < value("base vs gold")
    for source, other in (("base", "gold"), ("gold", "gold2")):
        plain = value(f"{source} vs {other}")
        assert 0 < abs(value(f"{source} 8bit vs {other}") - plain) < abs(value(f"{source} 4bit vs {other}") - plain)

    assert not list(unfinished(plan, out, plan_tracks(plan, out)))
    assert before == {path: path.stat().st_mtime_ns for path in (out / "graddiff").rglob("*") if path.is_file()}
    counted.clear()
    assert meta_evaluate(plan, out) == rows
    assert not counted
    done = call("bench", "--meta", "--out", out, "--metrics", "nll")
    assert (done.code, counted) == (0, []), done.err
    assert "6 and 4" in done.out
    assert {path.name for path in out.glob("leaderboard.*")} == {
        "leaderboard.md", "leaderboard.csv", "leaderboard.json"
    }  # fmt: skip
    assert "## Do the metrics tell the truth?" in (out / "leaderboard.md").read_text()
    done = call("metrics", "--bench", out, "--json")
    listed = {row["name"]: row for row in json.loads(done.out)["metrics"]}
    assert listed["nll"]["trust"] == [asdict(row) for row in rows]
    assert listed["nll"]["trusted"] == rows[0].text
    assert listed["verbatim"]["trusted"] == "not tried"

    monkeypatch.setattr(meta, "zoo", lambda *_, **__: zoo([])[:2])  # less to do
    assert {row.metric for row in meta_evaluate(plan, out, metrics=["kl_gold"])} == {"nll", "kl_gold"}
    assert counted == [["kl_gold"]] * 2
    counted.clear()
    meta_evaluate(plan.model_copy(update={"eval_seed": 1}), out)  # measured in another way: again
    assert counted == [["nll"]] * 2
    assert len(read_meta(out)["models"]) == 15  # others are kept
    (out / "bench.json").unlink()
    check_plan(plan, out)  # meta.json is one of a bench's files


def test_what_can_not_be_tried_is_refused(studio, bench) -> None:
    plan, out = bench
    for changed, told in (
        ({"golds": {"gold": plan.golds["gold"]}}, "has no gold2"), ({"golds": {}}, "has no gold:"),
        ({"forget_sizes": (1,)}, "this bench has lists"), ({"metrics": ("neighbours",)}, "no metric of this bench"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=told):
            meta_evaluate(plan.model_copy(update=changed), out)
    with pytest.raises(UsageError, match="neighbours has no target for the forget tracks"):
        meta_evaluate(plan, out, metrics=["nll", "neighbours"])


def test_a_metric_that_fails_loses_nothing(studio, bench, tmp_path, monkeypatch) -> None:
    plan, out = bench
    trial = tmp_path / "bench/graddiff/seed-0"
    trial.mkdir(parents=True)
    for name in ("run.json", "metrics.json", "model"):
        (trial / name).symlink_to(out / "graddiff/seed-0" / name)
    original = meta.measure

    def fails(evaluation, metrics):
        rows = original(evaluation, metrics)
        if (tmp_path / "bench/meta.json").exists():
            rows[0] = replace(rows[0], details={"failed": "ValueError"})
        return rows

    monkeypatch.setattr(meta, "measure", fails)
    with pytest.raises(PluginError, match="ValueError"):
        meta_evaluate(plan, tmp_path / "bench")
    assert list(read_meta(tmp_path / "bench")["models"]) == ["base vs gold"]


def test_rounding_is_that_of_the_metric_quantised() -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert meta.round_weights.__module__ == rounded.__module__
    assert len(rounded(weight, meta.BITS["4bit"])[0].unique()) <= 15
