"""Slurm array scripts of a bench: each task runs the command that the local scheduler runs.

A script stays as it is while Slurm has tasks of it, so that a task is known by its script and its index. What Slurm's
queue has (`squeue`), also after a preemption, is neither failed nor written into another script; how a task ended that
is no longer there is asked of its accounting (`sacct`). Without these programs, only trials that run now are known.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encore.compare.scheduler import LOGS, log_file, trial_command
from encore.errors import UsageError
from encore.store.run_folder import LOCK, in_use, write_bytes

if TYPE_CHECKING:
    from encore.compare.plan import Trial

MOST = 1000
"""Most tasks of a script: Slurm's default limit (MaxArraySize) allows indices up to 1000."""

ASK_SECONDS = 60
ENDED = {  # states that a task does not leave by itself; of all others, squeue shows tasks that run or will run
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
INTERRUPTED = {"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED"}
"""How tasks end for reasons that are not the trial's: it goes on from its checkpoint when it is submitted again."""

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
echo "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" >"${{logs[$SLURM_ARRAY_TASK_ID]%.log}}.slurm"
exec {command} "${{trials[$SLURM_ARRAY_TASK_ID]}}"
"""


def write_scripts(
    trials: Sequence[Trial],
    plan: Path,
    *,
    jobs: int | None = None,
    resources: Mapping[str, str] | None = None,
    keep: Iterable[Path] = (),
) -> list[Path]:
    """Write `slurm-1.sh` (and more, beyond `MOST` trials) beside the plan, in place of earlier ones.

    Args:
        trials: the trials, one per task.
        plan: the bench's `bench.json`, in a folder that all nodes share.
        jobs: number of concurrent tasks of a script; None: as many as Slurm starts.
        resources: options of sbatch by name, as "partition": "gpu"; of one without a value, the value is empty.
        keep: earlier scripts that stay, since Slurm has tasks of them.

    Raises:
        UsageError: an option is invalid, or the path of the bench has a line break.
    """
    out = plan.parent
    if "\n" in str(out):
        raise UsageError("the path of the bench has a line break, which a Slurm script can't hold", "rename the folder")
    options = {"job-name": "encore-bench", "output": str(out).replace("%", "%%") + f"/{LOGS}/slurm-%A_%a.log"}
    options |= checked(resources or {})
    kept = set(keep)
    for script in out.glob("slurm-*.sh"):
        if script not in kept:
            script.unlink()
    names = (path for number in itertools.count(1) if (path := out / f"slurm-{number}.sh") not in kept)
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    scripts: list[Path] = []
    for start in range(0, len(trials), MOST):
        part = trials[start : start + MOST]
        array = f"0-{len(part) - 1}" + (f"%{jobs}" if jobs else "")
        *command, _ = trial_command("", out)
        text = _SCRIPT.format(
            directives="\n".join(_directive(*item) for item in {**options, "array": array}.items()),
            plan=shlex.quote(str(plan)), out=shlex.quote(str(out)), command=shlex.join(command),
            trials="\n".join(shlex.quote(trial.name) for trial in part),
            logs="\n".join(shlex.quote(str(log_file(trial.name, out))) for trial in part),
        )  # fmt: skip
        scripts.append(next(names))
        write_bytes(scripts[-1], text.encode())
    return scripts


def checked(resources: Mapping[str, str]) -> dict[str, str]:
    """The options of sbatch.

    Raises:
        UsageError: one is invalid.
    """
    for name, value in resources.items():
        if not re.fullmatch(r"[a-z][a-z-]*", name) or "\n" in value:
            raise UsageError(f"{name!r} is not an sbatch option", "as in: --resource partition=gpu")
        if name == "array":
            raise UsageError("the array is given by the trials", "--jobs limits how many run at once")
    return dict(resources)


def is_running(trial: Trial, out: Path) -> bool:
    """Whether a process works on one of the trial's runs now."""
    return any(in_use(lock.parent) for lock in (out / trial.name).rglob(LOCK))


def queue(out: Path) -> dict[str, tuple[str, Path]]:
    """The trials that Slurm's queue has: their state, as `PENDING`, and their script.

    Args:
        out: folder of the bench.
    """
    lines = _ask("squeue", "--me", "--noheader", "--array", "--format=%K|%T|%o")
    trials: dict[str, tuple[str, Path]] = {}
    listed: dict[Path, list[str]] = {}
    for line in lines:
        index, _, rest = line.partition("|")
        state, _, command = rest.partition("|")
        script = Path(command.strip()).resolve()
        if state in ENDED or not index.strip().isdecimal() or script.parent != out or not script.exists():
            continue
        if script not in listed:
            listed[script] = _trials(script)
        if int(index) < len(listed[script]):
            trials[listed[script][int(index)]] = (state, script)
    return trials


def last_states(trials: Sequence[Trial], out: Path) -> dict[Trial, str]:
    """The states of the last tasks of trials by Slurm's accounting, as `TIMEOUT`; of those that it knows.

    Args:
        trials: trials that the queue does not have.
        out: folder of the bench.
    """
    files = {trial: log_file(trial.name, out).with_suffix(".slurm") for trial in trials}
    tasks = {trial: file.read_text().strip() for trial, file in files.items() if file.exists()}
    if not tasks:
        return {}
    wanted = ",".join(sorted({task.partition("_")[0] for task in tasks.values()}))
    lines = _ask("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={wanted}")
    states = dict(line.partition("|")[::2] for line in lines)  # "CANCELLED by 1000"
    return {trial: states[task].split()[0] for trial, task in tasks.items() if states.get(task, "").strip()}


def _ask(*command: str) -> list[str]:
    """The lines that a program of Slurm prints; none where it is not installed, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.decode("utf-8", "surrogateescape").splitlines()


def _trials(script: Path) -> list[str]:
    """The trials of a script, in order."""
    return shlex.split(script.read_text().partition("\ntrials=(\n")[2].partition("\n)\n")[0])


def _directive(name: str, value: str) -> str:
    return f"#SBATCH --{name}={shlex.quote(value)}" if value else f"#SBATCH --{name}"
