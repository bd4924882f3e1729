# SPDX-License-Identifier: Apache-2.0
"""Training of the correspondence network: labels that fit the truth, camera errors of the stated size, a tiny run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.view_pairs import draw_pair, grow_pairs, load_pair, pair_files
from licag3d.inversion.epipolar import epipolar_angles, epipolar_pair
from licag3d.models.correspondence import BRANCHES
from licag3d.models.correspondence_judge import load_correspondence
from licag3d.phantom.splits import TRAINING, VALIDATION
from licag3d.train.__main__ import main
from licag3d.train.correspondence import surprise
from licag3d.train.correspondence_data import PairStream, labelled, searched_cameras


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    grow_pairs(folder / "drawn", 2, drawn=True)
    grow_pairs(folder / "checked", 1, first=4, drawn=True, split=VALIDATION)
    return folder


def test_cameras_are_wrong_where_it_does_not_show():
    pair = draw_pair(TRAINING[4])
    rms, turned = [], []
    for seed in range(12):
        cameras = searched_cameras(np.random.default_rng(seed), pair)
        frame = epipolar_pair(*cameras)
        theta = [
            epipolar_angles(frame, c, true.project(p)[0])[0]
            for c, true, p in zip(cameras, pair.true_cameras, pair.curves_mm, strict=True)
        ]
        rms.append(np.sqrt(np.mean((theta[0] - theta[1]) ** 2)) * 750)
        turned.append(abs(cameras[1].primary_deg - pair.true_cameras[1].primary_deg))
    assert 0.05 < np.median(rms) < 0.6
    assert np.median(turned) > 0.1


def test_right_candidates_triangulate_to_true_points():
    pair = draw_pair(TRAINING[4])
    (way,) = pair.chains
    item = labelled(pair, way, pair.true_cameras, hand=True)
    from licag3d.inversion.chains import thinned
    from licag3d.inversion.matching import MatchSettings, both_candidates

    chains = tuple(thinned(c)[0] for c in pair.chains[way])
    candidates = both_candidates(pair.true_cameras, chains, MatchSettings())
    truth = pair.curves_mm[0]
    for k in (0, 1):
        right = item.sample.right[k].numpy()
        real = item.sample.real[k].numpy()
        assert right.any(1).mean() > 0.4 and not right[~real].any()
        gap = np.linalg.norm(candidates[k].points_mm[right][:, None] - truth[None, ::2], axis=-1).min(1)
        assert np.median(gap) < 1.0
        wrong = np.linalg.norm(candidates[k].points_mm[real & ~right][:, None] - truth[None, ::2], axis=-1).min(1)
        assert np.median(wrong) > 3.0
        known = item.sample.branch[k] >= 0
        assert known.float().mean() > 0.5 and item.sample.branch[k].max() < len(BRANCHES)
        # The hand-made costs are those of matching: they know something, but not all.
        best = item.hand[k].argmin(1)
        has = right.any(1)
        assert 0.3 < right[np.arange(len(right)), best][has].mean()


def test_the_loss_asks_for_none_where_nothing_is_right():
    log_chance = torch.log(torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3]]))
    right = torch.tensor([[True, True], [False, False]])
    np.testing.assert_allclose(surprise(log_chance, right).exp(), [1 / 0.7, 1 / 0.3], rtol=1e-5)


def test_batches_depend_on_their_number_alone(pools):
    stream, again = (PairStream([(pools / "drawn", 1.0)], 3) for _ in range(2))
    again.batch(0, 1)
    one, two = stream.batch(5, 2), again.batch(5, 2)
    np.testing.assert_array_equal(one["pictures"], two["pictures"])
    for a, b in zip(one["samples"], two["samples"], strict=True):
        torch.testing.assert_close(a.cues, b.cues)
        torch.testing.assert_close(a.right, b.right)


def test_a_tiny_run_ends_with_weights_that_load(pools, tmp_path, capsys):
    flags = ["correspondence", "--drawn", str(pools / "drawn"), "--validation", str(pools / "checked"), "--batch", "1"]
    flags += ["--save-every", "2", "--validate-every", "4", "--warmup", "1", "--device", "cpu", "--threads", "1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(main, [*flags, "--steps", "4", "--out", str(whole), "--export", "tiny"]) == 0
    assert status_of(main, [*flags, "--steps", "4", "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert status_of(main, [*flags, "--steps", "4", "--out", str(parts), "--resume"]) == 0
    curves = [[json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()] for run in (whole, parts)]
    last = [[row["validation"] for row in rows if "validation" in row][-1] for rows in curves]
    assert last[0]["surprise"] == pytest.approx(last[1]["surprise"], abs=2e-3)
    assert 0 <= last[0]["top1"] <= 1 and 0 < last[0]["hand"] <= 1
    load_correspondence(str(whole / "correspondence.safetensors"))
    card = json.loads((whole / "tiny.json").read_text())
    assert card["model"] == "correspondence" and card["bytes"] < 4_000_000
    assert (whole / "samples.png").stat().st_size > 10_000
    capsys.readouterr()


def test_bad_flags_are_told(pools, tmp_path, capsys):
    def fails(*flags: str) -> str:
        assert status_of(main, ["correspondence", "--out", str(tmp_path / "run"), *flags]) == BAD_INPUT
        return capsys.readouterr().err

    assert "give the data" in fails()
    assert "--drawn-share" in fails("--drawn", str(pools / "drawn"), "--drawn-share", "2")
    assert "not for training" in fails("--drawn", str(pools / "checked"))
    assert "not for validation" in fails("--drawn", str(pools / "drawn"), "--validation", str(pools / "drawn"))
    assert "--init" in fails("--drawn", str(pools / "drawn"), "--init", "elsewhere")
    (file, _) = pair_files(pools / "drawn")
    assert load_pair(file).seed in TRAINING
