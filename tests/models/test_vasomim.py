# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder, its masks and losses, and the encoder that other modules load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from licag3d.errors import InputError
from licag3d.models import vessel_masking as vm
from licag3d.models.sato import rough_vessel_mask, sato
from licag3d.models.vasomim import (
    AngiogramEncoder,
    MaskedAutoencoder,
    encoder_from,
    encoder_metadata,
    load_encoder,
    random_encoder,
    write_encoder_file,
)
from licag3d.models.vit import SIZES, Encoder, attention, config_of, patchify, position_code, unpatchify

MINI = config_of("vit-mini")


def looped_mask(f: np.ndarray, hidden: int, beta: float, rng: np.random.Generator) -> np.ndarray:
    """The published procedure, patch by patch: multinomial without replacement, then uniform over the rest."""
    chosen = np.zeros(len(f), bool)
    weight = f.astype(float).copy()
    for _ in range(min(int(beta * hidden), int((f > 0).sum()))):
        pick = rng.choice(len(f), p=weight / weight.sum())
        chosen[pick], weight[pick] = True, 0.0
    rest = rng.permutation(np.flatnonzero(~chosen))[: hidden - chosen.sum()]
    chosen[rest] = True
    return chosen


def chance_of_gap(table: np.ndarray) -> float:
    """p-value of Pearson's chi-square that both rows are draws from one distribution."""
    from scipy.special import chdtrc

    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return float(chdtrc(table.shape[1] - 1, ((table - expected) ** 2 / expected).sum()))


def test_patches_come_back_whole():
    images = torch.rand(2, 1, 24, 40)
    parts = patchify(images, 8)
    assert parts.shape == (2, 15, 64)
    assert torch.equal(parts[0, 1], images[0, 0, :8, 8:16].reshape(-1))
    assert torch.equal(unpatchify(parts, 8, 3), images)


def test_mask_hides_exactly_what_was_asked_in_every_image():
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(50, 64, generator=generator) * (torch.rand(50, 64, generator=generator) < 0.1)
    f[0] = 0
    for beta in (0.0, 0.3, 1.0):
        mask = vm.draw_mask(f, hidden=29, beta=beta, generator=generator)
        assert mask.dtype == torch.bool and bool((mask.sum(1) == 29).all())


def test_fewer_vessel_patches_than_asked_for_are_all_hidden():
    f = torch.zeros(20, 64)
    f[:, :3] = torch.tensor([0.5, 0.3, 0.2])
    mask = vm.draw_mask(f, hidden=20, beta=0.5, generator=torch.Generator().manual_seed(1))
    assert bool(mask[:, :3].all()) and bool((mask.sum(1) == 20).all())


def test_image_without_vessels_is_masked_uniformly():
    mask = vm.draw_mask(torch.zeros(4000, 16), hidden=4, beta=0.5, generator=torch.Generator().manual_seed(2))
    share = mask.float().mean(0)
    assert float((share - 0.25).abs().max()) < 0.04  # six standard deviations


def test_vectorised_mask_has_the_statistics_of_the_loop():
    """Chi-square of how often each set of hidden patches is drawn, one step against the loop (both sampled)."""
    f = np.array([0.4, 0.25, 0.2, 0.1, 0.05, 0.0])
    count, hidden, beta = 2500, 3, 0.7  # two guided patches of three
    fast = vm.draw_mask(torch.tensor(f, dtype=torch.float32).expand(count, -1), hidden=hidden, beta=beta,
                        generator=torch.Generator().manual_seed(3)).numpy()  # fmt: skip
    rng = np.random.default_rng(4)
    slow = np.stack([looped_mask(f, hidden, beta, rng) for _ in range(count)])
    code = 2 ** np.arange(6)
    sets = sorted(set((fast @ code).tolist()) | set((slow @ code).tolist()))
    table = np.array([[(m @ code == s).sum() for s in sets] for m in (fast, slow)])
    table = table[:, table.sum(0) >= 10]
    assert table.shape[1] >= 10
    assert chance_of_gap(table) > 1e-3
    # The test has power: masks of another beta are told apart at once.
    other = vm.draw_mask(torch.tensor(f, dtype=torch.float32).expand(count, -1), hidden=hidden, beta=0.35,
                         generator=torch.Generator().manual_seed(5)).numpy()  # fmt: skip
    table = np.array([[(m @ code == s).sum() for s in sets] for m in (other, slow)])
    assert chance_of_gap(table[:, table.sum(0) >= 10]) < 1e-6


def test_share_of_vessel_patches_rises_with_beta():
    vessel = torch.zeros(64, 1, 64, 64)
    vessel[:, :, 20:28, :] = 1
    f = vm.vascular_distribution(vessel, 8)
    shares = []
    for step in (0, 50, 99):
        beta = vm.guided_share(step, 100)
        mask = vm.draw_mask(f, hidden=32, beta=beta, generator=torch.Generator().manual_seed(6))
        shares.append(float(vm.vessel_share(vessel, mask, 8)))
    assert vm.guided_share(0, 100) == 0 and vm.guided_share(99, 100) == 0.5
    assert shares[0] < shares[1] - 0.05 < shares[2] - 0.1


