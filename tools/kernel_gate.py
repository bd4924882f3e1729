# SPDX-License-Identifier: Apache-2.0
"""Guards the native operators against becoming slower: how many times faster than their plain-torch twins are they?

    python tools/kernel_gate.py                 # compares with benchmarks/kernel_gate.csv; exit status 1 if slower
    python tools/kernel_gate.py --update        # writes the ratios of this run there

Native operator and twin take turns in one run, with one thread each, so that the speed and the load of a machine meet
both; what is compared is the quotient of their least processor times. A row counts only where the instruction set is
that of the file. An operator fails where its ratio is less than ``--share`` of the recorded one. Half a minute.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from gpu_figures import BOX, cameras_on  # noqa: E402

from licag3d.command import Parser, add_debug_flag, run  # noqa: E402
from licag3d.errors import InputError  # noqa: E402

FILE = ROOT / "benchmarks" / "kernel_gate.csv"
COLUMNS = ("operator", "isa", "ratio")


@dataclass(frozen=True)
class Verdict:
    """One operator: ratio ``now``, the ``recorded`` one (None: no row for this instruction set), and ``slower``."""

    operator: str
    now: float
    recorded: float | None
    slower: bool


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/kernel_gate.py", description="Compare the speed of operators with recorded ones.")
    made.add_argument("--file", type=Path, default=FILE, metavar="CSV", help="recorded ratios")
    made.add_argument("--share", type=float, default=0.6, metavar="S", help="least share of a recorded ratio, 0 to 1")
    made.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of operator and twin")
    made.add_argument("--isa", choices=("plain", "avx2", "avx512"), help="default: the best one here")
    made.add_argument("--update", action="store_true", help="write the ratios of this run, other rows stay")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Measure, compare, print; 1 where an operator became slower."""
    given = parser().parse_args(argv)
    if not 0 < given.share <= 1 or given.rounds < 1:
        raise InputError(f"--share {given.share} --rounds {given.rounds}: a share from 0 to 1, at least one round")
    recorded = read_ratios(given.file) if given.file.exists() else {}
    if not recorded and not given.update:
        raise InputError(f"{given.file}: no recorded ratios; --update writes them")
    import torch

    from licag3d.ops import native

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    isa = native.set_isa(given.isa)
    try:
        now = {name: ratio(ours, twin, given.rounds) for name, (ours, twin) in contests().items()}
    finally:
        native.set_isa(None)
        torch.set_num_threads(threads)
    verdicts = judge(now, {name: value for (name, on), value in recorded.items() if on == isa}, given.share)
    print(table(verdicts, isa))
    if given.update:
        from licag3d.io.atomic import write_text

        write_text(given.file, written(recorded | {(name, isa): value for name, value in now.items()}))
        return 0
    return int(any(verdict.slower for verdict in verdicts))


