"""The page: complete, closed to the outside, and unmoved by what strangers call their tracks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.made_run import TRACKS, change, entry, row, rows, run_record, write_run

from encore.api import Result
from encore.errors import InputError
from encore.report import svg
from encore.report.page import write_report
from encore.store.metrics_json import write_metrics
from encore.text import printable

HOSTILE = [
    "<script>alert(1)</script>", "[/] [bold]", "\x1b[31mred", "\u202egnp.exe", "two\nlines", "'\" onload=x",
    "{{ 7*7 }}", "byte \udcff",
]  # fmt: skip


class Seen(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(write_report(write_run(tmp_path_factory.mktemp("page") / "made")).read_text())


def test_it_says_what_was_asked_found_and_not_proved(page: Seen) -> None:
    for words in (
        "was to forget 3 tracks and to keep 2 tracks", "No evidence of retention in 6 of 6 tests",
        "What this does not prove", "before 3 of 3, after 0 of 3, gold 0 of 3 tracks", "a note of the run",
        "a note of eval", "not measured: too few generations", "encore forget --tracks list.txt", "f" * 64, "a" * 64,
        "slow one", "It does not say that anything was deleted",
    ):  # fmt: skip
        assert words in page.text, words


def test_it_is_closed(page: Seen) -> None:
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "embed", "form", "base", "use", "image", "foreignobject"} & set(tags)
    addresses = [value or "" for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert len(addresses) > 10
    assert all(address.startswith("data:") for address in addresses)
    assert not [name for _, found in page.tags for name in found if name.startswith("on") or name == "style"]
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in str(policy)


FAILING = {"one": 0.2, "two": 0.9, "three": 0.1}  # of `verbatim`: the second track is still reproduced


def failing() -> list[Result]:
    after = row("verbatim", "unlearned", "forget", 1 / 3, unit="share", per_track=FAILING)
    key = (after.metric, after.model, after.set)
    return [*(found for found in rows() if (found.metric, found.model, found.set) != key), after]


def test_case_E11_verdict_picture_worst_track_and_failures_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svg, "can_draw", lambda: False)
    made = write_run(tmp_path / "made", results=failing())
    page = write_report(made).read_text()
    verdict = "1 of 6 tests failed: the model still reproduces 1 of 3 tracks"
    order = [
        f"<title>{verdict}</title>", f"<h1>{verdict}</h1>", "How much of each track the model reproduces",
        'aria-label="Two: before 100\xa0%, after 90\xa0%, gold 0\xa0%"', 'aria-label="One: before',
        "Listen to the worst", 'aria-label="before: Two"', 'aria-label="after: Two"',
        "What failed", "Required: no more than gold. Worst track: Two",
        "What passed", "What was not measured", "not measured: too few generations", "Glossary", "<dt>gold</dt>",
        "All targets", "Track by track",
    ]  # fmt: skip
    places = [page.index(words) for words in order]
    assert places == sorted(places), list(zip(order, places, strict=True))
    seen = Seen(page)
    names = [found["aria-label"] for tag, found in seen.tags if tag == "audio"]
    assert len(names) == len(set(names)) == 6  # the worst track's players are not there a second time
    strips = [found for tag, found in seen.tags if tag == "svg" and found.get("role") == "img"]
    assert all(found["aria-label"] for found in strips)
    assert len(strips) == 6  # of each track, how much is reproduced and how well it is predicted


def test_case_E11_a_table_names_its_columns_in_every_cell(page: Seen) -> None:
    """On a phone each row is a block of its own, where the head of the table is not seen."""
    cells = [found for tag, found in page.tags if tag == "td"]
    assert cells
    assert all("data-label" in found and found["role"] == "cell" for found in cells)


def test_who_asked_and_when_is_told_where_it_is_known(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "can_draw", lambda: False)
    assert "UTC" not in Seen(write_report(made).read_text()).text
    change(made / "request.json", requester="A <b>label</b>", requested="2026-11-20", begun="2026-11-28T16:10:00Z")
    change(made / "run.json", finished="2026-11-28T23:30:00-02:00")
    change(made / "evaluation.json", measured="not a date")
    seen = Seen(write_report(made).read_text())
    for words in (
        "A <b>label</b>", "20 November 2026", "28 November 2026, 16:10 UTC", "29 November 2026, 01:30 UTC",
        "not a date",
    ):  # fmt: skip
        assert words in seen.text, words


def test_two_reports_of_one_run_are_equal(made: Path) -> None:
    first = write_report(made).read_bytes()
    assert write_report(made, out=made / "again.html").read_bytes() == first


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_text(made: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "can_draw", lambda: False)  # which takes long; test_figures draws a stranger's label
    forget = [entry("one", title=text, caption=text, file=f"/music/{text}")]
    forget += [entry(text), entry("two"), entry("three")]
    change(made / "request.json", forget=forget)
    change(made / "run.json", notes=[text], model={"name": text, "sha256": "c" * 64}, method=text)
    note = row(text, "unlearned", "forget", 1.0, note=text, details={text: text}, per_track={text: 1.0})
    write_metrics(made / "metrics.json", [*rows(), note, row("x", text, text, None, why=text)])
    found = write_report(made).read_text()
    assert not re.search(r"<script|\x1b|\u202e", found)
    seen = Seen(found)
    assert not [name for _, attributes in seen.tags for name in attributes if name == "onload"]
    assert "49" not in re.findall(r"\b49\b", seen.text)
    plain = printable(text)
    assert plain.isprintable()
    assert plain in seen.text


def test_rows_it_does_not_know_are_shown(made: Path) -> None:
    new = [
        row("similarity_chroma", "unlearned", "forget", 0.123, per_track={"one": 0.345}, details={"key": "C to D"}),
        row("quantised_nll", "unlearned", "forget", 0.678, details={"curve": [1.0, 2.0, None]}),
    ]
    write_metrics(made / "metrics.json", [*rows(), *new])
    seen = Seen(write_report(made).read_text())
    for words in ("similarity (1)", "similarity_chroma", "0.123", "0.345", "key: C to D", "quantised (1)", "0.678"):
        assert words in seen.text, words


def test_a_model_without_tokens_has_losses(tmp_path: Path) -> None:
    results = [row("nll", model, "forget", 1.0, unit="loss", per_track={"one": 1.0}) for model in ("base", "unlearned")]
    made = write_run(tmp_path / "made", results=results, unit="loss")
    seen = Seen(write_report(made).read_text())
    assert "loss before" in seen.text
    assert "NLL before" not in seen.text
    assert "There was no gold" in seen.text


def test_without_matplotlib_the_numbers_are_there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "can_draw", lambda: False)
    seen = Seen(write_report(made).read_text())
    assert "matplotlib was not installed" in seen.text
    assert "img" not in [tag for tag, _ in seen.tags]
    assert "Forgetting against its cost" in seen.text


def test_torch_is_not_needed(made: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from encore.report.page import write_report
from encore.report.card import model_card
write_report(Path({str(made)!r}))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_is_written_whole_or_not_at_all(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_report(made)
    before = target.read_bytes()
    change(made / "run.json", tracks={})
    with pytest.raises(InputError, match="not written by this version"):
        write_report(made)
    assert target.read_bytes() == before
    assert not list(made.glob(".staging*"))


def test_players_and_originals(made: Path, tmp_path: Path) -> None:
    seen = Seen(write_report(made).read_text())
    players = [found for tag, found in seen.tags if tag == "audio"]
    assert len(players) == 6
    assert str(players[0]["src"]).startswith("data:audio/")
    assert "The recordings themselves are not in this file" in seen.text
    with pytest.raises(InputError, match="is missing"):
        write_report(made, originals=True)
    from encore.data.open_files import file_sha256

    music = made / "samples/forget/000-one.before.wav"
    request = json.loads((made / "request.json").read_text())
    forget = [{**track, "file": str(music), "sha256": file_sha256(music)} for track in request["forget"]]
    change(made / "request.json", forget=forget)
    seen = Seen(write_report(made, originals=True).read_text())
    assert len([tag for tag, _ in seen.tags if tag == "audio"]) == 9
    assert "The recordings themselves are not" not in seen.text


def test_the_most_alike_plays_stand_beside_the_answer_and_track(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "can_draw", lambda: False)
    results = rows()
    for kind, value in (("chroma", 0.9), ("melody", 0.3), ("onset", 0.3)):
        details = {"best": {"one": "sample 2"}, "threshold": 0.5}
        found = {"per_track": {"one": value}, "unit": ""}
        results.append(row(f"similarity_{kind}", "unlearned", "forget", value, **found, details=details))
        for model, share in (("base", 1.0), ("unlearned", float(value > 0.5) / 3)):
            results.append(
                row(f"similarity_{kind}_flagged", model, "forget", share, unit="share", details={"chance": 1 / 11})
            )
    write_metrics(made / "metrics.json", results)
    (made / "samples" / "similar").mkdir()
    played = made / "samples" / "similar" / "000-one.after.wav"
    played.write_bytes((made / "samples" / "forget" / "002-three.after.wav").read_bytes())
    index = json.loads((made / "samples" / "index.json").read_text())
    entry = {"file": "similar/000-one.after.wav", "track": "one", "caption": "slow one", "variant": "sample 2"}
    (made / "samples" / "index.json").write_text(json.dumps([*index, {**entry, "kinds": ["chroma", "melody"]}]))
    seen = Seen(write_report(made).read_text())
    assert "reproduces the harmony of 1, the melody of 0, the rhythm of 0 of 3 tracks; before" in seen.text
    assert "before, the harmony of 3, the melody of 3, the rhythm of 3" in seen.text
    assert "By chance alone, about one track in 11 counts, for each." in seen.text
    players = [found for tag, found in seen.tags if tag == "audio"]
    assert [p["aria-label"] for p in players if "harmony" in str(p["aria-label"])] == ["harmony, melody: sample 2: One"]
    assert len(players) == 7
    monkeypatch.setattr("encore.report.page._originals", lambda files: {"one": "data:audio/mpeg;base64,AAAA"})
    seen = Seen(write_report(made, originals=True).read_text())
    labels = [found["aria-label"] for tag, found in seen.tags if tag == "audio"]
    assert labels.count("original: One") == 2
    assert labels.index("harmony, melody: sample 2: One") == 1 + labels.index("original: One", 1)  # a pair


def test_what_breaks_while_drawing_is_no_fault_of_the_files(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(figure: object) -> str:
        raise TypeError("of matplotlib")

    monkeypatch.setattr(svg, "can_draw", lambda: True)
    monkeypatch.setattr(svg, "svg", broken)
    with pytest.raises(TypeError, match="of matplotlib"):
        write_report(made)


def test_what_a_track_lacks_is_a_fault_of_the_files(made: Path) -> None:
    change(made / "request.json", retain=[{"caption": "no id"}])
    with pytest.raises(InputError, match="not written by this version"):
        write_report(made)
    change(made / "request.json", retain=[], forget=[{"id": "one"}])
    with pytest.raises(InputError, match="not written by this version"):
        write_report(made, originals=True)


def test_plays_of_one_name_are_all_to_be_heard(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "can_draw", lambda: False)
    (made / "samples" / "similar").mkdir()
    index = json.loads((made / "samples" / "index.json").read_text())
    for number in (0, 1):
        name = f"similar/00{number}-one.after.wav"
        (made / "samples" / name).write_bytes(
            (made / f"samples/forget/00{number}-{TRACKS[number]}.after.wav").read_bytes()
        )
        index.append({"file": name, "track": "one", "caption": "c", "variant": "sample 1", "kinds": ["melody"]})
    (made / "samples" / "index.json").write_text(json.dumps(index))
    details = {"best": {"one": "sample 1"}, "threshold": 0.5}
    similarity = row("similarity_melody", "unlearned", "forget", 0.9, per_track={"one": 0.9}, details=details)
    write_metrics(made / "metrics.json", [*rows(), similarity])
    seen = Seen(write_report(made).read_text())
    heard = [found for tag, found in seen.tags if tag == "audio" and found["aria-label"] == "melody: sample 1: One"]
    assert len({found["src"] for found in heard}) == 2


def test_a_run_that_ruined_the_rest_of_the_music_failed_though_no_test_did(tmp_path: Path) -> None:
    outcome = run_record()["outcome"] | {"collapsed": True}
    page = write_report(write_run(tmp_path / "made", outcome=outcome)).read_text()
    assert "No test failed" not in page
    assert "<p>The run damaged the rest of the music.</p>" in page
