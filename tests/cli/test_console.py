"""What reaches the terminal: escaped, on the right stream, and never taken for markup."""

import json
import math

import pytest

from encore.cli import console
from encore.errors import GateError, InputError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Für Elise ♫ 音楽", "Für Elise ♫ 音楽"),
        ("\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROPHONE}", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROPHONE}"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nerror: forged\r", "a\\nerror: forged\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("evil\N{RIGHT-TO-LEFT OVERRIDE}gpj.wav", "evil\\u202egpj.wav"),
        ("line\N{LINE SEPARATOR}two", "line\\u2028two"),
        (b"caf\xe9.wav".decode("utf-8", "surrogateescape"), "caf\\xe9.wav"),
        ("[/] [bold]x[/bold]", "[/] [bold]x[/bold]"),
    ],
)
def test_escape(text, shown, capsys):
    console.data(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_data_goes_to_stdout_and_the_rest_to_stderr(capsys):
    console.data("[bold]title[/]")
    console.note("working")
    console.warn("odd", "look")
    assert capsys.readouterr() == ("[bold]title[/]\n", "working\nwarning: odd\nhint: look\n")


def test_table_keeps_markup_and_is_not_cut_in_a_pipe(capsys):
    console.table(["title", "n"], [["[/][red]x" + "y" * 300, 1], ["\x1b]0;evil\x07", None]], right=["n"])
    out, err = capsys.readouterr()
    assert "[/][red]x" + "y" * 300 in out
    assert "\\x1b]0;evil\\x07" in out
    assert "\x1b" not in out
    assert err == ""


@pytest.mark.parametrize("rows", [[], [["音楽", 1.5, None], ["b", 12, "yes"]]])
def test_a_table_in_a_pipe_looks_as_on_a_wide_terminal(rows, capsys, monkeypatch):
    """The table without rich against rich's."""
    headers, right = ["title", "n", "available"], ["n"]
    console.table(headers, rows, right=right)
    piped = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("TERM", "dumb")  # no bold heads
    console.table(headers, rows, right=right)
    assert capsys.readouterr().out == piped
    assert len(piped.splitlines()) == 2 + len(rows)


def test_json_has_no_nan_and_keeps_odd_names(capsysbinary):
    console.data_json({"value": math.nan, "rows": [math.inf, 1.5], "name": "caf\udce9", "title": "♫"})
    out = capsysbinary.readouterr().out
    assert json.loads(out) == {"value": None, "rows": [None, 1.5], "name": "caf\udce9", "title": "♫"}
    assert "♫".encode() in out


def test_fail_tells_an_error_of_ours(capsys):
    assert console.fail(InputError("no track\x07", "one\ntwo")) == 3
    assert console.fail(GateError("utility fell")) == 4
    expected = "error: no track\\x07\nhint: one\n      two\nerror: utility fell\n"
    assert capsys.readouterr() == ("", expected)


def test_fail_tells_an_error_nobody_expected(capsys):
    assert console.fail(ValueError("first\nsecond")) == 1
    assert console.fail(KeyError()) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ValueError: first second\nhint: this was not expected; ENCORE_DEBUG=1 shows")
    assert "error: KeyError\n" in err


def test_debugging_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("ENCORE_DEBUG", "1")
    try:
        raise InputError("no track")
    except InputError as error:
        console.fail(error)
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: no track\n")
