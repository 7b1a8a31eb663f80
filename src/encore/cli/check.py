"""`encore plugins check`: does a method, backend, metric or embedder keep the contract?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from encore.testing import Report


def check(
    name: Annotated[str | None, typer.Argument(help="A method, backend, metric or embedder.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="method, backend, metric or embedder.")] = None,
    distribution: Annotated[
        str | None, typer.Option("--distribution", help="Check all that this package registers.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Check all that is installed.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="A small model of the backend to check [default for musicgen: tiny].")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Try methods, metrics, embedders on --model of this backend.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the contract on what a plugin offers; exit code 4 where a check fails."""
    from encore.cli.progress import reporting
    from encore.errors import GateError
    from encore.testing.run import check_all, choose

    chosen = choose(name, kind=kind, distribution=distribution, everything=everything)
    with reporting() as reporter:
        reports = check_all(
            chosen, model=model, backend=backend, offline=offline,
            progress=lambda plugin, name, done, total: reporter.progress(
                f"checking {plugin}", done, total, {"metric": name}
            ),
        )  # fmt: skip
    if json:
        console.data_json({"schema": 1, "checked": [_as_json(report) for report in reports]})
    else:
        console.table(["plugin", "check", "result", "message"], _rows(reports))
    states = [result.state for report in reports for result in report.results]
    passed, failed, skipped = (states.count(state) for state in ("passed", "FAILED", "skipped"))
    console.note(f"{len(reports)} checked: {passed} checks passed, {failed} failed, {skipped} skipped")
    broken = [f"{report.kind} {report.name}" for report in reports if report.failed]
    if broken:
        verb = "does" if len(broken) == 1 else "do"
        raise GateError(
            f"{', '.join(broken)} {verb} not keep the contract: {failed} {'check' if failed == 1 else 'checks'} failed",
            "each sentence names the fault, then the contract; see encore.api for all of it",
        )


def _rows(reports: Sequence[Report]) -> list[list[str]]:
    """Failures, then what was skipped, then how many checks each plugin passed."""
    rows = [
        [f"{report.kind} {report.name}", result.check, state, result.sentence.removeprefix("skipped: ")]
        for state in ("FAILED", "skipped")
        for report in reports
        for result in report.results
        if result.state == state
    ]
    for report in reports:
        passed = sum(result.state == "passed" for result in report.results)
        rows.append([f"{report.kind} {report.name}", f"{passed} of {len(report.results)}", "passed", ""])
    return rows


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "kind": report.kind,
        "name": report.name,
        "source": report.source,
        "passed": report.passed,
        "checks": [
            {
                "check": result.check,
                "contract": result.contract,
                "result": result.state.lower(),
                "message": result.message or None,
                "seconds": round(result.seconds, 3),
            }
            for result in report.results
        ],
    }
