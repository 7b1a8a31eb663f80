"""Rows 16 and 23 of the fault list, with real processes: broken plugins, and an extension that does not fit."""

import html
import importlib.machinery
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from encore.cli import app

GOOD = """
from encore.api import MethodSpec, hookimpl

@hookimpl
def encore_register_methods():
    return [MethodSpec("good-method", "a summary", "good:Method")]
"""
HOOK = "from encore.api import MethodSpec, hookimpl\n@hookimpl\ndef encore_register_methods():\n    "
FAULTS = {
    "raises at import": ("1 / 0", "import", "ZeroDivisionError: division by zero"),
    "leaves at import": ("raise SystemExit(3)", "import", "SystemExit: 3"),
    "interrupts at import": ("raise KeyboardInterrupt", "import", "KeyboardInterrupt"),
    "base exception at import": ("raise BaseException('base')", "import", "BaseException: base"),
    "syntax error": ("def (", "import", "SyntaxError"),
    "raises in a hook": (HOOK + "raise RuntimeError('no\\nluck')", "encore_register_methods", "RuntimeError: no luck"),
    "leaves in a hook": (HOOK + "raise SystemExit", "encore_register_methods", "it raised SystemExit"),
    "raises half way": (HOOK + "yield 1 / 0", "encore_register_methods", "ZeroDivisionError"),
    "returns nothing": (HOOK + "return None", "encore_register_methods", "must return a list of MethodSpec"),
    "returns text": (HOOK + "return 'ga'", "encore_register_methods", "returned a str in place of a MethodSpec"),
    "bad spec": (
        HOOK + "return [MethodSpec('bad', 's', 'bad:M', needs={'gold'})]", "encore_register_methods", "can only need"
    ),
    "misspelt hook": (HOOK.replace("_methods", "_method") + "return []", "encore_register_method", "did you mean"),
    "unmarked hook": ("def encore_register_methods():\n    return []", "encore_register_methods", "@encore.hookimpl"),
    "argument that no hook has": (HOOK.replace("()", "(engine)") + "return []", "import", "engine"),
    "duplicate name": (
        HOOK + "return [MethodSpec('npo', 's', 'bad:M')]", "npo", "encore-music 0.1.0 and bad 1.0"
    ),
    "command that raises": (
        HOOK.replace("methods()", "commands(app)") + "app.command('half')(print); raise OSError",
        "encore_register_commands", "OSError",
    ),
    "command that can't be read": (
        HOOK.replace("methods()", "commands(app)") + "app.command('odd')(lambda x: None)\n"
        "    @app.command('odder')\n    def f(x: int | str): ...",
        "encore_register_commands", "can't be read",
    ),
    "command that is taken": (
        HOOK.replace("methods()", "commands(app)") + "app.command('doctor')(lambda: None)",
        "encore_register_commands", "there is a command 'doctor' already",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_plugin_costs_only_itself(site, encore, fault):
    code, where, message = FAULTS[fault]
    site.add("bad", code)
    site.add("good", GOOD)
    shown = json.loads(encore("plugins", "--json", path=[site.folder]).stdout)["plugins"]
    by_name = {plugin["name"]: plugin for plugin in shown}
    (problem,) = by_name["bad"]["problems"]
    assert problem["where"] == where
    assert message in problem["message"]
    assert "\n" not in problem["message"]
    assert by_name["good"]["problems"] == by_name["builtins"]["problems"] == []

    listed = encore("methods", "--json", path=[site.folder])
    assert listed.returncode == 0
    methods = {row["name"]: row for row in json.loads(listed.stdout)["methods"]}
    assert methods["good-method"]["available"]
    assert methods["ga"]["available"]
    assert listed.stderr.count("warning:") == 1, "warned of once"
    assert listed.stderr.startswith("warning: plugin 'bad' of bad 1.0")
    assert listed.stderr.endswith("hint: encore plugins shows what is installed and what failed\n")


def test_broken_plugin_does_not_break_help(site, encore):
    for number, (code, *_) in enumerate(FAULTS.values()):
        site.add(f"bad{number}", code)
    shown = encore("--help", path=[site.folder])
    assert shown.returncode == 0
    assert "half" not in shown.stdout
    assert "doctor" in shown.stdout


def test_using_a_duplicate_name_names_both(site, encore):
    site.add("bad", FAULTS["duplicate name"][0])
    used = encore("methods", "npo", path=[site.folder])
    assert used.returncode == 1
    assert "error: more than one plugin registers the method 'npo': encore-music 0.1.0 and bad 1.0\n" in used.stderr
    assert used.stdout == ""


def test_debugging_shows_the_traceback(site, encore):
    site.add("bad", "1 / 0")
    assert "Traceback" not in encore("plugins", path=[site.folder]).stderr
    assert "Traceback" in encore("plugins", path=[site.folder], ENCORE_DEBUG="1").stderr


# --------------------------------------------------------------------------------- plugins that leave, and their names

LEAVING = """
import sys
import typer
from encore.api import EditMethod, MethodSpec, Metric, MetricSpec, hookimpl
from encore.errors import EncoreError
from encore.options import Options

class Silent(EncoreError):
    exit_code = 0

class Own(BaseException):
    pass

ERRORS = {
    "exit": SystemExit(0), "none": SystemExit(), "interrupt": KeyboardInterrupt(), "generator": GeneratorExit(),
    "own": Own("mine"), "typer": typer.Exit(0), "ordinary": ZeroDivisionError("zero"), "silent": Silent("silent"),
}

class Leaver(EditMethod):
    Options = Options
    def edit(self, session):
        raise ERRORS[self.spec.name.partition("-")[2]]

class Measure(Metric):
    def measure(self, evaluation):
        raise ERRORS[self.spec.name.partition("-")[2]]

@hookimpl
def encore_register_methods():
    return [MethodSpec(f"leave-{name}", "", "leaving:Leaver") for name in ERRORS]

@hookimpl
def encore_register_metrics():
    return [MetricSpec(f"measure-{name}", "", "leaving:Measure") for name in ERRORS]
"""


@pytest.fixture
def as_a_command():
    """Signals are handled as the `encore` script has them handled."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, app._stop)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["exit", "none", "interrupt", "generator", "own", "typer", "ordinary", "silent"])
def test_case_C5_a_method_that_leaves_is_exit_1_and_no_run(as_a_command, studio, call, installed, how):
    installed.add("leaving", LEAVING)
    done = call(
        "forget", "--tracks", studio / "music/forget.txt", "--model", studio / "model", "--method", f"leave-{how}",
        "--out", "run",
    )  # fmt: skip
    assert done.code == 1, done.err
    assert not Path("run/run.json").exists()
    assert done.err.count("error:") == 1
    assert "not expected" not in done.err
    assert how == "silent" or "the plugin 'leaving' of leaving 1.0 failed" in done.err


def test_case_C5_metrics_that_leave_do_not_end_an_evaluation_well(as_a_command, studio, call, installed):
    installed.add("leaving", LEAVING)
    forget = ("forget", "--tracks", studio / "music/forget.txt", "--retain", studio / "music/retain.txt")
    made = call(*forget, "--model", studio / "model", "--method", "graddiff", "--steps", "1", "--out", "run")
    assert made.code == 0, made.err
    for how in ("exit", "interrupt", "own", "typer"):
        done = call("eval", "run", "--metrics", f"measure-{how}")
        assert done.code == 1, done.err
        assert "leaving" in done.err or f"measure-{how}" in done.err
        assert "not expected" not in done.err


def test_case_C5_a_command_of_a_plugin_may_choose_its_exit_code(installed, call):
    code = HOOK.replace("methods()", "commands(app)") + "@app.command('own')\n    def own(code: str):\n        "
    installed.add("own", code + "raise SystemExit(int(code) if code.isdigit() else code)")
    assert call("own", "7").code == 7
    done = call("own", "words")
    assert (done.code, "words" in done.err) == (1, True)


def test_case_C5_a_command_of_a_plugin_that_leaves_with_a_list_is_exit_1(installed, call):
    code = HOOK.replace("methods()", "commands(app)") + "@app.command('own')\n    def own():\n        "
    installed.add("own", code + "raise SystemExit([])")
    assert call("own").code == 1


MUTE = """
from encore.api import hookimpl, EditMethod, MethodSpec
from encore.errors import EncoreError
from encore.options import Options

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Bare(EncoreError):
    def __init__(self):
        pass

class Overflowing(EncoreError):
    exit_code = 256

class Worded(EncoreError):
    exit_code = "fine"

class Numbered(EncoreError):
    def __init__(self):
        super().__init__(5, 7)

class Spec(MethodSpec):
    def fault(self):
        raise Mute

class Odd(EditMethod):
    Options = Options
    def edit(self, session):
        raise ERRORS[self.spec.name]

ERRORS = {"mute": Mute(), "bare": Bare(), "overflowing": Overflowing("x"), "worded": Worded("x"),
          "numbered": Numbered()}

@hookimpl
def encore_register_methods():
    return [Spec(name, "", "mute:Odd") for name in ERRORS]

@hookimpl
def encore_register_metrics():
    raise Mute
"""


@pytest.mark.parametrize("how", ["mute", "bare", "overflowing", "worded", "numbered"])
def test_case_C5_an_error_without_text_or_with_an_odd_exit_code_is_exit_1(as_a_command, studio, call, installed, how):
    installed.add("mute", MUTE)
    done = call(
        "forget", "--tracks", studio / "music/forget.txt", "--model", studio / "model", "--method", how, "--out", "run",
    )  # fmt: skip
    assert done.code == 1, done.err
    assert done.err.count("error:") == 1
    assert "not expected" not in done.err
    assert not Path("run/run.json").exists()


def test_case_C5_a_plugins_own_class_of_spec_and_an_error_without_text_cost_only_itself(installed, call):
    installed.add("mute", MUTE)
    done = call("plugins", "--json")
    assert done.code == 0, done.err
    (mute,) = [plugin for plugin in json.loads(done.out)["plugins"] if plugin["name"] == "mute"]
    assert [problem["message"] for problem in mute["problems"]] == ["it raised Mute"]


HOSTILE = ("=cmd()", "<script>", "../../esc", "", "-x", "x-", "UPPER", "a b", "a" * 65, "a\n", "a|b", "a,b", 5, None)


def test_case_C9_hostile_names_are_refused_and_reported(installed, call):
    specs = ", ".join(f"MethodSpec({name!r}, 's', 'bad:M')" for name in (*HOSTILE, "fine_1-a"))
    installed.add("bad", HOOK + f"return [{specs}]")
    done = call("plugins", "--json")
    (bad,) = [plugin for plugin in json.loads(done.out)["plugins"] if plugin["name"] == "bad"]
    assert len(bad["problems"]) == len(HOSTILE)
    assert all("registered a method whose name" in problem["message"] for problem in bad["problems"])
    names = [row["name"] for row in json.loads(call("methods", "--json").out)["methods"]]
    assert "fine_1-a" in names
    assert not set(names) & set(HOSTILE)


@pytest.mark.parametrize("field", ["summary", "target", "install", "requires"])
def test_case_C9_fields_of_another_type_are_refused(installed, call, field):
    fields = {"summary": "s", "target": "bad:M"} | {field: 5}
    installed.add("bad", HOOK + f"return [MethodSpec('bad', **{fields!r})]")
    done = call("methods", "--json")
    assert done.code == 0, done.err
    assert f"whose {field} has the wrong type" in done.err
    assert "bad" not in [row["name"] for row in json.loads(done.out)["methods"]]


def test_case_C9_a_commands_name_is_held_to_the_same_rule(installed, call):
    installed.add("bad", HOOK.replace("methods()", "commands(app)") + "app.command('\\x1b[2Jx')(lambda: None)")
    done = call("plugins", "--json")
    (bad,) = [plugin for plugin in json.loads(done.out)["plugins"] if plugin["name"] == "bad"]
    assert "a command's name" in bad["problems"][0]["message"]


# ------------------------------------------------------------------------------------------------- the extension


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without its extension and assets, to be broken at will."""
    import encore

    source = Path(encore.__file__).parent
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("_native*.so", "assets", "csrc")
    shutil.copytree(source, folder / "encore", ignore=ignore)
    return folder


# Forks a process with torch loaded, and nothing of Encore, for each line of JSON: the folder of the package to import,
# the environment and code. The answer is the exit code.
TORCH = """
import json, os, sys, torch
for line in sys.stdin:
    folder, environment, code = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate(("out", "err"), 1):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path.insert(0, folder)
        exec(code)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def torch_process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TORCH]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    yield process
    process.communicate()


@pytest.fixture
def python(package: Path, torch_process: subprocess.Popen[str]) -> Callable[..., tuple[str, str]]:
    """Run code with the package; its stdout and stderr."""

    def run(code: str, **environment: str) -> tuple[str, str]:
        assert torch_process.stdin
        assert torch_process.stdout
        environment = {**os.environ, "ENCORE_CACHE": str(package / "cache"), **environment}
        torch_process.stdin.write(json.dumps([str(package), environment, code]) + "\n")
        torch_process.stdin.flush()
        if not select.select([torch_process.stdout], [], [], 120)[0]:
            os.killpg(torch_process.pid, signal.SIGKILL)  # with what it has forked
        answer = torch_process.stdout.readline()
        out, err = ((package / name).read_text() for name in ("out", "err"))
        assert answer == "0\n", err
        return out, err

    return run


def doctor(python: Callable[..., tuple[str, str]], **environment: str) -> dict:
    """What `encore doctor` says of the extension."""
    code = "from encore.cli import app; sys.argv = ['encore', 'doctor', '--json']; app.main()"
    return json.loads(python(code, **environment)[0])["extension"]


def test_extension_missing(python):
    extension = doctor(python)
    assert not extension["loaded"]
    assert extension["why"] == "it was not built at installation"


def test_extension_that_does_not_load(package, python):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (package / "encore" / f"_native{suffix}").write_bytes(b"\x7fELF rubbish")
    assert "it can't be loaded (" in doctor(python)["why"]


def test_extension_switched_off(python):
    assert doctor(python, ENCORE_NATIVE="0")["why"] == "ENCORE_NATIVE=0 switches it off"


@pytest.mark.parametrize("how", ["half", "last byte", "header", "zeros at the end"])
def test_case_C12_a_damaged_extension_is_told_and_pure_torch_serves(package, python, how):
    """Without the check, a process that loads the half of a library is ended by SIGBUS."""
    spec = importlib.util.find_spec("encore._native")
    if spec is None:
        pytest.skip("the extension was not built at installation")
    whole = Path(spec.origin).read_bytes()
    cut = {
        "half": whole[: len(whole) // 2], "last byte": whole[:-1], "header": whole[:50],
        "zeros at the end": whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    }[how]  # fmt: skip
    (package / "encore" / Path(spec.origin).name).write_bytes(cut)
    code = (
        "import torch\nfrom encore.ops import linear_grad, native\n"
        "for _ in range(2): print(linear_grad.linear_sq_norm(torch.ones(1, 2, 3), torch.ones(1, 2, 4)))\n"
        "print(native.find(build=False).why)"  # what `encore doctor` shows
    )
    out, errors = python(code, CXX="no-such-compiler")
    *computed, why = out.splitlines()
    assert computed == ["tensor([48.])"] * 2
    assert "is damaged" in why
    assert errors.count("is damaged and not used") == 1


def test_case_C12_a_whole_extension_is_loaded(package):
    """In a process of its own."""
    spec = importlib.util.find_spec("encore._native")
    if spec is None:
        pytest.skip("the extension was not built at installation")
    shutil.copy(spec.origin, package / "encore")
    ran = subprocess.run(
        [sys.executable, "-m", "encore", "doctor", "--json"], capture_output=True, text=True, check=True, cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "ENCORE_CACHE": str(package / "cache")}, timeout=120,
    )  # fmt: skip
    assert json.loads(ran.stdout)["extension"]["loaded"]


# ------------------------------------------------------------------------------- rows, rules and losses that are wrong

ROWS = """
from encore.api import Metric, MetricSpec, Result, RowSpec, hookimpl

class Own(Metric):
    def measure(self, evaluation):
        yield Result("strange", "unlearned", "forget", 0.5, n=1)

class Taking(Own):
    def measure(self, evaluation):
        yield from super().measure(evaluation)
        yield Result("nll", "unlearned", "forget", 99.0, n=1)

def zero(figures):
    return 1 / 0

def nothing(figures):
    return None

def lacking(figures):
    return figures["unlearned"].details["missing"]

def absent(figures):
    raise KeyError("gold")

def spec(name, judge):
    return MetricSpec(name, "", "rows:Own", rows=(RowSpec("strange", "forget", "strange", target="≤ 1", judge=judge),))

@hookimpl
def encore_register_metrics():
    return SPECS
"""


@pytest.fixture
def made(studio, call):
    """The flags of an evaluation of a run."""
    forget = ("forget", "--tracks", studio / "music/forget.txt", "--retain", studio / "music/retain.txt")
    done = call(*forget, "--model", studio / "model", "--method", "graddiff", "--steps", "1", "--out", "run")
    assert done.code == 0, done.err
    return ("eval", "run", "--metrics")


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("rows:zero", "ZeroDivisionError: division by zero"), ("rows:nothing", "it returned None"),
        ("rows:lacking", "KeyError: 'missing'"), ("rows:nowhere", "there is no rule 'rows:nowhere'"),
        ("rows:absent", ""),
    ],
)  # fmt: skip
def test_a_rule_that_fails_costs_its_own_verdict_alone(made, call, installed, judge, words):
    installed.add("rows", ROWS + f"SPECS = [spec('strange', '{judge}')]\n")
    done = call(*made, "strange,nll")
    assert done.code == 0, done.err
    noted = f"strange was not judged: the rule '{judge}' of rows 1.0 failed: "
    assert (noted in done.err) == bool(words), done.err
    assert words in done.err
    page = Path("run/report.html").read_text()
    assert (words or "there is no figure of") in html.unescape(page)
    assert call("report", "run").code == 0


@pytest.mark.parametrize("order", ["taking,nll", "nll,taking", "taking"])
def test_a_metric_may_not_return_rows_of_another(made, call, installed, order):
    installed.add("rows", ROWS + "SPECS = [MetricSpec('taking', '', 'rows:Taking')]\n")
    done = call(*made, order)
    assert done.code == 1
    assert "the metric 'taking' failed: its row 'nll' is that of the metric 'nll', and was left out" in done.err
    rows = json.loads(Path("run/metrics.json").read_text())["results"]
    keys = [(row["metric"], row["model"], row["set"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert ("strange", "unlearned", "forget") in keys
    assert 99.0 not in [row["value"] for row in rows]


LOSSES = """
import torch
from encore.api import MethodSpec, hookimpl
from encore.methods.graddiff import GradDiff

class Nothing(GradDiff):
    def forget_loss(self, step, batch):
        return None

class Detached(GradDiff):
    def retain_loss(self, step, batch):
        return super().retain_loss(step, batch).detach()

class Number(GradDiff):
    def penalty(self, step):
        return 0.5

@hookimpl
def encore_register_methods():
    return [MethodSpec(name, "", f"losses:{name.title()}", needs={"retain"}) for name in
            ("nothing", "detached", "number")]
"""


@pytest.mark.parametrize("clip", [(), ("-o", "per_track_clip=1")])
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("nothing", "method 'nothing': forget_loss returned NoneType, and must return a tensor"),
        ("detached", "method 'detached': retain_loss returned a loss without a gradient"),
        ("number", "method 'number': penalty returned float, and must return a tensor"),
    ],
)
def test_a_loss_that_can_not_be_trained_on_is_named(studio, call, installed, method, words, clip):
    installed.add("losses", LOSSES)
    done = call(
        "forget", "--tracks", studio / "music/forget.txt", "--retain", studio / "music/retain.txt", "--model",
        studio / "model", "--method", method, "--steps", "1", "--out", "run", *clip,
    )  # fmt: skip
    assert done.code == 1
    assert words in done.err
    assert "not expected" not in done.err
