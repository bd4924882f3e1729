# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train correspondence``: which place of the other view shows the same vessel."""

from __future__ import annotations

from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Validation pairs (of the VALIDATION seeds) that are made where none are given, and the first of them.
VALIDATION_PAIRS, VALIDATION_FIRST = 8, 5000
#: Weights of the branch names and of the depth in the loss.
BRANCH_SHARE, DEPTH_SHARE = 0.1, 0.1


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(parser, steps=3000, batch=4, rate=1.5e-3, warmup=100, validate_every=200, save_every=100)
    data = parser.add_argument_group("data: pairs of simulated views (python -m licag3d.data.view_pairs)")
    data.add_argument("--pool", metavar="DIR", help="pool of rendered pairs")
    data.add_argument("--drawn", metavar="DIR", help="pool of drawn pairs")
    data.add_argument("--drawn-share", type=float, default=0.7, metavar="SHARE", help="of drawn pairs among all")
    data.add_argument("--validation", metavar="DIR", help="pool of validation pairs; made beside the run if missing")
    model = parser.add_argument_group("model")
    model.add_argument("--init", default="random", metavar="random|embedded|FILE", help="weights to begin with")
    model.add_argument("--export", metavar="NAME", help="write weights and card of the best checkpoint under this name")


def main(arguments) -> int:
    """Train, and say what came out."""
    from licag3d.data.view_pairs import grow_pairs, pair_files
    from licag3d.phantom.splits import VALIDATION
    from licag3d.train.correspondence_data import PairStream
    from licag3d.train.loop import settings_of, train

    if not 0 <= arguments.drawn_share <= 1:
        raise InputError(f"--drawn-share is {arguments.drawn_share}; give 0 to 1")
    share = arguments.drawn_share if arguments.pool else 1.0
    pools = [(arguments.pool, 1 - share), (arguments.drawn, share if arguments.drawn else 0.0)]
    pools = [(folder, part) for folder, part in pools if folder]
    if not pools:
        raise InputError("give the data: --pool DIR (rendered pairs), --drawn DIR (drawn pairs), or both")
    settings = settings_of(arguments)
    model = first_model(arguments.init, settings.seed)
    stream = PairStream(pools if len(pools) > 1 else [(pools[0][0], 1.0)], settings.seed)
    checked = Path(arguments.validation or Path(arguments.out) / "validation")
    if not arguments.validation and not list(checked.glob("*.npz")):
        grow_pairs(checked, VALIDATION_PAIRS, first=VALIDATION_FIRST, split=VALIDATION)
    files = pair_files(checked)
    if any(int(file.stem) not in VALIDATION for file in files):
        raise InputError(f"{checked}: holds pairs that are not for validation")
    pairs = validation_items(files)

    def grow(step: int, state: dict) -> dict:
        """Pairs made meanwhile join at checkpoints, and a resumed run remembers when."""
        if state.get("step") != step:
            state = {"step": step, "pairs": stream.refresh()}
        stream.used = [min(n, len(f)) for n, f in zip(state["pairs"], stream.files, strict=True)]
        return state

    outcome = train(
        model,
        settings,
        arguments.out,
        make_batch=lambda step: stream.batch(step, settings.batch),
        loss=correspondence_loss,
        validate=lambda average: validate(average, pairs),
        score="score",
        config=run_config(model, arguments),
        resume=arguments.resume,
        prepare=grow,
    )
    return finish(arguments, settings, model, outcome, stream.used, pairs)


def first_model(init: str, seed: int):
    """A new network, or one that begins from other weights.

    Raises:
        InputError: weights that are missing or of another architecture.
    """
    import copy

    import torch

    from licag3d.models.correspondence import build
    from licag3d.models.correspondence_judge import load_correspondence

    torch.manual_seed(seed)
    if init == "random":
        return build()
    if init != "embedded" and (not init.endswith(".safetensors") or not Path(init).is_file()):
        raise InputError(f"--init {init}: give random, embedded, or a .safetensors file of a training run")
    return copy.deepcopy(load_correspondence("correspondence" if init == "embedded" else init)).train()


