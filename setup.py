"""Builds `encore._native` where torch can be imported at build time, and never fails an install for want of it.

With build isolation (plain `pip install .`) torch is not importable: nothing is built here, no torch is downloaded,
and the sources that travel with the package are compiled on first use. `pip install --no-build-isolation .` builds
ahead of time against the torch that is installed.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SHIPPED = {"csrc": "csrc", "plugins/encore-example": "template"}  # in the repository -> in the package


class BuildPy(build_py):
    """Takes along what lives outside `src`: the native sources, and the example plugin (`encore plugins new`)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # an editable install reads them where they are
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*")
        for source, name in SHIPPED.items():
            shutil.copytree(HERE / source, Path(self.build_lib, "encore", name), dirs_exist_ok=True, ignore=ignore)


def extension() -> dict[str, Any]:
    """The `setup` arguments that build the extension, or none where torch is not importable or pip wants metadata."""
    if os.environ.get("ENCORE_NATIVE") == "0" or sys.argv[1:2] in (["egg_info"], ["dist_info"]):
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return {}

    class Optional(cpp_extension.BuildExtension):  # type: ignore[misc]
        """Without a compiler the package still installs: `encore doctor` says what is missing."""

        def build_extension(self, ext: Any) -> None:
            nvcc["add_kernels"](ext, HERE / "csrc", Path(self.build_temp).absolute() / "cuda", torch)
            super().build_extension(ext)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # compilers fail in many ways, and none may fail the install
                print(f"warning: encore._native was not built, pure torch will serve: {error}")
                self.extensions = []

    nvcc = runpy.run_path(str(HERE / "src/encore/ops/nvcc.py"))  # not importable before it is installed
    flags = ["-O3", "-std=c++20"]
    macros = [("ENCORE_FLAGS", f'"{" ".join(flags)}"')]
    sources = sorted(
        str(path.relative_to(HERE)) for part in (".", "cpu") for path in (HERE / "csrc" / part).glob("*.cpp")
    )
    module = cpp_extension.CppExtension(  # torch's and Python's stable ABIs: one library for many versions of both
        "encore._native", sources, extra_compile_args=flags, define_macros=macros, py_limited_api=True
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Optional},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


arguments = extension()
arguments["cmdclass"] = {"build_ext": build_ext, **arguments.get("cmdclass", {}), "build_py": BuildPy}
setup(**arguments)
