# SPDX-License-Identifier: Apache-2.0
"""Attenuation against the published table, and a beam of many energies against its limits."""

from __future__ import annotations

import numpy as np
import pytest

from licag3d.errors import InputError
from licag3d.phantom.spectrum import (
    MASS_ATTENUATION_CM2_G,
    Beam,
    attenuation_per_mm,
    iodine_per_mm,
    mass_attenuation_cm2_g,
)


@pytest.mark.parametrize("material, energy_kev, value", [
    ("iodine", 50, 12.32), ("iodine", 80, 3.510), ("soft tissue", 60, 0.2048), ("cortical bone", 40, 0.6655),
    ("iron", 60, 1.205), ("copper", 30, 10.92), ("tungsten", 80, 7.810), ("aluminium", 100, 0.1704)])  # fmt: skip
def test_tabulated_values_come_back(material, energy_kev, value):
    assert mass_attenuation_cm2_g(material, energy_kev) == pytest.approx(value, rel=1e-6)


def test_between_the_nodes_iodine_follows_the_power_law_of_photo_absorption():
    # Independent check at 70 keV: XCOM gives 5.02 cm^2/g (1.7 /cm at 300 mg/ml is the figure textbooks quote at 65-70).
    assert mass_attenuation_cm2_g("iodine", 70) == pytest.approx(5.02, rel=0.02)
    assert iodine_per_mm(300, 70) == pytest.approx(0.15, abs=0.005)
    assert mass_attenuation_cm2_g("iodine", 33.3) > 5 * mass_attenuation_cm2_g("iodine", 33.0)  # the K edge


def test_every_table_rises_in_energy_and_falls_between_its_edges():
    for energies, values in MASS_ATTENUATION_CM2_G.values():
        assert len(energies) == len(values) and np.all(np.diff(energies) > 0)
        falls = np.diff(values) < 0
        assert np.all(falls | (np.diff(energies) < 0.001))


def test_unknown_materials_and_energies_outside_the_table_are_refused():
    with pytest.raises(InputError, match="choose one of iodine"):
        mass_attenuation_cm2_g("adamantium", 60)
    for energy in (5, 200, float("nan")):
        with pytest.raises(InputError, match="outside the table; give 15 to 150"):
            attenuation_per_mm("iron", energy)
    for wrong in ({"kilovolt": 20}, {"kilovolt": 80, "copper_mm": -1}, {"kilovolt": 80, "patient_mm": float("nan")}):
        with pytest.raises(InputError, match="give"):
            Beam(**wrong)


def test_a_filter_and_a_patient_harden_the_beam():
    energy, share = Beam(80).weights()
    assert share.sum() == pytest.approx(1) and np.all(share >= 0) and energy.max() < 80
    assert Beam(80, 0.0, 0).mean_kev() < Beam(80, 0.6, 0).mean_kev() < Beam(80, 0.6, 250).mean_kev()
    assert Beam(70).iodine_per_mm(200) > Beam(90).iodine_per_mm(200)
    assert Beam(80).iodine_per_mm(300) == pytest.approx(3 * Beam(80).iodine_per_mm(100))


def test_many_energies_become_one_where_little_is_absorbed_and_read_less_where_much_is():
    beam = Beam(80)
    thin = np.array([0.0, 1e-3, 5e-3])
    np.testing.assert_allclose(beam.hardened(thin), thin, atol=2e-5)
    thick = np.array([0.5, 1.0, 2.0, 4.0])
    read = beam.hardened(thick)
    assert np.all(np.diff(read) > 0) and np.all(read < thick) and np.all(np.diff(read / thick) < 0)
    assert read[1] > 0.8  # a beam behind a patient is already hard
    energy, share = beam.weights()  # against the sum over the energies, spelt out
    mu = iodine_per_mm(250, energy)
    path_mm = 2.0 / (mu @ share)
    assert beam.hardened(np.array([2.0]))[0] == pytest.approx(-np.log(share @ np.exp(-mu * path_mm)), abs=1e-3)


def test_a_beam_filtered_to_one_energy_reads_the_line_integral(monkeypatch):
    one = (np.array([61.0]), np.array([1.0]))
    monkeypatch.setattr(Beam, "weights", lambda self: one)
    beam = Beam(81.25)  # a voltage that no other test has cached
    np.testing.assert_allclose(beam.hardened(np.array([0.3, 1.0, 5.0])), [0.3, 1.0, 5.0], rtol=1e-5)
    assert beam.iodine_per_mm(300) == pytest.approx(float(iodine_per_mm(300, 61.0)))
