"""`encore verify`: checks a bundle, member by member."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from encore.errors import InputError, MissingExtraError, NotCheckedError, UsageError
from encore.evidence import signing, timestamp
from encore.evidence.archive import HINT, Archive, opened
from encore.evidence.code import check_code
from encore.evidence.derived import DERIVED, derived
from encore.evidence.manifest import NAME, SIGNATURE, TIMESTAMP, differences, made_with, read_manifest, run_differences
from encore.evidence.pack import IN_SELF, SAMPLES, SELF
from encore.evidence.redaction import REQUEST, RUN, canonical, sha256, tie_name
from encore.evidence.rerun import Rerun, check_rerun, check_settings, rerun
from encore.store.evaluation_json import NAME as EVALUATION
from encore.store.metrics_json import NAME as METRICS
from encore.store.metrics_json import read_metrics

RECORDS = (REQUEST, RUN, METRICS, EVALUATION)
ALONE = (*RECORDS, *DERIVED, NAME, SIGNATURE, TIMESTAMP)
SAME = ("model", "method", "seed", "precision")  # equal in `run.json` and `request.json`

HASH = "hash only"
UNCHECKED = "NOT CHECKED"
AGAIN = "reproduced byte for byte"
AS_RUN = "reproduced from the run's folder, byte for byte"
MEASURED = "measured again"

Signature = Literal["none", "not checked", "checked"]


@dataclass(frozen=True)
class Member:
    """A member of a bundle, and how it was checked.

    Args:
        size: size in bytes.
        checked: "hash only" (as packed by its maker), "reproduced …" (from other members or the run's folder),
            "measured again", or "NOT CHECKED" with the reason.
    """

    size: int
    checked: str


@dataclass(frozen=True)
class Verified:
    """The result of a check without contradictions.

    Args:
        members: members by name.
        signature: whether there is one, and whether it was checked with a key.
        time: time of the timestamp; None if there is none.
        time_checked: whether the timestamp was checked with the authority's certificate.
        rerun: result of measuring again, if requested.
    """

    members: Mapping[str, Member]
    signature: Signature
    time: datetime | None = None
    time_checked: bool = False
    rerun: Rerun | None = None


def verify(
    bundle: Path,
    *,
    key: Path | None = None,
    tsa_certificate: Path | None = None,
    run: Path | None = None,
    again: bool = False,
    roots: Sequence[Path] = (),
    catalogs: Sequence[Path] = (),
    device: str = "auto",
    offline: bool = False,
    reporter: Any = None,
) -> Verified:
    """Check hashes, signature, timestamp, the consistency of members, and on request the values.

    Args:
        key: PEM file of the author's public key.
        tsa_certificate: PEM file of the time-stamping authority's root certificate.
        run: the run's folder, to compare request, record and model with.
        again: measure again, with the model in the bundle or in that folder.
        roots: folders that are searched for tracks and models, by hash.
        catalogs: catalogues or lists with the captions of tracks that the bundle has only hashes of.

    Raises:
        InputError: the bundle is inconsistent, or the run's folder differs from it; names every difference.
        UsageError: there is no model to measure again, or a key or certificate can't be read.
        NotCheckedError: nothing could be measured again.
        MissingExtraError: signature or timestamp can't be checked without the extra `signing`.
    """
    with opened(bundle) as archive:
        signature = _check_signature(archive, key)
        manifest = read_manifest(archive)
        _refuse(f"{bundle} is not as it was made", differences(archive, manifest))
        _check_names(archive, manifest)
        time = _check_time(archive, tsa_certificate)
        records = _records(archive)
        _check_records(records, manifest)
        checked = dict.fromkeys(archive.names, HASH)
        checked |= {k: v for k, v in _about(signature, tsa_certificate is not None).items() if k in checked}
        checked |= _check_derived(archive, records, manifest)
        if run is not None:
            _refuse(f"{run} is not the run of this bundle", run_differences(run, manifest))
            checked |= dict.fromkeys((REQUEST, RUN), AS_RUN)
        measured: Rerun | None = None
        if again:
            with _folder(archive, records, run) as folder:
                how, bundled = json.loads(records[EVALUATION]), read_metrics(folder / METRICS)
                measured = rerun(
                    folder, how, bundled, run=run, catalog_is_in=manifest["includes"]["catalog"], roots=roots,
                    catalogs=catalogs, device=device, offline=offline, reporter=reporter,
                )  # fmt: skip
            checked |= _measured(measured, archive.names, run)
        members = {name: Member(archive.size(name), checked[name]) for name in archive.names}
    return Verified(members, signature, time, tsa_certificate is not None, measured)


def check_complete(result: Verified, bundle: Path) -> None:
    """Refuse a bundle whose report, card or bill of materials could not be checked.

    Raises:
        NotCheckedError: names the members.
    """
    names = [name for name in DERIVED if name in result.members and result.members[name].checked.startswith(UNCHECKED)]
    if names:
        why = result.members[names[0]].checked.removeprefix(UNCHECKED).lstrip(": ")
        raise NotCheckedError(
            f"{' and '.join(names)} of {bundle} could not be checked: {why}",
            "check it with the Encore that made it; until then trust the other members alone",
        )


def _refuse(what: str, items: Sequence[object]) -> None:
    if items:
        count = f"{len(items)} files differ" if len(items) > 1 else "1 file differs"
        raise InputError(f"{what}: {count}", "\n".join(map(str, items)))


# ---------------------------------------------------------------------------------------------- signature and time


def _check_signature(archive: Archive, key: Path | None) -> Signature:
    if SIGNATURE not in archive.names:
        if key is not None:
            raise InputError(f"{archive.path} is not signed, so {key} says nothing of it", HINT)
        return "none"
    content = archive.read(SIGNATURE)
    if key is None:
        signing.check_readable(content)
        return "not checked"
    signing.check(archive.read(NAME), content, key)
    return "checked"


def _check_time(archive: Archive, certificate: Path | None) -> datetime | None:
    if TIMESTAMP not in archive.names:
        if certificate is not None:
            raise InputError(f"{archive.path} carries no timestamp, so {certificate} says nothing of it", HINT)
        return None
    token = archive.read(TIMESTAMP)
    if certificate is not None:
        return timestamp.check(archive.read(NAME), token, certificate)
    try:
        return timestamp.claimed(token)
    except MissingExtraError:
        return None


def _about(signature: Signature, time_checked: bool) -> dict[str, str]:
    """The checks of manifest, signature and timestamp."""
    signed = {"none": f"{UNCHECKED}: no signature", "not checked": f"{UNCHECKED}: its signature was not checked"}
    return {
        NAME: signed.get(signature, "its signature is by this key"),
        SIGNATURE: "by this key" if signature == "checked" else f"{UNCHECKED}: no --key",
        TIMESTAMP: "by this authority" if time_checked else f"{UNCHECKED}: no --tsa-certificate",
    }


# --------------------------------------------------------------------------------------------------- what is in it


def _check_names(archive: Archive, manifest: Mapping[str, Any]) -> None:
    """Check that a bundle has only members of `encore bundle`, and that its model is the manifest's."""
    names = archive.names
    if absent := [name for name in (*RECORDS, *DERIVED) if name not in names]:
        raise InputError(f"{archive.path} has no {' and no '.join(absent)}: it is not an evidence bundle", HINT)
    if foreign := [name for name in names if not _known(name)]:
        raise InputError(f"{archive.path} is refused: no bundle has a member {foreign[0]}", HINT)
    model = {name.removeprefix("model/"): manifest["members"][name] for name in names if name.startswith("model/")}
    expected = manifest["model"] if manifest["includes"]["model"] else {}
    if model != expected:
        raise InputError(f"{archive.path} is not as it was made: its model's files are not those of its manifest", HINT)
    check_code({name: partial(archive.read, f"model/{name}") for name in model}, archive.path)


def _known(name: str) -> bool:
    top, _, rest = name.partition("/")
    if top == SAMPLES:
        return rest == "index.json" or (rest.endswith(".wav") and rest.count("/") == 1)
    return name in ALONE or (top == "model" and rest != "") or (top == SELF and rest in IN_SELF)


def _records(archive: Archive) -> dict[str, bytes]:
    """The records, each checked to be `canonical` JSON."""
    records = {name: archive.read(name) for name in RECORDS}
    for name, content in records.items():
        try:
            value = json.loads(content)
            if not isinstance(value, dict) or canonical(value) != content:
                raise ValueError("it is not written as Encore writes it")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} of {archive.path} can't be read as a record: {error}", HINT) from error
    return records


