"""The report in a real browser. Where there is no Chromium this is skipped, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("websocket")
from tests.report.chromium import CHROMIUM, Page, browser
from tests.report.made_run import change, entry, row, rows, write_run

from encore.report.page import write_report

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here (apt install chromium)"),
    pytest.mark.slow,
]
PLAYABLE = """
Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise(done => {
  const told = () => done([audio.readyState, audio.duration]);
  const failed = () => done([-1, audio.error.message]);
  audio.readyState > 0 ? told() : (audio.onloadedmetadata = told, audio.onerror = failed);
})))
"""
PLAYED = """
(async () => {
  const audio = document.querySelector("audio");
  audio.muted = true;
  await audio.play();
  for (let i = 0; i < 100 && audio.currentTime <= 0.1; i++) await new Promise(done => setTimeout(done, 100));
  return audio.currentTime;
})()
"""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        yield opened


def test_it_loads_plays_and_asks_for_nothing(made: Path, page: Page) -> None:
    target = write_report(made)
    page.open(target)
    players = page.ask(PLAYABLE)
    assert len(players) == 6
    assert all(state >= 1 and seconds == pytest.approx(0.5, abs=0.15) for state, seconds in players), players
    assert page.ask(PLAYED) > 0.1
    pictures = page.ask("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert len(pictures) >= 4
    assert all(complete and width > 100 for complete, width in pictures)
    assert page.requests() == [target.resolve().as_uri()]
    assert page.complaints() == []
    assert page.ask("getComputedStyle(document.body).margin") == "0px"  # the style sheet's hash is that of the policy


TEXTS = """
(() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Map();
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = channels(colour).map(c => linear(c / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!(channels(colour).length === 4 && channels(colour)[3] === 0)) return colour;
    }
  };
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), both = [light(style.color), light(ground(element))].sort((a, b) => a - b);
    const key = [parseFloat(style.fontSize), Math.round(100 * (both[1] + .05) / (both[0] + .05)) / 100];
    if (!found.has(String(key))) found.set(String(key), [...key, walker.currentNode.data.trim().slice(0, 60)]);
  }
  return [...found.values()];
})()
"""
OPENED = "document.querySelectorAll('details').forEach(one => one.open = true)"
AFTER = """
[...document.querySelectorAll('.targets td:nth-child(4)')].filter(cell => cell.textContent.trim()).map(cell => {
  const box = cell.getBoundingClientRect();
  return [box.left >= 0, box.right <= innerWidth, box.width > 20, cell.checkVisibility()];
})
"""
UNCUT = "[...document.querySelectorAll('.wide')].every(box => box.scrollWidth <= box.clientWidth + 1)"
DRAWN = """
[...document.images].map(image => {
  const drawing = atob(image.src.split(",")[1]);
  const sizes = [...drawing.matchAll(/font(?:-size)?: ?([\\d.]+)px/g)].map(found => parseFloat(found[1]));
  return Math.min(...sizes) * image.clientWidth / (image.naturalWidth * 72 / 96);
})
"""
MARKS = """
[...document.querySelectorAll('.strip')].map(strip => {
  const line = strip.querySelector('.rail').getBoundingClientRect();
  const marks = ['rect.base', 'circle.unlearned', 'path.gold'].map(name => strip.querySelector(name));
  return marks.filter(Boolean).map(mark => {
    const box = mark.getBoundingClientRect(), centre = (box.left + box.right) / 2;
    return [(centre - line.left) / line.width, box.width, box.left >= 0 && box.right <= innerWidth];
  });
})
"""


def hostile(folder: Path) -> Path:
    """A run that failed, with titles that nobody would choose, on more tracks than the picture shows at once."""
    titles = ["x" * 300, "a long title " * 25, "two\nlines", "<script>document.title = 1</script>", "日本語の曲 " * 15]
    titles += [f"track {number}" for number in range(12)]
    results = []
    for line in rows():
        values = list(line.per_track.values())
        shares = {title: values[i % len(values)] for i, title in enumerate(titles)} if values else {}
        results.append(replace(line, per_track=shares if line.set == "forget" else line.per_track))
    bad = {title: 0.9 if i < 2 else 0.1 for i, title in enumerate(titles)}
    results = [
        replace(line, value=2 / 17, n=17, per_track=bad) if (line.metric, line.model, line.set) == FAKED else line
        for line in results
    ]
    results.append(
        row("w" * 80, "unlearned", "forget", 1.0, per_track=bad, note="n" * 200, details={"k" * 60: "v" * 90})
    )
    results.append(row("missing", "unlearned", "forget", None, why="because " * 40 + "y" * 150))
    made = write_run(folder, results=results, notes=["n" * 200])
    forget = [entry(title, i + 1, title=title, caption=title * 2) for i, title in enumerate(titles)]
    change(made / "request.json", forget=forget)
    change(
        made / "run.json",
        tracks={"forget": 17, "retain": 2, "holdout": 4},
        model={"name": "m" * 120, "sha256": "c" * 64},
    )
    return made


FAKED = ("verbatim", "unlearned", "forget")


@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_case_E11_it_is_read_on_a_phone_and_on_a_desk_by_day_and_by_night(
    made: Path, tmp_path: Path, page: Page, kind: str
) -> None:
    target = write_report(made if kind == "plain" else hostile(tmp_path / "hostile"))
    page.open(target)
    page.ask(OPENED)
    for width in (360, 390, 1280):
        page.width(width, phone=width < 600)
        assert page.ask("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert page.ask("document.title") == page.ask("document.querySelector('h1').textContent")
        after = page.ask(AFTER)
        assert len(after) > 5
        assert all(all(cell) for cell in after), after
        assert width > 600 or page.ask(UNCUT)  # nothing to scroll sideways, inside a table either
        assert min(page.ask(DRAWN)) >= 11
        strips = page.ask(MARKS)
        assert strips
        assert all(size >= 8 and inside for strip in strips for _, size, inside in strip)
        assert strips[0][0][0] == pytest.approx(1, abs=0.02)  # base reproduces all of the track
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            texts = page.ask(TEXTS)
            assert len(texts) > 5
            assert [text for text in texts if text[0] < 11 or text[1] < 4.5] == [], (width, scheme)
    assert page.ask("document.title").startswith("No evidence" if kind == "plain" else "1 of 6 tests failed: the model")
    pdf = page.printed()
    assert pdf.startswith(b"%PDF")
    assert page.complaints() == []


def test_on_paper_all_is_light_and_nothing_is_cut(made: Path, page: Page) -> None:
    page.open(write_report(made))
    page.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.width(680)  # A4 less its margins, in CSS pixels
    assert page.ask("document.documentElement.scrollWidth") <= 680
    assert page.ask(UNCUT)
    assert not page.ask("[...document.querySelectorAll('audio')].some(player => player.checkVisibility())")
    assert [text for text in page.ask(TEXTS) if text[1] < 4.5] == []


def test_dark_and_print(made: Path, page: Page) -> None:
    page.open(write_report(made))
    colour = "getComputedStyle(document.body).backgroundColor"
    page.scheme("light")
    assert page.ask(colour) == "rgb(255, 255, 255)"
    page.scheme("dark")
    assert page.ask(colour) == "rgb(20, 23, 27)"
    assert page.printed().startswith(b"%PDF")


def test_the_policy_holds_and_a_breach_would_be_seen(made: Path, page: Page) -> None:
    """The other tests would notice: a script and a stranger's picture in the page are stopped, and told of."""
    target = write_report(made)
    breach = '<script>document.title = "run"</script><img src="http://127.0.0.1:9/x.png"></main>'
    target.write_text(target.read_text().replace("</main>", breach))
    page.open(target)
    assert page.ask("document.title") != "run"
    assert len(page.complaints()) >= 2
