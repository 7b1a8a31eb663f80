"""Finding a run's files again; the command line's tests open whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from encore import assets
from encore.audio.catalog import Catalog
from encore.audio.files import file_sha256
from encore.audio.tracks import Track
from encore.errors import InputError
from encore.runs.open_run import Whereabouts, _about, listed_track


@pytest.fixture
def here(tmp_path: Path) -> Whereabouts:
    """A run in old/runs/a, whose project lies in new/ today."""
    (tmp_path / "new/runs/a").mkdir(parents=True)
    (tmp_path / "new/music").mkdir()
    (tmp_path / "new/music/x.wav").write_text("sound")
    return Whereabouts(tmp_path / "old/runs/a", tmp_path / "new/runs/a")


def track(path: Path, sha256: str) -> Track:
    return Track("x", path, "c", sha256)


def test_a_file_is_found_where_it_was_or_where_it_was_moved_to(here: Whereabouts, tmp_path: Path) -> None:
    moved = tmp_path / "new/music/x.wav"
    digest = file_sha256(moved)
    assert here.find(track(tmp_path / "old/music/x.wav", digest)).path == moved
    assert here.find(track(moved, digest)).path == moved
    assert here.model(str(tmp_path / "old/music")) == str(tmp_path / "new/music")
    assert here.model("owner/name") == "owner/name"
    assert here.model("tiny") == "tiny"


def test_a_file_that_is_gone_or_another(here: Whereabouts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"y\.wav is gone"):
        here.find(track(tmp_path / "old/music/y.wav", "0"))
    with pytest.raises(InputError, match="not the file that the run heard"):
        here.find(track(tmp_path / "old/music/x.wav", "0"))


def test_an_embedded_track_is_found_wherever_encore_is_installed(here: Whereabouts) -> None:
    embedded = Catalog.open(assets.CATALOG).tracks(split="forget")[0]
    assert here.find(replace(embedded, path=Path("/gone/with") / embedded.path.name)).path == embedded.path


def test_what_is_known_of_a_track_is_its_artist_and_genre(tmp_path: Path) -> None:
    entry = {"id": "a", "file": "a.wav", "caption": "c", "sha256": "0", "split": None}
    tracks = [listed_track(entry | {"artist": "Ada", "genre": "waltz"}), listed_track(entry | {"id": "b"})]
    assert _about(tracks) == {"a": {"artist": "Ada", "genre": "waltz"}}
