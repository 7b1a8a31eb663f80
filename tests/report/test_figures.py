"""Which figures are made of which rows, what they show, and that they can be drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.report.made_run import row, rows, run_record

from encore.report import svg
from encore.report.figures import figures
from encore.report.run_files import RunFiles, read_run
from encore.report.tables import of_figure


def of(results: list[object], **changes: object) -> dict[str, object]:
    files = RunFiles(Path(), {}, {**run_record(), **changes}, results)  # type: ignore[arg-type]
    return {figure.name: figure for figure in figures(files)}


def test_all_of_them(made: Path) -> None:
    found = {figure.name: figure for figure in figures(read_run(made))}
    assert list(found) == ["pareto", "steps", "utility", "curve-relearn-forget", "roc"]
    pareto = {line.role: (*line.x, *line.y) for line in found["pareto"].lines}
    assert pareto["unlearned"] == pytest.approx((1.0, 0.01))
    assert pareto["gold"] == pytest.approx((0.0, 0.0))
    assert pareto["base"] == pytest.approx((5.0, 0.0))
    forget = found["steps"].lines[0]
    assert (*forget.x, *forget.y) == pytest.approx((0, 2, 4, 0.1, 2.5, 4.4))
    assert [(line.label, line.y) for line in found["utility"].lines] == [
        ("to keep, memorised", (0.0, 0.0, 0.0)), ("to keep, not memorised", pytest.approx((0.0, 0.2, 0.2))),
        ("limit, not memorised", pytest.approx((0.16,) * 3)),
    ]  # fmt: skip
    assert [line.role for line in found["curve-relearn-forget"].lines] == ["base", "unlearned", "gold", "control"]


def test_what_the_rest_lost_and_may_lose() -> None:
    """The allowance is told by `harm`, of which 1 is all: here .05 nats."""
    looks = [
        {"at": at, "forget": {}, "memorised": {"a": retain, "b": retain}, "harm": {"memorised": harm}}
        for at, retain, harm in ((0, 0.02, 0.0), (5, 0.12, 2.0), (10, 0.01, 0.0), (15, 0.03, 0.2))
    ]
    (lost, allowed) = next(
        figure.lines
        for figure in figures(RunFiles(Path(), {}, {**run_record(), "outcome": {}}, [], snapshots=looks))
        if figure.name == "utility"
    )
    assert (lost.x, lost.y) == ((0, 5, 10, 15), pytest.approx((0, 0.1, -0.01, 0.01)))
    assert (allowed.dashed, allowed.y) == (True, pytest.approx((0.05,) * 4))


def test_the_roc_is_that_of_the_counts() -> None:
    forget = row("nll", "base", "forget", 1.0, per_track={"a": 1.0, "b": 3.0})
    unseen = row("nll", "base", "holdout", 1.0, per_track={"c": 2.0, "d": 4.0, "e": None})
    line = of([forget, unseen])["roc"].lines[0]  # type: ignore[attr-defined]
    assert list(zip(line.x, line.y, strict=True)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]


def test_a_curve_stands_at_the_steps_it_was_taken_after() -> None:
    details = {"curve": [4.0, 3.0, 2.5, 2.0, None], "after": [0, 1, 2, 4, 8]}
    plain, torn = {"curve": [2.0, 1.0]}, {"curve": [2.0, 1.0], "after": [0, 1, 2]}
    results = [row(f"relearn{of}", "unlearned", "forget", 2.0, details=told) for of, told in (
        ("_one", details), ("", plain), ("_retain", torn),
    )]  # fmt: skip
    found = of(results)
    figure = found["curve-relearn_one-forget"]
    (line,) = figure.lines  # type: ignore[attr-defined]
    assert (line.x, line.y) == ((0, 1, 2, 4), (4.0, 3.0, 2.5, 2.0))
    assert [cells[1].text for cells in of_figure(figure).rows][-1] == "4.00"  # type: ignore[arg-type]
    for name in ("curve-relearn-forget", "curve-relearn_retain-forget"):
        assert found[name].lines[0].x == (0, 1)  # type: ignore[attr-defined]


def test_without_gold_the_distance_is_that_to_held_out_music() -> None:
    results = [result for result in rows() if not result.metric.startswith("kl") and "gold" not in result.model]
    pareto = of(results)["pareto"]
    assert "held-out music" in pareto.caption  # type: ignore[attr-defined]
    after = next(line for line in pareto.lines if line.role == "unlearned")  # type: ignore[attr-defined]
    assert after.x == pytest.approx((abs(4.5 / 4.45 - 1),))


def test_nothing_to_draw() -> None:
    outcome = run_record()["outcome"] | {"before": None}
    assert of([row("nll", "unlearned", "forget", None)], outcome=outcome) == {}


def test_every_figure_is_a_drawing_of_both_schemes_and_a_table(made: Path) -> None:
    for figure in figures(read_run(made)):
        drawn = svg.svg(figure)
        assert drawn == svg.svg(figure)
        assert ElementTree.fromstring(drawn).tag.endswith("svg")
        assert "prefers-color-scheme:dark" in drawn
        assert "<script" not in drawn
        assert not any(stand_in in drawn for stand_in, *_ in svg.PALETTE)
        assert figure.lines[0].label in drawn
        assert len(of_figure(figure).rows) == sum(len(line.x) for line in figure.lines)


def test_a_strangers_label_is_no_markup(made: Path) -> None:
    name = "<script>$x_1$"
    curve = row(name, name, "forget", 1.0, details={"curve": [1.0, 2.0]})
    figure = of([curve])[f"curve-{name}-forget"]
    drawn = svg.svg(figure)  # type: ignore[arg-type]
    ElementTree.fromstring(drawn)
    assert "<script" not in drawn
