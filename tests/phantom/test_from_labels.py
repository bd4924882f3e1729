# SPDX-License-Identifier: Apache-2.0
"""Label volumes to trees: round trips, affines of every kind, sides and segments, hostile and hopeless files."""

from __future__ import annotations

import gzip
import struct
import warnings
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial import cKDTree

from licag3d.data.label_volumes import iterate_label_cases, read_label_volume
from licag3d.errors import InputError
from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.from_labels import tree_from_labels, write_label_case
from licag3d.phantom.plans import SCCT_SEGMENTS
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.rasterize import tree_grid, tree_labels
from licag3d.vessels.tree import flatten_tree, resample_tree, validate_tree


@cache
def phantom(artery: str) -> VesselTree:
    return sample_tree(2, artery)


def line(start, end, radius: float, count: int = 80) -> Branch:
    return Branch(0, None, np.linspace(start, end, count), np.full(count, radius))


def simple_tree(shift=(0.0, 0.0, 0.0)) -> VesselTree:
    """A trunk of 40 mm that narrows, with one side branch of 20 mm."""
    trunk = np.linspace((0, 0, 0), (0, 5, -40), 81) + shift
    side = np.linspace(trunk[30], trunk[30] + [18, 4, -8], 41)
    return VesselTree(
        (
            Branch(0, None, trunk, np.linspace(2.0, 1.2, 81), "A"),
            Branch(1, 0, side, np.full(41, 1.0), "B"),
        )
    )


