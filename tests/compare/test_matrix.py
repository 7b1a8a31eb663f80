"""The rows that a model is accepted by, from trials with known figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping

import pytest

from encore.api import Result
from encore.compare.leaderboard import leaderboard
from encore.compare.matrix import ROWS, Figure, matrix_lines
from encore.compare.plan import Plan, Trial
from encore.compare.tables import judged, markdown, matrix_spreadsheet, matrix_table, write_leaderboard
from encore.data.splits import Tracks
from encore.store.metrics_json import write_metrics
from encore.store.run_folder import write_json

WHOLE = Tracks((), (), ())
FORGET, RETAIN = [f"f{n}" for n in range(8)], ["known0", "known1", "heard0"]
NLL = {
    ("gold", "forget"): [4.0] * 8, ("base", "forget"): [0.02] * 8, ("unlearned", "forget"): [4.1] * 7 + [2.4],
    ("base", "holdout"): [4.5, 4.7], ("unlearned", "holdout"): [4.7, 4.9], ("gold", "holdout"): [4.5, 4.7],
    # the two memorised tracks lose .02 and .06, which the gain of the one that was only heard would hide in a mean
    ("base", "retain"): [0.01, 0.02, 3.4], ("unlearned", "retain"): [0.03, 0.08, 3.1],
}  # fmt: skip


def rows(kl: float = 1.2, tracks: int = 8) -> list[Result]:
    def row(metric: str, model: str, clips: str, values: list[float], **fields: object) -> Result:
        names = {"forget": FORGET, "retain": RETAIN, "holdout": ["h0", "h1"]}[clips]
        values = values[:tracks] if clips == "forget" else values
        per_track = dict(zip(names, values, strict=False))
        return Result(metric, model, clips, sum(values) / len(values), n=len(values), per_track=per_track, **fields)

    memorised = [row("nll_memorised", role, "retain", NLL[role, "retain"][:2]) for role in ("base", "unlearned")]
    return [
        *(row("nll", *key, values) for key, values in NLL.items()), *memorised,
        row("kl_gold", "unlearned", "forget", [kl] * 8), row("kl_gold", "gold2", "forget", [1.0] * 8),
        row("kl_gold", "unlearned", "retain", [0.05] * 3), row("kl_gold", "gold2", "retain", [0.02] * 3),
        row("relearn", "unlearned", "forget", [3.4] * 8), row("relearn", "gold", "forget", [3.6] * 8),
        row("relearn_fast", "unlearned", "forget", [2.0] * 8), row("relearn_fast", "gold", "forget", [3.0] * 8),
        row("verbatim", "base", "retain", [1.0, 1.0, 0.1]), row("verbatim", "unlearned", "retain", [1.0, 0.95, 0.1]),
        row("verbatim_caption", "base", "retain", [1.0, 1.0, 0.0]),
        row("verbatim_caption", "unlearned", "retain", [0.5, 0.2, 0.0]),
        row("clap_score_x", "base", "retain", [0.6, 0.6, 0.6]), row("clap_score_x", "unlearned", "retain", [0.5] * 3),
        row("sampling_clap_score_x", "base", "retain", [0.5, 0.6, 0.7]),
        row("tag_kl_x", "unlearned", "retain", [0.3] * 3), row("tag_kl_track_x", "unlearned", "retain", [9.0] * 3),
        row("sampling_tag_kl_x", "base", "retain", [0.2] * 3, low=0.1, high=0.35),
        row("mmd", "unlearned", "retain", [0.02] * 3), row("sampling_mmd", "base", "retain", [0.0] * 3, high=0.01),
        row("membership_auc", "unlearned", "forget", [0.62] * 8), row("membership_auc", "gold", "forget", [0.45] * 8),
    ]  # fmt: skip


@pytest.fixture
def trial(tmp_path):
    def write(trial: Trial, results: list[Result], seconds: float = 50.0) -> None:
        folder = tmp_path / trial.name
        folder.mkdir(parents=True)
        write_metrics(folder / "metrics.json", results)
        for run in [folder / str(n + 1) for n in range(trial.requests)] if trial.requests > 1 else [folder]:
            run.mkdir(exist_ok=True)
            write_json(run / "run.json", {"timings": {"forget": seconds}, "cost": {}})

    return write


def plan(**fields: object) -> Plan:
    lists = {"lists": {"l": "/x"}, "list_golds": {"l": {"gold": "g"}}}
    return Plan(**{"methods": {"m": ()}, "seeds": (0, 1, 2), **lists} | fields)


@pytest.fixture(autouse=True)
def no_file_is_read(monkeypatch):
    monkeypatch.setattr("encore.compare.matrix.list_tracks", lambda *_: WHOLE)


def met(line: object) -> Mapping[str, bool | None]:
    return {row["row"].split(":")[0]: row["met"] for row in line.as_dict()["rows"]}  # type: ignore[attr-defined]


def test_every_row_is_judged_as_it_is_written(tmp_path, trial):
    for seed, kl in enumerate((1.2, 1.0, 9.0)):
        trial(Trial("m", seed, list="l"), rows(kl))
    (line,) = matrix_lines(plan(), tmp_path, WHOLE)
    assert met(line) == {
        "KL(gold ‖ model), forget": True,  # of 1.2, 1.0 and 9.0 the median
        "KL(gold ‖ model), retain": False,
        "forget NLL": True,
        "lowest track NLL / gold's": True,
        "highest track NLL / gold's": True,
        "relearned / gold's, lr 2e-4": True,
        "relearned / gold's, lr 1e-3": False,
        "retain NLL, change": None,
        "memorised retain, change of NLL": False,
        "memorised retain, change of NLL, worst track": None,
        "retain, verbatim from 1 s": True,
        "retain, verbatim from captions": False,
        "retain, change of CLAP score": True,
        "retain, tag KL to base": True,
        "retain, MMD² to base": False,
        "held-out NLL, change": False,
        "membership AUC": True,
        "seconds": True,
    }
    figures = {row["row"].split(":")[0]: row for row in line.as_dict()["rows"]}
    assert figures["KL(gold ‖ model), forget"]["of_seeds"] == [1.2, 1.0, 9.0]
    assert figures["memorised retain, change of NLL"]["median"] == pytest.approx((0.02 + 0.06) / 2)
    assert figures["memorised retain, change of NLL, worst track"]["median"] == pytest.approx(0.06)
    assert figures["lowest track NLL / gold's"]["median"] == pytest.approx(0.6)
    assert figures["retain, verbatim from captions"]["median"] == 0
    assert figures["membership AUC"]["low"] == pytest.approx(0.35)
    assert line.label == "l (8)"


def test_what_was_not_measured_is_not_judged(tmp_path, trial):
    trial(Trial("m", 0, list="l"), [row for row in rows(tracks=3) if row.model not in ("gold2", "gold")], 70)
    (line,) = matrix_lines(plan(), tmp_path, WHOLE)
    verdicts = met(line)
    assert verdicts["KL(gold ‖ model), forget"] is None
    assert verdicts["membership AUC"] is None  # also of too few tracks
    assert verdicts["forget NLL"] is None
    assert "relearned / gold's, lr 2e-4" not in verdicts
    assert verdicts["seconds"] is False
    assert matrix_lines(plan(), tmp_path, WHOLE, [Trial("m", 0, list="l")]) == []


def test_of_several_requests_the_worst_counts(tmp_path, trial):
    whole = Trial("m", 0, 2)
    results = rows()
    kl = next(row for row in results if (row.metric, row.model, row.set) == ("kl_gold", "unlearned", "forget"))
    kl.per_track.update(dict.fromkeys(FORGET[4:], 2.0))
    trial(whole, results)
    for number, names in (("1", FORGET[:4]), ("2", FORGET[4:])):
        nll = Result("nll", "unlearned", "forget", 4.0, n=4, per_track=dict.fromkeys(names, 4.0))
        write_metrics(tmp_path / whole.name / number / "metrics.json", [nll])
    (line,) = matrix_lines(plan(requests=(1, 2)), tmp_path, WHOLE)
    worst = line.median("KL(gold ‖ model), worst request / noise")
    assert (worst.value, worst.met) == (2.0, False)
    assert line.label == "all (8, 2 requests)"
    assert line.median("seconds") == Figure(100.0)


def test_the_files_hold_the_same_figures(tmp_path, trial):
    for seed in (0, 1):
        trial(Trial("m", seed, list="l"), rows())
    lines = matrix_lines(plan(), tmp_path, WHOLE)
    board = leaderboard(plan(), tmp_path)
    assert board.lines == []
    assert board.failed == {"l/m/seed-2": "not run yet"}
    page = markdown(board, [], lines)
    assert "| KL(gold ‖ model), forget: ≤ 1.25 × noise | 1.20 (≤ 1.25) ✓ |" in page
    assert "| retain, verbatim from captions: ≥ base - 1 | 0 (≥ 1) ✗ |" in page
    assert "| forgets |" not in page  # there is no leaderboard of all tracks
    assert "not run yet" in page
    table = list(csv.DictReader(io.StringIO(matrix_spreadsheet(lines))))
    titles, shown = matrix_table(lines)
    assert titles == ["row", "l (8)"]
    assert len(table) == len(shown) == len(ROWS) - 1  # but that of requests
    assert [row["row"] for row in table] == [row[0] for row in shown]
    assert {row["met"] for row in table} == {"yes", "no", ""}
    written = write_leaderboard(tmp_path, board, [], lines)
    assert "matrix.csv" in {path.name for path in written}
    told = json.loads((tmp_path / "leaderboard.json").read_text())["matrix"]
    assert [row["median"] for row in told[0]["rows"]] == [float(row["median"]) for row in table]


def test_a_figure_is_shown_with_what_it_must_reach():
    shown = [judged(one) for one in (None, Figure(0.71), Figure(2, 1), Figure(0.5, high=0.05), Figure(4.1, 3.8, 4.6))]
    assert shown == ["–", "0.71", "2 (≥ 1) ✓", "0.50 (≤ 0.050) ✗", "4.10 (3.80 to 4.60) ✓"]
