# SPDX-License-Identifier: Apache-2.0
"""The loader: instruction sets, the C view of rays, and life without the library."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from ray_cases import views

import licag3d
from licag3d.ops import backproject, native, project_tubes, project_volume

needs_library = pytest.mark.skipif(native.cpu_library() is None, reason="needs the native library")


@pytest.fixture()
def without_library(monkeypatch):
    """As in an install whose native build is missing."""
    monkeypatch.setenv("LICAG3D_NATIVE", "0")
    native.cpu_library.cache_clear()
    yield
    monkeypatch.undo()
    native.cpu_library.cache_clear()


def some_of_everything() -> list[float]:
    cameras = views(angles=((30, 10), (-50, 5)), rows=5, cols=4)
    offset = cameras.offset_lps_mm.clone().requires_grad_()
    volume = torch.rand(6, 7, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grid = {"voxel_size_mm": 3.0, "origin_mm": (-10.0, -9.0, -7.0)}
    results = []
    for step_mm in (None, 1.0):
        image = project_volume(volume, cameras.replace(offset_lps_mm=offset), **grid, step_mm=step_mm)
        back = backproject(image, cameras, shape=volume.shape, **grid, step_mm=step_mm)
        results += [image, back, *torch.autograd.grad(image.square().sum() + back.sum(), (volume, offset))]
    results.append(project_tubes(torch.tensor([[0.0, 0, -5], [3.0, 2, 6]]), torch.tensor([2.0, 1.0]),
                                 torch.tensor([[0, 1]]), cameras))
    return [float(x.detach().double().sum()) for x in results]


@needs_library
def test_without_the_library_everything_runs_and_says_so_once(request) -> None:
    expected = some_of_everything()
    request.getfixturevalue("without_library")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = some_of_everything()
    loud = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(loud) == 1
    for words in ("WITHOUT its native core", "LICAG3D_NATIVE=0", "pip install", "licag3d.doctor"):
        assert words in loud[0]
    assert got == pytest.approx(expected, rel=1e-4)
    with pytest.raises(RuntimeError, match="no native library"):
        native.set_isa("plain")


@needs_library
def test_the_environment_chooses_the_instruction_set() -> None:
    # ctypes alone: the library reads the variable on first use, so this takes a fresh process, but no torch.
    script = ("import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.licag3d_isa.restype = ctypes.c_char_p; "
              "print(library.licag3d_isa().decode())")
    found = {}
    for isa in ("plain", "", "sse9"):
        done = subprocess.run([sys.executable, "-c", script, str(native.library_path())], capture_output=True,
                              text=True, timeout=60, check=True, env={**os.environ, "LICAG3D_ISA": isa})
        found[isa] = done.stdout.strip()
    assert found["plain"] == "plain"
    assert found[""] == found["sse9"] == native.set_isa(None)


@needs_library
def test_an_unknown_instruction_set_is_told(monkeypatch) -> None:
    monkeypatch.setenv("LICAG3D_ISA", "sse9")
    native.cpu_library.cache_clear()
    with pytest.warns(RuntimeWarning, match="LICAG3D_ISA=sse9"):
        native.cpu_library()
    with pytest.raises(ValueError, match="sse9"):
        native.set_isa("sse9")
    monkeypatch.undo()
    native.cpu_library.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.set_isa(None) in ("plain", "avx2", "avx512")


@needs_library
def test_version_and_abi_are_those_of_the_package() -> None:
    library = native.cpu_library()
    assert library.licag3d_abi_version() == native.ABI_VERSION
    assert library.licag3d_version().decode() == licag3d.__version__


def test_a_broken_library_is_a_reason_and_not_a_crash(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.delenv("LICAG3D_NATIVE", raising=False)
    assert "was not built" in native.load("licag3d")[1]
    native.library_path().write_bytes(b"not a library")
    library, reason = native.load("licag3d")
    assert library is None and "cannot be loaded" in reason


def test_rays_of_a_view_share_their_origin() -> None:
    cameras = views()
    origin, way = cameras.rays()
    packed, (compact, direction) = native.pack_rays(origin, way)
    assert packed.origin_group == cameras.rows * cameras.cols
    assert compact.shape == (len(cameras), 3)
    assert packed.count == direction.numel() // 3 == len(cameras) * cameras.rows * cameras.cols
    assert packed.image_cols == cameras.cols and packed.is_double == 1


@pytest.mark.parametrize("make", [
    lambda o, d: (o.contiguous(), d),
    lambda o, d: (o[:, :, :1], d[:, :, :1]),
    lambda o, d: (o[:1], d[:1]),
    lambda o, d: (o[0, 0, 0].expand(d.shape), d),
    lambda o, d: (o.transpose(1, 2), d.transpose(1, 2)),
    lambda o, d: (o[:, 0].contiguous()[:, None].expand(d.shape), d),
    lambda o, d: (o.reshape(-1, 3), d.reshape(-1, 3)),
    lambda o, d: (o[:0], d[:0]),
    lambda o, d: (o.float(), d.float()),
])
def test_packed_rays_mean_the_same_rays(make) -> None:
    # Origins that differ along the columns, so that a wrong grouping shows.
    base, way = views(rows=4, cols=5).rays()
    for origins in (base, base + torch.arange(5.0)[:, None] + 10 * torch.arange(6.0)[:, None, None, None]):
        origin, direction = make(origins, way)
        packed, (compact, dense) = native.pack_rays(origin, direction)
        rows = compact.reshape(-1, 3)[torch.arange(packed.count) // packed.origin_group]
        assert torch.equal(rows, origin.reshape(-1, 3))
        assert torch.equal(dense.reshape(-1, 3), direction.reshape(-1, 3))
