"""Slurm array scripts of a bench: each task runs the command that the local scheduler runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encore.compare.scheduler import LOGS, log_file, trial_command
from encore.errors import UsageError
from encore.store.run_folder import LOCK, in_use, write_bytes

if TYPE_CHECKING:
    from encore.compare.plan import Trial

MOST = 1000
"""Most tasks of a script: Slurm's default limit (MaxArraySize) allows indices up to 1000."""

_SCRIPT = """\
#!/bin/bash
{directives}
# Written by `encore bench --launcher slurm`; the same command collects the results.
if ! [ -e {plan} ]; then
    echo "$(hostname) does not see the bench in "{out}": all nodes must share its folder" >&2
    exit 3
fi
trials=(
{trials}
)
logs=(
{logs}
)
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-${{SLURM_CPUS_ON_NODE:-1}}}}"
exec </dev/null >>"${{logs[$SLURM_ARRAY_TASK_ID]}}" 2>&1
exec {command} "${{trials[$SLURM_ARRAY_TASK_ID]}}"
"""


def write_scripts(
    cells: Sequence[Trial], plan: Path, *, jobs: int | None = None, resources: Mapping[str, str] | None = None
) -> list[Path]:
    """Write `slurm-1.sh` (and more, beyond `MOST` trials) beside the plan, in place of earlier ones.

    Args:
        cells: the trials, one per task.
        plan: the bench's `bench.json`, in a folder that all nodes share.
        jobs: number of concurrent tasks of a script; None: as many as Slurm starts.
        resources: options of sbatch by name, as "partition": "gpu"; of one without a value, the value is empty.

    Raises:
        UsageError: an option is invalid, or the path of the bench has a line break.
    """
    out = plan.parent
    if "\n" in str(out):
        raise UsageError("the path of the bench has a line break, which a Slurm script can't hold", "rename the folder")
    options = {"job-name": "encore-bench", "output": str(out).replace("%", "%%") + f"/{LOGS}/slurm-%A_%a.log"}
    options |= checked(resources or {})
    for script in out.glob("slurm-*.sh"):
        script.unlink()
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    scripts: list[Path] = []
    for start in range(0, len(cells), MOST):
        part = cells[start : start + MOST]
        array = f"0-{len(part) - 1}" + (f"%{jobs}" if jobs else "")
        *command, _ = trial_command("", out)
        text = _SCRIPT.format(
            directives="\n".join(_directive(*item) for item in {**options, "array": array}.items()),
            plan=shlex.quote(str(plan)), out=shlex.quote(str(out)), command=shlex.join(command),
            trials="\n".join(shlex.quote(cell.name) for cell in part),
            logs="\n".join(shlex.quote(str(log_file(cell.name, out))) for cell in part),
        )  # fmt: skip
        scripts.append(out / f"slurm-{len(scripts) + 1}.sh")
        write_bytes(scripts[-1], text.encode())
    return scripts


def checked(resources: Mapping[str, str]) -> dict[str, str]:
    """The options of sbatch.

    Raises:
        UsageError: one is invalid.
    """
    for name, value in resources.items():
        if not re.fullmatch(r"[a-z][a-z-]*", name) or "\n" in value:
            raise UsageError(f"{name!r} is no option of sbatch", "as in: --resource partition=gpu")
        if name == "array":
            raise UsageError("the array is given by the trials", "--jobs limits how many run at once")
    return dict(resources)


def is_running(cell: Trial, out: Path) -> bool:
    """Whether a process works on one of the trial's runs now."""
    return any(in_use(lock.parent) for lock in (out / cell.name).rglob(LOCK))


def _directive(name: str, value: str) -> str:
    return f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"