def contests() -> dict[str, tuple[Callable, Callable]]:
    """Operator and twin by name: dense and nearly empty, forward and with gradients."""
    import torch
    from benchmark_kernels import _ball, _tube

    from licag3d.ops import (
        TriplaneDecoder,
        backproject,
        project_tubes,
        project_volume,
        query_triplane,
        reference,
        render_triplane,
    )

    edge_mm = 140.0 / 64
    grid = {"voxel_size_mm": edge_mm, "origin_mm": (-(140.0 - edge_mm) / 2,) * 3}
    view = cameras_on("cpu", 1, 128, 1.33 * 140.0 / 128)
    image = torch.from_numpy(_ball(128, 1.0)[64])[None].contiguous()
    out: dict[str, tuple[Callable, Callable]] = {}
    for kind, make in (("ball", _ball), ("tube", _tube)):
        volume = torch.from_numpy(make(64, edge_mm))
        out[f"project_volume, {kind}"] = tuple(
            lambda f=f, v=volume: f(v, view, **grid) for f in (project_volume, reference.project_volume)
        )
    out["backproject"] = tuple(
        lambda f=f: f(image, view, shape=(64, 64, 64), **grid) for f in (backproject, reference.backproject)
    )

    ball = torch.from_numpy(_ball(64, edge_mm))

    def with_gradients(f: Callable) -> None:
        values, shift = ball.clone().requires_grad_(), view.offset_lps_mm.clone().requires_grad_()
        (f(values, view.replace(offset_lps_mm=shift), **grid) * image).sum().backward()

    out["project_volume, ball, both gradients"] = tuple(
        lambda f=f: with_gradients(f) for f in (project_volume, reference.project_volume)
    )
    planes = torch.randn(3, 32, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    decoder = TriplaneDecoder.random(32, 64, mu_scale=0.02).requires_grad_()
    small = cameras_on("cpu", 1, 40, 179.2 / 40, dtype=torch.float32)
    cells = torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.02

    def render(f: Callable, occupancy) -> None:
        lines = f(planes, decoder, small, samples=48, occupancy=occupancy, **BOX)
        torch.autograd.grad(lines.sum(), [planes, *decoder.tensors().values()])

    for kind, occupancy in (("dense", None), ("nearly empty", cells)):
        out[f"render_triplane, {kind}, gradients"] = tuple(
            lambda f=f, o=occupancy: render(f, o) for f in (render_triplane, reference.render_triplane)
        )
    points = 140.0 * (torch.rand(20000, 3, generator=torch.Generator().manual_seed(2)) - 0.5)

    def query(f: Callable) -> None:
        with torch.no_grad():
            f(planes, decoder, points, **BOX)

    out["query_triplane"] = tuple(lambda f=f: query(f) for f in (query_triplane, reference.query_triplane))
    t = torch.linspace(0, 30, 201, dtype=torch.float64)
    line = torch.stack([40 * torch.cos(t) * (0.3 + t / 40), 40 * torch.sin(t) * (0.3 + t / 40), 2 * t - 30], 1)
    segments = torch.stack([torch.arange(200), torch.arange(1, 201)], 1)
    out["project_tubes"] = tuple(
        lambda f=f: f(line, 2.0 - t / 20, segments, small) for f in (project_tubes, reference.project_tubes)
    )
    return out


def ratio(ours: Callable, twin: Callable, rounds: int) -> float:
    """Least processor time of the twin over that of the operator, in turns."""
    best = [float("inf"), float("inf")]
    for turn in range(rounds + 1):  # the first warms up
        for k, call in enumerate((ours, twin)):
            begin = time.process_time()
            call()
            if turn:
                best[k] = min(best[k], time.process_time() - begin)
    return best[1] / max(best[0], 1e-9)


def judge(now: Mapping[str, float], recorded: Mapping[str, float], share: float) -> list[Verdict]:
    """A verdict per operator; what has no recorded ratio passes."""
    return [
        Verdict(name, value, recorded.get(name), name in recorded and value < share * recorded[name])
        for name, value in now.items()
    ]


def table(verdicts: Sequence[Verdict], isa: str) -> str:
    """Text for people."""
    lines = [f"{'times faster than the twin, one thread, ' + isa:58}{'now':>8}{'recorded':>10}"]
    for verdict in verdicts:
        known = "-" if verdict.recorded is None else f"{verdict.recorded:.1f}"
        lines.append(f"{verdict.operator:58}{verdict.now:8.1f}{known:>10}{'  SLOWER' if verdict.slower else ''}")
    return "\n".join(lines)


def read_ratios(file: Path) -> dict[tuple[str, str], float]:
    """Recorded ratios by operator and instruction set.

    Raises:
        InputError: the file is not such a table.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
        return {(row["operator"], row["isa"]): float(row["ratio"]) for row in rows}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not a table with the columns {', '.join(COLUMNS)} ({error})") from error


def written(ratios: Mapping[tuple[str, str], float]) -> str:
    """The text of the file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (name, isa), value in sorted(ratios.items(), key=lambda item: item[0][::-1]):
        writer.writerow((name, isa, f"{value:.3g}"))
    return out.getvalue()


if __name__ == "__main__":
    run(main)
