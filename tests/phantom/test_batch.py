# SPDX-License-Identifier: Apache-2.0
"""Training batches without files: exact images and distances, determinism, odd sizes, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from licag3d.errors import InputError
from licag3d.geometry import Cameras
from licag3d.ops.reference import project_tubes as twin
from licag3d.phantom import splits
from licag3d.phantom.batch import (
    ARTERIES,
    BatchSettings,
    PhantomStream,
    draw_case,
    make_batch,
    render_batch,
)
from licag3d.phantom.queries import TreeQueries, center_from_views
from licag3d.phantom.tubes import path_length_mm, tree_lines
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.distance import Cones, cone_distance, tree_cones
from licag3d.vessels.tree import flatten_tree

SMALL = BatchSettings(rows=32, cols=40, points=300, disease="none")


@pytest.fixture(scope="module")
def batch():
    return make_batch([1_000_003, 1_000_004], SMALL)


def exact(cones: Cones, points: np.ndarray) -> np.ndarray:
    """Every point against every cone, by the function the rest of the package uses."""
    distance = np.full(points.shape[:-1], np.inf)
    for k in range(len(cones)):
        distance = np.minimum(
            distance, cone_distance(points, cones.start[k], cones.end[k], cones.start_radius[k], cones.end_radius[k])
        )
    return distance


def test_images_are_the_exact_line_integrals_of_the_true_cameras(batch):
    for case in range(2):
        mu = float(batch.lumen_mu_per_mm[case])
        for view, camera in enumerate(batch.true_cameras[case]):
            path = path_length_mm(tree_lines(batch.trees[case]), camera)
            np.testing.assert_allclose(batch.line_integrals[case, view].numpy(), mu * path, rtol=1e-6, atol=1e-7)
    assert (batch.masks == (batch.line_integrals > 0)).all() and batch.masks.any((2, 3)).all()


def test_images_agree_with_the_plain_torch_twin(batch):
    """What a device without the native library runs."""
    flat = flatten_tree(batch.trees[0])
    path = twin(
        torch.from_numpy(flat.points_lps_mm),
        torch.from_numpy(flat.radius_mm),
        torch.from_numpy(flat.segments),
        batch.cameras(0),
    )
    image = path.float() * batch.lumen_mu_per_mm[0]
    assert torch.allclose(batch.line_integrals[0], image, rtol=1e-5, atol=1e-6)


def test_distances_are_exact_and_attenuation_follows_them(batch):
    for case in range(2):
        expected = exact(tree_cones(batch.trees[case]), batch.points_mm[case].double().numpy())
        np.testing.assert_allclose(batch.signed_distance_mm[case].numpy(), expected, atol=1e-4)
        sure = np.abs(expected) > 1e-4
        inside = batch.mu_per_mm[case].numpy() == float(batch.lumen_mu_per_mm[case])
        assert (inside == (expected < 0))[sure].all()
        assert 0.1 < inside[: batch.near].mean() < 0.6 and inside[batch.near :].mean() < 0.05


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_distances_hold_for_any_cones(seed, count):
    """Steep cones whose larger ball holds the smaller one, points without length, branches of any size, none at all."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(count, 3)) * 20
    end = start + rng.normal(size=(count, 3)) * rng.choice([0, 0.1, 3, 40], (count, 1))
    cones = Cones(start, end, rng.uniform(0, 3, count), rng.uniform(0, 3, count), np.sort(rng.integers(0, 4, count)))
    one = Cones(start[:1], end[:1], np.ones(count)[:1], np.ones(count)[:1], np.zeros(count, int)[:1])
    points = rng.normal(size=(2, 50, 3)) * 30
    got = TreeQueries.stack([cones, one], dtype=torch.float64).signed_distance_mm(torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(got[0], exact(cones, points[0]), atol=1e-9)
    np.testing.assert_allclose(got[1], exact(one, points[1]), atol=1e-9)


def test_points_fill_the_box_and_stay_in_it(batch):
    assert batch.points_mm.shape == (2, 300, 3) and batch.near == 150
    unit = batch.unit_points
    assert unit.abs().max() <= 1 + 1e-5
    uniform = unit[:, batch.near :].flatten(0, 1)
    assert (uniform.abs().max(0).values > 0.9).all() and uniform.mean(0).abs().max() < 0.25
    tight = make_batch([1_000_003], replace(SMALL, box_size_mm=20, box_center="isocentre", near_mm=30))
    assert tight.points_mm.abs().max() <= 10 + 1e-4, "near points outside the box must give way"


def test_a_patient_is_the_same_in_any_batch_and_twice(batch):
    alone = make_batch([1_000_004], SMALL)
    for name in ("line_integrals", "points_mm", "signed_distance_mm", "mu_per_mm", "box_center_mm", "artery"):
        assert torch.equal(getattr(alone, name)[0], getattr(batch, name)[1]), name
    assert alone.user_cameras[0] == batch.user_cameras[1]
    assert not torch.equal(batch.line_integrals[0], batch.line_integrals[1])


def test_the_stream_goes_on_where_it_stopped_and_workers_change_nothing():
    tiny = replace(SMALL, rows=32, cols=32, points=10)
    stream = PhantomStream(tiny, batch=2)
    assert stream.seeds(3) == [splits.training_seed(6), splits.training_seed(7)]
    own = stream.batches(first=1)
    second = next(own)
    assert second.seeds == tuple(stream.seeds(1)) and next(own).seeds == tuple(stream.seeds(2))
    others = PhantomStream(tiny, batch=2, workers=1, ahead=1).batches(first=1)
    drawn = next(others)
    others.close()
    assert drawn.seeds == second.seeds and torch.equal(drawn.line_integrals, second.line_integrals)
    assert torch.equal(drawn.points_mm, second.points_mm)


def test_both_arteries_and_every_seed_of_a_stream_are_training_seeds():
    drawn = {draw_case(splits.training_seed(k), SMALL).artery for k in range(6)}
    assert drawn == set(ARTERIES)
    assert all(seed in splits.TRAINING for seed in PhantomStream(SMALL, batch=5).seeds(10**6))


def test_users_know_neither_offset_nor_exact_angles():
    draw = draw_case(1_000_000, replace(SMALL, offset_mm=(5, 5), angle_error_deg=(1.5, 1.5), views=3))
    assert len(draw.true_cameras) == 3 and draw.true_cameras[0].offset_lps_mm == (0.0, 0.0, 0.0)
    for true, user in zip(draw.true_cameras, draw.user_cameras, strict=True):
        assert user.offset_lps_mm == (0.0, 0.0, 0.0)
        error = np.hypot(true.primary_deg - user.primary_deg, true.secondary_deg - user.secondary_deg)
        assert error == pytest.approx(1.5)
    assert np.linalg.norm(draw.true_cameras[2].offset_lps_mm) == pytest.approx(5)


def test_supersampling_is_the_mean_over_the_pixel(batch):
    fine = make_batch([1_000_003], replace(SMALL, supersample=4))
    finer = [camera.resized(128, 160) for camera in fine.true_cameras[0]]
    path = np.stack([path_length_mm(tree_lines(fine.trees[0]), camera) for camera in finer])
    mean = path.reshape(2, 32, 4, 40, 4).mean((2, 4)) * float(fine.lumen_mu_per_mm[0])
    np.testing.assert_allclose(fine.line_integrals[0].numpy(), mean, rtol=1e-5, atol=1e-6)


def test_the_box_centre_from_views_needs_no_truth(batch):
    sharp = make_batch(
        [1_000_003],
        replace(
            SMALL,
            rows=128,
            cols=128,
            offset_mm=(0, 0),
            angle_error_deg=(0, 0),
            box_center="views",
            separation_deg=(90, 90),
        ),
    )
    points = flatten_tree(sharp.trees[0]).points_lps_mm
    middle = 0.5 * (points.min(0) + points.max(0))
    assert np.linalg.norm(sharp.box_center_mm[0].numpy() - middle) < 15
    camera = sharp.user_cameras[0][0]
    assert np.abs(center_from_views([camera], [np.zeros((128, 128), bool)])).max() < 1e-6


def test_a_soft_edge_is_half_at_the_wall():
    soft = make_batch([1_000_003], replace(SMALL, edge_mm=1.0))
    share = soft.mu_per_mm / soft.lumen_mu_per_mm[:, None]
    assert torch.allclose(share, (0.5 - soft.signed_distance_mm).clamp(0, 1), atol=1e-6)
    assert ((share > 0.2) & (share < 0.8)).any()


def test_no_point_and_a_tree_without_length():
    empty = make_batch([1_000_003], replace(SMALL, points=0))
    assert empty.points_mm.shape == (1, 0, 3) and empty.mu_per_mm.shape == (1, 0)
    ball = VesselTree((Branch(0, None, np.array([[1.0, 2.0, 3.0]]), np.array([2.0])),))
    queries = TreeQueries.stack([tree_cones(ball), tree_cones(VesselTree())])
    distance = queries.signed_distance_mm(torch.tensor([[[1.0, 2.0, 8.0]]]).repeat(2, 1, 1))
    assert distance[0, 0] == pytest.approx(3.0) and distance[1, 0] == torch.inf
    with pytest.raises(ValueError, match="expected \\(2, N, 3\\)"):
        queries.signed_distance_mm(torch.zeros(1, 4, 3))
    alone = TreeQueries.stack([tree_cones(VesselTree())])
    assert (alone.signed_distance_mm(torch.zeros(1, 4, 3)) == torch.inf).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"artery": "aorta"}, "aorta"),
        ({"views": 0}, "views is 0"),
        ({"points": -1}, "points is -1"),
        ({"near_share": float("nan")}, "near_share is nan"),
        ({"separation_deg": (60, 30)}, "separation_deg is 60, 30"),
        ({"box_center": "moon"}, "moon"),
        ({"lumen_mu_per_mm": (0, 0.1)}, "lumen_mu_per_mm"),
    ],
)
def test_bad_settings_are_refused_with_the_value_seen(change, said):
    with pytest.raises(InputError, match=said):
        BatchSettings(**change)


