# SPDX-License-Identifier: Apache-2.0
"""The second look: a guided segmentor, and what it changes of the evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.distractors import DistractorBank
from licag3d.data.phantom_frames import PhantomPool, grow_pool
from licag3d.data.randomise import Randomisation, SampleStream
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.inversion.chains import chains_from_graph
from licag3d.inversion.second_look import either, look_again, tree_points
from licag3d.models.centerline2d import trace_centerlines
from licag3d.models.learned_evidence import guided_evidence, learned_evidence
from licag3d.models.segmentor import Segmentor, SegmentorConfig, config_facts, guided_from, load_segmentor, predict
from licag3d.structures import Branch, VesselEvidence, VesselTree, View
from licag3d.train.__main__ import main
from licag3d.train.checkpoints import save_weights

CAMERA = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.33, spacing_col_mm=0.33, rows=224, cols=224)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    grow_pool(folder / "pool", 2, views=1, rows=160)
    return folder / "pool"


def _tree(*lines):
    branches = [Branch(k, None, np.asarray(line, float), np.full(len(line), 1.0)) for k, line in enumerate(lines)]
    return VesselTree(tuple(branches))


def _curved(shift_mm=0.0):
    """A vessel across the view, 50 mm long."""
    at = np.linspace(-25, 25, 60)
    return np.stack((at, np.full_like(at, 0.0), 8 * np.sin(at / 12) + shift_mm), 1)


def _view(lines, depth):
    """A frame with the projections of vessels of 1 mm radius, ``depth`` dark, on an uneven, noisy background."""
    rng = np.random.default_rng(2)
    rows, cols = np.mgrid[:224, :224]
    image = 0.6 + 0.1 * np.sin(cols / 40) + 0.02 * rng.standard_normal((224, 224))
    for line in lines:
        pixels = CAMERA.project(tree_points(_tree(line)))[0]
        gap = np.full(image.shape, np.inf)
        for col, row in pixels[::2]:
            gap = np.minimum(gap, np.hypot(cols - col, rows - row))
        image -= depth * np.sqrt(np.clip(1 - (gap / 4.0) ** 2, 0, 1))
    return View(image.clip(0.02, 1).astype(np.float32), CAMERA, np.ones((224, 224), bool))


def test_a_guided_network_begins_as_the_unguided_one():
    plain = load_segmentor("segmentor")
    guided = guided_from(plain).eval()
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(guided(x), plain(x[:, :2]), rtol=0, atol=2e-4)
        other = guided(torch.cat((x[:, :2], x[:, 2:] + 1), 1))
    torch.testing.assert_close(other, guided(x), rtol=0, atol=2e-4)


def test_an_untrained_guided_network_changes_nothing(tmp_path):
    guided = guided_from(load_segmentor("segmentor"))
    file = tmp_path / "guided.safetensors"
    save_weights(file, guided, {"model": "segmentor", "config": config_facts(guided.config)})
    line = _curved()
    view = _view([line], 0.25)
    first = learned_evidence(view)
    assert first.mask.sum() > 500
    given = replace(view, mask=np.pad(np.ones((4, 180), bool), ((110, 110), (22, 22))))
    chains = chains_from_graph(trace_centerlines(first, view), CAMERA)
    seen, lines = look_again([view, given], [first, first], [chains, chains], _tree(line), [CAMERA] * 2,
                             weights=str(file))  # fmt: skip
    assert (seen[0].mask == first.mask).mean() > 0.9999
    np.testing.assert_allclose(seen[0].probability, first.probability, atol=2e-2)
    # The user's own mask is not looked at again.
    assert (
        seen[1] is first and lines[1] is chains and len(lines[0].pixels) == pytest.approx(len(chains.pixels), rel=0.02)
    )


def test_nothing_of_either_look_is_lost():
    rng = np.random.default_rng(5)

    def look():
        mask = rng.random((9, 11)) < 0.4
        values = [rng.random((9, 11)).astype(np.float32) for _ in range(4)]
        return VesselEvidence(*values[:3], np.where(mask, 1 + values[3], 0.0), mask)

    one, two = look(), look()
    both = either(one, two)
    assert np.array_equal(both.mask, one.mask | two.mask) and (both.radius_px[both.mask] >= 1).all()
    assert np.array_equal(both.probability, np.maximum(one.probability, two.probability))
    surer = one.probability > two.probability
    assert np.array_equal(both.line_integral, np.where(surer, one.line_integral, two.line_integral))
    same = either(one, one)
    assert all(np.array_equal(getattr(same, name), getattr(one, name)) for name in ("mask", "radius_px", "confidence"))


def test_points_follow_the_tree():
    line = _curved()
    points = tree_points(_tree(line, line[:2]))
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps[: len(steps) - 3].max() < 0.31 and tree_points(VesselTree(())).shape == (0, 3)


def test_an_unguided_network_is_refused():
    with pytest.raises(InputError, match="not a guided segmentor; train one with --guided"):
        guided_evidence(_view([], 0.0), np.zeros((0, 2)), weights="segmentor")


def test_the_sketch_is_at_the_scale_of_the_network():
    """A frame of coarse pixels is enlarged for the network, and the expected points with it."""
    seen = {}

    class Spy(Segmentor):
        def forward(self, x, frames=None):
            seen.setdefault("x", x)
            return super().forward(x, frames)

    spy = Spy(SegmentorConfig((8, 8, 16), guided=True))
    image = np.full((64, 80), 0.5, np.float32) + 0.01 * np.random.default_rng(0).random((64, 80), np.float32)
    predict(spy, image, np.ones((64, 80), bool), 0.64, expected_px=np.array([[30.0, 20.0]]))
    row, col = np.unravel_index(int(seen["x"][0, 2].argmax()), seen["x"].shape[2:])
    assert (row, col) in ((40, 60), (41, 61), (40, 61), (41, 60))  # pixel centres: 2 (30 + 0.5) - 0.5


def test_samples_have_a_sketch_of_their_own_tree(pool):
    frames = PhantomPool(pool)
    kw = dict(size=96, empty=0.0, foreign=0.0, mistaken=0.0, shutter=0.0, bench=0.0)
    plain = SampleStream(frames, DistractorBank(2, 128), 1, Randomisation(**kw)).batch(2, 4)
    stream = SampleStream(frames, DistractorBank(2, 128), 1, Randomisation(guided=True, **kw))
    drawn = [stream.sample(n) for n in range(24)]
    assert torch.equal(torch.stack([d["x"][:2] for d in drawn[8:12]]), plain["x"])
    assert torch.equal(drawn[9]["x"], stream.sample(9)["x"])
    near = [(d["x"][2] * d["vessel"][0]).sum() / d["vessel"].sum() for d in drawn if d["vessel"].sum() > 50]
    far = [(d["x"][2] * (1 - d["vessel"][0])).mean() for d in drawn]
    assert np.mean(near) > 0.35 and np.mean(near) > 3 * np.mean(far)


def test_training_smoke(pool, tmp_path, capsys):
    flags = ["segmentor", "--pool", str(pool), "--guided", "--size", "64", "--batch", "2", "--steps", "2", "--threads"]
    flags += ["1", "--warmup", "1", "--device", "cpu", "--init", "embedded"]
    grow_pool(tmp_path / "checked", 1, views=1, rows=160, split=range(50_000, 60_000))
    flags += ["--validation", str(tmp_path / "checked")]
    assert status_of(main, [*flags, "--out", str(tmp_path / "run")]) == 0
    assert load_segmentor(str(tmp_path / "run" / "segmentor.safetensors")).config.guided
    own = ["segmentor", "--images", str(tmp_path), "--masks", str(tmp_path), "--guided", "--out", str(tmp_path / "x")]
    assert status_of(main, own) == BAD_INPUT and "phantom frames" in capsys.readouterr().err
