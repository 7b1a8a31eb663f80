"""The leaderboard's files."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from tests.compare.conftest import rows
from tests.compare.test_leaderboard import BAD, GOOD

from encore.api import Result
from encore.compare.leaderboard import leaderboard
from encore.compare.pareto import frontier
from encore.compare.plan import Plan, Trial
from encore.compare.sequential import request_lines
from encore.compare.tables import markdown, spreadsheet, write_leaderboard
from encore.store.metrics_json import read_metrics, write_metrics


@pytest.fixture
def board(tmp_path, plan, cell_of):
    for seed in (0, 1):
        cell_of("good", seed, **GOOD)
    cell_of("bad", 0, **BAD)
    return leaderboard(plan, tmp_path, {Trial("bad", 1): "it broke | badly\n# really"})


def test_all_files_hold_the_same_figures(tmp_path, board):
    (tmp_path / "out").mkdir()
    written = write_leaderboard(tmp_path / "out", board, [])
    assert {path.name for path in written} == {"leaderboard.json", "leaderboard.md", "leaderboard.csv", "pareto.svg"}
    told = json.loads((tmp_path / "out/leaderboard.json").read_text())
    good = told["methods"][0]
    assert good["method"] == "good"
    assert good["figures"]["forget NLL"] == {"median": 4.1, "low": 4.1, "high": 4.1, "of_seeds": [4.1, 4.1]}
    assert told["failed"] == {"bad/seed-1": "it broke | badly\n# really"}
    table = list(csv.DictReader(io.StringIO(spreadsheet(board))))
    assert [row["method"] for row in table] == ["base", "gold", "gold2", "good", "bad"]
    assert float(table[3]["forget NLL: median"]) == 4.1
    assert table[0]["seconds: median"] == ""
    assert float(table[4]["p, KL gold, forget"]) == pytest.approx(2 / 2**8)
    root = ET.fromstring((tmp_path / "out/pareto.svg").read_text())
    assert root.tag.endswith("svg")
    assert len([node for node in root.iter() if node.get("id", "").startswith("axes_")]) == 2  # KL, and relearning


def test_the_page_is_a_table_that_no_text_of_others_breaks(board):
    page = markdown(board)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert "| good | yes | 4/4 | 1/1 | 1.10 |" in page
    assert "| base | NO | 0/3 | 1/1 | 5.63 |" in page
    assert "- `bad/seed-1`: it broke \\| badly \\# really" in page  # on one line, and no heading
    assert "Lowest possible p: KL gold, forget 0.0078 (8 tracks)" in page


def test_case_C9_no_cell_is_a_formula_or_markup(board):
    """Names that no plugin can register, from a leaderboard made by a program."""
    lines = [replace(line, name=name) for line, name in zip(board.lines, ("=cmd()", "<script>a</script>"), strict=True)]
    hostile = replace(board, lines=lines, titles=(*board.titles, "@title"))
    rows = list(csv.reader(io.StringIO(spreadsheet(hostile))))
    assert not [cell for row in rows for cell in row if cell[:1] in "=+@" and cell]
    assert "'=cmd()" in [row[0] for row in rows]
    assert "<script" not in markdown(hostile)


def test_a_bench_without_retain_has_no_figure_of_what_it_costs(tmp_path, plan, cell_of):
    cell_of("good", 0, **GOOD)
    file = tmp_path / "good/seed-0/metrics.json"
    write_metrics(file, [row for row in read_metrics(file) if row.set != "retain"])
    board = leaderboard(plan, tmp_path)
    assert board.lines
    assert {path.name for path in write_leaderboard(tmp_path, board, [])} == {
        "leaderboard.json", "leaderboard.md", "leaderboard.csv"
    }  # fmt: skip


def test_half_a_count_is_shown_as_one(tmp_path, plan, cell_of):
    cell_of("good", 0, **GOOD)
    cell_of("good", 1, **GOOD | {"verbatim": 1})
    page = markdown(leaderboard(plan, tmp_path))
    assert "| good | NO | 3.5/4 |" in page
    assert "| 0.5 |" in page


def test_one_seed_is_one_seed(tmp_path, cell_of):
    cell_of("good", 0, **GOOD)
    page = markdown(leaderboard(Plan(methods={"good": ()}, seeds=(0,)), tmp_path))
    assert "Medians over 1 seed per method" in page
    assert "p:" not in page


def test_nobody_is_on_the_frontier_who_is_beaten_on_both():
    points = {"a": (1.0, 5.0), "b": (2.0, 2.0), "c": (2.0, 3.0), "d": (5.0, 2.0), "e": (6.0, 1.0), "f": (2.0, 2.0)}
    assert frontier(points) == ["a", "b", "f", "e"]


def test_requests_are_read_right_after_each_and_at_the_end(tmp_path, cell_of):
    plan = Plan(methods={"good": ()}, seeds=(0,), requests=(2,))
    cell_of("good", 0, 2, **GOOD | {"nll": 3.0, "verbatim": 8})
    folder = tmp_path / plan.trials[0].name
    for number, kept in ((1, {"t0", "t1", "t2"}), (2, {"t3", "t4"})):
        own = [
            replace(row, per_track={track: value for track, value in row.per_track.items() if track in kept})
            for row in rows(GOOD | {"nll": 4.0 + number})
        ]
        write_metrics(folder / str(number) / "metrics.json", own)
    first, second = request_lines(plan, tmp_path)
    assert (first.number, first.tracks, second.tracks) == (1, 3, 2)
    assert first.nll_after == pytest.approx(5.0 + 0.01 * (1 - 3.5))
    assert first.nll_end == pytest.approx(3.0 + 0.01 * (1 - 3.5))
    assert second.nll_after == pytest.approx(6.0 + 0.01 * (3.5 - 3.5))
    assert (first.verbatim_after, first.verbatim_end) == (0, 3)
    board = leaderboard(plan, tmp_path)
    assert board.lines[0].median("seconds") == 20  # of both
    page = markdown(board, [first, second])
    assert "| good, 2 requests |" in page
    assert "| good | 2 | 1 | 3 | 4.98 | 2.98 | 0 | 3 |" in page


def test_requests_count_tracks_that_replay_and_say_where_that_was_not_measured(tmp_path, cell_of):
    plan = Plan(methods={"good": ()}, seeds=(0,), requests=(2,))
    cell_of("good", 0, 2, **GOOD | {"verbatim": 4})  # each track's share of right tokens is a half: none is verbatim
    folder = tmp_path / plan.trials[0].name
    for number in (1, 2):
        measured = [row for row in rows(GOOD | {"verbatim": 8}) if number == 1 or row.metric != "verbatim"]
        write_metrics(folder / str(number) / "metrics.json", measured)
    first, second = request_lines(plan, tmp_path)
    assert (first.verbatim_after, first.verbatim_end) == (8, 0)
    assert (second.verbatim_after, second.verbatim_end) == (None, 0)
    assert "| 4.10 | 4.10 | – | 0 |" in markdown(leaderboard(plan, tmp_path), [second])


def test_case_E3_options_that_were_given_are_in_the_name_in_every_file(tmp_path, cell_of):
    plan = Plan(methods={"good": ("steps=3", "steps=30"), "good@slow": ("lr=1e-5",)}, seeds=(0,))
    for method in plan.methods:
        cell_of(method, 0, **GOOD)
    board = leaderboard(plan, tmp_path)
    write_leaderboard(tmp_path, board, [])
    names = ["good (steps=30)", "good@slow (lr=1e-5)"]
    told = json.loads((tmp_path / "leaderboard.json").read_text())
    assert [line["label"] for line in told["methods"]] == names
    assert [line["method"] for line in told["methods"]] == ["good", "good@slow"]
    assert [line["options"] for line in told["methods"]] == [["steps=3", "steps=30"], ["lr=1e-5"]]
    sheet = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert [row["method"] for row in sheet][-2:] == names
    assert all(f"| {name} |" in (tmp_path / "leaderboard.md").read_text() for name in names)


def test_case_C9_no_name_is_a_formula_or_markup(tmp_path, cell_of):
    cell_of("good", 0, **GOOD)
    file = tmp_path / "good/seed-0/metrics.json"
    write_metrics(file, [*read_metrics(file), Result("=cmd()", "unlearned", "forget", 1.0)])
    plan = Plan(methods={"good": ("name=<script>[x](y)",)}, seeds=(0,))
    board = leaderboard(plan, tmp_path)
    assert "'=cmd(), forget: median" in spreadsheet(board).splitlines()[0]
    assert "| good (name=&lt;script&gt;\\[x](y)) |" in markdown(board)
