"""The report in a real browser. Where there is no Chromium this is skipped, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websocket")
from tests.report.chromium import CHROMIUM, Page, browser

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


@pytest.mark.parametrize(("width", "phone"), [(360, True), (1200, False)])
def test_no_text_runs_out_of_the_page(made: Path, page: Page, width: int, phone: bool) -> None:
    page.width(width, phone=phone)
    page.open(write_report(made))
    assert page.ask("document.documentElement.scrollWidth") <= width


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
