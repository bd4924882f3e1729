# SPDX-License-Identifier: Apache-2.0
"""Pairs of contrast-free frame and angiogram: what is the same in both, what kappa means, what is exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from licag3d.command import BAD_INPUT, status_of
from licag3d.data import contrast_pairs
from licag3d.data.contrast_pairs import PairPool, grow_pairs
from licag3d.data.contrast_samples import FLOOR, PairSettings, PairStream, darkening
from licag3d.data.phantom_frames import PhantomPool, benchmark_frames, grow_pool
from licag3d.errors import InputError
from licag3d.phantom.splits import TRAINING, VALIDATION


def gap(first, second, mask):
    return float(np.abs(first.astype(float) - second.astype(float))[mask].mean())


def test_pairs_come_back_and_are_what_they_say(pair_pools):
    pool = PairPool(pair_pools / "pool")
    assert len(pool) == 3 and all(entry["seed"] in TRAINING for entry in pool.entries)
    still, moving = pool.pair(0), pool.pair(2)
    assert not still.moving and still.kappas == (0.1,) and moving.moving and moving.kappas == (0.0, 0.3)
    # Same display, and the vessels are what differs.
    far = ~(still.angiogram.mask | still.angiogram.faint | still.angiogram.devices)
    assert gap(still.images[0], still.angiogram.image, still.angiogram.mask) > 3 * gap(
        still.images[0], still.angiogram.image, far
    )
    # A moving pair shows two moments; the truth of the contrast-free one is its own.
    assert (moving.before.mask != moving.angiogram.mask).mean() > 0.01
    inner = moving.before.mask & ~moving.angiogram.mask & ~moving.before.devices
    assert moving.images[1][inner].mean() < moving.images[0][inner].mean()  # more contrast is darker
    # The angiograms are those of a plain pool.
    assert PhantomPool(pair_pools / "pool").frame(1).image.shape == still.angiogram.image.shape


def test_pools_that_are_no_pair_pools(pair_pools, tmp_path, capsys):
    lines = (pair_pools / "pool" / "index.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    for broken, message in (
        ({k: v for k, v in entry.items() if k != "kappas"}, "no contrast-free twin"),
        (entry | {"images": "../x.npy"}, "outside the pool"),
        (entry | {"kappas": []}, "0 values of kappa"),
    ):
        (tmp_path / "index.jsonl").write_text(json.dumps(broken) + "\n")
        with pytest.raises(InputError, match=message):
            PairPool(tmp_path)
    (tmp_path / "index.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(InputError, match="cannot be read"):
        PairPool(tmp_path).images(0)
    np.save(tmp_path / entry["images"], np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(InputError, match="no frame of this pool"):
        PairPool(tmp_path).images(0)
    for flags in (["--kappas", "1.5"], ["--moving", "nan"], ["--views", "0"], ["--cases", "0"]):
        assert status_of(contrast_pairs.main, ["--pool", str(tmp_path / "x"), *flags]) == BAD_INPUT
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_samples_are_exact_and_repeatable(pair_pools):
    pool = PairPool(pair_pools / "pool")
    stream = PairStream(pool, 3, PairSettings(size=64, shown=0.0, without=0.0, kappa=(0.1, 0.1)))
    batch = stream.batch(2, 6)
    again = PairStream(PairPool(pair_pools / "pool"), 3, stream.settings).sample(13)
    assert torch.equal(batch["x"][1], again["x"]) and torch.equal(batch["attenuation"][1], again["attenuation"])
    assert torch.allclose(batch["kappa"], torch.full((6, 1, 1, 1), 0.1)) and batch["known"].min() == 1
    assert batch["attenuation"].min() >= 0 and batch["attenuation"].max() > 0.1
    assert not batch["attenuation"][torch.nn.functional.max_pool2d(batch["vessel"], 3, 1, 1) == 0].any()
    # y = x exp(-a): drawn into the noisy frame it gives the angiogram without noise, up to that noise.
    made = batch["x"] * torch.exp(-batch["attenuation"])
    inside = (batch["vessel"] > 0) & (batch["valid"] > 0)
    before, after = ((picture - batch["clean"]).abs()[inside].mean() for picture in (batch["x"], made))
    assert after < 0.5 * before


def test_darkening_is_the_ratio_of_the_frames():
    bare = torch.tensor([0.5, 0.5, 0.2])
    clean = torch.tensor([0.25, 0.5, 0.4])
    a = darkening(bare, clean)
    assert torch.allclose(a[0], torch.log(torch.tensor((0.5 + FLOOR) / (0.25 + FLOOR))))
    assert a[1] == 0 and a[2] == 0  # the same, and brighter: nothing to darken


def test_kappa_is_what_is_left_in_a_sample(pair_pools):
    """With all of the contrast left there is nothing to draw; with none everything is drawn."""
    pool = PairPool(pair_pools / "pool")

    def total(kappa):
        settings = PairSettings(size=64, shown=0.0, without=0.0, kappa=(kappa, kappa))
        return sum(float(PairStream(pool, 1, settings).sample(k)["attenuation"].sum()) for k in range(4))

    assert total(1.0) < 1e-3 * total(0.0) and 0.5 * total(0.0) < total(0.3) < 0.95 * total(0.0)


def test_swapped_samples_show_the_vessels_of_another_patient(tmp_path):
    grow_pool(tmp_path, 3, views=1, rows=96)  # right, left, right
    pool = PhantomPool(tmp_path)

    def sample(swapped):
        return PairStream(pool, 4, PairSettings(64, shown=0.0, kappa=(0.2, 0.2), without=0.0, swapped=swapped)).sample

    own, swapped = ([sample(share)(k) for k in range(12)] for share in (0.0, 1.0))
    moved = [not torch.equal(a["vessel"], b["vessel"]) for a, b in zip(own, swapped, strict=True)]
    assert any(moved) and not all(moved)  # the only left artery keeps its own vessels
    for a, b in zip(own, swapped, strict=True):
        assert torch.equal(a["device"], b["device"]) and torch.equal(a["valid"], b["valid"])
        near = torch.nn.functional.max_pool2d(b["vessel"], 3, 1, 1) > 0
        assert not b["attenuation"][~near].any() and (b["attenuation"][near].sum() > 0 or not near.any())


def test_a_benchmark_takes_one_frame_of_each_patient_it_may_see(pair_pools):
    checked = PhantomPool(pair_pools / "checked")
    assert benchmark_frames(checked, "--pool") == [0]
    checked.entries = [checked.entries[0] | {"seed": VALIDATION.start + k // 2} for k in range(6)]
    assert benchmark_frames(checked, "--pool", 2) == [0, 2, 4] and benchmark_frames(checked, "--pool", 2, 2) == [0, 2]
    for least, most in ((4, None), (2, 1)):
        with pytest.raises(InputError, match=f"--pool .*{least} are needed"):
            benchmark_frames(checked, "--pool", least, most)
    with pytest.raises(InputError, match="holds training patients"):
        benchmark_frames(PhantomPool(pair_pools / "pool"), "--pairs")


def test_unpaired_angiograms_are_of_other_frames_and_plain_pools_serve(pair_pools, tmp_path):
    settings = PairSettings(size=64, shown=1.0)
    pool = PairPool(pair_pools / "pool")
    paired = PairStream(pool, 0, settings).sample(5)
    assert float(paired["known"]) == 0.0 and not paired["attenuation"].any()  # the display's ratio is not known
    other = PairStream(pool, 0, PairSettings(size=64, shown=1.0, paired=False)).sample(5)
    assert torch.equal(paired["x"], other["x"]) and not torch.equal(paired["y"], other["y"])
    grow_pool(tmp_path / "plain", 1, views=1, rows=96)
    plain = PhantomPool(tmp_path / "plain")
    assert PairStream(plain, 0, settings).sample(0)["x"].shape == (1, 64, 64)
    with pytest.raises(InputError, match="at least two frames"):
        PairStream(plain, 0, PairSettings(paired=False))
    with pytest.raises(InputError, match="no contrast-free twin"):
        PairPool(tmp_path / "plain")


def test_grown_pairs_are_kept(pair_pools):
    file = pair_pools / "checked" / "index.jsonl"
    before = file.read_text()
    assert grow_pairs(pair_pools / "checked", 1, views=1, rows=96, split=VALIDATION, kappas=(0.0, 0.2)) == 1
    assert file.read_text() == before and PairPool(pair_pools / "checked").entries[0]["seed"] in VALIDATION
