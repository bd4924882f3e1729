# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.models.generator import Generator, GeneratorConfig, config_facts, labels_of, load_generator
from licag3d.models.synthesis import ModulatedConv

SMALL = GeneratorConfig(
    z_dim=16,
    w_dim=24,
    mapping_hidden=32,
    plane_resolution=64,
    plane_channels=32,
    hidden=64,
    structure=2,
    structure_hidden=16,
    widths=(16, 16, 8),
)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(SMALL)


def cameras(size=24):
    view = dict(sid_mm=1000, sod_mm=750, spacing_row_mm=200 / size, spacing_col_mm=200 / size, rows=size, cols=size)
    return Cameras.stack([Camera(0, 0, **view), Camera(60, 20, **view)])


def test_modulation_equals_modulated_weights():
    """Equations 1 to 3 of StyleGAN2, sample by sample."""
    torch.manual_seed(1)
    layer = ModulatedConv(5, 7, 6)
    x, w = torch.randn(3, 5, 9, 9), torch.randn(3, 6)
    found = layer(x, w)
    for k in range(3):
        weight = layer.weight * layer.scale * layer.style(w[k : k + 1])[0][None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        expected = torch.nn.functional.conv2d(x[k : k + 1], weight, padding=1)
        torch.testing.assert_close(found[k : k + 1], expected, atol=1e-5, rtol=1e-5)


def test_shapes_and_gradients(generator):
    label = labels_of(["rca", "lca"], [False, True])
    w = generator.map(torch.randn(2, 16), label)
    w_plus = generator.spread(w)
    assert w_plus.shape == (2, generator.layers, 24)
    planes = generator.planes(w_plus)
    assert planes.shape == (2, 3, 32, 64, 64)
    image = generator.project(planes, cameras(), samples=32)
    assert image.shape == (2, 2, 24, 24)
    points = torch.tensor([[0.0, 0.0, 0.0], [69.0, -69.0, 69.0], [71.0, 0.0, 0.0]])
    mu = generator.attenuation(planes, points)
    assert mu.shape == (2, 3) and (mu[:, :2] > 0).all() and (mu[:, 2] == 0).all()
    (image.mean() + mu.mean()).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_truncation_goes_to_the_average_of_the_artery(generator):
    with torch.no_grad():
        generator.w_average[0] = 1.0
        generator.w_average[1] = -1.0
    w = generator.map(torch.randn(2, 16), torch.tensor([0, 1]), truncation=0.0)
    torch.testing.assert_close(w, torch.stack([torch.ones(24), -torch.ones(24)]))


def test_bad_input_is_refused(generator, tmp_path):
    with pytest.raises(InputError, match="plane_resolution is 32"):
        GeneratorConfig(plane_resolution=32, widths=(8,) * 6)
    with pytest.raises(InputError, match="fields"):
        GeneratorConfig(fields="bones")
    with pytest.raises(InputError, match="rca or lca"):
        labels_of(["aorta"])
    with pytest.raises(InputError, match="not part of this installation"):
        load_generator("no-such-generator")
    from licag3d.train.checkpoints import save_weights

    save_weights(tmp_path / "a.safetensors", generator, {"model": "generator", "config": config_facts(SMALL)})
    again, _ = load_generator(str(tmp_path / "a.safetensors"))
    w_plus = generator.spread(torch.randn(1, 24))
    torch.testing.assert_close(again.planes(w_plus), generator.planes(w_plus))
    other = config_facts(SMALL) | {"w_dim": 25}
    save_weights(tmp_path / "b.safetensors", generator, {"model": "generator", "config": other})
    with pytest.raises(InputError, match="another size"):
        load_generator(str(tmp_path / "b.safetensors"))
    save_weights(tmp_path / "c.safetensors", generator, {"model": "segmentor"})
    with pytest.raises(InputError, match="no weights of a generator"):
        load_generator(str(tmp_path / "c.safetensors"))
