# SPDX-License-Identifier: Apache-2.0
"""CAS-IQA: computed scores fall with every degradation, the network's parts, training, human scores, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.phantom_frames import PhantomPool, grow_pool
from licag3d.errors import InputError
from licag3d.losses.iqa import SCORES, computed_scores, iqa_loss
from licag3d.models.iqa import (
    ROUTINGS,
    SIDE,
    CasIqa,
    IqaConfig,
    config_facts,
    config_from,
    judge,
    prepare,
    scores_of,
    to_side,
)
from licag3d.phantom.splits import VALIDATION
from licag3d.quality import difference
from licag3d.quality import main as quality
from licag3d.train.__main__ import main as train
from licag3d.train.checkpoints import load_weights, save_weights
from licag3d.train.iqa import agreement
from licag3d.train.iqa_data import SampleFolder, make_samples
from licag3d.train.iqa_frames import HELD_OUT, IMAGE_KINDS, KINDS, TRAINED, make_scene, reduced, synthetic
from licag3d.train.iqa_human import mean_opinions, read_human_scores

SMALL = {"channels": (8, 8), "width": 16, "heads": 2}


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iqa")
    grow_pool(folder / "training", 2, views=1, rows=256)
    grow_pool(folder / "validation", 2, views=1, rows=256, split=VALIDATION)
    return folder


@pytest.fixture(scope="module")
def scene(pools):
    pool = PhantomPool(pools / "training")
    rng = np.random.default_rng(0)
    return make_scene(reduced(pool.layers(0)), rng, 0.1, "siemens-like"), reduced(pool.layers(1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = CasIqa(IqaConfig(**SMALL))
    file = tmp_path_factory.mktemp("weights") / "iqa.safetensors"
    save_weights(file, model, {"model": "iqa", "config": config_facts(model.config)})
    return str(file)


@pytest.mark.parametrize("kind", KINDS)
def test_computed_scores_fall_with_severity(scene, kind):
    scores = [computed_scores(scene[0], synthetic(*scene, {kind: s}, 3)[1]).three() for s in (0.0, 0.3, 0.65, 1.0)]
    assert (np.diff(np.array(scores), axis=0) <= 0.5).all()
    assert scores[0] > (99, 99, 99) and scores[-1][2] < scores[0][2] - 3


def test_what_is_drawn_is_what_is_seen(scene):
    own, other = scene
    for kind in KINDS:
        frame, drawn = synthetic(own, other, {kind: 0.7}, 5)
        assert frame.shape == own.frame.shape and frame.min() >= 0 and frame.max() <= 1
        if kind not in IMAGE_KINDS:
            # Off the drawn vessels and the old ones nothing becomes brighter or darker but by the background.
            assert np.abs((frame - own.frame)[own.field]).max() > 0.01
    same, drawn = synthetic(own, other, {}, 0)
    assert np.array_equal(drawn.mask, own.anatomy.mask)
    assert np.allclose(same, np.clip(own.clean + own.frame - own.frame_clean, 0, 1), atol=1e-6)
    gone = synthetic(own, other, {"erased": 1.0}, 1)[1].mask
    assert gone.sum() < 0.2 * own.anatomy.mask.sum() and not (gone & ~own.anatomy.mask).any()
    more = synthetic(own, other, {"ghost": 0.5}, 1)[1].mask
    assert (own.anatomy.mask & ~more).sum() == 0 and more.sum() > own.anatomy.mask.sum()
    with pytest.raises(InputError, match="not known"):
        synthetic(own, other, {"rust": 0.5}, 0)
    with pytest.raises(InputError, match="severity"):
        synthetic(own, other, {"blur": 1.5}, 0)


def test_nothing_drawn_scores_nothing_for_vessels(scene):
    from dataclasses import replace

    own, other = scene
    drawn = synthetic(own, other, {}, 0)[1]
    empty = replace(drawn, mask=np.zeros_like(drawn.mask), clean=drawn.bare)
    scores = computed_scores(own, empty)
    assert scores.morphology < 3 and scores.branches == 0 and scores.appearance > 0.9
    blind = replace(own, bare=own.clean)  # the reference shows no vessel: there is nothing to be scored against
    assert computed_scores(blind, drawn) is None


def test_held_out_kinds_are_not_trained(pools, tmp_path):
    assert not set(HELD_OUT) & set(TRAINED) and set(HELD_OUT) | set(TRAINED) == set(KINDS)
    count = make_samples(PhantomPool(pools / "training"), tmp_path / "s", 2, per_scene=4)
    samples = SampleFolder(tmp_path / "s")
    assert len(samples) == count > 0
    assert not {kind for line in samples.lines for kind in line["defects"]} & set(HELD_OUT)
    assert make_samples(PhantomPool(pools / "training"), tmp_path / "s", 50) == count  # kept
    one, again = samples.batch(3, 4, 7), samples.batch(3, 4, 7)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one["frames"].shape == (4, 3, 256, 256) and one["scores"].shape == (4, 3)
    turned, plain = samples.sample(0, 1)[0], samples.sample(0)[0]
    assert np.array_equal(turned[:, :, ::-1], plain)
    (tmp_path / "s" / "samples.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="another version"):
        SampleFolder(tmp_path / "s")


@pytest.mark.parametrize("routing", ROUTINGS)
def test_every_part_of_the_network_is_trained_and_scores_are_bounded(routing):
    torch.manual_seed(0)
    model = CasIqa(IqaConfig(**SMALL, routing=routing))
    frames, there = torch.rand(4, 3, SIDE, SIDE), torch.tensor([True, False, True, False])
    scores = scores_of(model(prepare(frames, there), there))
    assert scores.shape == (4, 3) and (scores >= 0).all() and (scores <= 100).all()
    value, terms = iqa_loss(scores, 100 * torch.rand(4, 3))
    value.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A softmax does not see what is added to all of its entries: keys need no bias.
    assert not [name for name in unused if "keys" not in name], unused
    assert set(terms) == {"error", "apart"}


def test_overall_branch_adds_the_maps_of_the_others():
    """MUST: with queries of nothing the third branch attends where the first two do."""
    torch.manual_seed(0)
    model = CasIqa(IqaConfig(**SMALL)).eval()
    body = model.body
    drawn, vessels = torch.randn(1, 144, 16), torch.randn(1, 144, 16)
    before = body(drawn, vessels, model.apart)
    with torch.no_grad():
        body.queries[0].weight.mul_(5)
    after = body(drawn, vessels, model.apart)
    assert not torch.allclose(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])  # through the added map


def test_without_reference_its_pixels_do_not_matter():
    torch.manual_seed(0)
    model = CasIqa(IqaConfig(**SMALL)).eval()
    rng = np.random.default_rng(0)
    made, bare, truth = rng.random((3, 80, 100)).astype(np.float32)
    assert judge(model, made, bare) == judge(model, made, bare, None)
    assert judge(model, made, bare) != judge(model, made, bare, truth)
    with pytest.raises(InputError, match="one view and size"):
        judge(model, made, bare[:-1])
    with pytest.raises(InputError, match="no numbers"):
        judge(model, made, bare, np.full_like(bare, np.nan))
    wide = to_side(torch.rand(1, 2, 40, 100))
    assert wide.shape == (1, 2, SIDE, SIDE)


def test_agreement_against_known_values():
    truth = np.array([1.0, 2, 3, 4])
    assert agreement(truth, truth) == (pytest.approx(1), pytest.approx(1), 0.0)
    plcc, srcc, rmse = agreement(truth**3, truth)
    assert srcc == pytest.approx(1) and plcc == pytest.approx(np.corrcoef(truth**3, truth)[0, 1])
    assert agreement(np.ones(4), truth)[:2] == (0.0, 0.0)  # a constant agrees with nothing
    assert rmse == pytest.approx(np.sqrt(np.mean((truth**3 - truth) ** 2)))


@pytest.fixture()
def flags(pools, tmp_path):
    given = ["iqa", "--pool", str(pools / "training"), "--validation", str(pools / "validation"), "--scenes", "1"]
    given += ["--samples", str(tmp_path / "samples"), "--batch", "2", "--save-every", "1", "--validate-every", "2"]
    return [*given, "--device", "cpu", "--threads", "1", "--precision", "fp32"]


def curve(folder):
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line]


def test_training_smoke_resume_and_bad_flags(flags, tmp_path, capsys):
    flags = [*flags, "--steps", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(train, [*flags, "--out", str(whole)]) == 0
    assert status_of(train, [*flags, "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert status_of(train, [*flags, "--out", str(parts), "--resume"]) == 0
    assert curve(whole)[-1] == curve(parts)[-1]
    made = whole / "iqa.safetensors"
    found = load_weights(made)[1]["recipe"]
    assert "--scenes 1 --routing must --init random --steps 2 --batch 2" in found["commands"][1]
    assert "--precision fp32 --seed 0" in found["commands"][1] and found["sample_seeds"]["validation"] == 1
    plain = [*flags[:-2], "--steps", "1", "--routing", "none", "--out", str(tmp_path / "plain")]
    assert status_of(train, [*plain, "--export", "iqa"]) == 0  # which must not overwrite the weights of the run
    assert json.loads((tmp_path / "plain" / "export" / "iqa.json").read_text())["recipe"]["frames"] == 2
    added = [*plain[:-3], "must", "--out", str(tmp_path / "added"), "--rate", "0", "--init"]
    assert status_of(train, [*added, str(tmp_path / "plain" / "iqa.safetensors")]) == 0
    assert curve(tmp_path / "added")[-1] == pytest.approx(curve(tmp_path / "plain")[-1], abs=1e-2)
    assert status_of(train, [*plain[:-1], str(tmp_path / "x"), "--init", str(made)]) == BAD_INPUT
    assert "of --routing must" in capsys.readouterr().err
    assert status_of(train, ["iqa", "--out", str(tmp_path / "y")]) == BAD_INPUT
    nan = [*flags, "--rate", "10", "--out", str(tmp_path / "nan"), "--init", str(broken(made, tmp_path))]
    assert status_of(train, nan) == BAD_INPUT and "no number" in capsys.readouterr().err


def test_an_interrupted_making_is_a_shorter_one(pools, tmp_path):
    pool = PhantomPool(pools / "training")
    for scenes in (1, 2):
        make_samples(pool, tmp_path / str(scenes), scenes, seed=3, per_scene=1)
    one, two = (SampleFolder(tmp_path / str(scenes)) for scenes in (1, 2))
    assert len(one) < len(two) and one.lines == two.lines[: len(one)]
    assert np.array_equal(one.frames, two.frames[: len(one)]) and np.array_equal(one.scenes, two.scenes[:1])


def broken(file, folder):
    """The same weights with a value that is no number."""
    tensors, facts = load_weights(file)
    model = CasIqa(config_from(facts["config"], "x"))
    model.load_state_dict(tensors)
    with torch.no_grad():
        model.place[0, 0, 0] = float("nan")
    save_weights(folder / "broken.safetensors", model, facts)
    return folder / "broken.safetensors"


def write(path, image):
    Image.fromarray(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)).save(path)
    return str(path)


def test_human_scores(scene, tmp_path, flags):
    own, other = scene
    rows = ["synthetic,frame,reference,patient,rater,morphology,branches,overall"]
    write(tmp_path / "bare.png", own.frame)
    write(tmp_path / "true.png", own.reference)
    for k, severity in enumerate((0.1, 0.5, 0.9)):
        write(tmp_path / f"{k}.png", synthetic(own, other, {"erased": severity}, 1)[0])
        for rater, shift in (("a", 0), ("b", 20)):
            score = 80 - 60 * severity + shift
            rows.append(f"{k}.png,bare.png,{'true.png' if k else ''},Miller{k},{rater},{score},{score},{score}")
    table = tmp_path / "scores.csv"
    table.write_text("\n".join(rows) + "\n")
    training, checked = read_human_scores(table, tmp_path / "kept")
    assert len(training) == 2 and len(checked) == 1
    assert {line["patient"] for line in training.lines}.isdisjoint(line["patient"] for line in checked.lines)
    assert "Miller" not in "".join(file.read_text() for file in (tmp_path / "kept").rglob("*.jsonl"))
    both = np.concatenate((training.scores, checked.scores))
    assert sorted(both[:, 0].round()) == [36, 60, 84]  # the strict and the kind reader agree in their own units
    run = ["iqa", "--human", str(table), "--out", str(tmp_path / "run"), *flags[9:], "--steps", "1"]
    assert status_of(train, run) == 0
    table.write_text("\n".join(rows).replace("Miller0", "Maier0") + "\n")
    with pytest.raises(InputError, match="made of something else"):
        read_human_scores(table, tmp_path / "kept")
    for bad, words in (("101", "give 0 to 100"), ("good", "give 0 to 100"), ("nan", "give 0 to 100")):
        table.write_text("\n".join([rows[0], f"0.png,bare.png,,p0,a,{bad},50,50"]))
        with pytest.raises(InputError, match=words):
            read_human_scores(table, tmp_path / "other")
    table.write_text("synthetic,frame\na,b\n")
    with pytest.raises(InputError, match="no column patient"):
        read_human_scores(table, tmp_path / "other")
    table.write_text(rows[0] + "\n0.png,bare.png,,p0,a,50,50,50\n")
    with pytest.raises(InputError, match="one patient"):
        read_human_scores(table, tmp_path / "other")


def test_mean_opinions_take_readers_in_their_own_units():
    rows = [
        {"key": (name,), "rater": rater, "scores": [score] * 3}
        for name, rater, score in (("a", "kind", 80), ("b", "kind", 90), ("a", "strict", 20), ("b", "strict", 30))
    ]
    opinions = mean_opinions(rows)
    assert opinions[("a",)] == pytest.approx([50] * 3) and opinions[("b",)] == pytest.approx([60] * 3)


def test_command_writes_scores_and_a_picture(scene, tmp_path, weights, capsys):
    own, other = scene
    made = synthetic(own, other, {"erased": 0.5, "ghost": 0.5}, 2)[0]
    files = [write(tmp_path / "made.png", made), "--frame", write(tmp_path / "bare.png", own.frame)]
    run = [*files, "--weights", weights, "--out", str(tmp_path / "out")]
    assert status_of(quality, run) == 0
    said = capsys.readouterr().out
    assert "not the opinion of readers" in said and "missing cannot be known" in said
    result = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert list(result["scores"]) == list(SCORES) and not result["reference"]
    assert Image.open(tmp_path / "out" / "quality.png").size[0] > 1000
    truth = write(tmp_path / "true.png", own.reference)
    assert status_of(quality, [*run[:-1], str(tmp_path / "out2"), "--reference", truth]) == 0
    colours = difference([made, own.frame, own.reference]).astype(int)
    gone = own.anatomy.mask & ~synthetic(own, other, {"erased": 0.5}, 2)[1].mask & own.field
    assert colours[gone, 2].mean() > colours[gone, 0].mean()  # missing vessels are blue
    small = write(tmp_path / "small.png", made[:100])
    for wrong, words in (
        ([small, *files[1:]], "one view and size"),
        ([str(tmp_path / "none.png"), *files[1:]], "none.png"),
        ([write(tmp_path / "flat.png", np.full((64, 64), 0.5)), *files[1:]], "blank"),
    ):
        assert status_of(quality, [*wrong, "--weights", weights, "--out", str(tmp_path / "bad")]) == BAD_INPUT
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert status_of(quality, [*files, "--weights", "no.safetensors", "--out", str(tmp_path / "bad")]) == BAD_INPUT
    assert not (tmp_path / "bad").exists()


def test_configuration_is_checked():
    assert config_from(config_facts(IqaConfig(routing="plain")), "x") == IqaConfig(routing="plain")
    with pytest.raises(InputError, match="no configuration"):
        config_from({"width": 8}, "x")
    for wrong in ({"width": 10, "heads": 3}, {"channels": (1, 2)}, {"routing": "random"}):
        with pytest.raises(InputError):
            IqaConfig(**wrong)


def test_embedded_weights_tell_good_from_bad(scene):
    from licag3d import weights as embedded
    from licag3d.models.iqa import load_iqa

    if not embedded.available("iqa"):
        pytest.skip("no weights of CAS-IQA are part of this version")
    model, facts = load_iqa()
    assert "not human" in facts["truth"] and facts["bytes"] < 3_000_000
    own, other = scene
    overall = []
    for defects in ({}, {"erased": 0.4}, {"erased": 1.0}):
        overall.append(judge(model, synthetic(own, other, defects, 1)[0], own.frame, own.reference)[2])
    assert overall[0] > 85 and overall[0] > overall[1] + 3 > overall[2] + 6
