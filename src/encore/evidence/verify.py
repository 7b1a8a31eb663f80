"""`encore verify`: is the bundle what its maker made, and do its figures come out again?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.errors import GateError, InputError, UsageError
from encore.evidence import signing
from encore.evidence.archive import HINT, Archive, opened
from encore.evidence.manifest import NAME, SIGNATURE, differences, read_manifest, run_differences
from encore.evidence.pack import SELF
from encore.evidence.rerun import Compared, rerun
from encore.runs.evaluation_json import NAME as EVALUATION
from encore.runs.metrics_json import NAME as METRICS
from encore.runs.metrics_json import read_metrics
from encore.runs.store import read_json

NEEDED = ("request.json", "run.json", METRICS)


@dataclass(frozen=True)
class Verified:
    """A bundle that holds.

    Args:
        members: size in bytes, by name. signed: it has a signature. checked: the signature was checked with a key.
        compared: figures measured again, where that was asked for.
    """

    members: Mapping[str, int]
    signed: bool
    checked: bool
    compared: Sequence[Compared] = ()


def verify(
    bundle: Path,
    *,
    key: Path | None = None,
    run: Path | None = None,
    again: bool = False,
    device: str = "auto",
    offline: bool = False,
    reporter: Any = None,
) -> Verified:
    """Check every member against the manifest, and the manifest against its signature.

    Args:
        key: PEM file of the maker's public key. run: the run's folder, to be checked as well.
        again: measure the figures again, from that folder or from the model in the bundle.

    Raises:
        InputError: the bundle, or the run's folder, is not what the manifest says: every difference is named.
        UsageError: there is nothing to measure again from.
    """
    with opened(bundle) as archive:
        signed = SIGNATURE in archive.names
        if key is not None and not signed:
            raise InputError(f"{bundle} is not signed, so {key} says nothing of it", HINT)
        if key is not None:
            signing.check(archive.read(NAME), archive.read(SIGNATURE), key)
        manifest = read_manifest(archive)
        _refuse(f"{bundle} is not as it was made", differences(archive, manifest))
        absent = [name for name in NEEDED if name not in archive.names]
        if absent:
            raise InputError(f"{bundle} has no {' and no '.join(absent)}: it is not an evidence bundle", HINT)
        if run is not None:
            _refuse(f"{run} is not the run of this bundle", run_differences(run, manifest))
        compared: Sequence[Compared] = ()
        if again:
            if EVALUATION not in archive.names:
                raise InputError(f"{bundle} has no {EVALUATION}: it does not say how its figures were measured")
            with _folder(archive, run) as folder:
                how, bundled = read_json(folder / EVALUATION), read_metrics(folder / METRICS)
                compared = rerun(run or folder, how, bundled, device=device, offline=offline, reporter=reporter)
        sizes = {name: archive.size(name) for name in archive.names}
    return Verified(sizes, signed, key is not None, compared)


def refuse_mismatch(compared: Sequence[Compared]) -> None:
    """The gate on figures that were measured again.

    Raises:
        GateError: one of them does not come out again.
    """
    wrong = [row for row in compared if not row.holds]
    if wrong:
        named = ", ".join(f"{row.metric} ({row.model}, {row.set})" for row in wrong[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise GateError(
            f"{len(wrong)} of {len(compared)} figures do not come out again: {named}{more}",
            "compare the versions in versions.json with `encore doctor`; other versions may give other figures",
        )


def _refuse(what: str, found: Sequence[object]) -> None:
    if found:
        count = f"{len(found)} files differ" if len(found) > 1 else "1 file differs"
        raise InputError(f"{what}: {count}", "\n".join(map(str, found)))


@contextmanager
def _folder(archive: Archive, run: Path | None) -> Iterator[Path]:
    """A run's folder made of the bundle, with its model where no other folder was named."""
    if run is None and not any(name.startswith("model/") for name in archive.names):
        raise UsageError(
            "the bundle has no model to measure again", "name the run's folder with --run, or bundle it --with-model"
        )
    with tempfile.TemporaryDirectory(prefix="encore-") as above:
        folder = Path(above)
        for name in archive.names:
            if name in (*NEEDED, EVALUATION) or (run is None and name.startswith(("model/", f"{SELF}/"))):
                archive.extract(name, folder / name)
        yield folder
