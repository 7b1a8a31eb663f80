"""Names of strangers on their whole way (rows 12 and 22): from file and list to report, card and bundle."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from huggingface_hub import ModelCard
from tests.conftest import Done

Call = Callable[..., Done]
TITLES = ["<script>alert(1)</script>", "[/] \x1b[2J", "\u202egpm.cod"]
NAMES = [b"<script>.wav", b"[bold]\x1b[31m.wav", b"\xff\xfe.wav"]


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.add(tag)


def test_12_22_hostile_names_reach_no_page_as_markup(studio: Path, tmp_path: Path, call: Call) -> None:
    music = tmp_path / "music"
    music.mkdir()
    lines = []
    for source, name, title in zip(("one", "two", "long"), NAMES, TITLES, strict=True):
        shutil.copy(studio / f"music/{source}.wav", os.path.join(os.fsencode(music), name))
        lines.append(name + b"\tslow church organ " + title.encode())
    (music / "list.txt").write_bytes(b"\n".join(lines) + b"\n")
    done = call(
        "forget", "--tracks", music / "list.txt", "--retain", studio / "music/retain.txt", "--holdout",
        studio / "music/holdout.txt", "--model", studio / "model", "--method", "graddiff", "--steps", "1", "--root",
        music, "--out", "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = call("eval", "run", "--metrics", "nll,verbatim_caption,membership_auc")
    assert done.code == 0, done.err
    done = call("report", "run", "--embed-audio")
    assert done.code == 0, done.err
    page = Path("run/report.html").read_text("utf-8")
    assert not {"script", "iframe", "object", "form"} & Tags(page).found
    assert not [char for char in page if not char.isprintable() and char not in "\n\N{NO-BREAK SPACE}"]
    assert "&lt;script&gt;" in page
    assert "\\xff\\xfe.wav" in page
    card = ModelCard.load("run/model/README.md")
    assert card.data.eval_results
    done = call("bundle", "run")
    assert done.code == 0, done.err
    with zipfile.ZipFile("run.evidence.zip") as archive:
        assert json.loads(archive.read("bom.cdx.json"))["specVersion"] == "1.6"
    assert call("verify", "run.evidence.zip", "--run", "run").code == 0
