"""The extension is taken if it fits, compiled if it can be, and done without otherwise; each time with the reason."""

import importlib
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from encore.ops import native
from encore.ops.native import Native


@pytest.fixture(autouse=True)
def forget_what_was_found():
    native.find.cache_clear()
    yield
    native.find.cache_clear()


def test_importing_ops_costs_no_torch():
    code = "import sys, encore.ops; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_either_a_module_or_a_reason():
    module, why, how = native.find(build=False)
    assert (module is None) == bool(why)
    if module is not None:
        info = module.build_info()
        assert how == "ahead of time"
        assert set(info) == {"torch", "compiler", "cxx_standard", "flags", "machine", "cuda_archs"}


def test_switched_off(monkeypatch):
    monkeypatch.setenv("ENCORE_NATIVE", "0")
    assert native.find() == Native(None, "ENCORE_NATIVE=0 switches it off")


def test_one_that_cannot_be_loaded_is_compiled_anew(monkeypatch):
    def refuse(name):
        raise ImportError("undefined symbol: torch_of_the_future")

    compiled = Native(SimpleNamespace(), "", "on first use")
    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(native, "_compile", lambda: compiled)
    monkeypatch.setattr(native, "_kept", lambda: Native(None, "none was kept"))
    assert native.find() is compiled
    assert native.find(build=False).why == "it can't be loaded (ImportError: undefined symbol: torch_of_the_future)"


def test_first_use_of_an_op_loads_the_library():
    """Not importing the ops, which only some commands need."""
    code = (
        "import sys, torch\nfrom encore.ops import linear_grad\nprint('encore._native' in sys.modules)\n"
        "linear_grad.linear_sq_norm(torch.ones(1, 2, 3), torch.ones(1, 2, 4))\nprint('encore._native' in sys.modules)"
    )
    built = native.find(build=False).how == "ahead of time"
    if not built:
        pytest.skip("it was not built ahead of time")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\nTrue\n"


def test_both_reasons_are_told(monkeypatch):
    monkeypatch.setattr(native, "_installed", lambda: Native(None, "it was not built at installation"))
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert native.find().why == (
        "it was not built at installation, and there is no C++ compiler 'no-such-compiler' to build it with"
    )


def test_sources_are_found_and_may_be_missing(monkeypatch, tmp_path):
    assert (native.sources() / "binding.cpp").is_file()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    assert native.sources() is None
    assert native._compile() == Native(None, "its sources are not installed")


def test_failed_compilation_is_a_reason_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    module, why, _ = native._compile()
    assert module is None
    assert why.startswith("compiling it failed (")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_compiled_on_first_use_and_kept(tmp_path, monkeypatch, quick_compiler):
    code = (
        "from encore.ops import native; module, why, how = native._compile(); print(how, module.build_info()['flags'])"
    )
    environment = {**os.environ, "ENCORE_CACHE": str(tmp_path), "CXX": quick_compiler}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout for run in runs] == ["on first use -O3 -std=c++20\n"] * 2
    assert runs[0].stderr == "encore: compiling the native extension, once (about 20 s) ...\n"
    assert runs[1].stderr == ""
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_installed", lambda: Native(None, "it was not built at installation"))
    assert native.find(build=False).how == "on first use", "who only looks finds it too"


@pytest.mark.slow
def test_compiler_that_fails(tmp_path):
    code = "from encore.ops import native; print(native._compile().why)"
    environment = {**os.environ, "ENCORE_CACHE": str(tmp_path), "CXX": "/bin/false"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("compiling it failed (")
    assert "Traceback" not in run.stderr
