# SPDX-License-Identifier: Apache-2.0
"""What an encoder is worth: vessel segmentation, segment names and stenoses from few labels. See docs/vasomim.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from licag3d.errors import InputError

TASKS = ("segmentation", "labelling", "stenosis")
SCHEMA = "licag3d-downstream-2"
#: Rows of results that are no encoders: what one scores without looking at the picture.
FLOORS = ("chance", "place")


@dataclass(frozen=True)
class TuningSettings:
    """How every encoder is tuned on every task, the same for all.

    Args:
        steps, batch, rate: of AdamW with warm-up over a tenth and a cosine to zero.
        protocol: ``finetune`` (all weights, frames varied) or ``linear`` (linear map of the tokens in closed form, see
            :mod:`licag3d.train.downstream_linear`; steps, batch and rate are not used).
        test_frames, stenosis_cases: frames to judge on, each of another patient of the validation seeds.
    """

    steps: int = 100
    batch: int = 16
    rate: float = 6e-4
    protocol: str = "finetune"
    test_frames: int = 96
    stenosis_cases: int = 120

    def __post_init__(self) -> None:
        if self.steps < 2 or self.batch < 1 or not 0 < self.rate < 1 or self.test_frames < 2 or self.stenosis_cases < 4:
            raise InputError(f"downstream settings out of range: {asdict(self)}; give at least 2 steps, a batch of 1, "
                             f"a rate between 0 and 1, 2 test frames and 4 stenosis cases")  # fmt: skip
        if self.protocol not in ("finetune", "linear"):
            raise InputError(f"protocol {self.protocol!r} is not known; give finetune or linear")


def add_flags(parser) -> None:
    """The flags of ``python -m licag3d.train downstream``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results; finished parts are kept")
    parser.add_argument("--pool", required=True, metavar="DIR", help="pool of phantom frames, where labels come from")
    text = "pool of validation frames to judge on; made beside the results if missing"
    parser.add_argument("--validation", metavar="DIR", help=text)
    text = "encoders to compare, for example mae=run/encoder.safetensors; scratch is always there"
    parser.add_argument("--encoder", nargs="*", default=[], metavar="NAME=FILE", help=text)
    parser.add_argument("--size", default="vit-3m", metavar="NAME", help="size of scratch when no encoder is given")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to try")
    parser.add_argument("--labels", nargs="+", type=int, default=[16, 64, 256], metavar="N", help="labelled frames")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="repetitions, each with other labels")
    parser.add_argument("--protocol", choices=("finetune", "linear"), default="finetune", help="what is trained")
    parser.add_argument("--steps", type=int, default=100, help="steps of each tuning")
    parser.add_argument("--batch", type=int, default=16, help="crops per step")
    parser.add_argument("--rate", type=float, default=6e-4, help="peak learning rate")
    parser.add_argument("--test-frames", type=int, default=96, metavar="N", help="frames of the other two tests")
    parser.add_argument("--stenosis-cases", type=int, default=120, metavar="N", help="frames of the stenosis test")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch")


def main(arguments) -> int:
    """Tune and score everything that is not in ``results.json`` yet, then write summary and picture."""
    encoders = {}
    for item in arguments.encoder:
        name, _, file = item.partition("=")
        if not name or not file or name in ("scratch", *FLOORS):
            raise InputError(f"--encoder {item!r}: give NAME=FILE, with another name than scratch, chance and place")
        encoders[name] = file
    if not 1 <= arguments.seeds <= 100 or any(n < 1 for n in arguments.labels):
        raise InputError("--seeds takes 1 to 100, --labels positive numbers")
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    settings = TuningSettings(arguments.steps, arguments.batch, arguments.rate, arguments.protocol,
                              arguments.test_frames, arguments.stenosis_cases)  # fmt: skip
    results = compare(arguments.out, arguments.pool, encoders, settings, tasks=arguments.tasks,
                      labels=arguments.labels, seeds=arguments.seeds, size=arguments.size,
                      validation=arguments.validation)  # fmt: skip
    from licag3d.train.downstream_report import table, write_report

    write_report(Path(arguments.out), results)
    print(table(results))
    return 0


