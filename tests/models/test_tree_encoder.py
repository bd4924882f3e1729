# SPDX-License-Identifier: Apache-2.0
"""The tree encoder: any number of views in any order, its geometry, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.models import encode_views as encoding
from licag3d.models.branch_table import ARTERIES
from licag3d.models.encoder import (
    CAMERA_NUMBERS,
    TreeEncoderConfig,
    TreeFromViews,
    config_facts,
    load_tree_encoder,
    set_codes,
    tree_encoder_config,
)
from licag3d.models.generator import load_generator
from licag3d.models.lift import with_residual
from licag3d.models.named_update import NamedUpdate, cells_of, project
from licag3d.models.view_windows import camera_numbers, cut_window, plane_mm, plane_pixels
from licag3d.structures import VesselEvidence
from licag3d.train.checkpoints import save_weights

SMALL = TreeEncoderConfig(window_px=64, widths=(8, 8, 8, 16), token=16, dense=8, stretches=3, cells=64, tuple_dim=8)


@pytest.fixture(scope="module")
def generator():
    return load_generator()[0]


@pytest.fixture(scope="module")
def net(generator):
    torch.manual_seed(0)
    made = TreeFromViews(SMALL)
    set_codes(made, generator)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():  # moments as if there were patients
        for artery in ARTERIES:
            gain, root = getattr(made.update, f"{artery}_gain"), getattr(made.update, f"{artery}_root")
            half = torch.randn(root.shape[0], 20, generator=random)
            root[:, :20] = half
            gain.copy_(0.02 * torch.randn(gain.shape[0], 20, generator=random) @ half.T)
        for part in made.modules():
            if isinstance(part, torch.nn.Linear):
                part.weight.add_(0.02 * torch.randn(part.weight.shape, generator=random))
    return made.eval().requires_grad_(False)


def camera(primary: float, secondary: float = 0.0, **changes) -> Camera:
    return replace(Camera(primary, secondary, 1050, 750, 0.3, 0.3, 128, 128), **changes)


def line_evidence(points: np.ndarray, size: int = 128) -> VesselEvidence:
    """Evidence of a polyline of pixels (col, row)."""
    mask = np.zeros((size, size), bool)
    for (a, b), (c, d) in zip(points[:-1], points[1:], strict=True):
        for t in np.linspace(0, 1, 200):
            col, row = round(a + t * (c - a)), round(b + t * (d - b))
            mask[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = True
    value = mask.astype(np.float32)
    return VesselEvidence(value, 0.3 * value, value, value, mask)


EVIDENCE = [
    line_evidence(np.array(points))
    for points in ([(30, 20), (60, 70), (90, 100)], [(40, 25), (50, 80), (100, 90)], [(80, 20), (60, 50), (50, 100)])
]
CAMERAS = [camera(30.0), camera(-40.0, 10.0), camera(0.0, 30.0)]


@pytest.mark.parametrize("views", range(1, 9))
def test_one_to_eight_views(net, views):
    numbers = torch.from_numpy(np.repeat(camera_numbers(CAMERAS[:1]), views, 0))[None].expand(2, -1, -1)
    seen = net.see(torch.rand(2, views, 2, 64, 64), numbers)
    codes = net.read(seen, torch.tensor([0, 1]))
    assert codes.w_plus.shape == (2, 16, 256) and codes.place_mm.shape == (2, views, 2)
    assert codes.label.shape == (2, 3) and codes.log_scale.shape == (2, views)
    assert torch.allclose(codes.tuple_code.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.isfinite(codes.w_plus).all()
    # All styles but the first five are one code.
    assert torch.equal(codes.w_plus[:, 5:], codes.w_plus[:, 5:6].expand(-1, 11, -1))
    assert not torch.equal(codes.w_plus, codes.guess)


def test_no_view_and_nine_views_are_refused(net):
    for views in (0, 9):
        with pytest.raises(InputError, match=f"{views} views; give 1 to 8"):
            net.see(torch.zeros(1, views, 2, 64, 64), torch.zeros(1, views, CAMERA_NUMBERS))
        with pytest.raises(InputError, match=f"{views} views; give 1 to 8"):
            encoding.encode_views([EVIDENCE[0]] * views, CAMERAS[:1] * views, encoder=net)


def test_the_order_of_views_does_not_matter(net):
    first = encoding.encode_views(EVIDENCE, CAMERAS, encoder=net)
    order = [2, 0, 1]
    second = encoding.encode_views([EVIDENCE[k] for k in order], [CAMERAS[k] for k in order], encoder=net)
    assert first.artery == second.artery
    np.testing.assert_allclose(second.w_plus, first.w_plus, atol=2e-4)
    np.testing.assert_allclose(second.tuple_code, first.tuple_code, atol=1e-5)
    np.testing.assert_allclose(second.place_mm, first.place_mm[order], atol=2e-3)
    np.testing.assert_allclose(second.label_probability, first.label_probability, atol=1e-5)


def test_a_shift_of_the_table_changes_the_place_and_nothing_else(net):
    # Four pixels to the right: the same window, cut elsewhere.
    moved = VesselEvidence(*(np.roll(getattr(EVIDENCE[0], name), 4, 1) for name in VesselEvidence.__dataclass_fields__))
    first = encoding.encode_views([EVIDENCE[0]], [CAMERAS[0]], encoder=net)
    second = encoding.encode_views([moved], [CAMERAS[0]], encoder=net)
    np.testing.assert_allclose(second.w_plus, first.w_plus, atol=1e-3)
    step = CAMERAS[0].spacing_col_mm / CAMERAS[0].magnification
    np.testing.assert_allclose(second.place_mm - first.place_mm, [[4 * step, 0]], atol=0.05)


def test_what_views_name_changes_the_code_through_their_own_camera(net):
    code = encoding.encode_views([EVIDENCE[0]], [CAMERAS[0]], encoder=net).w_plus
    turned = encoding.encode_views([EVIDENCE[0]], [CAMERAS[1]], encoder=net).w_plus
    assert np.abs(code - turned).max() > 1e-3


def test_gradients_reach_every_weight(generator):
    torch.manual_seed(0)
    fresh = TreeFromViews(SMALL)
    set_codes(fresh, generator)
    for artery in ARTERIES:
        torch.nn.init.eye_(getattr(fresh.update, f"{artery}_root"))
        getattr(fresh.update, f"{artery}_gain").normal_(0, 0.1)
    cameras = torch.from_numpy(camera_numbers(CAMERAS[:2]))[None].expand(2, -1, -1)
    seen = fresh.see(torch.rand(2, 2, 2, 64, 64), cameras)
    codes = fresh.read(seen, torch.tensor([0, 1]))
    names, share = fresh.names(seen.maps.movedim(2, -1))
    loss = names.square().mean() + share.square().mean()
    for name in ("w_plus", "label", "tuple_code", "place_mm", "log_scale", "log_spread"):
        loss = loss + getattr(codes, name).square().mean() + getattr(codes, name).mean()
    loss.backward()
    missing = [name for name, weight in fresh.named_parameters() if weight.grad is None or not weight.grad.abs().max()]
    assert missing == []


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (4.0, 50.0, -37.0)])
def test_projection_and_its_derivative(offset):
    random = torch.Generator().manual_seed(0)
    points = 25 * torch.randn(1, 9, 3, generator=random, dtype=torch.float64)
    view = camera(25.0, -15.0, offset_lps_mm=offset)
    center, depth = view.project(np.zeros(3))
    middle = plane_mm(view, center)
    numbers = torch.from_numpy(camera_numbers([view], [middle]).astype(np.float64))[None]
    place = torch.from_numpy(middle)[None, None]
    log_scale = torch.log(torch.tensor(view.sod_mm / depth)).reshape(1, 1)
    found, slope = project(points, numbers, place, log_scale)
    pixels, _ = view.project(points[0].numpy())
    # Far from the central beam the window is no exact plane, but near enough.
    np.testing.assert_allclose(found[0, 0].numpy(), plane_mm(view, pixels), atol=0.3 if any(offset) else 1e-3)
    eps = 1e-4
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = eps
        above, below = (project(points + sign * step, numbers, place, log_scale)[0] for sign in (1, -1))
        np.testing.assert_allclose(slope[..., axis].numpy(), ((above - below) / (2 * eps)).numpy(), atol=1e-6)


def test_named_places_are_measured_where_they_are_and_pull_the_tree_there(generator):
    stage, artery = generator.structure, "rca"
    update = NamedUpdate(6, 256, 4)
    random = torch.Generator().manual_seed(0)
    codes = 0.8 * torch.randn(300, 6, 256, generator=random)
    codes = generator.w_average[0] + codes[:, :1] + 0.2 * codes
    with torch.no_grad():
        places = update.places(stage.courses(stage.vectors(codes[:, :5], artery), artery))
    update.set_moments(artery, codes.flatten(1), places.flatten(1))
    cameras = torch.from_numpy(camera_numbers([camera(40.0, 10.0), camera(-35.0)]))[None]
    zero, none = torch.zeros(1, 2, 2), torch.zeros(1, 2)
    start = codes.mean(0, keepdim=True)
    with torch.no_grad():
        truth, guess = places[:1], update.places(stage.courses(stage.vectors(start[:, :5], artery), artery))
        seen, _ = project(truth, cameras, zero, none)
        step, shift = update(guess, seen, torch.full(seen.shape[:3], 1.0), cameras, zero, none, artery)
        better = start + step.unflatten(1, (6, 256))
        after = update.places(stage.courses(stage.vectors(better[:, :5], artery), artery))
        nothing, _ = update(guess, seen, torch.zeros(seen.shape[:3]), cameras, zero, none, artery)
    error = (guess - truth).norm(dim=2).mean(), (after - truth).norm(dim=2).mean()
    assert error[1] < 0.5 * error[0]
    assert float(shift.norm(dim=2).max()) < 4.0
    assert float(nothing.abs().max()) < 1e-3  # what is not seen says nothing


def test_measured_places_are_the_hat_weighted_means_of_named_pixels():
    update = NamedUpdate(6, 256, 2)
    share = torch.linspace(0, 1, 41)[None]
    at = torch.stack([10 * share, 5 - 3 * share], -1)
    names = torch.zeros(1, 41, 3)
    names[..., 1] = 1.0
    mean, precision = update.measure(names, share, torch.ones(1, 41), at)
    hats = update.hats(41)
    np.testing.assert_allclose(mean[0, 2:4].detach(), hats @ at[0], atol=0.05)
    assert (precision[0, 2:4] > 0.05).all() and float(precision[0, [0, 1, 4, 5]].max().detach()) < 1e-6


def test_cells_hold_the_centroid_of_their_vessels():
    window = torch.zeros(1, 2, 16, 16)
    window[0, 0, 5, 9] = 1.0
    chance, at = cells_of(window, 4, 32.0)
    place = int(chance[0].argmax())
    assert place == 4 * 1 + 2 and int((chance > 0).sum()) == 1
    assert at[0, place].tolist() == pytest.approx([(9.5 - 8) * 2, (5.5 - 8) * 2])


def test_pixels_and_millimetres_of_a_view():
    view = camera(10.0, spacing_row_mm=0.2, principal_row=50.0)
    pixels = np.array([[3.0, 99.0], [80.5, 0.0]])
    np.testing.assert_allclose(plane_pixels(view, plane_mm(view, pixels)), pixels)
    # A point of the isocentre plane is where its (u, v) say.
    frame = view.frame
    shown, _ = view.project(7.0 * frame.column - 4.0 * frame.row)
    np.testing.assert_allclose(plane_mm(view, shown), [7.0, -4.0], atol=1e-9)


def test_a_window_shows_the_vessel_where_its_millimetres_say():
    evidence = line_evidence(np.array([(60, 60), (60, 90)]))
    window = cut_window(evidence, CAMERAS[0], window_px=64, window_mm=32.0)
    row, col = np.nonzero(window.picture[0] > 0.5)
    found = np.stack([(col + 0.5) * 0.5 - 16, (row + 0.5) * 0.5 - 16], 1).mean(0) + window.center_mm
    np.testing.assert_allclose(found, plane_mm(CAMERAS[0], np.array([60.0, 75.0])), atol=0.15)
    blank = cut_window(line_evidence(np.array([(0, 0), (0, 0)])), CAMERAS[0], window_px=64, window_mm=32.0)
    assert np.isfinite(blank.picture).all()


def test_rays_through_the_centre_meet_there_and_offsets_close_the_gap():
    truth = np.array([5.0, -12.0, 3.0])
    place = np.stack([plane_mm(view, view.project(truth)[0]) for view in CAMERAS])
    center, offset = encoding._center(CAMERAS, place)
    assert np.linalg.norm(center - truth) < 0.5 and np.abs(offset).max() < 0.5
    shift = np.array([0.0, 30.0, 25.0])
    off = [CAMERAS[0], CAMERAS[1].with_offset(shift)]
    place = np.stack([plane_mm(view, view.project(truth)[0]) for view in off])
    center, offset = encoding._center(CAMERAS[:2], place)
    np.testing.assert_allclose(offset[0] @ CAMERAS[0].frame.beam, 0, atol=3)
    mended = CAMERAS[1].with_offset(offset[1])
    np.testing.assert_allclose(plane_mm(mended, mended.project(center)[0]), place[1], atol=0.5)


def test_codes_of_one_view_are_consistent_with_themselves(net):
    one, two = encoding.encode_each(EVIDENCE[:2], CAMERAS[:2], encoder=net)
    alone = encoding.encode_views(EVIDENCE[:1], CAMERAS[:1], encoder=net)
    np.testing.assert_allclose(one.w_plus, alone.w_plus, atol=1e-5)
    same = encoding.tuple_consistency(one, one, encoder=net)
    other = encoding.tuple_consistency(one, two, encoder=net)
    assert 0 <= other <= same <= 1
    # Views of different arteries are not of one artery of one patient, whatever their codes.
    right = replace(one, label_probability=np.array([1.0, 0.0, 0.0]))
    left = replace(one, label_probability=np.array([0.0, 1.0, 0.0]))
    assert encoding.tuple_consistency(right, left, encoder=net) == 0
    assert encoding.tuple_consistency(right, right, encoder=net) > 0.9


def test_branches_named_at_pixels(net):
    found = encoding.encode_views(EVIDENCE[:1], CAMERAS[:1], encoder=net, artery="rca")
    names, share = found.names_at(0, CAMERAS[0], np.array([[60.0, 70.0], [30.0, 20.0]]))
    assert names.shape == (2, 17) and share.shape == (2,)
    np.testing.assert_allclose(names.sum(1), 1, atol=1e-3)


def test_what_does_not_fit_is_refused(net):
    with pytest.raises(InputError, match="2 cameras for 1 views"):
        encoding.encode_views(EVIDENCE[:1], CAMERAS[:2], encoder=net)
    with pytest.raises(InputError, match="view 1: the evidence has 128 x 128 px, its camera 64 x 64"):
        encoding.encode_views(EVIDENCE[:1], [CAMERAS[0].resized(64, 64)], encoder=net)
    with pytest.raises(InputError, match="artery is 'left'"):
        encoding.encode_views(EVIDENCE[:1], CAMERAS[:1], encoder=net, artery="left")
    with pytest.raises(InputError, match="evidence has no cameras"):
        encoding.encode_views(EVIDENCE[:1], encoder=net)
    for changes, text in (
        ({"window_px": 100}, "window_px is 100"),
        ({"token": 30}, "token is 30"),
        ({"start": "imagenet"}, "start is 'imagenet'"),
        ({"structure": 5, "styles": 4}, "structure is 5"),
    ):
        with pytest.raises(InputError, match=text):
            TreeEncoderConfig(**changes)


def test_weights_come_back_from_a_file_and_strange_files_are_refused(net, tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_weights(file, net, {"model": "tree_encoder", "config": config_facts(SMALL)})
    again = load_tree_encoder(str(file))
    one, two = (encoding.encode_views(EVIDENCE[:2], CAMERAS[:2], encoder=e) for e in (net, again))
    np.testing.assert_array_equal(one.w_plus, two.w_plus)
    save_weights(file, net, {"model": "segmentor"})
    from licag3d.models.generator import Generator, GeneratorConfig

    other = Generator(GeneratorConfig(plane_resolution=32, widths=(16, 16), w_dim=64))
    with pytest.raises(InputError, match="of 64 numbers, the encoder writes"):
        load_tree_encoder("random").attach(other)
    with pytest.raises(InputError, match="no weights of a tree encoder"):
        load_tree_encoder(str(file))
    with pytest.raises(InputError, match="of another version"):
        tree_encoder_config({"model": "tree_encoder", "config": {**config_facts(SMALL), "version": 99}}, "x")
    with pytest.raises(InputError, match="cannot be read"):
        load_tree_encoder(str(tmp_path / "missing.safetensors"))


def test_the_angiogram_encoder_can_be_one_more_level():
    torch.manual_seed(0)
    net = TreeFromViews(replace(SMALL, start="vasomim"))
    windows, numbers = torch.rand(1, 2, 2, 64, 64), torch.rand(1, 2, CAMERA_NUMBERS)
    frozen = encoding.frozen_tokens(net, windows)
    assert frozen.shape == (1, 2, 192, 8, 8)
    one, two = (net.see(windows, numbers, x).tokens for x in (frozen, 0 * frozen))
    assert not torch.allclose(one, two)
    assert not any("angiogram" in key for key in net.state_dict())
    with pytest.raises(InputError, match="needs the tokens of the angiogram encoder"):
        net.see(windows, numbers)


def test_a_lifted_residual_begins_at_zero_and_sees_where_views_agree():
    torch.manual_seed(0)
    net = TreeFromViews(replace(SMALL, lifted=2, planes=4))
    cameras = torch.from_numpy(camera_numbers(CAMERAS[:2]))[None]
    windows = torch.zeros(1, 2, 2, 64, 64)
    windows[:, :, 0, 30:34, 30:34] = 1.0  # something in the middle of both views
    seen = net.see(windows, cameras)
    codes = replace(net.read(seen, torch.tensor([0]), correct=False), place_mm=torch.zeros(1, 2, 2),
                    log_scale=torch.zeros(1, 2))  # fmt: skip
    assert float(net.residual(seen, codes, 120.0).detach().abs().max()) == 0
    torch.nn.init.normal_(net.lift.last.weight)
    with torch.no_grad():
        planes = net.residual(seen, codes, 120.0)
        empty = net.residual(net.see(0 * windows, cameras), codes, 120.0)
    changed = (planes - empty).abs().sum(2)[0]
    assert planes.shape == (1, 3, 4, 96, 96)
    for plane in changed:
        row, col = divmod(int(plane.argmax()), 96)
        assert abs(row - 47.5) < 14 and abs(col - 47.5) < 14
    large = with_residual(torch.zeros(1, 3, 4, 192, 192), planes)
    assert large.shape == (1, 3, 4, 192, 192) and float(large.abs().max()) > 0
