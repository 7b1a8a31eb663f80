"""Every hook has a docstring, a row in the documentation, and a test."""

import inspect
from pathlib import Path

import pytest

from encore import hookspecs, plugins

ROOT = Path(__file__).resolve().parents[1]
HOOKS = plugins.hook_names()


def test_the_hooks_are_the_public_ones():
    assert HOOKS == [
        "encore_register_methods",
        "encore_register_backends",
        "encore_register_metrics",
        "encore_register_embedders",
        "encore_register_commands",
    ]


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented(hook):
    function = getattr(hookspecs, hook)
    assert inspect.getdoc(function)
    call = f"{hook}({', '.join(inspect.signature(function).parameters)})"
    assert f"| `{call}` |" in (ROOT / "docs/architecture.md").read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_a_test(hook):
    tests = [path for path in (ROOT / "tests" / "plugins").glob("test_*.py") if f"def {hook}(" in path.read_text()]
    assert tests, f"no test in tests/plugins implements {hook}"
