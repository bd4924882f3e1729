# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.models.generator import Generator, GeneratorConfig, labels_of, load_generator
from licag3d.models.generator_config import config_facts
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


def test_the_background_field_is_added_and_asked_for(generator):
    """A field of its own: other codes make another one, rays beside the box see nothing; without it a refusal."""
    torch.manual_seed(3)
    model = Generator(replace(SMALL, fields="vessel+background", background_resolution=8, background_channels=4))
    with torch.no_grad():
        model.background_field.weight_2.mul_(20)
        wide = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=10.0, spacing_col_mm=10.0, rows=24, cols=24)
        seen = model.background(torch.randn(2, 24), Cameras.stack([wide]))
    assert seen.shape == (2, 1, 24, 24) and not torch.allclose(seen[0], seen[1], rtol=1e-3)
    assert seen[0, 0, 12, 12] > 0 and (seen[:, 0, 0] == 0).all() and (seen[:, 0, :, -1] == 0).all()
    with pytest.raises(InputError, match="background"):
        generator.background(torch.randn(1, 24), cameras())


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


def test_random_codes_come_from_kinds_of_trees():
    """The last kind for co-dominant patients alone, the others by their shares, each with a mean of its own."""
    torch.manual_seed(0)
    model = Generator(replace(SMALL, kinds=3))
    with torch.no_grad():
        model.kind_share.copy_(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.0, 0.5]]))
        model.kind_mean += torch.arange(3.0)[:, None] * 10
        model.kind_root.mul_(0.1)
        seen = []
        model.map_code, real = lambda code, label: seen.append(code) or real(code, label), model.map_code
        z, chance = torch.randn(4000, 16), torch.rand(4000)
        model.random_codes(z, labels_of(["rca"] * 4000, [False] * 4000), chance)
        kind = (seen[-1].mean(1) / 10).round()
        assert not (kind == 2).any()
        assert (kind == 0).float().mean().item() == pytest.approx(0.7 / 0.9, abs=0.03)
        torch.testing.assert_close(seen[-1] - 10 * kind[:, None], 0.1 * z, atol=1e-4, rtol=0)
        model.random_codes(z, torch.ones(4000, dtype=torch.long), chance)
        assert (seen[-1].mean(1).round() == 0).all()
        model.random_codes(z, labels_of(["lca"] * 4000, [True] * 4000), chance)
        assert ((seen[-1].mean(1) / 10).round() == 2).all()
        model.map_code = real
        label = labels_of(["rca", "rca"], [True, True])
        average = model.random_codes(z[:2], label, chance[:2], truncation=0.0)
        torch.testing.assert_close(average, real(model.kind_mean[[0, 0], [2, 2]], label))
        plain = Generator(SMALL)
        torch.testing.assert_close(plain.random_codes(z, kind.long(), chance), plain.map(z, kind.long()))
    with pytest.raises(InputError, match="kinds"):
        replace(SMALL, kinds=3, labels=("right", "left"))


def test_the_embedded_weights_draw_trees_that_could_be():
    """Same tree for the same seed, no touching branches, whole, in the box; what the seed refused did touch."""
    from licag3d.models import samples
    from licag3d.phantom.anatomy import overlapping_branches
    from licag3d.vessels.tree import component_count

    generator, _ = load_generator()
    refused = 0
    for artery in ("rca", "lca"):
        for seed in range(6):
            w_plus, tries = samples.drawn_code(generator, seed, artery)
            tree = samples.written_tree(generator, w_plus, artery)
            assert overlapping_branches(tree) is None and component_count(tree) == 1
            assert max(abs(b.points_lps_mm).max() for b in tree.branches) < 58
            again, _ = samples.drawn_code(generator, seed, artery)
            assert torch.equal(again, w_plus)
            if tries > 1:
                first, _ = samples.drawn_code(generator, seed, artery, most_tries=1)
                assert overlapping_branches(samples.written_tree(generator, first, artery)) is not None
                refused += 1
    assert refused


@pytest.mark.parametrize("artery", ["rca", "lca"])
def test_drawn_codes_have_the_branches_of_their_kind(artery):
    from licag3d.train.generator_prior import kinds_of

    torch.manual_seed(0)
    generator, _ = load_generator()
    table = generator.structure.tables[artery]
    label = labels_of([artery] * 300, [k % 2 == 1 for k in range(300)])
    w = generator.random_codes(torch.randn(300, 256), label, torch.rand(300))
    vector = generator.structure.vectors(generator.spread(w)[:, : generator.config.structure], artery)
    kind = kinds_of(artery, table, (vector > 0).float())
    assert (kind[1::2] == 2).float().mean() > 0.8 and (kind[::2] == 2).float().mean() < 0.1
    assert 0.04 < (kind[::2] == 1).float().mean() < 0.25


def test_a_tree_that_reaches_out_of_the_box_is_moved_back():
    from licag3d.models import samples

    generator, _ = load_generator()
    w_plus, _ = samples.drawn_code(generator, 0, "rca")
    here = samples.written_vector(generator, w_plus, "rca")
    generator.structure.rca_mean[1] += 40.0
    moved = samples.written_vector(generator, w_plus, "rca")
    torch.testing.assert_close(here[:, 2:], moved[:, 2:])
    points = torch.cat([c[0] for c, _, gate in generator.structure.courses(moved, "rca") if gate[0, 0] > 0.5])
    assert 56.5 < points[:, 0].max() < 57.5
