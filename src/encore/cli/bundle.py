"""`encore bundle` and `encore verify`: evidence to hand over, and to check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encore.cli import console

if TYPE_CHECKING:
    from encore.errors import EncoreError
    from encore.evidence.rerun import Compared
    from encore.evidence.verify import Verified


def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a complete run that `encore eval` has measured.")],
    out: Annotated[Path | None, typer.Option(help="The file; default: RUN.evidence.zip beside the folder.")] = None,
    sign: Annotated[
        Path | None, typer.Option(help="PEM file of an elliptic-curve private key to sign the manifest with.")
    ] = None,
    with_model: Annotated[bool, typer.Option("--with-model", help="Put the model's weights in, too.")] = False,
) -> None:
    """Pack a run's evidence into one archive: request, records, figures, report, bill of materials, and hashes."""
    from encore.evidence.pack import pack

    target = pack(run, out, key=sign, with_model=with_model)
    if sign is None:
        console.note("not signed: the manifest shows damage, and not who made it; --sign KEY signs it")
    console.note(f"check it: encore verify {target}")
    console.data(target)


def verify(
    archive: Annotated[Path, typer.Argument(metavar="BUNDLE", help="File that `encore bundle` wrote.")],
    key: Annotated[Path | None, typer.Option(help="PEM file of the maker's public key.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder, to be checked against the bundle.")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Measure the figures again, and compare.")] = False,
    device: Annotated[str, typer.Option(help="With --rerun: auto, cpu, cuda, …")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Never go to the network.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an evidence bundle: every member, its signature, and on demand its figures."""
    from encore.errors import GateError, InputError
    from encore.evidence.verify import refuse_mismatch
    from encore.evidence.verify import verify as check

    found, wrong = None, None
    try:
        if rerun:
            from encore.cli.progress import reporting
            from encore.runs.environment import keep_freed_memory

            keep_freed_memory()
            with reporting() as reporter:
                found = check(archive, key=key, run=run, again=True, device=device, offline=offline, reporter=reporter)
        else:
            found = check(archive, key=key, run=run)
        refuse_mismatch(found.compared)
    except (InputError, GateError) as error:  # what it says is the verdict, for programs too
        wrong = error
    if json:
        _show_json(found, wrong)
    elif found is not None:
        _show(found, archive, run)
    if wrong is not None:
        raise wrong


def _show_json(found: Verified | None, wrong: EncoreError | None) -> None:
    from dataclasses import asdict

    console.data_json({
        "schema": 1,
        "holds": wrong is None,
        "why": wrong.message if wrong is not None else None,
        "details": wrong.hint.split("\n") if wrong is not None else [],
        "members": dict(found.members) if found is not None else {},
        "signed": found.signed if found is not None else None,
        "signature_checked": found is not None and found.checked,
        "compared": [{**asdict(row), "holds": row.holds} for row in found.compared] if found is not None else [],
    })  # fmt: skip


def _show(found: Verified, archive: Path, run: Path | None) -> None:
    if found.compared:
        console.table(
            ["figure", "model", "on", "bundled", "again", "95 % interval", "holds"],
            [
                (row.metric, row.model, row.set, _number(row.bundled), _number(row.again), _interval(row), _state(row))
                for row in found.compared
            ],
            right=["bundled", "again"],
        )
    else:
        console.table(["member", "bytes"], list(found.members.items()), right=["bytes"])
    console.note(f"{archive}: {len(found.members)} members are as its manifest says")
    if run is not None:
        console.note(f"the files in {run} are those of the bundle")
    if found.checked:
        console.note("the signature is by this key")
    elif found.signed:
        console.note("it is signed; --key PUB checks by whom")
    else:
        console.note("it is not signed: whoever changed a member could have changed the manifest too")
    if found.compared and all(row.holds for row in found.compared):
        same = sum(row.state == "same" for row in found.compared)
        console.note(f"all {len(found.compared)} figures come out again, {same} of them to the last digit")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _interval(row: Compared) -> str:
    return "" if row.low is None or row.high is None else f"{row.low:.4g} to {row.high:.4g}"


def _state(row: Compared) -> str:
    """In capitals where it does not hold, with what differs."""
    if row.holds:
        return row.state
    more = f" and {len(row.what) - 3} more" if len(row.what) > 3 else ""
    return row.state.upper() + (f": {', '.join(row.what[:3])}{more}" if row.what else "")