def _check_records(records: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Check that request, record, values and model belong together.

    Raises:
        InputError: they contradict each other.
    """
    request, run, how = (json.loads(records[name]) for name in (REQUEST, RUN, EVALUATION))
    check_settings(how)
    try:
        tracks = [entry for name in ("forget", "retain", "holdout") for entry in request[name]]
        ties = {
            **{f"{EVALUATION} and {name}": (how.get(tie_name(name)), sha256(records[name])) for name in (REQUEST, RUN)},
            f"{EVALUATION} and {METRICS}": (how.get(tie_name(METRICS)), sha256(records[METRICS])),
            f"{RUN} and {REQUEST}": (run.get("request_sha256"), sha256(records[REQUEST])),
            f"{RUN} and {NAME} on the model": (run["unlearned_sha256"], manifest["weights_sha256"]),
            f"{EVALUATION} and {RUN} on the model": (how["models"].get("unlearned"), run["unlearned_sha256"]),
            f"{EVALUATION} and {REQUEST} on the base model": (how["models"].get("base"), request["model"]["sha256"]),
            **{f"{RUN} and {REQUEST} on {name}": (run[name], request[name]) for name in SAME},
            f"{RUN} and {REQUEST} on options": (
                {name: setting["value"] for name, setting in run["options"].items()}, request["options"],
            ),
            **{
                f"{RUN} and {REQUEST} on {name} tracks": (run["tracks"][name], len(request[name]))
                for name in ("forget", "retain", "holdout")
            },
            # the report shows the caption; the first of the captions is measured
            f"{REQUEST} on the caption of its tracks and the first of their captions": (
                [entry.get("caption") for entry in tracks],
                [(entry.get("captions") or [entry.get("caption")])[0] for entry in tracks],
            ),
        }  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the records of the bundle can't be read: {error!r}", HINT) from error
    if wrong := [where for where, (first, second) in ties.items() if first != second]:
        raise InputError(f"the bundle contradicts itself: {'; '.join(wrong)} don't agree", HINT)


def _check_derived(archive: Archive, records: Mapping[str, bytes], manifest: Mapping[str, Any]) -> dict[str, str]:
    """Make report, card and bill of materials again, and compare.

    Raises:
        InputError: they do not follow from the records.
    """
    expected = derived(records, {name: entry["sha256"] for name, entry in manifest["model"].items()})
    differing = [name for name in DERIVED if archive.read(name) != expected[name]]
    this, theirs = made_with(), manifest["made_with"]
    if differing and this == theirs:
        raise InputError(
            f"{' and '.join(differing)} of {archive.path} is not what its records give: it was written by hand", HINT
        )
    who = f"Encore {theirs['encore']}" if theirs["encore"] != this["encore"] else "an Encore of other code"
    return {name: f"{UNCHECKED}: made by {who}" if name in differing else AGAIN for name in DERIVED}


# ----------------------------------------------------------------------------------------------------- measured again


def _measured(result: Rerun, names: Sequence[str], run: Path | None) -> dict[str, str]:
    part = result.count("unmeasured")
    checked = {METRICS: f"{MEASURED}, but for {part} figures" if part else MEASURED}
    checked[EVALUATION] = f"{HASH}; its settings and models were used for the rerun"
    if run is None:
        checked |= {name: f"{HASH}; it was measured" for name in names if name.startswith(("model/", f"{SELF}/"))}
    return checked


@contextmanager
def _folder(archive: Archive, records: Mapping[str, bytes], run: Path | None) -> Iterator[Path]:
    """A run's folder made of the bundle, with its model unless another folder is given."""
    if run is None and not any(name.startswith("model/") for name in archive.names):
        raise UsageError(
            "the bundle has no model to measure again", "name the run's folder with --run, or bundle it --with-model"
        )
    with tempfile.TemporaryDirectory(prefix="encore-") as above:
        folder = Path(above)
        for name, content in records.items():
            (folder / name).write_bytes(content)
        for name in archive.names:
            if run is None and name.startswith(("model/", f"{SELF}/")):
                archive.extract(name, folder / name)
        yield folder


__all__ = ["Member", "Verified", "check_complete", "check_rerun", "verify"]
