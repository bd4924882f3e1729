# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train encoder``: views to W+ codes, from phantom trees (docs/encoder.md)."""

from __future__ import annotations

import os
from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Rendered patients of the VALIDATION seeds that choose the checkpoint where ``--pairs`` is given.
VALIDATION_PAIRS = 60
#: Weights of losses that have a flag of their own: name, help.
LOSSES = (
    ("vector", "courses, places and radii of the branches against the truth, mm in 3D"),
    ("code", "W+ codes against those of the true tree"),
    ("latent", "pull of the styles' deltas to W"),
    ("tuple", "two views of one patient agree, patients differ"),
    ("place", "centre of the tree in each view"),
    ("label", "artery and co-dominance"),
    ("dense", "which branch a pixel shows"),
    ("projection", "line integral of the written tree, low resolution"),
    ("vessel", "soft clDice of it (sparse)"),
    ("perceptual", "of it, seen by the angiogram encoder (sparse)"),
    ("field", "field of the written tree at points (sparse)"),
)


def add_flags(parser) -> None:
    """The flags."""
    from licag3d.train.encoder_settings import TUPLE_FORMS, EncoderStepSettings

    add_loop_flags(
        parser, steps=60000, batch=12, rate=1e-3, warmup=100, decay=1e-4, ema=0.998, clip=200.0, validate_every=500
    )
    data = parser.add_argument_group("data: phantom trees, grown once and kept; windows of them are drawn anew")
    data.add_argument("--pool", metavar="FILE", help="file of the pool (default: trees.safetensors beside the run)")
    data.add_argument("--trees", type=int, default=8000, metavar="N", help="patients of the pool")
    data.add_argument("--disease", choices=("none", "random"), default="random", help="of the phantom patients")
    data.add_argument("--validation", type=int, default=48, metavar="N", help="validation patients")
    data.add_argument(
        "--pairs", metavar="DIR", help="rendered view pairs (python -m licag3d.data.view_pairs): windows of what the "
        "segmentor answered; DIR/validation, made if missing, chooses the checkpoint"
    )  # fmt: skip
    data.add_argument("--pair-share", type=float, default=0.5, metavar="X", help="share of the batches made of --pairs")
    data.add_argument("--views", type=int, default=2, metavar="N", help="views per patient (every 4th batch one more)")
    data.add_argument("--offset", type=float, default=60.0, metavar="MM", help="largest table offset of a view")
    data.add_argument("--angle-error", type=float, default=1.2, metavar="DEG", help="spread of the reading error")
    data.add_argument("--move", type=float, default=0.5, metavar="X", help="share of patients seen at two phases")
    model = parser.add_argument_group("model")
    model.add_argument("--init", default="random", metavar="random|embedded|FILE", help="weights to begin with")
    model.add_argument(
        "--start", choices=("none", "vasomim"), default="none", help="tokens of the angiogram encoder as one more level"
    )
    model.add_argument(
        "--widths", metavar="N,N,...", help="of the pyramid, from half the window on (with --init random)"
    )
    model.add_argument("--token", type=int, metavar="N", help="width of the tokens (with --init random)")
    model.add_argument(
        "--lifted", type=int, default=0, metavar="N", help="channels of the tri-plane residual; 0 leaves it out"
    )
    model.add_argument("--generator", default="generator", metavar="PATH", help="generator whose codes are written")
    parts = parser.add_argument_group("weights of the losses; 0 leaves one out")
    base = EncoderStepSettings()
    for name, text in LOSSES:
        parts.add_argument(f"--{name}-weight", type=float, default=getattr(base, name), metavar="X", help=text)
    parts.add_argument(
        "--tuple-form",
        choices=TUPLE_FORMS,
        default=base.tuple_form,
        help="contrastive; cosine is the published form, which has no negatives and collapses",
    )
    parser.add_argument("--export", metavar="NAME", help="write weights and card of the best model under this name")