def compare(
    out,
    pool,
    encoders: dict[str, str],
    settings: TuningSettings,
    *,
    tasks: Sequence[str] = TASKS,
    labels: Sequence[int] = (16, 64, 256),
    seeds: int = 3,
    size: str = "vit-3m",
    validation=None,
) -> list[dict]:
    """Tune every encoder (and one from scratch) on every task, number of labels and seed.

    As many frames as the largest number of labels asks for are drawn once; a seed takes its labels from them, nested
    (the 16 are among the 64) and the same for all encoders, so that differences are paired. Results are stored after
    every tuning; a second call does what is missing.

    Returns:
        One dict per tuning: ``task``, ``encoder`` (or one of :data:`FLOORS`), ``labels``, ``seed``, ``scores`` (per
        test frame, see :mod:`licag3d.train.downstream_report`).

    Raises:
        InputError: encoders of different patch or image size, results of other settings in ``out``, too small a pool.
    """
    import torch
    from tqdm import tqdm

    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.io.atomic import check_output_folder, write_text
    from licag3d.models.vasomim import load_encoder, random_encoder
    from licag3d.models.vit import config_of
    from licag3d.train import downstream_heads as heads

    out = check_output_folder(out)
    opened = PhantomPool(pool)
    if max(labels) > len(opened):
        raise InputError(
            f"{max(labels)} labels asked for, {len(opened)} frames are there: render more or ask for fewer"
        )
    loaded = {name: load_encoder(file) for name, file in encoders.items()}
    configs = {(e.config.image_px, e.config.patch_px) for e in loaded.values()}
    if len(configs) > 1:
        raise InputError(f"the encoders have different image and patch sizes {sorted(configs)}; compare equal ones")
    config = next(iter(loaded.values())).config if loaded else config_of(size)
    out.mkdir(parents=True, exist_ok=True)
    stored = _stored(out / "results.json", settings)
    done = {(r["task"], r["encoder"], r["labels"], r["seed"]) for r in stored["results"]}

    def keep(task: str, name: str, count: int, seed: int, patients, scores: dict) -> None:
        stored["results"].append({"task": task, "encoder": name, "labels": count, "seed": seed,
                                  "hash": loaded[name].hash if name in loaded else None,
                                  "patients": [int(p) for p in patients], "scores": scores})  # fmt: skip
        write_text(out / "results.json", json.dumps(stored))

    names = ("chance", "scratch", *loaded)
    jobs = [job for job in product(tasks, names, range(seeds), labels) if (job[0], job[1], job[3], job[2]) not in done]
    sets, shown = {}, (None, None)
    for task, name, seed, count in tqdm(jobs, disable=None, unit="tuning"):
        if task not in sets:
            sets = {task: _frames_of(task, out, opened, validation, settings, max(labels), config)}
        training, test = sets[task]
        chosen = _choice(len(training), count, seed)
        if name == "chance":
            found = heads.chance_scores(task, training.take(chosen), test, config.patch_px, seed)
            for floor, scores in found.items():
                keep(task, floor, count, seed, test.patients, scores)
            continue
        linear = settings.protocol == "linear"
        encoder = random_encoder(config, seed=1000 if linear else 1000 + seed)
        if name != "scratch":
            encoder.load_state_dict(loaded[name].encoder.state_dict())
        if linear:
            if shown[0] != (task, name):
                shown = (task, name), [heads.with_tokens(part, encoder.eval()) for part in (training, test)]
            training, test = shown[1]
        torch.manual_seed(seed)
        scores = tune_and_score(task, encoder, training.take(chosen), test, settings, seed)
        keep(task, name, count, seed, test.patients, scores)
    return stored["results"]


def _stored(file: Path, settings: TuningSettings) -> dict:
    """Results of an earlier call with the same settings, or none yet."""
    stored = {"schema": SCHEMA, "settings": asdict(settings), "results": []}
    if not file.exists():
        return stored
    try:
        found = json.loads(file.read_text("utf-8"))
        same = found["schema"] == SCHEMA and found["settings"] == stored["settings"]
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{file} holds results of other settings; give another --out or remove it")
    return found


