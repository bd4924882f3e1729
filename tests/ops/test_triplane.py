# SPDX-License-Identifier: Apache-2.0
"""Tri-plane operators: values against closed forms, native against twin, and what goes wrong."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from triplane_cases import BOX, ISAS, SIZES, problem, rays, relative_error, use_isa, views

from licag3d.geometry import Rays
from licag3d.ops import TriplaneDecoder, native, query_triplane, render_triplane
from licag3d.ops import reference as twin

isa = pytest.fixture(params=ISAS)(use_isa)
IMPLEMENTATIONS = {
    "native": (render_triplane, query_triplane, torch.float32),
    "twin": (twin.render_triplane, twin.query_triplane, torch.float64),
}


@pytest.fixture(params=list(IMPLEMENTATIONS))
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def test_constant_field_gives_mu_times_chord(implementation):
    render, _, dtype = implementation
    decoder = TriplaneDecoder.random(4, 6, mu_scale=0.03, bias=-0.5, dtype=dtype)
    x, y, z = BOX["box_center_mm"]
    bundle = rays(
        [
            [x - 500, y, z],  # along an axis: the edge
            [x - 200, y - 200, z],  # diagonal of a square
            [x + 300, y - 300, z + 300],  # diagonal of the cube, negative directions
            [x, y, z],  # starts inside: half an edge
            [x, y - 500, z],  # ends inside: half an edge
            [x - 10, y, z],  # lies inside as a whole: its length
            [x - 500, y + 10, z + 20],
        ],  # 45 degrees, entering through one face and leaving through another
        [[1000, 0, 0], [400, 400, 0], [-600, 600, -600], [0, 0, 300], [0, 500, 0], [20, 0, 0], [500, 500, 0]],
    )
    bundle.origin_mm[-1] = torch.tensor(
        [x - 80.0, y - 50.0, z + 20.0]
    )  # meets x = -50 at y = -20, leaves y = 50 at x = 20
    expected_mm = torch.tensor([100, 100 * math.sqrt(2), 100 * math.sqrt(3), 50, 50, 20, 70 * math.sqrt(2)])
    mu = 0.03 * math.log1p(math.exp(float(decoder.weight_2.double().sum()) * math.log(2) - 0.5))
    value = render(torch.zeros(3, 4, 8, 8, dtype=dtype), decoder, bundle, samples=7, **BOX)
    torch.testing.assert_close(value.double() / mu, expected_mm.double(), rtol=3e-6, atol=0)


def test_rays_that_miss_are_zero_and_bad_ones_nan(implementation):
    render, _, dtype = implementation
    decoder = TriplaneDecoder.random(4, 6, dtype=dtype)
    x, y, z = BOX["box_center_mm"]
    bundle = rays(
        [
            [x - 500, y + 50.01, z],
            [x - 500, y, z],
            [x + 500, y, z],
            [x, y, z],
            [math.nan, y, z],
            [x, y, z],
            [x - 500, y - 500, z],
        ],
        [[1000, 0, 0], [449, 0, 0], [1000, 0, 0], [0, 0, 0], [1, 0, 0], [math.inf, 0, 0], [1000, 700, 0]],
    )
    value = render(torch.zeros(3, 4, 8, 8, dtype=dtype), decoder, bundle, samples=5, **BOX)
    assert value.isnan().tolist() == [False, False, False, False, True, True, False]
    assert value[:4].tolist() == [0, 0, 0, 0] and value[6] == 0


def test_query_is_exactly_zero_outside_and_includes_the_faces(implementation):
    _, query, dtype = implementation
    planes, decoder = problem(8, 4, 6)
    center = torch.tensor(BOX["box_center_mm"], dtype=torch.float64)
    offsets = torch.tensor(
        [[50.0, 0, 0], [50.001, 0, 0], [0, -50, 50], [0, 0, -50.001], [math.nan, 0, 0], [math.inf, 0, 0], [0, 0, 0]],
        dtype=torch.float64,
    )
    mu = query(planes[0].to(dtype), decoder.to(dtype), center + offsets, **BOX)
    assert (mu != 0).tolist() == [True, False, True, False, False, False, True]
    assert bool((mu >= 0).all())


@pytest.mark.parametrize(("plane", "row_axis", "column_axis"), [(0, 1, 0), (1, 2, 0), (2, 2, 1)])
@pytest.mark.parametrize("along", ["row", "column"])
def test_order_of_planes_and_of_their_axes(implementation, plane, row_axis, column_axis, along):
    _, query, dtype = implementation
    decoder = TriplaneDecoder.random(2, 6, dtype=dtype, seed=4)
    ramp = torch.linspace(-3, 3, 16, dtype=dtype)
    planes = torch.zeros(3, 2, 16, 16, dtype=dtype)
    planes[plane] = ramp[:, None] if along == "row" else ramp
    depends = row_axis if along == "row" else column_axis
    center = torch.tensor(BOX["box_center_mm"], dtype=torch.float64)
    at_center = query(planes, decoder, center[None], **BOX)
    for axis in range(3):
        moved = center.clone()
        moved[axis] += 20.0
        change = float((query(planes, decoder, moved[None], **BOX) - at_center).abs())
        assert (change > 1e-3) == (axis == depends), (axis, change)


def test_texel_centres_and_border(implementation):
    _, query, dtype = implementation
    planes, decoder = problem(4, 3, 5)
    planes, decoder = planes[0].to(dtype), decoder.to(dtype)
    center = torch.tensor(BOX["box_center_mm"], dtype=torch.float64)

    def expected(x: int, y: int, z: int) -> torch.Tensor:
        features = (planes[0, :, y, x] + planes[1, :, z, x] + planes[2, :, z, y]) / 3
        hidden = torch.nn.functional.softplus(decoder.weight_1 @ features + decoder.bias_1)
        return 0.02 * torch.nn.functional.softplus(decoder.weight_2 @ hidden - 0.3)

    texel = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    at = center + (texel + 0.5) * 25 - 50
    torch.testing.assert_close(query(planes, decoder, at[None], **BOX), expected(1, 2, 0), rtol=1e-5, atol=0)
    corner = center + torch.tensor([49.0, 49.9, -48.0], dtype=torch.float64)  # between the last centre and the face
    torch.testing.assert_close(query(planes, decoder, corner[None], **BOX), expected(3, 3, 0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_native_agrees_with_twin(isa, size):
    resolution, channels, hidden, samples, pixels, batch = size
    planes, decoder = problem(resolution, channels, hidden, batch)
    cameras = views(pixels)
    found = render_triplane(planes, decoder, cameras, samples=samples, **BOX)
    expected = twin.render_triplane(planes.double(), decoder.to(torch.float64), cameras, samples=samples, **BOX)
    assert found.shape == expected.shape == (batch, 2, pixels, pixels + 1)
    assert found.dtype == torch.float32
    assert bool((expected == 0).any()) or pixels < 13
    assert bool((expected > 0).any())
    assert relative_error(found, expected) < 2e-6
    points = torch.rand(5, 11, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 130 - 65
    found = query_triplane(planes, decoder, points, **BOX)
    expected = twin.query_triplane(planes.double(), decoder.to(torch.float64), points, **BOX)
    assert found.shape == (batch, 5, 11) and bool((expected == 0).any())
    assert relative_error(found, expected) < 2e-6


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_activations_stay_finite(isa, scale):
    planes, decoder = problem(8, 8, 16)
    planes = planes[0] * scale
    found = render_triplane(planes, decoder, views(6), samples=9, **BOX)
    expected = twin.render_triplane(planes.double(), decoder.to(torch.float64), views(6), samples=9, **BOX)
    assert bool(found.isfinite().all()) and relative_error(found, expected) < 1e-5


def test_shapes_of_rays_and_no_rays():
    planes, decoder = problem(8, 4, 6)
    one = rays([3.0, -5.0, -500.0], [0.0, 0.0, 1000.0], torch.float32)
    assert render_triplane(planes[0], decoder, one, samples=4, **BOX).shape == ()
    assert render_triplane(planes, decoder, one, samples=4, **BOX).shape == (1,)
    for shape in ((0,), (2, 0), (0, 3)):
        empty = Rays(torch.zeros(*shape, 3), torch.zeros(*shape, 3))
        assert render_triplane(planes, decoder, empty, samples=4, **BOX).shape == (1, *shape)
        assert query_triplane(planes[0], decoder, torch.zeros(*shape, 3), **BOX).shape == shape
    assert query_triplane(planes[0], decoder, torch.zeros(3), **BOX).shape == ()


def test_order_of_rays_does_not_matter():
    planes, decoder = problem(16, 8, 16)
    origin, to_pixel = views(13).rays()
    image = render_triplane(planes[0], decoder, Rays(origin, to_pixel), samples=12, **BOX)
    flat = render_triplane(planes[0], decoder, Rays(origin.reshape(-1, 3), to_pixel.reshape(-1, 3)), samples=12, **BOX)
    assert torch.equal(image.reshape(-1), flat)


def test_batch_and_cameras_per_item():
    planes, decoder = problem(12, 8, 16, batch=3)
    sets = [views(7, angles=[(angle, 5.0)]) for angle in (-30.0, 0.0, 40.0)]
    found = render_triplane(planes, decoder, sets, samples=10, **BOX)
    assert found.shape == (3, 1, 7, 8)
    for item, cameras, image in zip(planes, sets, found, strict=True):
        assert torch.equal(image, render_triplane(item, decoder, cameras, samples=10, **BOX))
    shared = render_triplane(planes, decoder, sets[1], samples=10, **BOX)
    assert torch.equal(shared[1], found[1]) and not torch.equal(shared[0], found[0])


def test_half_planes_are_read_exactly(isa):
    planes, decoder = problem(9, 5, 9)
    half = (planes[0] * 3).half()
    half[0, 0, 0, :4] = torch.tensor([6.1e-5, 3e-6, -6e-8, 0.0]).half()  # subnormal numbers
    for function, argument in (
        (render_triplane, {"cameras": views(8), "samples": 6}),
        (query_triplane, {"points_mm": torch.rand(70, 3) * 120 - 60}),
    ):
        assert torch.equal(
            function(half, decoder, **argument, **BOX), function(half.float(), decoder, **argument, **BOX)
        )


def test_bake_matches_projection():
    """The integral of the baked grid along an axis is the projection of parallel rays."""
    planes, decoder = problem(8, 4, 8)
    n = 40
    ticks = (torch.arange(n) + 0.5) / n * 100 - 50
    z, y, x = torch.meshgrid(ticks, ticks, ticks, indexing="ij")
    points = torch.stack([x, y, z], -1) + torch.tensor(BOX["box_center_mm"])
    grid = query_triplane(planes[0], decoder, points, **BOX)
    origin = points[0] - torch.tensor([0.0, 0.0, 300.0])
    image = render_triplane(
        planes[0], decoder, Rays(origin, torch.tensor([0.0, 0.0, 600.0]).expand(origin.shape)), samples=n, **BOX
    )
    torch.testing.assert_close(image, grid.sum(0) * (100 / n), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"planes": torch.zeros(3, 4, 8, 9)}, ValueError, "expected \\(3, C, R, R\\)"),
        ({"planes": torch.zeros(0, 3, 4, 8, 8)}, ValueError, "expected \\(3, C, R, R\\)"),
    ({"planes": torch.zeros(3, 5, 8, 8)}, ValueError, "5 channels, the decoder takes 4"),
        ({"planes": torch.zeros(3, 4, 8, 8, dtype=torch.float64)}, TypeError, "torch.float64"),
        ({"planes": torch.zeros(3, 4, 8, 8, dtype=torch.bfloat16)}, TypeError, "bfloat16"),
        ({"planes": [1, 2]}, TypeError, "torch tensor"),
        ({"samples": 0}, ValueError, "samples is 0"),
        ({"samples": 1e9}, ValueError, "samples is"),
        ({"box_size_mm": -1.0}, ValueError, "box_size_mm is -1"),
        ({"box_size_mm": math.nan}, ValueError, "box_size_mm is nan"),
        ({"box_center_mm": (0, 0)}, ValueError, "three finite numbers"),
        ({"cameras": Rays(torch.zeros(4, 2), torch.zeros(4, 2))}, ValueError, "expected \\(..., 3\\)"),
        ({"cameras": Rays(torch.zeros(4, 3), torch.zeros(5, 3))}, ValueError, "the same for both"),
        ({"cameras": Rays(torch.zeros(4, 3).half(), torch.zeros(4, 3).half())}, TypeError, "float16"),
        ({"cameras": [Rays(torch.zeros(4, 3), torch.zeros(4, 3))] * 2}, ValueError, "2 sets of cameras"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "planes": torch.zeros(3, 4, 8, 8),
        "decoder": TriplaneDecoder.random(4, 6),
        "cameras": views(4),
        "samples": 3,
        **BOX,
        **change,
    }
    with pytest.raises(error, match=message):
        render_triplane(arguments.pop("planes"), arguments.pop("decoder"), arguments.pop("cameras"), **arguments)


def test_bad_decoder_and_points():
    decoder = TriplaneDecoder.random(4, 6)
    with pytest.raises(ValueError, match="bias_1 has shape \\(5,\\); expected \\(6,\\)"):
        replace(decoder, bias_1=torch.zeros(5))
    with pytest.raises(ValueError, match="mu_scale has 2 elements"):
        replace(decoder, mu_scale=torch.ones(2))
    with pytest.raises(TypeError, match="bias_1 is torch.float64"):
        query_triplane(
            torch.zeros(3, 4, 8, 8), replace(decoder, bias_1=torch.zeros(6).double()), torch.zeros(1, 3), **BOX
        )
    with pytest.raises(ValueError, match="expected \\(..., 3\\)"):
        query_triplane(torch.zeros(3, 4, 8, 8), decoder, torch.zeros(2, 4), **BOX)
    with pytest.raises(TypeError, match="int64"):
        query_triplane(torch.zeros(3, 4, 8, 8), decoder, torch.zeros(2, 3, dtype=torch.int64), **BOX)


_MEMORY = """
import resource, sys, torch
sys.path[:0] = {path!r}
from licag3d.geometry import Camera, Cameras
from licag3d.ops import TriplaneDecoder, native, render_triplane
{setup}
view = Cameras.stack([Camera(0, 0, 1000, 750, 2.0, 2.0, 48, 48)])
planes = torch.zeros(3, 32, 64, 64, requires_grad=True)
decoder = TriplaneDecoder.random(32, 64).requires_grad_()
def step(samples):
    render_triplane(planes, decoder, view, box_center_mm=(0, 0, 0), box_size_mm=100.0, samples=samples).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
few = step(8)
print(few, step(512))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as Linux reports it, in KiB")
def test_memory_does_not_grow_with_samples():
    if not native.available(torch.device("cpu")):
        pytest.skip("no native library")
    code = _MEMORY.format(path=[p for p in sys.path if p], setup=f"native.FOLDER = native.Path({str(native.FOLDER)!r})")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    few, many = (int(word) for word in out.split())
    # 48 x 48 rays x 504 more samples x (64 + 3 x 32) floats would be 743 MiB; one chunk of records is at most 64.
    assert many - few < 90, (few, many)
