# SPDX-License-Identifier: Apache-2.0
"""How well codes hold trees that nobody trained on, against the number of training patients and the size of a code.

    python tools/scaling_generator.py --pool trees.safetensors --validation validation.safetensors --json out.json

Most of what the generator knows of courses is a closed form (docs/generator.md: whitened principal components), so this
takes seconds per row instead of a training: mean distance of corresponding points of held-out patients (VALIDATION
seeds), mm, from one code (w) and from a code per style (w plus). To the errors of w against the number of patients
err = floor + scale N^-power is fitted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PATIENTS, CODES = (500, 1000, 2000, 4000, 8000), (64, 128, 256, 384, 512)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True, help="training trees; grown if missing (8000: minutes)")
    parser.add_argument("--validation", type=Path, required=True, help="held-out trees; grown if missing")
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    import torch

    from licag3d.models.generator import GeneratorConfig
    from licag3d.phantom import splits
    from licag3d.train.generator_data import pool_of
    from licag3d.train.generator_step import StepSettings, Trainee
    from licag3d.train.generator_vectors import VectorSet

    torch.manual_seed(0)
    tables = Trainee(GeneratorConfig(), StepSettings()).generator.structure.tables
    training = VectorSet(pool_of(options.pool, max(PATIENTS)), tables)
    held_out = VectorSet(pool_of(options.validation, options.held_out, splits.VALIDATION), tables)
    report = {"what": "scaling of the generator's closed form", "held_out": options.held_out}
    report |= {"patients": {}, "codes": {}}
    for patients in PATIENTS:
        report["patients"][patients] = errors_mm(training, held_out, patients, GeneratorConfig())
        print(f"{patients} patients: {report['patients'][patients]}", flush=True)
    for size in CODES:
        config = GeneratorConfig(z_dim=size, w_dim=size)
        report["codes"][size] = errors_mm(training, held_out, max(PATIENTS), config)
        print(f"codes of {size}: {report['codes'][size]}", flush=True)
    report["fits"] = {key: fitted({n: row[key] for n, row in report["patients"].items()})
                      for key in report["patients"][PATIENTS[0]] if "plus" not in key}  # fmt: skip
    print(json.dumps(report["fits"], indent=1))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def errors_mm(training, held_out, patients: int, config) -> dict[str, float]:
    """The closed form from the first ``patients``; distances on all held-out ones."""
    import copy

    import torch

    from licag3d.models.branch_table import ARTERIES
    from licag3d.train.generator_step import StepSettings, Trainee
    from licag3d.train.generator_vectors import course_error_mm, set_statistics, start_from_components

    part = copy.copy(training)
    for name in ("vector", "known", "number"):
        full = getattr(training, name)
        setattr(part, name, {a: full[a][training.number[a] < patients] for a in ARTERIES})
    torch.manual_seed(0)
    model = Trainee(config, StepSettings()).eval()
    with torch.no_grad():
        set_statistics(model.generator.structure, part, 4.0)
        start_from_components(model.generator, model.encoder, part, 4.0)
        g, found = model.generator, {}
        for index, artery in enumerate(ARTERIES):
            count = len(held_out.number[artery])
            label = torch.zeros(count, 3)
            label[:, index] = 1.0
            label[:, 2] = held_out.co_dominant[artery]
            truth = {"vector": held_out.vector[artery], "known": held_out.known[artery], "contrast": torch.ones(count)}
            z, _, _, delta = model.encode(artery, truth, sample=False)
            styles = g.spread(g.map_code(z, label))[:, : config.structure]
            for key, codes in (("w", styles), ("w_plus", styles + delta)):
                written = g.structure.vectors(codes, artery)
                found[f"{artery}_{key}_mm"] = round(course_error_mm(g.structure, artery, written, truth["vector"]), 4)
    return found


def fitted(errors: dict[int, float]) -> dict[str, float]:
    """err = floor + scale N^-power by least squares, and what ten times the data would give."""
    import numpy as np
    from scipy.optimize import least_squares

    n, err = np.array(list(errors), float), np.array(list(errors.values()))

    def misfit(x):
        return x[0] + x[1] * (n / n[0]) ** -x[2] - err

    first = (0.8 * err[-1], max(err[0] - 0.8 * err[-1], 1e-3), 0.5)
    x = least_squares(misfit, first, bounds=([0, 0, 0.05], [err[-1], 10, 2])).x
    tenfold = x[0] + x[1] * (10 * n[-1] / n[0]) ** -x[2]
    found = {"floor_mm": x[0], "power": x[2], "residual_mm": np.abs(misfit(x)).max(), "ten_times_mm": tenfold}
    return {key: round(float(value), 4) for key, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
