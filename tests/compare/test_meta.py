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
from encore.compare.leaderboard import failures, leaderboard
from encore.compare.meta import ZooModel, meta_evaluate, robustness, rows_of, score, trusted, zoo
from encore.compare.plan import Plan, Trial, check_plan, plan_tracks, unfinished, write_plan
from encore.compare.tables import write_leaderboard
from encore.compare.trial import run_trial
from encore.errors import InputError, PluginError, UsageError
from encore.reporter import Reporter
from encore.store.meta_json import RowTrust, read_meta, read_trust, trial_key, trust_of_run
from encore.store.run_folder import write_json

TRIALS = ("npo/seed-0", "npo/seed-1", "ga/seed-0", "ga/seed-1")
Values = Callable[[ZooModel], float]


def entries(value: Values, metric: str = "verbatim", direction: str = "lower", gold: float = 0.0):
    """What `meta.json` would hold of a metric with these values, and the rows of the plain trials."""

    def row(model: ZooModel) -> dict[str, object]:
        own = {"model": value(model), "base": value(ZooModel("base", holds=True)), "gold": gold}
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
    assert row.trusted == "yes"

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
    assert set(row.order) == set(meta.ATTACKS)
    for form, tau in row.order.items():
        before = [values[ZooModel(trial)] for trial in TRIALS]
        assert tau == pytest.approx(slow_tau(before, [values[ZooModel(trial, form)] for trial in TRIALS]))


def test_score_grows_with_what_is_found_of_the_tracks() -> None:
    row = {"model": 3.0, "gold": 4.5, "base": 0.5}
    assert score(row | {"direction": "lower"}) == 3.0
    assert score(row | {"direction": "higher"}) == -3.0
    near = row | {"direction": "gold"}
    assert (score(near), score(near | {"model": 0.5}), score(near | {"model": 6.0})) == (1.5, 4.0, -1.5)
    assert (score(near | {"base": 5.0}), score(near | {"base": 5.0, "model": 5.0})) == (-1.5, 0.5)  # base is above gold
    assert score(near | {"base": 4.5}) == 0.0  # the row does not tell base from gold
    assert score(near | {"gold": None}) is score(near | {"base": None}) is None


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
    gained = [3.8 + (0.1 + 0.1 * n) for n in range(4)]  # 4 - 0.2 after, 4 - (4.1 + 0.1 n) before; gold's is 2
    assert row.relearning == pytest.approx(sum(2 / gain for gain in gained) / 4)
    assert row.quantisation == pytest.approx(sum(1 - (0.1 + 0.1 * n) / 3.9 for n in range(4)) / 4)


def test_what_an_over_forgotten_trial_recovers_counts_on_either_side_of_gold() -> None:
    def over_forgotten(model: ZooModel) -> float:
        if model.source in TRIALS:
            return 3.05 if model.form == "forget" else 6.14
        return 4.4 if model.source != "base" and not model.form.startswith("forget") else nll(model)

    row = found(over_forgotten, metric="nll", direction="gold", gold=4.4)
    assert row.relearning == pytest.approx((4.4 - 2.0) / (6.14 - 3.05))
    assert row.robustness is not None
    assert row.robustness < 0.9


def test_a_metric_the_wrong_way_round_or_of_training_as_such_is_not_trusted() -> None:
    assert found(lambda model: -nll(model), direction="higher").auc == 0.0
    assert found(lambda model: -nll(model), direction="higher").trusted == "no"
    changed = found(lambda model: float(bool(model.form)))  # finds that a model was changed, whatever it holds
    assert changed.trusted == "no"


