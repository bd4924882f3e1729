# SPDX-License-Identifier: Apache-2.0
"""One case of the benchmark: its truth, and the inputs that every method gets alike.

The views are written as a user would have them and read back by :func:`licag3d.io.views.read_views`, so that rivals see
the very pixels and cameras that ``python -m licag3d.invert`` sees. The evidence is computed once per case.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.baselines import Inputs, inputs_of
from benchmarks.offset import OffsetGuess, initial_offset
from benchmarks.protocol import Cell
from licag3d.metrics.scores import Truth


@dataclass(frozen=True)
class PreparedCase:
    """``folder`` holds the views as files (``view_1.png`` ..., ``cameras.json``, ``truth/view_1_mask.png`` ...)."""

    inputs: Inputs
    guess: OffsetGuess
    truth: Truth
    folder: Path

    @property
    def moved(self) -> Inputs:
        """The inputs with the common initialisation of the offset."""
        return self.inputs.with_cameras(self.guess.cameras)


def prepare_case(cell: Cell, seed: int, folder: Path, *, rows: int = 512, cols: int = 512) -> PreparedCase:
    """Simulate, write, read back, find the vessels, guess the offset. ``folder`` must not exist yet."""
    from licag3d.io.views import read_views
    from licag3d.models.vessel_evidence import vessel_evidence
    from licag3d.phantom.simulate_case import simulate_case
    from licag3d.phantom.write_case import Content, write_case

    case = simulate_case(
        seed,
        cell.artery,
        separation_deg=cell.separation_deg,
        offset_mm=cell.offset_mm,
        angle_error_deg=cell.angle_error_deg,
        background=cell.background,
        rows=rows,
        cols=cols,
    )
    write_case(folder, case, Content(projections=False, mesh=False, labels=False))
    numbers = range(1, len(case.views) + 1)
    masks = [str(folder / "truth" / f"view_{k}_mask.png") for k in numbers] if cell.track == "masks" else None
    views, _ = read_views(
        [str(folder / f"view_{k}.png") for k in numbers], cameras=folder / "cameras.json", masks=masks
    )
    evidence = tuple(vessel_evidence(view) for view in views)
    inputs = inputs_of(tuple(views), evidence, artery=cell.artery, track=cell.track, seed=seed)
    held_out = [view.true_camera for view in case.held_out]
    return PreparedCase(inputs, initial_offset(inputs), Truth(case.tree, case.true_cameras, held_out), folder)


def describe_inputs() -> list[str]:
    """Names of what a method is given, for the record in the result file."""
    return [f.name for f in fields(Inputs)]


def is_empty(inputs: Inputs) -> bool:
    """Whether a view shows no vessel at all (then no rival is asked)."""
    return not all(np.any(mask) for mask in inputs.masks)
