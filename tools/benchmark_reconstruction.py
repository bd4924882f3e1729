# SPDX-License-Identifier: Apache-2.0
"""Benchmark a reconstruction on the phantom: artery x separation x offset x angle error x masks or images.

    python tools/benchmark_reconstruction.py --out benchmarks/results/reconstruction.json --cases 10
    python tools/benchmark_reconstruction.py --out out.json --quick
    python tools/benchmark_reconstruction.py --out out.json --callable package.module:function

Without ``--callable`` it runs ``python -m licag3d.invert`` once per case, as a user would. A callable gets ``(views,
artery, seed)``, with views as ``licag3d.structures.View`` (the mask set where the cell gives masks), and returns the
tree and the refined cameras. Every finished case is in the result file at once; a run that was interrupted goes on
with the cases that are missing, and never counts one twice. A method that fails or runs out of time is scored as a
failure.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from licag3d.command import Parser, run
from licag3d.errors import InputError
from licag3d.simulate import CASES_PER_SEED

SCHEMA = "licag3d-benchmark-1"
#: What the table prints; the file holds every score.
SHOWN = (
    "centerline_f1_1mm",
    "centerline_f1_1mm_after_translation",
    "centerline_f1_1mm_after_similarity",
    "centerline_f1_2mm_after_similarity",
    "centerline_precision_1mm_after_similarity",
    "centerline_recall_1mm_after_similarity",
    "chamfer_mm_after_similarity",
    "heldout_reprojection_mm_after_similarity",
    "seconds",
)
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Cell:
    """One condition of the benchmark."""

    artery: str
    separation_deg: float
    offset_mm: float
    angle_error_deg: float
    given: str  # "masks" or "images"
    background: str

    @property
    def name(self) -> str:
        """Short and unique."""
        return (
            f"{self.artery} sep{self.separation_deg:g} off{self.offset_mm:g} ang{self.angle_error_deg:g} {self.given} "
            f"{self.background}"
        )

    def case_id(self, seed: int) -> str:
        """Name of one case of the cell."""
        return f"{self.name.replace(' ', '_')}_{seed:06d}"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python tools/benchmark_reconstruction.py", description="Score a reconstruction on phantom cases."
    )
    result.add_argument("--out", required=True, metavar="FILE", help="result file (JSON), continued if it exists")
    result.add_argument("--cases", type=int, default=10, help="cases per cell")
    result.add_argument("--seed", type=int, default=9, help="case seeds are SEED * 10000 + number")
    result.add_argument("--artery", nargs="+", default=["rca", "lca"], choices=("rca", "lca"))
    result.add_argument("--separation", nargs="+", type=float, default=[60.0], metavar="DEG")
    result.add_argument("--offset", nargs="+", type=float, default=[0.0, 5.0, 20.0], metavar="MM")
    result.add_argument("--angle-error", nargs="+", type=float, default=[0.0, 1.0], metavar="DEG")
    result.add_argument("--given", nargs="+", default=["masks", "images"], choices=("masks", "images"))
    result.add_argument("--background", default="full", choices=("full", "flat"))
    result.add_argument("--command", default="", metavar="FLAGS", help="more flags for licag3d.invert, in one string")
    result.add_argument(
        "--callable", metavar="MODULE:FUNCTION", help="benchmark a Python function instead of the command"
    )
    result.add_argument("--method", help="name of the method in the result file (default: the command or the callable)")
    result.add_argument(
        "--timeout", type=float, default=900.0, metavar="S", help="seconds per case before it counts as failed"
    )
    result.add_argument("--quick", action="store_true", help="two cases of four cells, for a first look")
    return result


def main(argv: list[str]) -> int:
    """Run what is missing, print the table of what is there."""
    arguments = parser().parse_args(argv)
    if not 1 <= arguments.cases <= CASES_PER_SEED or not 0 <= arguments.seed <= 400_000:
        raise InputError(
            f"--cases {arguments.cases}, --seed {arguments.seed}: give 1 to {CASES_PER_SEED} cases and a seed from "
            "0 to 400000"
        )
    cells = cells_of(arguments)
    cases = min(arguments.cases, 2) if arguments.quick else arguments.cases
    method = arguments.method or arguments.callable or " ".join(["licag3d.invert", arguments.command]).strip()
    path = Path(arguments.out)
    store = load(path, method)
    reconstruct = (
        by_callable(arguments.callable)
        if arguments.callable
        else by_command(shlex.split(arguments.command), arguments.timeout)
    )
    run_cells(cells, cases, arguments.seed, reconstruct, store, path)
    print_table(store, [cell.name for cell in cells])
    return 0


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The cells asked for, in a fixed order."""
    if arguments.quick:
        return [
            Cell(artery, 60.0, 5.0, 1.0, given, arguments.background)
            for artery, given in itertools.product(("rca", "lca"), ("masks", "images"))
        ]
    return [
        Cell(*values, arguments.background)
        for values in itertools.product(
            arguments.artery, arguments.separation, arguments.offset, arguments.angle_error, arguments.given
        )
    ]


