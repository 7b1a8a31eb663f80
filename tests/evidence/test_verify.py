"""Every way in which a bundle can be other than it was made."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.made_run import row

from encore.errors import GateError, InputError, UsageError
from encore.evidence.archive import write_archive
from encore.evidence.pack import pack
from encore.evidence.rerun import compare
from encore.evidence.verify import refuse_mismatch, verify

Change = Callable[[dict[str, bytes]], Any]


def changed(bundle: Path, change: Change) -> Path:
    with zipfile.ZipFile(bundle) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    write_archive(bundle, members)
    return bundle


def test_a_bundle_as_it_was_made(made: Path, bundle: Path) -> None:
    found = verify(bundle, run=made)
    assert (found.signed, found.checked, len(found.members)) == (False, False, 10)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update({"metrics.json": m["metrics.json"].replace(b"4.5", b"4.6")}), ["metrics.json was changed"]),
        (lambda m: m.pop("log.jsonl"), ["log.jsonl is missing"]),
        (lambda m: m.update({"extra.txt": b"x"}), ["extra.txt was added"]),
        (
            lambda m: (m.pop("run.json"), m.update({"a": b"x", "log.jsonl": b""})),
            ["a was added", "log.jsonl was changed", "run.json is missing"],
        ),
    ],
)
def test_every_difference_is_named(bundle: Path, change: Change, named: list[str]) -> None:
    with pytest.raises(InputError, match="is not as it was made") as caught:
        verify(changed(bundle, change))
    assert caught.value.hint.split("\n") == named


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "has no manifest.json"), (b"{", "can't be read"), (b"[]", "can't be read"),
        (b'{"schema": 9}', "schema 9"),
        (b'{"schema": 1, "members": {"a": 1}, "model": {}}', "can't be read"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(bundle: Path, manifest: bytes | None, words: str) -> None:
    def change(members: dict[str, bytes]) -> None:
        del members["manifest.json"]
        if manifest is not None:
            members["manifest.json"] = manifest

    with pytest.raises(InputError, match=words):
        verify(changed(bundle, change))


def test_records_that_were_left_out_of_manifest_and_archive(bundle: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        del members["request.json"]
        manifest = json.loads(members["manifest.json"])
        del manifest["members"]["request.json"]
        members["manifest.json"] = json.dumps(manifest).encode()

    with pytest.raises(InputError, match=r"has no request\.json"):
        verify(changed(bundle, change))


def test_another_run(made: Path, bundle: Path) -> None:
    (made / "model/model.safetensors").write_bytes(b"weighty")
    (made / "run.json").unlink()
    with pytest.raises(InputError, match="is not the run of this bundle") as caught:
        verify(bundle, run=made)
    told = caught.value.hint.split("\n")
    assert told == ["run.json is missing", "model/model.safetensors is not the one that was bundled"]


def test_a_manifest_that_leads_out_of_the_run(made: Path, bundle: Path) -> None:
    (made.parent / "secret").write_bytes(b"secret")

    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["model"]["../../secret"] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
        members["manifest.json"] = json.dumps(manifest).encode()

    with pytest.raises(InputError) as caught:
        verify(changed(bundle, change), run=made)
    assert caught.value.hint == "model/../../secret is missing"


def test_nothing_to_measure_again(made: Path, bundle: Path) -> None:
    with pytest.raises(UsageError, match="no model to measure again"):
        verify(bundle, again=True)
    assert pack(made, with_model=True)


def test_figures_against_figures() -> None:
    bundled = [
        row("a", "base", "forget", 1.0), row("b", "base", "forget", 1.0, low=0.5, high=1.5),
        row("c", "base", "forget", 1.0, low=0.5, high=1.5), row("d", "base", "forget", 1.0),
        row("e", "base", "forget", 1.0), row("f", "base", "forget", None), row("g", "base", "forget", None),
        row("h", "base", "forget", 1.0),
    ]  # fmt: skip
    values = {"a": 1.0, "b": 1.4, "c": 1.6, "d": 1.0 + 1e-6, "e": 1.01, "f": None, "g": 1.0, "i": 2.0}
    found = compare(bundled, [row(name, "base", "forget", value) for name, value in values.items()])
    assert {one.metric: one.state for one in found} == {
        "a": "same", "b": "within", "c": "differs", "d": "rounding", "e": "differs", "f": "same", "g": "differs",
        "h": "missing", "i": "new",
    }  # fmt: skip
    refuse_mismatch([one for one in found if one.metric in "abdf"])
    with pytest.raises(GateError, match=r"5 of 9 figures do not come out again: c \(base, forget\)"):
        refuse_mismatch(found)
