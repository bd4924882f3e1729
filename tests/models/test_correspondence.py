# SPDX-License-Identifier: Apache-2.0
"""The correspondence network: shapes, symmetry of the views, gradients, silence where there is nothing, its judge."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "inversion"))
from match_cases import chains_of, no_chains, two_cameras, vessels

from licag3d.errors import InputError
from licag3d.inversion.chains import thinned
from licag3d.inversion.matching import MatchSettings, both_candidates, match_views
from licag3d.models.correspondence import (
    BRANCHES,
    Correspondence,
    CorrespondenceConfig,
    build,
    config_facts,
    log_probability,
    pair_sample,
    pictures_of,
)
from licag3d.models.correspondence_cues import TREE_MM, middle_mm
from licag3d.models.correspondence_judge import Judge, PairJudge, Verdict, correspondence_judge, load_correspondence
from licag3d.structures import VesselEvidence
from licag3d.train.checkpoints import save_weights

SMALL = CorrespondenceConfig(channels=(8, 12, 16, 16), width=24, heads=2, rounds=1)
SETTINGS = MatchSettings()


def problem(offset=(0.0, 3.0, -2.0)):
    cameras = two_cameras(offset)
    chains = tuple(chains_of(vessels(), c) for c in cameras)
    return cameras, chains, both_candidates(cameras, chains, SETTINGS)


def model(seed: int = 0) -> Correspondence:
    torch.manual_seed(seed)
    return Correspondence(SMALL).eval()


def pictures(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((2, 2, 64, 64), np.float32)


def test_every_candidate_gets_a_probability():
    cameras, chains, candidates = problem()
    sample = pair_sample(cameras, chains, candidates, SETTINGS.path)
    said = model()(torch.from_numpy(pictures()), [sample])[0]
    for k in (0, 1):
        real = np.isfinite(candidates[k].cost)
        chance = log_probability(said[k]).exp().detach().numpy()
        assert chance.shape == (len(real), real.shape[1] + 1)
        np.testing.assert_allclose(chance.sum(1), 1.0, atol=1e-5)
        assert (chance[:, :-1][~real] == 0).all() and (chance[:, :-1][real] > 0).all()
        assert said[k].branch.shape == (len(real), len(BRANCHES)) and said[k].depth.shape == (len(real), 2)
    assert sum(p.numel() for p in Correspondence().parameters()) <= 1_500_000


@pytest.mark.parametrize(
    "wrong",
    [{"channels": [10**9] * 4}, {"channels": []}, {"channels": ["a", "b"]}, {"width": 0}, {"width": "96"},
     {"heads": 7}, {"rounds": 10**6}, {"more": 1}],
)  # fmt: skip
def test_sizes_from_a_file_are_bounded_before_anything_is_made(wrong):
    with pytest.raises(InputError):
        build(config_facts(CorrespondenceConfig()) | wrong)


def test_the_order_of_the_views_does_not_matter():
    cameras, chains, candidates = problem()
    shown = pictures()
    net = model()
    with torch.no_grad():
        said = net(torch.from_numpy(shown), [pair_sample(cameras, chains, candidates, SETTINGS.path)])[0]
        turned = pair_sample(
            cameras[::-1], chains[::-1], both_candidates(cameras[::-1], chains[::-1], SETTINGS), SETTINGS.path
        )
        other = net(torch.from_numpy(shown[::-1].copy()), [turned])[0]
    for k in (0, 1):
        one, two = (log_probability(s)[:, -1].numpy() for s in (said[k], other[1 - k]))
        np.testing.assert_allclose(one, two, atol=2e-3)
        # Candidates of equal cost may change places.
        best = [log_probability(s)[:, :-1].amax(1).numpy() for s in (said[k], other[1 - k])]
        np.testing.assert_allclose(*best, atol=2e-3)


def test_all_parts_learn():
    cameras, chains, candidates = problem()
    net = model().train()
    said = net(torch.from_numpy(pictures()), [pair_sample(cameras, chains, candidates, SETTINGS.path)] * 1)[0]
    loss = sum(s.branch.square().mean() + s.depth.square().mean() - log_probability(s)[:, -1].mean() for s in said)
    loss.backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert still == []
    assert all(p.grad.abs().max() > 0 for name, p in net.named_parameters() if name.endswith("weight"))


def test_points_between_those_that_the_network_sees_take_the_nearest():
    cameras, chains, candidates = problem()
    points = tuple(thinned(chain) for chain in chains)
    sample = pair_sample(cameras, chains, candidates, SETTINGS.path, points)
    for k in (0, 1):
        rows = points[k][1]
        assert len(sample.points[k]) == len(rows) and len(sample.row[k]) == len(chains[k].step_mm)
        assert (np.abs(rows[sample.row[k].numpy()] - np.arange(len(chains[k].step_mm))) <= 1).all()
        assert sample.near[k].max() < len(points[1 - k][1])


def test_depth_is_measured_from_where_the_middles_meet():
    cameras, chains, _ = problem()
    middle = middle_mm(cameras, chains)
    truth = np.concatenate(vessels())
    assert np.linalg.norm(middle - truth.mean(0)) < 2.0
    assert 0.2 * TREE_MM < np.ptp(truth, axis=0).max() < 2 * TREE_MM


def test_nothing_in_one_view_matches_nothing():
    cameras = two_cameras()
    chains = chains_of(vessels(), cameras[0]), no_chains(cameras[1])
    judge = PairJudge(model(), pictures())
    candidates = both_candidates(cameras, chains, SETTINGS)
    first, second = judge.ask(cameras, chains, candidates, SETTINGS.path)
    np.testing.assert_allclose(np.exp(first.log_none), 1.0, atol=1e-6)
    assert len(second.log_none) == 0
    match = match_views(cameras, chains, SETTINGS, judge=judge)
    assert np.isnan(match.points_mm[0]).all()


def test_a_judge_that_knows_is_followed():
    cameras, chains, candidates = problem()

    class Knows:
        def __init__(self, wrong: bool) -> None:
            self.wrong = wrong

        def ask(self, cameras, chains, candidates, prices):
            truth = np.concatenate(vessels())
            out = []
            for item in candidates:
                gap = np.linalg.norm(item.points_mm[..., None, :] - truth, axis=-1).min(-1)
                good = (gap < 0.5) & np.isfinite(item.cost)
                if self.wrong:
                    good = np.zeros_like(good)
                log_place = np.where(good, -0.1, -9.0)
                out.append(Verdict(log_place, np.where(good.any(1), -4.0, -0.01)))
            return tuple(out)

    told = match_views(cameras, chains, SETTINGS, judge=Knows(False))
    for points in told.points_mm:
        assert np.isfinite(points[:, 0]).mean() > 0.9
    refused = match_views(cameras, chains, SETTINGS, judge=Knows(True))
    assert np.isnan(refused.points_mm[0]).mean() > 0.9


def test_the_judge_of_an_inversion(tmp_path):
    cameras, chains, _ = problem()
    facts = {"model": "correspondence", "config": config_facts(SMALL)}
    file = tmp_path / "net.safetensors"
    save_weights(file, model(), facts)
    rng = np.random.default_rng(1)
    evidence = []
    for camera in cameras:
        p = rng.random((camera.rows, camera.cols), np.float32)
        evidence.append(VesselEvidence(p, p * 2, p, p, p > 0.5))
    judge = correspondence_judge(evidence, weights=str(file))
    assert isinstance(judge, Judge)
    match = [match_views(cameras, chains, SETTINGS, judge=judge.of(0, 1)) for _ in range(2)]
    assert match[0].cost == match[1].cost
    assert np.isfinite(match[0].cost)
    assert correspondence_judge(evidence, weights="no-such-weights") is None
    # A display of another gain says the same.
    louder = [replace(item, line_integral=3 * item.line_integral) for item in evidence]
    again = correspondence_judge(louder, weights=str(file))
    np.testing.assert_allclose(again.pictures, judge.pictures, atol=0.4)
    assert np.median(np.abs(again.pictures - judge.pictures)) < 1e-3


def test_bad_weights_are_told(tmp_path):
    file = tmp_path / "other.safetensors"
    save_weights(file, model(), {"model": "segmentor", "config": config_facts(SMALL)})
    with pytest.raises(InputError, match="not of the correspondence network"):
        load_correspondence(str(file))
    with pytest.raises(InputError, match="not a configuration"):
        build({"depth": 3})
    file = tmp_path / "size.safetensors"
    save_weights(file, model(), {"model": "correspondence", "config": config_facts(CorrespondenceConfig())})
    with pytest.raises(InputError, match="another"):
        load_correspondence(str(file))


def test_pictures_do_not_depend_on_the_gain():
    from licag3d.data.view_pairs import see

    p = np.zeros((40, 60), np.float32)
    p[10:14] = 0.3
    one, two = (pictures_of(see((p > 0).astype(np.float32), gain * p)) for gain in (1.0, 2.5))
    assert one.shape == (2, 256, 256)
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert one[:, 180:].max() == 0  # the image is not square


def test_the_chance_of_a_place_is_that_of_its_neighbours_too():
    cameras, chains, _ = problem()
    judge = PairJudge(model(), pictures())
    match = match_views(cameras, chains, SETTINGS, judge=judge)
    verdicts = judge.ask(cameras, chains, both_candidates(cameras, chains, SETTINGS), SETTINGS.path)
    for k in (0, 1):
        on = match.partner[k] >= 0
        assert np.isnan(match.chance[k][~on]).all()
        most = np.exp(verdicts[k].log_place).sum(1)
        assert (match.chance[k][on] > 0).all() and (match.chance[k][on] <= most[on] + 1e-9).all()
    alone = match_views(cameras, chains, replace(SETTINGS, judge_near_mm=1e-6), judge=judge)
    both = (match.partner[0] >= 0) & (alone.partner[0] >= 0)
    assert (alone.chance[0][both] <= match.chance[0][both] + 1e-9).all()
    assert match_views(cameras, chains, SETTINGS).chance is None


def test_the_embedded_network_knows_right_from_wrong():
    """On a drawn validation patient: right candidates first far more often than by the hand-made costs."""
    from licag3d import weights
    from licag3d.data.view_pairs import draw_pair
    from licag3d.phantom.splits import VALIDATION
    from licag3d.train.correspondence import _scores, surprise
    from licag3d.train.correspondence_data import collate, labelled

    if not weights.available("correspondence"):
        pytest.skip("the weights are not part of this installation")
    pair = draw_pair(VALIDATION[7001])
    (way,) = pair.chains
    item = labelled(pair, way, pair.true_cameras, hand=True)
    batch = collate([item])
    with torch.no_grad():
        said = load_correspondence()(batch["pictures"], batch["samples"])[0]
    rows = []
    for k in (0, 1):
        chance = log_probability(said[k])
        right = item.sample.right[k]
        told = {"chance": chance.exp().numpy(), "surprise": surprise(chance, right).numpy()}
        rows.append(told | {"right": right.numpy(), "hand": item.hand[k], "weight": item.weight_mm[k]})
    scores = _scores(rows)
    assert scores["top1"] > 0.8 and scores["top1"] > scores["hand"] + 0.05
    assert scores["calibration"] < 0.2
