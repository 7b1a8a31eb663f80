from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encore.data.catalog import Catalog
from encore.data.manifest import text_records
from encore.data.open_files import file_sha256
from encore.data.track_list import read_list
from encore.errors import InputError

Write = Callable[..., Path]


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def catalog(tmp_path: Path, write: Write) -> Catalog:
    rows = []
    for seed, name in enumerate(("greensleeves", "ode_to_joy", "cancan")):
        path = write(f"music/{name}.wav", seed)
        rows.append(
            {
                "file_name": path.name,
                "id": name,
                "title": name.title(),
                "artist": "Anon",
                "caption": f"a tune, {name}",
                "split": "forget" if seed == 0 else "retain",
                "isrc": "GB-AYE-67-0000" + str(seed),
                "sha256": file_sha256(path),
                "genre": "folk",
            }
        )
    put(tmp_path / "music" / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return Catalog.open(tmp_path / "music")


def test_a_list_of_paths_and_captions(tmp_path: Path, write: Write) -> None:
    first, second = write("a.wav", 1), write("sub/b.flac", 2)
    listed = put(tmp_path / "list.txt", "\ufeff# tracks\r\n\r\na.wav\tsolo flute\r\n  sub/b.flac\tdrums  and bass\r\n")
    selection = read_list(listed)
    a, b = selection.tracks
    assert (a.path, a.id, a.caption, a.line, a.source) == (first, "a.wav", "solo flute", 3, "a.wav\tsolo flute")
    assert (b.path, b.id, b.caption, b.line) == (second, "sub/b.flac", "drums and bass", 4)
    assert a.sha256 == file_sha256(first)
    assert selection.missing == selection.notes == ()


def test_ids_of_all_kinds_resolve_through_the_catalogue(tmp_path: Path, catalog: Catalog) -> None:
    digest = catalog.records[2].sha256
    listed = put(tmp_path / "list.txt", f"id:greensleeves\nisrc:gbaye6700001\nsha256:{digest.upper()}\n")
    tracks = read_list(listed, catalog=catalog).tracks
    assert [track.id for track in tracks] == ["greensleeves", "ode_to_joy", "cancan"]
    assert tracks[0].caption == "a tune, greensleeves"
    assert tracks[0].isrc == "GBAYE6700000"
    assert tracks[0].meta == {"split": "forget", "genre": "folk"}


def test_the_catalogue_knows_a_file_by_path_and_by_content(tmp_path: Path, catalog: Catalog) -> None:
    copy = tmp_path / "copy.wav"
    copy.write_bytes((tmp_path / "music" / "cancan.wav").read_bytes())
    listed = put(tmp_path / "list.txt", "music/ode_to_joy.wav\tmy caption\ncopy.wav\ngreensleeves.wav\n")
    tracks = read_list(listed, catalog=catalog).tracks
    assert [track.id for track in tracks] == ["ode_to_joy", "cancan", "greensleeves"]
    assert tracks[0].caption == "my caption"
    assert tracks[1].path == copy


def test_standard_input_is_relative_to_the_working_folder(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.wav")
    monkeypatch.chdir(tmp_path)
    selection = read_list("-", stdin=io.BytesIO(b"a.wav\tx\n"))
    assert selection.tracks[0].path == tmp_path / "a.wav"
    with pytest.raises(InputError, match=r"standard input, line 2: no file 'c\.wav'"):
        read_list("-", stdin=io.BytesIO(b"a.wav\tx\nc.wav\n"))


def test_m3u8_takes_its_captions_from_extinf_last(tmp_path: Path, write: Write) -> None:
    write("a.wav", 1)
    write("b.wav", 2)
    put(tmp_path / "b.txt", "from the side-car")
    text = "#EXTM3U\n#EXTINF:12,Anon - First\na.wav\n#EXTINF:9,Anon - Second\nb.wav\n"
    tracks = read_list(put(tmp_path / "list.m3u8", text)).tracks
    assert [track.caption for track in tracks] == ["Anon - First", "from the side-car"]


def test_m3u8_reads_file_addresses(tmp_path: Path, write: Write) -> None:
    path = write("a b.wav")
    tracks = read_list(put(tmp_path / "list.m3u8", f"#EXTINF:1,x\n{path.as_uri()}\n")).tracks
    assert tracks[0].path == path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_quoted_newline_keeps_count_of_lines(tmp_path: Path, write: Write, delimiter: str) -> None:
    write("a.wav", 1)
    write("b.wav", 2)
    rows = [["File", "Text", "mood"], ["a.wav", '"two\nlines"', "sad"], ["", "", ""], ["b.wav", "one", "gay"]]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    tracks = read_list(put(tmp_path / "list.csv", text)).tracks
    assert [(track.line, track.caption) for track in tracks] == [(2, "two lines"), (5, "one")]
    assert tracks[0].meta["mood"] == "sad"


def test_jsonl_list_of_paths_and_ids(tmp_path: Path, write: Write, catalog: Catalog) -> None:
    write("a.wav", 7)
    text = '{"audio": {"path": "a.wav"}, "description": "x"}\n\n{"id": "cancan"}\n'
    tracks = read_list(put(tmp_path / "list.jsonl", text), catalog=catalog).tracks
    assert [(track.line, track.id) for track in tracks] == [(1, "a.wav"), (3, "cancan")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.txt", "\tno track", "l.txt, line 1: a caption without a track"),
        ("l.txt", "# ok\nid:\n", "line 2: 'id:' has no value"),
        ("l.txt", "https://example.org/a.mp3\n", "line 1: .* is an address"),
        ("l.txt", "file:\n", "line 1: 'file:' names no file"),
        ("l.txt", "# nothing\n\n", "names no track"),
        ("l.txt", "id:x\n", "line 1: 'id:x' needs a catalogue"),
        ("l.csv", "name,mood\nx,y\n", "line 1: the header names no column"),
        ("l.csv", 'file,text\n"a.wav,x\n', "line 2: not CSV"),
        ("l.csv", "file,text\na.wav,x,y\n", "line 2: 3 cells under 2 columns"),
        ("l.csv", "file,text\n,y\n", "line 2: names no file and no id"),
        ("l.jsonl", "{}\n", "line 1: names no file"),
        ("l.jsonl", '{"id": 4.5}\n', "line 1: names no file"),
        ("l.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("l.jsonl", '{"path": "a.wav"\n', "line 1: not JSON"),
        ("l.jsonl", "[" * 60_000 + "\n", "line 1: not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_list(put(tmp_path / name, text))


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("l.txt", "a.wav  solo flute", "'a.wav' is a file: a caption follows it after a TAB"),
        ("l.txt", "sub/b c.wav solo flute", "'sub/b c.wav' is a file: a caption follows it after a TAB"),
        ("l.txt", "a.wav,flute", "a caption follows it after a TAB, and a table is a .csv file with a header"),
        ("l.txt", "*.wav", "wildcards are not expanded: write one path per line"),
        ("l.csv", "path\nid:a", "write the id into a column id"),
        ("l.csv", "path\nartist:a", "write one with artist:NAME"),
        ("l.csv", "artist\nAnon", "all tracks of an artist: a list of plain text with artist:NAME"),
    ],
)
def test_a_path_that_holds_more_than_a_path(tmp_path: Path, write: Write, name: str, text: str, hint: str) -> None:
    write("a.wav", 1), write("sub/b c.wav", 2)
    with pytest.raises(InputError) as caught:
        read_list(put(tmp_path / name, text + "\n"))
    assert hint in caught.value.hint
    assert "did you mean" not in caught.value.hint


def test_a_number_is_an_id_also_where_it_is_written_with_a_point(tmp_path: Path, write: Write) -> None:
    """pandas writes numbers of a column with gaps so."""
    write("a.wav", 1)
    put(tmp_path / "catalog.jsonl", '{"path": "a.wav", "id": 4, "caption": "flute"}\n')
    listed = put(tmp_path / "l.jsonl", '{"id": 4.0}\n')
    assert [t.id for t in read_list(listed, catalog=Catalog.open(tmp_path / "catalog.jsonl")).tracks] == ["4"]


def test_an_unmatched_line_is_named_with_near_names(tmp_path: Path, catalog: Catalog, write: Write) -> None:
    write("greensleeves_live.wav")
    with pytest.raises(InputError, match=r"list.txt, line 1: no track of .* has id 'greensleves'") as caught:
        read_list(put(tmp_path / "list.txt", "id:greensleves\nid:zzz\n"), catalog=catalog)
    assert "list.txt, line 2: no track of" in caught.value.message
    assert caught.value.message.startswith("2 tracks can't be used: ")
    assert "did you mean 'greensleeves'?" in caught.value.hint
    with pytest.raises(InputError, match=r"line 2: no file 'greensleeves_liv\.wav'") as caught:
        read_list(put(tmp_path / "list.txt", "#\ngreensleeves_liv.wav\n"), catalog=catalog)
    assert "'greensleeves_live.wav'" in caught.value.hint
    with pytest.raises(InputError) as caught:
        read_list(put(tmp_path / "list.txt", "cancan\n"), catalog=catalog)
    assert "'id:cancan'" in caught.value.hint


def test_allow_missing_goes_on_and_says_what_is_missing(tmp_path: Path, catalog: Catalog) -> None:
    listed = put(tmp_path / "list.txt", "id:cancan\nnone.wav\nid:zzz\n")
    selection = read_list(listed, catalog=catalog, allow_missing=True)
    assert [track.id for track in selection.tracks] == ["cancan"]
    assert [(item.line, item.source) for item in selection.missing] == [(2, "none.wav"), (3, "id:zzz")]
    with pytest.raises(InputError, match="none of its 1 lines"):
        read_list(put(tmp_path / "list.txt", "none.wav\n"), allow_missing=True)


def test_a_track_named_twice_is_taken_once(tmp_path: Path, catalog: Catalog) -> None:
    selection = read_list(put(tmp_path / "list.txt", "id:cancan\n./music/../music/cancan.wav\n"), catalog=catalog)
    assert len(selection.tracks) == 1
    assert "line 2 is the track of line 1: used once" in selection.notes[0]


def test_two_files_of_one_id_get_ids_of_their_own(tmp_path: Path, write: Write) -> None:
    write("here/a.wav", 1)
    write("there/a.wav", 2)
    listed = put(tmp_path / "here" / "list.txt", "a.wav\tx\n../there/a.wav\ty\n")
    first, second = read_list(listed, roots=[tmp_path / "there"]).tracks
    assert first.id == "a.wav"
    assert second.id == f"a.wav~{second.sha256[:8]}"


def test_a_file_that_is_not_the_catalogues_any_more_is_refused(tmp_path: Path, catalog: Catalog, write: Write) -> None:
    write("music/cancan.wav", 99)
    with pytest.raises(InputError, match=r"metadata.jsonl, line 3: .* its SHA-256 differs"):
        read_list(put(tmp_path / "list.txt", "id:cancan\n"), catalog=catalog)


def test_no_caption_anywhere_is_an_error_that_says_where_to_write_one(tmp_path: Path, write: Write) -> None:
    write("a.wav")
    with pytest.raises(InputError, match=r"list.txt, line 1: 'a.wav' has no caption") as caught:
        read_list(put(tmp_path / "list.txt", "a.wav\n"))
    assert "a.txt" in caught.value.hint


names = st.text(st.characters(exclude_characters="/\t\n\r\0:", exclude_categories=("Cs",)), min_size=1, max_size=30)


@given(rows=st.lists(st.tuples(names, names), max_size=8), end=st.sampled_from(["\n", "\r\n"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_into_a_list_is_read_from_it(rows: list[tuple[str, str]], end: str) -> None:
    from encore.data.open_files import LIST_CAPS, read_lines
    from encore.text import clean_caption

    written = "".join(f"./{path}\t{caption}{end}" for path, caption in rows)
    lines = read_lines(io.BytesIO(written.encode()), "list", LIST_CAPS)
    read = [(record.line, record.path, record.caption) for record in text_records(lines, "list")]
    assert read == [
        (number, f"./{path}".rstrip(" "), clean_caption(caption)) for number, (path, caption) in enumerate(rows, 1)
    ]


HOSTILE = st.lists(
    st.sampled_from(
        [b'"', b"..", b"/", b"\n", b"\r", b"\0", b"\xed\xa0\x80", b"[", b"{", b"file://[", b"\xff", b"file,text"]
    )
    | st.sampled_from(
        [b"id:", b"sha256:", b"\t", b",", b'{"path": ', b'"a.wav"', b"}", b"a.wav", b"#EXTINF:", b"\\u0000"]
    )
    | st.binary(max_size=4),
    max_size=12,
).map(b"".join)


@given(data=HOSTILE, name=st.sampled_from(["l.txt", "l.csv", "l.tsv", "l.jsonl", "l.m3u8"]), allow=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_list_or_an_error_of_ours(tmp_path: Path, data: bytes, name: str, allow: bool) -> None:
    (tmp_path / name).write_bytes(data)
    with contextlib.suppress(InputError):
        assert read_list(tmp_path / name, allow_missing=allow).tracks == ()  # there is nothing there to be found


def test_a_column_that_is_there_twice_in_json_is_refused(tmp_path: Path, write: Write) -> None:
    write("a.wav", 1)
    write("b.wav", 2)
    row = '{"path": "a.wav", "caption": "x", "Path": "%s"}\n'
    assert [track.path.name for track in read_list(put(tmp_path / "l.jsonl", row % "a.wav")).tracks] == ["a.wav"]
    with pytest.raises(InputError, match="line 1: 'path' and 'Path' are the same column"):
        read_list(put(tmp_path / "l.jsonl", row % "b.wav"))


def test_a_name_is_not_suggested_for_itself(tmp_path: Path) -> None:
    (tmp_path / "one.wav").symlink_to("two.wav")
    (tmp_path / "two.wav").symlink_to("one.wav")
    with pytest.raises(InputError, match=r"no file 'one.wav'") as refused:
        read_list(put(tmp_path / "l.txt", "one.wav\tx\n"))
    assert "'one.wav'" not in refused.value.hint


@pytest.mark.parametrize("kinds", ["id,isrc", "id,sha256", "isrc,sha256", "path,id", "path,isrc", "path,sha256"])
def test_a_row_that_names_two_tracks_is_refused(tmp_path: Path, catalog: Catalog, kinds: str) -> None:
    """One of the two would silently not be forgotten."""
    columns = [
        {"path": f"music/{record.path}", "id": record.id, "isrc": record.isrc, "sha256": record.sha256}
        for record in catalog.records
    ]
    first, second = kinds.split(",")
    one, other = columns[0], columns[1]
    listed = put(tmp_path / "list.csv", f"{kinds}\n{one[first]},{one[second]}\n")
    assert [track.id for track in read_list(listed, catalog=catalog).tracks] == ["greensleeves"]
    put(listed, f"{kinds}\n{one[first]},{one[second]}\n{one[first]},{other[second]}\n")
    with pytest.raises(InputError, match=r"line 3: .* are not the same track") as failure:
        read_list(listed, catalog=catalog)
    assert one[first] in failure.value.message or one[second] in failure.value.message
    assert other[second] in failure.value.message


def test_two_columns_of_one_kind_name_one_track(tmp_path: Path, catalog: Catalog) -> None:
    listed = put(tmp_path / "list.csv", "file_name,path,location\nmusic/cancan.wav,/mnt/x/cancan.wav,Paris\n")
    assert [track.id for track in read_list(listed, catalog=catalog).tracks] == ["cancan"]
    put(listed, "file_name,path\nmusic/cancan.wav,music/greensleeves.wav\n")
    with pytest.raises(InputError, match=r"path 'music/cancan.wav' and path 'music/greensleeves.wav' are not the same"):
        read_list(listed, catalog=catalog)
    put(listed, "id,track_id\ncancan,4711\n")
    assert [track.id for track in read_list(listed, catalog=catalog).tracks] == ["cancan"]
    put(listed, "id,track_id\ncancan,greensleeves\n")
    with pytest.raises(InputError, match="id 'cancan' and id 'greensleeves' are not the same track"):
        read_list(listed, catalog=catalog)


def test_keys_that_the_catalogue_lacks_are_compared_with_those_it_has(tmp_path: Path, write: Write) -> None:
    write("music/a.wav", 1), write("music/b.wav", 2)
    put(tmp_path / "music" / "metadata.csv", "path,id,caption\na.wav,,first\nb.wav,b,second\n")
    catalog = Catalog.open(tmp_path / "music")
    listed = put(tmp_path / "list.csv", "path,id,isrc\nmusic/a.wav,17,GBAYE6700000\nmusic/b.wav,b,GBAYE6700001\n")
    assert [track.caption for track in read_list(listed, catalog=catalog).tracks] == ["first", "second"]
    put(listed, "path,id\nmusic/b.wav,17\n")
    with pytest.raises(InputError, match=r"path 'music/b.wav' and id '17' are not the same track"):
        read_list(listed, catalog=catalog)


@pytest.mark.parametrize("line", ['{"id": "cancan", "id": "greensleeves"}', '{"audio": {"path": "a", "path": "b"}}'])
def test_a_key_that_is_there_twice_in_one_object_is_refused(tmp_path: Path, catalog: Catalog, line: str) -> None:
    listed = put(tmp_path / "list.jsonl", line + "\n")
    with pytest.raises(InputError, match=r"line 1: the key '(id|path)' is there twice"):
        read_list(listed, catalog=catalog)
