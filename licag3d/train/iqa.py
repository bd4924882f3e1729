# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train iqa``: quality of synthetic angiograms, from computed (or human) scores."""

from __future__ import annotations

from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Scenes of validation patients that choose the checkpoint.
VALIDATION_SCENES = 24


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(parser, steps=2000, batch=16, rate=1e-3, warmup=50, validate_every=200, save_every=200, decay=1e-2)
    data = parser.add_argument_group("data: a pool of phantom frames (computed scores), or a table of human scores")
    data.add_argument("--pool", metavar="DIR", help="training frames (python -m licag3d.data.phantom_frames)")
    data.add_argument("--validation", metavar="DIR", help="frames of validation patients; rendered if missing")
    data.add_argument("--scenes", type=int, default=640, metavar="N", help="scenes, eight synthetic frames of each")
    data.add_argument(
        "--samples", metavar="DIR", help="where degraded frames are kept; beside the run if not given, reused if there"
    )
    data.add_argument(
        "--human", metavar="CSV", help="columns synthetic, frame, reference (files), patient, rater, morphology, "
        "branches, overall (0 to 100); reference may be empty"
    )  # fmt: skip
    model = parser.add_argument_group("model")
    model.add_argument(
        "--routing", choices=("must", "plain", "none"), default="must", help="three branches, one transformer "
        "for all scores, or no tokens: plain comparisons of the frames alone"
    )  # fmt: skip
    model.add_argument("--init", default="random", metavar="random|iqa|FILE", help="weights to begin with")
    model.add_argument("--export", metavar="NAME", help="write weights and card under this name into OUT/export")


def main(arguments) -> int:
    """Train, and say what came out."""
    import torch

    from licag3d.losses.iqa import iqa_loss
    from licag3d.models.iqa import OPEN, config_facts, prepare, scores_of
    from licag3d.models.segmentor import count_parameters
    from licag3d.train.loop import settings_of, train

    if bool(arguments.pool) == bool(arguments.human):
        raise InputError("give the data: either --pool DIR (computed scores) or --human CSV")
    if not 1 <= arguments.scenes <= 1_000_000:
        raise InputError(f"--scenes is {arguments.scenes}; give 1 to 1000000")
    settings = settings_of(arguments)
    samples, checked, source = human_samples(arguments) if arguments.human else phantom_samples(arguments, settings)
    torch.manual_seed(settings.seed)
    model = first_model(arguments.init, arguments.routing, samples)
    config = {
        "model": "iqa",
        "config": config_facts(model.config),
        "parameters": count_parameters(model),
        "init": Path(arguments.init).name,
        "scores": source,
        "samples": len(samples),
        "open": OPEN,
    }

    pictures = model.config.routing != "none"

    def loss(net, batch, step):
        x = prepare(batch["frames"], batch["has_reference"]) if pictures else batch["frames"]
        levels = net(x, batch["has_reference"], batch["compared"])
        with torch.autocast(levels.device.type, enabled=False):
            value, terms = iqa_loss(scores_of(levels.float()), batch["scores"])
        return value, {key: term.detach() for key, term in terms.items()}

    outcome = train(
        model,
        settings,
        arguments.out,
        make_batch=lambda step: samples.batch(step, settings.batch, settings.seed, frames=pictures),
        loss=loss,
        validate=lambda average: validate(average, checked),
        config=config,
        resume=arguments.resume,
    )
    return _finish(arguments, settings, outcome, config)


def first_model(init: str, routing: str, samples):
    """A new network, or one that begins from earlier weights; tokens may be added to weights without any
    (``--routing none``), and begin by changing nothing.

    Raises:
        InputError: weights of another routing.
    """
    import torch

    from licag3d.models.iqa import CasIqa, IqaConfig, load_iqa

    if init == "random":
        model = CasIqa(IqaConfig(routing=routing))
        compared = torch.from_numpy(samples.compared()).flatten(0, 1)
        model.middle.copy_(compared.mean(0))
        model.spread.copy_(compared.std(0).clamp_min(1e-3))
        return model
    first = load_iqa(init)[0].train()
    if first.config.routing == routing:
        return first
    if first.config.routing != "none":
        raise InputError(f"--init {init}: these weights are of --routing {first.config.routing}")
    model = CasIqa(IqaConfig(routing=routing))
    model.load_state_dict(first.state_dict(), strict=False)
    for head in model.token_heads:
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    return model


def phantom_samples(arguments, settings):
    """Degraded frames of training patients and of validation patients, and a word on the scores.

    Raises:
        InputError: a pool that holds the wrong patients.
    """
    from licag3d.data.phantom_frames import PhantomPool, grow_pool
    from licag3d.phantom.splits import VALIDATION
    from licag3d.train.iqa_data import SampleFolder, make_samples
    from licag3d.train.segmentor import training_pool

    out = Path(arguments.out)
    kept = Path(arguments.samples or out / "samples")
    pool = training_pool(arguments.pool)
    checked = Path(arguments.validation or out / "validation")
    if not (checked / "index.jsonl").is_file():
        grow_pool(checked, 8, views=1, split=VALIDATION)
    tests = PhantomPool(checked)
    if not all(entry["seed"] in VALIDATION for entry in tests.entries):
        raise InputError(f"--validation {checked}: holds frames that are not of validation patients")
    make_samples(pool, kept / "training", arguments.scenes, seed=settings.seed)
    make_samples(tests, kept / "validation", min(arguments.scenes, VALIDATION_SCENES), seed=1 + settings.seed)
    return SampleFolder(kept / "training"), SampleFolder(kept / "validation"), "computed from exact truth, not human"


