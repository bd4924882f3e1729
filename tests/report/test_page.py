# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_case import HOSTILE, camera, reconstruction
from vessel_trees import coronary

from licag3d.report import write_result
from licag3d.report.pictures import Outline, data_url, three_sides, thumbnail, tree_outline
from licag3d.report.scene import light_mesh, scene_dict, vertex_attributes
from licag3d.vessels.surface import tree_surface


class Page(HTMLParser):
    """Elements with attributes, the text outside scripts, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self._script: dict | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._script = dict(attrs) if tag == "script" else self._script

    def handle_endtag(self, tag):
        self._script = None if tag == "script" else self._script

    def handle_data(self, data):
        if self._script is None:
            self.texts.append(data)
        else:
            self.scripts.append((self._script, data))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    paths = write_result(tmp_path_factory.mktemp("report"), reconstruction(size=96))
    return paths["report.html"].read_text("utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_nothing_is_fetched_from_anywhere(page, text):
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster", "background"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
    style = text[text.index("<style>"):text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    viewer = page.scripts[-1][1]
    assert "http" not in viewer.replace("http://www.w3.org/2000/svg", "")


def test_only_the_two_known_scripts_may_run(page, text):
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1] and "unsafe-eval" not in policy
    scripts = [(a, s) for a, s in page.scripts if "type" not in a]
    assert len(scripts) == 2
    for _, script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(re.findall(r"<script", text)) == 3  # those two and the scene


def test_hostile_names_are_text_and_nothing_else(page):
    assert sum(HOSTILE in t for t in page.texts) >= 6  # heading, caption, camera, warning, stage, loss, picture
    assert not any("onerror" in a for _, a in page.elements)
    assert [a["src"] for t, a in page.elements if t == "img" and a.get("src") == "x"] == []


def test_page_says_what_it_must(page):
    everything = " ".join(page.texts)
    for words in ("Research use only", "Absolute scale", "2 warnings", "LAO 30.0", "RAO 40.0", "CRA 20.0",
                  "given 0.00, 0.00, 0.00", "camera search", "centerline_distance_px 1.24", "head first", "vessels.stl",
                  "Angle between views", "main", "Centreline length"):
        assert words in everything, words
    assert next(a for t, a in page.elements if t == "html")["lang"] == "en"
    assert all(a.get("alt") is not None for t, a in page.elements if t == "img")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, a in page.elements:
        if "aria-labelledby" in a:
            assert a["aria-labelledby"] in ids


def test_scene_decodes_to_the_surface():
    tree = coronary()
    surface = tree_surface(tree, spacing_mm=0.5)
    scene = json.loads(json.dumps(scene_dict(tree, surface, [camera()]), allow_nan=False))
    packed = np.frombuffer(base64.b64decode(scene["positions"]), "<u2").reshape(-1, 3)
    points = np.array(scene["low_mm"]) + packed / 65535 * np.array(scene["size_mm"])
    np.testing.assert_allclose(points, surface.vertices_lps_mm, atol=0.003)
    index = np.frombuffer(base64.b64decode(scene["index"]), {2: "<u2", 4: "<u4"}[scene["index_bytes"]]).reshape(-1, 3)
    np.testing.assert_array_equal(index, surface.faces)
    radius = np.frombuffer(base64.b64decode(scene["radius"]), np.uint8)
    assert len(radius) == len(points) and scene["radius_span_mm"] == pytest.approx([0.45, 1.8], abs=0.05)


def test_vertices_know_their_vessel():
    tree = coronary()
    surface = tree_surface(tree, spacing_mm=0.5)
    radius, confidence, branch, error = vertex_attributes(tree, surface.vertices_lps_mm)
    assert set(branch) == {0, 1, 2, 3} and np.isnan(error).all()
    tip = np.argmin(np.linalg.norm(surface.vertices_lps_mm - tree.branches[3].points_lps_mm[-1], axis=1))
    assert branch[tip] == 3 and radius[tip] == pytest.approx(0.45, abs=0.02) and confidence[tip] == pytest.approx(0.3)
    # The wall of the main vessel belongs to it, although a side branch starts on its axis.
    joint = tree.branches[1].points_lps_mm[0]
    wall = joint - 1.0 * main_radius_direction(tree, joint)
    near = np.argmin(np.linalg.norm(surface.vertices_lps_mm - wall, axis=1))
    assert branch[near] == 0


def main_radius_direction(tree, joint):
    side = tree.branches[1].points_lps_mm
    away = side[4] - side[0]
    main = tree.branches[0].points_lps_mm
    k = int(np.argmin(np.linalg.norm(main - joint, axis=1)))
    along = main[k + 1] - main[k - 1]
    away = away - along * (away @ along) / (along @ along)
    return away / np.linalg.norm(away) * tree.branches[0].radius_mm[k]


def test_huge_meshes_are_made_light():
    surface = tree_surface(coronary(), spacing_mm=0.25)
    light = light_mesh(surface, 15_000)
    assert 4_000 < len(light.faces) <= 15_000 < len(surface.faces)
    assert light_mesh(surface, 10**9) is surface
    assert np.abs(light.vertices_lps_mm.min(0) - surface.vertices_lps_mm.min(0)).max() < 0.6


def test_outline_of_a_ball_is_a_circle_where_the_camera_says():
    from licag3d.structures import Branch, VesselTree

    cam = camera(20, 10, (3.0, 1.0, -2.0), size=256)
    center = np.array([8.0, -5.0, 12.0])
    outline = tree_outline(VesselTree((Branch(0, None, center[None], np.array([6.0])),)), cam)
    pixel, depth = cam.project(center)
    assert len(outline.contours) == 1
    distance = np.linalg.norm(outline.contours[0] - pixel, axis=1)
    np.testing.assert_allclose(distance, 6.0 * cam.sid_mm / depth / cam.spacing_col_mm, atol=0.1)


def test_outline_with_oblong_pixels():
    from dataclasses import replace

    from licag3d.structures import Branch, VesselTree

    cam = replace(camera(size=256), spacing_row_mm=0.5, rows=400)
    outline = tree_outline(VesselTree((Branch(0, None, np.zeros((1, 3)), np.array([10.0])),)), replace(
        cam, principal_row=199.5))
    width, height = np.ptp(outline.contours[0], axis=0)
    assert width * cam.spacing_col_mm == pytest.approx(height * 0.5, rel=0.01)
    assert width * cam.spacing_col_mm == pytest.approx(2 * 10 * 1000 / 750, rel=0.01)


def test_outline_outside_the_image_is_empty():
    outline = tree_outline(coronary(), camera(0, 0, (500.0, 0, 0)))
    assert outline.contours == () and isinstance(outline, Outline)


def test_pictures():
    for name, picture in three_sides(tree_surface(coronary(), spacing_mm=0.5), size_px=120):
        assert picture.shape == (120, 120, 3) and (picture[..., 0] > 60).mean() > 0.01, name
    for array in (np.random.default_rng(0).random((500, 300)), np.ones((10, 10), bool), np.full((9, 9), np.nan),
                  np.zeros((20, 30, 3), np.uint8), np.zeros((5, 40, 50), np.float32)):
        small = thumbnail(array)
        assert small.dtype == np.uint8 and small.shape[2] == 3 and max(small.shape) <= 400
        assert data_url(small).startswith("data:image/png;base64,")


def test_stenoses_are_listed_with_their_deviations(tmp_path):
    from dataclasses import replace

    from licag3d.structures import VesselTree

    made = reconstruction(size=96)
    branches = list(made.tree.branches)
    longest = max(range(len(branches)), key=lambda k: len(branches[k].radius_mm))
    branch = branches[longest]
    middle = len(branch.radius_mm) // 2
    dip = 1 - 0.7 * np.exp(-0.5 * ((np.arange(len(branch.radius_mm)) - middle) / (0.05 * len(branch.radius_mm))) ** 2)
    radius = branch.radius_mm * dip
    branches[longest] = replace(branch, radius_mm=radius, radius_sigma_mm=0.08 + 0 * radius)
    paths = write_result(tmp_path / "narrow", replace(made, tree=VesselTree(tuple(branches))))
    lesions = json.loads(paths["result.json"].read_text("utf-8"))["stenoses"]
    assert [lesion["branch"] for lesion in lesions] == [branch.id]
    assert lesions[0]["percent_diameter"] == pytest.approx(70, abs=6)
    least, sigma = lesions[0]["minimal_diameter_mm"], lesions[0]["minimal_sigma_mm"]
    assert sigma == pytest.approx(np.hypot(0.16, 0.25 * least))
    low, high = lesions[0]["minimal_90_mm"]
    assert low < least - sigma and least + sigma < high
    shown = " ".join(Page(paths["report.html"].read_text("utf-8")).texts)
    assert f"{least:.2f} \N{PLUS-MINUS SIGN} {sigma:.2f}" in shown and f"{low:.2f} to {high:.2f}" in shown


def test_a_tree_without_stenoses_says_so(page):
    assert "None of half the diameter or more was found." in " ".join(page.texts)


def test_narrowings_in_doubtful_places_are_not_listed():
    """A taper at the end of a branch, a vessel that one view shows and one that may lie elsewhere are no lesions."""
    from licag3d.report.lesions import reported_stenoses
    from licag3d.structures import Branch, VesselTree

    arc = np.linspace(0.0, 60.0, 121)
    points = np.stack([arc, np.zeros(121), np.zeros(121)], 1)

    def listed(at_mm: float, confidence: float = 1.0, error_mm: float = 1.0) -> int:
        radius = 1.5 - np.clip(1.2 - 0.3 * abs(arc - at_mm), 0.0, 1.2)
        sure = np.where(abs(arc - at_mm) < 2, confidence, 1.0)
        error = np.where(abs(arc - at_mm) < 2, error_mm, 1.0)
        branch = Branch(0, None, points, radius, "RCA", sure, error_mm=error)
        return len(reported_stenoses(VesselTree((branch,))))

    assert listed(30) == 1
    assert listed(59) == 0 and listed(1) == 0
    assert listed(30, confidence=0.3) == 0 and listed(30, error_mm=8.0) == 0
