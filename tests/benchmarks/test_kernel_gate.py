# SPDX-License-Identifier: Apache-2.0
"""The gate against slower operators: verdicts, its file, exit status."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import kernel_gate

from licag3d.errors import InputError
from licag3d.ops import native


def _busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.fixture
def contest(monkeypatch):
    """One operator that is four times as fast as its twin."""
    both = {"sleepy": (lambda: _busy(0.002), lambda: _busy(0.008))}
    monkeypatch.setattr(kernel_gate, "contests", lambda: both)


def test_a_ratio_counts_in_turns_and_by_processor_time():
    assert kernel_gate.ratio(lambda: _busy(0.002), lambda: _busy(0.008), 3) == pytest.approx(4.0, rel=0.4)


def test_what_lost_more_than_the_share_is_slower_and_what_is_new_passes():
    now, recorded = {"a": 5.0, "b": 7.0, "c": 1.0}, {"a": 10.0, "b": 10.0}
    verdicts = {verdict.operator: verdict for verdict in kernel_gate.judge(now, recorded, 0.6)}
    assert [verdicts[name].slower for name in "abc"] == [True, False, False]
    assert verdicts["c"].recorded is None
    assert "SLOWER" in kernel_gate.table(list(verdicts.values()), "avx2")


def test_ratios_are_written_compared_and_kept_for_other_processors(contest, tmp_path, capsys):
    file = tmp_path / "gate.csv"
    file.write_text("operator,isa,ratio\nsleepy,another,9\n")
    assert kernel_gate.main(["--file", str(file), "--update", "--rounds", "2"]) == 0
    kept = kernel_gate.read_ratios(file)
    isa = native.set_isa(None)
    assert kept["sleepy", "another"] == 9 and kept["sleepy", isa] == pytest.approx(4.0, rel=0.4)
    assert kernel_gate.main(["--file", str(file), "--rounds", "2", "--share", "0.5"]) == 0
    file.write_text(f"operator,isa,ratio\nsleepy,{isa},40\n")
    assert kernel_gate.main(["--file", str(file), "--rounds", "2"]) == 1
    assert "SLOWER" in capsys.readouterr().out


@pytest.mark.parametrize("text", ("", "a,b\n1,2\n", "operator,isa,ratio\nx,avx2,fast\n"))
def test_a_file_that_is_no_such_table_is_said_before_anything_is_measured(text, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_gate, "contests", lambda: pytest.fail("measured"))
    file = tmp_path / "gate.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=r"gate\.csv"):
        kernel_gate.main(["--file", str(file)])


def test_the_committed_file_names_the_operators_that_are_measured():
    names = set(kernel_gate.contests())
    assert {name for name, _ in kernel_gate.read_ratios(kernel_gate.FILE)} == names
    for ours, _ in kernel_gate.contests().values():
        ours()


def test_the_picture_of_the_scaling_has_every_row_at_its_place():
    import benchmark_tables

    table = {
        "project, ball, voxels per edge, 256^2": {"64": 1.0, "128": 10.0},
        "render, samples, 64^2": {"24": 29.0, "48": 47.0},
    }
    text = benchmark_tables.scaling_plot(table)
    assert text.startswith("<svg") and "voxels per edge" in text and "share of cells" not in text
    route = next(line for line in text.splitlines() if "<polyline" in line).split('"')[1].split()
    (x0, y0), (x1, y1) = (map(float, spot.split(",")) for spot in route)
    assert x1 > x0 and y0 - y1 == pytest.approx(150.0, abs=0.2)  # one decade of two, 300 px high
