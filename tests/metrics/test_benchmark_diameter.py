# SPDX-License-Identifier: Apache-2.0
"""The diameter benchmark: its starts, its summary, its refusals."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for the package ``benchmarks``

from benchmarks import diameter_scores, diseased_cases  # noqa: E402
from licag3d.errors import InputError  # noqa: E402
from licag3d.phantom.anatomy import sample_tree  # noqa: E402
from licag3d.structures import VesselTree  # noqa: E402
from licag3d.vessels.tree import resample_tree, validate_tree  # noqa: E402

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_diameter.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_diameter", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_perturbed_start_is_off_by_what_it_says(tool):
    true = resample_tree(sample_tree(3, "rca"), 0.5)
    starts = [diseased_cases.perturbed(sample_tree(3, "rca"), seed) for seed in range(6)]
    assert all(isinstance(start, VesselTree) and not validate_tree(start) for start in starts)
    gone, wider = [], []
    for start in starts:
        for a, b in zip(start.branches, true.branches, strict=True):
            gone.append(((a.points_lps_mm - b.points_lps_mm)[1:] ** 2).sum(1))
            wider.append(np.log(a.radius_mm / b.radius_mm))
    assert math.sqrt(np.concatenate(gone).mean()) == pytest.approx(0.5, rel=0.15)
    assert np.concatenate(wider).std() == pytest.approx(0.2, abs=0.05)


def test_the_summary_leaves_out_what_is_not_known_and_pools_lesions(tool):
    def scored(value, lesions):
        told = {"reported_50": [1, 2, 1], "reported_70": [0, 1, 0], "told": [[-0.3, 0.2, 1.0]] * len(lesions)}
        times = diameter_scores.TIMES
        return {"found, images": {when: {"diameter_sd_mm": value, "mld": lesions} | told for when in times}}

    cases = {
        "a": scored(0.2, [[0.1, -4.0, 75.0, 0.06], [None, None, 80.0, None]]),
        "b": scored(None, [[-0.3, 2.0, 40.0, 0.4]]),
        "c": scored(0.4, []),
    }
    found = diameter_scores.summary(cases)["found, images"]["after"]
    assert found["diameter_sd_mm"]["n"] == 2 and found["diameter_sd_mm"]["mean"] == pytest.approx(0.3)
    assert found["lesions"] == 3
    assert found["mld_bias_mm"]["mean"] == pytest.approx(-0.1)
    assert found["mld_error_mm"]["mean"] == pytest.approx(0.2)
    assert found["mld_sd_mm"] == pytest.approx(0.2)
    assert found["mld_within_1_deviations"] == 0.5 and found["mld_within_2_deviations"] == 1.0
    assert found["told"] == 3 and found["told_within_1_deviations"] == 0.0
    assert found["told_within_2_deviations"] == 1.0 and found["told_within_90"] == 1.0
    assert diameter_scores.told_summary([])["told_within_90"] is None
    assert found["severe_lesions"] == 2 and found["severe_mld_bias_mm"]["mean"] == pytest.approx(0.1)
    assert found["reported_50"] == {"found": 3, "true": 6, "false_per_case": 1.0}
    json.dumps(found, allow_nan=False)
    assert diameter_scores.plain({"x": 1}) and diameter_scores.plain([1.0, math.nan]) == [1.0, None]


def test_reported_stenoses_are_told_from_missed_and_false_ones(tool):
    from types import SimpleNamespace

    from licag3d.phantom.disease import Lesion
    from licag3d.structures import Branch

    arc = np.linspace(0, 80, 321)
    line = np.stack([0 * arc, 0 * arc, arc], 1)

    def tree(*narrowings) -> VesselTree:
        radius = np.full(321, 1.5)
        for at, percent in narrowings:
            radius = radius * (1 - percent / 100 * np.exp(-0.5 * ((arc - at) / 2.0) ** 2))
        return VesselTree((Branch(0, None, line, radius, "RCA", radius_sigma_mm=0.1 * radius),))

    true = tree((20, 75), (50, 60))
    lesions = tuple(
        Lesion("RCA", 0, "stenosis", at - 4.0, 8.0, at, percent, 3 * (1 - percent / 100), 3.0)
        for at, percent in ((20.0, 75.0), (50.0, 60.0))
    )
    case = SimpleNamespace(tree=true, lesions=lesions)
    assert diameter_scores.reported(true, case, 50) == (2, 2, 0)
    # The second is missed, one more stands where nothing is.
    told = tree((20.5, 72), (68, 65))
    assert diameter_scores.reported(told, case, 50) == (1, 2, 1)
    assert diameter_scores.reported(told, case, 70) == (1, 1, 0)
    least = 2 * told.branches[0].radius_mm[82]
    assert diameter_scores.deviation(told, true, lesions[0]) == pytest.approx(least * math.hypot(0.1, 0.25), abs=0.01)
    # 72 instead of 75 % lies within what is stated; 65 % where nothing is, does not.
    rows = diameter_scores.told(told, true)
    assert [round(row[0], 1) for row in rows] == [0.1, -1.9] and [row[2] for row in rows] == [1.0, 0.0]
    assert rows[0][1] == pytest.approx(least * math.hypot(0.1, 0.25), abs=0.01)


def test_severe_disease_has_two_tight_stenoses_and_other_seeds_of_the_split(tool):
    tree, lesions = diseased_cases.severe_disease(54100, "rca", range(50000, 60000))
    assert sum(x.kind == "stenosis" and x.percent_diameter >= 70 for x in lesions) >= 2
    assert tree.branches


def test_settings_out_of_range_are_refused(tool, tmp_path):
    with pytest.raises(InputError, match="--cases"):
        tool.main(["--out", str(tmp_path / "x.json"), "--cases", "0"])
    with pytest.raises(InputError, match="split"):
        tool.main(["--out", str(tmp_path / "x.json"), "--split", "benchmark", "--first", "4000"])
    (tmp_path / "old.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(InputError, match="other settings"):
        tool.main(["--out", str(tmp_path / "old.json"), "--resume", "--cases", "1"])
