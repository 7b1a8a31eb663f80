"""The application as a process: exit codes, streams, signals, and what it imports."""

import importlib
import inspect
import os
import signal
import subprocess
import sys
import time

import pytest
import typer

from encore.cli.app import COMMANDS, SEVERAL
from encore.errors import InputError

HEAVY = ["torch", "transformers", "librosa", "matplotlib", "numpy", "scipy", "encore.options"]
FAILING = """
import os, signal, sys, time
import typer
from encore.api import hookimpl
from encore.errors import InputError

@hookimpl
def encore_register_commands(app: typer.Typer) -> None:
    @app.command("refuse")
    def refuse() -> None:
        raise InputError("the list is empty", "add a line")

    @app.command("crash")
    def crash() -> None:
        raise RuntimeError("no [bold]luck[/]")

    @app.command("leave")
    def leave(code: int) -> None:
        raise typer.Exit(code)

    @app.command("sleep")
    def sleep() -> None:
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaned up", flush=True)

    @app.command("pour")
    def pour() -> None:
        for number in range(1_000_000):
            print(number)
"""


def _function(target):
    """The function of a command, or of a group of commands."""
    module, _, attribute = target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    return command.registered_callback.callback if isinstance(command, typer.Typer) else command


@pytest.mark.parametrize("name", COMMANDS)
def test_help_line_begins_the_docstring(name):
    target, summary = COMMANDS[name]
    assert inspect.getdoc(_function(target)).startswith(summary.rstrip("."))
    assert len(name) + len(summary) <= 66, "help cuts it"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(encore, name):
    shown = encore(name, "--help")
    assert shown.returncode == 0
    assert f"Usage: encore {name}" in shown.stdout
    assert COMMANDS[name][1].rstrip(".") in shown.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins"], ["forget", "--help"], ["eval", "--help"], ["methods"], ["metrics", "--json"]]
)
def test_nothing_heavy_is_imported(arguments):
    """Beside pydantic: typer imports that itself before it calls any command, and not for the help of them all."""
    heavy = [*HEAVY, "pydantic"] if arguments == ["--help"] else HEAVY
    code = (
        "import sys\nfrom encore.cli.app import run\n"
        f"code = run({arguments!r})\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == "[]\n"
    assert ran.stdout


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "10000 False"), ({"GOMP_SPINCOUNT": "7"}, "7 False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None False")],
)
def test_waiting_threads_do_not_spin_for_long(given, found):
    """OpenMP reads it when torch loads it, so it must be there earlier."""
    code = (
        "import atexit, os, sys\nfrom encore.cli import app\nsys.argv = ['encore', '--version']\n"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules))\napp.main()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == found


def test_version(encore):
    from encore import __version__

    assert encore("--version").stdout == f"encore {__version__}\n"


SEEDED = [name for name, (target, _) in COMMANDS.items() if "seed" in inspect.signature(_function(target)).parameters]


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_that_some_generator_does_not_take_is_refused_at_once(call, name):
    assert len(SEEDED) >= 5
    done = call(name, "--seed", 2**32)
    assert (done.code, done.out) == (2, "")
    assert "value for '--seed': Input should be less than or equal to 4294967295" in done.err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["forgt"], "error: no such command 'forgt'. Did you mean 'forget'", "hint: encore --help"),
        (["methods", "--jsno"], "error: no such option: --jsno", "hint: encore methods --help"),
        (["methods", "npoo"], "error: there is no method 'npoo'", "hint: did you mean npo"),
        (["forget"], "error: missing option '--tracks'", "hint: encore forget --help"),
        ([], "error: a command is missing", ""),
    ],
)
def test_usage_errors(encore, arguments, message, hint):
    ran = encore(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert message in ran.stderr
    assert hint in ran.stderr
    assert "Traceback" not in ran.stderr


def test_error_of_ours(site, encore):
    site.add("failing", FAILING)
    ran = encore("refuse", path=[site.folder])
    assert (ran.returncode, ran.stdout) == (InputError.exit_code, "")
    assert ran.stderr == "error: the list is empty\nhint: add a line\n"


def test_error_nobody_expected(site, encore):
    site.add("failing", FAILING)
    ran = encore("crash", path=[site.folder])
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: RuntimeError: no [bold]luck[/]\nhint: ")
    debugged = encore("crash", path=[site.folder], ENCORE_DEBUG="1")
    assert debugged.returncode == 1
    assert debugged.stderr.startswith("Traceback")
    assert "hint" not in debugged.stderr


def test_exit_code_of_a_command(site, encore):
    site.add("failing", FAILING)
    assert encore("leave", 4, path=[site.folder]).returncode == 4


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(site, sent, code):
    site.add("failing", FAILING)
    with subprocess.Popen(
        [sys.executable, "-m", "encore", "sleep"],
        env={**os.environ, "PYTHONPATH": str(site.folder)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job inherits a SIGINT that is ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == "cleaned up\n"
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [["pour"], ["methods"]])
def test_closed_pipe_is_quiet(site, command):
    site.add("failing", FAILING)
    with subprocess.Popen(
        [sys.executable, "-m", "encore", *command],
        env={**os.environ, "PYTHONPATH": str(site.folder)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        if command == ["pour"]:
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def test_completion_offers_options(encore):
    offered = encore(
        _ENCORE_COMPLETE="complete_bash", COMP_WORDS="encore methods --", COMP_CWORD="2", _TYPER_COMPLETE_TEST="1"
    )
    assert "--json" in offered.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_is_shared_among_processes_or_refused(name, call, monkeypatch):
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, value)
    first = call(name, "--help")
    if name in SEVERAL:
        assert first.code == 0
        return
    assert first.code == 2
    assert f"encore {name} runs in one process, and the launcher started 2" in first.err
    assert "forget, eval and train" in first.err.replace("\n  ", " ")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("encore.cli.app.PATIENCE", 0)
    other = call(name)
    assert (other.code, other.out, other.err) == (2, "", "")
