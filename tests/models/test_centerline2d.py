# SPDX-License-Identifier: Apache-2.0
"""The traced 2D centreline graph against drawn shapes with analytic centrelines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from licag3d.geometry import Camera
from licag3d.models.centerline2d import trace_centerlines, trace_mask
from licag3d.structures import VesselEvidence, View


def draw(polylines, shape=(200, 200), radius=3.0):
    """Mask of pixels within ``radius`` px of polylines (col, row), and the parallel-beam tube profile."""
    rows, cols = np.mgrid[:shape[0], :shape[1]]
    distance = np.full(shape, np.inf)
    for line in polylines:
        line = np.asarray(line, float)
        for a, b in zip(line[:-1], line[1:], strict=True):
            ab = b - a
            t = np.clip(((cols - a[0]) * ab[0] + (rows - a[1]) * ab[1]) / (ab @ ab), 0, 1)
            distance = np.minimum(distance, np.hypot(cols - a[0] - t * ab[0], rows - a[1] - t * ab[1]))
    mask = distance <= radius
    return mask, np.where(mask, 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0)), 0).astype(np.float32)


def ring_chord(centre, ring_px, radius, start_deg, stop_deg, shape=(200, 200), fine=5):
    """Line integral (chord length, px) of a tube along an arc, averaged over each pixel as a detector does."""
    steps = (np.arange(fine) - (fine - 1) / 2) / fine
    total = np.zeros(shape)
    for dr in steps:
        for dc in steps:
            rows, cols = np.mgrid[:shape[0], :shape[1]] + np.array([dr, dc])[:, None, None]
            angle = np.degrees(np.arctan2(rows - centre[1], cols - centre[0])) % 360
            offset = np.hypot(cols - centre[0], rows - centre[1]) - ring_px
            chord = 2 * np.sqrt(np.maximum(radius**2 - offset**2, 0))
            total += np.where((angle > start_deg) & (angle < stop_deg), chord, 0)
    return (total / fine**2).astype(np.float32)


def arc(centre, radius, start_deg, stop_deg, count=400):
    a = np.radians(np.linspace(start_deg, stop_deg, count))
    return np.stack([centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)], 1)


@pytest.mark.parametrize("vessel_radius", [1.0, 1.5, 3.0, 6.0])
@pytest.mark.parametrize("centre", [(100.3, 99.6), (100.0, 100.0)])
def test_curve_is_found_to_a_fifth_of_a_pixel(vessel_radius, centre):
    integral = ring_chord(centre, 60.0, vessel_radius, 10, 200)
    mask = integral > 0.15 * 2 * vessel_radius
    graph = trace_mask(mask, line_integral=integral)
    assert len(graph.pieces) == 1
    assert sorted(graph.node_kind) == ["end", "end"]
    angle = np.degrees(np.arctan2(graph.points[:, 1] - centre[1], graph.points[:, 0] - centre[0])) % 360
    inside = (angle > 16) & (angle < 194)
    error = (np.hypot(*(graph.points - centre).T) - 60.0)[inside]
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert np.abs(error).max() < 0.2
    assert abs(graph.piece_length_px(0) - np.radians(190) * 60) < 2 * vessel_radius + 3
    assert graph.radius_px[inside].mean() == pytest.approx(vessel_radius, abs=0.25)
    radial = (graph.points - centre) / 60
    assert np.sqrt(np.mean((graph.tangent * radial).sum(1)[inside] ** 2)) < 0.03
    # Mean of a circular chord over the central half: 0.957 of the diameter (less where a pixel is wider than that).
    if vessel_radius >= 3:
        assert np.median(graph.line_integral[inside]) == pytest.approx(0.957 * 2 * vessel_radius, rel=0.04)


@pytest.mark.parametrize("vessel_radius", [1.5, 3.0, 6.0])
def test_mask_alone_places_the_curve_within_its_quantisation(vessel_radius):
    mask, _ = draw([arc((100.3, 99.6), 60.0, 10, 200)], radius=vessel_radius)
    graph = trace_mask(mask)
    angle = np.degrees(np.arctan2(graph.points[:, 1] - 99.6, graph.points[:, 0] - 100.3)) % 360
    error = (np.hypot(graph.points[:, 0] - 100.3, graph.points[:, 1] - 99.6) - 60.0)[(angle > 16) & (angle < 194)]
    # Where the curve runs along a pixel row, the width of a binary mask is off by up to one pixel on one side.
    assert np.sqrt(np.mean(error**2)) < 0.15
    assert np.abs(error).max() < 0.6


def test_y_has_three_pieces_and_one_branch():
    centre = (100.0, 100.0)
    arms = [(100.0, 20.0), (40.0, 170.0), (160.0, 170.0)]
    mask, _ = draw([[centre, arm] for arm in arms], radius=3.5)
    graph = trace_mask(mask)
    assert len(graph.pieces) == 3
    assert sorted(graph.node_kind) == ["branch", "end", "end", "end"]
    assert sorted(graph.node_degree) == [1, 1, 1, 3]
    node = graph.nodes[graph.node_kind == "branch"][0]
    assert np.hypot(*(node - centre)) < 2.0
    lengths = sorted(graph.piece_length_px(p.id) for p in graph.pieces)
    assert np.allclose(lengths, sorted(np.hypot(a[0] - 100, a[1] - 100) for a in arms), atol=5.0)
    for piece in graph.pieces:
        points = graph.points[piece.indices]
        assert np.allclose(points[0], graph.nodes[piece.node_start])
        assert np.allclose(points[-1], graph.nodes[piece.node_end])
        assert np.linalg.norm(np.diff(points, axis=0), axis=1).max() < 1.6


@pytest.mark.parametrize("half_angle_deg", [12, 20, 45])
def test_x_is_a_crossing_whose_pairs_continue_straight(half_angle_deg):
    dx, dy = 85 * np.sin(np.radians(half_angle_deg)), 85 * np.cos(np.radians(half_angle_deg))
    first, second = [(100 - dx, 100 - dy), (100 + dx, 100 + dy)], [(100 + dx, 100 - dy), (100 - dx, 100 + dy)]
    graph = trace_mask(draw([first, second], radius=2.5)[0])
    assert len(graph.pieces) == 4
    assert sorted(graph.node_kind) == ["crossing"] + ["end"] * 4
    (crossing,) = graph.crossings
    assert np.hypot(*(graph.nodes[crossing.node] - 100)) < 2.0
    for one, other in crossing.pairs:
        ends = []
        for piece, end in (one, other):
            far = graph.pieces[piece].node_end if end == 0 else graph.pieces[piece].node_start
            ends.append(graph.nodes[far] - 100)
        # The far ends of a pair lie on opposite sides.
        assert ends[0] @ ends[1] < -0.98 * np.linalg.norm(ends[0]) * np.linalg.norm(ends[1])


def test_two_side_branches_close_together_stay_branches():
    trunk = [(100, 10), (100, 190)]
    graph = trace_mask(draw([trunk, [(100, 80), (170, 60)], [(100, 112), (30, 92)]], radius=3)[0])
    assert sorted(graph.node_kind).count("branch") == 2
    assert len(graph.pieces) == 5


def test_spurs_of_a_rough_outline_are_pruned():
    mask, _ = draw([[(20, 100), (180, 100)]], radius=5)
    rng = np.random.default_rng(0)
    for col in rng.integers(30, 170, 25):
        row = 100 + rng.choice([-6, 6])
        mask[min(row, 100):max(row, 100) + 1, col] = True
    graph = trace_mask(mask)
    assert len(graph.pieces) == 1
    assert np.abs(graph.points[5:-5, 1] - 100).max() < 0.8


def test_closed_loop_and_empty_and_dots():
    graph = trace_mask(draw([arc((100, 100), 40, 0, 360)], radius=2)[0])
    assert len(graph.pieces) == 1 and list(graph.node_kind) == ["loop"] and list(graph.node_degree) == [2]
    assert graph.piece_length_px(0) == pytest.approx(2 * np.pi * 40, rel=0.02)
    empty = trace_mask(np.zeros((30, 40), bool))
    assert len(empty.pieces) == 0 and empty.points.shape == (0, 2) and empty.nodes.shape == (0, 2)
    dots = np.zeros((30, 40), bool)
    dots[5, 5] = dots[20:22, 20:22] = True
    assert len(trace_mask(dots).pieces) == 0


def test_evidence_radius_is_used_and_wrong_shape_is_refused():
    mask, integral = draw([[(20, 50), (180, 60)]], radius=3)
    known = np.where(mask, np.float32(2.25), np.float32(0))
    graph = trace_centerlines(VesselEvidence(mask.astype(np.float32), integral, mask.astype(np.float32), known, mask))
    assert np.allclose(graph.radius_px[5:-5], 2.25, atol=1e-3)
    with pytest.raises(ValueError, match="2"):
        trace_mask(np.zeros((3, 3, 3), bool))


def test_full_image_mask_and_noise_do_not_crash():
    trace_mask(np.ones((40, 40), bool))
    rng = np.random.default_rng(1)
    for density in (0.2, 0.5, 0.8):
        graph = trace_mask(rng.random((60, 60)) < density)
        for piece in graph.pieces:
            assert (graph.piece_of[piece.indices] == piece.id).all()


def test_short_pieces_of_found_vessels_are_left_out_and_those_of_given_ones_stay():
    camera = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.4, spacing_col_mm=0.4, rows=200, cols=300)
    mask = np.zeros((200, 300), bool)
    mask[98:103, 10:290] = True
    mask[82:98, 50:53] = True  # dead ends of 5.1 and 2.4 mm
    mask[91:98, 150:153] = True
    mask[40:43, 20:50] = True  # free pieces of 9 and 4.5 mm
    mask[40:43, 150:165] = True
    zero = np.zeros(mask.shape, np.float32)
    evidence = VesselEvidence(mask.astype(np.float32), zero, zero, zero, mask)
    view = View(zero, camera, np.ones(mask.shape, bool))

    def there(graph, col, row):
        return bool((np.linalg.norm(graph.points - [col, row], axis=1) < 3).any())

    found = trace_centerlines(evidence, view)
    assert there(found, 51, 86) and there(found, 35, 41)
    assert not there(found, 151, 93) and not there(found, 157, 41)
    given = trace_centerlines(evidence, replace(view, mask=mask))
    assert there(given, 151, 93) and there(given, 157, 41)