def test_half_of_the_models_and_few_trials_say_nothing() -> None:
    models, trials = entries(nll, "nll", "gold", 4.0)
    few = {name: models[name] for name in list(models) if name.startswith(("base", "gold vs", "gold forget vs gold"))}
    (row,) = trusted(zoo(TRIALS), few, dict(list(trials.items())[:2]))
    assert (row.trusted, row.lacks, row.auc) == ("incomplete", 1, 1.0)
    assert row.text.startswith("incomplete, AUC 1.00 (0.")
    assert row.text.endswith(" to 1.00), 8 and 1 models")
    assert (row.trials, row.relearning, row.robustness) == (0, None, None)
    only_base = {name: models[name] for name in models if name.startswith("base")}
    (row,) = trusted(zoo(TRIALS), only_base, {})
    assert (row.auc, row.text) == (None, "incomplete: 7 and 0 models")
    almost = {name: models[name] for name in models if name != "gold2 4bit vs gold"}
    (row,) = trusted(zoo(TRIALS), almost, trials)
    assert (row.trusted, row.holds, row.lacks) == ("incomplete", 11, 9)


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
    near = {"nll": 4.1, "kl": 1.1, "retain": 0.03, "relearned": 3.4, "verbatim": 0, "seconds": 1}
    for seed in (0, 1):
        cell_of("good", seed, **near | {"nll": 1.0, "relearned": 0.2})
        cell_of("bad", seed, **near | {"kl": 2.0})  # worse by KL alone
    meta_json = {"schema": 1, "encore": "0", "key": trial_key(tmp_path / "good/seed-0"), "models": {}}
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
    rows = [trust("nll", "yes"), trust("relearn", "incomplete"), trust("kl_gold", "no")]
    write_json(tmp_path / "meta.json", meta_json | {"rows": rows})
    board = leaderboard(plan, tmp_path)
    assert [line.name for line in board.lines] == ["bad", "good"]
    assert board.lines[0].judged["forget targets"] == 3
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(InputError, match=r"meta\.json"):
        leaderboard(plan, tmp_path)


def test_where_kl_is_not_trusted_a_model_may_be_far_from_gold_and_forget(tmp_path, cell_of) -> None:
    cell_of("good", 0, nll=4.1, kl=5.0, retain=0.03, relearned=3.4, verbatim=0, seconds=1)
    plan = Plan(methods={"good": ()}, seeds=(0,))
    assert leaderboard(plan, tmp_path).lines[0].forgets is False
    key = trial_key(tmp_path / "good/seed-0")
    write_json(tmp_path / "meta.json", {"schema": 1, "key": key, "models": {}, "rows": [trust("kl_gold", "no")]})
    assert leaderboard(plan, tmp_path).lines[0].forgets is True


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("evaluation.json", {"models": {"base": "b", "gold": "retrained"}}),
        ("evaluation.json", {"samples_per_caption": 4}),
        ("request.json", {"forget": [{"id": "t0", "sha256": "other", "caption": "c"}]}), ("evaluation.json", None),
    ],
)  # fmt: skip
def test_what_was_found_does_not_count_of_trials_that_are_measured_otherwise(
    tmp_path, plan, cell_of, name, changed
) -> None:
    cell_of("good", 0, nll=4.1, kl=5.0, retain=0.03, relearned=3.4, verbatim=0, seconds=1)
    cell_of("bad", 0, nll=4.1, kl=5.0, retain=0.03, relearned=3.4, verbatim=0, seconds=1)
    key = trial_key(tmp_path / "good/seed-0")
    write_json(tmp_path / "meta.json", {"schema": 1, "key": key, "models": {}, "rows": [trust("kl_gold", "no")]})
    board = leaderboard(plan, tmp_path)
    assert [row.metric for row in board.trust] == ["kl_gold"]
    assert not board.trust_note
    lists = plan.model_copy(update={"lists": {"pop": "/x"}})
    assert leaderboard(lists, tmp_path).trust == []
    assert "does not count any more" in leaderboard(lists, tmp_path).trust_note
    path = tmp_path / "bad/seed-0" / name
    if changed is None:
        path.unlink()
    else:
        write_json(path, json.loads(path.read_text()) | changed)
    board = leaderboard(plan, tmp_path)
    assert board.trust == []
    assert board.lines[0].forgets is False  # by KL, which counts again
    write_leaderboard(tmp_path, board, [])
    assert "found does not count any more: the trials are measured with" in (tmp_path / "leaderboard.md").read_text()
    assert trust_of_run(tmp_path / "good/seed-0", key or "")
    assert trust_of_run(tmp_path / "bad/seed-0", "another") == {}


