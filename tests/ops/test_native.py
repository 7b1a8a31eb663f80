"""The extension is taken if it fits, compiled if it can be, and done without otherwise; each time with the reason."""

import importlib
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from encore import ops
from encore.ops import Native


@pytest.fixture(autouse=True)
def forget_what_was_found():
    ops.native.cache_clear()
    yield
    ops.native.cache_clear()


def test_importing_ops_costs_no_torch():
    code = "import sys, encore.ops; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_either_a_module_or_a_reason():
    module, why, how = ops.native(build=False)
    assert (module is None) == bool(why)
    if module is not None:
        info = module.build_info()
        assert how == "ahead of time"
        assert info["torch"] == torch.__version__.partition("+")[0]
        assert set(info) == {"torch", "compiler", "cxx_standard", "flags", "machine", "cuda_archs", "cxx11_abi"}


def test_switched_off(monkeypatch):
    monkeypatch.setenv("ENCORE_NATIVE", "0")
    assert ops.native() == Native(None, "ENCORE_NATIVE=0 switches it off")


def test_built_for_another_torch_is_compiled_anew(monkeypatch, tmp_path):
    stale = SimpleNamespace(build_info=lambda: {"torch": "1.0.0"})
    monkeypatch.setattr(importlib, "import_module", lambda name: stale)
    compiled = Native(SimpleNamespace(), "", "on first use")
    monkeypatch.setattr(ops, "_compile", lambda: compiled)
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path))
    assert ops.native() is compiled
    assert ops.native(build=False).why == f"it was built for torch 1.0.0, but torch {torch.__version__} runs"


def test_both_reasons_are_told(monkeypatch):
    monkeypatch.setattr(ops, "_installed", lambda: Native(None, "it was not built at installation"))
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert ops.native().why == (
        "it was not built at installation, and there is no C++ compiler 'no-such-compiler' to build it with"
    )


def test_sources_are_found_and_may_be_missing(monkeypatch, tmp_path):
    assert (ops.sources() / "binding.cpp").is_file()
    monkeypatch.setattr(ops, "__file__", str(tmp_path / "a" / "b" / "c" / "d.py"))
    assert ops.sources() is None
    assert ops._compile() == Native(None, "its sources are not installed")


def test_failed_compilation_is_a_reason_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    module, why, _ = ops._compile()
    assert module is None
    assert why.startswith("compiling it failed (")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_compiled_on_first_use_and_kept(tmp_path, monkeypatch):
    code = "from encore import ops; module, why, how = ops._compile(); print(how, module.build_info()['flags'])"
    environment = {**os.environ, "ENCORE_CACHE": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout for run in runs] == ["on first use -O2 -std=c++20\n"] * 2
    assert runs[0].stderr == "encore: compiling the native extension, once (about 20 s) ...\n"
    assert runs[1].stderr == ""
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(ops, "_installed", lambda: Native(None, "it was not built at installation"))
    assert ops.native(build=False).how == "on first use", "who only looks finds it too"


@pytest.mark.slow
def test_compiler_that_fails(tmp_path):
    code = "from encore import ops; print(ops._compile().why)"
    environment = {**os.environ, "ENCORE_CACHE": str(tmp_path), "CXX": "/bin/false"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("compiling it failed (")
    assert "Traceback" not in run.stderr
