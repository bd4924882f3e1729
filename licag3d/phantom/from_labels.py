# SPDX-License-Identifier: Apache-2.0
"""The second source of trees: label volumes of coronary CT angiography, turned into the tree type of the phantom.

    >>> trees = tree_from_labels("patient.nii.gz")          # doctest: +SKIP
    >>> case = simulate_case(1, "rca", tree=trees["rca"])   # doctest: +SKIP

Three kinds of labels are understood: one label for all vessels, two for right and left, and the SCCT segments 1 to 18
(Leipsic et al., J Cardiovasc Comput Tomogr 2014;8:342). Which of two trees is the right one follows from the side it
lies on; branches get names where segment labels tell them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from licag3d.data.label_volumes import LabelVolume, read_label_volume
from licag3d.errors import InputError
from licag3d.phantom.plans import SCCT_SEGMENTS
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.skeleton import skeleton_tree
from licag3d.vessels.tree import arc_length_mm, branch_length_mm, retrace_tree
from licag3d.vessels.volume import Volume

RIGHT_SEGMENTS = (1, 2, 3, 4, 16)
LEFT_SEGMENTS = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18)
#: Pieces of less than this share of the largest, or less volume, are specks: dropped with a warning.
SPECK_SHARE, SPECK_MM3 = 0.05, 30.0
#: A tree shorter than this is none, mm.
LEAST_LENGTH_MM = 20.0
#: Centres of both trees are at least this far apart from right to left, mm: less, and the sides are a guess.
LEAST_SIDES_MM = 8.0
#: Stretches of a branch with another segment label shorter than this are noise of the labels, mm.
_LEAST_SEGMENT_MM = 3.0
_NAME_OF = {segment: name for name, segments in SCCT_SEGMENTS.items() for segment in segments}
KINDS = ("auto", "one", "sides", "segments")


@dataclass(frozen=True)
class _Piece:
    """One connected piece: its ``share`` (0..1), volume and mean x (towards the patient's left), mm."""

    share: Volume
    volume_mm3: float
    x_mm: float


def tree_from_labels(
    path: str | Path, *, kind: str = "auto", spacing_mm: float | None = None, min_branch_mm: float = 3.0
) -> dict[str, VesselTree]:
    """Vessel trees of a label volume, rooted at the ostium, LPS mm.

    Args:
        path: NIfTI or NRRD label volume.
        kind: ``one`` (every label is vessel), ``sides`` (two labels, right and left in any order), ``segments`` (SCCT 1
            to 18), or ``auto``: segments when three or more labels all lie in 1 to 18, sides for two labels, else one.
        spacing_mm: grid on which centrelines are sought; default that of the file.
        min_branch_mm: side branches that stick out of their parent by less are left out.

    Returns:
        ``{"rca": tree, "lca": tree}``, one of them, or ``{"tree": tree}`` when one unnamed tree does not tell its side.

    Warns:
        small pieces that were dropped, resampling, vessels cut by the border.

    Raises:
        InputError: the file cannot be used (see ``read_label_volume``), holds no tree, or pieces whose side or
            belonging is ambiguous.
    """
    if kind not in KINDS:
        raise InputError(f"kind of labels is '{kind}'; choose {', '.join(KINDS)}")
    volume = read_label_volume(path, spacing_mm=spacing_mm)
    return trees_from_volume(volume, kind=kind, min_branch_mm=min_branch_mm, label=Path(path).name)


def trees_from_volume(
    volume: LabelVolume, *, kind: str = "auto", min_branch_mm: float = 3.0, label: str = "label volume"
) -> dict[str, VesselTree]:
    """``tree_from_labels`` for a volume that has been read."""
    for note in volume.notes:
        warnings.warn(f"{label}: {note}", stacklevel=3)
    values = volume.values
    if kind == "auto":
        segments = len(values) >= 3 and set(values) <= set(_NAME_OF)
        kind = "segments" if segments else "sides" if len(values) == 2 else "one"
    if kind == "segments":
        return _by_segments(volume, min_branch_mm, label)
    if kind == "sides":
        if len(values) != 2:
            raise InputError(f"{label}: labels {_listed(values)}; right and left need two labels")
        pieces = [_piece(volume.merged([value])) for value in values]
        if min(piece.volume_mm3 for piece in pieces) < SPECK_MM3:
            raise InputError(
                f"{label}: one of the labels {_listed(values)} has less than {SPECK_MM3:g} mm3; "
                "right and left need a tree each"
            )
        return _named_by_side([_largest(piece, label) for piece in pieces], min_branch_mm, label)
    pieces = _pieces(volume.merged(), label)
    if len(pieces) == 1:
        return {"tree": _tree(pieces[0].share, min_branch_mm, label)}
    if len(pieces) == 2:
        return _named_by_side(pieces, min_branch_mm, label)
    sizes = ", ".join(f"{piece.volume_mm3:.0f}" for piece in pieces)
    raise InputError(
        f"{label}: {len(pieces)} separate vessels of {sizes} mm3; two would be the right and the left tree: "
        "close the gaps, or label right and left"
    )


def _listed(values) -> str:
    return ", ".join(map(str, values[:8])) + ("..." if len(values) > 8 else "")


def _piece(share: Volume) -> _Piece:
    inside = share.values >= 0.5
    count = int(inside.sum())
    mean = float(np.nonzero(inside)[2].mean()) if count else 0.0
    return _Piece(share, count * share.spacing_mm**3, share.origin_mm[0] + share.spacing_mm * mean)


def _pieces(share: Volume, label: str) -> list[_Piece]:
    """Connected pieces, largest first, without specks; a warning names what was dropped."""
    from scipy import ndimage

    marked, count = ndimage.label(share.values >= 0.5, np.ones((3, 3, 3), bool))
    if count == 0:
        raise InputError(f"{label}: no voxel is at least half vessel, so there is no tree in it")
    volumes = np.bincount(marked.ravel())[1:] * share.spacing_mm**3
    keep = np.flatnonzero((volumes >= SPECK_SHARE * volumes.max()) & (volumes >= SPECK_MM3))
    dropped = np.delete(volumes, keep)
    if len(keep) == 0:
        raise InputError(
            f"{label}: the largest labelled piece has {volumes.max():.0f} mm3; a coronary tree has hundreds"
        )
    if len(dropped):
        warnings.warn(
            f"{label}: {len(dropped)} small pieces ({dropped.sum():.0f} mm3 together) were left out: not "
            "connected to a tree",
            stacklevel=5,
        )
    pieces = []
    for number in keep[np.argsort(-volumes[keep])]:
        # The soft edge belongs to the piece it touches.
        own = ndimage.binary_dilation(marked == number + 1, np.ones((3, 3, 3), bool)) & ~(
            (marked > 0) & (marked != number + 1)
        )
        pieces.append(_piece(Volume(share.values * own, share.origin_mm, share.spacing_mm)))
    return pieces


def _largest(piece: _Piece, label: str) -> _Piece:
    """The main piece of a label that stands for one tree; a second large one would be lost silently otherwise."""
    pieces = _pieces(piece.share, label)
    if len(pieces) > 1:
        lost = sum(other.volume_mm3 for other in pieces[1:])
        if lost > 0.25 * pieces[0].volume_mm3:
            raise InputError(
                f"{label}: a tree falls apart: {lost:.0f} mm3 are not connected to its main piece of "
                f"{pieces[0].volume_mm3:.0f} mm3; close the gaps"
            )
        warnings.warn(f"{label}: pieces of {lost:.0f} mm3 were left out: not connected to their tree", stacklevel=4)
    return pieces[0]


def _named_by_side(pieces: list[_Piece], min_branch_mm: float, label: str) -> dict[str, VesselTree]:
    right, left = sorted(pieces, key=lambda piece: piece.x_mm)
    if left.x_mm - right.x_mm < LEAST_SIDES_MM:
        raise InputError(
            f"{label}: two trees whose centres lie {left.x_mm - right.x_mm:.1f} mm apart from right to left; "
            f"under {LEAST_SIDES_MM:g} mm their sides cannot be told: give them SCCT segment labels"
        )
    return {
        "rca": _tree(right.share, min_branch_mm, label),
        "lca": _tree(left.share, min_branch_mm, label),
    }


def _tree(share: Volume, min_branch_mm: float, label: str, root_lps_mm: np.ndarray | None = None) -> VesselTree:
    tree, _ = skeleton_tree(
        share, level=0.5, root_lps_mm=root_lps_mm, min_branch_mm=min_branch_mm, smooth_mm=min(1.0, 2 * share.spacing_mm)
    )
    if tree.length_mm < LEAST_LENGTH_MM:
        raise InputError(
            f"{label}: {tree.length_mm:.0f} mm of centreline; a coronary tree has at least {LEAST_LENGTH_MM:g} mm"
        )
    return _numbered(tree)


def _numbered(tree: VesselTree) -> VesselTree:
    """Branches with a name each, so that they can be told apart: ``B1`` from the root on, where no label names them."""
    return VesselTree(
        tuple(
            branch if branch.name else replace(branch, name=f"B{k}") for k, branch in enumerate(tree.branches, start=1)
        )
    )


def _by_segments(volume: LabelVolume, min_branch_mm: float, label: str) -> dict[str, VesselTree]:
    unknown = [value for value in volume.values if value not in _NAME_OF]
    if unknown:
        raise InputError(f"{label}: labels {_listed(unknown)} are no SCCT segments (1 to 18)")
    trees = {}
    for side, segments in (("rca", RIGHT_SEGMENTS), ("lca", LEFT_SEGMENTS)):
        present = [value for value in segments if value in volume.share]
        if not present:
            continue
        piece = _piece(volume.merged(present))
        if piece.volume_mm3 < SPECK_MM3:
            warnings.warn(
                f"{label}: the segments of the {side} have {piece.volume_mm3:.0f} mm3: left out", stacklevel=4
            )
            continue
        share = _largest(piece, label).share
        tree = _tree(share, min_branch_mm, label)
        root = _ostium(tree, volume.labels, present[0])
        if root is not None and np.linalg.norm(root - tree.branches[0].points_lps_mm[0]) > 1e-6:
            tree = _numbered(retrace_tree(_unnamed(tree), root_lps_mm=root, min_branch_mm=min_branch_mm))
        trees[side] = named_by_segments(tree, volume.labels)
    if not trees:
        raise InputError(f"{label}: no segment is large enough for a tree")
    return trees


def _unnamed(tree: VesselTree) -> VesselTree:
    return VesselTree(tuple(replace(branch, name="") for branch in tree.branches))


def _ostium(tree: VesselTree, labels: Volume, first_segment: int) -> np.ndarray | None:
    """The free end inside the first segment (1 on the right, 5 or 6 on the left) that lies farthest from the rest."""
    ends = [tree.branches[0].points_lps_mm[0]]
    ends += [branch.points_lps_mm[-1] for branch in tree.branches]
    inside = [end for end in ends if _label_at(labels, end[None])[0] == first_segment]
    index = np.argwhere((labels.values > 0) & (labels.values != first_segment))
    if not inside or len(index) == 0:
        return None
    rest = labels.index_to_lps(index[:: max(1, len(index) // 20000)])
    return max(inside, key=lambda end: float(np.linalg.norm(rest - end, axis=1).min()))


def _label_at(labels: Volume, points: np.ndarray) -> np.ndarray:
    """Label of the nearest voxel that has one, within two voxels of each point; 0 where none is."""
    index = np.rint(labels.lps_to_index(points)).astype(int)
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    steps = steps[np.argsort((steps**2).sum(1), kind="stable")]
    around = index[:, None] + steps
    within = np.all((around >= 0) & (around < labels.values.shape), axis=-1)
    safe = np.where(within[..., None], around, 0)
    found = np.where(within, labels.values[safe[..., 0], safe[..., 1], safe[..., 2]], 0)
    return found[np.arange(len(points)), (found > 0).argmax(1)]


def named_by_segments(tree: VesselTree, labels: Volume) -> VesselTree:
    """The tree cut where its SCCT segment changes the branch (``RCA`` to ``R-PDA``), every piece named.

    A piece takes the name that most of it carries; a second branch of the same name gets ``.2`` and so on.
    """
    made: list[Branch] = []
    where: dict[int, list[tuple[int, int]]] = {}  # old id -> (first sample, new id) of its pieces
    points_of = {branch.id: branch.points_lps_mm for branch in tree.branches}
    used: dict[str, int] = {}
    last_of: dict[int, str] = {}
    for branch in tree.branches:
        parent = None
        if branch.parent is not None:
            above = points_of[branch.parent]
            joint = int(np.argmin(((above - branch.points_lps_mm[0]) ** 2).sum(1)))
            parent = [new for first, new in where[branch.parent] if first <= joint][-1]
        names = [_NAME_OF.get(int(value), "") for value in _label_at(labels, branch.points_lps_mm)]
        where[branch.id] = []
        for first, last, name in _runs(names, arc_length_mm(branch.points_lps_mm)):
            new = len(made)
            used[name] = used.get(name, 0) + 1
            unique = name if used[name] == 1 else f"{name}.{used[name]}"
            confidence = None if branch.confidence is None else branch.confidence[first : last + 1]
            made.append(
                Branch(
                    new,
                    parent,
                    branch.points_lps_mm[first : last + 1],
                    branch.radius_mm[first : last + 1],
                    unique,
                    confidence,
                )
            )
            where[branch.id].append((first, new))
            last_of[new] = name
            parent = new
    return VesselTree(tuple(made))


def _runs(names: list[str], arc: np.ndarray) -> list[tuple[int, int, str]]:
    """First and last sample and name of the stretches of one name; neighbours share a sample; short ones join."""
    edges = [0, *(k for k in range(1, len(names)) if names[k] != names[k - 1]), len(names)]
    runs = [[a, b, names[a]] for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def length(run: list) -> float:
        return float(arc[min(run[1], len(arc) - 1)] - arc[run[0]])

    while len(runs) > 1:
        weak = min(range(len(runs)), key=lambda k: length(runs[k]))
        if length(runs[weak]) >= _LEAST_SEGMENT_MM and all(run[2] for run in runs):
            break
        if length(runs[weak]) >= _LEAST_SEGMENT_MM:
            weak = next(k for k, run in enumerate(runs) if not run[2])
        # The first stretch of a side branch lies in its parent: it goes to what follows.
        if weak == 0 or weak + 1 < len(runs) and length(runs[weak + 1]) > length(runs[weak - 1]):
            runs[weak + 1][0] = runs[weak][0]
        else:
            runs[weak - 1][1] = runs[weak][1]
        del runs[weak]
        k = 1
        while k < len(runs):
            if runs[k][2] == runs[k - 1][2]:
                runs[k - 1][1] = runs[k][1]
                del runs[k]
            else:
                k += 1
    return [(a, min(b, len(names) - 1), name or "B") for a, b, name in runs]


def write_label_case(folder: str | Path, name: str, trees: dict[str, VesselTree], *, spacing_mm: float = 0.5) -> Path:
    """Write trees as a label volume that ``tree_from_labels`` reads again: 1 right (or the only one), 2 left.

    Raises:
        InputError: no tree, a name with a separator, an absurd spacing, trees that lie in each other, or a folder that
            cannot be written.
    """
    from licag3d.io.atomic import check_output_folder
    from licag3d.io.write_volume import write_nifti
    from licag3d.vessels.rasterize import tree_grid, tree_labels

    if not trees or any(branch_length_mm(branch) == 0 for tree in trees.values() for branch in tree.branches[:1]):
        raise InputError("no tree to write; give at least one with a centreline")
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"case name is {name!r}; give a plain file name without folders")
    out = check_output_folder(folder)
    out.mkdir(parents=True, exist_ok=True)
    order = sorted(trees, key=lambda key: ("rca", "tree", "lca").index(key) if key in ("rca", "tree", "lca") else 3)
    grid = tree_grid(VesselTree(tuple(branch for key in order for branch in trees[key].branches)), spacing_mm)
    values = grid.values.copy()
    for number, key in enumerate(order, start=1):
        mask = tree_labels(trees[key], grid).values > 0
        if np.any(values[mask]):
            raise InputError(f"{name}: the trees {', '.join(order)} share voxels; their labels would be lost")
        values[mask] = number
    path = out / f"{name}.nii.gz"
    write_nifti(path, values, grid.origin_mm, grid.spacing_mm, description="coronary labels")
    return path
