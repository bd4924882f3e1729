# SPDX-License-Identifier: Apache-2.0
"""Heartbeat and breathing: amplitudes, smoothness, and that no vessel crosses another by moving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.phantom.anatomy import overlapping_branches, sample_patient, sample_tree
from licag3d.phantom.motion import (
    END_SYSTOLE,
    clear_motion,
    contraction,
    displacement_mm,
    motion_of_tree,
    move_points,
    move_surroundings,
    move_tree,
    sample_motion,
)
from licag3d.structures import Branch, VesselTree

SEEDS = range(6)


def motion_of(seed: int):
    return sample_motion(np.random.default_rng([seed, 60]), sample_patient(seed).heart, np.zeros(3))


def moved_by(tree, other) -> dict[str, np.ndarray]:
    return {
        a.name: np.linalg.norm(a.points_lps_mm - b.points_lps_mm, axis=1)
        for a, b in zip(tree.branches, other.branches, strict=True)
    }


@pytest.fixture(scope="module")
def trees() -> dict[tuple[int, str], VesselTree]:
    return {(seed, artery): sample_tree(seed, artery) for seed in SEEDS for artery in ("rca", "lca")}


def test_contraction_is_periodic_smooth_and_full_at_end_systole():
    phase = np.linspace(0, 1, 2001)
    share = contraction(phase)
    assert contraction(0.0) == pytest.approx(0, abs=1e-9) and contraction(1.3) == pytest.approx(contraction(0.3))
    assert share.max() == pytest.approx(1, abs=0.01) and abs(phase[share.argmax()] - END_SYSTOLE) < 0.02
    assert share.min() > -0.01
    speed = np.gradient(share, phase)
    assert abs(speed[0] - speed[-1]) < 0.3 and np.abs(np.diff(speed)).max() < 0.2
    # The rest period of diastole: a tenth of a beat in which hardly anything moves.
    rest = (phase > 0.72) & (phase < 0.82)
    assert np.ptp(share[rest]) < 0.05


def test_vessels_move_as_far_as_in_patients(trees):
    """End-diastole to end-systole: RCA 10-25 mm, LCx 8-20 mm, LAD 5-15 mm; the groove moves most."""
    mean: dict[str, list[float]] = {}
    for (seed, _), tree in trees.items():
        for name, distance in moved_by(tree, move_tree(tree, END_SYSTOLE, motion=motion_of(seed))).items():
            mean.setdefault(name, []).append(distance.mean())
    average = {name: np.mean(values) for name, values in mean.items()}
    assert 10 < average["RCA"] < 25 and 8 < average["LCx"] < 20 and 5 < average["LAD"] < 15
    assert average["RCA"] > average["LCx"] > average["LAD"]
    assert all(4 < value < 28 for name in ("RCA", "LCx", "LAD") for value in mean[name])


def test_the_beat_goes_towards_the_apex_inwards_and_round(trees):
    seed = 2
    motion, tree = motion_of(seed), trees[(seed, "rca")]
    trunk = tree.branches[0].points_lps_mm
    step = displacement_mm(trunk, END_SYSTOLE, motion)
    assert np.all(step @ motion.apex > 0)
    apical = (motion.centre_mm + 0.8 * motion.length_mm * motion.apex + 20 * motion.up)[None]
    turned = displacement_mm(apical, END_SYSTOLE, motion)[0]
    # Seen from the apex (along -apex) counterclockwise: positive about the axis that points to the observer.
    assert turned @ np.cross(motion.apex, motion.up) > 1
    assert turned @ motion.up < 0


def test_space_is_never_folded_so_that_vessels_cannot_cross(trees):
    rng, step = np.random.default_rng(0), 1e-3
    for seed in SEEDS:
        motion = motion_of(seed)
        points = rng.uniform(-110, 110, (4000, 3))
        columns = [
            (
                displacement_mm(points + step * axis, END_SYSTOLE, motion)
                - displacement_mm(points - step * axis, END_SYSTOLE, motion)
            )
            / (2 * step)
            for axis in np.eye(3)
        ]
        assert np.linalg.det(np.stack(columns, -1) + np.eye(3)).min() > 0.3


def test_lumens_stay_clear_of_each_other_at_every_phase(trees):
    for (seed, artery), tree in trees.items():
        for phase in (0.2, END_SYSTOLE):
            moved = move_tree(tree, phase, 6.0, motion=clear_motion(tree, motion_of(seed)))
            assert overlapping_branches(moved) is None, (seed, artery, phase)
            for branch in moved.branches:
                if branch.parent is not None:  # branches still start on their parent
                    parent = next(b for b in moved.branches if b.id == branch.parent)
                    gap = np.linalg.norm(parent.points_lps_mm - branch.points_lps_mm[0], axis=1).min()
                    assert gap < 1e-9


def test_a_beat_that_would_press_lumens_together_is_weakened():
    motion = motion_of(0)
    way = motion.centre_mm + 30 * motion.up + np.linspace(0, 30, 61)[:, None] * motion.apex
    near = way + 2.15 * motion.up  # walls 0.15 mm apart: the narrowing heart would close that
    side = Branch(1, None, near, np.ones(61), "B")
    pair = VesselTree((Branch(0, None, way, np.ones(61), "A"), replace(side, parent=0)))
    calm = clear_motion(pair, motion)
    assert calm.radial < motion.radial and clear_motion(pair, calm) == calm
    assert overlapping_branches(move_tree(pair, END_SYSTOLE, motion=calm)) is None


def test_nothing_moves_at_end_diastole_and_what_moves_keeps_its_samples(trees):
    tree, motion = trees[(0, "lca")], motion_of(0)
    still = move_tree(tree, 0.0, motion=motion)
    assert all(
        np.array_equal(a.points_lps_mm, b.points_lps_mm) for a, b in zip(tree.branches, still.branches, strict=True)
    )
    beat = move_tree(tree, 1.0, motion=motion)
    assert all(
        np.array_equal(a.points_lps_mm, b.points_lps_mm) for a, b in zip(tree.branches, beat.branches, strict=True)
    )
    moved = move_tree(tree, 0.3, 5.0, motion=motion)
    for a, b in zip(tree.branches, moved.branches, strict=True):
        assert a.points_lps_mm.shape == b.points_lps_mm.shape and np.array_equal(a.radius_mm, b.radius_mm)
        length_a, length_b = (np.linalg.norm(np.diff(x.points_lps_mm, axis=0), axis=1) for x in (a, b))
        assert np.all(length_b > 0.6 * length_a) and np.all(length_b < 1.5 * length_a)


def test_breathing_is_a_rigid_motion_downwards(trees):
    tree, motion = trees[(1, "rca")], motion_of(1)
    points = tree.branches[0].points_lps_mm
    moved = move_points(points, 0.0, 8.0, motion)
    assert np.allclose(np.linalg.norm(moved - moved[0], axis=1), np.linalg.norm(points - points[0], axis=1))
    middle = (motion.centre_mm + 0.4 * motion.length_mm * motion.apex)[None]
    shift = (move_points(middle, 0.0, 8.0, motion) - middle)[0]
    assert shift[2] == pytest.approx(-8) and abs(shift[0]) < 1e-9 and abs(shift[1]) < 8
    shifted = move_points(points, 0.0, 0.0, motion, shift_mm=np.array((1.0, 2.0, 3.0)))
    np.testing.assert_allclose(shifted - points, np.broadcast_to((1.0, 2.0, 3.0), points.shape))


def test_a_tree_without_a_known_heart_moves_alike(trees):
    """The average heart around the tree, for trees from CT: the same order of displacement as with the true heart."""
    for (seed, artery), tree in trees.items():
        known = moved_by(tree, move_tree(tree, END_SYSTOLE, motion=motion_of(seed)))
        guess = moved_by(tree, move_tree(tree, END_SYSTOLE, motion=motion_of_tree(tree)))
        trunk = "RCA" if artery == "rca" else "LCx"
        assert 0.4 < guess[trunk].mean() / known[trunk].mean() < 2.5
    with pytest.raises(InputError, match="no branches"):
        motion_of_tree(VesselTree())


def test_heart_shadow_domes_and_devices_move_and_bones_stay(trees):
    """In the picture: breathing in lowers the domes, systole narrows the heart, the catheter goes with the ostium."""
    from licag3d.geometry import Camera
    from licag3d.phantom.thorax import sample_thorax, thorax_integral
    from licag3d.phantom.xray import sample_surroundings

    tree, motion = trees[(3, "lca")], motion_of(3)
    thorax = sample_thorax(np.random.default_rng(1), sample_patient(3).heart, np.zeros(3))
    rest = sample_surroundings(np.random.default_rng(1), tree, thorax)
    assert move_surroundings(rest, 0.0, 0.0, motion) is rest
    camera = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=4, spacing_col_mm=4, rows=96, cols=96)
    before = thorax_integral(rest.thorax, camera)
    inspired = thorax_integral(move_surroundings(rest, 0.0, 15.0, motion).thorax, camera)
    systole = thorax_integral(move_surroundings(rest, END_SYSTOLE, 0.0, motion).thorax, camera)
    assert inspired.sum() < before.sum() - 1 and systole.sum() < before.sum() - 1  # more lung in the beam
    assert np.array_equal(
        rest.thorax.ribs[0].points_lps_mm, move_surroundings(rest, 0.3, 9.0, motion).thorax.ribs[0].points_lps_mm
    )


def test_leads_go_with_the_heart_and_skin_electrodes_stay(trees):
    from licag3d.phantom.devices import Device
    from licag3d.phantom.thorax import sample_thorax
    from licag3d.phantom.tubes import Line
    from licag3d.phantom.xray import sample_surroundings

    tree, motion = trees[(3, "lca")], motion_of(3)
    thorax = sample_thorax(np.random.default_rng(1), sample_patient(3).heart, np.zeros(3))
    rest = sample_surroundings(np.random.default_rng(1), tree, thorax)
    way = 30 * motion.right + np.linspace(0, 60, 30)[:, None] * motion.apex
    lead, tip = (Line(points, np.ones(len(points))) for points in (way, way[-4:]))
    skin = Line(way[:3] - (0, 110, 0), np.ones(3))
    kinds = (("lead", lead), ("electrode", tip), ("electrode", skin), ("sternal wire", lead))
    rest = replace(rest, devices=tuple(Device(kind, (line,), 0.1) for kind, line in kinds))
    moved = [device.lines[0].points_lps_mm for device in move_surroundings(rest, END_SYSTOLE, 3.0, motion).devices]
    assert np.linalg.norm(moved[0] - way, axis=1).max() > 5
    np.testing.assert_allclose(moved[1], moved[0][-4:])
    assert np.array_equal(moved[2], skin.points_lps_mm) and np.array_equal(moved[3], way)


@pytest.mark.parametrize("phase, respiration", [(np.nan, 0), (np.inf, 0), (0.2, 50), (0.2, np.nan)])
def test_absurd_phases_and_breaths_are_refused(phase, respiration):
    with pytest.raises(InputError, match="give"):
        move_points(np.zeros((1, 3)), phase, respiration, motion_of(0))
    with pytest.raises(InputError, match="give"):
        replace(motion_of(0), twist_deg=80)
