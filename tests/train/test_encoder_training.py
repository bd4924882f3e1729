# SPDX-License-Identifier: Apache-2.0
"""The tree encoder's training, small: pictures agree with exact tubes and with the truth beside them; it runs,
resumes, exports, and refuses what makes no sense."""

from __future__ import annotations

import json

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera, Cameras
from licag3d.models.branch_table import ARTERIES
from licag3d.models.encoder import load_tree_encoder
from licag3d.models.generator import INSIDE_MU, load_generator
from licag3d.ops import project_tubes
from licag3d.train import encoder_check
from licag3d.train.__main__ import main
from licag3d.train.encoder_check import patient_auc
from licag3d.train.encoder_data import CodeReader, TreePoints, ViewMaker
from licag3d.train.encoder_pictures import Tubes, draw
from licag3d.train.encoder_step import course_errors_mm, line_pictures, splat
from licag3d.train.generator_data import pool_of
from licag3d.train.generator_vectors import VectorSet, as_logits, course_error_mm

TREES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoder")


@pytest.fixture(scope="module")
def generator():
    return load_generator()[0]


@pytest.fixture(scope="module")
def maker(folder, generator):
    pool = pool_of(folder / "trees.safetensors", TREES)
    tables = generator.structure.tables
    points, data = TreePoints(pool, tables), VectorSet(pool, tables)
    return ViewMaker(points, data, CodeReader(generator), 0, patients=1, clean=True)


@pytest.fixture(scope="module")
def run(folder):
    before, encoder_check.VIEWS = encoder_check.VIEWS, 2
    flags = ["encoder", "--out", str(folder / "run"), "--trees", str(TREES), "--validation", "8", "--batch", "2",
             "--device", "cpu", "--threads", "1", "--steps", "3", "--validate-every", "3", "--warmup", "1"]  # fmt: skip
    assert main([*flags, "--minutes", "1e-9"]) == 0
    assert main([*flags, "--resume", "--export", "tiny"]) == 0
    encoder_check.VIEWS = before
    return folder / "run"


def test_a_stopped_run_goes_on_logs_every_loss_and_exports(run):
    records = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    losses = [record for record in records if "loss" in record]
    assert losses[-1]["step"] == 3
    wanted = {"rca_all_mm", "lca_w_plus", "all_latent", "tuple", "projection", "perceptual", "vessel", "field", "dense",
              "all_place_mm", "all_label"}  # fmt: skip
    assert wanted <= losses[0].keys()
    checks = next(record["validation"] for record in reversed(records) if "validation" in record)
    assert {"rca_1_mm", "lca_2_mm", "artery_1", "patient_auc", "score"} <= checks.keys()
    assert imageio.imread(run / "sheet-0001.png").shape[2] == 3
    card = json.loads((run / "tiny.json").read_text())
    assert card["model"] == "tree_encoder" and card["bytes"] < 15_000_000
    net = load_tree_encoder(str(run / "tree_encoder.safetensors"))
    assert float(net.update.rca_root.abs().max()) > 1 and torch.isfinite(net.same_patient).all()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--tuple-weight", "-1"], "--tuple-weight is -1"),
        (["--views", "1"], "--views is 1"),
        (["--offset", "nan"], "--offset is nan"),
        (["--init", "missing.safetensors"], "cannot be read"),
        (["--tuple-form", "hinge"], "invalid choice"),
        (["--widths", "8,b"], "--widths is '8,b'"),
        (["--widths", "8,16"], "widths is .8, 16.; give 3 or more"),
        (["--token", "64", "--init", "embedded"], "--token goes with --init random"),
    ],
)
def test_flags_that_make_no_sense_are_refused(folder, flags, text):
    base = ["encoder", "--out", str(folder / "other"), "--pool", str(folder / "trees.safetensors"), "--trees",
            str(TREES), "--validation", "8", "--device", "cpu"]  # fmt: skip
    with pytest.raises(InputError, match=text):
        main([*base, *flags])


def test_short_tubes_add_up_to_what_exact_ones_do():
    view = Camera(0, 0, 1000, 750, 4 / 3 * 0.55, 4 / 3 * 0.55, 128, 128)
    points = np.stack([np.linspace(-20, 25, 46), 8 * np.sin(np.linspace(0, 4, 46)), np.linspace(-15, 20, 46)], 1)
    radius = np.linspace(2.0, 0.4, 46)
    segments = torch.tensor([[k, k + 1] for k in range(45)])
    exact = project_tubes(torch.from_numpy(points), torch.from_numpy(radius), segments, Cameras.stack([view]))[0]
    pixels, depth = view.project(points)
    grow = 750 / depth / 0.55
    long = np.linalg.norm(np.diff(points, axis=0), axis=1)
    flat = 0.55 * np.linalg.norm(np.diff(pixels, axis=0), axis=1) * depth[:-1] / 750
    tubes = Tubes(
        (pixels[:-1] + 0.5).astype(np.float32), (pixels[1:] + 0.5).astype(np.float32),
        (radius * grow)[:-1].astype(np.float32), (0.55 * long / flat).astype(np.float32), np.zeros(45, int),
        np.zeros(45, int),
    )  # fmt: skip
    ours = draw(tubes, 1, 128)[0]
    assert float(ours.sum()) == pytest.approx(float(exact.sum()), rel=0.06)
    # In the middle of vessels wider than a pixel the way through is right.
    wide = exact > 2.0
    assert float((ours[wide] - exact[wide]).abs().mean()) < 0.25


