# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train segmentor``: vessels, line integral and devices from phantom frames, or from own masks."""

from __future__ import annotations

from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Validation cases (of the VALIDATION seeds) that choose the checkpoint.
VALIDATION_CASES = 8
BANK_SIZE, BENCH_SCENES, DEVICE_SCENES = 240, 64, 240


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(parser, steps=6000, batch=4, rate=1.5e-3, warmup=100, validate_every=300, save_every=100)
    data = parser.add_argument_group("data: phantom frames, or own images with masks")
    data.add_argument("--pool", metavar="DIR", help="pool of phantom frames (python -m licag3d.data.phantom_frames)")
    data.add_argument("--validation", metavar="DIR", help="pool of validation frames; made beside the run if missing")
    data.add_argument("--images", metavar="DIR", help="own frames (PNG, TIFF, JPEG, DICOM)")
    data.add_argument("--masks", metavar="DIR", help="masks of the same names (vessels bright, or labels 1 to 32 on 0)")
    data.add_argument("--pixel-size", type=float, default=0.25, metavar="MM", help="own frames: mm at the isocentre")
    model = parser.add_argument_group("model")
    model.add_argument("--init", default="random", metavar="random|embedded|FILE", help="weights to begin with")
    model.add_argument(
        "--encoder", choices=("none", "embedded"), default="none", help="feed the pre-trained encoder to the network"
    )
    model.add_argument(
        "--guided", action="store_true", help="a sketch of the expected tree, with the errors of a fit, is a third "
        "input: for the second look at a frame (phantom frames only)"
    )  # fmt: skip
    model.add_argument(
        "--widen", metavar="C,C,C,C,C", help="channels of the levels: the weights of --init go on in a wider network, "
        "which begins with the same answers"
    )  # fmt: skip
    model.add_argument("--size", type=int, default=320, metavar="PX", help="rows and columns of a training crop")
    model.add_argument("--export", metavar="NAME", help="write weights and card of the best checkpoint under this name")


def main(arguments) -> int:
    """Train, and say what came out."""
    from licag3d.train.loop import settings_of

    if bool(arguments.images) != bool(arguments.masks):
        raise InputError("--images and --masks belong together: give both, or --pool for phantom frames")
    if not arguments.images and not arguments.pool:
        raise InputError("give the data: --pool DIR for phantom frames, --images DIR --masks DIR for own ones, or both")
    if arguments.size % 32 or not 64 <= arguments.size <= 1024:
        raise InputError(f"--size is {arguments.size}; give a multiple of 32 from 64 to 1024")
    settings = settings_of(arguments)
    if arguments.images:
        from licag3d.train.own_masks import train_on_masks

        if arguments.guided:
            raise InputError("--guided needs the branches of phantom frames: leave --images out")
        if arguments.widen:
            raise InputError("--widen is for training on phantom frames: leave --images out, or fine-tune its result")
        return train_on_masks(arguments, settings)
    return _train_on_phantoms(arguments, settings)


def _train_on_phantoms(arguments, settings) -> int:
    from licag3d.data.bench_scenes import BenchBank
    from licag3d.data.device_scenes import DeviceBank
    from licag3d.data.distractors import DistractorBank
    from licag3d.data.phantom_frames import PhantomPool, grow_pool
    from licag3d.data.randomise import Randomisation, SampleStream
    from licag3d.models.segmentor import guided_from, widened_from
    from licag3d.phantom.splits import VALIDATION
    from licag3d.train.loop import train

    pool = training_pool(arguments.pool)
    model = first_model(arguments.init, arguments.encoder, settings.seed)
    if arguments.widen:
        model = widened_from(model, _channels(arguments.widen))
    if arguments.guided and not model.config.guided:
        model = guided_from(model)
    checked = Path(arguments.validation or Path(arguments.out) / "validation")
    if not (checked / "index.jsonl").is_file():
        grow_pool(checked, VALIDATION_CASES, split=VALIDATION)
    frames = [frame for frame in PhantomPool(checked) if frame.seed in VALIDATION]
    if not frames:
        raise InputError(f"{checked}: holds no validation frame (seeds {VALIDATION.start} to {VALIDATION.stop - 1})")
    look = Randomisation(size=arguments.size, guided=model.config.guided)
    drawn = max(512, arguments.size)
    bank, bench = DistractorBank(BANK_SIZE, drawn), BenchBank(BENCH_SCENES, drawn)
    implants = DeviceBank(DEVICE_SCENES, drawn)
    stream = SampleStream(pool, bank, settings.seed, look, bench, implants)

    def grow(step: int, state: dict) -> dict:
        """Frames that were rendered meanwhile join at checkpoints, and a resumed run remembers when."""
        if state.get("step") != step:
            state = {"step": step, "frames": pool.refresh()}
        stream.frames = min(state["frames"], pool.refresh())
        return state

    outcome = train(
        model,
        settings,
        arguments.out,
        make_batch=lambda step: stream.batch(step, settings.batch),
        loss=segmentor_loss,
        validate=lambda average: validate(average, frames),
        score="score",
        config=run_config(model, arguments) | {"pool": Path(arguments.pool).name},
        resume=arguments.resume,
        prepare=grow,
    )
    return finish(arguments, settings, model, outcome, {"source": "phantom", "frames": stream.frames})


