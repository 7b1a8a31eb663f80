"""`encore bundle` and `encore verify`: evidence to hand over, and to check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from encore.cli import console
from encore.cli.config import Json, Offline

if TYPE_CHECKING:
    from encore.errors import EncoreError
    from encore.evidence.rerun import Compared, Rerun
    from encore.evidence.verify import Verified


def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a complete run that `encore eval` has measured.")],
    out: Annotated[Path | None, typer.Option(help="The file; default: RUN.evidence.zip beside the folder.")] = None,
    sign: Annotated[
        Path | None, typer.Option(help="PEM file of an elliptic-curve private key to sign the manifest with.")
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Time-stamping authority (RFC 3161) to use; only the manifest's hash is sent."
        ),
    ] = None,
    with_model: Annotated[bool, typer.Option("--with-model", help="Include the model's weights.")] = False,
    with_catalog: Annotated[
        bool, typer.Option("--with-catalog", help="Include ids, titles and captions of retain and held-out tracks.")
    ] = False,
    with_before: Annotated[
        bool, typer.Option("--with-before", help="Include generations of the base model; they may reproduce tracks.")
    ] = False,
) -> None:
    """Pack a run's evidence into one archive: request, records, figures, report, bill of materials, and hashes."""
    from encore.evidence.pack import LEFT_OUT, pack

    included = {"catalog": with_catalog, "before": with_before, "model": with_model}
    target = pack(
        run, out, key=sign, timestamp_url=timestamp, with_model=with_model, with_catalog=with_catalog,
        with_before=with_before,
    )  # fmt: skip
    generations = " generations," if (run / "samples").is_dir() else ""
    console.note(f"included: request, records, figures,{generations} and a report, model card and bill of materials")
    left_out = [sentence for name, sentence in LEFT_OUT.items() if not included[name]]
    console.note(f"left out: {'; '.join(['names of folders', 'the training log', *left_out])}")
    if with_model and (run / "retain-self").is_dir():
        console.note("also included: base's generations for --retain self, as codes; they may reproduce tracks")
    if sign is None:
        console.note("not signed: the manifest detects damage, but does not prove who made it; --sign KEY signs it")
    if timestamp is None:
        console.note(
            "no timestamp: the time is stated by the author, and not verified; --timestamp URL asks an authority"
        )
    console.note(f"check it: encore verify {target}")
    console.data(target)


