"""Help of every command, completion, near names, -q and -v."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import typer.main

from encore import plugins
from encore.cli import console
from encore.cli.app import COMMANDS, build
from encore.cli.help import EXAMPLES, PANELS

SUB = {"encore": [], "plugins check": ["plugins", "check"], "plugins new": ["plugins", "new"]}


@pytest.fixture(scope="module")
def app():
    return typer.main.get_command(build())


def command_of(app, name):
    found = app
    for word in SUB.get(name, [name]):
        found = found.commands[word]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_case_E10_every_example_is_one_that_the_command_takes(app, name):
    command = command_of(app, name)
    for example in EXAMPLES[name]:
        words = shlex.split(example.partition(" > ")[0])
        assert words[0] == "encore"
        command = app
        while hasattr(command, "commands") and words[1:] and words[1] in command.commands:
            command = command.commands[words.pop(1)]
        with command.make_context(words[0], words[1:]):
            pass


def test_case_E10_every_command_has_examples_at_the_end_of_its_help(call):
    assert set(COMMANDS) | set(SUB) == set(EXAMPLES)
    for name in EXAMPLES:
        shown = call(*SUB.get(name, [name]), "--help")
        assert shown.code == 0
        assert shown.out.rstrip().endswith(f"  {EXAMPLES[name][-1]}")
        assert name == "encore" or re.search(r"-q, --quiet .*\n  -v, --verbose ", shown.out), name


def test_case_E10_help_names_values_plainly_and_lists_choices_by_panel(call):
    for name in EXAMPLES:
        shown = call(*SUB.get(name, [name]), "--help").out
        assert not re.search(
            r"<\w|Path|list\[|x>=|<=x", shown.split("Examples")[0].replace("<date>-<time>-<method>", "")
        )
    shown = call("forget", "--help").out
    titles = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and line[:1].isalpha()]
    assert titles == [title for title in PANELS if title != "Measuring"] + ["Examples"]
    text = " ".join(re.sub(r"-\n +", "-", shown).split())  # a name may be broken at its hyphen
    assert all(f" {method}" in text.partition("One of: ga,")[2] for method in plugins.methods().names[1:])
    assert "--precision auto|fp32|bf16" in shown
    assert "--root FOLDER" in shown
    assert "--tolerance exact|machine|chance" in call("verify", "--help").out
    wrong = call("verify", "a.zip", "--tolerance", "near").err
    assert "'--tolerance': 'near' is not one of 'exact', 'machine', 'chance'" in wrong
    assert "One of: tracks, files, evaluations, fisher, native, all." in " ".join(call("cache", "--help").out.split())
    assert "[required]" in shown


def test_every_option_of_a_long_command_is_shown_once(app, call):
    for name in ("forget", "check", "train", "eval", "bench", "generate", "attribute"):
        shown = call(name, "--help").out
        for parameter in command_of(app, name).params:
            if parameter.param_type_name == "option":
                assert len(re.findall(rf"^ .*{re.escape(parameter.opts[0])}\b", shown, re.MULTILINE)) >= 1, parameter


@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        ("encore forget --method sim", ["simnpo"], ["npo"]),
        ("encore forget --backend m", ["musicgen"], []),
        ("encore forget --device cu", ["cuda", "cuda:0"], ["cpu"]),
        ("encore eval --metrics nll,kl", ["nll,kl_gold"], ["kl_gold", "nll,nll"]),
        ("encore eval --embedder lat", ["latents"], []),
        ("encore bench --methods ga,ga", ["ga,ga-kl"], ["ga,ga"]),
        ("encore metrics verb", ["verbatim", "verbatim_caption"], ["nll"]),
        ("encore methods np", ["npo"], ["ga"]),
        ("encore cache --clear e", ["evaluations"], ["fisher"]),
        ("encore forget --qu", ["--quiet"], []),
    ],
)
def test_case_E10_the_shell_completes_names(encore, words, offered, not_offered):
    given = words.split()
    ran = encore(_ENCORE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(given) - 1))
    found = ran.stdout.split()
    assert set(offered) <= set(found), ran
    assert not set(not_offered) & set(found)


def test_case_E10_completion_imports_no_torch():
    code = (
        "import os, sys\n"
        "os.environ.update(_ENCORE_COMPLETE='complete_bash', COMP_WORDS='encore forget --method n', COMP_CWORD='3')\n"
        "from encore.cli.app import run\n"
        "run([])\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == "[]\n"
    assert "npo" in ran.stdout.split()


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (["metrics", "kl"], "hint: did you mean kl_gold or tag_kl or tag_kl_"),
        (["metrics", "verbatm"], "did you mean verbatim"),
        (["methods", "npoo"], "did you mean npo or simnpo? `encore methods` lists all"),
        (["forget", "--tracks", "x", "--method", "nop"], "did you mean npo"),
        (["forget", "--tracks", "x", "-o", "warmups=1"], "hint: did you mean warmup?"),
        (["compar"], "Did you mean 'compare'"),
        (["forget", "--trcks", "x"], "--tracks"),
    ],
)
def test_case_E10_a_misspelt_name_brings_the_near_ones_and_no_list_of_all(call, given, hint):
    done = call(*given)
    assert done.code == 2
    assert hint in done.err
    assert len(done.err) < 300, "a list of all names helps nobody"


def test_case_E12_quiet_leaves_out_notes_and_verbose_shows_tracebacks(call, tmp_path, monkeypatch):
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    loud, quiet = call("cache"), call("cache", "-q")
    assert loud.out == quiet.out
    assert "may be removed at any time" in loud.err
    assert quiet.err == ""
    plain, long = call("runs", tmp_path / "no"), call("runs", tmp_path / "no", "-v")
    assert "Traceback" not in plain.err
    assert "Traceback" in long.err
    assert plain.err in long.err
    assert call("runs", tmp_path / "no", "-q").err == plain.err, "errors are always told"
    assert not console.verbose()
    assert call("plugins", "-q").code == 0
    for given in (
        ["plugins", "-q", "new", "one"],
        ["plugins", "new", "two", "--quiet"],
    ):  # of the group, or the command
        done = call(*given, "--out", tmp_path / given[-1])
        assert (done.code, done.err) == (0, "")
    assert "next: pip install" in call("plugins", "new", "three", "--out", tmp_path / "three").err


def test_case_E12_progress_is_left_out_or_shown_step_by_step(capfd):
    from encore.cli.progress import reporting

    def steps(**how):
        console.set_verbosity(**how)
        with reporting() as reporter:
            for done in range(4):
                reporter.progress("walk", done, 4)
        console.set_verbosity()
        return capfd.readouterr().err.count("walk: ")

    assert (steps(quiet=True), steps(verbose=True)) == (0, 4)
