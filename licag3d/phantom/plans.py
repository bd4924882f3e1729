# SPDX-License-Identifier: Apache-2.0
"""What branches a coronary tree has, where they leave, where they run and how wide they are.

Names follow the SCCT 18-segment model (Leipsic et al., SCCT guideline 2014; ``SCCT_SEGMENTS``). Diameters: Dodge et
al., Circulation 1992;86:232 (men, women 9 % less), cross-checked with Vieweg et al. 1976; balanced circulation, which
that table does not list, lies between its right and left dominance. Lengths are the usual quantitative-angiography
ranges. Numbers of branches: computed tomography of 3236 patients (Radiol Med 2011, 10.1007/s11547-011-0627-3: ramus in
21.3 %, one or two diagonals and one or two marginals in over 90 %) and of 700 (Diagn Interv Radiol 2009, 2550-09.1:
conus branch from the aorta in 22 %, sinus node branch from the right artery in 79 % or, elsewhere, 60 to 65 %). Every
table of the phantom stands in this file, so that tests can read it.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]

# fmt: off
#: SCCT segment numbers by branch name (a branch that spans several segments lists all).
SCCT_SEGMENTS: dict[str, tuple[int, ...]] = {
    "RCA": (1, 2, 3), "R-PDA": (4,), "LM": (5,), "LAD": (6, 7, 8), "D1": (9,), "D2": (10,), "LCx": (11, 13),
    "OM1": (12,), "OM2": (14,), "L-PDA": (15,), "R-PLB": (16,), "RI": (17,), "L-PLB": (18,)}
# fmt: on

#: Population shares of dominance.
DOMINANCE_SHARES = {"right": 0.82, "left": 0.10, "co": 0.08}
#: Women have about 9 % narrower vessels (Dodge 1992).
WOMEN_DIAMETER_FACTOR = 0.91
#: Exponent of the branching rule D^e = d1^e + d2^e: Huo-Kassab 7/3, which human casts follow better than Murray's 3.
BRANCHING_EXPONENT = 7.0 / 3.0
#: Distance over which the parent narrows to its distal calibre after a branch, mm.
NARROWING_MM = 3.0
#: A vessel without daughters at its end fades out: share of its calibre left at the end, over the last share of its
#: length.
END_CALIBRE, END_SHARE = 0.55, 0.25


@dataclass(frozen=True)
class Waypoint:
    """A place on the heart: ranges of theta and phi in degrees (see ``Heart``) and of the level."""

    theta_deg: Range
    phi_deg: Range
    level: Range = (1.0, 1.0)


def _at(theta: float, phi: float, spread: float = 3.0, level: float = 1.0) -> Waypoint:
    return Waypoint((theta - spread, theta + spread), (phi - spread, phi + spread), (level - 0.01, level + 0.01))


@dataclass(frozen=True)
class Plan:
    """One branch of the plan.

    Args:
        name: branch name; ``parent`` the branch it leaves (None for the first).
        at_mm: range of the arc length on the parent where it leaves; ``at_end`` leaves from the parent's last point.
        length_mm, diameter_mm: ranges; the diameter is (mean, standard deviation) of the first point, in men.
        angle_deg: range of the angle between parent and branch at the junction.
        waypoints: where it runs; empty: it fans out from the parent along the surface (second-order branches).
        chance: probability that the patient has it.
        wander_mm: amplitude (standard deviation) of its tortuosity; ``winding`` the amplitude of the short waves at its
            far end relative to it: curvature and tortuosity of the left anterior descending artery are highest
            distally (Zhu et al., Int J Cardiol 2009;135:43).
        taper_per_mm: relative loss of diameter per mm besides the branching rule.
        whole: runs to its last waypoint whatever its length (the trunk of the right coronary artery ends at the crux).
        inward: without waypoints, it dives into the muscle (septal branches) instead of following the surface.
        needs: name of a branch without which there is none of these (no third diagonal without a second).
    """

    name: str
    parent: str | None
    at_mm: Range
    length_mm: Range
    diameter_mm: Range
    angle_deg: Range
    waypoints: tuple[Waypoint, ...] = ()
    chance: float = 1.0
    wander_mm: float = 0.8
    winding: float = 0.4
    taper_per_mm: float = 0.002
    at_end: bool = False
    whole: bool = False
    inward: bool = False
    needs: str | None = None


# Tables, one entry a paragraph: a formatter would give every number its own line.
# fmt: off
def _second_order(parent: str, count: int, length_mm: Range, spread_mm: Range, chance: float = 0.75) -> list[Plan]:
    low, high = spread_mm
    step = (high - low) / count
    return [Plan(f"{parent}.{chr(ord('a') + k)}", parent, (low + k * step, low + (k + 0.6) * step), length_mm, (0.95,
                 0.12), (35, 60), chance=chance, wander_mm=0.6, taper_per_mm=0.006) for k in range(count)]


def right_plan(dominance: str) -> list[Plan]:
    """The right coronary artery; parents come before their branches."""
    groove = (_at(97, 58), _at(91, 82), _at(90, 108), _at(91, 133), _at(91, 156))
    small, balanced = dominance == "left", dominance == "co"
    diameter_mm = (2.8, 0.5) if small else (3.5, 0.45) if balanced else (3.9, 0.5)
    trunk = groove[:4] + (_at(91, 146),) if small else groove + (_at(91, 176, 2.0),)
    plans = [
        Plan("RCA", None, (0, 0), (70, 118) if small else (118, 142), diameter_mm, (0, 0), trunk,
             wander_mm=1.2, winding=0.15, taper_per_mm=0.0012, whole=True),
        Plan("CB", "RCA", (5, 10), (20, 35), (1.2, 0.15), (50, 75), (_at(80, 45), _at(66, 32), _at(52, 30)), 0.75,
             taper_per_mm=0.006),
        Plan("SN", "RCA", (13, 19), (28, 42), (1.3, 0.15), (60, 85), (_at(112, 72), _at(132, 85), _at(150, 110)), 0.6,
             taper_per_mm=0.006),
        Plan("AM1", "RCA", (46, 58), (35, 55), (1.6, 0.2), (45, 70), (_at(74, 105), _at(54, 118), _at(36, 130)),
             taper_per_mm=0.005),
        Plan("AM2", "RCA", (70, 80), (22, 40), (1.3, 0.2), (45, 70), (_at(76, 128), _at(60, 142), _at(44, 148)), 0.6,
             taper_per_mm=0.006),
        *_second_order("AM1", 2, (10, 20), (12, 32), 0.6),
    ]
    if small:
        return plans
    plans += [
        Plan("R-PDA", "RCA", (0, 0), (40, 55), (2.1, 0.25), (35, 50), (_at(76, 180), _at(56, 182), _at(34, 182),
             _at(16, 182)), taper_per_mm=0.004, wander_mm=1.0, at_end=True),
        *_second_order("R-PDA", 3, (9, 20), (10, 36), 0.7),
    ]
    if balanced:  # the right artery ends as posterior descending artery; the left one feeds the posterior wall
        return [*plans, Plan("AVN", "R-PDA", (3, 6), (10, 18), (0.9, 0.1), (70, 95), (), 0.7, 0.4,
                             taper_per_mm=0.01, inward=True)]
    return plans + [
        Plan("R-PLB", "RCA", (0, 0), (34, 55), (2.2, 0.3), (30, 45), (_at(89, 200), _at(84, 222), _at(70, 236),
             _at(52, 240)), taper_per_mm=0.004, wander_mm=1.0, at_end=True),
        Plan("R-PLB.a", "R-PLB", (14, 20), (22, 38), (1.4, 0.15), (40, 60), (_at(72, 206), _at(54, 212), _at(36, 214)),
             0.85, taper_per_mm=0.006),
        Plan("AVN", "R-PLB", (8, 10), (10, 18), (0.9, 0.1), (70, 95), (), 0.7, 0.4, taper_per_mm=0.01, inward=True),
        *_second_order("R-PLB.a", 1, (9, 16), (10, 18), 0.6),
    ]


def left_plan(dominance: str) -> list[Plan]:
    """The left coronary artery; parents come before their branches."""
    circumflex = {"right": (3.4, 0.4), "left": (4.1, 0.4), "co": (3.6, 0.4)}[dominance]
    groove = (_at(92, -22), _at(92, -48), _at(91, -76), _at(90, -100), _at(89, -122))
    length = (60, 90) if dominance != "left" else (110, 140)
    if dominance != "right":
        groove += (_at(90, -145), _at(91, -168, 2.0))
        length = (95, 112) if dominance == "co" else length
    plans = [
        # The diameter of the left main follows from its branches by the branching rule; see Dodge 1992: 4.5 mm.
        Plan("LM", None, (0, 0), (6, 16), (4.5, 0.5), (0, 0), (_at(92, -4, 2.5),), wander_mm=0.0, taper_per_mm=0.0,
             whole=True),
        Plan("LAD", "LM", (0, 0), (100, 130), (3.7, 0.3), (30, 42), (_at(80, 10), _at(64, 15), _at(46, 16), _at(28, 14),
             _at(13, 8), _at(9, 185), _at(24, 187), _at(40, 185)), wander_mm=1.3, winding=0.55,
             taper_per_mm=0.0022, at_end=True),
        Plan("LCx", "LM", (0, 0), length, circumflex, (38, 50), groove, wander_mm=1.1,
             taper_per_mm=0.0028 if dominance == "right" else 0.0012, at_end=True),
        Plan("RI", "LM", (0, 0), (40, 60), (2.0, 0.2), (5, 15), (_at(76, -20, 2), _at(58, -30, 2), _at(40, -36, 2),
             _at(24, -40, 2)), 0.213, taper_per_mm=0.005, at_end=True),
        Plan("S1", "LAD", (12, 17), (18, 32), (1.1, 0.1), (60, 85), wander_mm=0.5, taper_per_mm=0.008, inward=True),
        Plan("D1", "LAD", (20, 28), (50, 70), (2.1, 0.25), (42, 60), (_at(64, -10), _at(46, -24), _at(28, -34),
             _at(14, -40)), taper_per_mm=0.005, wander_mm=1.0),
        Plan("S2", "LAD", (31, 38), (15, 28), (1.0, 0.1), (60, 85), (), 0.9, 0.5, taper_per_mm=0.008, inward=True),
        Plan("D2", "LAD", (42, 54), (32, 50), (1.8, 0.2), (42, 60), (_at(42, -8), _at(26, -22), _at(12, -30)), 0.72,
             taper_per_mm=0.005),
        Plan("S3", "LAD", (57, 64), (12, 22), (0.9, 0.1), (60, 85), (), 0.7, 0.4, taper_per_mm=0.008, inward=True),
        Plan("D3", "LAD", (68, 78), (18, 32), (1.4, 0.15), (40, 58), (_at(20, -20), _at(8, -60)), 0.16,
             taper_per_mm=0.006, needs="D2"),
        Plan("OM1", "LCx", (14, 24), (50, 70), (2.1, 0.25), (50, 65), (_at(72, -52), _at(54, -62), _at(34, -68),
             _at(16, -72)), taper_per_mm=0.005, wander_mm=1.0),
        Plan("OM2", "LCx", (40, 52), (38, 58), (1.8, 0.2), (50, 65), (_at(72, -88), _at(54, -98), _at(34, -104),
             _at(16, -110)), 0.72, taper_per_mm=0.005, wander_mm=0.9),
        *_second_order("D1", 2, (12, 26), (14, 42), 0.75),
        *_second_order("D2", 1, (10, 20), (12, 22), 0.6),
        *_second_order("OM1", 2, (12, 26), (14, 42), 0.75),
        *_second_order("OM2", 2, (10, 22), (12, 34), 0.6),
    ]
    if dominance == "right":
        plans.append(Plan("OM3", "LCx", (57, 70), (20, 36), (1.4, 0.15), (45, 65), (_at(74, -112), _at(56, -124),
                          _at(38, -128)), 0.16, taper_per_mm=0.006, needs="OM2"))
    else:
        plans.append(Plan("L-PLB", "LCx", (72, 82), (30, 48), (1.7, 0.2), (45, 65), (_at(72, -134), _at(54, -142),
                          _at(36, -146)), taper_per_mm=0.005))
    if dominance == "left":
        plans.append(Plan("L-PDA", "LCx", (0, 0), (40, 55), (2.0, 0.25), (30, 50), (_at(74, 182), _at(54, 183),
                          _at(34, 183), _at(16, 183)), taper_per_mm=0.004, at_end=True))
    return plans
