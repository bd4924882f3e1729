# SPDX-License-Identifier: Apache-2.0
"""The benchmark tool: resumption, failures, schema, tables, plots, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from licag3d.command import status_of

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import methods, runner, statistics  # noqa: E402
from benchmarks.baselines import Inputs, Result  # noqa: E402
from benchmarks.case_inputs import PreparedCase, prepare_case  # noqa: E402
from benchmarks.offset import OffsetGuess  # noqa: E402
from benchmarks.protocol import make_split  # noqa: E402
from licag3d.geometry import Camera  # noqa: E402
from licag3d.metrics.scores import Truth  # noqa: E402
from licag3d.structures import Branch, VesselTree  # noqa: E402

CALLS: list[tuple[str, int]] = []
TREE = VesselTree((Branch(0, None, np.stack([np.zeros(30), np.zeros(30), np.arange(30.0)], 1), np.ones(30)),))
CAMERAS = tuple(Camera(a, 0.0, 1000.0, 750.0, 2.0, 2.0, 16, 16) for a in (-30.0, 30.0))


def oracle(inputs: Inputs) -> Result:
    """A method that knows right trees and breaks on left ones."""
    CALLS.append((inputs.artery, inputs.seed))
    if inputs.artery == "lca":
        raise RuntimeError("left trees\nare hard")
    return Result(TREE, facts={"tries": 1.0})


def near_miss(inputs: Inputs) -> Result:
    """Half of the tree."""
    CALLS.append(("half", inputs.seed))
    half = replace(TREE.branches[0], points_lps_mm=TREE.branches[0].points_lps_mm[:15], radius_mm=np.ones(15))
    return Result(VesselTree((half,)))


def sleeper(inputs: Inputs) -> Result:
    """Too slow."""
    time.sleep(60)
    return Result(TREE)


def wrong_cameras(inputs: Inputs) -> Result:
    """One camera for two views."""
    return Result(TREE, inputs.cameras[:1])


def fake_inputs(artery: str, seed: int, track: str) -> Inputs:
    blank = tuple(np.full((16, 16), 0.5, np.float32) for _ in range(2))
    mask = tuple(np.eye(16, dtype=bool) for _ in range(2))
    return Inputs(blank, mask, mask, blank, blank, blank, blank, CAMERAS, artery, track, seed)


def fake_prepare(case, folder: Path) -> PreparedCase:
    inputs = fake_inputs(case.cell.artery, case.seed, case.cell.track)
    return PreparedCase(inputs, OffsetGuess(CAMERAS, (0.0,), 0.1, 0.1), Truth(TREE, list(CAMERAS)), folder)


def in_process(name: str, function: str, kind: str = "rival") -> methods.Method:
    made = methods.callable_method(f"oracle_methods:{function}", name, isolated=False)
    return replace(made, kind=kind)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "oracle_methods", sys.modules[__name__])
    CALLS.clear()


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "benchmark_reconstruction", ROOT / "tools/benchmark_reconstruction.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_quick(path: Path, chosen, cases: int = 1, **options) -> dict:
    store = runner.load(path, "quick")
    split = make_split("quick", cases=cases)
    runner.run_split(split, chosen, store, path, prepare=fake_prepare, tell=lambda line: None, **options)
    return json.loads(path.read_text())


def test_results_are_scored_failures_count_zero_and_nothing_is_run_twice(tmp_path):
    path = tmp_path / "results" / "r.json"
    chosen = [in_process("oracle", "oracle")]
    run_quick(path, chosen)
    assert len(CALLS) == 4
    store = run_quick(path, chosen, cases=2)
    assert len(CALLS) == 8 and len(set(CALLS)) == 8  # the first cases were not run again
    assert runner.schema_faults(store) == []
    overall = store["summary"]["oracle"]["overall"]
    assert (overall["cases"], overall["failed"]) == (8, 4)
    assert overall["scores"][statistics.PRIMARY]["mean"] == pytest.approx(0.5)
    left = store["summary"]["oracle"]["artery=lca"]["scores"]
    assert left["centerline_f1_1mm"] == {"n": 4, "mean": 0, "median": 0, "low_95": 0, "high_95": 0}
    assert left["chamfer_mm"]["n"] == 0 and left["chamfer_mm"]["mean"] is None
    failed = next(c for c in store["cases"].values() if c["artery"] == "lca")["results"]["oracle"]
    assert failed["failed"] == "RuntimeError: left trees are hard" and failed["peak_memory_mb"] > 0
    run_quick(path, [*chosen, in_process("half", "near_miss")], cases=2)
    assert len(CALLS) == 16 and CALLS[8:] == [("half", seed) for _, seed in CALLS[8:]]


def test_an_interrupted_run_keeps_every_finished_result(tmp_path):
    path = tmp_path / "r.json"
    stop = replace(
        in_process("half", "near_miss"), run=lambda case, timeout_s: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run_quick(path, [in_process("oracle", "oracle"), stop])
    store = json.loads(path.read_text())
    assert sum("oracle" in case["results"] for case in store["cases"].values()) == 1
    run_quick(path, [in_process("oracle", "oracle"), in_process("half", "near_miss")])
    assert len([call for call in CALLS if call[0] != "half"]) == 4


def test_changed_inputs_are_not_mixed_with_older_results(tmp_path):
    from licag3d.errors import InputError

    path = tmp_path / "r.json"
    run_quick(path, [in_process("oracle", "oracle")])
    store = json.loads(path.read_text())
    for case in store["cases"].values():
        case["inputs_sha256"] = "0" * 64
    path.write_text(json.dumps(store))
    with pytest.raises(InputError, match="has changed"):
        run_quick(path, [in_process("half", "near_miss")])


def test_half_of_the_cells_and_the_rival_to_beat(tmp_path):
    path = tmp_path / "r.json"
    chosen = [in_process("ours", "oracle", "ours"), in_process("slow", "near_miss"), in_process("rival", "oracle")]
    store = run_quick(path, chosen, halves=["slow"])
    assert sum("slow" in case["results"] for case in store["cases"].values()) == 2
    assert store["methods"]["slow"]["cells"] == "every other"
    common = [case for case in store["cases"].values() if "slow" in case["results"]]
    best = max(("slow", "rival"), key=lambda n: sum(c["results"][n]["scores"][statistics.PRIMARY] for c in common))
    assert store["strongest_rival"] == best
    difference = statistics.paired(store, "ours", "slow")
    assert difference["n"] == 2 and difference["low_95"] <= difference["mean"] <= difference["high_95"]


def test_table_and_plots_are_written(tmp_path):
    from benchmarks.leaderboard import render

    path = tmp_path / "r.json"
    store = run_quick(path, [in_process("first", "oracle"), in_process("second", "near_miss")], cases=2)
    text = render(path, store)
    assert text == (tmp_path / "r.md").read_text() and "rival to beat" in text and "| `second` | 8 | 0 |" in text
    assert all(name in text for name in store["cases"])
    for suffix in ("shift", "separation"):
        root = ElementTree.parse(tmp_path / f"r_{suffix}.svg").getroot()
        assert root.tag.endswith("svg") and "second" in "".join(root.itertext())


def test_a_call_that_hangs_or_dies_costs_one_case(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    worker = methods._Worker()
    inputs = fake_inputs("rca", 1, "masks")
    name = Path(__file__).stem
    slow = worker.call(f"{name}:sleeper", inputs, 0.5)
    assert slow.result is None and "no result after 0.5 s" in slow.failed
    dead = worker.call("os:abort", inputs, 60.0)  # takes no argument: an exception, not a crash
    assert dead.failed.startswith("TypeError")
    fine = worker.call(f"{name}:near_miss", inputs, 60.0)
    assert fine.failed is None and fine.result.tree.length_mm == 14 and fine.peak_memory_mb > 10
    assert "1 cameras came back for 2 views" in worker.call(f"{name}:wrong_cameras", inputs, 60.0).failed
    worker.stop()


def test_the_command_form_reports_time_limit_status_and_memory():
    with pytest.raises(RuntimeError, match="no result after"):
        methods.run_process([sys.executable, "-c", "import time; time.sleep(30)"], 0.5)
    with pytest.raises(RuntimeError, match="exit status 3"):
        methods.run_process([sys.executable, "-c", "raise SystemExit(3)"], 30)
    small = methods.run_process([sys.executable, "-c", "import time; time.sleep(0.3)"], 30)
    large = methods.run_process([sys.executable, "-c", "x = bytearray(200_000_000); import time; time.sleep(0.3)"], 30)
    assert large - small > 150


def test_a_prepared_case_is_what_a_user_has(tmp_path):
    case = make_split("validation").cases[0]
    prepared = prepare_case(case.cell, case.seed, tmp_path / "case", rows=96, cols=96)
    inputs = prepared.inputs
    assert inputs.track == "masks" and len(inputs.images) == 2 and inputs.masks[0].any()
    assert all(camera.offset_lps_mm == (0.0, 0.0, 0.0) for camera in inputs.cameras)
    true, read = prepared.truth.cameras[0], inputs.cameras[0]
    error = np.hypot(true.primary_deg - read.primary_deg, true.secondary_deg - read.secondary_deg)
    assert error == pytest.approx(1.0, abs=1e-6)
    again = prepare_case(case.cell, case.seed, tmp_path / "again", rows=96, cols=96)
    assert runner.inputs_digest(prepared) == runner.inputs_digest(again)
    outcome = methods.run_command(prepared, ["--no-such-flag"], 60)
    assert outcome.result is None and "exit status 2" in outcome.failed


def test_the_interval_covers_the_mean_and_ignores_missing_values():
    values = [*np.random.default_rng(0).normal(5, 1, 200), float("nan"), None]
    s = statistics.statistics(values)
    assert s["n"] == 200 and s["low_95"] < s["mean"] < s["high_95"]
    assert s["high_95"] - s["low_95"] == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)
    assert s == statistics.statistics(values)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cases", "0"], "give 1 to"),
        (["--split", "best"], "choose one of"),
        (["--separation", "0"], "choose among 40"),
        (["--offset", "-1"], "choose among 0"),
        (["--timeout", "0"], "give seconds"),
        (["--timeout", "nan"], "give seconds"),
        (["--methods", "nerf"], "is not known"),
        (["--methods", "sirt", "sirt"], "twice"),
        (["--methods", "sirt", "--half", "tv"], "not among"),
        (["--callable", "no_such_module:f"], "can be imported"),
        (["--callable", "json:dumps", "--command", "x"], "exclude"),
        (["--command=--quality best"], "needs --method"),
        (["--render"], "does not exist"),
    ],
)
def test_what_is_wrong_is_refused_with_status_2(tool, tmp_path, capsys, flags, said):
    assert status_of(tool.main, ["--out", str(tmp_path / "r.json"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": "licag3d-benchmark-1"}', '{"schema": "licag3d-benchmark-2"}']
)
def test_a_file_of_something_else_is_not_touched(tool, tmp_path, capsys, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    assert status_of(tool.main, ["--out", str(path), "--artery", "rca"]) == 2
    assert "another --out" in capsys.readouterr().err and path.read_text() == content


def test_a_file_of_another_split_is_not_continued_and_cases_are_listed(tool, tmp_path, capsys):
    path = tmp_path / "r.json"
    run_quick(path, [in_process("oracle", "oracle")])
    assert status_of(tool.main, ["--out", str(path), "--split", "leaderboard"]) == 2
    assert "holds the split quick" in capsys.readouterr().err
    assert status_of(tool.main, ["--out", str(path), "--split", "leaderboard", "--list"]) == 0
    assert len(capsys.readouterr().out.split()) == 48
    assert status_of(tool.main, ["--out", str(path), "--render"]) == 0
    assert "`oracle`" in capsys.readouterr().out
