# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train mask-first``: vessels and their darkening from contrast-free frames of the phantom.

The truth is exact (mask and attenuation of the very moment), and the frozen angiogram segmentor is a second teacher: it
looks at the angiogram of the same moment, and its opinion, soft where vessels are hard to see even with contrast, is
distilled into the network that sees none of it.
"""

from __future__ import annotations

from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Cases (of the VALIDATION seeds) that choose the checkpoint, one view each.
VALIDATION_CASES = 8


def add_flags(parser) -> None:
    """The flags."""
    from licag3d.train.casgan import add_bank_flag

    add_loop_flags(parser, steps=6000, batch=4, rate=1e-3, warmup=100, validate_every=500, save_every=250, decay=1e-3)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--pool", required=True, metavar="DIR", help="pool of phantom frames or pairs (licag3d.data.contrast_pairs)"
    )
    data.add_argument("--validation", metavar="DIR", help="pool of validation pairs; made beside the run if missing")
    data.add_argument("--kappa-max", type=float, default=0.3, metavar="K", help="largest residual contrast, 0 to 1")
    data.add_argument(
        "--swapped", type=float, default=0.4, metavar="P", help="share of samples with vessels of another patient, 0 "
        "to 1: faint contrast must then be found, not known by heart"
    )  # fmt: skip
    data.add_argument("--size", type=int, default=224, metavar="PX", help="rows and columns of a training crop")
    add_bank_flag(data)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--init", default="segmentor", metavar="random|segmentor|FILE", help="weights to begin with: the embedded "
        "segmentor, or a file of a training of it or of this model"
    )  # fmt: skip
    model.add_argument("--distil", type=float, default=0.3, metavar="W", help="weight of the segmentor as a teacher")
    model.add_argument("--export", metavar="NAME", help="write weights and card under this name into OUT/export")


def main(arguments) -> int:
    """Train, and say what came out."""
    from licag3d.data.contrast_bank import SampleBank
    from licag3d.data.contrast_pairs import KAPPAS, PairPool, grow_pairs
    from licag3d.data.contrast_samples import PairSettings, PairStream
    from licag3d.models.mask_first import WORKING_MM
    from licag3d.models.segmentor import config_facts, count_parameters, load_segmentor
    from licag3d.phantom.splits import VALIDATION
    from licag3d.train.loop import settings_of, train

    if arguments.size % 32 or not 64 <= arguments.size <= 1024:
        raise InputError(f"--size is {arguments.size}; give a multiple of 32 from 64 to 1024")
    if not 0 < arguments.kappa_max <= 1:
        raise InputError(f"--kappa-max is {arguments.kappa_max}; give more than 0, up to 1")
    if not 0 <= arguments.swapped <= 1:
        raise InputError(f"--swapped is {arguments.swapped}; give 0 to 1")
    if not 0 <= arguments.distil <= 100:
        raise InputError(f"--distil is {arguments.distil}; give 0 (no teacher) to 100")
    settings = settings_of(arguments)
    pool = training_pairs(arguments.pool)
    model = first_model(arguments.init, settings.seed)
    teacher = load_segmentor("segmentor", settings.device) if arguments.distil else None
    checked = Path(arguments.validation or Path(arguments.out) / "validation")
    if not (checked / "index.jsonl").is_file():
        grow_pairs(checked, VALIDATION_CASES, views=1, split=VALIDATION, kappas=KAPPAS)
    pairs = validation_pairs(PairPool(checked))
    look = PairSettings(
        arguments.size, WORKING_MM, (0.0, arguments.kappa_max), noisy=False, swapped=arguments.swapped
    )  # fmt: skip
    stream = PairStream(pool, 0 if arguments.bank else settings.seed, look)
    if arguments.bank:
        stream = SampleBank.of(stream, arguments.bank, arguments.bank_file, seed=settings.seed)
    config = {
        "model": "mask-first",
        "config": config_facts(model.config),
        "parameters": count_parameters(model),
        "init": Path(arguments.init).name,
        "size": arguments.size,
        "kappa_max": arguments.kappa_max,
        "distil": arguments.distil,
        "swapped": arguments.swapped,
        "working_mm": list(WORKING_MM),
        "pool": Path(arguments.pool).name,
        "frames": len(pool),
        "bank": arguments.bank,
    }
    outcome = train(
        model,
        settings,
        arguments.out,
        make_batch=lambda step: stream.batch(step, settings.batch),
        loss=lambda net, batch, step: mask_first_loss(net, batch, teacher, arguments.distil),
        validate=lambda average: validate(average, pairs),
        config=config,
        resume=arguments.resume,
    )
    return _finish(arguments, settings, outcome, config)


def training_pairs(folder):
    """A pool of pairs, or of plain frames (all pairs are then made anew and still), of training seeds only.

    Raises:
        InputError: it is empty, or a frame of it is for validation or the benchmark.
    """
    from licag3d.data.contrast_pairs import PairPool
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.train.segmentor import training_pool

    pool: PhantomPool = training_pool(folder)
    return PairPool(folder) if "kappas" in pool.entries[0] else pool


def validation_pairs(pool) -> list:
    """The pairs of validation seeds of a pool.

    Raises:
        InputError: there is none.
    """
    from licag3d.phantom.splits import VALIDATION

    pairs = [pool.pair(number) for number, entry in enumerate(pool.entries) if entry["seed"] in VALIDATION]
    if not pairs:
        raise InputError(
            f"{pool.folder}: holds no validation pair (seeds {VALIDATION.start} to {VALIDATION.stop - 1}); make some "
            "with python -m licag3d.data.contrast_pairs --split validation"
        )
    return pairs


def first_model(init: str, seed: int):
    """A new network, or one that begins from the segmentor or from weights of an earlier run.

    Raises:
        InputError: weights that are missing or of another architecture.
    """
    import copy

    import torch

    from licag3d.models.mask_first import load_mask_first
    from licag3d.models.segmentor import SegmentorConfig, build, load_segmentor

    torch.manual_seed(seed)
    if init == "random":
        return build(SegmentorConfig())
    if init == "segmentor":
        return copy.deepcopy(load_segmentor("segmentor")).train()
    if not init.endswith(".safetensors") or not Path(init).is_file():
        raise InputError(f"--init {init}: give random, segmentor, or a .safetensors file of an earlier run")
    from licag3d.train.checkpoints import load_weights

    if load_weights(init)[1].get("model") == "segmentor":
        return copy.deepcopy(load_segmentor(init)).train()
    return load_mask_first(init)[0].train()


def mask_first_loss(model, batch: dict, teacher=None, distil: float = 0.0):
    """Cross entropy, Dice and (on a quarter of the batch) centreline Dice of the vessels; Laplace likelihood of the
    darkening inside them; cross entropy of the devices; cross entropy with the teacher's opinion of the angiogram.

    Cross entropy has the largest weight: probabilities must mean what they say, the more so without contrast.
    """
    import torch
    import torch.nn.functional as F

    from licag3d.losses.vessel import line_integral_loss, soft_cldice_loss, soft_dice_loss
    from licag3d.models.segmentor import normalise

    valid = batch["valid"] > 0.5
    out = model(normalise(batch["x"], valid).to(memory_format=torch.channels_last))
    vessel, depth, spread, device = (out[:, k : k + 1] for k in range(4))
    few = max(1, len(vessel) // 4)
    opinion = None
    if teacher is not None and distil:
        with torch.no_grad():
            seen = normalise(batch["clean"][:few], valid[:few]).to(memory_format=torch.channels_last)
            opinion = teacher(seen)[:, :1].float().sigmoid()
    with torch.autocast(out.device.type, enabled=False):
        truth, weight, known = batch["vessel"], batch["weight"], batch["known"]
        chance = vessel.sigmoid()
        # A catheter is what a frame without contrast shows best: to take it for a vessel is the likeliest mistake.
        hard = weight * (1 + 3 * batch["device"] * (1 - truth))
        entropy = F.binary_cross_entropy_with_logits(vessel, truth, hard)
        dice = soft_dice_loss(chance, truth, weight)
        line = soft_cldice_loss(chance[:few], truth[:few], 4, weight[:few])
        inside = F.max_pool2d(truth, 3, 1, 1) * weight * known
        # The scale is asked for in full: it is that of the display, which the network sees.
        depths = line_integral_loss(depth, spread, batch["attenuation"], inside, shape_share=0.0)
        other = F.binary_cross_entropy_with_logits(device, batch["device"], batch["valid"])
        total = 4 * entropy + 0.5 * dice + 0.25 * line + 0.3 * depths + 0.5 * other
        numbers = {"entropy": entropy, "dice": dice, "cldice": line, "depth": depths, "device": other}
        if opinion is not None:
            taught = F.binary_cross_entropy_with_logits(vessel[:few], opinion, weight[:few])
            total = total + distil * taught
            numbers["distilled"] = taught
    return total, {key: value.detach() for key, value in numbers.items()}


def validate(model, pairs) -> dict[str, float]:
    """Scores of whole contrast-free phantom frames by residual contrast; ``score`` is the mean clDice of those with
    any (kappa above 0).
    """
    import numpy as np

    from licag3d.metrics.synthesis import vessel_scores
    from licag3d.models.mask_first import best_threshold, synthesise
    from licag3d.train.segmentor import _field

    found: dict[str, list[float]] = {}
    for pair in pairs:
        truth = pair.before
        for image, kappa in zip(pair.images, pair.kappas, strict=True):
            unit = image.astype(np.float32) / 255
            made = synthesise(model, unit, _field(unit), truth.mm_per_pixel, mirror=False)
            row = vessel_scores(made.vessel > 0.5, truth.mask, truth.mm_per_pixel, ignore=truth.faint)
            guessed = made.vessel > best_threshold(made.vessel)
            row["guess_dice"] = 2 * float((guessed & truth.mask).sum()) / max(1, int(guessed.sum() + truth.mask.sum()))
            row["promised_dice"] = made.expected_dice if np.isfinite(made.expected_dice) else 0.0
            for name, value in row.items():
                found.setdefault(f"{name}_kappa_{kappa:g}", []).append(value)
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    with_contrast = [value for name, value in mean.items() if name.startswith("cldice_") and name != "cldice_kappa_0"]
    mean["score"] = float(np.mean(with_contrast or [mean["cldice_kappa_0"]]))
    return dict(sorted(mean.items()))


def _finish(arguments, settings, outcome, config: dict) -> int:
    """Write ``mask_first.safetensors`` of the best validation with its configuration; export it where asked."""
    from licag3d.models.segmentor import build, config_from
    from licag3d.train.checkpoints import export_weights, load_into, load_weights, save_weights

    folder = outcome.folder
    tensors, facts = load_weights(folder / "best.safetensors")
    model = build(config_from(config["config"], "this run"))
    load_into(model, tensors, "best.safetensors")
    save_weights(folder / "mask_first.safetensors", model, facts | config | {"seed": settings.seed})
    if arguments.export:
        # Into a folder of its own: under the run's own name it would overwrite the weights that a training reads.
        (folder / "export").mkdir(exist_ok=True)
        export_weights(folder, "mask_first", arguments.export, folder / "export")
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    best = f", best clDice {outcome.score:.4f} at step {outcome.best_step}" if outcome.score is not None else ""
    print(f"{ended} after {outcome.steps} steps{best}: {folder / 'mask_first.safetensors'}")
    return 0