def test_guidance_mixes_filter_and_segmentor():
    b, logits = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    assert torch.allclose(vm.guidance_map(b, logits, 0.25), torch.full((1, 1, 8, 8), 0.25 + 0.75 * 0.5))
    assert torch.equal(vm.guidance_map(b), b)
    f = vm.vascular_distribution(torch.rand(3, 1, 16, 16), 8)
    assert torch.allclose(f.sum(1), torch.ones(3))


def test_pasting_keeps_visible_patches_and_a_perfect_prediction_gives_the_image_back():
    images = torch.rand(2, 1, 32, 32)
    mask = vm.draw_mask(torch.ones(2, 16), hidden=8, beta=0.0)
    perfect = vm.normalise_patches(patchify(images, 8))[0]
    assert torch.allclose(vm.paste_visible(perfect, images, mask, 8), images, atol=1e-4)
    wrong = vm.paste_visible(torch.zeros_like(perfect), images, mask, 8)
    same = patchify(wrong - images, 8).abs().amax(-1) < 1e-6
    assert bool(same[~mask].all()) and not bool(same[mask].any())


def test_a_floor_makes_flat_patches_weigh_less_and_pasting_still_inverts_it():
    images = 0.5 + 0.2 * torch.rand(1, 1, 16, 16)
    images[..., :8] = 0.5 + 0.002 * torch.rand(16, 8)
    target = vm.normalise_patches(patchify(images, 8), 0.03)[0]
    spread = target.std(-1)[0]
    assert float(spread[::2].max()) < 0.05 and float(spread[1::2].min()) > 0.8
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert torch.allclose(vm.paste_visible(target, images, mask, 8, floor=0.03), images, atol=1e-5)
    assert float(vm.reconstruction_loss(target, images, mask, 8, floor=0.03)) < 1e-8


