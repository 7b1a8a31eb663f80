"""Figures, order and tests of a leaderboard, from cells with known figures."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from encore import stats
from encore.api import Result
from encore.bench.leaderboard import Line, Measured, _tested, leaderboard
from encore.bench.plan import Cell, Plan
from encore.runs.metrics_json import read_metrics, write_metrics

GOOD = {"nll": 4.1, "kl": 1.1, "retain": 0.03, "relearned": 3.4, "replays": 0, "seconds": 10}
BAD = {"nll": 1.0, "kl": 3.0, "retain": 2.0, "relearned": 0.2, "replays": 5, "seconds": 4}


def test_the_one_that_reaches_more_targets_comes_first_with_medians_over_its_seeds(tmp_path, plan, cell_of):
    for seed, kl in enumerate((1.1, 1.3)):
        cell_of("good", seed, **GOOD | {"kl": kl, "seconds": 10 + 4 * seed, "peak": 1 + seed})
        cell_of("bad", seed, **BAD)
    board = leaderboard(plan, tmp_path)
    assert [line.name for line in board.lines] == ["good", "bad"]
    good, bad = board.lines
    assert good.figures["KL gold, forget"] == (1.1, 1.3)
    assert good.median("KL gold, forget") == pytest.approx(1.2)
    assert good.median("seconds") == 12
    assert good.median("peak GB") == 1.5
    assert bad.median("replays, forget") == 5
    assert bad.median("lowest track") == pytest.approx(1.0 - 0.035)
    # KL, NLL, relearning, retain, replays are judged; KL 1.3 is beyond 1.25 x gold2's
    assert good.judged == bad.judged == 5
    assert good.figures["targets"] == (5, 4)
    assert bad.figures["targets"] == (0, 0)
    assert {line.name: line.median("forget NLL") for line in board.references} == {
        "base": 0.02, "gold": 4.0, "gold2": None
    }  # fmt: skip
    assert board.tracks == {"forget": 8, "retain": 24}
    assert not board.failed


def test_what_was_not_measured_is_told_and_not_made_up(tmp_path, plan, cell_of):
    cell_of("good", 0, **GOOD)
    board = leaderboard(plan, tmp_path, {Cell("bad", 1): "it broke"})
    assert [line.name for line in board.lines] == ["good"]
    assert board.lines[0].seeds == (0,)
    assert board.failed == {"good/seed-1": "not run yet", "bad/seed-0": "not run yet", "bad/seed-1": "it broke"}
    assert "AUC" not in board.titles
    assert leaderboard(Plan(methods={"none": ()}, seeds=(0,)), tmp_path).lines == []


def test_what_embedders_hear_has_columns_by_the_names_of_the_rows(tmp_path, cell_of):
    cell_of("good", 0, **GOOD)
    file = tmp_path / "good/seed-0/metrics.json"
    heard = [("fad_ear", 0.5), ("tag_kl_ear", 0.2), ("clap_score", 0.3)]
    more = [Result(metric, "unlearned", "retain", value) for metric, value in heard]
    write_metrics(
        file,
        [
            *read_metrics(file),
            *more,
            Result("fad_ear", "unlearned", "holdout", 9.0),
            Result("fad_ear", "unlearned", "forget", 2.0),
        ],
    )
    board = leaderboard(Plan(methods={"good": ()}, seeds=(0,)), tmp_path)
    assert board.titles[-6:] == ("clap_score", "fad_ear", "fad_ear, forget", "tag_kl_ear", "seconds", "peak GB")
    assert board.lines[0].median("fad_ear") == 0.5


def test_a_cell_that_failed_this_time_is_not_shown_with_figures_of_another(tmp_path, plan, cell_of):
    cell_of("good", 0, **GOOD)
    board = leaderboard(plan, tmp_path, {Cell("good", 0): "it broke"})
    assert board.lines == []
    assert board.failed["good/seed-0"] == "it broke"


def test_p_is_that_of_all_sign_flips_counted_one_by_one(tmp_path, cell_of):
    plan = Plan(methods={"good": (), "bad": (), "same": ()}, seeds=(0,))
    cell_of("good", 0, **GOOD)
    cell_of("bad", 0, **BAD)
    cell_of("same", 0, **GOOD | {"retain": 0.5})
    lines = {line.name: line for line in leaderboard(plan, tmp_path).lines}
    assert lines["good"].p == {}
    assert lines["bad"].p["KL gold, forget"] == pytest.approx(2 / 2**8)  # every track is worse
    assert lines["same"].p["KL gold, forget"] == 1
    assert lines["same"].p["retain NLL"] == pytest.approx(2 / 2**8)
    assert leaderboard(plan, tmp_path).tested == {"KL gold, forget": 8, "retain NLL": 8}


def test_methods_that_are_alike_are_seldom_told_apart_though_the_first_was_chosen_on_the_same_tracks(tmp_path):
    random, found = np.random.default_rng(0), []
    for _ in range(60):
        names = [f"m{i}" for i in range(8)]
        tracks = {name: random.normal(2, 1, 10) for name in names}
        lines = [Line(name, 1, (0,), {}) for name in sorted(names, key=lambda name: tracks[name].mean())]
        groups = {(name, 1): [measured(tracks[name])] for name in names}
        tested, _ = _tested(lines, groups)
        found.append(min(value for line in tested for value in line.p.values()) <= 0.05)
    assert sum(found) / len(found) <= 0.1  # against the first alone it is .17 of such benches


def measured(figures):
    row = Result("kl_gold", "unlearned", "forget", 1.0, per_track={f"t{i}": v for i, v in enumerate(figures)})
    return Measured(Cell("m", 0), {("kl_gold", "forget"): row}, {}, 0, 0, {})


@pytest.mark.parametrize("n", [3, 6])
def test_max_t_equals_a_loop_over_all_flips(n):
    differences = np.random.default_rng(n).normal(0.7, 1, (4, n))
    differences[2] = 0

    def statistic(row):
        size = np.sqrt((row**2).mean())
        return abs(row.mean()) / size if size else 0.0

    own = [statistic(row) for row in differences]
    flips = [max(statistic(row * np.array(signs)) for row in differences) for signs in product((1, -1), repeat=n)]
    expected = [sum(largest >= value - 1e-12 for largest in flips) / 2**n for value in own]
    assert stats.max_t_test(differences) == pytest.approx(expected)


def test_max_t_of_many_pairs_draws_flips_and_holds_its_level():
    random = np.random.default_rng(0)
    found = [stats.max_t_test(random.normal(0, 1, (10, 40)), draws=200, seed=i).min() <= 0.05 for i in range(200)]
    assert sum(found) / 200 < 0.1  # .05, give or take what 200 trials leave open
    shifted = random.normal(0, 1, (10, 40))
    shifted[4] += 1.5
    p = stats.max_t_test(shifted, draws=2000)
    assert p[4] < 0.005
    assert p[:4].min() > 0.01
