"""Imports go down only. This reads them, also those inside functions and under TYPE_CHECKING."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FLOORS = [
    {"errors", "api", "options", "losses", "memorised", "relearning", "delay_pattern", "text", "text_encoding", "stats"}
    | {"hashing", "hidden_states", "files", "stop_signals", "reporter", "assets", "entrypoints", "hub", "adamw"}
    | {"distributed", "launcher", "_native"},
    {"hookspecs", "builtins", "builtin_metrics", "plugins", "settings"},
    {"ops", "tensor_cache"},
    {"data", "curvature"},
    {"methods", "backends", "metrics", "embedders", "results"},
    {"store"},
    {"report"},
    {"evaluate", "attribution", "pre_encoding"},
    {"unlearn", "evidence", "check"},
    {"compare", "testing"},
    {"cli"},
]
TENSORS = {Path("encore/ops", name) for name in ("linear_grad.py", "layers.py", "__main__.py")}  # ops need torch
SIBLINGS = FLOORS[4]  # these never import one another
HEAVY = {"torch", "transformers", "librosa", "matplotlib", "pydantic", "numpy", "scipy", "sklearn"}
LIGHT = {
    "",
    "errors",
    "api",
    "assets",
    "entrypoints",
    "launcher",
    "hookspecs",
    "builtins",
    "builtin_metrics",
    "plugins",
    "settings",
    "ops",
    "cli",
}
MODULES = sorted(path.relative_to(SOURCE) for path in (SOURCE / "encore").rglob("*.py"))


def part(module: str) -> str:
    """ "encore.cli.app" -> "cli"; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    found = [number for number, names in enumerate(FLOORS) if name in names]
    assert found, f"encore.{name} stands on no floor: add it to FLOORS and to docs/architecture.md"
    return found[0]


def imported(nodes, package: str) -> set[str]:
    """Names of modules that import statements among the nodes bring in; `from encore import x` counts as encore.x."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module} if node.module != package else {f"{package}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down_only(path):
    own = part(".".join(path.with_suffix("").parts)).replace("__init__", "").replace("__main__", "cli")
    if not own:
        return  # the package itself imports the contract alone; test_api measures that
    names = imported(ast.walk(ast.parse((SOURCE / path).read_text())), "encore")
    for name in sorted(name for name in names if name.startswith("encore.")):
        other = part(name)
        if other in ("__version__", "hookimpl", own):
            continue
        assert floor(other) <= floor(own), f"{path} imports {name} from a floor above its own"
        assert not {own, other} <= SIBLINGS, f"{path} imports {name}, its sibling"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_light_modules_import_nothing_heavy_at_the_top(path):
    own = part(".".join(path.with_suffix("").parts)).replace("__init__", "").replace("__main__", "cli")
    if own in LIGHT and path not in TENSORS:
        top = imported(ast.parse((SOURCE / path).read_text()).body, "encore")
        assert not {name.partition(".")[0] for name in top} & HEAVY


def test_the_documentation_lists_the_floors():
    text = (SOURCE.parent / "docs/architecture.md").read_text("utf-8").partition("```text\n")[2].partition("```")[0]
    listed = [set(line.split(", ")) for line in text.replace(",\n  ", ", ").splitlines()]
    assert listed == [names - {"_native"} for names in reversed(FLOORS)]


def test_floors_name_only_what_exists():
    there = {path.stem for path in (SOURCE / "encore").iterdir()}
    assert set().union(*FLOORS) - {"_native"} <= there


def imports_of(path: Path) -> set[str]:
    """The modules of Encore that a module imports anywhere, also in a function or for its types alone."""
    known = {".".join(other.with_suffix("").parts).removesuffix(".__init__") for other in MODULES}
    found = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
    return found & known


def test_no_modules_and_no_packages_import_one_another_in_a_circle():
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): imports_of(path) for path in MODULES}
    packages: dict[str, set[str]] = {}
    for name, others in modules.items():
        packages.setdefault(part(name), set()).update({part(other) for other in others} - {part(name), ""})
    del packages[""]
    for graph in (modules, packages):
        assert len(graph) > 10
        TopologicalSorter(graph).prepare()  # CycleError names a circle
