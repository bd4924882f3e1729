# SPDX-License-Identifier: Apache-2.0
"""The generator's training end to end, small: it learns, resumes, exports, and refuses what it cannot use."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from licag3d.errors import InputError
from licag3d.models.branch_table import table_of
from licag3d.models.generator import INSIDE_MU, labels_of, load_generator
from licag3d.phantom import splits
from licag3d.train import generator_check
from licag3d.train.__main__ import main
from licag3d.train.generator_batch import BatchMaker
from licag3d.train.generator_data import grow_trees, load_pool, pool_of, save_pool
from licag3d.train.generator_images import read_real_images
from licag3d.train.generator_vectors import VectorSet, as_logits, course_error_mm, vector_loss

TREES = 8
SMALL = ["--trees", str(TREES), "--batch", "4", "--plane-resolution", "64", "--widths", "8,8,8", "--image-size", "32",
         "--images-per-step", "1", "--device", "cpu", "--threads", "1", "--warmup", "1"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_checks():
    small = {"SAMPLES": 4, "FIELDS": 2, "SHEET_PX": 32}
    before = {name: getattr(generator_check, name) for name in small}
    for name, value in small.items():
        setattr(generator_check, name, value)
    yield
    for name, value in before.items():
        setattr(generator_check, name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generator")


@pytest.fixture(scope="module")
def pool(folder):
    return pool_of(folder / "trees.safetensors", TREES)


@pytest.fixture(scope="module")
def run(folder, pool):
    """Stopped by the clock after one step, resumed to the end."""
    import licag3d.train.generator as verb

    before, verb.VALIDATION_TREES = verb.VALIDATION_TREES, 6
    flags = [
        "generator",
        "--out",
        str(folder / "run"),
        *SMALL,
        "--steps",
        "4",
        "--validate-every",
        "4",
        "--rate",
        "3e-4",
    ]
    assert main([*flags, "--minutes", "1e-9"]) == 0
    first = (folder / "run" / "curves.jsonl").read_text().splitlines()
    assert main([*flags, "--resume", "--export", "tiny"]) == 0
    verb.VALIDATION_TREES = before
    return folder / "run", first


def test_a_stopped_run_goes_on_and_leaves_weights_card_and_pictures(run):
    folder, first = run
    records = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [json.loads(line)["step"] for line in first] == [1, 1] and records[-1]["step"] == 4
    parts = next(record for record in records if record["step"] == 4 and "loss" in record)
    assert {"dice", "attenuation", "gap", "calibre", "density", "rca_shape_mm", "lca_kl"} <= parts.keys()
    assert (folder / "sheet-0001.png").is_file()
    generator, card = load_generator(str(folder / "generator.safetensors"))
    assert card["steps"] == 4 and card["lumen_mu_per_mm"] == INSIDE_MU and card["disease"] == "random"
    assert generator.config.plane_resolution == 64
    embedded = json.loads((folder / "tiny.json").read_text())
    assert embedded["bytes"] < 15_000_000 and embedded["curve"][-1]["step"] == 4
    assert (generator.w_average[0] - generator.w_average[1]).abs().max() > 0


def test_the_linear_start_writes_and_draws_trees(run, pool):
    """Four steps on eight trees: no more than the start, which must already be a tree in the planes."""
    generator, _ = load_generator(str(run[0] / "generator.safetensors"))
    torch.manual_seed(0)
    label = labels_of(["rca", "lca"])
    w_plus = generator.spread(generator.map(torch.randn(2, 256), label))
    planes = generator.planes(w_plus, label)
    for artery, rows, vectors in generator.vectors(w_plus, label):
        points, _, _ = generator.structure.courses(vectors, artery)[0]
        mu = generator.attenuation(planes[rows], points[0])[0]
        assert mu[2:-2].median() > 0.4 * INSIDE_MU
    random = torch.rand(4000, 3) * 120 - 60
    assert (generator.attenuation(planes, random) > 0.5 * INSIDE_MU).float().mean() < 0.03


def test_all_parts_of_the_loss_reach_their_networks(pool):
    from licag3d.models.generator import GeneratorConfig
    from licag3d.train.generator_step import StepSettings, Trainee, step_loss
    from licag3d.train.generator_vectors import set_statistics, start_from_components

    torch.manual_seed(0)
    config = GeneratorConfig(z_dim=256, plane_resolution=64, widths=(8, 8, 8), box_size_mm=120.0, pose_dim=12,
                             fields="vessel+background")  # fmt: skip
    settings = StepSettings(critic_start=0, image_start=0, image_size=32, lazy=2)
    model = Trainee(config, settings)
    data = VectorSet(pool, model.generator.structure.tables)
    set_statistics(model.generator.structure, data, 3.0)
    start_from_components(model.generator, model.encoder, data, 3.0)
    maker = BatchMaker(pool, data, 0, 120.0, vectors=3, images=1, size=32, samples=32, near=256, far=128, line=128)
    total, numbers = step_loss(model, maker(0), 0)
    assert all(np.isfinite(float(value)) for value in numbers.values())
    total.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("generator.background_field.weight_1"):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_the_mean_projection_is_that_of_the_data_before_the_first_step(pool):
    from licag3d.geometry import Cameras
    from licag3d.models.generator import Generator, GeneratorConfig
    from licag3d.train.generator_batch import any_cameras, path_mm

    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(box_size_mm=120.0))
    vectors = VectorSet(pool, generator.structure.tables)
    view = Cameras.stack(any_cameras(np.random.default_rng(0), "lca", 1, 48))
    k = int(vectors.number["lca"][0])
    truth = as_logits(generator.structure.tables["lca"], vectors.vector["lca"][:1])
    with torch.no_grad():
        w_plus = generator.spread(torch.zeros(1, 256))
        planes = generator.planes(w_plus, vectors=[("lca", torch.zeros(1, dtype=torch.long), truth)])
        found = generator.project(planes, view, samples=256).mean()
    assert 0.7 < float(found / (path_mm(pool.tree(k), view).mean() * INSIDE_MU)) < 1.4


def test_batches_depend_on_their_number_alone(pool):
    tables = {artery: table_of(artery) for artery in ("rca", "lca")}
    maker = BatchMaker(pool, VectorSet(pool, tables), 3, 120.0, vectors=2, images=1, size=32, near=64, far=32, line=32)
    a, b, c = maker(5), maker(5), maker(6)
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
    assert not torch.equal(a["field.points_mm"], c["field.points_mm"])
    inside = a["field.distance_mm"][:, :64] < 0
    assert 0.2 < inside.float().mean() < 0.8
    assert a["image.real"].max() > 0


def test_the_vector_loss_is_zero_for_the_truth_alone(pool):
    from licag3d.models.branch_stage import BranchStage

    stage = BranchStage(16, groups=2, hidden=8, resolution=64, box_size_mm=120.0)
    data = VectorSet(pool, stage.tables)
    for artery in ("rca", "lca"):
        truth, known = data.vector[artery], data.known[artery]
        right = as_logits(stage.tables[artery], truth)
        exact, _ = vector_loss(stage, artery, right, truth, known)
        assert exact < 0.02 and course_error_mm(stage, artery, right, truth) < 1e-3
        wrong = right.clone()
        wrong[:, 1:4] += 2.0  # the trunk begins elsewhere
        loss, numbers = vector_loss(stage, artery, wrong, truth, known)
        assert loss > 1 and numbers["place_mm"] > 1
        assert course_error_mm(stage, artery, wrong, truth) == pytest.approx(2 * 3**0.5, rel=1e-3)


def test_refused_data(folder, pool, tmp_path):
    with pytest.raises(InputError, match="does not belong there"):
        pool_of(folder / "trees.safetensors", 2, splits.VALIDATION)
    with pytest.raises(InputError, match="disease 'random', not 'none'"):
        pool_of(folder / "trees.safetensors", 2, disease="none")
    right = [seed for seed in splits.TRAINING[:40] if np.random.default_rng([seed, 70]).integers(2) == 0][:2]
    save_pool(tmp_path / "one.safetensors", grow_trees(right, progress=False))
    with pytest.raises(InputError, match="holds rca trees only"):
        pool_of(tmp_path / "one.safetensors", 2)
    (tmp_path / "bad.safetensors").write_bytes(b"no pool")
    with pytest.raises(InputError, match="cannot be read as a pool"):
        load_pool(tmp_path / "bad.safetensors")
    (tmp_path / "images" / "rca").mkdir(parents=True)
    with pytest.raises(InputError, match="both folders"):
        read_real_images(tmp_path / "images", 16)
    with pytest.raises(InputError, match="--widths is 'a,b'"):
        main(["generator", "--out", str(tmp_path / "x"), *SMALL, "--widths", "a,b"])
    with pytest.raises(InputError, match="--image-size is 48"):
        main(["generator", "--out", str(tmp_path / "x"), *SMALL, "--image-size", "48"])


def test_images_without_cameras_are_refused_and_others_train(pool, tmp_path):
    """Sizes may differ; every other image of a batch is then an own one, and a step on it has finite gradients."""
    import imageio.v3 as imageio

    from licag3d.geometry import Camera
    from licag3d.io.cameras import write_cameras_json

    rng = np.random.default_rng(0)
    for artery, size in (("rca", 160), ("lca", 200)):
        (tmp_path / artery).mkdir()
        image = rng.uniform(120, 140, (size, size))
        rows = np.arange(size)
        for k in range(-3, 4):
            image[rows, np.clip(size // 2 + (20 * np.sin(rows / 25)).astype(int) + k, 0, size - 1)] = 60
        imageio.imwrite(tmp_path / artery / "a.png", image.astype(np.uint8))
    with pytest.raises(InputError, match="has no camera"):
        read_real_images(tmp_path, 32)
    for artery, size in (("rca", 160), ("lca", 200)):
        camera = Camera(30, 10, sid_mm=1000, sod_mm=750, spacing_row_mm=150 / size, spacing_col_mm=150 / size,
                        rows=size, cols=size)  # fmt: skip
        (tmp_path / artery / "a.json").write_text(write_cameras_json([camera], ["a.png"], [None]))
    found = read_real_images(tmp_path, 32)
    image, views = found.draw(np.random.default_rng(1), "rca", 16)
    assert image.shape == (1, 16, 16) and (views.rows, views.cols) == (16, 16)
    assert image.max() > 0
    from licag3d.models.generator import GeneratorConfig
    from licag3d.train.generator_step import StepSettings, Trainee, step_loss
    from licag3d.train.generator_vectors import set_statistics

    config = GeneratorConfig(plane_resolution=64, widths=(8, 8, 8), box_size_mm=120.0)
    model = Trainee(config, StepSettings(field=0.0, critic=0.0, image_start=0, image_size=32, views=1))
    data = VectorSet(pool, model.generator.structure.tables)
    set_statistics(model.generator.structure, data, 3.0)
    part = {"vectors": 3, "fields": 0, "images": 2, "views": 1, "size": 32, "samples": 24}
    asked = []

    class Watched:
        def draw(self, rng, artery, size):
            asked.append((artery, size))
            return found.draw(rng, artery, size)

    batch = BatchMaker(pool, data, 0, 120.0, angiograms=Watched(), **part)(0)
    assert sorted(asked) == [("lca", 32), ("rca", 32)] and batch["image.real"].shape == (4, 1, 32, 32)
    step_loss(model, batch, 0)[0].backward()
    for name, parameter in model.discriminator.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_what_is_unknown_of_a_patient_is_drawn_and_what_is_known_is_kept(pool):
    from licag3d.models.branch_stage import BranchStage
    from licag3d.train.generator_prior import completed
    from licag3d.train.generator_vectors import PRESENCE, encoder_input, set_statistics

    stage = BranchStage(16, groups=2, hidden=8, resolution=64, box_size_mm=120.0)
    data = VectorSet(pool, stage.tables)
    set_statistics(stage, data, 0.0)
    for artery in ("rca", "lca"):
        x = completed(stage, data, artery, 0.0)
        table, known = stage.tables[artery], data.known[artery].clone()
        places = list(table.offsets[:-1])
        right = encoder_input(stage, artery, data.vector[artery], known)
        known[:, places] = False
        torch.testing.assert_close(x[known], right[known])
        missing = ~known
        missing[:, places] = False
        assert torch.isfinite(x).all() and (not missing.any() or x[missing].std() > 0.05)
        limit = -getattr(stage, f"{artery}_mean")[places] / PRESENCE
        there = data.vector[artery][:, places] > 0.5
        for k, slot in enumerate(table.slots):
            asked = torch.ones(len(x), dtype=torch.bool) if slot.parent < 0 else there[:, slot.parent]
            assert ((x[:, places[k]] >= limit[k] - 1e-5) == there[:, k])[asked & there[:, k]].all()
            assert (x[:, places[k]] <= limit[k] + 1e-5)[asked & ~there[:, k]].all()


def test_the_kind_of_a_tree_is_the_dominance_of_its_patient():
    from licag3d.models.branch_table import vector_of
    from licag3d.phantom.anatomy import sample_patient, sample_tree
    from licag3d.train.generator_prior import kinds_of

    seen = set()
    for seed in splits.DEVELOPMENT[:24]:
        dominance = sample_patient(seed).dominance
        for artery in ("rca", "lca"):
            table = table_of(artery)
            vector = torch.tensor(vector_of(sample_tree(seed, artery), table, (0, 0, 0))[0])[None]
            assert ("right", "left", "co")[int(kinds_of(artery, table, vector))] == dominance
        seen.add(dominance)
    assert seen == {"right", "left", "co"}


def test_codes_of_each_kind_have_its_branches(pool):
    """Trees drawn from the fit of a kind have the branches that make it that kind."""
    from licag3d.models.generator import Generator, GeneratorConfig
    from licag3d.train.generator_prior import fit_kinds, kinds_of
    from licag3d.train.generator_vectors import TreeEncoder, set_statistics, start_from_components

    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(plane_resolution=64, widths=(8, 8, 8), box_size_mm=120.0, kinds=3))
    stage = generator.structure
    data = VectorSet(grow_trees(splits.DEVELOPMENT[:60], progress=False), stage.tables)
    set_statistics(stage, data, 3.0)
    encoder = TreeEncoder({a: t.size for a, t in stage.tables.items()}, 256, 256, stage.groups)
    start_from_components(generator, encoder, data, 3.0)
    table = stage.tables["rca"]
    there = kinds_of("rca", table, data.vector["rca"])
    fit_kinds(generator, encoder, data, 3.0, "rca")
    shares = torch.bincount(there, minlength=3) / len(there)
    torch.testing.assert_close(generator.kind_share[0], torch.where(shares * len(there) < 2, 0, shares))
    for kind in (there.unique()).tolist():
        if not generator.kind_share[0, kind]:
            continue
        z = torch.randn(200, 256)
        codes = generator.kind_mean[0, kind] + z @ generator.kind_root[0, kind]
        w = generator.map_code(codes, labels_of(["rca"] * 200))
        vector = stage.vectors(generator.spread(w)[:, : stage.groups], "rca").detach()
        vector[:, list(table.offsets[:-1])] = (vector[:, list(table.offsets[:-1])] > 0).float()
        assert (kinds_of("rca", table, vector) == kind).float().mean() > 0.6  # of a few patients; see test_generator


def test_the_spread_of_deltas_is_that_of_the_patients(pool):
    """Patients' deltas have unit variance in the units of the fitted root, and less than that in those of the wide."""
    from licag3d.models.generator import Generator, GeneratorConfig
    from licag3d.train.generator_prior import fit_deltas
    from licag3d.train.generator_vectors import TreeEncoder, encoder_input, set_statistics, start_from_components

    torch.manual_seed(0)
    config = GeneratorConfig(plane_resolution=64, widths=(8, 8, 8), box_size_mm=120.0, w_dim=32, z_dim=32,
                             own_deltas=True)  # fmt: skip
    generator = Generator(config)
    stage = generator.structure
    data = VectorSet(grow_trees(splits.DEVELOPMENT[:80], progress=False), stage.tables)
    set_statistics(stage, data, 3.0)
    encoder = TreeEncoder({a: t.size for a, t in stage.tables.items()}, 32, 32, stage.groups)
    start_from_components(generator, encoder, data, 3.0)
    fit_deltas(generator, encoder, data, "rca")
    torch.manual_seed(0)
    x = encoder_input(stage, "rca", data.vector["rca"], data.known["rca"])
    with torch.no_grad():
        delta = encoder(x, x.new_zeros(len(x), 1), "rca")[2]
    assert float(delta.std()) > 0.01
    torch.testing.assert_close(generator.delta_mean[0], delta.mean(0), atol=1e-5, rtol=1e-4)
    for style in range(stage.groups):
        covariance = torch.cov(delta[:, style].T)
        patients, wide = (root @ root.mT for root in generator.delta_root[[0, 2], style])
        torch.testing.assert_close(patients, covariance, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(wide - patients, 0.25 * torch.eye(32), atol=1e-4, rtol=1e-3)
    half = 0.5 * torch.eye(32).expand(2, stage.groups, -1, -1)
    torch.testing.assert_close(generator.delta_root[[1, 3]], half)  # the other artery was not asked for


def test_torchrun_trains_with_two_processes(folder, pool):
    """As in the documentation: two processes that meet over gloo, one run folder."""
    script = folder / "two.py"  # the command line, with a smaller validation
    script.write_text(
        "import sys; from licag3d.train import generator, generator_check; from licag3d.train.__main__ import main\n"
        "generator.VALIDATION_TREES = 6\n"
        "generator_check.SAMPLES, generator_check.FIELDS, generator_check.SHEET_PX = 4, 2, 32\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    flags = ["generator", "--out", str(folder / "two"), *SMALL, "--steps", "2", "--validate-every", "2"]
    done = subprocess.run([*two, *flags], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("after 2 steps") == 1
    steps = [json.loads(line)["step"] for line in (folder / "two" / "curves.jsonl").read_text().splitlines()]
    assert max(steps) == 2 and (folder / "two" / "generator.safetensors").exists()


def test_the_encoder_of_a_trained_generator_is_found_without_training(pool):
    """Held-out trees come back through the embedded weights, better with a delta per style than from one code."""
    from licag3d.train.generator_vectors import TreeEncoder, encoder_from_heads, encoder_input

    generator, _ = load_generator()
    stage = generator.structure
    sizes = {artery: table.size for artery, table in stage.tables.items()}
    encoder = TreeEncoder(sizes, 256, 256, stage.groups)
    encoder_from_heads(generator, encoder)
    torch.manual_seed(0)
    held = VectorSet(grow_trees(splits.DEVELOPMENT[:6], progress=False), stage.tables)
    assert len(held.number["rca"]) and len(held.number["lca"])
    for artery in ("rca", "lca"):
        truth, known = held.vector[artery], held.known[artery]
        label = labels_of([artery] * len(truth))
        with torch.no_grad():
            code, _, delta = encoder(encoder_input(stage, artery, truth, known), torch.zeros(len(truth), 1), artery)
            styles = generator.spread(generator.map_code(code, label))[:, : stage.groups]
            by_code, by_styles = (
                course_error_mm(stage, artery, stage.vectors(w, artery), truth) for w in (styles, styles + delta)
            )
        assert by_styles < 0.5 and by_styles < by_code < 1.5