def run_cells(cells: Iterable[Cell], cases: int, seed: int, reconstruct: Callable, store: dict, path: Path) -> None:
    """Reconstruct and score what the store lacks; the store is saved after every case."""
    from licag3d.metrics.scores import Truth, failure_scores, score
    from licag3d.phantom.simulate_case import simulate_case

    for cell in cells:
        for number in range(cases):
            case_seed = seed * CASES_PER_SEED + number
            identity = cell.case_id(case_seed)
            if identity in store["cases"]:
                continue
            case = simulate_case(
                case_seed,
                cell.artery,
                separation_deg=cell.separation_deg,
                offset_mm=cell.offset_mm,
                angle_error_deg=cell.angle_error_deg,
                background=cell.background,
            )
            truth = Truth(case.tree, case.true_cameras, [view.true_camera for view in case.held_out])
            began = time.perf_counter()
            failed, memory_mb, scores = None, None, None
            try:
                tree, cameras, memory_mb = reconstruct(case, cell)
                seconds = time.perf_counter() - began
                if cameras is not None and len(cameras) != len(case.views):
                    raise InputError(f"{len(cameras)} cameras came back for {len(case.views)} views")
                scores = score(tree, truth, cameras)
            except Exception as error:  # whatever a method raises is its failure, not the benchmark's
                seconds = time.perf_counter() - began
                failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                scores = failure_scores(truth)
            store["cases"][identity] = {
                "cell": cell.name,
                **asdict(cell),
                "seed": case_seed,
                "failed": failed,
                "seconds": seconds,
                "peak_memory_mb": memory_mb,
                "scores": scores,
            }
            store["summary"] = summarise(store["cases"])
            save(path, store)
            print(
                f"{identity}: F1 1 mm {scores['centerline_f1_1mm']:.3f}, after similarity "
                f"{scores['centerline_f1_1mm_after_similarity']:.3f}, {seconds:.1f} s"
                + (f", {failed}" if failed else ""),
                flush=True,
            )


def by_command(flags: list[str], timeout_s: float) -> Callable:
    """Reconstruct with ``python -m licag3d.invert`` in a folder of its own; peak memory is the child's."""

    def reconstruct(case, cell: Cell):
        from licag3d.metrics.files import read_cameras, read_tree
        from licag3d.phantom.write_case import Content, write_case

        with tempfile.TemporaryDirectory(prefix="licag3d-benchmark-") as name:
            folder, out = Path(name) / "case", Path(name) / "out"
            write_case(folder, case, Content(projections=False, mesh=False, labels=False))
            numbers = range(1, len(case.views) + 1)
            command = [
                sys.executable,
                "-m",
                "licag3d.invert",
                "--views",
                *[str(folder / f"view_{k}.png") for k in numbers],
                "--cameras",
                str(folder / "cameras.json"),
                "--artery",
                case.artery,
                "--out",
                str(out),
                *flags,
            ]
            if cell.given == "masks":
                command += ["--masks", *[str(folder / "truth" / f"view_{k}_mask.png") for k in numbers]]
            memory_mb = _run(command, timeout_s)
            return read_tree(out / "centerlines.json"), read_cameras(out / "cameras.json"), memory_mb

    return reconstruct


