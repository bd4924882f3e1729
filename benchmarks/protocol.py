# SPDX-License-Identifier: Apache-2.0
"""Cells, splits and seeds of the benchmark; docs/benchmark.md.

A cell is artery x separation x offset x background. Every cell has seeds of its own, so that a marginal over several
cells is a mean over as many patients. The angle error is 1 degree everywhere: less is not what a C-arm reports.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from licag3d.errors import InputError
from licag3d.phantom.splits import BENCHMARK, VALIDATION

ARTERIES = ("rca", "lca")
SEPARATIONS_DEG = (40.0, 60.0, 90.0)
OFFSETS_MM = (0.0, 2.0, 5.0, 8.0)
BACKGROUNDS = ("flat", "full")
TRACKS = ("masks", "images")
ANGLE_ERROR_DEG = 1.0
#: Seeds of the benchmark up to here were looked at while the method was made (docs/validation.md) and are not used.
_FIRST = 100
_QUICK_FIRST = 980
_CELLS = 48
MOST_CASES = (_QUICK_FIRST - _FIRST) // _CELLS


@dataclass(frozen=True)
class Cell:
    """One condition. ``number`` is its place among the 48, which decides its seeds. ``track`` is what a method is
    given: the true masks, or images alone."""

    number: int
    artery: str
    separation_deg: float
    offset_mm: float
    background: str
    track: str
    angle_error_deg: float = ANGLE_ERROR_DEG

    @property
    def name(self) -> str:
        """Short and unique."""
        return f"{self.artery}_sep{self.separation_deg:g}_off{self.offset_mm:g}_{self.background}_{self.track}" + (
            "" if self.angle_error_deg == ANGLE_ERROR_DEG else f"_ang{self.angle_error_deg:g}"
        )

    @property
    def even(self) -> bool:
        """Half of the cells, every level of every factor equally often: for methods too slow for all."""
        place = (
            ARTERIES.index(self.artery)
            + SEPARATIONS_DEG.index(self.separation_deg)
            + OFFSETS_MM.index(self.offset_mm)
            + BACKGROUNDS.index(self.background)
        )
        return place % 2 == 0


@dataclass(frozen=True)
class CaseId:
    """One case: a cell and a seed."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """Key in the result file."""
        return f"{self.cell.name}_{self.seed:06d}"


@dataclass(frozen=True)
class Split:
    """A named list of cases; the first ``skip`` of every cell are left out."""

    name: str
    cells: tuple[Cell, ...]
    cases_per_cell: int
    first_seed: int
    numbers: tuple[int, ...]  # of the cells before any were left out, so that limits change no seed
    skip: int = 0

    @property
    def cases(self) -> tuple[CaseId, ...]:
        """All cases; first one of every cell, then a second of every cell. The cells come mixed, the even ones first,
        so that an unfinished run is balanced as well."""
        mixed = sorted(self.cells, key=lambda cell: (not cell.even, 7 * cell.number % _CELLS, cell.track))
        return tuple(
            CaseId(cell, self.first_seed + len(self.numbers) * k + self.numbers.index(cell.number))
            for k in range(self.skip, self.cases_per_cell)
            for cell in mixed
        )


def all_cells(tracks: str = "by background") -> tuple[Cell, ...]:
    """The 48 cells in a fixed order.

    Args:
        tracks: ``by background``: masks where the background is flat, images where it is full; ``both``: either, which
            makes 96; ``masks`` or ``images``: that one everywhere.
    """
    product = itertools.product(ARTERIES, SEPARATIONS_DEG, OFFSETS_MM, BACKGROUNDS)
    cells = []
    for number, (artery, separation, offset, background) in enumerate(product):
        own = "masks" if background == "flat" else "images"
        chosen = {"by background": (own,), "both": TRACKS}.get(tracks, (tracks,))
        cells += [Cell(number, artery, separation, offset, background, track) for track in chosen]
    return tuple(cells)


def make_split(name: str, *, cases: int | None = None, tracks: str = "by background") -> Split:
    """A split by its name.

    - ``quick``: both arteries, 60 degrees, 5 mm, flat with masks and full with images, 2 cases each; seeds of its own.
    - ``leaderboard``: 48 cells, 1 case each unless ``cases`` says more.
    - ``full``: the same cells on both tracks, 5 cases each; its first cases are those of the leaderboard.
    - ``validation``: the 48 cells on validation seeds; for choosing thresholds, never for reporting.

    Raises:
        InputError: unknown name, or a number of cases out of range.

    Example:
        >>> split = make_split("leaderboard")
        >>> len(split.cases), split.cases[0].name
        (48, 'rca_sep40_off0_flat_masks_090100')
    """
    default = {"quick": 2, "leaderboard": 1, "full": 5, "validation": 1}
    if name not in default:
        raise InputError(f"--split {name}: choose one of {', '.join(default)}")
    count = default[name] if cases is None else cases
    limit = (BENCHMARK.stop - BENCHMARK[_QUICK_FIRST]) // 4 if name == "quick" else MOST_CASES
    if not 1 <= count <= limit:
        raise InputError(f"--cases {count}: give 1 to {limit} cases per cell for the split {name}")
    if name == "quick":
        cells = tuple(c for c in all_cells() if c.separation_deg == 60 and c.offset_mm == 5)
        return Split(name, cells, count, BENCHMARK[_QUICK_FIRST], tuple(cell.number for cell in cells))
    cells = all_cells("both" if name == "full" and tracks == "by background" else tracks)
    first = VALIDATION[0] if name == "validation" else BENCHMARK[_FIRST]
    return Split(name, cells, count, first, tuple(range(_CELLS)))


def limited(split: Split, **levels: tuple) -> Split:
    """The split with only the cells at the given levels, by name of the attribute (``artery=("rca",)``).

    Raises:
        InputError: a level that the protocol does not have, or nothing left.
    """
    known = {
        "artery": ARTERIES,
        "separation_deg": SEPARATIONS_DEG,
        "offset_mm": OFFSETS_MM,
        "background": BACKGROUNDS,
        "track": TRACKS,
    }
    for name, values in levels.items():
        wrong = [value for value in values if value not in known[name]]
        if wrong:
            listed = ", ".join(f"{value:g}" if isinstance(value, float) else value for value in known[name])
            raise InputError(f"{name} {wrong[0]} is not in the protocol; choose among {listed}")
    cells = tuple(cell for cell in split.cells if all(getattr(cell, name) in values for name, values in levels.items()))
    if not cells:
        raise InputError(f"no cell of the split {split.name} is left with these limits")
    return replace(split, cells=cells)
