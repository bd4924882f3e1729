# SPDX-License-Identifier: Apache-2.0
"""The benchmark tool: cells, resumption, failures, intervals."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from licag3d.command import status_of
from licag3d.structures import View

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark_reconstruction.py"
CALLS: list[tuple[int, str]] = []


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_reconstruction", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def oracle(views: list[View], artery: str, seed: int):
    """A method that knows right trees and breaks on left ones."""
    from licag3d.phantom.simulate_case import simulate_case

    CALLS.append((len(views), artery))
    if artery == "lca":
        raise RuntimeError("left trees\nare hard")
    assert views[0].mask is not None and views[0].image.max() <= 1
    case = simulate_case(70000 + len([c for c in CALLS if c[1] == "rca"]) - 1, "rca", offset_mm=5, background="flat")
    return case.tree, case.true_cameras


@pytest.fixture()
def flags(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "oracle_method", sys.modules[__name__])
    from licag3d.phantom import simulate_case as module

    small = functools.partial(module.simulate_case, rows=96, cols=96, held_out=0)
    monkeypatch.setattr(module, "simulate_case", small)  # size does not matter here, time does
    CALLS.clear()
    return ["--out", str(tmp_path / "results" / "r.json"), "--seed", "7", "--offset", "5", "--angle-error", "0",
            "--given", "masks", "--background", "flat", "--callable", "oracle_method:oracle"]


def test_cells_are_scored_failures_counted_and_runs_continued(tool, flags, capsys):
    assert status_of(tool.main, [*flags, "--cases", "1"]) == 0
    assert len(CALLS) == 2
    assert status_of(tool.main, [*flags, "--cases", "2"]) == 0
    assert len(CALLS) == 4  # the first case of each cell was not run again
    store = json.loads(Path(flags[1]).read_text())
    assert len(store["cases"]) == 4
    right, left = (store["summary"][f"{artery} sep60 off5 ang0 masks flat"] for artery in ("rca", "lca"))
    assert (right["cases"], right["failed"]) == (2, 0) and (left["cases"], left["failed"]) == (2, 2)
    assert right["scores"]["centerline_f1_1mm"]["mean"] == 1
    assert left["scores"]["centerline_f1_1mm"] == {"n": 2, "mean": 0, "median": 0, "low_95": 0, "high_95": 0}
    assert left["scores"]["chamfer_mm"]["n"] == 0 and left["scores"]["chamfer_mm"]["mean"] is None
    failed = store["cases"]["lca_sep60_off5_ang0_masks_flat_070000"]["failed"]
    assert failed == "RuntimeError: left trees are hard"
    assert "2 failed" in capsys.readouterr().out


def test_a_file_of_another_method_is_not_continued(tool, flags, capsys):
    assert status_of(tool.main, [*flags, "--cases", "1", "--artery", "lca"]) == 0
    assert status_of(tool.main, [*flags, "--cases", "1", "--method", "other"]) == 2
    assert "another" in capsys.readouterr().err


def test_the_command_form_scores_a_command_that_fails(tool, flags, monkeypatch, tmp_path):
    case, cell = None, tool.Cell("rca", 60, 5, 0, "masks", "flat")
    from licag3d.phantom.simulate_case import simulate_case

    case = simulate_case(1, "rca", rows=64, cols=64)
    with pytest.raises(RuntimeError, match="exit status"):
        tool.by_command(["--no-such-flag"], 60)(case, cell)


def test_a_command_that_runs_too_long_is_stopped(tool):
    with pytest.raises(RuntimeError, match="no result after"):
        tool._run([sys.executable, "-c", "import time; time.sleep(30)"], 0.5)


def test_peak_memory_is_that_of_the_command(tool):
    small = tool._run([sys.executable, "-c", "import time; time.sleep(0.3)"], 30)
    large = tool._run([sys.executable, "-c", "x = bytearray(200_000_000); import time; time.sleep(0.3)"], 30)
    assert large - small > 150


def test_the_interval_covers_the_mean_and_ignores_missing_values(tool):
    values = [*np.random.default_rng(0).normal(5, 1, 200), float("nan")]
    s = tool.statistics(values)
    assert s["n"] == 200 and s["low_95"] < s["mean"] < s["high_95"]
    assert s["high_95"] - s["low_95"] == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)
    assert s == tool.statistics(values)
