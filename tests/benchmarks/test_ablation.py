# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from licag3d.errors import InputError
from licag3d.inversion.settings import inversion_settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import ablation


def test_every_row_but_those_of_the_cameras_changes_the_settings():
    base = inversion_settings()
    same = {name for name, (change, _) in ablation.rows().items() if change(base) == base}
    assert same == {"default", "gradient-cameras", "baked-evolution"}
    begins = {name: begin for name, (_, begin) in ablation.rows().items() if begin != "searched"}
    assert begins == {"gradient-cameras": "given", "no-camera-correction": "given", "baked-evolution": "evolved"}


def test_finished_rows_are_not_run_again_and_differences_are_paired(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(seed, artery, offset_mm, wanted, *, trees):
        asked.append((seed, artery, tuple(wanted)))
        assert trees == "family"
        level = 0.8 if artery == "rca" else 0.6
        return {row: {"f1": level - 0.1 * (row != "default"), "held_out_mm": 1.0} for row in wanted}

    monkeypatch.setattr(ablation, "score_case", fake)
    out = tmp_path / "out.json"
    ablation.main(["--out", str(out), "--cases", "2", "--rows", "default"])
    ablation.main(["--out", str(out), "--cases", "2", "--rows", "default", "no-prior"])
    assert asked[2:] == [(53006, "rca", ("no-prior",)), (53006, "lca", ("no-prior",))]
    assert set(json.loads(out.read_text())) == {"53006_rca_5mm", "53006_lca_5mm"}
    line = next(x for x in capsys.readouterr().out.splitlines()[::-1] if "no-prior" in x)
    assert "0.600" in line and "-0.100 (-0.100 to -0.100)" in line


def test_only_validation_seeds(tmp_path):
    with pytest.raises(InputError, match="50000 to 59999"):
        ablation.main(["--out", str(tmp_path / "x.json"), "--first-seed", "90100"])
