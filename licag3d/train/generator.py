# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train generator``: the tri-plane generator, from phantom trees (docs/generator.md)."""

from __future__ import annotations

import os
from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Validation patients (of the VALIDATION seeds).
VALIDATION_TREES = 48
#: Steps that a trained generator stands still while encoder, critic and discriminator begin.
GENERATOR_WAITS = 300


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(
        parser, steps=20000, batch=64, rate=1e-3, warmup=100, decay=1e-4, ema=0.998, clip=200.0, validate_every=1000
    )
    data = parser.add_argument_group("data: phantom trees, grown once and kept")
    data.add_argument("--pool", metavar="FILE", help="file of the pool (default: trees.safetensors beside the run)")
    data.add_argument("--trees", type=int, default=8000, metavar="N", help="patients of the pool")
    data.add_argument("--disease", choices=("none", "random"), default="random", help="of the phantom patients")
    data.add_argument("--images", metavar="DIR", help="own angiograms with cameras, in folders rca and lca")
    model = parser.add_argument_group("model")
    model.add_argument("--init", default="random", metavar="random|embedded|FILE", help="weights to begin with")
    model.add_argument("--fields", choices=("vessel", "vessel+background"), default="vessel", help="what is rendered")
    model.add_argument("--box-size", type=float, default=120.0, metavar="MM", help="edge of the field")
    model.add_argument("--plane-resolution", type=int, default=256, metavar="PX", help="of the tri-planes")
    model.add_argument(
        "--widths", default="48,48,48,32,32,16", metavar="N,N,...", help="of the synthesis, from 4 px on"
    )
    model.add_argument("--pose", action="store_true", help="let the mapping see the cameras in training")
    parts = parser.add_argument_group("parts of the loss; 0 leaves one out")
    parts.add_argument("--field-weight", type=float, default=1.0, metavar="X", help="dice and attenuation at points")
    parts.add_argument("--critic-weight", type=float, default=0.1, metavar="X", help="adversarial, on vectors of trees")
    parts.add_argument("--image-weight", type=float, default=0.02, metavar="X", help="adversarial, on projections")
    parts.add_argument("--kl", type=float, default=1e-3, metavar="X", help="pull of the codes to a normal density")
    parts.add_argument("--gamma", type=float, default=5.0, metavar="X", help="R1 on projections")
    parts.add_argument("--fields-per-step", type=int, default=1, metavar="N", help="patients per artery with points")
    parts.add_argument("--images-per-step", type=int, default=2, metavar="N", help="patients per artery with images")
    parts.add_argument("--field-every", type=int, default=1, metavar="N", help="steps between those with points")
    parts.add_argument("--image-every", type=int, default=1, metavar="N", help="steps between those with images")
    parts.add_argument("--image-size", type=int, default=64, metavar="PX", help="of the projections: 32, 64, ...")
    parts.add_argument("--progressive", type=int, default=0, metavar="N", help="steps at half of that size")
    parser.add_argument("--export", metavar="NAME", help="write weights and card of the averaged model under this name")


