# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: Chromium without a window. Skipped where none is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from report_case import reconstruction

from licag3d.report import write_result
from licag3d.report.pictures import tree_outline

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
                 if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: install the package chromium")

SOFTWARE_GL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    result = reconstruction(size=256)
    return result, write_result(tmp_path_factory.mktemp("browser"), result)["report.html"]


def load(page: Path, tmp_path: Path, *flags: str, anchor: str = "") -> tuple[str, str, str]:
    """The page's DOM after its first frames, the console, and the log of the network."""
    net_log = tmp_path / "net.json"
    run = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}",
         "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync",
         "--disable-extensions", "--disable-default-apps", f"--log-net-log={net_log}",
         "--enable-logging=stderr", "--v=0",
         "--window-size=1280,1000", "--virtual-time-budget=8000", *flags, "--dump-dom", page.as_uri() + anchor],
        capture_output=True, text=True, timeout=120, check=True)
    # The driver's own remarks on speed are not the page's.
    console = "\n".join(line for line in run.stderr.splitlines() if ":CONSOLE" in line and "GPU stall" not in line)
    return run.stdout, console, net_log.read_text("utf-8", "replace") if net_log.exists() else ""


def attribute(dom: str, name: str) -> str:
    found = re.search(rf'<html[^>]*\bdata-{name}="([^"]*)"', dom)
    assert found, f"the page has no data-{name}: {dom[:300]}"
    return found[1]


def test_the_tree_is_drawn_without_errors_and_without_the_network(case, tmp_path):
    dom, console, net = load(case[1], tmp_path, *SOFTWARE_GL)
    assert attribute(dom, "viewer") == "ready"
    assert int(attribute(dom, "rendered")) > 3000
    assert console == ""
    assert "nogl" not in re.search(r"<html[^>]*>", dom)[0]
    assert "file://" in net  # the log works
    # The browser calls its maker by itself; the page, whose text names none of these hosts, must call nobody.
    hosts = {host for host in re.findall(r'"url":"(?:https?|wss?)://([^/":]*)', net)
             if not re.search(r"(^|\.)(google|googleapis|gvt1|gstatic)\.com$", host)}
    assert hosts == set()
    assert not re.search(r"google|gvt1|gstatic", case[1].read_text("utf-8"))
    assert dom.count("<line ") == 6 and " mm" in dom  # axes and scale bar


@pytest.mark.parametrize("number", [1, 2])
def test_as_in_view_lies_on_the_projection(case, tmp_path, number):
    result, page = case
    dom, console, _ = load(page, tmp_path, *SOFTWARE_GL, anchor=f"#view-{number}")
    drawn = np.array(attribute(dom, "box").split(), float)
    contours = np.concatenate(tree_outline(result.tree, result.cameras[number - 1]).contours)
    np.testing.assert_allclose(drawn, [*contours.min(0), *contours.max(0)], atol=1.0)
    assert console == ""


def test_without_webgl_three_pictures_and_a_word(case, tmp_path):
    dom, _, _ = load(case[1], tmp_path, "--disable-gpu", "--disable-3d-apis")
    assert "nogl" in re.search(r"<html[^>]*>", dom)[0]
    assert attribute(dom, "viewer").startswith("unavailable")
    assert dom.count('alt="Vessel tree from the') == 3


def test_hostile_names_do_not_run(case, tmp_path):
    dom, console, _ = load(case[1], tmp_path, *SOFTWARE_GL)
    assert '<img src="x"' not in dom and "Content Security Policy" not in console


def test_turning_to_an_angulation(case, tmp_path):
    """``#look=40,-20``: LAO 40, CAU 20, the axes lie on the screen as that C-arm view has them."""
    from licag3d.geometry import Camera

    dom, console, _ = load(case[1], tmp_path, *SOFTWARE_GL, anchor="#look=40,-20")
    frame = Camera(40, -20, sid_mm=1000, sod_mm=750, spacing_row_mm=0.3, spacing_col_mm=0.3, rows=512, cols=512).frame
    ends = re.findall(r'<line x1="0" y1="0" x2="([^"]+)" y2="([^"]+)" stroke="(#\w+)" stroke-width="2.5"', dom)
    drawn = {color: np.array([x, y], float) / 32 for x, y, color in ends}
    for axis, color in enumerate(("#ff7a7a", "#7ddc8a", "#7fb4ff")):  # left, back, head
        np.testing.assert_allclose(drawn[color], [frame.column[axis], frame.row[axis]], atol=2e-3)
    assert console == ""
    assert re.findall(r"<button[^>]*data-look[^>]*>", dom)
    assert not any("disabled" in button for button in re.findall(r"<button[^>]*data-look[^>]*>", dom))
