# SPDX-License-Identifier: Apache-2.0
"""Pairs of simulated views: stored and read back, the same for the same seed, with the faults they should have."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.data.drawn_pairs import Faults, spoil
from licag3d.data.view_pairs import draw_pair, grow_pairs, load_pair, main, make_pair, pack_pair, pair_files
from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.phantom.splits import TRAINING, VALIDATION
from licag3d.structures import Branch, VesselTree


@pytest.fixture(scope="module")
def drawn():
    return draw_pair(TRAINING[2])


def test_a_pair_comes_back_from_its_file(tmp_path, drawn):
    file = tmp_path / "1.npz"
    file.write_bytes(pack_pair(drawn))
    assert file.stat().st_size < 200_000
    again = load_pair(file)
    assert (again.seed, again.artery, again.names) == (drawn.seed, drawn.artery, drawn.names)
    assert again.true_cameras == drawn.true_cameras and again.user_cameras == drawn.user_cameras
    np.testing.assert_allclose(again.curves_mm[1], drawn.curves_mm[1], atol=1e-4)
    for way, chains in drawn.chains.items():
        for k in (0, 1):
            np.testing.assert_allclose(again.chains[way][k].pixels, chains[k].pixels, atol=1e-3)
            np.testing.assert_array_equal(again.chains[way][k].start, chains[k].start)
            assert again.chains[way][k].crossing.dtype == bool
            np.testing.assert_allclose(again.seen[way][k].probability, drawn.seen[way][k].probability, atol=0.003)


def test_centrelines_of_a_drawn_pair_lie_on_vessels(drawn):
    """Most do; what does not is a false vessel, and every patient with faults misses something."""
    (way,) = drawn.chains
    for k in (0, 1):
        chains = drawn.chains[way][k]
        true = drawn.true_cameras[k].project(drawn.curves_mm[k])[0]
        gap = np.linalg.norm(chains.pixels[:, None] - true[None, ::4], axis=-1).min(1) * chains.mm_per_pixel
        assert (gap < 2.0).mean() > 0.6
        assert len(chains.step_mm) > 100


def test_the_same_seed_gives_the_same_pair(drawn):
    again = draw_pair(TRAINING[2])
    assert pack_pair(again) == pack_pair(drawn)


def test_faults_lose_vessels_and_add_false_ones():
    camera = Camera(0, 0, sid_mm=1000, sod_mm=750, spacing_row_mm=0.4, spacing_col_mm=0.4, rows=160, cols=160)
    line = np.stack([np.zeros(300), np.zeros(300), np.linspace(-20, 20, 300)], 1)
    tree = VesselTree((Branch(0, None, line, np.full(300, 1.2)),))
    mask = np.zeros((160, 160), bool)
    pixels = np.rint(camera.project(line)[0]).astype(int)
    for step in range(-3, 4):
        mask[pixels[:, 1], pixels[:, 0] + step] = True
    p = np.where(mask, 0.4, 0.0).astype(np.float32)
    clean = Faults(faintest=0.06, holes=0, false=0, catheter=0, branch_lost=0, outline=0.02)
    kept, chance, shown = spoil(np.random.default_rng(0), mask, p, camera, tree, clean)
    assert (kept & mask).sum() > 0.9 * mask.sum()
    assert chance.dtype == np.float32 and 0 <= chance.min() and chance.max() <= 1
    assert (shown[~kept] == 0).all()
    worse = Faults(holes=6, false=5, catheter=1.0)
    lost, made = [], []
    for seed in range(4):
        kept, _, _ = spoil(np.random.default_rng(seed), mask, p, camera, tree, worse)
        lost.append((mask & ~kept).sum())
        made.append((kept & ~mask).sum())
    assert np.mean(lost) > 0.1 * mask.sum()
    assert np.mean(made) > 0.2 * mask.sum()


def test_a_rendered_pair_is_traced_two_ways():
    pair = make_pair(TRAINING[4])
    assert list(pair.chains) == ["found", "faint"]
    # What may be a vessel is more than what is taken for one.
    for k in (0, 1):
        assert pair.chains["faint"][k].length_mm > 0.95 * pair.chains["found"][k].length_mm > 50


def test_a_pool_grows_once_and_refuses_what_is_no_pair(tmp_path):
    assert grow_pairs(tmp_path, 1, first=6, drawn=True, split=VALIDATION) == 1
    (file,) = pair_files(tmp_path)
    before = file.stat().st_mtime_ns
    assert main(["--pool", str(tmp_path), "--cases", "1", "--first", "6", "--drawn", "--validation"]) == 0
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"PK\x03\x04 not a pair")
    with pytest.raises(InputError, match="make the pool anew"):
        load_pair(file)
    np.savez_compressed(file, facts=np.zeros(60_000_000, np.uint8))  # 60 kB that promise 60 MB
    with pytest.raises(InputError, match="unpacked"):
        load_pair(file)
    with pytest.raises(InputError, match="no view pairs"):
        pair_files(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="at least one case"):
        main(["--pool", str(tmp_path), "--cases", "0"])