def test_reasons_of_failed_trials_are_carried_over(tmp_path, plan, cell_of) -> None:
    figures = {"nll": 4.1, "kl": 5.0, "retain": 0.03, "relearned": 3.4, "verbatim": 0, "seconds": 1}
    cell_of("good", 0, **figures)
    assert failures(plan, tmp_path) == {}
    first, second = Trial("bad", 0), Trial("bad", 1)
    write_leaderboard(tmp_path, leaderboard(plan, tmp_path, {first: "no memory", second: "no memory"}), [])
    cell_of("bad", 1, **figures)  # measured since
    write_leaderboard(tmp_path, leaderboard(plan, tmp_path, failures(plan, tmp_path)), [])
    failed = json.loads((tmp_path / "leaderboard.json").read_text())["failed"]
    assert failed == {"bad/seed-0": "no memory", "good/seed-1": "not run yet"}
    (tmp_path / "leaderboard.json").write_text("[")
    assert failures(plan, tmp_path) == {}


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
    write_plan(plan, folder / "bench")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ENCORE_CACHE", str(_studio / "cache"))
        run_trial(folder / "bench", "graddiff/seed-0", Reporter())
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
    with pytest.raises(UsageError, match="no trial of"):
        meta_evaluate(plan, out / "empty")
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
    names = ("nll", "nll_beginning")
    assert [(row.metric, row.set, row.holds, row.lacks) for row in rows] == [(name, "forget", 6, 4) for name in names]
    assert read_trust(out, [out / "graddiff/seed-0"]) == (rows, "")
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
    assert listed["nll"]["trusted"] == "; ".join(f"{row.label}: {row.text}" for row in rows)
    assert listed["verbatim"]["trusted"] == "not tried"

    monkeypatch.setattr(meta, "zoo", lambda *_, **__: zoo([])[:2])  # less to do
    assert {row.metric for row in meta_evaluate(plan, out, metrics=["kl_gold"])} == {"nll", "nll_beginning", "kl_gold"}
    assert counted == [["kl_gold"]] * 2
    counted.clear()
    contents = read_meta(out)
    for entry in contents["models"].values():
        entry["key"] = "of other weights"
    write_json(out / "meta.json", contents)
    meta_evaluate(plan, out)  # measured in another way: again
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
    for changed in (
        {"eval_seed": 1},
        {"samples_per_caption": 2},
        {"golds": {"gold": plan.golds["gold2"], "gold2": plan.golds["gold"]}},
    ):
        with pytest.raises(UsageError, match="graddiff/seed-0 is not measured with the present settings") as refused:
            meta_evaluate(plan.model_copy(update=changed), out)
        assert "run the bench first" in refused.value.hint


@pytest.fixture
def copied(studio, bench, tmp_path, monkeypatch) -> tuple[Plan, Path]:
    """The bench without `meta.json`, and with three models to try."""
    plan, out = bench
    trial = tmp_path / "bench/graddiff/seed-0"
    trial.mkdir(parents=True)
    for name in ("request.json", "run.json", "evaluation.json", "metrics.json", "model"):
        (trial / name).symlink_to(out / "graddiff/seed-0" / name)
    plain = [ZooModel("base", holds=True), ZooModel("gold", "", "gold2", False), ZooModel("gold2", "", "gold", False)]
    monkeypatch.setattr(meta, "zoo", lambda *_, **__: plain)
    return plan, tmp_path / "bench"


def test_a_metric_that_fails_loses_nothing(copied, counted, monkeypatch) -> None:
    plan, out = copied
    original = meta.measure

    def fails(evaluation, metrics):
        rows = original(evaluation, metrics)
        if metrics == ["kl_gold"] and (out / "meta.json").exists():
            rows[-1] = replace(rows[-1], details={"failed": "ValueError"})
        return rows

    monkeypatch.setattr(meta, "measure", fails)
    with pytest.raises(PluginError, match=r"kl_gold.* failed: ValueError \(the model gold vs gold2\)") as raised:
        meta_evaluate(plan, out, metrics=["kl_gold", "nll"])
    assert "all other metrics were tried" in raised.value.hint
    assert counted == [["kl_gold"], ["nll"], ["kl_gold"], ["nll"], ["nll"]]  # not again after it failed
    contents = read_meta(out)
    assert [sorted(entry["measured"]) for entry in contents["models"].values()] == [
        ["kl_gold", "nll"],
        ["nll"],
        ["nll"],
    ]
    assert [(row["metric"], row["trusted"]) for row in contents["rows"]] == [
        ("kl_gold", "incomplete"), ("nll", "no"), ("nll_beginning", "no"),
    ]  # fmt: skip
    monkeypatch.setattr(meta, "measure", original)
    rows = meta_evaluate(plan, out, metrics=["kl_gold", "nll"])
    assert counted[5:] == [["kl_gold"]] * 2
    assert "incomplete" not in {row.trusted for row in rows}


