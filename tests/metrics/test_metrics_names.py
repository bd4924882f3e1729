# SPDX-License-Identifier: Apache-2.0
"""The list of scores: complete, unambiguous, and the same in the docs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from licag3d.geometry import Camera
from licag3d.metrics.names import CTA_METRICS, HIGHER, LOWER, METRICS, NEITHER, full_names, is_share, markdown, metric
from licag3d.metrics.scores import Truth, failure_scores
from licag3d.structures import Branch, VesselTree

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def test_the_docs_hold_the_tables_of_the_list():
    text = DOCS.read_text("utf-8")
    for group, table in {**markdown(), **markdown(CTA_METRICS)}.items():
        assert table in text, f"docs/metrics.md is behind in {group}: see python -m licag3d.metrics.names"


def test_names_are_unique_and_every_one_has_a_direction_and_a_definition():
    items = (*METRICS, *CTA_METRICS)
    assert len({item.name for item in items}) == len(items)
    for item in items:
        assert item.better in (HIGHER, LOWER, NEITHER) and len(item.definition) > 8, item.name
        for suffix, unit in (("_mm", "mm"), ("_deg", "deg"), ("_db", "dB"), ("_percent", "percent")):
            if item.name.removesuffix("_view_K").endswith(suffix) and not item.name[-4:-2].isdigit():
                assert item.unit in (unit, "share"), item.name


def test_a_score_has_exactly_the_names_of_the_list_and_a_failure_scores_0():
    line = np.linspace((0, 0, 0), (20, 0, 0), 21)
    truth = Truth(VesselTree((Branch(0, None, line, np.ones(21)),)), [Camera(0, 0, 1000, 750, 1, 1, 64, 64)])
    scores = failure_scores(truth)
    assert tuple(scores) == full_names()
    assert scores["dice"] == scores["input_dice"] == scores["schaap_ov"] == scores["branch_recall_2mm"] == 0
    assert np.isnan(scores["chamfer_mm"]) and np.isnan(scores["offset_error_mm"])
    assert scores["input_ssim"] == scores["input_ssim_empty"]
    assert is_share("cldice_after_similarity") and not is_share("chamfer_mm") and not is_share("no such score")
    assert metric("ssim_vessel_view_3").group == "CTA views"