def run_config(model, arguments) -> dict:
    """What makes a run itself, for ``config.json`` and the weights."""
    from licag3d.models.correspondence import config_facts
    from licag3d.models.segmentor import count_parameters

    return {
        "model": "correspondence",
        "config": config_facts(model.config),
        "parameters": count_parameters(model),
        "init": Path(arguments.init).name,
        "drawn_share": arguments.drawn_share,
    }


def correspondence_loss(model, batch: dict, step: int):
    """Minus the log-probability of all right candidates together (of "none" where none is right), mean over points;
    beside it branch names and the depth with its spread."""
    import torch
    import torch.nn.functional as F

    from licag3d.models.correspondence import log_probability

    said = model(batch["pictures"].to(memory_format=torch.channels_last), batch["samples"])
    match, branch, depth = [], [], []
    for pair, sample in zip(said, batch["samples"], strict=True):
        for k in (0, 1):
            match.append(surprise(log_probability(pair[k]), sample.right[k]).mean())
            known = sample.branch[k] >= 0
            if known.any():
                branch.append(F.cross_entropy(pair[k].branch[known], sample.branch[k][known]))
            known = torch.isfinite(sample.depth[k])
            if known.any():
                middle, spread = pair[k].depth[known].unbind(-1)
                spread = spread.clamp(-4, 2)
                off = (middle - sample.depth[k][known]).abs()
                depth.append((off * torch.exp(-spread) + spread).mean())
    zero = batch["pictures"].new_zeros(())
    parts = {
        "match": torch.stack(match).mean(),
        "branch": torch.stack(branch).mean() if branch else zero,
        "depth": torch.stack(depth).mean() if depth else zero,
    }
    total = parts["match"] + BRANCH_SHARE * parts["branch"] + DEPTH_SHARE * parts["depth"]
    return total, {key: part.detach() for key, part in parts.items()}


def surprise(log_chance, right):
    """``(N,)`` minus log of the probability of what is right; ``log_chance`` ``(N, K + 1)``, ``right`` ``(N, K)``."""
    import torch

    none = ~right.any(1, keepdim=True)
    target = torch.cat([right, none], 1)
    return -torch.logsumexp(log_chance.masked_fill(~target, float("-inf")), 1)


def validation_items(files) -> list:
    """Labelled pairs, every way of tracing, with the errors of a search and hand-made costs."""
    import numpy as np

    from licag3d.data.view_pairs import load_pair
    from licag3d.train.correspondence_data import labelled, searched_cameras

    items = []
    for file in files:
        pair = load_pair(file)
        cameras = searched_cameras(np.random.default_rng(pair.seed), pair)
        for way in pair.chains:
            if all(len(c.step_mm) > 10 for c in pair.chains[way]):
                items.append((way, pair.artery, labelled(pair, way, cameras, hand=True)))
    if not items:
        raise InputError("no validation pair shows vessels in both views")
    return items


def validate(model, items) -> dict[str, float]:
    """Scores per point (weighted by length) of whole validation pairs.

    ``top1``: a right candidate is the likeliest, of points that have one; ``hand``: the same of the hand-made costs;
    ``surprise``: minus log probability of what is right; ``calibration``: mean difference of said and true probability
    of the likeliest candidate; ``score`` is minus the surprise.
    """
    import numpy as np
    import torch

    from licag3d.models.correspondence import log_probability
    from licag3d.train.correspondence_data import collate

    rows: dict[str, list] = {}
    device = next(model.parameters()).device
    for way, artery, item in items:
        batch = collate([item])
        pictures = batch["pictures"].to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            said = model(pictures, batch["samples"].to(device))[0]
        for k in (0, 1):
            chance = log_probability(said[k]).cpu()
            right = item.sample.right[k]
            values = {
                "chance": chance.exp().numpy(),
                "right": right.numpy(),
                "surprise": surprise(chance, right).numpy(),
                "hand": item.hand[k],
                "weight": item.weight_mm[k],
            }
            rows.setdefault("all", []).append(values)
            rows.setdefault(f"{way}_{artery}", []).append(values)
    scores: dict[str, float] = {}
    for name, values in rows.items():
        found = _scores(values)
        scores |= found if name == "all" else {f"{name}_{key}": found[key] for key in ("top1", "hand")}
    scores["score"] = -scores["surprise"]
    return {key: float(np.round(value, 5)) for key, value in scores.items()}


