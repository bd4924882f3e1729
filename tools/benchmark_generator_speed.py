# SPDX-License-Identifier: Apache-2.0
"""How fast the generator renders and trains: the fused renderer against its plain-torch twin, a process for each.

    python tools/benchmark_generator_speed.py --render --training --json benchmarks/results/generator.json

CPU seconds of one thread, and memory beyond what was there before. Text and tables: docs/capacity.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from licag3d.io.atomic import write_text

#: The largest memory that a measurement may need by what the smaller sizes needed, MB.
MOST_MB = 9000
_FIRST_SEED = 1_000_000  # of TRAINING


def render_once(kind: str, size: int, prior: str, samples_per_ray: int) -> dict:
    """Seconds of one projection ``size x size`` and the memory it took beyond what was there, MB."""
    from licag3d.geometry import Cameras
    from licag3d.models import samples
    from licag3d.models.generator import load_generator
    from licag3d.ops import reference, render_triplane

    generator, _ = load_generator(prior)
    w_plus = samples.codes(generator, [1], "rca")
    cameras = Cameras.stack(samples.cameras_at([(30.0, 0.0)], size))
    renderer = render_triplane if kind == "fused" else reference.render_triplane
    with torch.no_grad():
        planes, decoder = generator.planes(w_plus)[0], generator.decoder()
        options = {"box_center_mm": (0.0, 0.0, 0.0), "box_size_mm": generator.config.box_size_mm}
        renderer(planes, decoder, Cameras.stack(samples.cameras_at([(30.0, 0.0)], 32)), samples=8, **options)
        before, began = _peak_mb(), time.process_time()
        renderer(planes, decoder, cameras, samples=samples_per_ray, **options)
    return {"kind": kind, "size_px": size, "cpu_s": time.process_time() - began, "extra_mb": _peak_mb() - before}


def train_once(kind: str, size: int, prior: str, samples_per_ray: int) -> dict:
    """A training step with images (discriminator and generator, forwards and backwards), the renderer exchanged.

    One patient of each artery, two views each. Steps alternate, one to warm up and two that count; the batch is made
    beforehand. ``other_s`` is the same step without images: what no renderer can change.
    """
    from licag3d import ops
    from licag3d.models.generator import load_generator
    from licag3d.ops import reference
    from licag3d.train.generator_batch import BatchMaker
    from licag3d.train.generator_data import grow_trees
    from licag3d.train.generator_step import StepSettings, Trainee, step_loss
    from licag3d.train.generator_vectors import VectorSet

    if kind == "twin":
        ops.render_triplane = reference.render_triplane
    torch.manual_seed(0)
    generator, _ = load_generator(prior)
    settings = StepSettings(field=0.0, critic=0.0, image_start=0, image_size=size)
    model = Trainee(generator.config, settings)
    model.generator.load_state_dict(generator.state_dict())
    pool = grow_trees(range(_FIRST_SEED, _FIRST_SEED + 8), progress=False)
    data = VectorSet(pool, generator.structure.tables)
    maker = BatchMaker(pool, data, 0, generator.config.box_size_mm, vectors=8, fields=0, images=1, size=size,
                       samples=samples_per_ray)  # fmt: skip

    def step(batch: dict) -> float:
        began = time.process_time()
        step_loss(model, batch, 1)[0].backward()
        model.zero_grad()
        return time.process_time() - began

    batches = [maker(number) for number in range(3)]
    step(batches[0])
    before = _peak_mb()
    seconds = min(step(batch) for batch in batches[1:])
    taken = _peak_mb()
    model.step = StepSettings(field=0.0, critic=0.0, image=0.0)
    other = min(step(batch) for batch in batches[1:])
    images = int(batches[0]["image.real"].shape[0] * batches[0]["image.real"].shape[1])
    return {"kind": kind, "size_px": size, "images_per_step": images, "step_s": seconds, "other_s": other,
            "images_per_s": images / seconds, "peak_mb": taken, "grew_mb": taken - before}  # fmt: skip


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(what: str, kind: str, size: int, arguments: argparse.Namespace) -> dict:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", what, kind, str(size), "--prior", arguments.prior]
    command += ["--samples-per-ray", str(arguments.samples_per_ray)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def render_report(arguments: argparse.Namespace) -> dict:
    """Time and memory by size; the twin stops where it would need more than ``MOST_MB``, which is told."""
    rows = []
    for kind, sizes in (("fused", (128, 256, 512)), ("twin", (64, 128, 256, 512))):
        for size in sizes:
            last = rows[-1] if rows and rows[-1]["kind"] == kind else None
            if last and last["extra_mb"] * (size / last["size_px"]) ** 2 > MOST_MB:
                grown = (size / last["size_px"]) ** 2
                rows.append({"kind": kind, "size_px": size, "not_run": f"about {last['extra_mb'] * grown:.0f} MB",
                             "cpu_s": last["cpu_s"] * grown, "extra_mb": last["extra_mb"] * grown})  # fmt: skip
                continue
            rows.append(measured("render", kind, size, arguments))
    return {"threads": 1, "samples_per_ray": arguments.samples_per_ray, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for and write it; parts of the file that are not measured now stay."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/generator.json"))
    parser.add_argument("--prior", default="generator", help="embedded weights, or a .safetensors file")
    parser.add_argument("--render", action="store_true", help="one projection")
    parser.add_argument("--training", action="store_true", help="training steps with images")
    parser.add_argument("--training-sizes", type=int, nargs="+", default=[32, 64], metavar="PX")
    parser.add_argument("--samples-per-ray", type=int, default=256)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "KIND", "PX"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.one:
        what, kind, size = arguments.one
        once = render_once if what == "render" else train_once
        print(json.dumps(once(kind, int(size), arguments.prior, arguments.samples_per_ray)))
        return 0
    report = json.loads(arguments.json.read_text("utf-8")) if arguments.json.exists() else {}
    if arguments.render:
        report["render"] = render_report(arguments)
    if arguments.training:
        sizes = arguments.training_sizes
        rows = [measured("training", kind, size, arguments) for size in sizes for kind in ("fused", "twin")]
        report["training"] = {"threads": 1, "samples_per_ray": arguments.samples_per_ray, "rows": rows}
    write_text(arguments.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
