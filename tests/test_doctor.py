# SPDX-License-Identifier: Apache-2.0
"""The doctor: healthy here, and the right complaint for each thing that can be missing."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

from licag3d import doctor
from licag3d.ops import native


def by_name(findings, name: str):
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def test_a_healthy_install_is_usable_and_json_says_the_same(capsys) -> None:
    if native.load("licag3d")[0] is None:
        pytest.skip("the native library is not built")
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is True
    names = {(entry["section"], entry["name"]) for entry in report["findings"]}
    for name in ("project_volume", "backproject", "project_tubes", "render_triplane", "query_triplane"):
        assert ("native core", name) in names
    assert {("packages", "torch"), ("search", "pymoo"), ("DICOM decoders", "JPEG Lossless SV1")} <= names
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    assert text.rstrip().splitlines()[-1].startswith("usable") and "native core" in text


def test_a_missing_library_is_a_failure_with_a_remedy(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.delenv("LICAG3D_NATIVE", raising=False)
    (finding,) = [doctor.Finding("native core", *entry) for entry in doctor._native()]
    assert finding.status == doctor.FAIL and "was not built" in finding.value and "pip install" in finding.remedy
    monkeypatch.setenv("LICAG3D_NATIVE", "0")
    (finding,) = [doctor.Finding("native core", *entry) for entry in doctor._native()]
    assert finding.status == doctor.WARN and "LICAG3D_NATIVE" in finding.remedy


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_wrong_native_result_is_a_failure(monkeypatch, error) -> None:
    if native.load("licag3d")[0] is None:
        pytest.skip("the native library is not built")
    monkeypatch.setattr(doctor, "_self_tests", lambda: {"project_volume": lambda: (error, 1.0, 2.0)})
    finding = by_name([doctor.Finding("native core", *entry) for entry in doctor._native()], "project_volume")
    assert finding.status == doctor.FAIL and "wrong" in finding.value and finding.remedy


def test_missing_and_outdated_packages_are_told(monkeypatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [
        "torch>=99", "numpy", "no-such-package-of-ours>=2", "also-not-there; extra == 'cohort'"])
    findings = [doctor.Finding("packages", *entry) for entry in doctor._packages()]
    assert by_name(findings, "numpy").status == doctor.OK
    torch = by_name(findings, "torch")
    assert torch.status == doctor.FAIL and ">=99" in torch.value and torch.remedy == "pip install 'torch>=99'"
    assert by_name(findings, "no-such-package-of-ours").remedy == "pip install 'no-such-package-of-ours>=2'"
    assert "also-not-there" not in {finding.name for finding in findings}


@pytest.mark.parametrize(("version", "bounds", "inside"), [
    ("2.13.0+cpu", ">=2.11,<=2.13", True), ("2.13.1", ">=2.11,<=2.13", False), ("2.10.9", "<=2.13,>=2.11", False),
    ("3.0.2", ">=3", True), ("2.4.4", ">=3", False), ("1.0", "", True), ("0.28.0", "<=0.28", True),
    ("1.2", "!=1.2", False),
])
def test_version_bounds(version, bounds, inside) -> None:
    assert doctor._within(version, bounds) is inside


def test_a_missing_decoder_is_told(monkeypatch) -> None:
    import pydicom.pixels

    class Missing:
        is_available, available_plugins, missing_dependencies = False, (), ["gdcm - requires gdcm>=3.0.10"]

    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda uid: Missing)
    findings = [doctor.Finding("DICOM decoders", *entry) for entry in doctor._decoders()]
    assert by_name(findings, "JPEG-LS lossless").status == doctor.FAIL
    assert "pyjpegls" in by_name(findings, "JPEG-LS lossless").remedy
    assert by_name(findings, "JPEG Extended").status == doctor.WARN


def test_damaged_weights_are_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "segmentor.safetensors").write_bytes(b"\xff" * 40)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    (finding,) = [doctor.Finding("weights", *entry) for entry in doctor._weights()]
    assert finding.name == "segmentor" and finding.status == doctor.FAIL and finding.remedy


def test_a_check_that_breaks_is_a_finding_and_the_exit_status_is_1(monkeypatch, capsys) -> None:
    def broken():
        raise ImportError("no module named pymoo")
        yield

    monkeypatch.setattr(doctor, "_pymoo", broken)
    monkeypatch.setattr(doctor, "_native", lambda: iter(()))
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "no module named pymoo" in text and "FAIL" in text and "NOT usable" in text
    assert "decoders" in text  # later checks still ran


def test_help_comes_without_torch() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "licag3d.doctor", "--help"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and "--json" in done.stdout
    assert " torch" not in done.stderr and "pydicom" not in done.stderr
