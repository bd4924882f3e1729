# SPDX-License-Identifier: Apache-2.0
"""Benchmark reconstructions on the phantom: ours, the rivals, or any Python function; docs/benchmark.md.

    python tools/benchmark_reconstruction.py --out out.json --split quick
    python tools/benchmark_reconstruction.py --out benchmarks/results/leaderboard.json --split leaderboard --methods all
    python tools/benchmark_reconstruction.py --out out.json --split quick --callable package.module:function
    python tools/benchmark_reconstruction.py --out benchmarks/results/leaderboard.json --split leaderboard --render

Ours is run as a user would, ``python -m licag3d.invert`` once per case. A callable gets
:class:`benchmarks.baselines.Inputs` and returns :class:`benchmarks.baselines.Result`. Every finished result is in the
file at once; a run that was interrupted goes on with what is missing, and never counts a case twice. A method that
fails or runs out of time counts zero.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the package benchmarks, which is not installed

from benchmarks import methods as known
from benchmarks.protocol import ARTERIES, BACKGROUNDS, TRACKS, limited, make_split
from licag3d.command import Parser, run
from licag3d.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(
        prog="python tools/benchmark_reconstruction.py", description="Score reconstructions on phantom cases."
    )
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON), continued if it exists")
    made.add_argument("--split", default="quick", help="quick, leaderboard, full or validation (default quick)")
    made.add_argument("--cases", type=int, metavar="N", help="cases per cell (default: that of the split)")
    made.add_argument("--patient", type=int, metavar="K", help="only the K-th case of every cell, 1 for the first")
    made.add_argument(
        "--methods",
        nargs="+",
        default=[known.OURS],
        metavar="NAME",
        help="licag3d (default), all, or names: " + ", ".join(known.known_names()[1:]),
    )
    made.add_argument(
        "--half", nargs="*", default=[], metavar="NAME", help="methods to run on every other cell only, being slow"
    )
    made.add_argument("--command", metavar="FLAGS", help=f"flags for licag3d.invert (default '{known.OUR_FLAGS}')")
    made.add_argument("--method", metavar="NAME", help="name in the result file for --command or --callable")
    made.add_argument("--callable", metavar="MODULE:FUNCTION", help="benchmark a Python function, Inputs -> Result")
    made.add_argument("--artery", nargs="+", choices=ARTERIES, help="only these cells")
    made.add_argument("--separation", nargs="+", type=float, metavar="DEG", help="only these cells (40, 60, 90)")
    made.add_argument("--offset", nargs="+", type=float, metavar="MM", help="only these cells (0, 2, 5, 8)")
    made.add_argument("--background", nargs="+", choices=BACKGROUNDS, help="only these cells")
    made.add_argument(
        "--track",
        choices=("by-background", "both", *TRACKS),
        default="by-background",
        help="what methods are given: true masks or images; by default masks where the background is flat, images "
        "where it is full",
    )
    made.add_argument(
        "--timeout", type=float, default=900.0, metavar="S", help="seconds per case before it counts as failed"
    )
    made.add_argument("--render", action="store_true", help="run nothing; write table and plots beside the file")
    made.add_argument("--list", action="store_true", help="run nothing; print the cases")
    return made


def main(argv: list[str]) -> int:
    """Run what is missing, then write table and plots beside the file and print the table."""
    given = parser().parse_args(argv)
    if not 0 < given.timeout <= 86_400:
        raise InputError(f"--timeout {given.timeout:g}: give seconds, more than 0 and at most 86400")
    if given.patient is not None and (given.patient < 1 or given.cases is not None):
        raise InputError(f"--patient {given.patient}: give a number from 1 on, without --cases")
    cases = given.cases if given.patient is None else given.patient
    split = make_split(given.split, cases=cases, tracks=given.track.replace("-", " "))
    if given.patient is not None:
        split = replace(split, skip=given.patient - 1)
    levels = {
        "artery": given.artery,
        "separation_deg": given.separation,
        "offset_mm": given.offset,
        "background": given.background,
    }
    split = limited(split, **{name: tuple(values) for name, values in levels.items() if values})
    if given.list:
        print("\n".join(case.name for case in split.cases))
        return 0
    from benchmarks.leaderboard import render
    from benchmarks.runner import load, run_split

    path = Path(given.out)
    if given.render:
        if not path.is_file():
            raise InputError(f"--render: {path} does not exist; run the benchmark first")
        store = load(path, split.name)
    else:
        chosen = _methods(given)
        strange = sorted(set(given.half) - {method.name for method in chosen})
        if strange:
            raise InputError(f"--half {strange[0]}: not among the methods of this run")
        store = load(path, split.name)
        try:
            run_split(
                split,
                chosen,
                store,
                path,
                timeout_s=given.timeout,
                halves=given.half,
                tell=lambda line: print(line, flush=True),
            )
        finally:
            known.WORKER.stop()
    print(render(path, store))
    return 0


def _methods(given: argparse.Namespace) -> list[known.Method]:
    """The methods asked for; a callable comes instead of ours."""
    if given.callable:
        if given.command:
            raise InputError("--callable and --command exclude each other; give one")
        return [known.callable_method(given.callable, given.method)]
    flags = known.OUR_FLAGS if given.command is None else given.command
    names = known.known_names() if given.methods == ["all"] else given.methods
    if len(set(names)) != len(names):
        raise InputError("--methods names one method twice; give each once")
    if given.command is not None and not given.method and known.OURS in names:
        raise InputError("--command needs --method NAME, so that results of other flags are not taken for ours")
    return [
        known.our_method(given.method, flags) if name == known.OURS and given.method else known.make_method(name)
        for name in names
    ]


if __name__ == "__main__":
    run(main)
