# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import numpy as np
import pytest
from vessel_trees import coronary

from licag3d.errors import InputError
from licag3d.io.write_mesh import write_mesh
from licag3d.vessels.surface import tree_surface


@pytest.fixture(scope="module")
def surface():
    return tree_surface(coronary(), spacing_mm=0.5)


@pytest.mark.parametrize("ending", [".stl", ".ply", ".obj", ".glb"])
def test_round_trip_is_watertight_in_place(tmp_path, surface, ending):
    import trimesh

    path = tmp_path / f"vessels{ending}"
    write_mesh(path, surface.vertices_lps_mm, surface.faces)
    mesh = trimesh.load(path, force="mesh")
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(surface.volume_mm3, rel=1e-5)
    np.testing.assert_allclose(mesh.bounds, [surface.vertices_lps_mm.min(0), surface.vertices_lps_mm.max(0)], atol=1e-4)


def test_stl_bytes(tmp_path, surface):
    path = tmp_path / "vessels.stl"
    write_mesh(path, surface.vertices_lps_mm, surface.faces)
    content = path.read_bytes()
    assert len(content) == 84 + 50 * len(surface.faces)
    assert b"SPACE=LPS" in content[:80] and not content.startswith(b"solid")
    assert struct.unpack_from("<I", content, 80)[0] == len(surface.faces)
    normal = np.array(struct.unpack_from("<3f", content, 84))
    corners = np.array(struct.unpack_from("<9f", content, 96)).reshape(3, 3)
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-5)
    assert np.cross(corners[1] - corners[0], corners[2] - corners[0]) @ normal > 0


@pytest.mark.parametrize("ending", [".ply", ".obj"])
def test_text_headers_name_the_frame(tmp_path, surface, ending):
    path = tmp_path / f"vessels{ending}"
    write_mesh(path, surface.vertices_lps_mm, surface.faces)
    assert b"SPACE=LPS" in path.read_bytes()[:200]


def test_unknown_ending(tmp_path, surface):
    with pytest.raises(InputError, match=".stl, .ply"):
        write_mesh(tmp_path / "vessels.fbx", surface.vertices_lps_mm, surface.faces)
    assert list(tmp_path.iterdir()) == []