def _frames_of(task: str, out: Path, pool, validation, settings: TuningSettings, count: int, config):
    """``count`` labelled frames to train on and those to judge on."""
    from licag3d.data.phantom_frames import PhantomPool, grow_pool
    from licag3d.phantom.splits import TRAINING, VALIDATION
    from licag3d.train import downstream_data as data
    from licag3d.train.downstream_heads import FRAME_TILES

    side = FRAME_TILES[task] * config.image_px
    if task == "stenosis":
        first = TRAINING[data.STENOSIS_TRAINING_FIRST], VALIDATION[data.STENOSIS_TEST_FIRST]
        kept = out / "stenosis_training.npz", out / "stenosis_test.npz"
        return (data.stenosis_frames(first[0], count + count % 2, side, kept[0]),
                data.stenosis_frames(first[1], settings.stenosis_cases, side, kept[1]))  # fmt: skip
    strangers = [entry["seed"] for entry in pool.entries if entry["seed"] not in TRAINING]
    if strangers:
        raise InputError(f"{pool.folder}: seed {strangers[0]} is not for training; make the pool anew")
    folder = Path(validation or out / "validation")
    if not validation:  # our own: finished where an earlier call was stopped
        grow_pool(folder, settings.test_frames, views=1, split=VALIDATION)
    judged = PhantomPool(folder)
    numbers = [n for n, entry in enumerate(judged.entries) if entry["seed"] in VALIDATION][: settings.test_frames]
    if len(numbers) < settings.test_frames:
        raise InputError(f"{folder}: {len(numbers)} validation frames are there, {settings.test_frames} are asked for; "
                         f"give fewer --test-frames or another --validation")  # fmt: skip
    chosen = np.random.default_rng(71).permutation(len(pool))[:count]
    return data.from_pool(pool, chosen, side), data.from_pool(judged, numbers, side)


def _choice(frames: int, count: int, seed: int) -> np.ndarray:
    """Numbers of the labelled frames of a seed. Neighbours stay together: stenosis frames are pairs of a diseased and a
    healthy one."""
    pairs = np.random.default_rng([seed, 72]).permutation((frames + 1) // 2)
    order = np.stack([2 * pairs, 2 * pairs + 1], 1).ravel()
    return order[order < frames][:count]


def tune_and_score(task: str, encoder, training, test, settings: TuningSettings, seed: int) -> dict[str, list]:
    """Tune an encoder with a fresh head on ``training``; scores of every ``test`` frame by name."""
    from licag3d.train import downstream_heads as heads

    make, loss, score = heads.RECIPES[task]
    if settings.protocol == "linear":
        from licag3d.train.downstream_linear import LinearHead, probe

        outputs = {"segmentation": encoder.config.patch_px**2, "labelling": len(heads.SEGMENTS), "stenosis": 1}[task]
        model = heads.TokenModel(encoder, LinearHead(outputs, whole=task == "labelling"))
        model.settle(training)
        return score(probe(task, model, training), test)
    model = heads.TokenModel(encoder, heads.HEADS[task](encoder.config))
    model.settle(training)
    fit(model, lambda rng: make(training, encoder.config, rng, settings.batch), loss, settings, seed)
    return score(model, test)


def fit(model, make_batch: Callable, loss: Callable, settings: TuningSettings, seed: int) -> float:
    """Train in place; returns the last loss. Tunings are seconds long, so they are repeated rather than resumed.

    Raises:
        InputError: the loss is not finite.
    """
    import math

    import torch

    groups = [
        {"params": list(model.head.parameters()), "scale": 2.0},
        {"params": list(model.encoder.parameters()), "scale": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, weight_decay=0.05)
    rng, warmup, last = np.random.default_rng([seed, 73]), max(1, settings.steps // 10), 0.0
    for step in range(settings.steps):
        share = min(1.0, (step + 1) / warmup)
        share *= 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, settings.steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * group["scale"] * share
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(model, make_batch(rng))
        if not torch.isfinite(value):
            raise InputError(f"the loss of a tuning is {float(value)} at step {step + 1}: lower --rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = float(value.detach())
    model.eval()
    return last
