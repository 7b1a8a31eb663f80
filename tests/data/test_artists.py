"""`artist:NAME` in a list: which fields credit an artist, in catalogues and shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data.test_track_list import put

from encore import assets
from encore.data.artists import artists_of, crediting, near_artists
from encore.data.catalog import Catalog
from encore.data.track_list import read_list
from encore.errors import InputError

FIELDS = [
    "Edvard Grieg (1875)", "Nirvana", "Nirvana (UK)", "Simon & Garfunkel", "AC/DC", "A feat. B", "A (ft. C)", "D; E",
    "F / G", "Bjo\u0308rk", "Tyler, The Creator", "", "Featherlight", "Left",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("edvard  GRIEG", {"Edvard Grieg (1875)"}),
        ("Nirvana", {"Nirvana"}),  # an exact name before one with a note
        ("Nirvana (UK)", {"Nirvana (UK)"}),
        ("Simon", set()),
        ("simon & garfunkel", {"Simon & Garfunkel"}),
        ("AC/DC", {"AC/DC"}),
        ("AC", set()),
        ("A", {"A feat. B", "A (ft. C)"}),
        ("B", {"A feat. B"}),
        ("C", {"A (ft. C)"}),
        ("E", {"D; E"}),
        ("G", {"F / G"}),
        ("Bj\u00f6rk", {"Bjo\u0308rk"}),  # another Unicode form
        ("Tyler, The Creator", {"Tyler, The Creator"}),
        ("Tyler", set()),
        ("Feather", set()),
        ("", set()),
    ],
)
def test_fields_that_credit_an_artist(name: str, found: set[str]) -> None:
    assert crediting(name, FIELDS) == found


def test_similar_names_and_names_with_the_same_words() -> None:
    assert near_artists("Nirwana", FIELDS)[0] == "Nirvana"
    assert near_artists("Garfunkel", FIELDS) == ["Simon & Garfunkel"]


def test_a_line_is_all_tracks_of_the_artist(tmp_path: Path) -> None:
    catalog = Catalog.open(assets.CATALOG)
    selection = read_list(put(tmp_path / "list.txt", "artist: ludwig van beethoven\nid:ode_to_joy\n"), catalog=catalog)
    songs = [json.loads(line) for line in assets.CATALOG.read_text("utf-8").splitlines()]
    expected = [song["id"] for song in songs if song["artist"].startswith("Ludwig van Beethoven")]
    assert [track.id for track in selection.tracks] == expected
    assert {track.source for track in selection.tracks} == {"artist: ludwig van beethoven"}
    assert (
        "line 1: artist:ludwig van beethoven is 4 tracks, credited as 'Ludwig van Beethoven (1801)'"
        in selection.notes[0]
    )
    with pytest.raises(InputError, match="has artist 'Beethofen'") as refused:
        read_list(put(tmp_path / "list.txt", "artist:Beethofen\n"), catalog=catalog)
    assert "--allow-missing" in refused.value.hint
    with pytest.raises(InputError, match=r"'artist:B' needs a catalogue"):
        read_list(put(tmp_path / "list.txt", "artist:B\n"))


@pytest.mark.parametrize(
    ("field", "artists"),
    [
        ("Edvard Grieg (1875)", ("Edvard Grieg",)), ("A feat. B (live)", ("A", "B")), ("A (ft. C)", ("A", "C")),
        ("(x)", ("(x)",)), ("", ()), ("Simon & Garfunkel", ("Simon & Garfunkel",)),
    ],
)  # fmt: skip
def test_artists_of_a_field(field: str, artists: tuple[str, ...]) -> None:
    assert artists_of(field) == artists
