# SPDX-License-Identifier: Apache-2.0
"""The recipe of the DeepCA-style rival: phantom stream, loss, calibration on validation seeds, card.

Called as ``python -m benchmarks.baselines.deepca_style``. TRAINING seeds only are trained on; checkpoints, threshold
and radii are chosen on VALIDATION seeds, and other VALIDATION seeds give the scores of the card.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines.deepca_style import (
    CHANNELS,
    DIFFERS,
    FOLDER,
    GRID,
    SOURCE,
    VOXEL_MM,
    WEIGHTS,
    UNet,
    back_projection,
    occupancy,
    origin_of,
    predict,
    tree_of,
)
from licag3d.command import Parser
from licag3d.errors import InputError
from licag3d.phantom.batch import BatchSettings, draw_case, render_batch
from licag3d.phantom.splits import VALIDATION, training_seed
from licag3d.structures import VesselTree
from licag3d.vessels.distance import signed_distance, tree_cones
from licag3d.vessels.tree import resample_tree

#: Half width of the soft wall of the target, mm: a vessel thinner than a voxel leaves a trace in the nearest voxels.
WALL_MM = 1.1
#: Edge of the training masks; at 256 a pixel is 0.4 to 0.5 mm at the isocentre, finer than a voxel.
IMAGE = 256
CASES = BatchSettings(
    rows=IMAGE, cols=IMAGE, separation_deg=(35.0, 95.0), offset_mm=(0.0, 8.0), angle_error_deg=(0.0, 1.5), points=0,
    box_center="views", disease="random",
)  # fmt: skip
#: Patients between the two uses of one.
AGAIN = 8
#: Share of training masks that are made imperfect, as a segmentation is.
IMPERFECT = 0.5
LEVELS = (0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)


def target_volume(tree: VesselTree, center_mm, grid: int = GRID) -> torch.Tensor:
    """``(n, n, n)`` float32: 0.5 at the wall, rising to 1 and falling to 0 within ``WALL_MM`` of it."""
    # Points every millimetre leave the wall where it is to a few hundredths and save two thirds of the work.
    cones = tree_cones(resample_tree(tree, 1.0))
    distance = signed_distance(cones, origin_of(center_mm, grid), VOXEL_MM, (grid,) * 3, band=WALL_MM)
    return torch.from_numpy(np.clip(0.5 - distance / (2 * WALL_MM), 0, 1))


@lru_cache(maxsize=2 * AGAIN)
def sample(seed: int, grid: int = GRID, imperfect: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ``(2, n, n, n)`` and target ``(n, n, n)``, bfloat16, of one phantom patient; depends on nothing else."""
    batch = render_batch([draw_case(seed, CASES)], CASES)
    masks = batch.masks[0].float()
    chance = torch.Generator().manual_seed(seed)
    if float(torch.rand((), generator=chance)) < imperfect:
        masks = imperfect_masks(masks, chance)
    center = batch.box_center_mm[0].double().numpy()
    given = back_projection(list(masks), list(batch.user_cameras[0]), center, grid)
    return given.bfloat16(), target_volume(batch.trees[0], center, grid).bfloat16()


def patient_of(sample_number: int) -> int:
    """Patient of the k-th training sample: new ones and those of ``AGAIN`` patients ago take turns.

    Drawing a patient costs half as much as learning from one, so each is used twice, some steps apart.
    """
    return sample_number // 2 if sample_number % 2 == 0 else max(sample_number // 2 - AGAIN, 0)