def test_consistency_does_not_see_what_is_drawn_over_visible_patches():
    """The released code of the paper hands the segmentor the decoder's visible patches; here they cannot matter."""
    images, mask = torch.rand(1, 1, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    mask[:, :8] = True
    segmentor = vm.TinySegmentor(8).eval().requires_grad_(False)
    wanted = segmentor(images)
    prediction = torch.randn(1, 16, 64, requires_grad=True)
    losses = vm.masked_losses(prediction, images, mask, 8, segmentor=segmentor, wanted=wanted)
    losses.total.backward()
    assert float(prediction.grad[0, 8:].abs().max()) == 0
    assert float(prediction.grad[0, :8].abs().min()) > 0
    assert all(p.grad is None for p in segmentor.parameters())


def test_consistency_is_smallest_for_the_true_image():
    segmentor = vm.TinySegmentor(8).eval().requires_grad_(False)
    images = torch.rand(2, 1, 32, 32)
    wanted = segmentor(images)
    at_truth = float(vm.consistency_loss(segmentor, images, wanted))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(wanted, torch.sigmoid(wanted))
    assert at_truth == pytest.approx(float(entropy), rel=1e-5)
    assert float(vm.consistency_loss(segmentor, 1 - images, wanted)) > at_truth


def test_encoder_reads_visible_patches_only():
    model = MaskedAutoencoder(MINI).eval()
    images, mask = torch.rand(1, 1, 64, 64), vm.draw_mask(torch.ones(1, 64), hidden=40, beta=0.0)
    other = vm.unpatchify(torch.where(mask[..., None], torch.rand(1, 64, 64), patchify(images, 8)), 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(images, mask), model(other, mask), atol=1e-5)
        assert not torch.allclose(model(images, mask), model(1 - images, mask), atol=1e-3)


def test_written_out_attention_equals_the_fused_one():
    q, k, v = (torch.randn(2, 3, 20, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    with torch.no_grad():
        fused = attention(q, k, v)
    assert torch.allclose(attention(q, k, v), fused, atol=1e-10)


def test_positions_are_those_of_training_at_the_size_of_training():
    code = position_code(4, 4, 32, 4)
    assert code.shape == (16, 32) and len(torch.unique(code, dim=0)) == 16
    finer = position_code(8, 8, 32, 4).reshape(8, 8, 32)
    # The middle of four fine patches is where the coarse patch is: the coarse code lies between theirs.
    row_part = finer[:2, 0, 16:].mean(0)
    assert torch.allclose(row_part, finer[0, 0, 16:], atol=1e-6)


@pytest.mark.parametrize("size", ["vit-mini", "vit-3m", "vit-s", "vit-b"])
def test_sizes_have_the_parameters_they_are_named_after(size):
    with torch.device("meta"):
        count = sum(p.numel() for p in Encoder(SIZES[size]).parameters())
    low, high = {"vit-mini": (5e4, 2e5), "vit-3m": (2.5e6, 3.5e6), "vit-s": (2e7, 2.4e7), "vit-b": (8.2e7, 9e7)}[size]
    assert low < count < high


def test_features_and_maps_of_any_size_with_gradients():
    encoder = AngiogramEncoder(random_encoder(MINI), "x")
    images = torch.rand(2, 1, 100, 76, requires_grad=True)
    assert encoder.features(images).shape == (2, MINI.width)
    maps = encoder.maps(images, 2)
    assert [m.shape for m in maps] == [(2, MINI.width, 13, 10)] * 2
    encoder.features(images).sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("bad", [torch.rand(1, 3, 64, 64), torch.rand(64, 64), torch.rand(1, 1, 4, 64),
                                 torch.zeros(1, 1, 64, 64, dtype=torch.uint8)])  # fmt: skip
def test_bad_images_are_refused_in_one_line(bad):
    with pytest.raises(InputError, match="encoder input"):
        AngiogramEncoder(random_encoder(MINI), "x").features(bad)


def test_encoder_file_round_trip_keeps_the_hash(tmp_path):
    encoder = random_encoder(MINI, seed=3)
    file = tmp_path / "encoder.safetensors"
    write_encoder_file(file, encoder)
    loaded = load_encoder(file)
    assert loaded.hash == AngiogramEncoder(encoder, "x").hash and loaded.name == "encoder"
    assert loaded.hash != load_encoder("random:vit-mini").hash
    images = torch.rand(1, 1, 64, 64)
    assert torch.allclose(loaded.features(images), AngiogramEncoder(encoder, "x").features(images), atol=2e-2)


def test_checkpoint_of_another_size_or_version_or_no_checkpoint(tmp_path):
    state = random_encoder(MINI).state_dict()
    with pytest.raises(InputError, match="another size"):
        encoder_from(state, encoder_metadata(config_of("vit-mini", width=96)), "x")
    with pytest.raises(InputError, match="version 99"):
        encoder_from(state, {**encoder_metadata(MINI), "version": 99}, "x")
    with pytest.raises(InputError, match="no encoder configuration"):
        encoder_from(state, None, "x")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\0\0\0\0\0\0\0{}{}{}{}junk")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(broken)
    with pytest.raises(InputError, match="does not exist"):
        load_encoder(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="not known"):
        load_encoder("random:vit-giant")


@pytest.mark.parametrize("changes", [{"image_px": 60}, {"width": 190}, {"depth": 0}, {"patch_px": 2.5}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(InputError, match="encoder configuration"):
        config_of("vit-3m", **changes)


def test_sato_agrees_with_scikit_image():
    from skimage.filters import sato as reference

    rng = np.random.default_rng(0)
    from scipy import ndimage

    image = ndimage.gaussian_filter(rng.standard_normal((64, 64)), 2).astype(np.float32)
    image[30:34] -= 0.3
    for sigma in (1.6, 2.4):
        ours = sato(torch.from_numpy(image)[None, None], (sigma,))[0, 0].numpy()
        theirs = reference(image, sigmas=[sigma], black_ridges=True, mode="nearest")
        inner = np.s_[12:-12, 12:-12]
        assert np.corrcoef(ours[inner].ravel(), theirs[inner].ravel())[0, 1] > 0.99
        assert np.median(ours[31:33, 12:-12]) == pytest.approx(np.median(theirs[31:33, 12:-12]), rel=0.15)


def test_rough_mask_finds_a_vessel_and_nothing_on_a_blank_frame():
    rows, cols = np.mgrid[:256, :256]
    image = 0.6 + 0.2 * cols / 256
    path = np.abs(rows - 128 - 40 * np.sin(cols / 40)) < 3
    image = np.where(path, 0.6 * image, image) + 0.02 * np.random.default_rng(0).standard_normal((256, 256))
    image = image.astype(np.float32)
    mask = rough_vessel_mask(image)
    inner = np.s_[20:-20, 20:-20]
    overlap = 2 * (mask & path)[inner].sum() / (mask[inner].sum() + path[inner].sum())
    assert overlap > 0.6
    assert not rough_vessel_mask(np.full((128, 128), 0.5, np.float32)).any()
    assert not rough_vessel_mask(np.zeros((128, 128), np.uint8)).any()


def test_real_frame_gets_a_plausible_mask(shared_data):
    import imageio.v3 as iio

    frame = iio.imread(shared_data / "arcade" / "images" / "134.png")
    grey = frame if frame.ndim == 2 else frame[..., 0]
    share = rough_vessel_mask(np.ascontiguousarray(grey[::2, ::2])).mean()
    assert 0.01 < share < 0.12


def test_configuration_is_json():
    assert json.loads(json.dumps(encoder_metadata(MINI)))["version"] == 1
