"""Builds the application, runs it, and maps all errors to exit codes."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Container, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from encore import __version__, plugins
from encore.api.specs import faulty_name
from encore.cli import console
from encore.cli.help import Command, Group, dressed
from encore.errors import EncoreError, Interrupted, PluginError, UsageError
from encore.launcher import launched

# name -> (where it is, how its help begins). One line adds a command; only the one that runs is imported.
COMMANDS = {
    "forget": ("encore.cli.forget:forget", "Make a model forget the tracks of a list."),
    "eval": ("encore.cli.evaluate:evaluate", "Measure what a run forgot and what it kept."),
    "check": ("encore.cli.check_tracks:check", "Check which tracks a model has memorised or was trained on."),
    "train": ("encore.cli.train:train", "Fine-tune a base or a gold of your own on tracks."),
    "bench": ("encore.cli.bench:bench", "Compare methods over seeds, and write a leaderboard."),
    "report": ("encore.cli.report:report", "Write a run's report again from its files."),
    "bundle": ("encore.cli.bundle:bundle", "Pack a run's evidence into one archive."),
    "verify": ("encore.cli.bundle:verify", "Check an evidence bundle."),
    "encode": ("encore.cli.encode:encode", "Encode a catalogue into shards of codes."),
    "generate": ("encore.cli.generate:generate", "Generate music for captions and write WAV files."),
    "attribute": ("encore.cli.attribute:attribute", "Rank a catalogue's tracks by influence on a clip."),
    "runs": ("encore.cli.overview:runs", "List the runs in a folder and their state."),
    "compare": ("encore.cli.overview:compare", "Show figures of several runs side by side."),
    "open": ("encore.cli.overview:open_report", "Open a run's report in the browser."),
    "methods": ("encore.cli.listing:methods", "List the unlearning methods; with NAME, its options."),
    "backends": ("encore.cli.listing:backends", "List the model families that can be loaded."),
    "metrics": ("encore.cli.listing:metrics", "List the metrics of `encore eval`."),
    "embedders": ("encore.cli.listing:embedders", "List the audio embedders of the metrics."),
    "plugins": (
        "encore.cli.plugin_commands:app",
        "List the plugins; `new` creates one, `check` tests one.",
    ),
    "cache": ("encore.cli.cache:cache", "Show the cache's contents, or remove some."),
    "config": ("encore.cli.example:config", "Print a config file with all settings."),
    "doctor": ("encore.cli.doctor:doctor", "Show the features of this installation, and its problems."),
}
PATIENCE = 2.0  # seconds that the other processes leave to the first, which prints what is wrong
SEVERAL = ("forget", "eval", "train")  # commands that torchrun's processes can share
COMPLETING = "_ENCORE_COMPLETE"  # set while the shell asks for completions, which need every command's options


def new_app() -> typer.Typer:
    """An empty application with Encore's settings; plugins add their commands to one."""
    return typer.Typer(
        name="encore",
        rich_markup_mode=None,  # plain help: user text is never markup, and rich's renderer costs as much as the rest
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def build(wanted: Container[str] = COMMANDS) -> typer.Typer:
    """The application: Encore's commands, then those of the plugins.

    Args:
        wanted: the commands that may run; the others are only listed in `--help`.
    """
    app = new_app()
    app.callback(no_args_is_help=True, cls=Group)(root)
    for name, (target, summary) in COMMANDS.items():
        module, _, attribute = target.partition(":")
        command = dressed(guarded(getattr(importlib.import_module(module), attribute))) if name in wanted else _unloaded
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, cls=Group)
        else:
            app.command(name, short_help=summary, cls=Command)(command)
    _add_plugin_commands(app)
    return app


def guarded(command: Any) -> Any:
    """One of Encore's commands, or a group of them; what a plugin raises in it can't choose the exit code.

    Raises:
        PluginError: a plugin raised anything but an `EncoreError`, even `SystemExit`; names the plugin.
    """
    if isinstance(command, typer.Typer):
        for registered in command.registered_commands:
            registered.callback = guarded(registered.callback)
        return command
    if hasattr(command, "__wrapped__"):
        return command

    @functools.wraps(command)
    def call(*arguments: Any, **more: Any) -> Any:
        try:
            return command(*arguments, **more)
        except BaseException as error:
            if isinstance(error, EncoreError) or plugins.is_interruption(error):
                raise
            source = plugins.failing_plugin(error)
            if source is None:
                raise
            raise PluginError(
                f"the plugin {source.name!r} of {source} failed: {plugins.Broken(error)}",
                "tell its authors, or do without it; ENCORE_DEBUG=1 shows where it failed",
            ) from error

    return call