def test_benchmark_seeds_are_never_drawn():
    with pytest.raises(InputError, match="benchmark"):
        draw_case(splits.BENCHMARK[0], SMALL)
    with pytest.raises(InputError, match="at least one seed"):
        make_batch([], SMALL)
    with pytest.raises(InputError, match="batch is 0"):
        PhantomStream(SMALL, batch=0)


def test_cameras_of_a_batch_are_stacked_in_order(batch):
    both = batch.all_cameras(true=False)
    assert len(both) == 4 and isinstance(both, Cameras)
    assert float(both.primary_deg[2]) == batch.user_cameras[1][0].primary_deg


def test_throughput_is_measured_from_a_command(capsys):
    from licag3d.phantom.throughput import main

    assert main(["--batch", "1", "--batches", "1", "--size", "32", "--points", "64"]) == 0
    rates = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert set(rates) == {"cases_per_s", "draws_per_s", "rays_per_s", "queries_per_s"}
    assert all(float(value) > 0 for value in rates.values())
    with pytest.raises(InputError, match="--batches is 0"):
        main(["--batches", "0"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_gives_what_the_cpu_gives(batch):
    draws = [draw_case(seed, SMALL) for seed in batch.seeds]
    device = render_batch(draws, SMALL, device="cuda")
    assert torch.allclose(device.line_integrals.cpu(), batch.line_integrals, rtol=1e-5, atol=1e-6)
    assert torch.allclose(device.signed_distance_mm.cpu(), batch.signed_distance_mm, atol=1e-4)
    assert torch.equal(device.points_mm.cpu(), batch.points_mm)