def human_samples(arguments):
    """Frames that people scored, split by patient, and a word on the scores."""
    from licag3d.train.iqa_human import read_human_scores

    out = Path(arguments.samples or Path(arguments.out) / "samples")
    return *read_human_scores(arguments.human, out), "mean opinion of readers"


def recipe(arguments, settings) -> dict:
    """How to make these weights again: the commands, and what the samples depend on.

    Scene k of a folder of samples is a function of the seed, of k and of the pool's frames; so the first scenes of an
    interrupted making are those of a shorter one.
    """
    if arguments.human:
        return {"data": "scores of readers", "seed": settings.seed}
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.phantom.splits import TRAINING

    entries = PhantomPool(arguments.pool).entries
    seeds = sorted({entry["seed"] for entry in entries})
    stream = seeds == list(TRAINING[: len(seeds)])
    train = ["python -m licag3d.train iqa --pool POOL --out RUN", f"--scenes {arguments.scenes}"]
    train += [f"--routing {arguments.routing}", f"--init {Path(arguments.init).name}"]
    for name in ("steps", "batch", "rate", "warmup", "validate_every", "save_every", "accumulate", "precision", "seed"):
        train.append(f"--{name.replace('_', '-')} {getattr(settings, name)}")
    made = f"python -m licag3d.data.phantom_frames --pool POOL --cases {len(seeds)}"
    return {
        "commands": [made if stream else f"a pool of the training seeds {seeds}", " ".join(train)],
        "frames": len(entries),
        "sample_seeds": {"training": settings.seed, "validation": 1 + settings.seed},
    }


def predict_all(model, samples, *, reference: bool = True, batch: int = 16):
    """Scores ``(n, 3)`` of all samples, ``reference`` False: as if there were none."""
    import numpy as np
    import torch

    from licag3d.models.iqa import prepare, scores_of

    device = next(model.parameters()).device
    pictures, compared = model.config.routing != "none", samples.compared()
    model.eval()
    found = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "cpu"):
        for start in range(0, len(samples), batch):
            numbers = range(start, min(start + batch, len(samples)))
            there = [bool(reference and samples.lines[number]["has_reference"]) for number in numbers]
            known = torch.from_numpy(np.stack([compared[n, int(t)] for n, t in zip(numbers, there, strict=True)]))
            has = torch.tensor(there).to(device)
            x = torch.zeros(len(there), 3, 1, 1, device=device)
            if pictures:
                frames = np.stack([samples.sample(number)[0] for number in numbers])
                x = prepare(torch.from_numpy(frames).to(device).float() / 255, has)
            found.append(scores_of(model(x, has, known.to(device)).float()).cpu().numpy())
    return np.concatenate(found)


def validate(model, samples) -> dict[str, float]:
    """Linear and rank correlation and root mean square error per score, with and without a reference; ``score`` is the
    mean of both correlations over everything.
    """
    import numpy as np

    from licag3d.losses.iqa import SCORES

    found, kept = {}, []
    for name, reference in (("", True), ("_alone", False)):
        predicted = predict_all(model, samples, reference=reference)
        for k, score in enumerate(SCORES):
            plcc, srcc, rmse = agreement(predicted[:, k], samples.scores[:, k])
            found |= {f"plcc_{score}{name}": plcc, f"srcc_{score}{name}": srcc, f"rmse_{score}{name}": rmse}
            kept += [plcc, srcc]
    return found | {"score": float(np.mean(kept))}


def agreement(predicted, truth) -> tuple[float, float, float]:
    """PLCC, SRCC (0 where one side is constant) and RMSE of ``(n,)`` scores."""
    import numpy as np
    from scipy.stats import rankdata

    def linear(a, b) -> float:
        a, b = a - a.mean(), b - b.mean()
        size = float(np.sqrt((a * a).sum() * (b * b).sum()))
        return float((a * b).sum() / size) if size > 1e-9 else 0.0

    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    error = float(np.sqrt(np.mean((predicted - truth) ** 2)))
    return linear(predicted, truth), linear(rankdata(predicted), rankdata(truth)), error


def _finish(arguments, settings, outcome, config: dict) -> int:
    """Write ``iqa.safetensors`` of the best validation with its configuration; export it where asked."""
    from licag3d.models.iqa import CasIqa, config_from
    from licag3d.train.checkpoints import export_weights, load_into, load_weights, save_weights

    folder = outcome.folder
    tensors, facts = load_weights(folder / "best.safetensors")
    model = CasIqa(config_from(config["config"], "this run"))
    load_into(model, tensors, "best.safetensors")
    # "scores" of the loop are those of the validation.
    found = facts | {key: value for key, value in config.items() if key != "scores"}
    found["recipe"] = recipe(arguments, settings)
    save_weights(folder / "iqa.safetensors", model, found | {"truth": config["scores"], "seed": settings.seed})
    if arguments.export:
        # Into a folder of its own: under the run's own name it would overwrite the weights that a training reads.
        (folder / "export").mkdir(exist_ok=True)
        export_weights(folder, "iqa", arguments.export, folder / "export")
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    best = f", best correlation {outcome.score:.4f} at step {outcome.best_step}" if outcome.score is not None else ""
    print(f"{ended} after {outcome.steps} steps{best}: {folder / 'iqa.safetensors'}")
    return 0
