"""Every way in which a bundle can be other than it was made."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.evidence.forger import sealed, write
from tests.report.made_run import row

from encore.api import Result
from encore.errors import GateError, InputError, NotCheckedError, ToleranceError, UsageError
from encore.evidence.archive import write_archive
from encore.evidence.derived import derived
from encore.evidence.pack import pack
from encore.evidence.rerun import Rerun, agreement, check_rerun, compare
from encore.evidence.verify import RECORDS, check_complete, verify

Change = Callable[[dict[str, bytes]], Any]


def changed(bundle: Path, change: Change) -> Path:
    with zipfile.ZipFile(bundle) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    write_archive(bundle, members)
    return bundle


def test_a_bundle_as_it_was_made(made: Path, bundle: Path) -> None:
    found = verify(bundle, run=made)
    assert (found.signature, found.time, len(found.members)) == ("none", None, 12)
    checked = {name: member.checked for name, member in found.members.items()}
    assert checked["report.html"] == checked["bom.cdx.json"] == checked["model-card.md"] == "reproduced byte for byte"
    assert checked["request.json"] == checked["run.json"] == "reproduced from the run's folder, byte for byte"
    assert checked["metrics.json"] == checked["samples/index.json"] == "hash only"
    assert checked["manifest.json"] == "NOT CHECKED: no signature"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update({"metrics.json": m["metrics.json"].replace(b"4.5", b"4.6")}), ["metrics.json was changed"]),
        (lambda m: m.pop("model-card.md"), ["model-card.md is missing"]),
        (lambda m: m.update({"extra.txt": b"x"}), ["extra.txt was added"]),
        (
            lambda m: (m.pop("run.json"), m.update({"a": b"x", "model-card.md": b""})),
            ["a was added", "model-card.md was changed", "run.json is missing"],
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
        (b'{"schema": 2, "members": {"a": 1}, "model": {}}', "can't be read"),
        (b"[" * 100_000, "can't be read"),
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
        members["manifest.json"] = spelt(manifest)

    with pytest.raises(InputError, match=r"has no request\.json"):
        verify(changed(bundle, change))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("report.html", b"</h1>", b"</h1><p>Certified: all deleted.</p>"),
        ("model-card.md", b"## Figures", b"## Certified"),
        ("bom.cdx.json", b"Encore", b"A court"),
    ],
)
def test_case_C3_what_a_person_reads_is_made_again_from_the_records(
    bundle: Path, name: str, old: bytes, new: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forge(members: dict[str, bytes]) -> None:
        assert old in members[name]
        resealed(members, name, members[name].replace(old, new))

    with pytest.raises(InputError, match=f"{name} of .* is not what its records give"):
        verify(changed(bundle, forge))
    monkeypatch.setattr("encore.evidence.verify.made_with", lambda: {"encore": "9.9", "code_sha256": None})
    found = verify(bundle)  # another version may write another page: then it is not checked, and that is said
    assert found.members[name].checked == "NOT CHECKED: made by Encore 0.1.0"
    assert found.members["request.json"].checked == "hash only"
    with pytest.raises(NotCheckedError, match=f"{name} of .* could not be checked: made by Encore 0.1.0"):
        check_complete(found, bundle)


def test_case_C1_a_bundles_model_holds_no_code(made: Path) -> None:
    def forge(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
        manifest["model"] = {"model.safetensors": manifest["model"]["model.safetensors"], "modeling.py": entry}
        members["manifest.json"] = spelt(manifest)
        resealed(members, "model/modeling.py", b"x")

    with pytest.raises(InputError, match=r"modeling\.py is code"):
        verify(changed(pack(made, with_model=True), forge))


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("run.json", {"unlearned_sha256": "0" * 64}), ("run.json", {"seed": 99}), ("run.json", {"method": "npo"}),
        ("run.json", {"request_sha256": "0" * 64}), ("evaluation.json", {"metrics_sha256": "0" * 64}),
        ("evaluation.json", {"models": {"base": "0" * 64, "unlearned": "e" * 64}}),
    ],
)  # fmt: skip
def test_case_C6_records_that_do_not_belong_together(bundle: Path, member: str, change: dict[str, Any]) -> None:
    def forge(members: dict[str, bytes]) -> None:
        record = json.loads(members[member]) | change
        resealed(members, member, spelt(record))
        if member == "run.json" and "request_sha256" not in change:
            how = json.loads(members["evaluation.json"])
            how["run_sha256"] = hashlib.sha256(spelt(record)).hexdigest()
            resealed(members, "evaluation.json", spelt(how))

    with pytest.raises(InputError, match="the bundle contradicts itself"):
        verify(changed(bundle, forge))


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
        members["manifest.json"] = spelt(manifest)
        (made / "model-card.md").write_bytes(b"")
        hashes = {name: entry["sha256"] for name, entry in manifest["model"].items()}
        for name, content in derived({name: members[name] for name in RECORDS}, hashes).items():
            resealed(members, name, content)

    with pytest.raises(InputError) as caught:
        verify(changed(bundle, change), run=made)
    assert caught.value.hint == "model/../../secret is missing"


def test_nothing_to_measure_again(made: Path, bundle: Path) -> None:
    with pytest.raises(UsageError, match="no model to measure again"):
        verify(bundle, again=True)
    assert pack(made, with_model=True)


def states(bundled: list[Result], again: list[Result], *, alike: bool) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {one.metric: (one.state, one.what) for one in compare(bundled, again, alike=alike)}


MEASURED = [row("a", "base", "forget", 1.0, low=0.8, high=1.2, per_track={"one": 0.9, "two": 1.1})]


@pytest.mark.parametrize(
    ("forged", "what"),
    [
        ({"value": 7.0, "low": -1e9, "high": 1e9}, ("value", "low", "high")),  # no interval judges itself
        ({"value": 1.0, "low": -1e9, "high": 1e9}, ("low", "high")),
        ({"value": float("nan")}, ("value",)),
        ({"value": "1.0"}, ("value",)),
        ({"value": 1.3}, ("value",)),
        ({"low": 0.5}, ("low",)),
        ({"low": None, "high": None}, ("low", "high")),
        ({"n": 4}, ("n",)),
        ({"unit": "share"}, ("unit",)),
        ({"per_track": {"one": 0.5, "two": 1.1}}, ("track one",)),
        ({"per_track": {"one": 0.9}}, ("track two",)),
        ({"per_track": {"one": 0.9, "two": 1.1, "six": 0.0}}, ("track six",)),
        ({"per_track": {"one": 0.9, "two": None}}, ("track two",)),
    ],
)
@pytest.mark.parametrize("alike", [True, False])
def test_a_forged_row_differs(forged: dict[str, Any], what: tuple[str, ...], alike: bool) -> None:
    assert states([replace(MEASURED[0], **forged)], MEASURED, alike=alike) == {"a": ("differs", what)}


def test_on_the_same_machine_all_but_rounding_must_come_out_again() -> None:
    details = {"curve": [2.0, 1.0], "best": {"one": "greedy"}}
    again = [replace(MEASURED[0], details=details)]

    def state(**changes: Any) -> tuple[str, tuple[str, ...]]:
        return states([replace(again[0], **changes)], again, alike=True)["a"]

    assert state() == ("same", ())
    assert state(value=1.0 + 1e-6, details={**details, "curve": [2.0, 1.0 + 1e-6]}) == ("rounding", ())
    assert state(value=1.1) == ("differs", ("value",))
    assert state(per_track={"one": 0.9, "two": 1.1002}) == ("differs", ("track two",))
    assert state(details={**details, "curve": [3.0, 1.0]}) == ("differs", ("details",))
    assert state(details={**details, "best": {"one": "short"}}) == ("differs", ("details",))


def test_figures_against_figures() -> None:
    """Measured on another machine: what lies within the interval of today."""
    close = {"low": 0.5, "high": 1.5, "per_track": {"one": 1.0}}
    bundled = [
        row("a", "base", "forget", 1.0), row("b", "base", "forget", 1.0, **close), row("c", "base", "forget", 1.0),
        row("d", "base", "forget", 1.0), row("e", "base", "forget", 1.0), row("f", "base", "forget", None),
        row("g", "base", "forget", None), row("h", "base", "forget", 1.0),
    ]  # fmt: skip
    again = {
        "a": {"value": 1.0}, "b": {"value": 1.2, "low": 0.7, "high": 1.7, "per_track": {"one": 1.4}},
        "c": {"value": 1.6, "low": 1.1, "high": 2.1}, "d": {"value": 1.0 + 1e-6}, "e": {"value": 1.01},
        "f": {"value": None}, "g": {"value": 1.0}, "i": {"value": 2.0},
    }  # fmt: skip
    found = compare(bundled, [row(name, "base", "forget", **told) for name, told in again.items()], alike=False)
    assert {one.metric: one.state for one in found} == {
        "a": "same", "b": "chance", "c": "differs", "d": "rounding", "e": "differs", "f": "same", "g": "differs",
        "h": "missing", "i": "new",
    }  # fmt: skip
    with pytest.raises(GateError, match=r"5 of 9 figures are not reproduced: c \(base, forget\)"):
        check_rerun(Rerun(found, {}, False), "chance")


def test_case_C4_the_verifier_chooses_how_close_figures_must_come(made: Path) -> None:
    """2 identical, 1 within rounding, 1 within the interval: each tolerance accepts what it says, and no more."""
    close = {"low": 0.5, "high": 1.5}
    bundled = [row(name, "base", "forget", 1.0, **close) for name in "abcd"]
    again = [
        row(name, "base", "forget", value, **close) for name, value in zip("abcd", (1, 1, 1 + 1e-6, 1.2), strict=True)
    ]
    found = Rerun(compare(bundled, again, alike=False), {}, False, "A Xeon")
    assert agreement(found) == "2 identical, 1 within rounding, 1 only within their intervals"
    check_rerun(found, "chance")
    with pytest.raises(
        ToleranceError, match=r"2 identical, 1 within .* 1 only within their intervals: d \(base, forget\)"
    ) as no:
        check_rerun(found, "machine")
    assert no.value.exit_code == 5
    assert "'A Xeon'" in no.value.hint
    with pytest.raises(ToleranceError, match=r"c \(base, forget\), d"):
        check_rerun(found, "exact")
    check_rerun(Rerun(found.rows[:3], {}, False))
    forged = compare(bundled, again, alike=True)  # "it was this machine": chance is then no excuse
    assert [one.state for one in forged] == ["same", "same", "rounding", "differs"]


def test_case_C8_what_could_not_be_measured_is_no_mismatch() -> None:
    bundled = [row("a", "base", "forget", 1.0), row("b", "base", "retain", 1.0), row("c", "base", "forget", 1.0)]
    again = [row("a", "base", "forget", 1.0), row("b", "unlearned", "retain", None, why="there are no retain tracks")]
    again += [row("c", "base", "forget", None, why="no gold model was given")]
    found = compare(bundled, again, alike=False, absent=True)
    assert [one.state for one in found] == ["same", "unmeasured", "unmeasured"]
    rerun = Rerun(found, {"retain": "retain tracks not found: x"}, False)
    with pytest.raises(NotCheckedError, match=r"2 of 3 figures could not be measured \(retain tracks not found") as no:
        check_rerun(rerun)
    assert no.value.exit_code == 6
    lie = compare([row("a", "base", "forget", 2.0)], again, alike=False, absent=True)
    with pytest.raises(GateError, match="are not reproduced"):  # what is at hand is still compared
        check_rerun(Rerun(lie, rerun.absent, False))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (b"[]", "evaluation.json of .* can't be read"), (b"{", "evaluation.json of .* can't be read"),
        (b"\xff", "evaluation.json of .* can't be read"), (b"{}\n", "golds and seed and embedder"),
        (None, "has no evaluation.json"), (b'{"seed": -5}\n', "can't be read"),
    ],
)  # fmt: skip
def test_settings_that_can_not_be_read(made: Path, how: bytes | None, words: str) -> None:
    if how is None:
        bundle = changed(pack(made, with_model=True), lambda members: dropped(members, "evaluation.json"))
    else:
        bundle = changed(pack(made, with_model=True), lambda members: resealed(members, "evaluation.json", how))
    with pytest.raises(InputError, match=words):
        verify(bundle, again=True)


def test_no_gold_takes_the_place_of_the_runs_own_model(made: Path) -> None:
    how = json.loads((made / "evaluation.json").read_text()) | {"golds": {"unlearned": "tiny-gold"}}
    bundle = changed(pack(made, with_model=True), lambda members: resealed(members, "evaluation.json", spelt(how)))
    with pytest.raises(InputError, match="names a gold for unlearned"):
        verify(bundle, again=True)


def dropped(members: dict[str, bytes], name: str) -> None:
    """Take a member out, and out of the manifest."""
    manifest = json.loads(members["manifest.json"])
    del manifest["members"][name], members[name]
    members["manifest.json"] = spelt(manifest)


def resealed(members: dict[str, bytes], name: str, content: bytes) -> None:
    """Change a member, and the manifest with it."""
    manifest = json.loads(members["manifest.json"])
    manifest["members"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    members |= {name: content, "manifest.json": spelt(manifest)}


def spelt(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def test_a_caption_that_is_shown_and_another_that_is_measured_contradict_each_other(bundle: Path) -> None:
    """A track's `caption` stands in the report, and its `captions` are what the model is measured with."""
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    request = json.loads(members["request.json"])
    first = request["forget"][0]
    first |= {"captions": [first["caption"]]}
    write(sealed({**members, "request.json": spelt(request)}), bundle)
    verify(bundle)
    first["caption"] = "another caption"
    write(sealed({**members, "request.json": spelt(request)}), bundle)
    with pytest.raises(InputError, match="on the caption of its tracks"):
        verify(bundle)