def main(arguments) -> int:
    """Train, and say what came out."""
    from dataclasses import asdict

    from licag3d.losses.adversarial import lazy_factor
    from licag3d.models.generator_config import config_facts
    from licag3d.phantom import splits
    from licag3d.train import generator_step as steps
    from licag3d.train.checkpoints import export_weights
    from licag3d.train.generator_batch import BatchMaker
    from licag3d.train.generator_check import Checks
    from licag3d.train.generator_data import pool_of
    from licag3d.train.generator_prior import fit_prior
    from licag3d.train.generator_vectors import VectorSet, set_statistics, start_from_components
    from licag3d.train.loop import settings_of, train

    settings = settings_of(arguments)
    config, step = config_of_flags(arguments), step_of_flags(arguments)
    import torch

    torch.manual_seed(settings.seed)
    model = steps.Trainee(config, step)
    folder = Path(arguments.out)
    pool_file = Path(arguments.pool) if arguments.pool else folder.parent / "trees.safetensors"
    pool = pool_of(pool_file, arguments.trees, splits.TRAINING, arguments.disease)
    data = VectorSet(pool, model.generator.structure.tables)
    angiograms = None
    if arguments.images:
        from licag3d.train.generator_images import read_real_images

        angiograms = read_real_images(arguments.images, step.image_size)
    maker = BatchMaker(
        pool,
        data,
        settings.seed,
        config.box_size_mm,
        vectors=settings.batch,
        fields=arguments.fields_per_step,
        images=arguments.images_per_step,
        size=step.image_size,
        views=step.views,
        angiograms=angiograms,
    )
    if arguments.init == "random":
        set_statistics(model.generator.structure, data, maker.shift_mm)
        start_from_components(model.generator, model.encoder, data, maker.shift_mm)
        fit_prior(model.generator, model.encoder, data, maker.shift_mm)
    else:
        begin_with(model, arguments.init)
    batches_per_step = settings.accumulate * int(os.environ.get("WORLD_SIZE", "1"))

    def make_batch(number: int) -> dict:
        at = number // batches_per_step
        size = step.image_size // 2 if at < step.progressive else None
        return maker(number, fields=step.has_fields(at), images=step.has_images(at), size=size)

    checks = Checks(folder, arguments.disease, VALIDATION_TREES, maker, pool_file.parent)
    outcome = train(
        model,
        settings,
        folder,
        make_batch=make_batch,
        loss=steps.step_loss,
        # The lazy regulariser steps once in a while with the strength of all: the optimiser's memory shortens with it.
        betas=tuple(beta ** lazy_factor(step.lazy) for beta in (0.9, 0.99)),
        validate=checks,
        score="score",
        config={"model": "generator", "config": config_facts(config), "step": asdict(step), "pool": pool_file.name,
                "trees": arguments.trees, "disease": arguments.disease, "init": Path(arguments.init).name,
                "images": bool(arguments.images)},
        resume=arguments.resume,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")):
        return 0  # the first process of torchrun has the files
    file = finish(folder, model, data, checks)
    if arguments.export:
        export_weights(folder, "generator", arguments.export, folder)
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    print(f"{ended} after {outcome.steps} steps, best score {outcome.score:.4f} at step {outcome.best_step}: {file}")
    return 0


def config_of_flags(arguments):
    """Architecture from the flags; from the weights where a training begins with some.

    Raises:
        InputError: a value out of range.
    """
    from licag3d.models.generator_config import GeneratorConfig, config_of
    from licag3d.train.checkpoints import load_weights
    from licag3d.train.generator_prior import KINDS
    from licag3d.weights import load

    if arguments.init != "random":
        _, card = load("generator") if arguments.init == "embedded" else load_weights(arguments.init)
        return config_of(card, arguments.init)
    try:
        widths = tuple(int(width) for width in arguments.widths.split(","))
    except ValueError:
        raise InputError(f"--widths is '{arguments.widths}'; give whole numbers, as 48,48,32") from None
    return GeneratorConfig(
        z_dim=256,
        w_dim=256,
        plane_resolution=arguments.plane_resolution,
        box_size_mm=arguments.box_size,
        widths=widths,
        fields=arguments.fields,
        pose_dim=12 if arguments.pose else 0,
        own_codes=True,
        kinds=KINDS,
        own_deltas=True,
    )


def step_of_flags(arguments):
    """Weights of the parts from the flags.

    Raises:
        InputError: a value out of range.
    """
    from licag3d.train.generator_step import StepSettings

    for name, low, high in (
        ("trees", 2, 10**6),
        ("field_weight", 0, 100),
        ("critic_weight", 0, 100),
        ("image_weight", 0, 100),
        ("kl", 0, 10),
        ("gamma", 0, 1000),
        ("fields_per_step", 0, 64),
        ("images_per_step", 0, 64),
        ("field_every", 1, 10**6),
        ("image_every", 1, 10**6),
        ("progressive", 0, 10**9),
    ):
        value = getattr(arguments, name)
        if not low <= value <= high:  # also catches NaN
            raise InputError(f"--{name.replace('_', '-')} is {value}; give {low} to {high}")
    if arguments.image_size not in (32, 64, 128, 256, 512):
        raise InputError(f"--image-size is {arguments.image_size}; give 32, 64, 128, 256 or 512")
    if max(arguments.fields_per_step, arguments.images_per_step) > arguments.batch:
        raise InputError(f"--fields-per-step and --images-per-step are at most --batch, {arguments.batch}")
    return StepSettings(
        kl=arguments.kl,
        field=arguments.field_weight if arguments.fields_per_step else 0.0,
        critic=arguments.critic_weight,
        image=arguments.image_weight if arguments.images_per_step else 0.0,
        gamma_image=arguments.gamma,
        image_size=arguments.image_size,
        field_every=arguments.field_every,
        image_every=arguments.image_every,
        progressive=arguments.progressive,
        views=1 if arguments.images else 2,
        generator_start=0 if arguments.init == "random" else GENERATOR_WAITS,
    )


def begin_with(model, init: str) -> None:
    """Put weights of a generator, or all of another run's, into the model.

    Raises:
        InputError: missing, or of another architecture.
    """
    from licag3d.models.generator import load_generator
    from licag3d.train.checkpoints import load_into, load_weights
    from licag3d.train.generator_vectors import encoder_from_heads

    if init == "embedded":
        model.generator.load_state_dict(load_generator("generator")[0].state_dict())
        encoder_from_heads(model.generator, model.encoder)
        return
    tensors, _ = load_weights(init)
    if any(key.startswith("generator.") for key in tensors):
        load_into(model, tensors, init)
    else:
        load_into(model.generator, tensors, init)
        encoder_from_heads(model.generator, model.encoder)


def finish(folder: Path, model, data, checks) -> Path:
    """Write ``generator.safetensors``: the averaged weights of the last checkpoint with their configuration.

    Random codes are fitted anew to those of the training patients, and a last validation goes into the card.

    Args:
        model: a trainee of the run's architecture; it is filled. data: ``VectorSet`` of training. checks: ``Checks``.
    """
    import json

    from licag3d.models.generator import INSIDE_MU
    from licag3d.train.checkpoints import load_into, load_weights, save_weights
    from licag3d.train.generator_prior import fit_prior

    folder = Path(folder)
    tensors, facts = load_weights(folder / "checkpoint.safetensors")
    start = "average."
    load_into(model, {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}, "average")
    model.eval().cpu()
    if model.generator.config.own_codes:
        fit_prior(model.generator, model.encoder, data, checks.maker.shift_mm)
    scores = {key: round(float(value), 6) for key, value in checks(model).items()}
    run = json.loads((folder / "config.json").read_text("utf-8"))
    card = {**run["config"], "steps": facts["step"], "seed": run["settings"]["seed"], "scores": scores}
    file = folder / "generator.safetensors"
    save_weights(file, model.generator, {**card, "lumen_mu_per_mm": INSIDE_MU})
    return file
