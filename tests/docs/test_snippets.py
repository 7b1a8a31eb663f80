"""Every block of commands or Python in the documentation runs, or its page says why it does not.

A comment before the block says how it is tested: nothing (it runs), `slow` (it runs among the slow tests), `tutorial`
(`test_the_tutorial` runs it), `parsed: REASON` (names and flags of its commands are checked), `not run: REASON`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from tests.conftest import ROOT, Done
from tests.report.made_run import write_run

from encore import plugins
from encore.cli import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SPAN = re.compile(r"`(encore [^`]+)`")
LANGUAGES = {"bash", "console", "python", "text", "json", "toml"}
MARKS = re.compile(r"slow|tutorial|(parsed|not run): \w.+")
INSTALLED = "encore_snippets-1.0.dist-info"

Call = Callable[..., Done]


class Block(NamedTuple):
    """A fenced block. `mark` is "" where it runs; `title` is the file that it is the content of."""

    page: str
    line: int
    mark: str
    language: str
    title: str
    text: str

    @property
    def how(self) -> str:
        return self.mark.partition(":")[0]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start("text"))
            parts = (found[name] or "" for name in ("mark", "language", "title", "text"))
            yield Block(page.name, line, *parts)


BLOCKS = list(blocks())
RUNNABLE = [block for block in BLOCKS if block.language in ("bash", "console", "python")]


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


def chosen(how: str, *languages: str) -> list[Any]:
    found = [block for block in RUNNABLE if block.how == how and block.language in languages]
    return [pytest.param(block, id=named(block), marks=pytest.mark.slow if how == "slow" else ()) for block in found]


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without comments; what two commands are joined by is a word."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompts = [line[2:] for line in lines if line.startswith("$ ")]  # of a console, the rest is what it prints
    split = (shlex.split(line, comments=True) for line in (prompts if block.language == "console" else lines))
    return [words for words in split if words]


def parse(words: list[str]) -> None:
    """Check a command's names and flags, and the types of its values, without running it."""
    words = words[1 : words.index(">") if ">" in words else None]
    group: Any = typer.main.get_command(app.build([words[0]]))
    context = group.make_context("encore", words, resilient_parsing=False)
    while True:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        group, context = command, command.make_context(name, rest, parent=context)
        if not hasattr(command, "resolve_command") or not [*context._protected_args, *context.args]:
            return


def complaint(command: str) -> str:
    """The class of typer's error, which is not public; empty where there is none."""
    try:
        parse(shlex.split(command))
    except Exception as error:
        return type(error).__name__
    return ""


def run(words: list[str], call: Call) -> None:
    target = Path(words[words.index(">") + 1]) if ">" in words else None
    assert words[0] == "encore", f"only encore runs here; mark the block: {words}"
    done = call(*words[1 : words.index(">") if target else None])
    assert done.code == 0, (words, done.err)
    if target:
        target.write_text(done.out)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader who has run the demo, and forgotten once more; the cache is the tests' own."""
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("demo", "again"):
        write_run(tmp_path / "runs" / name)
    return tmp_path


def test_every_block_has_a_language_and_a_known_mark():
    assert len(RUNNABLE) > 30
    for block in BLOCKS:
        assert block.language in LANGUAGES, named(block)
        assert not block.mark or MARKS.fullmatch(block.mark) or block not in RUNNABLE, named(block)
    fences = sum(line.startswith("```") for page in PAGES for line in page.read_text("utf-8").splitlines())
    assert fences == 2 * len(BLOCKS), "a block is not seen here"


@pytest.mark.parametrize("block", chosen("", "bash", "console"))
def test_commands_run(block: Block, place: Path, call: Call) -> None:
    for words in commands(block):
        run(words, call)


@pytest.mark.parametrize("block", chosen("slow", "bash", "console"))
def test_slow_commands_run(
    block: Block, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, embedded_cache: Path
) -> None:
    monkeypatch.setenv("ENCORE_CACHE", str(embedded_cache))
    for words in commands(block):
        run(words, call)