def verify(
    archive: Annotated[Path, typer.Argument(metavar="BUNDLE", help="File that `encore bundle` wrote.")],
    key: Annotated[Path | None, typer.Option(help="PEM file of the author's public key.")] = None,
    tsa_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the time-stamping authority's root certificate.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder, to be checked against the bundle.")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Measure the figures again, and compare.")] = False,
    tolerance: Annotated[
        Literal["exact", "machine", "chance"],
        typer.Option(help="With --rerun, which differences pass: none, rounding, or all within the 95 % intervals."),
    ] = "machine",
    root: Annotated[
        list[Path] | None,
        typer.Option(help="With --rerun: folder in which tracks and models are found by hash; repeat for more."),
    ] = None,
    catalog: Annotated[
        list[Path] | None,
        typer.Option(help="With --rerun: catalogue or list with captions of retain and held-out tracks; repeat."),
    ] = None,
    device: Annotated[str, typer.Option(help="With --rerun: auto, cpu, cuda, …")] = "auto",
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Check an evidence bundle: every member, its signature, and on demand its figures.

    Exit codes: 0 all requested checks passed; 3 the bundle contradicts itself, its signature or the run; 4 figures are
    not reproduced; 5 they agree less closely than --tolerance; 6 part of it could not be checked here.
    """
    from encore.errors import GateError, InputError, NotCheckedError
    from encore.evidence.verify import check_complete, check_rerun
    from encore.evidence.verify import verify as check

    result, wrong = None, None
    try:
        if rerun:
            from encore.cli.progress import reporting
            from encore.store.environment import keep_freed_memory

            keep_freed_memory()
            with reporting() as reporter:
                result = check(
                    archive, key=key, tsa_certificate=tsa_certificate, run=run, again=True, roots=root or (),
                    catalogs=catalog or (), device=device, offline=offline, reporter=reporter,
                )  # fmt: skip
        else:
            result = check(archive, key=key, tsa_certificate=tsa_certificate, run=run)
        if result.rerun is not None:
            check_rerun(result.rerun, tolerance)
        check_complete(result, archive)
    except (InputError, GateError, NotCheckedError) as error:  # what it says is the verdict, for programs too
        wrong = error
    if json:
        _show_json(result, wrong)
    elif result is not None:
        _show(result, archive, run)
    if wrong is not None:
        raise wrong


VERDICTS = {
    0: "holds",
    3: "contradicted",
    4: "figures differ",
    5: "beyond the tolerance",
    6: "not all could be checked",
}


def _show_json(result: Verified | None, wrong: EncoreError | None) -> None:
    from dataclasses import asdict

    rerun = result.rerun if result is not None else None
    console.data_json({
        "schema": 2,
        "holds": wrong is None,
        "verdict": VERDICTS.get(wrong.exit_code if wrong is not None else 0, "error"),
        "why": wrong.message if wrong is not None else None,
        "details": wrong.hint.split("\n") if wrong is not None else [],
        "members": {name: asdict(member) for name, member in result.members.items()} if result is not None else {},
        "signature": result.signature if result is not None else None,
        "time": result.time.isoformat() if result is not None and result.time is not None else None,
        "time_checked": result is not None and result.time_checked,
        "compared": [asdict(row) for row in rerun.rows] if rerun is not None else [],
        "absent": dict(rerun.absent) if rerun is not None else {},
    })  # fmt: skip


def _show(result: Verified, archive: Path, run: Path | None) -> None:
    rows = [(name, member.size, member.checked) for name, member in result.members.items()]
    if result.rerun is not None:
        _show_rerun(result.rerun)
        for name, _, checked in rows:
            console.note(f"{name}: {checked}")
    else:
        console.table(["member", "bytes", "checked"], rows, right=["bytes"])
        console.note('"hash only": unchanged since it was packed; --rerun measures the figures again')
    console.note(f"{archive}: {len(result.members)} members match its manifest")
    if run is not None:
        console.note(f"the files in {run} are those of the bundle")
    console.note(SIGNATURES[result.signature])
    if result.time is None:
        console.note("it carries no timestamp that can be read: the time is stated by the author, and not verified")
    elif result.time_checked:
        console.note(f"the manifest existed on {_utc(result)}, as certified by the authority of this certificate")
    else:
        console.note(f"it carries a timestamp of {_utc(result)} that was not checked; --tsa-certificate PEM checks it")


SIGNATURES = {
    "checked": "the signature is by this key",
    "not checked": "it carries a signature that was not checked; --key PUB checks it",
    "none": "it is not signed: whoever changed a member could have changed the manifest too",
}


def _utc(result: Verified) -> str:
    from encore.store.dates import utc

    return utc(result.time) if result.time is not None else ""


def _show_rerun(rerun: Rerun) -> None:
    from encore.evidence.rerun import agreement

    console.table(
        ["figure", "model", "set", "bundled", "rerun", "95 % interval", "agrees"],
        [
            (row.metric, row.model, row.set, _number(row.bundled), _number(row.again), _interval(row), _state(row))
            for row in rerun.rows
        ],
        right=["bundled", "rerun"],
    )
    console.note(f"{len(rerun.rows)} figures: {agreement(rerun)}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _interval(row: Compared) -> str:
    return "" if row.low is None or row.high is None else f"{row.low:.4g} to {row.high:.4g}"


def _state(row: Compared) -> str:
    """In capitals where it does not hold, with what differs."""
    more = f" and {len(row.what) - 3} more" if len(row.what) > 3 else ""
    differing = f": {', '.join(row.what[:3])}{more}" if row.what else ""
    return (row.state.upper() if row.state in ("differs", "missing", "new") else row.state) + differing
