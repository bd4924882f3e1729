# SPDX-License-Identifier: Apache-2.0
"""The benchmark of synthesis: its baselines, its file, and that it takes no training patient."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from licag3d.command import BAD_INPUT, status_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from benchmark_synthesis import atlas_of, main


def test_atlas_is_where_vessels_are_most_often():
    masks = np.zeros((10, 8, 8), bool)
    masks[:, 3] = True  # everywhere the same
    masks[np.arange(10), 5 + np.arange(10) % 3, np.arange(10) % 8] = True  # never twice at one place
    atlas = atlas_of(masks)
    assert np.array_equal(atlas > 0, masks[0] & masks[1])


def test_scores_and_file(pair_pools, weights, tmp_path, capsys):
    out = tmp_path / "synthesis.json"
    flags = ["--pairs", str(pair_pools / "checked"), "--pool", str(pair_pools / "pool"), "--out", str(out)]
    assert status_of(main, [*flags, "--methods", "oracle", "identity", "atlas", "--weights", weights]) == 0
    assert status_of(main, [*flags, "--methods", "other-patient", "network", "--weights", weights]) == 0
    result = json.loads(out.read_text())
    assert list(result["methods"]) == ["oracle", "identity", "atlas", "other-patient", "mask-first"]
    lines = {(line["method"], line["kind"], line["kappa"]): line for line in result["summary"]}
    assert lines["mask-first", "direct", 0.2]["dice"]["n"] == 1
    assert lines["mask-first", "seen", 0.0]["change_outside"]["mean"] > 0  # this network draws everywhere
    assert lines["identity", "seen", 0.0]["change_outside"]["mean"] == 0
    # Nobody knows more than the angiogram.
    assert lines["oracle", "seen", 1.0]["dice"]["mean"] > lines["identity", "seen", 0.0]["dice"]["mean"] + 0.1
    assert "mask-first" in capsys.readouterr().out
    wrong = [str(pair_pools / "pool") if flag == str(pair_pools / "checked") else flag for flag in flags]
    assert status_of(main, [*wrong, "--methods", "identity"]) == BAD_INPUT
    assert "training patients" in capsys.readouterr().err