def training_pool(folder):
    """The pool, which must hold training seeds only.

    Raises:
        InputError: it is empty, or a frame of it is for validation or the benchmark.
    """
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.phantom.splits import TRAINING

    pool = PhantomPool(folder)
    if not len(pool):
        raise InputError(f"{folder}: the pool is empty; render cases first")
    strangers = [entry["seed"] for entry in pool.entries if entry["seed"] not in TRAINING]
    if strangers:
        raise InputError(f"{folder}: seed {strangers[0]} is not for training; make the pool anew")
    return pool


def first_model(init: str, encoder: str, seed: int):
    """A new segmentor, or one that begins from other weights.

    Raises:
        InputError: weights that are missing or of another architecture.
    """
    import torch

    from licag3d.models.segmentor import SegmentorConfig, build, load_segmentor

    torch.manual_seed(seed)
    if init == "random":
        context = 0
        if encoder == "embedded":
            from licag3d.models.segmentor_context import encoder_width

            context = encoder_width()
        return build(SegmentorConfig(context=context))
    if encoder != "none":
        raise InputError("--encoder goes with --init random: other weights bring their own architecture")
    import copy

    return copy.deepcopy(load_segmentor("segmentor" if init == "embedded" else _weights_file(init))).train()


def _channels(text: str) -> tuple[int, ...]:
    try:
        channels = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--widen {text}: give whole numbers with commas, such as 48,96,160,224,256") from None
    if not all(8 <= n <= 2048 for n in channels):
        raise InputError(f"--widen {text}: each level has 8 to 2048 channels")
    return channels


def _weights_file(path: str) -> str:
    if not path.endswith(".safetensors") or not Path(path).is_file():
        raise InputError(f"--init {path}: give random, embedded, or a .safetensors file of a training run")
    return path


def run_config(model, arguments) -> dict:
    """What makes a run itself, for ``config.json`` and the weights."""
    from licag3d.models.segmentor import config_facts, count_parameters

    return {
        "model": "segmentor",
        "config": config_facts(model.config),
        "parameters": count_parameters(model),
        "init": Path(arguments.init).name,
        "size": arguments.size,
    }


