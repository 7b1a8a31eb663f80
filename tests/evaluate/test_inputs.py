"""Finding a run's files again; the command line's tests open whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from encore import assets
from encore.api import Role
from encore.data.catalog import Catalog
from encore.data.open_files import file_sha256
from encore.data.relocate import PathRelocator, listed_track
from encore.data.splits import Tracks
from encore.data.tracks import Track
from encore.errors import InputError
from encore.evaluate import inputs
from encore.evaluate.inputs import _metadata


@pytest.fixture
def here(tmp_path: Path) -> PathRelocator:
    """A run in old/runs/a, whose project lies in new/ today."""
    (tmp_path / "new/runs/a").mkdir(parents=True)
    (tmp_path / "new/music").mkdir()
    (tmp_path / "new/music/x.wav").write_text("sound")
    return PathRelocator(tmp_path / "old/runs/a", tmp_path / "new/runs/a")


def track(path: Path, sha256: str) -> Track:
    return Track("x", path, "c", sha256)


def test_a_file_is_found_where_it_was_or_where_it_was_moved_to(here: PathRelocator, tmp_path: Path) -> None:
    moved = tmp_path / "new/music/x.wav"
    digest = file_sha256(moved)
    assert here.find(track(tmp_path / "old/music/x.wav", digest)).path == moved
    assert here.find(track(moved, digest)).path == moved
    assert here.model(str(tmp_path / "old/music")) == str(tmp_path / "new/music")
    assert here.model("owner/name") == "owner/name"
    assert here.model("tiny") == "tiny"


def test_a_file_that_is_gone_or_another(here: PathRelocator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"y\.wav is missing"):
        here.find(track(tmp_path / "old/music/y.wav", "0"))
    with pytest.raises(InputError, match="not the file that the run read"):
        here.find(track(tmp_path / "old/music/x.wav", "0"))


def test_an_embedded_track_is_found_wherever_encore_is_installed(here: PathRelocator) -> None:
    embedded = Catalog.open(assets.CATALOG).tracks(split="forget")[0]
    assert here.find(replace(embedded, path=Path("/gone/with") / embedded.path.name)).path == embedded.path


def test_what_is_known_of_a_track_is_its_artist_and_genre(tmp_path: Path) -> None:
    entry = {"id": "a", "file": "a.wav", "caption": "c", "sha256": "0", "split": None}
    tracks = [listed_track(entry | {"artist": "Ada", "genre": "waltz"}), listed_track(entry | {"id": "b"})]
    assert _metadata(tracks) == {"a": {"artist": "Ada", "genre": "waltz"}}


class Loaded:
    """A family of models that only notes what it is asked to load."""

    def __init__(self) -> None:
        self.revisions: dict[str, str | None] = {}

    def load(self, name: str, *, revision: str | None = None, **_: object) -> str:
        self.revisions[name] = revision
        return name


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """No model is loaded and no track is encoded."""
    found = Loaded()
    monkeypatch.setattr(inputs, "backends", lambda: SimpleNamespace(resolve=lambda name: found))
    monkeypatch.setattr(inputs, "model_name", str)
    monkeypatch.setattr(inputs, "model_sha256", lambda model: "unlearned" if str(model).endswith("model") else model)

    def encode(backend: object, sets: dict[str, list[Track]], *_: object) -> dict[str, list[SimpleNamespace]]:
        return {name: [SimpleNamespace(track=one, clips=[one]) for one in tracks] for name, tracks in sets.items()}

    monkeypatch.setattr(inputs, "_encode", encode)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[[int], Path]:
    """A run of a seed, with more tracks to keep than are measured."""
    (tmp_path / "x.wav").write_text("sound")
    digest = file_sha256(tmp_path / "x.wav")

    def listed(name: str) -> dict[str, object]:
        return {"id": name, "file": str(tmp_path / "x.wav"), "caption": "c", "sha256": digest, "split": None}

    def write(seed: int) -> Path:
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        request = {
            "folder": str(folder), "seed": seed, "forget": [listed("f")], "holdout": [],
            "retain": [listed(f"t{i:02}") for i in range(50)],
            "model": {"backend": "b", "name": "base", "revision": None, "sha256": "base"},
        }  # fmt: skip
        (folder / "request.json").write_text(json.dumps(request))
        (folder / "run.json").write_text(json.dumps({"unlearned_sha256": "unlearned"}))
        return folder

    return write


def test_runs_of_several_seeds_are_measured_on_the_same_tracks(family: Loaded, run: Callable[[int], Path]) -> None:
    one, two = run(1), run(2)
    kept = [track.id for track in inputs.from_run(one, seed=0).clips["retain"]]
    assert len(kept) == inputs.RETAIN_TRACKS
    assert [track.id for track in inputs.from_run(two, seed=0).clips["retain"]] == kept
    assert [track.id for track in inputs.from_run(two, seed=1).clips["retain"]] != kept


def test_what_breaks_in_a_backend_is_no_fault_of_the_files(
    family: Loaded, run: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **named: object) -> None:
        raise TypeError("of a backend")

    folder = run(1)
    monkeypatch.setattr(family, "load", broken)
    with pytest.raises(TypeError, match="of a backend"):
        inputs.from_run(folder)
    (folder / "run.json").write_text("[]")
    with pytest.raises(InputError, match="not written by this version"):
        inputs.from_run(folder)


def test_a_revision_is_that_of_the_base_model(family: Loaded) -> None:
    tracks = Tracks((Track("a", Path("a.wav"), "c", "0"),), (), ())
    inputs.open_inputs("u", tracks, others={"base": "owner/base", "gold": "g"}, revision="v1")
    assert family.revisions == {"owner/base": "v1", "g": None, "u": None}


@pytest.mark.parametrize(
    ("golds", "words"),
    [
        ({"gold": "base"}, "gold has the same weights as base"),
        ({"gold": "a/model"}, "gold has the same weights as unlearned"),
        ({"gold": "g", "gold2": "base"}, "gold2 has the same weights as base"),
        ({"gold": "g", "gold2": "g"}, "gold2 has the same weights as gold"),
    ],
)
def test_a_gold_that_is_another_of_the_models_is_refused(
    family: Loaded, run: Callable[[int], Path], golds: dict[Role, str], words: str
) -> None:
    tracks = Tracks((Track("a", Path("a.wav"), "c", "0"),), (), ())
    with pytest.raises(InputError, match=words):
        inputs.from_run(run(1), golds=golds)
    with pytest.raises(InputError, match=words):
        inputs.open_inputs("the/model", tracks, others={"base": "base", **golds})
    inputs.open_inputs("base", tracks, others={"base": "base", "gold": "g"})  # a run may have changed nothing
    inputs.open_inputs("g", tracks, others={"base": "base", "gold": "g"})  # as `encore bench --meta` does
