# SPDX-License-Identifier: Apache-2.0
"""How well can a trained generator hold trees that it has not seen? Codes, tuned weights, and a residual on the planes.

    python tools/capacity_generator.py --prior generator --json benchmarks/results/capacity.json

Each held-out tree is fitted with full 3D supervision, the steps of an inversion one after the other:

- ``vectors``: W+ of the structure stage so that the branches it writes lie on the true ones, in mm;
- ``codes``: all of W+ by the field at points; the generator stays as it is;
- ``tuned``: the generator's weights as well (pivotal tuning, Roich et al., ACM TOG 2022);
- ``residual``: on top, a free residual on the planes.

The figures are those of ``tools/capacity_gauge.py``, whose free planes are the ceiling of all of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from capacity_gauge import SPACING_MM, TREES, Target, mean_rows, scores, supervision

from licag3d.io.atomic import write_text
from licag3d.models.branch_table import vector_of
from licag3d.models.generator import Generator, labels_of, load_generator
from licag3d.models.tree_from_field import bake
from licag3d.ops import query_triplane
from licag3d.ops.triplane_decoder import TriplaneDecoder

#: Steps of each part, and points per step, half of them within six voxels of the vessels.
STEPS = {"vectors": 300, "codes": 15, "tuned": 40, "residual": 80}
POINTS = 16384


def code_of(generator: Generator, target: Target, artery: str, steps: int) -> torch.Tensor:
    """W+ ``(1, layers, w_dim)`` whose branches lie on those of the tree: mean squared distance of points, in mm,
    logarithm of the radius, and presence. The rest of the code is the average of the artery.
    """
    stage = generator.structure
    label = labels_of([artery], labels=len(generator.config.labels))
    with torch.no_grad():
        code = generator.spread(generator.average(label)).clone()
    if stage is None:
        return code
    table = stage.tables[artery]
    vector, _ = vector_of(target.tree, table, (0.0, 0.0, 0.0))
    wanted = torch.from_numpy(vector)[None]
    present = torch.tensor([vector[offset] > 0.5 for offset in table.offsets[:-1]])
    with torch.no_grad():
        true = stage.courses(wanted.masked_fill(_is_presence(table), 8.0), artery)
    styles = code[:, : generator.config.structure].clone().requires_grad_()
    optimiser = torch.optim.Adam([styles], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        found = stage.vectors(styles, artery)
        # The decoder knows the contrasts of its training only.
        contrast = generator.contrast(styles[:, 0]) - 1
        # A branch is drawn in full calibre only when its presence is sure: a logit of 1.5.
        sign = torch.where(present, 1.0, -1.0)
        unsure = (1.5 - sign * found[0, _is_presence(table)]).clamp_min(0)
        loss = contrast.square().mean() + unsure.square().mean()
        for k, (points, width, _) in enumerate(stage.courses(found, artery)):
            if present[k]:
                loss = loss + (points - true[k][0]).square().sum(-1).mean() / 4
                loss = loss + (width.log() - true[k][1].log()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    code[:, : generator.config.structure] = styles.detach()
    return code


def _is_presence(table) -> torch.Tensor:
    found = torch.zeros(table.size, dtype=torch.bool)
    found[list(table.offsets[:-1])] = True
    return found


def drawn_points(target: Target, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Points ``(N, 3)`` in mm and the lumen share there, without end."""
    rng = np.random.default_rng(seed)
    count, flat = target.share.shape[0], target.share.ravel()
    while True:
        near = target.near[rng.integers(len(target.near), size=POINTS // 2)]
        chosen = np.concatenate([near, rng.integers(flat.size, size=POINTS - len(near))])
        index = np.stack([chosen % count, chosen // count % count, chosen // count**2], -1)
        place = ((index + 0.5) * SPACING_MM - target.box_mm / 2).astype(np.float32)
        yield torch.from_numpy(place), torch.from_numpy(flat[chosen])


def descend(parameters: list[dict], steps: int, loss_of) -> None:
    """Adam with a cosine rate."""
    optimiser = torch.optim.Adam(parameters, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for _ in range(steps):
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()


def fit_tree(generator: Generator, seed: int, artery: str, steps: dict[str, int], parts: tuple[str, ...]) -> dict:
    """Scores after each part, by its name; the given generator is left as it is."""
    generator = copy.deepcopy(generator).requires_grad_(False)
    config = generator.config
    target = Target.of(seed, artery, config.box_size_mm)
    label = labels_of([artery], labels=len(config.labels))
    points = drawn_points(target)
    found: dict[str, dict] = {}

    def field(planes: torch.Tensor, decoder: TriplaneDecoder, code: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        mu = query_triplane(planes, decoder, place, box_center_mm=(0, 0, 0), box_size_mm=config.box_size_mm)
        return mu / generator.lumen_mu_per_mm(code)[0]

    def judged(name: str, planes: torch.Tensor, decoder: TriplaneDecoder, code: torch.Tensor, began: float) -> None:
        with torch.no_grad():
            lumen = float(generator.lumen_mu_per_mm(code)[0])
            volume = bake(planes, decoder, box_size_mm=config.box_size_mm, skip_below_per_mm=0.05 * lumen)
        found[name] = scores(volume.values / lumen, target) | {"fit_s": time.perf_counter() - began}

    began = time.perf_counter()
    code = code_of(generator, target, artery, steps["vectors"])
    with torch.no_grad():
        judged("vectors", generator.planes(code, label)[0], generator.decoder(), code, began)
    if "codes" in parts:
        code.requires_grad_()

        def loss_of_codes() -> torch.Tensor:
            place, share = next(points)
            return supervision(field(generator.planes(code, label)[0], generator.decoder(), code, place), share)

        began = time.perf_counter()
        descend([{"params": [code], "lr": 0.01}], steps["codes"], loss_of_codes)
        with torch.no_grad():
            judged("codes", generator.planes(code, label)[0], generator.decoder(), code, began)
        if "tuned" in parts:
            generator.requires_grad_(True)
            began = time.perf_counter()
            weights = list(generator.parameters())
            descend([{"params": [code], "lr": 0.005}, {"params": weights, "lr": 1e-3}], steps["tuned"], loss_of_codes)
            generator.requires_grad_(False)
            with torch.no_grad():
                judged("tuned", generator.planes(code, label)[0], generator.decoder(), code, began)
    if "residual" in parts:
        with torch.no_grad():
            code = code.detach()
            start, decoder = generator.planes(code, label)[0], generator.decoder()
        rest = torch.zeros_like(start).requires_grad_()
        decoder = decoder.to(torch.float32)
        free = {name: t.clone().requires_grad_() for name, t in decoder.tensors().items() if name != "mu_scale"}
        tuned = type(decoder)(**{**vars(decoder), **free})

        def loss_of_rest() -> torch.Tensor:
            place, share = next(points)
            return supervision(field(start + rest, tuned, code, place), share)

        began = time.perf_counter()
        descend([{"params": [rest], "lr": 0.02}, {"params": list(free.values()), "lr": 0.002}], steps["residual"],
                loss_of_rest)  # fmt: skip
        judged("residual", (start + rest).detach(), tuned, code, began)
    return found


def main(argv: list[str] | None = None) -> int:
    """Fit, score, and put the rows beside those of the free planes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--prior", default="generator", help="embedded weights, or a .safetensors file")
    parser.add_argument("--trees", type=int, default=2, help="held-out trees, 1 to 4 (rca and lca in turn)")
    parser.add_argument("--parts", default="codes,tuned,residual", help="which follow after the vectors")
    parser.add_argument("--name", default="embedded", help="of the rows in the file")
    for part, count in STEPS.items():
        parser.add_argument(f"--{part}-steps", type=int, default=count)
    arguments = parser.parse_args(argv)
    steps = {part: getattr(arguments, f"{part}_steps") for part in STEPS}
    generator, card = load_generator(arguments.prior)
    rows = []
    for seed, artery in TREES[: arguments.trees]:
        rows.append({"seed": seed, "artery": artery, "parts": {}})
        rows[-1]["parts"] = fit_tree(generator, seed, artery, steps, tuple(arguments.parts.split(",")))
        for part, row in rows[-1]["parts"].items():
            print(seed, artery, part, {k: round(v, 3) for k, v in row.items()}, flush=True)
        table = json.loads(arguments.json.read_text("utf-8")) if arguments.json.exists() else {"free": {}}
        parts = rows[0]["parts"]
        mean = {part: mean_rows([row["parts"][part] for row in rows]) for part in parts}
        content = {"steps": steps, "trained_steps": card.get("steps"), "mean": mean, "trees": rows}
        table.setdefault("generator", {})[arguments.name] = content
        write_text(arguments.json, json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
