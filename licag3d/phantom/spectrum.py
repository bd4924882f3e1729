# SPDX-License-Identifier: Apache-2.0
"""Attenuation of the materials in the beam, and what a beam of many energies makes of it.

Mass attenuation coefficients: J. H. Hubbell and S. M. Seltzer, Tables of X-Ray Mass Attenuation Coefficients, NISTIR
5632 (NIST Standard Reference Database 126, the values of XCOM); tissues after ICRU Report 44. Tube spectrum: Kramers'
law, N(E) ~ (E0 - E) / E (H. A. Kramers, Phil. Mag. 1923;46:836), without the characteristic lines of tungsten, which
lie above 58 keV and carry less than a tenth of the quanta at the 65 to 95 kV of coronary work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from licag3d.errors import InputError

#: Energies in keV and mass attenuation coefficients in cm^2/g; an absorption edge is given by both its sides.
MASS_ATTENUATION_CM2_G: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "iodine": (
        (15, 20, 30, 33.1693, 33.1695, 40, 50, 60, 80, 100, 150),
        (55.12, 25.43, 8.561, 6.553, 35.82, 22.10, 12.32, 7.579, 3.510, 1.942, 0.6978),
    ),
    "soft tissue": (
        (15, 20, 30, 40, 50, 60, 80, 100, 150),
        (1.699, 0.8230, 0.3790, 0.2688, 0.2264, 0.2048, 0.1823, 0.1693, 0.1492),
    ),
    "cortical bone": (
        (15, 20, 30, 40, 50, 60, 80, 100, 150),
        (9.032, 4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480),
    ),
    "aluminium": (
        (15, 20, 30, 40, 50, 60, 80, 100, 150),
        (7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378),
    ),
    "iron": (
        (15, 20, 30, 40, 50, 60, 80, 100, 150),
        (57.08, 25.68, 8.176, 3.629, 1.958, 1.205, 0.5952, 0.3717, 0.1964),
    ),
    "copper": (
        (15, 20, 30, 40, 50, 60, 80, 100, 150),
        (74.05, 33.79, 10.92, 4.862, 2.613, 1.593, 0.7630, 0.4584, 0.2217),
    ),
    "tungsten": (
        (15, 20, 30, 40, 50, 60, 69.5249, 69.5251, 80, 100, 150),
        (138.9, 65.73, 22.73, 10.67, 5.949, 3.713, 2.552, 11.23, 7.810, 4.438, 1.581),
    ),
    "caesium iodide": (
        (15, 20, 30, 33.1693, 33.1695, 35.9845, 35.9847, 40, 50, 60, 80, 100, 150),
        (58.15, 26.86, 9.045, 6.923, 21.22, 17.19, 30.27, 22.97, 12.87, 7.921, 3.677, 2.035, 0.7290),
    ),
}
#: Densities, g/cm^3 (same tables; iodine is given by its concentration instead).
DENSITY_G_CM3 = {
    "soft tissue": 1.06,
    "cortical bone": 1.92,
    "aluminium": 2.699,
    "iron": 7.874,
    "copper": 8.96,
    "tungsten": 19.3,
    "caesium iodide": 4.51,
}
#: Caesium iodide scintillator of a flat detector, g/cm^2: 0.6 mm at the packing of needles, about 0.8.
_SCINTILLATOR_G_CM2 = 0.6 * 0.1 * 4.51 * 0.8


def mass_attenuation_cm2_g(material: str, energy_kev: np.ndarray | float) -> np.ndarray:
    """Mass attenuation coefficient, cm^2/g, interpolated in log-log between the tabulated energies.

    Raises:
        InputError: unknown material, or an energy outside the table (15 to 150 keV).

    Example:
        >>> float(mass_attenuation_cm2_g("iodine", 60))
        7.579
    """
    if material not in MASS_ATTENUATION_CM2_G:
        raise InputError(f"material is '{material}'; choose one of {', '.join(MASS_ATTENUATION_CM2_G)}")
    energies, values = (np.asarray(column, float) for column in MASS_ATTENUATION_CM2_G[material])
    energy = np.asarray(energy_kev, float)
    if not (np.all(energy >= energies[0]) and np.all(energy <= energies[-1])):
        raise InputError(f"energy {energy_kev} keV is outside the table; give {energies[0]:g} to {energies[-1]:g} keV")
    return np.round(np.exp(np.interp(np.log(energy), np.log(energies), np.log(values))), 12)


def attenuation_per_mm(material: str, energy_kev: np.ndarray | float) -> np.ndarray:
    """Linear attenuation of a material at its own density, 1/mm."""
    return mass_attenuation_cm2_g(material, energy_kev) * DENSITY_G_CM3[material] / 10


def iodine_per_mm(concentration_mg_ml: float, energy_kev: np.ndarray | float) -> np.ndarray:
    """What iodine adds to the attenuation of blood, 1/mm: 300 mg/ml add 0.37/mm at 50 keV, 0.23/mm at 60 keV."""
    return mass_attenuation_cm2_g("iodine", energy_kev) * concentration_mg_ml / 1000 / 10


@dataclass(frozen=True)
class Beam:
    """A beam as the detector weighs it, behind the patient.

    Args:
        kilovolt: tube voltage, 50 to 140 kV.
        copper_mm: added filter. Inherent filtration is 3 mm of aluminium.
        patient_mm: soft tissue that hardens the beam before and behind the heart.

    Raises:
        InputError: a value out of range.
    """

    kilovolt: float
    copper_mm: float = 0.2
    patient_mm: float = 200.0

    def __post_init__(self) -> None:
        for name, value, low, high, unit in (
            ("tube voltage", self.kilovolt, 50, 140, " kV"),
            ("copper filter", self.copper_mm, 0, 2, " mm"),
            ("patient thickness", self.patient_mm, 0, 500, " mm"),
        ):
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; give {low} to {high}{unit}")

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Energies, keV, and the share of the detector signal ``(n,)`` that each gives; the shares sum to one.

        Kramers' spectrum times the transmission of filters and patient times absorbed energy in the scintillator.
        """
        energy = np.arange(15.5, self.kilovolt, 1.0)
        depth = 3.0 * attenuation_per_mm("aluminium", energy) + self.copper_mm * attenuation_per_mm("copper", energy)
        depth += self.patient_mm * attenuation_per_mm("soft tissue", energy)
        absorbed = 1 - np.exp(-_SCINTILLATOR_G_CM2 * mass_attenuation_cm2_g("caesium iodide", energy))
        signal = (self.kilovolt - energy) / energy * np.exp(-depth) * energy * absorbed
        return energy, signal / signal.sum()

    def mean_kev(self) -> float:
        """Mean energy of the detector signal."""
        energy, share = self.weights()
        return float(energy @ share)

    def iodine_per_mm(self, concentration_mg_ml: float) -> float:
        """Effective attenuation of iodine for a thin layer, 1/mm: the mean over the signal."""
        energy, share = self.weights()
        return float(iodine_per_mm(concentration_mg_ml, energy) @ share)

    def material_per_mm(self, material: str) -> float:
        """Effective attenuation of a thin layer of a material, 1/mm."""
        energy, share = self.weights()
        return float(attenuation_per_mm(material, energy) @ share)

    def hardened(self, line_integral: np.ndarray) -> np.ndarray:
        """What the detector reads, ``-log`` of the signal, where iodine alone would give ``line_integral`` in a thin
        layer: less than it, since the softer quanta go first. Same shape, float32; exact to 1e-4 up to 12.
        """
        grid, read = _hardening(self)
        return np.interp(line_integral, grid, read).astype(np.float32)


@lru_cache(maxsize=64)
def _hardening(beam: Beam) -> tuple[np.ndarray, np.ndarray]:
    energy, share = beam.weights()
    relative = mass_attenuation_cm2_g("iodine", energy)
    relative = relative / (relative @ share)
    grid = np.linspace(0, 12, 601)
    return grid, -np.log(np.exp(-grid[:, None] * relative) @ share)
