# SPDX-License-Identifier: Apache-2.0
"""Windows of the tree encoder from view pairs: the truth beside them is what they show, and a training takes them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from licag3d.data.view_pairs import draw_pair, pack_pair
from licag3d.errors import InputError
from licag3d.models.branch_table import ARTERIES
from licag3d.models.generator import load_generator
from licag3d.phantom.splits import TRAINING, VALIDATION
from licag3d.train import encoder, encoder_check
from licag3d.train.__main__ import main
from licag3d.train.encoder_data import CodeReader
from licag3d.train.encoder_pairs import PairWindows, tree_of_points
from licag3d.train.encoder_step import line_pictures
from licag3d.train.generator_vectors import as_logits

#: Patients whose drawn pairs are true outlines (``mask``).
MASKS = (4, 5, 10, 11)


def as_rendered(seed: int) -> bytes:
    """A drawn pair in the place of a rendered one, which takes seconds."""
    pair = draw_pair(seed)
    (way,) = pair.seen
    return pack_pair(replace(pair, seen={"found": pair.seen[way]}, chains={"found": pair.chains[way]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    (made / "validation").mkdir()
    for number in MASKS:
        (made / f"{TRAINING[number]}.npz").write_bytes(as_rendered(TRAINING[number]))
    for seed in VALIDATION[:4]:
        (made / "validation" / f"{seed}.npz").write_bytes(as_rendered(seed))
    return made


@pytest.fixture(scope="module")
def generator():
    return load_generator()[0]


@pytest.fixture(scope="module")
def pairs(folder, generator):
    return PairWindows.read(folder, generator.structure.tables, clean=True)


@pytest.fixture(scope="module")
def batch(pairs, generator):
    return pairs.batch(np.random.default_rng(0), CodeReader(generator), [*pairs.of(0), *pairs.of(1)])


def test_windows_show_the_tree_of_the_vectors_through_the_cameras_beside_them(batch, generator):
    stage = generator.structure
    for index, artery in enumerate(ARTERIES):
        rows = batch["artery"] == index
        truth = as_logits(stage.tables[artery], batch[f"{artery}.vector"])
        seen = (batch["cameras"][rows], batch["place_mm"][rows], batch["log_scale"][rows])
        ours = line_pictures(stage, artery, truth, *seen, 140.0, 64).flatten(0, 1)
        theirs = torch.nn.functional.avg_pool2d(batch["windows"][rows][:, :, 1].flatten(0, 1) / 2, 4)
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
        theirs = torch.nn.functional.conv2d(theirs[:, None], kernel, padding=1)[:, 0]
        for one, other in zip(ours, theirs, strict=True):
            assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) > 0.8


def test_cells_name_the_branch_that_is_seen_there(batch):
    chance = torch.nn.functional.max_pool2d(batch["windows"][:, :, 0].flatten(0, 1)[:, None], 4)[:, 0]
    there = batch["name"].flatten(0, 1) >= 0
    assert float((chance[there] > 0.1).float().mean()) > 0.95
    for index, slots in enumerate((16, 22)):
        name = batch["name"][batch["artery"] == index]
        assert int(name.max()) < slots and int((name == 0).sum()) > 3


def test_a_training_batch_has_errors_of_its_own_and_the_same_truth(pairs, batch, generator):
    rows = [*pairs.of(0), *pairs.of(1)]
    reader, rough = CodeReader(generator), replace(pairs, clean=False)
    one, again = (rough.batch(np.random.default_rng(3), reader, rows) for _ in range(2))
    # Codes depend on the random numbers of the step: what a patient has not got is drawn.
    assert all(torch.equal(one[key], again[key]) for key in one if not key.endswith((".w", ".delta")))
    assert one.keys() == batch.keys() and torch.equal(one["lca.vector"], batch["lca.vector"])
    assert not torch.equal(one["windows"], batch["windows"]) and not torch.equal(one["cameras"], batch["cameras"])
    drawn = rough.draw(np.random.default_rng(1), reader, 3)
    assert drawn["windows"].shape == (6, 2, 2, 256, 256) and drawn["artery"].tolist() == [0, 0, 0, 1, 1, 1]


def test_branches_hang_on_what_they_begin_at():
    trunk = np.stack([np.zeros(40), np.zeros(40), np.arange(40.0)], 1)
    side = trunk[20] + np.stack([np.arange(11.0), np.zeros(11), np.zeros(11)], 1) * 0.9
    twin = side[1] + np.stack([np.zeros(8), np.arange(0.1, 8), np.zeros(8)], 1)
    points, radius = np.concatenate([trunk, side, twin]), np.ones(59)
    branch = np.repeat([0, 1, 2], [40, 11, 8])
    tree = tree_of_points(points, radius, branch, ("A", "B", "C"))
    assert [item.parent for item in tree.branches] == [None, 0, 1]
    # Two begin at one place: what the anatomy knows decides.
    known = {("C", "A"): 3}
    assert tree_of_points(points, radius, branch, ("A", "B", "C"), known).branches[2].parent == 0
    with pytest.raises(InputError, match="branch B begins"):
        tree_of_points(np.concatenate([trunk, side + 9, twin]), radius, branch, ("A", "B", "C"))


def test_a_training_takes_pairs_and_is_judged_by_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "VALIDATION_PAIRS", 4)
    monkeypatch.setattr(encoder_check, "VIEWS", 2)
    flags = ["encoder", "--out", str(tmp_path / "run"), "--pool", str(tmp_path / "trees.safetensors"), "--trees", "8",
             "--validation", "8", "--batch", "2", "--device", "cpu", "--threads", "1", "--steps", "2", "--warmup", "1",
             "--validate-every", "2", "--pairs", str(folder), "--pair-share", "1", "--widths", "8,12,16",
             "--token", "24"]  # fmt: skip
    assert main(flags) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "curves.jsonl").read_text().splitlines()]
    checks = next(record["validation"] for record in records if "validation" in record)
    wanted = -0.5 * (checks["rendered_rca_2_mm"] + checks["rendered_lca_2_mm"])
    assert checks["score"] == pytest.approx(wanted) and 0 <= checks["rendered_named_small"] <= 1
    assert (tmp_path / "run" / "tree_encoder.safetensors").is_file()
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["pairs"] == 4
    assert (config["config"]["widths"], config["config"]["token"]) == ([8, 12, 16], 24)


def test_pools_that_cannot_be_used_are_refused(folder, generator, tmp_path):
    tables = generator.structure.tables
    with pytest.raises(InputError, match="does not belong there"):
        PairWindows.read(folder / "validation", tables)
    seed = TRAINING[MASKS[0]]
    (tmp_path / f"{seed}.npz").write_bytes(pack_pair(draw_pair(seed)))
    with pytest.raises(InputError, match="both arteries are needed"):
        PairWindows.read(tmp_path, tables)