def _unloaded() -> None:
    raise AssertionError("a command was called that was not loaded")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.data(f"encore {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Make a text-to-music model forget tracks, and show what it forgot and what it kept."""


def _add_plugin_commands(app: typer.Typer) -> None:
    """Each plugin fills a separate application, which is checked before its commands are added."""
    taken = set(COMMANDS)
    hook = "encore_register_commands"
    manager = plugins.manager()
    for source, given, _ in manager.call(hook, lambda: {"app": new_app()}):
        added: typer.Typer = given["app"]
        if not added.registered_commands and not added.registered_groups:
            continue
        added.callback()(lambda: None)  # a group, even if it has one command
        try:
            group = plugins.third_party(typer.main.get_command, added)  # typer reads the plugin's signatures
        except plugins.Broken as broken:
            manager.report(source, hook, f"a command of it can't be read: {broken}", broken.error)
            continue
        names = set(getattr(group, "commands"))  # noqa: B009  (click's type is not public)
        if wrong := next(filter(None, map(faulty_name, sorted(names))), ""):
            manager.report(source, hook, f"a command's {wrong}")
            continue
        if names & taken:
            manager.report(source, hook, f"there is a command {sorted(names & taken)[0]!r} already")
            continue
        taken |= names
        app.registered_commands += added.registered_commands
        app.registered_groups += added.registered_groups


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; no exception leaves this function."""
    console.set_verbosity()
    try:
        plugins.manager().listen(lambda problem: _warn_of_plugin(problem, arguments))
        words = [word for word in arguments if word[:1] != "-"][:1]
        if launched() > 1:
            _refuse_several(words)
        wanted = COMMANDS if COMPLETING in os.environ else words
        command: Any = typer.main.get_command(build(wanted))
        code = command(args=list(arguments), prog_name="encore", standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as leaving:
        code = leaving.exit_code
    except SystemExit as leaving:  # typer's for a closed pipe, or that of a plugin's own command
        code = leaving.code
        if code is not None and not isinstance(code, int):  # as Python itself takes it
            console.note(str(code))
            code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1
    except BaseException as error:  # the last line of defence; ENCORE_DEBUG=1 shows the traceback
        code = console.fail(_usage(error))
    return code if isinstance(code, int) else 0


def _refuse_several(words: Sequence[str]) -> None:
    """Check that a launcher's processes can share a command; each of them would do all of it otherwise.

    Raises:
        UsageError: it is another of Encore's commands; raised in the first process, which prints it.
    """
    name = words[0] if words else ""
    if name in SEVERAL or name not in COMMANDS:
        return
    if os.environ["RANK"] != "0":
        time.sleep(PATIENCE)  # the launcher ends all processes after the first failure
        raise SystemExit(2)
    raise UsageError(
        f"encore {name} runs in one process, and the launcher started {launched()}",
        f"start it without torchrun; {', '.join(SEVERAL[:-1])} and {SEVERAL[-1]} share their work among processes",
    )


def main() -> NoReturn:
    """The `encore` script."""
    from encore.stop_signals import stopping

    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is imported. GNU OpenMP's threads spin for milliseconds while they wait, which on a machine that
        # is busy otherwise keeps them from one another: a training step took up to seven times as long.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for number in stopping():
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names that are not UTF-8 and old terminals must not raise
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains once more while it exits
    if launched() == 1:  # among several, connections are to be closed before the store of the group, as Python does
        gc.freeze()  # else Python searches torch's hundred thousands of objects for cycles while it exits: up to 1 s
    sys.exit(code)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def _usage(error: BaseException) -> BaseException:
    """Typer's usage errors as `UsageError`; their classes are click's, which is not imported here."""
    if isinstance(error, typer.Abort):
        return UsageError("aborted")
    if not hasattr(error, "format_message"):
        return error
    context = getattr(error, "ctx", None)
    if type(error).__name__.startswith("NoArgsIsHelp"):
        print(error.format_message(), file=sys.stderr)
        return UsageError("a command is missing")
    message = error.format_message().strip().rstrip(".").replace("Value error, ", "")  # pydantic's
    name = getattr(getattr(error, "param", None), "name", None)
    if context is not None and name and context.get_parameter_source(name).name == "DEFAULT_MAP":
        file, message = context.params.get("config"), message.partition(": ")[2]
        return UsageError(f"{file}: {name} is invalid: {message[:1].lower() + message[1:]}", "correct it in that file")
    path = context.command_path if context is not None else "encore"
    usage_error = UsageError(message[:1].lower() + message[1:], f"{path} --help lists what it takes")
    usage_error.__cause__ = error
    return usage_error


def _warn_of_plugin(problem: plugins.Problem, arguments: Sequence[str]) -> None:
    if list(arguments[:1]) == ["plugins"]:
        return  # that command shows them itself
    console.warn(str(problem), "encore plugins shows what is installed and what failed")
    if problem.error is not None and console.debugging():
        console.trace(problem.error)
