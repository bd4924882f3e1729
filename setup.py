# SPDX-License-Identifier: Apache-2.0
"""Builds the native core with CMake and packs it; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution

try:  # setuptools >= 70.1 has its own, older ones take it from wheel
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
NATIVE = Path("licag3d") / "_native"


class CMakeBuild(build_ext):
    """One CMake build of all native libraries; CMakeLists.txt knows the sources, this class lists none."""

    def run(self) -> None:
        build = Path(self.build_temp).resolve() / "native"
        inplace = self.inplace or getattr(self, "editable_mode", False)
        target = (ROOT if inplace else Path(self.build_lib).resolve()) / NATIVE
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", "-DLICAG3D_TESTS=OFF",
                     f"-DLICAG3D_CUDA={os.environ.get('LICAG3D_CUDA', 'auto')}"]
        # A build folder made by another generator (or another Ninja, in an isolated environment) starts afresh.
        subprocess.run([*configure, "-G", "Ninja", "--fresh"], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / NATIVE
        return [str(path) for path in sorted(folder.glob("lib*"))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """The library has no Python ABI: one wheel per platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class NativeDistribution(Distribution):
    """Installs into platlib although no Python extension module is listed."""

    def has_ext_modules(self) -> bool:
        return True


if sys.platform == "win32":
    sys.exit("licag3d builds on Linux and macOS; on Windows use WSL")

setup(
    distclass=NativeDistribution,
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
    ext_modules=[Extension("licag3d._native.liblicag3d", sources=[])],
    # The engine lives in its own folder at the top and is imported as licag3d.inversion.
    packages=[*find_packages(include=["licag3d", "licag3d.*"]),
              *(name.replace("inversion", "licag3d.inversion", 1)
                for name in ("inversion", *(f"inversion.{sub}" for sub in find_packages("inversion"))))],
    package_dir={"licag3d.inversion": "inversion"},
)
