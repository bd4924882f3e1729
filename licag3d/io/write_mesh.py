# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes to files, always LPS mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.io.atomic import write_bytes

_STL_HEADER = b"licag3d vessel lumen; unit mm; SPACE=LPS"


def write_stl(path: str | Path, vertices_lps_mm, faces, *, note: str = "") -> None:
    """Binary STL; the header says ``SPACE=LPS``, which 3D Slicer reads.

    Args:
        vertices_lps_mm: ``(N, 3)``; faces: ``(M, 3)`` int, outward orientation.
        note: what else the header says, ASCII; as much of it as the 80 bytes hold.
    """
    triangles = np.asarray(vertices_lps_mm, np.float32)[np.asarray(faces)]
    record = np.zeros(len(triangles), np.dtype([("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("attribute", "<u2")]))
    normal = np.cross(*(triangles[:, k].astype(np.float64) - triangles[:, 0] for k in (1, 2)))
    size = np.linalg.norm(normal, axis=1, keepdims=True)
    record["normal"] = normal / np.where(size > 0, size, 1)
    record["corner"] = triangles
    # A header that begins with "solid" would be taken for an ASCII file.
    count = np.array(len(triangles), "<u4").tobytes()
    header = _STL_HEADER + (f"; {note}".encode("ascii", "replace") if note else b"")
    write_bytes(path, header[:80].ljust(80, b" ") + count + record.tobytes())


def write_mesh(path: str | Path, vertices_lps_mm, faces) -> None:
    """STL, PLY, OBJ or GLB by the ending of ``path``, LPS mm in each.

    glTF prescribes metres and the y axis up; this project's GLB keeps LPS mm, as docs/output-files.md says.

    Raises:
        InputError: another ending.
    """
    ending = Path(path).suffix.lower()
    if ending == ".stl":
        write_stl(path, vertices_lps_mm, faces)
        return
    if ending not in (".ply", ".obj", ".glb"):
        raise InputError(f"{Path(path).name}: cannot write a mesh as {ending or 'a file without ending'}; "
                         "use .stl, .ply, .obj or .glb")
    import trimesh

    mesh = trimesh.Trimesh(np.asarray(vertices_lps_mm, np.float64), np.asarray(faces), process=False)
    if ending == ".ply":
        # 3D Slicer reads the frame from this comment.
        magic, encoding, rest = mesh.export(file_type="ply").split(b"\n", 2)
        content = b"\n".join([magic, encoding, b"comment unit mm; SPACE=LPS", rest])
    elif ending == ".obj":
        lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
        content = ("# licag3d vessel lumen; unit mm; SPACE=LPS\n" + "\n".join(lines) + "\n").encode()
    else:
        content = mesh.export(file_type="glb")
    write_bytes(path, content)