def main(arguments) -> int:
    """Train, and say what came out."""
    from dataclasses import asdict

    import torch

    from licag3d.models.encoder import TreeEncoderConfig, TreeFromViews, config_facts, load_tree_encoder, set_codes
    from licag3d.models.generator import load_generator
    from licag3d.phantom import splits
    from licag3d.train.checkpoints import export_weights, load_weights, save_weights
    from licag3d.train.encoder_check import EncoderChecks
    from licag3d.train.encoder_data import CodeReader, TreePoints, ViewMaker
    from licag3d.train.encoder_step import EncoderTrainee, encoder_loss
    from licag3d.train.generator_data import pool_of
    from licag3d.train.generator_vectors import VectorSet
    from licag3d.train.loop import settings_of, train

    settings = settings_of(arguments)
    step, sizes = step_of_flags(arguments), sizes_of_flags(arguments)
    torch.manual_seed(settings.seed)
    generator, _ = load_generator(arguments.generator)
    folder = Path(arguments.out)
    pool_file = Path(arguments.pool) if arguments.pool else folder.parent / "trees.safetensors"
    tables = generator.structure.tables
    reader = CodeReader(generator)

    def maker_of(file: Path, count: int, split, seed: int, **changes) -> ViewMaker:
        pool = pool_of(file, count, split, arguments.disease)
        return ViewMaker(
            TreePoints(pool, tables), VectorSet(pool, tables), reader, seed, views=arguments.views,
            offset_mm=arguments.offset, angle_error_deg=arguments.angle_error, move=arguments.move, **changes,
        )  # fmt: skip

    pairs, held_out_pairs = _pairs(arguments, tables) if arguments.pairs else (None, None)
    patients = max(1, settings.batch // 2)
    maker = maker_of(
        pool_file, arguments.trees, splits.TRAINING, settings.seed, patients=patients, pairs=pairs,
        pair_share=arguments.pair_share,
    )  # fmt: skip
    name = f"validation-{arguments.disease}-{arguments.validation}.safetensors"
    held_out = maker_of(pool_file.parent / name, arguments.validation, splits.VALIDATION, 1)
    if arguments.init == "random":
        planes = generator.config.plane_channels
        net = TreeFromViews(TreeEncoderConfig(start=arguments.start, lifted=arguments.lifted, planes=planes, **sizes))
        set_codes(net, generator, reader, maker.data)
    else:
        net = load_tree_encoder("tree_encoder" if arguments.init == "embedded" else arguments.init).requires_grad_(True)
        net.attach(generator)  # that of --generator, on the device of the training
        if net.config.start != arguments.start:
            raise InputError(f"--init {arguments.init}: those weights have --start {net.config.start}")
    model = EncoderTrainee(net, generator.to(settings.device), step)
    checks = EncoderChecks(folder, held_out, arguments.validation // 2, held_out_pairs)
    config = {"model": "tree_encoder", "config": config_facts(net.config), "step": asdict(step),
              "pool": pool_file.name, "trees": arguments.trees, "disease": arguments.disease, "views": arguments.views,
              "offset_mm": arguments.offset, "angle_error_deg": arguments.angle_error, "move": arguments.move,
              "init": Path(arguments.init).name}  # fmt: skip
    if pairs is not None:
        config |= {"pairs": len(pairs.pairs), "pair_share": arguments.pair_share}
    outcome = train(
        model, settings, folder, make_batch=maker, loss=encoder_loss, validate=checks, config=config,
        resume=arguments.resume,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")):
        return 0  # the first process of torchrun has the files
    tensors, facts = load_weights(folder / "best.safetensors")
    net.load_state_dict({key.removeprefix("encoder."): value for key, value in tensors.items()})
    net.eval()
    slopes = calibrate(net, held_out, held_out_pairs)
    save_weights(folder / "tree_encoder.safetensors", net, {**facts, "steps": outcome.steps, "same_patient": slopes})
    if arguments.export:
        export_weights(folder, "tree_encoder", arguments.export, folder)
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    print(
        f"{ended} after {outcome.steps} steps, best score {outcome.score:.4f} at step {outcome.best_step}: "
        f"{folder / 'tree_encoder.safetensors'}"
    )
    return 0


def step_of_flags(arguments):
    """Settings of the losses.

    Raises:
        InputError: a weight out of range, or data flags that make no sense.
    """
    from licag3d.train.encoder_settings import EncoderStepSettings

    for name, low, high in (
        ("views", 2, 7),
        ("offset", 0, 100),
        ("angle_error", 0, 10),
        ("move", 0, 1),
        ("pair_share", 0, 1),
        ("validation", 8, 5000),
        *((f"{name}_weight", 0, 100) for name, _ in LOSSES),
    ):
        value = getattr(arguments, name)
        if not low <= value <= high:  # also catches NaN
            raise InputError(f"--{name.replace('_', '-')} is {value}; give {low} to {high}")
    weights = {name: getattr(arguments, f"{name}_weight") for name, _ in LOSSES}
    return EncoderStepSettings(**weights, tuple_form=arguments.tuple_form)


def sizes_of_flags(arguments) -> dict:
    """Sizes of the network that are not the default.

    Raises:
        InputError: no whole numbers, or trained weights to begin with, which have their own.
    """
    given = {name: value for name in ("widths", "token") if (value := getattr(arguments, name)) is not None}
    if given and arguments.init != "random":
        raise InputError(f"--{next(iter(given))} goes with --init random; the weights of --init have their own sizes")
    if "widths" in given:
        try:
            given["widths"] = tuple(int(width) for width in given["widths"].split(","))
        except ValueError:
            raise InputError(f"--widths is '{given['widths']}'; give whole numbers, as 16,32,56,96,128") from None
    return given


def _pairs(arguments, tables):
    """Rendered patients of training and of validation; the second are made where missing.

    Raises:
        InputError: no pool, or one that cannot be used.
    """
    from licag3d.data.view_pairs import grow_pairs
    from licag3d.phantom import splits
    from licag3d.train.encoder_pairs import PairWindows

    kept = Path(arguments.pairs)
    pairs = PairWindows.read(kept, tables, splits.TRAINING, angle_error_deg=arguments.angle_error)
    grow_pairs(kept / "validation", VALIDATION_PAIRS, split=splits.VALIDATION)
    return pairs, PairWindows.read(kept / "validation", tables, splits.VALIDATION, clean=True)


def calibrate(net, maker, pairs=None, *, rounds: int = 4) -> list[list[float]]:
    """Fit the log odds of "one patient" over the cosine of two views' codes, per artery, on validation patients: of
    ``pairs`` where there are any, else drawn by ``maker``.

    Pairs of one patient and pairs of two patients with the same artery weigh the same. Returns slopes and intercepts.
    """
    from dataclasses import replace

    import numpy as np
    import torch

    from licag3d.models.branch_table import ARTERIES
    from licag3d.models.encode_views import frozen_tokens

    fitted = []
    for index, artery in enumerate(ARTERIES):
        rows = list(range(len(maker.data.number[artery]))) if pairs is None else pairs.of(index)
        same, other = [], []
        for turn in range(rounds):
            codes = []
            for start in range(0, len(rows), 8):
                rng = np.random.default_rng([11, turn, index, start])
                part = rows[start : start + 8]
                if pairs is None:
                    batch = maker.batch(rng, [(artery, k) for k in part], 2)
                else:
                    batch = replace(pairs, clean=False).batch(rng, maker.reader, part)
                with torch.no_grad():
                    device = next(net.parameters()).device
                    windows = batch["windows"].to(device)
                    seen = net.see(windows, batch["cameras"].to(device), frozen_tokens(net, windows))
                    arteries = batch["artery"].to(device)
                    codes.append([net.read(seen.only([k]), arteries, correct=False).tuple_code for k in range(2)])
            first, second = (torch.cat([pair[k] for pair in codes]) for k in range(2))
            alike = first @ second.T
            mine = torch.eye(len(first), dtype=torch.bool, device=alike.device)
            same.append(alike[mine])
            other.append(alike[~mine])
        fitted.append(_logistic(torch.cat(same).double().cpu(), torch.cat(other).double().cpu()))
    with torch.no_grad():
        net.same_patient.copy_(torch.tensor(fitted))
    return fitted


def _logistic(same, other) -> list[float]:
    """Slope and intercept by Newton's method, with a weak pull to a slope of 5 where the two do not overlap."""
    import torch

    x = torch.cat([same, other])
    y = torch.cat([torch.ones_like(same), torch.zeros_like(other)])
    weight = torch.cat([torch.full_like(same, 0.5 / len(same)), torch.full_like(other, 0.5 / len(other))])
    at = torch.tensor([5.0, -2.5], dtype=torch.float64)
    design = torch.stack([x, torch.ones_like(x)], 1)
    prior, pull = at.clone(), 1e-4
    for _ in range(50):
        p = torch.sigmoid(design @ at)
        slope = design.T @ (weight * (p - y)) + pull * (at - prior)
        bend = design.T @ (design * (weight * p * (1 - p))[:, None]) + pull * torch.eye(2, dtype=torch.float64)
        move = torch.linalg.solve(bend, slope)
        at = at - move * min(1.0, 5.0 / float(move.norm()))
    return [float(value) for value in at]