def _run(command: list[str], timeout_s: float) -> float | None:
    """Run to the end or to the time limit; peak resident memory in MB (None where the system does not tell).

    Raises:
        RuntimeError: time limit, or an exit status other than 0 with the last line of stderr.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        deadline, peak_mb = time.monotonic() + timeout_s, None
        try:
            while process.poll() is None:
                peak_mb = _peak_mb(process.pid) or peak_mb
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no result after {timeout_s:g} s")
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            errors.seek(0)
            lines = errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
            raise RuntimeError(f"exit status {process.returncode}: {lines[-1] if lines else 'no message'}")
    return peak_mb


def _peak_mb(pid: int) -> float | None:
    """High-water mark of resident memory so far. The figure of wait4 will not do: it begins with that of the parent."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) / 1024 if lines else None


def by_callable(name: str) -> Callable:
    """Reconstruct with ``module:function``."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--callable {name}: {error}; give MODULE:FUNCTION that can be imported") from None

    def reconstruct(case, cell: Cell):
        return *function(views_of(case, cell.given == "masks"), case.artery, 0), None

    return reconstruct


def views_of(case, masks: bool) -> list:
    """A case as a method sees it: display images and the cameras of a user, with masks where given."""
    from licag3d.structures import View

    return [
        View(
            view.image.astype(np.float32) / 255,
            view.user_camera,
            view.image > 0,
            view.mask if masks else None,
            file=f"view_{k + 1}.png",
        )
        for k, view in enumerate(case.views)
    ]


def summarise(cases: dict[str, dict]) -> dict[str, dict]:
    """Per cell: number, failures, and mean, median and bootstrap 95 % interval of the mean of every score.

    Distances do not exist for failures: they are left out there and their number ``n`` says so; shares count 0.
    """
    result: dict[str, dict] = {}
    for cell in dict.fromkeys(case["cell"] for case in cases.values()):
        chosen = [case for case in cases.values() if case["cell"] == cell]
        rows = [{**case["scores"], "seconds": case["seconds"]} for case in chosen]
        result[cell] = {
            "cases": len(chosen),
            "failed": sum(case["failed"] is not None for case in chosen),
            "scores": {name: statistics([row[name] for row in rows if row.get(name) is not None]) for name in rows[0]},
        }
    return result


def statistics(values: list[float]) -> dict[str, float | int]:
    """Mean, median and percentile bootstrap 95 % interval of the mean (fixed seed), over the finite values."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if len(finite) == 0:
        return {"n": 0, "mean": math.nan, "median": math.nan, "low_95": math.nan, "high_95": math.nan}
    draws = np.random.default_rng(0).choice(finite, (BOOTSTRAP_DRAWS, len(finite))).mean(1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {
        "n": len(finite),
        "mean": float(finite.mean()),
        "median": float(np.median(finite)),
        "low_95": float(low),
        "high_95": float(high),
    }


def load(path: Path, method: str) -> dict:
    """The result file, or a new one.

    Raises:
        InputError: the file is no result of this benchmark, or of another method.
    """
    if not path.exists():
        return {"schema": SCHEMA, "method": method, "machine": machine(), "summary": {}, "cases": {}}
    try:
        store = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be continued ({error}); give another --out") from None
    if not isinstance(store, dict) or store.get("schema") != SCHEMA or store.get("method") != method:
        raise InputError(f"{path} belongs to another benchmark or method; give another --out")
    return store


def save(path: Path, store: dict) -> None:
    """Write the result file atomically, NaN as null."""
    from licag3d.io.atomic import write_text

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(clean(store), indent=1, allow_nan=False) + "\n")


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def print_table(store: dict, names: list[str]) -> None:
    """Mean, median and interval per cell."""
    summary = summarise(store["cases"])
    for name in names:
        if name not in summary:
            continue
        cell = summary[name]
        print(f"\n{name}: {cell['cases']} cases, {cell['failed']} failed")
        for score_name in SHOWN:
            s = cell["scores"][score_name]
            print(
                f"  {score_name:<44} mean {s['mean']:8.3f}  median {s['median']:8.3f}  95 % [{s['low_95']:.3f}, "
                f"{s['high_95']:.3f}]  n {s['n']}"
            )


if __name__ == "__main__":
    run(main)
