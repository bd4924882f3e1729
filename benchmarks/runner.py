# SPDX-License-Identifier: Apache-2.0
"""The run itself: every case prepared once, every method that lacks a result run on it, the result file saved after
each, so that a run that was interrupted goes on where it was and counts nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.case_inputs import PreparedCase, describe_inputs, prepare_case
from benchmarks.methods import Method, Outcome, describe
from benchmarks.protocol import CaseId, Split
from benchmarks.statistics import PRIMARY, strongest_rival, summarise
from licag3d.errors import InputError
from licag3d.io.atomic import write_text

#: Described in docs/benchmark.md; a number higher means that older files cannot be continued.
SCHEMA = "licag3d-benchmark-2"
MAX_FILE_BYTES = 200_000_000


def run_split(
    split: Split,
    methods: Sequence[Method],
    store: dict,
    path: Path,
    *,
    timeout_s: float = 900.0,
    halves: Sequence[str] = (),
    tell: Callable[[str], None] = print,
    prepare: Callable[[CaseId, Path], PreparedCase] | None = None,
) -> None:
    """Run what the store lacks.

    Args:
        store: as :func:`load` gives it, changed in place and saved to ``path`` after every method of every case.
        halves: names of methods that are run on the even cells alone (:attr:`benchmarks.protocol.Cell.even`).
        prepare: for tests; default :func:`benchmarks.case_inputs.prepare_case`.

    Raises:
        InputError: the inputs of a case are no longer those that other methods were given.
    """
    prepare = prepare or (lambda case, folder: prepare_case(case.cell, case.seed, folder))
    planned = store["protocol"].get("planned", [])
    store["protocol"]["planned"] = list(dict.fromkeys([*planned, *(case.name for case in split.cases)]))
    for method in methods:
        store["methods"][method.name] = {
            "kind": method.kind,
            **method.facts,
            "cells": "every other" if method.name in halves else "all",
        }
    for number, case in enumerate(split.cases, 1):
        done = store["cases"].get(case.name, {}).get("results", {})
        missing = [m for m in methods if m.name not in done and (m.name not in halves or case.cell.even)]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="licag3d-benchmark-") as name:
            prepared = prepare(case, Path(name) / "case")
            record = _record(store, case, prepared)
            for method in missing:
                outcome = method.run(prepared, timeout_s)
                record["results"][method.name] = scored(outcome, prepared)
                save(path, store)
                tell(
                    f"[{number}/{len(split.cases)}] {case.name} {method.name}: {_line(record['results'][method.name])}"
                )
    store["summary"], store["strongest_rival"] = summarise(store), strongest_rival(store)
    save(path, store)


def scored(outcome: Outcome, case: PreparedCase) -> dict:
    """The record of one result. A method that failed, or whose tree cannot be scored, gets the scores of an empty
    tree: shares 0, distances missing."""
    from licag3d.metrics.scores import failure_scores, score

    failed, scores = outcome.failed, None
    if outcome.result is not None:
        try:
            # Cameras as given stand for a method that moved none.
            scores = score(outcome.result.tree, case.truth, outcome.result.cameras or case.inputs.cameras)
        except Exception as error:  # a tree that no score takes is the method's failure
            failed = describe(error)
    if scores is None:
        scores = failure_scores(case.truth)
    return {
        "failed": failed,
        "seconds": outcome.seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "peak_memory_mb": outcome.peak_memory_mb,
        "scores": scores,
        "facts": {} if outcome.result is None else outcome.result.facts,
    }


def _record(store: dict, case: CaseId, prepared: PreparedCase) -> dict:
    """The entry of a case in the store, made at its first method."""
    digest = inputs_digest(prepared)
    record = store["cases"].setdefault(
        case.name,
        {
            **asdict(case.cell),
            "seed": case.seed,
            "inputs_sha256": digest,
            "truth_length_mm": prepared.truth.tree.length_mm,
            "truth_branches": len(prepared.truth.tree.branches),
            "initial_offset": {
                "shift_across_mm": list(prepared.guess.shift_mm),
                "disagreement_before": prepared.guess.disagreement_before,
                "disagreement": prepared.guess.disagreement,
            },
            "results": {},
        },
    )
    if record["inputs_sha256"] != digest:
        raise InputError(
            f"case {case.name}: the phantom or the evidence has changed since other methods were run on it, so the "
            "results could not be compared; give another --out and run all methods again"
        )
    return record


def inputs_digest(case: PreparedCase) -> str:
    """SHA-256 over everything that methods are given, and over the true tree."""
    digest = hashlib.sha256()
    inputs = case.inputs
    for name in ("images", "valid", "masks", "line_integrals", "probabilities", "radius_px", "confidences"):
        for array in getattr(inputs, name):
            digest.update(np.ascontiguousarray(array).tobytes())
    for camera in (*inputs.cameras, *case.guess.cameras):
        digest.update(repr(camera).encode())
    for branch in case.truth.tree.branches:
        digest.update(np.ascontiguousarray(branch.points_lps_mm, np.float64).tobytes())
    return digest.hexdigest()


def _line(result: dict) -> str:
    text = f"F1 1 mm {result['scores']['centerline_f1_1mm']:.3f}, after similarity {result['scores'][PRIMARY]:.3f}, "
    return text + f"{result['seconds']:.1f} s" + (f", FAILED: {result['failed']}" if result["failed"] else "")


def load(path: Path, split_name: str) -> dict:
    """The result file, or a new one.

    Raises:
        InputError: the file is no result of this benchmark, or of another split.
    """
    if not path.exists():
        protocol = {
            "split": split_name,
            "primary_score": PRIMARY,
            "angle_error_deg": "angle_error_deg of every case: the norm of the reading error of both angles, each view",
            "given": describe_inputs(),
            "failures": "a method that fails counts 0 in every share and is left out of distances",
        }
        empty = {"schema": SCHEMA, "split": split_name, "protocol": protocol, "machine": machine(), "methods": {}}
        return {**empty, "cases": {}, "summary": {}, "strongest_rival": None}
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than any result file; give another --out")
        store = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be continued ({error}); give another --out") from None
    faults = schema_faults(store)
    if faults:
        raise InputError(f"{path} is no result file of this benchmark ({faults[0]}); give another --out")
    if store["split"] != split_name:
        raise InputError(f"{path} holds the split {store['split']}, not {split_name}; give another --out")
    return store


def schema_faults(store: object) -> list[str]:
    """What is wrong with a result file, one phrase each; empty when it is sound."""
    if not isinstance(store, dict) or store.get("schema") != SCHEMA:
        return [f"its schema is not {SCHEMA}"]
    faults = [f"{key} is missing" for key in ("split", "protocol", "machine", "methods", "cases") if key not in store]
    for key in ("methods", "cases", "protocol", "machine"):
        if not isinstance(store.get(key), dict):
            faults.append(f"{key} is not an object")
    if faults:
        return faults
    for name, method in store["methods"].items():
        if not isinstance(method, dict) or method.get("kind") not in ("ours", "rival", "callable"):
            faults.append(f"method {name} has no kind")
    needed = ("artery", "separation_deg", "offset_mm", "background", "track", "seed", "inputs_sha256", "results")
    for name, case in store["cases"].items():
        if not isinstance(case, dict) or not all(key in case for key in needed):
            faults.append(f"case {name} is incomplete")
            continue
        for method, result in case["results"].items():
            if method not in store["methods"]:
                faults.append(f"case {name} has a result of {method}, which is not among the methods")
            keys = ("failed", "seconds", "cpu_seconds", "peak_memory_mb", "scores")
            if not all(key in result for key in keys) or PRIMARY not in result["scores"]:
                faults.append(f"case {name}, {method}: result incomplete")
    return faults


def save(path: Path, store: dict) -> None:
    """Write the result file atomically, NaN as null."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(clean(store), indent=1, allow_nan=False) + "\n")


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    import torch

    import licag3d

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0") or 0) or os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "licag3d": licag3d.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