def _scores(rows: list[dict]) -> dict[str, float]:
    import numpy as np

    top, hand, decided, weight, has, surprised, gaps = [], [], [], [], [], [], []
    for row in rows:
        right, chance = row["right"], row["chance"]
        lines = np.arange(len(right))
        likeliest = chance[:, :-1].argmax(1)
        top.append(right[lines, likeliest])
        hand.append(right[lines, row["hand"].argmin(1)])
        has.append(right.any(1))
        none = chance[:, -1] > chance[:, :-1].max(1)
        decided.append(np.where(none, ~right.any(1), top[-1]))
        weight.append(row["weight"])
        surprised.append(row["surprise"])
        gaps.append(np.stack([chance[lines, likeliest], top[-1]], 1))
    top, hand, decided, weight, has, surprised = (
        np.concatenate(x) for x in (top, hand, decided, weight, has, surprised)
    )
    said, true = np.concatenate(gaps).T
    bins = np.minimum((said * 10).astype(int), 9)
    off = [abs(said[bins == b].mean() - true[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    on = weight * has
    return {
        "top1": (top * on).sum() / on.sum(),
        "hand": (hand * on).sum() / on.sum(),
        "decided": (decided * weight).sum() / weight.sum(),
        "surprise": (surprised * weight).sum() / weight.sum(),
        "calibration": float(np.sum(off)),
    }


def finish(arguments, settings, model, outcome, used: list[int], items) -> int:
    """Write ``correspondence.safetensors`` of the best validation and a picture of samples; export where asked."""
    from licag3d.train.checkpoints import export_weights, load_into, load_weights, save_weights

    folder = outcome.folder
    tensors, facts = load_weights(folder / "best.safetensors")
    load_into(model, tensors, "best.safetensors")
    data = {"source": "phantom", "pairs": used}
    facts = facts | run_config(model, arguments) | {"data": data, "seed": settings.seed}
    save_weights(folder / "correspondence.safetensors", model, facts)
    sample_picture(model.eval(), items, folder / "samples.png")
    if arguments.export:
        export_weights(folder, "correspondence", arguments.export, folder)
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    best = f", best score {outcome.score:.4f} at step {outcome.best_step}" if outcome.score is not None else ""
    print(f"{ended} after {outcome.steps} steps{best}: {folder / 'correspondence.safetensors'}")
    return 0


def sample_picture(model, items, file, count: int = 6) -> None:
    """Both views of some validation pairs, points coloured by what was chosen: green right, red wrong, blue "none" and
    so it is, yellow "none" though there is one, grey where no candidate is right and one was chosen."""
    import imageio.v3 as imageio
    import numpy as np
    import torch

    from licag3d.models.correspondence import log_probability
    from licag3d.train.correspondence_data import collate

    device = next(model.parameters()).device
    strips = []
    for _, _, item in items[:count]:
        batch = collate([item])
        with torch.no_grad():
            said = model(batch["pictures"].to(device), batch["samples"].to(device))[0]
        sides = []
        for k in (0, 1):
            image = np.repeat((80 * np.clip(item.pictures[k, 0], 0, 1)).astype(np.uint8)[..., None], 3, 2)
            image = image.repeat(2, 0).repeat(2, 1)
            chance = log_probability(said[k]).exp().cpu().numpy()
            right = item.sample.right[k].numpy()
            choice = chance.argmax(1)
            none = choice == chance.shape[1] - 1
            good = np.take_along_axis(np.pad(right, ((0, 0), (0, 1))), choice[:, None], 1)[:, 0]
            has = right.any(1)
            colour = np.where(good[:, None], (60, 220, 60), np.where(has[:, None], (240, 50, 50), (150, 150, 150)))
            colour = np.where(none[:, None], np.where(has[:, None], (240, 220, 40), (70, 110, 255)), colour)
            at = item.sample.at[k][item.sample.row[k]].numpy()
            at = np.clip((at * len(image)).astype(int), 0, len(image) - 2)
            for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
                image[at[:, 1] + step[0], at[:, 0] + step[1]] = colour
            sides.append(image)
        strips.append(np.concatenate(sides, 1))
    rows = [np.concatenate(strips[n : n + 2], 1) for n in range(0, len(strips) - 1, 2)] or strips
    imageio.imwrite(file, np.concatenate(rows, 0))