def segmentor_loss(model, batch: dict, step: int):
    """Cross entropy, Dice, recall of centrelines and (on a quarter of the batch, for its price) centreline Dice of the
    vessels; line integral; cross entropy and Dice of the devices.
    """
    import torch
    import torch.nn.functional as F

    from licag3d.losses.vessel import (
        line_integral_loss,
        narrow_gaps,
        skeleton_recall_loss,
        soft_cldice_loss,
        soft_dice_loss,
    )

    x = batch["x"].to(memory_format=torch.channels_last)
    out = model(x, batch.get("grey")) if model.context is not None else model(x)
    vessel, p, spread, device = (out[:, k : k + 1] for k in range(4))
    with torch.autocast(out.device.type, enabled=False):
        truth, weight = batch["vessel"], batch["weight"]
        chance = vessel.sigmoid()
        # A catheter is the one thing that looks like a vessel in every frame: being wrong there costs more, and so does
        # a gap of a vessel that it crosses.
        # Own masks say nothing of line integrals and devices: ``known`` is zero there.
        known = batch["known"]
        hard = weight * (1 + batch["device"] * (3 - truth) + 2 * narrow_gaps(truth))
        entropy = F.binary_cross_entropy_with_logits(vessel, truth, hard)
        dice = soft_dice_loss(chance, truth, weight)
        few = max(1, len(x) // 4)
        line = soft_cldice_loss(chance[:few], truth[:few], 4, weight[:few])
        reached = skeleton_recall_loss(chance, truth, weight)
        integral = line_integral_loss(p, spread, batch["p"], truth * weight * known)
        # Beyond the vessels p is zero; near them it may fall off softly.
        beyond = (p * (1 - F.max_pool2d(truth, 5, 1, 2)) * known).mean()
        other = F.binary_cross_entropy_with_logits(device, batch["device"], known.expand_as(device).contiguous())
        overlap = soft_dice_loss(device.sigmoid(), batch["device"], known.expand_as(device))
        total = 2 * entropy + dice + 0.5 * line + 0.4 * reached + 0.3 * integral + beyond + other + 0.25 * overlap
        parts = {
            "entropy": entropy,
            "dice": dice,
            "cldice": line,
            "missed": reached,
            "line_integral": integral,
            "device": overlap,
        }
        numbers = {key: part.detach() for key, part in parts.items()}
    return total, numbers


def validate(model, frames) -> dict[str, float]:
    """Mean scores of whole phantom frames at probability one half, devices counted as wrong; ``score`` is the mean of
    Dice, clDice and the correlation of p. A guided network is shown a faulty sketch of each, always the same.
    """
    import numpy as np

    from licag3d.data.sketches import faulty_points
    from licag3d.models.segmentor import predict
    from licag3d.train.scores import mask_scores

    rows = []
    for number, frame in enumerate(frames):
        image = frame.image.astype(np.float32) / 255
        expected = None
        if model.config.guided:
            expected = faulty_points(np.random.default_rng([number, 72]), frame.labels, frame.mm_per_pixel)
        found = predict(model, image, _field(image), frame.mm_per_pixel, expected_px=expected)
        # What no truth holds is neither right nor wrong.
        sure = ~frame.faint | frame.mask
        vessel = (found.vessel > 0.5) & sure
        row = mask_scores(vessel, frame.mask)
        inside = frame.mask
        if inside.sum() > 100:
            with np.errstate(invalid="ignore"):
                row["correlation"] = float(np.corrcoef(found.line_integral[inside], frame.line_integral[inside])[0, 1])
        truth = frame.devices & ~frame.mask
        row["device_as_vessel"] = float(vessel[truth].mean()) if truth.any() else np.nan
        row["device_dice"] = mask_scores(found.device > 0.5, frame.devices, lines=False)["dice"]
        rows.append(row)
    keys = {key for row in rows for key in row}
    mean = {}
    for key in keys:
        values = [row[key] for row in rows if np.isfinite(row.get(key, np.nan))]
        mean[key] = float(np.mean(values)) if values else 0.0
    mean["score"] = float(np.mean([np.nan_to_num(mean[k]) for k in ("dice", "cldice", "correlation")]))
    return dict(sorted(mean.items()))


_FIELDS: dict[int, object] = {}


def _field(image):
    """The X-ray field as the reader of frames finds it."""
    import zlib

    from licag3d.io.collimator import valid_area

    key = zlib.crc32(image.tobytes())
    if key not in _FIELDS:
        _FIELDS[key] = valid_area(image)
    return _FIELDS[key]


def finish(arguments, settings, model, outcome, data: dict) -> int:
    """Write ``segmentor.safetensors`` of the best validation with its configuration; export it where asked."""
    from licag3d.train.checkpoints import export_weights, load_into, load_weights, save_weights

    folder = outcome.folder
    tensors, facts = load_weights(folder / "best.safetensors")
    load_into(model, tensors, "best.safetensors")
    facts = facts | run_config(model, arguments) | {"data": data, "seed": settings.seed}
    save_weights(folder / "segmentor.safetensors", model, facts)
    if arguments.export:
        export_weights(folder, "segmentor", arguments.export, folder)
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    best = f", best score {outcome.score:.4f} at step {outcome.best_step}" if outcome.score is not None else ""
    print(f"{ended} after {outcome.steps} steps{best}: {folder / 'segmentor.safetensors'}")
    return 0