def test_where_a_metric_fails_the_leaderboard_is_written_and_keeps_reasons(copied, call, monkeypatch) -> None:
    plan, out = copied
    write_plan(plan.model_copy(update={"seeds": (0, 1)}), out)
    write_json(out / "leaderboard.json", {"failed": {"graddiff/seed-1": "no memory"}})
    original = meta.measure

    def measure(evaluation, metrics):
        if metrics == ["kl_gold"]:
            raise PluginError("can't import it")
        return original(evaluation, metrics)

    monkeypatch.setattr(meta, "measure", measure)
    done = call("bench", "--meta", "--out", out, "--metrics", "kl_gold,nll")
    assert done.code == 1
    assert "can't import it" in done.err
    board = json.loads((out / "leaderboard.json").read_text())
    assert board["failed"] == {"graddiff/seed-1": "no memory"}
    assert [row["metric"] for row in board["trust"]] == ["nll", "nll_beginning"]


def test_a_metric_without_a_value_is_not_measured_and_is_tried_again(copied, counted, monkeypatch) -> None:
    plan, out = copied
    notes: list[str] = []
    reporter = Reporter()
    monkeypatch.setattr(reporter, "note", notes.append)
    original = meta.measure

    def unmeasured(evaluation, metrics):
        rows = original(evaluation, metrics)
        why = {"value": None, "why": "no weights"}
        return [replace(row, **why) for row in rows] if metrics == ["kl_gold"] else rows

    monkeypatch.setattr(meta, "measure", unmeasured)
    meta_evaluate(plan, out, metrics=["kl_gold", "nll"], reporter=reporter)
    assert notes == ["kl_gold is left out (the model base vs gold): no weights"]
    assert counted == [["kl_gold"], ["nll"], ["nll"], ["nll"]]
    assert all(list(entry["measured"]) == ["nll"] for entry in read_meta(out)["models"].values())
    counted.clear()
    monkeypatch.setattr(meta, "measure", original)
    rows = meta_evaluate(plan, out, metrics=["kl_gold", "nll"])
    assert counted == [["kl_gold"]] * 3
    assert [row.metric for row in rows] == ["kl_gold", "nll", "nll_beginning"]


def test_metrics_whose_packages_are_missing_are_left_out_unless_named(bench, installed) -> None:
    installed.add("needy", NEEDY)
    plan = bench[0].model_copy(update={"metrics": None})
    assert "needy" not in meta.judging(plan)
    assert "nll" in meta.judging(plan)
    assert meta.judging(plan, ["needy"]) == ["needy"]


NEEDY = """
from encore.api import MetricSpec, RowSpec, hookimpl

@hookimpl
def encore_register_metrics():
    rows = (RowSpec("needy", "forget", "needy, forget", direction="lower", judge="verbatim"),)
    return [MetricSpec("needy", "needs what is not there", "x:Y", requires=("no-such-distribution",), rows=rows)]
"""


def test_a_metric_gets_the_clips_that_it_uses_and_does_not_require(copied) -> None:
    plan, out = copied
    meta_evaluate(plan, out, metrics=["relearn_others"])
    rows = read_meta(out)["models"]["base vs gold"]["rows"]
    assert {row["metric"] for row in rows} == {"relearn_retain", "relearn_holdout"}


@pytest.mark.parametrize("form", ["8bit", "4bit"])
def test_the_rounded_models_have_rounded_weights(copied, studio, monkeypatch, form) -> None:
    plan, out = copied
    monkeypatch.setattr(meta, "zoo", lambda *_, **__: [ZooModel("base", form, holds=True)])
    original = meta.measure
    tried: dict[str, torch.Tensor] = {}

    def measure(evaluation, metrics):
        tried.update(evaluation.models["unlearned"].module.named_parameters())
        return original(evaluation, metrics)

    monkeypatch.setattr(meta, "measure", measure)
    meta_evaluate(plan, out)
    steps = {"8bit": 127, "4bit": 7}[form]
    for name, weight in MusicgenBackend.load(str(studio / "model")).module.named_parameters():
        for now, was in zip(tried[name].detach(), weight.detach(), strict=True) if weight.dim() >= 2 else ():
            if was.abs().max() > 0:
                step = was.abs().max() / steps
                assert torch.allclose(now, step * (was / step).round(), atol=1e-6), name
    assert tried