def write(path, array, spacing=(0.5, 0.5, 0.5), origin=(0.0, 0.0, 0.0), direction=None):
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing([float(x) for x in spacing])
    image.SetOrigin([float(x) for x in origin])
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def rasterised(tree: VesselTree, direction, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Mask ``(z, y, x)`` and origin of a tree on a grid of any axes."""
    direction, spacing = np.asarray(direction, float), np.asarray(spacing, float)
    flat = flatten_tree(resample_tree(tree, 0.2))
    local = flat.points_lps_mm @ direction  # coordinates along the axes of the grid
    low, high = local.min(0) - 6, local.max(0) + 6
    count = np.ceil((high - low) / spacing).astype(int) + 1
    axes = [low[k] + spacing[k] * np.arange(count[k]) for k in range(3)]
    grid = np.stack(np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")[::-1], -1)
    distance, near = cKDTree(local).query(grid.reshape(-1, 3), distance_upper_bound=4.0)
    inside = np.isfinite(distance) & (distance <= np.append(flat.radius_mm, 0)[near])
    return inside.reshape(grid.shape[:3]).astype(np.uint8), direction @ low


def distances(truth: VesselTree, found: VesselTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = flatten_tree(resample_tree(truth, 0.2)), flatten_tree(resample_tree(found, 0.2))
    forward, near = cKDTree(a.points_lps_mm).query(b.points_lps_mm)
    backward, _ = cKDTree(b.points_lps_mm).query(a.points_lps_mm)
    return forward, backward, b.radius_mm - a.radius_mm[near]


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_a_phantom_tree_comes_back_within_half_a_voxel(tmp_path, artery):
    truth = phantom(artery)
    trees = tree_from_labels(write_label_case(tmp_path, "case", {artery: truth}, spacing_mm=0.5))
    assert list(trees) == ["tree"]
    found = trees["tree"]
    forward, backward, radius = distances(truth, found)
    assert forward.mean() < 0.15 and np.percentile(forward, 95) < 0.25 + 0.02  # half a voxel
    assert backward.mean() < 0.2 and np.percentile(backward, 90) < 0.25
    assert np.abs(radius).mean() < 0.1 and abs(radius.mean()) < 0.05
    assert validate_tree(found) == [] and sum(b.parent is None for b in found.branches) == 1
    assert np.linalg.norm(found.branches[0].points_lps_mm[0] - truth.branches[0].points_lps_mm[0]) < 2.5  # the ostium
    assert abs(len(found.branches) - len(truth.branches)) <= 3
    assert abs(found.length_mm / truth.length_mm - 1) < 0.06


def test_both_trees_of_one_volume_are_told_apart_by_side_or_by_label(tmp_path):
    trees = {"lca": simple_tree((35, 0, 0)), "rca": simple_tree((-35, 0, 0))}
    path = write_label_case(tmp_path, "both", trees)
    for kind in ("auto", "sides", "one"):
        found = tree_from_labels(path, kind=kind)
        assert set(found) == {"rca", "lca"}
        for side in found:
            assert distances(trees[side], found[side])[0].max() < 0.6, (kind, side)


ROTATED = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.96, -0.28], [0.0, 0.28, 0.96]]
)


@pytest.mark.parametrize(
    ("direction", "spacing", "resampled"),
    [
        (np.eye(3), (0.5, 0.5, 0.5), False),
        (np.diag([-1.0, -1.0, 1.0]), (0.5, 0.5, 0.5), False),  # RAS
        (np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), (0.5, 0.5, 0.5), False),  # permuted
        (np.diag([-1.0, 1.0, -1.0]), (0.4, 0.4, 0.9), True),
        (ROTATED, (0.5, 0.5, 0.5), True),
        (ROTATED @ np.diag([1, -1, -1]), (0.45, 0.45, 0.8), True),
    ],
    ids=["lps", "ras", "permuted", "anisotropic", "oblique", "oblique-anisotropic"],
)
@pytest.mark.parametrize("ending", ["nii.gz", "nrrd"])
def test_the_affine_decides_where_the_tree_lies(tmp_path, direction, spacing, resampled, ending):
    truth = simple_tree((12, -30, 50))
    mask, origin = rasterised(truth, direction, spacing)
    path = write(tmp_path / f"t.{ending}", mask, spacing, origin, direction)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = tree_from_labels(path)["tree"]
    assert any("resampled" in str(w.message) for w in caught) == resampled
    forward, backward, radius = distances(truth, found)
    half = 0.5 * max(spacing)
    assert (
        np.percentile(forward, 90) < half and forward.max() < 2.0 and backward.mean() < half
    )  # ends may differ by a radius
    assert np.abs(radius).mean() < 0.12
    assert np.linalg.norm(found.branches[0].points_lps_mm[0] - truth.branches[0].points_lps_mm[0]) < 2.5
    assert len(found.branches) == 2


def test_segment_labels_name_the_branches_and_root_the_tree(tmp_path):
    truth = phantom("rca")
    keep = {"RCA", "R-PDA", "R-PLB"}
    truth = VesselTree(tuple(b for b in truth.branches if b.name in keep))
    assert len(truth.branches) == 3
    grid = tree_grid(truth, 0.5)
    labels = np.zeros(grid.values.shape, np.uint8)
    for branch in reversed(truth.branches):
        segments = SCCT_SEGMENTS[branch.name]
        parts = np.array_split(np.arange(len(branch.points_lps_mm)), len(segments))
        for segment, part in zip(segments, parts, strict=True):
            part = np.append(part, min(part[-1] + 1, len(branch.points_lps_mm) - 1))
            piece = Branch(0, None, branch.points_lps_mm[part], branch.radius_mm[part])
            labels[tree_labels(VesselTree((piece,)), grid).values > 0] = segment
    trees = tree_from_labels(write(tmp_path / "s.nii.gz", labels, origin=grid.origin_mm))
    assert list(trees) == ["rca"]
    found = {branch.name: branch for branch in trees["rca"].branches}
    assert keep <= set(found) and len(found) == len(trees["rca"].branches) <= 5
    for name in keep:
        whole = next(branch for branch in truth.branches if branch.name == name)
        distance, _ = cKDTree(whole.points_lps_mm).query(found[name].points_lps_mm)
        # Where branches meet, labels of voxels may differ by the calibre of the parent.
        assert np.percentile(distance, 90) < 0.5, name
    by_id = {branch.id: branch.name for branch in trees["rca"].branches}
    assert found["RCA"].parent is None and by_id[found["R-PDA"].parent] in keep
    assert np.linalg.norm(found["RCA"].points_lps_mm[0] - truth.branches[0].points_lps_mm[0]) < 2.5
    assert validate_tree(trees["rca"]) == []


def test_left_segments_make_a_left_tree(tmp_path):
    tree = simple_tree()
    grid = tree_grid(tree, 0.5)
    labels = tree_labels(tree, grid, by_branch=True).values.copy()
    labels[labels == 1] = 6
    labels[labels == 2] = 9
    z = np.arange(labels.shape[0])[:, None, None]
    labels[(labels == 6) & (z > labels.shape[0] * 0.65)] = 5
    found = tree_from_labels(write(tmp_path / "l.nrrd", labels, origin=grid.origin_mm))
    assert list(found) == ["lca"]
    names = [branch.name for branch in found["lca"].branches]
    assert names[0] == "LM" and "LAD" in names and "D1" in names


def test_specks_are_dropped_with_a_warning(tmp_path):
    tree = simple_tree()
    grid = tree_grid(tree, 0.5, margin_mm=8)
    mask = tree_labels(tree, grid).values.copy()
    mask[1:4, 1:4, 1:4] = 1
    mask[-3:-1, 2:5, 2:5] = 1
    with pytest.warns(UserWarning, match="2 small pieces"):
        trees = tree_from_labels(write(tmp_path / "s.nii.gz", mask, origin=grid.origin_mm))
    assert list(trees) == ["tree"] and distances(tree, trees["tree"])[0].max() < 0.6


def test_a_cut_vessel_is_mentioned(tmp_path):
    mask = np.zeros((40, 30, 30), np.uint8)
    mask[:, 12:18, 12:18] = 1
    with pytest.warns(UserWarning, match="border"):
        tree_from_labels(write(tmp_path / "c.nii.gz", mask, (1, 1, 1)))


def masks_that_tell_nothing() -> dict[str, tuple[np.ndarray, str]]:
    empty = np.zeros((20, 20, 20), np.uint8)
    speck = empty.copy()
    speck[5:7, 5:7, 5:7] = 1
    three = np.zeros((60, 40, 40), np.uint8)
    for k in (5, 18, 31):
        three[4:-4, 4:34, k : k + 4] = 1
    near = np.zeros((60, 40, 40), np.uint8)
    near[4:-4, 5:9, 18:22] = 1
    near[4:-4, 25:29, 18:22] = 1
    full = np.ones((20, 20, 20), np.uint8)
    many = np.zeros((20, 20, 20), np.int16)
    many[2] = np.arange(400).reshape(20, 20)
    ct = np.full((20, 20, 20), -900, np.int16)
    soft = np.zeros((20, 20, 20), np.float32)
    soft[5:9] = 0.4
    nan = np.zeros((20, 20, 20), np.float32)
    nan[3, 3, 3] = np.nan
    return {
        "empty": (empty, "no voxel is labelled"),
        "speck": (speck, "a coronary tree has hundreds"),
        "three trees": (three, "3 separate vessels"),
        "no side": (near, "sides cannot be told"),
        "all labelled": (full, "is the background 0"),
        "many labels": (many, "different labels"),
        "a CT": (ct, "is this the CT itself"),
        "probabilities": (soft, "not whole numbers"),
        "nan": (nan, "NaN"),
    }


@pytest.mark.parametrize("name", list(masks_that_tell_nothing()))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hopeless_volumes_are_refused_in_one_line(tmp_path, name):
    array, message = masks_that_tell_nothing()[name]
    with pytest.raises(InputError, match=message) as caught:
        tree_from_labels(write(tmp_path / "x.nrrd", array, (1, 1, 1)))
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ((0.5, 0.5, 6.0), "check the unit"),
        ((0.001, 0.001, 0.001), "check the unit"),
        ((0.3, 0.3, 3.0), "thinner slices"),
    ],
)
def test_absurd_affines_are_refused(tmp_path, spacing, message):
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[3:15, 8:11, 8:11] = 1
    with pytest.raises(InputError, match=message):
        read_label_volume(write(tmp_path / "x.nrrd", mask, spacing))


def nifti_header(shape=(8, 8, 8), magic=b"n+1\0", sform=None) -> bytes:
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 2, 8)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    head[123] = 2
    if sform is not None:
        struct.pack_into("<2h", head, 252, 0, 1)
        struct.pack_into("<12f", head, 280, *np.asarray(sform, float).ravel())
    head[344:348] = magic
    return bytes(head)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.nii", b"", "empty"),
        ("x.nii", b"not a volume at all" * 40, "neither NIfTI nor NRRD"),
        ("x.nii.gz", b"\x1f\x8b" + b"\0" * 400, "sound gzip|neither"),
        ("x.nii", gzip.compress(nifti_header()), "must end in .nii.gz"),
        ("x.nii.gz", nifti_header() + b"\0" * 512, "not a gzip"),
        ("x.nii", nifti_header(magic=b"ni1\0"), "two files"),
        ("x.nii", nifti_header() + b"\0" * 100, "truncated|failed"),
        ("x.nii.gz", gzip.compress(nifti_header() + b"\0" * 100), "truncated"),
        ("x.nii.gz", gzip.compress(nifti_header() + bytes(range(256)) * 2)[:-30], "truncated|failed"),
        (
            "x.nrrd",
            b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n\n" + b"\1" * 90,
            "failed|truncated",
        ),
        ("x.nii.gz", gzip.compress(nifti_header((30000, 30000, 30000))), "can be read"),
        ("x.nii", nifti_header((8, 8, 1)) + b"\0" * 64, "2 along every axis|axes"),
        (
            "x.nrrd",
            b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ndata file: secret.raw\n\n",
            "points at another file",
        ),
        ("x.nrrd", b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 90000 90000 90000\nencoding: raw\n\n", "can be read"),
        ("x.nrrd", b"NRRD0004\ngarbage\n\n", "failed|damaged"),
    ],
)
def test_hostile_files_are_refused_before_they_are_decoded(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        tree_from_labels(path)
    assert "\n" not in str(caught.value)


def test_a_sheared_affine_never_gives_a_tree_in_silence(tmp_path):
    """The reader may refuse it or say so; a shear of 0.4 must not pass as a rotation."""
    sheared = nifti_header(sform=[[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[1:7, 3:5, 3:5] = 1
    path = tmp_path / "x.nii"
    path.write_bytes(sheared + mask.tobytes())
    with pytest.raises(InputError):
        read_label_volume(path)


@pytest.mark.parametrize("call", [
    lambda path: tree_from_labels(path, kind="three"),
    lambda path: read_label_volume(path, spacing_mm=0.0),
    lambda path: read_label_volume(path, spacing_mm=float("nan")),
    lambda path: tree_from_labels(path.with_name("missing.nii.gz")),
    lambda path: tree_from_labels(path.parent),
    lambda path: tree_from_labels(path, kind="sides"),
    lambda path: tree_from_labels(path, kind="segments", spacing_mm=9.0),
])  # fmt: skip
def test_bad_arguments_are_refused(tmp_path, call):
    path = write_label_case(tmp_path, "case", {"tree": simple_tree()})
    with pytest.raises(InputError):
        call(path)


def test_a_folder_is_scanned_in_order_with_unique_names(tmp_path):
    for way in ("b/1.img.nii.gz", "b/1.label.nii.gz", "a.nii.gz", "c/x y.nrrd", "c/.hidden.nii", "notes.txt"):
        path = tmp_path / way
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = list(iterate_label_cases(tmp_path))
    assert [name for name, _ in found] == ["a", "b_1.label", "c_x_y"]
    assert [path.name for _, path in found] == ["a.nii.gz", "1.label.nii.gz", "x y.nrrd"]
    for bad in (tmp_path / "none", tmp_path / "a.nii.gz"):
        with pytest.raises(InputError):
            list(iterate_label_cases(bad))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .nii"):
        list(iterate_label_cases(tmp_path / "empty"))


def test_written_cases_are_found_again_and_never_outside_the_folder(tmp_path):
    path = write_label_case(tmp_path / "set", "patient_1", {"tree": simple_tree()})
    assert list(iterate_label_cases(tmp_path / "set")) == [("patient_1", path)]
    for name in ("../x", "a/b", "", ".x"):
        with pytest.raises(InputError):
            write_label_case(tmp_path, name, {"tree": simple_tree()})
    with pytest.raises(InputError, match="share voxels"):
        write_label_case(tmp_path, "both", {"rca": simple_tree(), "lca": simple_tree()})
    with pytest.raises(InputError, match="no tree"):
        write_label_case(tmp_path, "none", {})


def test_an_oblique_body_ct_is_no_label_volume(shared_data):
    with pytest.raises(InputError):
        tree_from_labels(shared_data / "ct" / "example_ct_sm.nii.gz")
