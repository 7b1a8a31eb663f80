"""`encore plugins check`: does a method, backend, metric or embedder keep the contract?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from encore.cli import console

if TYPE_CHECKING:
    from encore.testing import CheckResult, Report


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
    from encore.testing.select import check_all, chosen

    things = chosen(name, kind=kind, distribution=distribution, everything=everything)
    with reporting() as reporter:
        reports = check_all(
            things, model=model, backend=backend, offline=offline,
            progress=lambda thing, check, done, of: reporter.progress(f"checking {thing}", done, of, {"metric": check}),
        )  # fmt: skip
    if json:
        console.data_json({"schema": 1, "checked": [_as_json(report) for report in reports]})
    else:
        console.table(
            ["of", "check", "result", "what"],
            [
                [f"{report.kind} {report.name}", outcome.check, outcome.state, _what(outcome)]
                for report in reports
                for outcome in report.outcomes
            ],
        )
    states = [outcome.state for report in reports for outcome in report.outcomes]
    passed, failed, skipped = (states.count(state) for state in ("passed", "FAILED", "skipped"))
    console.note(f"{len(reports)} checked: {passed} checks passed, {failed} failed, {skipped} skipped")
    broken = [f"{report.kind} {report.name}" for report in reports if report.failed]
    if broken:
        verb = "does" if len(broken) == 1 else "do"
        raise GateError(
            f"{', '.join(broken)} {verb} not keep the contract: {failed} {'check' if failed == 1 else 'checks'} failed",
            "each sentence names the fault, then what the contract says; encore.api has the whole of it",
        )


def _what(outcome: CheckResult) -> str:
    return outcome.said if outcome.state == "skipped" else outcome.sentence


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "kind": report.kind,
        "name": report.name,
        "source": report.source,
        "passed": report.passed,
        "checks": [
            {
                "check": outcome.check,
                "contract": outcome.contract,
                "result": outcome.state.lower(),
                "said": outcome.said or None,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in report.outcomes
        ],
    }