@pytest.mark.parametrize("block", [*chosen("parsed", "bash", "console"), *chosen("not run", "bash", "console")])
def test_commands_have_these_flags(block: Block, place: Path) -> None:
    (place / "encore.toml").touch()
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for words in commands(block):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[0] == "encore" and (block.how == "parsed" or words[1] in app.COMMANDS):
            parse(words)


def test_commands_in_sentences_have_these_flags(place: Path) -> None:
    spans = {" ".join(span.split()) for page in PAGES for span in SPAN.findall(page.read_text("utf-8"))}
    spans = {span for span in spans if "…" not in span and span.split()[1] in app.COMMANDS}
    assert len(spans) > 20
    for span in sorted(spans):
        assert complaint(span) in ("", "MissingParameter"), span


def test_a_wrong_flag_is_found() -> None:
    assert complaint("encore forget --tracks list.txt -o beta=1 --steps 3") == ""
    assert complaint("encore forget --trakcs list.txt") == "NoSuchOption"
    assert complaint("encore forget --tracks list.txt --steps x") == "BadParameter"
    assert complaint("encore forgot") == complaint("encore plugins chek npo") == "UsageError"


@pytest.mark.parametrize("block", [*chosen("", "python"), *chosen("slow", "python")])
def test_python_runs(block: Block) -> None:
    exec(compile(block.text, named(block), "exec"), {"__name__": "snippet"})


@pytest.fixture
def package(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], None]]:
    """Make a plugin's folder of modules look installed: `package(folder, module)`."""
    before = set(sys.modules)

    def add(folder: Path, module: str) -> None:
        info = folder / INSTALLED
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: encore-snippets\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[encore]\nsnippets = {module}\n")
        monkeypatch.syspath_prepend(str(folder))
        plugins.reset()

    yield add
    plugins.reset()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(place)):
            del sys.modules[name]


def test_the_tutorial(place: Path, call: Call, package: Callable[[Path, str], None]) -> None:
    new, *steps = (block for block in RUNNABLE if block.how == "tutorial")
    for words in commands(new):
        run(words, call)
    source = place / "encore-mymethod" / "src"
    package(source, "encore_mymethod")
    for block in steps:
        if block.title:
            target = place / "encore-mymethod" / block.title
            assert target.is_file(), "the tutorial replaces files that it has"
            target.write_text(block.text)
            for name in [name for name in sys.modules if name.startswith("encore_mymethod")]:
                del sys.modules[name]
            plugins.reset()
            continue
        for words in commands(block):
            run(words, call)
    assert "mymethod-squared" in plugins.methods().names


HOOKS = """
from encore.api import EmbedderSpec, MethodSpec, MetricSpec, hookimpl

@hookimpl
def encore_register_methods():
    return [MethodSpec("mymethod-dampen", "a", "snippets_all:Dampen", needs={"retain", "fisher"})]

@hookimpl
def encore_register_metrics():
    return [MetricSpec("mymethod_spread", "a", "snippets_all:Spread")]

@hookimpl
def encore_register_embedders():
    return [EmbedderSpec("mymethod-loudness", "a", "snippets_all:Loudness")]
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mymethod-dampen", "mymethod_spread", "mymethod-loudness"])
def test_the_other_examples_keep_the_contract(
    name: str, place: Path, call: Call, package: Callable[[Path, str], None]
) -> None:
    classes = [block.text for block in RUNNABLE if block.page == "plugins.md" and "class " in block.text]
    modules = place / "modules"
    modules.mkdir()
    (modules / "snippets_all.py").write_text("\n".join(text for text in classes if "SquaredHinge" not in text))
    (modules / "snippets_hooks.py").write_text(HOOKS)
    package(modules, "snippets_hooks")
    done = call("plugins", "check", name)
    assert done.code == 0, done.out
