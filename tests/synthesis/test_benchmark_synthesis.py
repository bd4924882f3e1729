# SPDX-License-Identifier: Apache-2.0
"""The benchmark of synthesis: its baselines, its file, and that it takes no training patient."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from licag3d.command import BAD_INPUT, status_of

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from benchmark_synthesis import atlas_of, interval, main, networks_of


def test_atlas_is_where_vessels_are_most_often():
    masks = np.zeros((10, 8, 8), bool)
    masks[:, 3] = True  # everywhere the same
    masks[np.arange(10), 5 + np.arange(10) % 3, np.arange(10) % 8] = True  # never twice at one place
    atlas = atlas_of(masks)
    assert np.array_equal(atlas > 0, masks[0] & masks[1])


def test_intervals_are_over_patients_and_trainings():
    rows = [{"seed": k, "turn": t, "v": float(k + 10 * t)} for k in range(6) for t in range(3)]
    found = interval(rows, lambda row: row["v"])
    assert found["n"] == 6 and found["trainings"] == 3 and found["mean"] == pytest.approx(12.5)
    alone = interval([row for row in rows if row["turn"] == 1], lambda row: row["v"])
    # One training says nothing of how trainings differ: three that differ have the wider interval.
    assert found["high_95"] - found["low_95"] > 2 * (alone["high_95"] - alone["low_95"]) > 0
    assert interval(rows, lambda row: float("nan"))["n"] == 0


def test_scores_and_file(pair_pools, weights, tmp_path, capsys):
    out = tmp_path / "synthesis.json"
    flags = ["--pairs", str(pair_pools / "checked"), "--pool", str(pair_pools / "pool"), "--out", str(out)]
    assert status_of(main, [*flags, "--methods", "oracle", "identity", "atlas", "other-patient"]) == 0
    sheet, names = tmp_path / "sheet.png", [f"mask-first={weights}", f"mask-first={weights}"]
    assert status_of(main, [*flags, "--networks", *names, "--kappas", "0.2", "--picture", str(sheet)]) == 0
    result = json.loads(out.read_text())
    assert list(result["methods"]) == ["oracle", "identity", "atlas", "other-patient", "mask-first"]
    lines = {
        (line["method"], line["kind"], line["kappa"]): line for line in result["summary"] if line["pairs"] == "all"
    }
    assert lines["mask-first", "direct", 0.2]["dice"]["trainings"] == 2
    assert ("mask-first", "direct", 0.0) not in lines  # not asked for
    assert lines["mask-first", "seen", 0.2]["change_outside"]["mean"] > 0  # this network draws everywhere
    assert lines["identity", "seen", 0.0]["change_outside"]["mean"] == 0
    assert 0 < lines["atlas", "seen", 0.0]["change_outside"]["mean"] < 0.2
    # Nobody knows more than the angiogram.
    assert lines["oracle", "seen", 1.0]["dice"]["mean"] > lines["identity", "seen", 0.0]["dice"]["mean"] + 0.1
    assert "mask-first" in capsys.readouterr().out and sheet.is_file()
    wrong = [str(pair_pools / "pool") if flag == str(pair_pools / "checked") else flag for flag in flags]
    assert status_of(main, [*wrong, "--methods", "identity"]) == BAD_INPUT
    assert "training patients" in capsys.readouterr().err
    assert status_of(main, [*flags, "--networks", "mask-first"]) == BAD_INPUT
    assert status_of(main, [*flags, "--ablation", str(tmp_path)]) == BAD_INPUT
    assert "holds no row_" in capsys.readouterr().err


def test_rows_of_an_ablation_are_named(tmp_path):
    from argparse import Namespace

    for run in ("a", "b"):
        for row in ("ooo", "DoL"):
            (tmp_path / run / f"row_{row}").mkdir(parents=True)
            (tmp_path / run / f"row_{row}" / "casgan.safetensors").touch()
    found = networks_of(Namespace(networks=[], ablation=[str(tmp_path / "a"), str(tmp_path / "b")]))
    assert {name: len(files) for name, files in found.items()} == {"D-L": 2, "---": 2}
