# SPDX-License-Identifier: Apache-2.0
"""The diameter benchmark: its starts, its summary, its refusals."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.phantom.anatomy import sample_tree
from licag3d.structures import VesselTree
from licag3d.vessels.tree import resample_tree, validate_tree

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_diameter.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_diameter", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_perturbed_start_is_off_by_what_it_says(tool):
    true = resample_tree(sample_tree(3, "rca"), 0.5)
    starts = [tool.perturbed(sample_tree(3, "rca"), seed) for seed in range(6)]
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
        return {"found, images": {when: {"diameter_sd_mm": value, "mld": lesions} for when in ("before", "after")}}

    cases = {"a": scored(0.2, [[0.1, -4.0], [None, None]]), "b": scored(None, [[-0.3, 2.0]]), "c": scored(0.4, [])}
    found = tool.summary(cases)["found, images"]["after"]
    assert found["diameter_sd_mm"]["n"] == 2 and found["diameter_sd_mm"]["mean"] == pytest.approx(0.3)
    assert found["lesions"] == 3
    assert found["mld_bias_mm"]["mean"] == pytest.approx(-0.1)
    assert found["mld_error_mm"]["mean"] == pytest.approx(0.2)
    assert found["mld_sd_mm"] == pytest.approx(0.2)
    json.dumps(found, allow_nan=False)
    assert tool._plain({"x": 1}) and tool._plain([1.0, math.nan]) == [1.0, None]


def test_settings_out_of_range_are_refused(tool, tmp_path):
    with pytest.raises(InputError, match="--cases"):
        tool.main(["--out", str(tmp_path / "x.json"), "--cases", "0"])
    with pytest.raises(InputError, match="split"):
        tool.main(["--out", str(tmp_path / "x.json"), "--split", "benchmark", "--first", "4000"])
    (tmp_path / "old.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(InputError, match="other settings"):
        tool.main(["--out", str(tmp_path / "old.json"), "--resume", "--cases", "1"])