def imperfect_masks(masks: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Masks ``(V, rows, cols)`` as a segmentation might give them: a pixel too wide or narrow, gaps, specks."""
    result = []
    rows, cols = masks.shape[1:]
    y, x = torch.arange(rows)[:, None], torch.arange(cols)
    for mask in masks:
        draw = float(torch.rand((), generator=chance))
        if draw < 0.3:
            mask = F.max_pool2d(mask[None], 3, 1, 1)[0]
        elif draw < 0.5:
            mask = -F.max_pool2d(-mask[None], 3, 1, 1)[0]
        vessel = mask.nonzero()
        for _ in range(int(torch.randint(0, 6, (), generator=chance))):
            if len(vessel):
                r, c = vessel[int(torch.randint(len(vessel), (), generator=chance))]
                mask = mask * ((y - r) ** 2 + (x - c) ** 2 > float(2 + 6 * torch.rand((), generator=chance)) ** 2)
        for _ in range(int(torch.randint(0, 4, (), generator=chance))):
            r, c = torch.randint(rows, (2,), generator=chance)
            mask = torch.maximum(
                mask, ((y - r) ** 2 + (x - c) ** 2 < float(1 + 3 * torch.rand((), generator=chance)) ** 2).float()
            )
        result.append(mask)
    return torch.stack(result)


def volume_loss(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """Soft Dice plus cross-entropy, the latter per vessel voxel: the share of empty voxels then says nothing."""
    logits, target = logits.float(), target.float()
    mass = target.sum((1, 2, 3)).clamp(min=1.0)
    probability = logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.square().sum((1, 2, 3)) + target.square().sum((1, 2, 3)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum((1, 2, 3)) / mass
    return (dice + 0.3 * entropy).mean(), {"dice": 1 - dice.mean().detach(), "entropy": entropy.mean().detach()}


def train(arguments, *, grid: int = GRID, channels: tuple[int, ...] = CHANNELS, validation: int = 6):
    """Train from the flags of ``licag3d.train.loop``; returns its outcome."""
    from licag3d.train import loop

    settings = loop.settings_of(arguments)
    torch.manual_seed(settings.seed)
    model = UNet(channels, grid)
    held = [sample(VALIDATION[2 * k + 1], grid) for k in range(validation)]

    def make_batch(step: int) -> dict:
        first = settings.seed * 10_000_000
        numbers = [patient_of(step * settings.batch + k) for k in range(settings.batch)]
        pairs = [sample(training_seed(first + number), grid, IMPERFECT) for number in numbers]
        return {"given": torch.stack([p[0] for p in pairs]), "target": torch.stack([p[1] for p in pairs])}

    def validate(average: nn.Module) -> dict:
        found: dict[float, list[float]] = {level: [] for level in LEVELS}
        for given, target in held:
            values, truth = predict(average, given.float().to(settings.device)).cpu(), target.float() > 0.25
            for level, scores in found.items():
                scores.append(float(2 * ((values > level) & truth).sum() / ((values > level).sum() + truth.sum())))
        means = {level: float(np.mean(scores)) for level, scores in found.items()}
        best = max(means, key=means.get)
        return {"score": means[best], "level": best}

    return loop.train(
        model, settings, arguments.out, make_batch=make_batch, validate=validate, resume=arguments.resume,
        loss=lambda net, batch, step: volume_loss(net(batch["given"].float()), batch["target"]),
        config={"grid": grid, "voxel_mm": VOXEL_MM, "channels": list(channels), "disease": CASES.disease},
    )  # fmt: skip


def validation_cases(first: int, count: int) -> list[tuple]:
    """Masks, cameras of a user, and true centreline points of phantom patients ``VALIDATION[first]`` onwards."""
    from licag3d.metrics.centerline import tree_points

    settings = replace(CASES, rows=512, cols=512, angle_error_deg=(1.0, 1.0))
    cases = []
    for seed in VALIDATION[first : first + count]:
        batch = render_batch([draw_case(seed, settings)], settings)
        cases.append((list(batch.masks[0].numpy()), list(batch.user_cameras[0]), tree_points(batch.trees[0])))
    return cases


def calibrate(model: nn.Module, cases: list) -> dict:
    """Threshold and radius line from validation cases.

    The level with the best mean F1 (2 mm, raw: the frame of the first view is what was trained for), then the straight
    line from the radius found to the true one at the nearest true centreline point, over all places nearer than 1.5 mm.
    """
    from licag3d.metrics.centerline import centerline_metrics, nearest_distances, tree_points

    found: dict[float, float] = {}
    points: dict[float, list] = {}
    volumes = [occupancy(model, masks, cameras) for masks, cameras, _ in cases]
    for level in LEVELS:
        points[level] = [tree_points(tree_of(volume, level)) for volume in volumes]
        scores = [
            centerline_metrics(p, case[2])["centerline_f1_2mm"] for p, case in zip(points[level], cases, strict=True)
        ]
        found[level] = float(np.mean(scores))
    level = max(found, key=found.get)
    pairs = []
    for pred, (_, _, true) in zip(points[level], cases, strict=True):
        if len(pred.points_lps_mm):
            gap, index = nearest_distances(pred.points_lps_mm, true.points_lps_mm)
            near = gap < 1.5
            pairs.append(np.stack((pred.radius_mm[near], true.radius_mm[index[near]])))
    line = (1.0, 0.0)
    if pairs and sum(pair.shape[1] for pair in pairs) >= 20:
        line = np.polyfit(*np.concatenate(pairs, axis=1), 1)
    return {"level": level, "f1_2mm_by_level": found, "radius_scale": float(line[0]), "radius_shift_mm": float(line[1])}


def export(folder: str, count: int) -> dict:
    """Calibrate the best weights of a run on validation cases, score them on others, write weights and card."""
    from licag3d import weights
    from licag3d.metrics.centerline import centerline_metrics, tree_points
    from licag3d.train.loop import load_into, load_weights

    run_folder = Path(folder)
    tensors, facts = load_weights(run_folder / "best.safetensors")
    config = json.loads((run_folder / "config.json").read_text("utf-8"))
    shape = config["config"]
    model = UNet(tuple(shape["channels"]), shape["grid"])
    load_into(model, tensors, str(run_folder))
    # What is stored in half precision is what is calibrated.
    model.load_state_dict({name: tensor.half().float() for name, tensor in tensors.items()})
    model.to(memory_format=torch.channels_last_3d).eval()
    found = calibrate(model, validation_cases(1000, count))
    rows = []
    for masks, cameras, true in validation_cases(1000 + count, count):
        tree = tree_of(
            occupancy(model, masks, cameras), found["level"], found["radius_scale"], found["radius_shift_mm"]
        )
        rows.append(centerline_metrics(tree_points(tree), true))
    curve = [json.loads(line) for line in (run_folder / "curves.jsonl").read_text("utf-8").splitlines()]
    card = {
        "model": "DeepCA-style 3D U-Net, two back-projected masks to soft occupancy",
        "source": SOURCE,
        "differs": DIFFERS,
        "grid": shape["grid"],
        "voxel_mm": shape["voxel_mm"],
        "channels": shape["channels"],
        **found,
        "data": {
            "source": "licag3d phantom stream, masks only",
            "seeds": f"training, from {training_seed(config['settings']['seed'] * 10_000_000)}, every patient twice",
            "separation_deg": CASES.separation_deg,
            "offset_mm": CASES.offset_mm,
            "angle_error_deg": CASES.angle_error_deg,
            "disease": shape["disease"],
            "imperfect_masks": IMPERFECT,
        },
        "seed": config["settings"]["seed"],
        "steps": facts["step"],
        "batch": config["settings"]["batch"],
        "curve": [
            {"step": c["step"], "loss": c["loss"]} if "loss" in c else {"step": c["step"], **c["validation"]}
            for c in curve
            if "validation" in c or c["step"] % 100 == 0
        ],
        "scores": {
            "on": f"{len(rows)} validation patients, exact masks, offsets 0 to 8 mm, angle error 1 degree, raw (no "
            f"alignment); level and radii were chosen on {count} others",
            **{name: round(float(np.nanmean([row[name] for row in rows])), 4) for name in rows[0]},
        },
        "limits": "synthetic trees of one generator; two views of one contrast filling, 35 to 95 degrees apart; trees "
        "beyond 105 mm are cut off; vessels below about 0.5 mm radius are thinner than a voxel",
    }
    return weights.save(WEIGHTS, tensors, card, FOLDER)


def main(argv: list[str]) -> int:
    """``train`` or ``export``."""
    from licag3d.train import loop

    parser = Parser(prog="python -m benchmarks.baselines.deepca_style", description="Train the DeepCA-style rival.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    loop.add_loop_flags(
        verbs.add_parser("train", help="train on the phantom stream"),
        steps=1400, batch=1, rate=1e-3, warmup=100, ema=0.99, validate_every=100, save_every=100,
    )  # fmt: skip
    out = verbs.add_parser("export", help="calibrate on validation seeds, write weights and card")
    out.add_argument("--run", required=True, metavar="DIR", help="folder of the training run")
    out.add_argument("--cases", type=int, default=12, help="validation cases to calibrate on; as many more are scored")
    arguments = parser.parse_args(argv)
    if arguments.verb == "train":
        outcome = train(arguments)
        print(f"{outcome.steps} steps, best validation score {outcome.score} at step {outcome.best_step}")
        return 0
    if not 1 <= arguments.cases <= 500:
        raise InputError(f"--cases is {arguments.cases}; give 1 to 500")
    card = export(arguments.run, arguments.cases)
    print(json.dumps({name: card[name] for name in ("level", "f1_2mm_by_level", "scores", "bytes")}, indent=1))
    return 0