def test_a_batch_depends_on_its_number_alone(maker):
    first, again, other = maker(3), maker(3), maker(4)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in ("windows", "cameras", "place_mm", "name", "rca.vector"))
    assert other["windows"].shape != first["windows"].shape or not torch.equal(other["windows"], first["windows"])
    assert first["windows"].shape[1] == 3 and other["windows"].shape[1] == 2  # every fourth has a view more


def test_windows_show_the_tree_of_the_vectors_through_the_cameras_beside_them(maker, generator):
    batch = maker(0)
    stage = generator.structure
    for index, artery in enumerate(ARTERIES):
        truth = as_logits(stage.tables[artery], batch[f"{artery}.vector"])
        seen = (batch["cameras"][index : index + 1], batch["place_mm"][index : index + 1])
        ours = line_pictures(stage, artery, truth, *seen, batch["log_scale"][index : index + 1], 140.0, 64)[0]
        theirs = torch.nn.functional.avg_pool2d(batch["windows"][index, :, 1] / 2, 4)
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
        theirs = torch.nn.functional.conv2d(theirs[:, None], kernel, padding=1)[:, 0]
        both = torch.stack([ours.flatten(), theirs.flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.9
        assert float(ours.sum() / theirs.sum()) == pytest.approx(1.0, abs=0.25)


def test_cells_name_the_branch_that_is_seen_there(maker):
    batch = maker(0)
    chance = torch.nn.functional.max_pool2d(batch["windows"][:, :, 0], 4)
    there = batch["name"] >= 0
    assert float((chance[there] > 0).float().mean()) > 0.97
    slots = (16, 22)
    for index in range(2):
        assert int(batch["name"][index].max()) < slots[index] and int((batch["name"][index] == 0).sum()) > 3


def test_codes_of_vectors_write_them_again(maker, generator):
    for artery in ARTERIES:
        vector, known = maker.data.vector[artery], maker.data.known[artery]
        w, delta = maker.reader(artery, vector, known)
        written = generator.structure.vectors(w[:, None] + delta, artery)
        errors = course_errors_mm(generator.structure, artery, written, vector)
        assert float(errors.mean()) < 0.5
        alone = [course_error_mm(generator.structure, artery, written[k : k + 1], vector[k : k + 1])
                 for k in range(len(vector))]  # fmt: skip
        np.testing.assert_allclose(errors.numpy(), alone, rtol=1e-4)


def test_errors_of_the_clinic_change_pictures_and_cameras_but_not_the_truth(maker):
    from dataclasses import replace

    rough = replace(maker, clean=False, move=1.0)
    chosen = [("rca", 0), ("lca", 0)]
    batch = rough.batch(np.random.default_rng(5), chosen, 2)
    same = maker.batch(np.random.default_rng(5), chosen, 2)
    assert torch.equal(batch["rca.vector"], same["rca.vector"])
    assert float((batch["windows"] - same["windows"]).abs().mean()) > 1e-3
    assert float(batch["windows"][:, :, 0].max()) <= 1 and float(batch["windows"].min()) >= 0
    assert torch.isfinite(batch["place_mm"]).all() and float(batch["log_scale"].abs().max()) < 0.2


def test_splats_keep_mass_and_have_the_gradient_of_their_place():
    at = torch.tensor([[[3.3, 4.6], [6.1, 2.2]]], dtype=torch.float64, requires_grad=True)
    mass = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert float(splat(at, mass, 8).sum().detach()) == pytest.approx(3.0)
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (splat(x, mass, 8) * weight).sum(), (at,))
    assert float(splat(at + 100, mass, 8).sum().detach()) == 0


def test_written_pictures_hold_the_line_integral_of_their_tubes(maker, generator):
    """Their sum is volume times attenuation over the area of a pixel, whatever the resolution."""
    batch = maker(0)
    stage = generator.structure
    truth = as_logits(stage.tables["rca"], batch["rca.vector"])
    like = (batch["cameras"][:1], batch["place_mm"][:1], batch["log_scale"][:1], 140.0)
    sums = [float(line_pictures(stage, "rca", truth, *like, size).sum()) * (140 / size) ** 2 for size in (32, 64)]
    volume = 0.0
    for course, radius, gate in stage.courses(truth, "rca"):
        length = (course[:, 1:] - course[:, :-1]).norm(dim=2)
        volume += float((gate * torch.pi * (0.5 * (radius[:, 1:] + radius[:, :-1])) ** 2 * length).sum())
    assert sums[0] == pytest.approx(sums[1], rel=0.02)
    assert sums[1] == pytest.approx(2 * volume * INSIDE_MU, rel=0.1)


def test_area_under_the_curve_of_patients():
    codes = torch.eye(4)
    artery = torch.tensor([0, 0, 1, 1])
    assert patient_auc(codes, codes, artery) == 1.0
    assert patient_auc(codes, codes[[1, 0, 3, 2]], artery) == 0.0
    assert patient_auc(torch.ones(4, 2), torch.ones(4, 2), artery) == 0.5
