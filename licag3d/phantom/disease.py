# SPDX-License-Identifier: Apache-2.0
"""Coronary disease on a tree: stenoses, diffuse disease, dilatations and occlusions by population shares.

What a patient has is drawn once for both arteries; where it lies, per artery. Shares and places:

- Elective angiography: 37.6 % obstructive disease (70 % of the diameter or more), 39.2 % none, odds of men 2.7 times
  those of women (Patel et al., N Engl J Med 2010;362:886; 398 978 patients).
- Occlusion in 18.4 % of patients with significant stenoses (Fefer et al., J Am Coll Cardiol 2012;59:991), 49 % right,
  22 % anterior descending, 29 % circumflex artery (Christofferson et al., Am J Cardiol 2005;95:1088).
- Ectasia or aneurysm in 4.2 %, half of them right (4119 angiographies, Turk Kardiyol Dern Ars 2008;36:534); a diameter
  of 1.5 times the normal one or more; ectasia is longer than a third of the artery, an aneurysm shorter.
- Lesions cluster proximally: 66, 42 and 16 % of diseased arteries narrowed in their proximal, middle and distal third
  (Am Heart J 1988;116:1217); 46, 41 and 13 % of occlusions (Garcia et al., Catheter Cardiovasc Interv 2017;90:23).
- 55 % of target lesions are eccentric on angiography (Mintz et al., Circulation 1996;93:924).
- Length 5 to 25 mm and 30 to 90 % of the diameter are the range of clinical quantitative angiography.

Truth is the lumen. The reference is the healthy tree, so ``percent_diameter`` holds to rounding at the sample named.
Behind an occlusion nothing is left of the branch and of what leaves it there: the contrast of this artery does not get
there, and the late and faint filling through collaterals comes from elsewhere and at another time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.errors import InputError
from licag3d.phantom.anatomy import overlapping_branches, sample_patient
from licag3d.phantom.twigs import is_twig
from licag3d.structures import Branch, VesselTree
from licag3d.vessels.tree import arc_length_mm

#: Share of patients by sex with obstructive, other (20 to 70 %) and no disease, in the odds of the source.
EXTENT_SHARES = {
    "male": {"obstructive": 0.48, "nonobstructive": 0.22, "none": 0.30},
    "female": {"obstructive": 0.26, "nonobstructive": 0.25, "none": 0.49},
}
#: Where the stenoses of a patient lie.
STENOSIS_SHARES = {"LAD": 0.42, "RCA": 0.32, "LCx": 0.22, "LM": 0.04}
OCCLUSION_SHARE, OCCLUSION_SHARES = 0.184, {"RCA": 0.494, "LAD": 0.22, "LCx": 0.286}
DILATATION_SHARE, DILATATION_SHARES = 0.042, {"RCA": 0.51, "LAD": 0.27, "LCx": 0.22}
#: Share with long irregular narrowing, by extent of disease: a choice, no source gives it in these terms.
DIFFUSE_SHARE = {"obstructive": 0.35, "nonobstructive": 0.15, "none": 0.0}
ECCENTRIC_SHARE = 0.55
#: The chance of a lesion falls with the distance from the ostium like exp(-distance / this), mm.
CLUSTER_MM = 60.0
#: Vessels thinner than this are not given lesions, mm.
LEAST_DIAMETER_MM = 1.5
MOST_STENOSES = 3
_LEAST_LUMEN_MM = 0.25


@dataclass(frozen=True)
class Lesion:
    """One lesion, measured on the tree as it is returned.

    Args:
        branch, branch_id: where it lies.
        kind: ``stenosis``, ``diffuse``, ``ectasia``, ``aneurysm`` or ``occlusion``.
        start_mm, length_mm: arc length along the branch's centreline; of an occlusion where the lumen ends, and how
            much of the branch is gone.
        at_mm: arc length of the narrowest place (of a dilatation the widest).
        percent_diameter: ``100 (1 - minimal / reference)`` there; negative where the vessel is wider than normal, 100
            for an occlusion. A stenosis inside diffuse disease counts both.
        minimal_diameter_mm, reference_diameter_mm: lumen there, and the healthy vessel at the same sample.
        eccentricity: 0 the lumen stays in the middle of the vessel, 1 it lies against the wall.
    """

    branch: str
    branch_id: int
    kind: str
    start_mm: float
    length_mm: float
    at_mm: float
    percent_diameter: float
    minimal_diameter_mm: float
    reference_diameter_mm: float
    eccentricity: float = 0.0


@dataclass(frozen=True)
class _Planned:
    """A lesion of the patient before it has a place: ``group`` is the vessel whose tree holds it."""

    kind: str
    group: str
    severe: bool = False


@dataclass(frozen=True)
class _Placed:
    kind: str
    branch_id: int
    first: int  # samples
    last: int
    eccentricity: float


def sample_disease(
    seed: int, artery: str, tree: VesselTree, *, extent: str | None = None
) -> tuple[VesselTree, tuple[Lesion, ...]]:
    """A healthy tree with the disease of its patient.

    Args:
        seed, artery: as for ``sample_tree``; both arteries of a seed belong to one patient.
        tree: the healthy tree, anywhere in space, with or without twigs, branches in the order parents first.
        extent: ``none``, ``nonobstructive`` or ``obstructive`` to choose what the patient has; default by the shares.

    Returns:
        The tree with the lumen as it is, and the lesions from the first branch on. Branch ids and names stay; branches
        behind an occlusion are gone. Samples stay where they are but for the shift of eccentric lesions.

    Raises:
        InputError: unknown artery or extent, negative seed, empty tree.

    Example:
        >>> from licag3d.phantom.anatomy import sample_tree
        >>> sick, lesions = sample_disease(3, "rca", sample_tree(3, "rca"), extent="obstructive")
        >>> all(lesion.percent_diameter > 0 for lesion in lesions if lesion.kind == "stenosis")
        True
    """
    if artery not in ("rca", "lca"):
        raise InputError(f"artery is '{artery}'; choose rca or lca")
    if extent not in (None, "none", "nonobstructive", "obstructive"):
        raise InputError(f"extent of disease is '{extent}'; choose none, nonobstructive or obstructive")
    if not tree.branches:
        raise InputError("the vessel tree has no branches, so it cannot be given disease")
    planned = _patient_lesions(seed, extent)
    rng = np.random.default_rng([int(seed), 61 + ("rca", "lca").index(artery)])
    groups = _groups(tree)
    own = [item for item in planned if item.group in (("RCA",) if artery == "rca" else ("LM", "LAD", "LCx"))]
    work = _Work(tree, groups)
    stenoses = 0
    # What an occlusion takes away cannot be narrowed, so it comes first; focal lesions keep clear of each other.
    for kind, place in (
        ("occlusion", _occlude),
        ("dilatation", _dilate),
        ("diffuse", _narrow_diffusely),
        ("stenosis", _narrow),
    ):
        for item in own:
            if item.kind != kind or kind == "stenosis" and stenoses >= MOST_STENOSES:
                continue
            stenoses += bool(place(work, item, rng)) and kind == "stenosis"
    return work.result()


def _patient_lesions(seed: int, extent: str | None) -> list[_Planned]:
    sex = sample_patient(seed).sex
    rng = np.random.default_rng([int(seed), 60])
    shares = EXTENT_SHARES[sex]
    drawn = str(rng.choice(list(shares), p=list(shares.values())))
    extent = drawn if extent is None else extent
    planned: list[_Planned] = []

    def somewhere(shares: dict[str, float]) -> str:
        return str(rng.choice(list(shares), p=list(shares.values())))

    if extent == "obstructive":
        count = int(rng.choice([1, 2, 3, 4, 5], p=[0.3, 0.27, 0.2, 0.13, 0.1]))
        if rng.random() < OCCLUSION_SHARE:
            planned.append(_Planned("occlusion", somewhere(OCCLUSION_SHARES)))
        # An occlusion is obstruction enough; without one the first stenosis is severe.
        severe = [not planned, *(rng.random(count - 1) < 0.4)]
        planned += [_Planned("stenosis", somewhere(STENOSIS_SHARES), bool(s)) for s in severe]
    elif extent == "nonobstructive":
        count = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
        planned += [_Planned("stenosis", somewhere(STENOSIS_SHARES)) for _ in range(count)]
    if rng.random() < DIFFUSE_SHARE[extent]:
        planned += [_Planned("diffuse", group) for group in ("RCA", "LAD", "LCx") if rng.random() < 0.5]
    if rng.random() < DILATATION_SHARE and extent != "none":
        planned.append(_Planned("dilatation", somewhere(DILATATION_SHARES)))
    return planned


def _groups(tree: VesselTree) -> dict[int, str]:
    """Which main vessel every branch belongs to: that of its name, else that of its parent, else any (empty)."""
    groups: dict[int, str] = {}
    for branch in tree.branches:
        inherited = groups.get(branch.parent, "") if branch.parent is not None else ""
        main = branch.name if branch.name in ("RCA", "LM", "LAD", "LCx") else "LAD" if branch.name == "RI" else ""
        groups[branch.id] = main or ("" if inherited == "LM" else inherited)
    return groups


class _Work:
    """The tree while lesions are being laid on it: relative calibre and shift of every sample, by branch id."""

    def __init__(self, tree: VesselTree, groups: dict[int, str]) -> None:
        self.groups = groups
        self.branches = {branch.id: branch for branch in tree.branches}
        self.arc = {branch.id: arc_length_mm(branch.points_lps_mm) for branch in tree.branches}
        self.end = {branch.id: len(branch.points_lps_mm) for branch in tree.branches}  # samples that are left
        self.scale = {branch.id: np.ones(len(branch.points_lps_mm)) for branch in tree.branches}
        self.shift = {branch.id: np.zeros((len(branch.points_lps_mm), 3)) for branch in tree.branches}
        self.busy = {branch.id: np.zeros(len(branch.points_lps_mm), bool) for branch in tree.branches}
        self.placed: list[_Placed] = []
        self.joint: dict[int, int] = {}  # sample of the parent where a branch starts
        self.ostium_mm: dict[int, float] = {}  # way from the ostium to the start of a branch
        for branch in tree.branches:
            if branch.parent is None:
                self.ostium_mm[branch.id] = 0.0
                continue
            above = self.branches[branch.parent].points_lps_mm
            index = int(np.argmin(((above - branch.points_lps_mm[0]) ** 2).sum(1)))
            self.joint[branch.id] = index
            self.ostium_mm[branch.id] = self.ostium_mm[branch.parent] + float(self.arc[branch.parent][index])

    def alive(self) -> list[Branch]:
        """Branches that are not behind an occlusion, parents first."""
        gone: set[int] = set()
        for branch in self.branches.values():
            if branch.parent is not None and (
                branch.parent in gone or self.joint[branch.id] >= self.end[branch.parent]
            ):
                gone.add(branch.id)
        return [branch for branch in self.branches.values() if branch.id not in gone]

    def choose(
        self, group: str, length_mm: float, rng: np.random.Generator, main_only: bool = False, margin_mm: float = 3.0
    ) -> tuple[int, int, int] | None:
        """Branch id, first and one-past-last sample of a free stretch of a length in a vessel group, proximal ones
        likelier."""
        ids, firsts, lasts, weights = [], [], [], []
        known = any(name == group for name in self.groups.values())
        for branch in self.alive():
            if is_twig(branch.name) or known and self.groups[branch.id] != group:
                continue
            if main_only and branch.name != group and known:
                continue
            arc = self.arc[branch.id][: self.end[branch.id]]
            first = np.arange(len(arc))
            last = np.searchsorted(arc, arc + length_mm)
            fits = (arc >= (margin_mm if branch.parent is None else margin_mm + 2.0)) & (arc + length_mm <= arc[-1] - 2)
            first, last = first[fits], last[fits]
            if len(first) == 0:
                continue
            blocked = np.concatenate(([0], np.cumsum(self.busy[branch.id])))
            diameter = 2 * branch.radius_mm[(first + last) // 2]
            free = (blocked[last] == blocked[first]) & (diameter >= LEAST_DIAMETER_MM)
            way = self.ostium_mm[branch.id] + arc[first] + length_mm / 2
            chance = np.exp(-way / CLUSTER_MM) * diameter * free
            ids += [branch.id] * len(first)
            firsts += first.tolist()
            lasts += last.tolist()
            weights.append(chance)
        total = np.concatenate(weights) if weights else np.zeros(0)
        if not total.sum() > 0:
            return None
        k = int(rng.choice(len(total), p=total / total.sum()))
        return ids[k], firsts[k], lasts[k]

    def occupy(self, branch_id: int, first: int, last: int, gap_mm: float = 3.0) -> None:
        arc = self.arc[branch_id]
        self.busy[branch_id] |= (arc >= arc[first] - gap_mm) & (arc <= arc[min(last, len(arc) - 1)] + gap_mm)

    def tree(self) -> VesselTree:
        """The tree as it stands; a branch starts on the shifted sample of its parent."""
        made = []
        for branch in self.alive():
            end = self.end[branch.id]
            points, shift = branch.points_lps_mm[:end], self.shift[branch.id][:end].copy()
            if branch.parent is not None:
                pull = self.shift[branch.parent][self.joint[branch.id]]
                if np.any(pull):  # over its first millimetres, so that no kink arises
                    shift += np.clip(1 - self.arc[branch.id][:end] / 4.0, 0, 1)[:, None] ** 2 * pull
            moved = points + shift
            if branch.parent is not None:
                moved[0] = self.branches[branch.parent].points_lps_mm[self.joint[branch.id]] + pull
            radius = branch.radius_mm[:end]
            floor = np.minimum(0.5 * _LEAST_LUMEN_MM, radius)
            made.append(
                replace(branch, points_lps_mm=moved, radius_mm=np.maximum(radius * self.scale[branch.id][:end], floor))
            )
        return VesselTree(tuple(made))

    def result(self) -> tuple[VesselTree, tuple[Lesion, ...]]:
        tree = self.tree()
        after = {branch.id: branch for branch in tree.branches}
        order = {branch.id: k for k, branch in enumerate(tree.branches)}
        lesions = []
        for item in sorted(self.placed, key=lambda item: (order.get(item.branch_id, 1 << 30), item.first)):
            if item.branch_id in after:
                lesions.append(self._measured(item, after[item.branch_id]))
        return tree, tuple(lesions)

    def _measured(self, item: _Placed, branch: Branch) -> Lesion:
        healthy = self.branches[item.branch_id]
        arc = arc_length_mm(branch.points_lps_mm)
        if item.kind == "occlusion":
            reference = 2 * float(healthy.radius_mm[item.first])
            lost = float(self.arc[item.branch_id][-1] - self.arc[item.branch_id][item.first])
            end = float(arc[-1])
            return Lesion(branch.name, branch.id, item.kind, end, lost, end, 100.0, 0.0, reference)
        last = min(item.last, len(arc)) - 1
        share = branch.radius_mm[item.first : last + 1] / healthy.radius_mm[item.first : last + 1]
        wide = item.kind in ("ectasia", "aneurysm")
        at = item.first + int(np.argmax(share) if wide else np.argmin(share))
        minimal, reference = 2 * float(branch.radius_mm[at]), 2 * float(healthy.radius_mm[at])
        return Lesion(
            branch.name,
            branch.id,
            item.kind,
            float(arc[item.first]),
            float(arc[last] - arc[item.first]),
            float(arc[at]),
            100 * (1 - minimal / reference),
            minimal,
            reference,
            item.eccentricity,
        )


def _bump(u: np.ndarray, peak: float, plateau: float, edge: float = 1.0) -> np.ndarray:
    """Profile 0..1 over ``u`` in 0..1 with smooth ends and a flat part of width ``plateau`` around ``peak``."""
    low, high = peak * (1 - plateau), peak + (1 - peak) * plateau
    rise = np.clip(np.minimum(u / max(low * edge, 1e-6), (1 - u) / max((1 - high) * edge, 1e-6)), 0, 1)
    return rise * rise * (3 - 2 * rise)


def _occlude(work: _Work, item: _Planned, rng: np.random.Generator) -> bool:
    found = work.choose(item.group, 4.0, rng, margin_mm=8.0)
    if found is None:
        return False
    branch_id, first, last = found
    work.end[branch_id] = last
    if rng.random() < 0.5:  # a tapered stump, else a blunt one
        u = np.linspace(0, 1, last - first)
        work.scale[branch_id][first:last] *= 1 - 0.75 * u * u * (3 - 2 * u)
    work.busy[branch_id][first:] = True
    work.placed.append(_Placed("occlusion", branch_id, last - 1, last, 0.0))
    return True


def _dilate(work: _Work, item: _Planned, rng: np.random.Generator) -> bool:
    kind = "ectasia" if rng.random() < 0.6 else "aneurysm"
    main = [b for b in work.alive() if b.name == item.group] or work.alive()[:1]
    whole = float(work.arc[main[0].id][work.end[main[0].id] - 1])
    length = whole * rng.uniform(0.34, 0.5) if kind == "ectasia" else min(rng.uniform(6, 18), 0.3 * whole)
    found = work.choose(item.group, length, rng, main_only=True)
    if found is None:
        return False
    branch_id, first, last = found
    u = np.linspace(0, 1, last - first)
    gain = (rng.uniform(0.55, 1.0) if kind == "ectasia" else rng.uniform(0.6, 1.4)) * _bump(
        u, rng.uniform(0.4, 0.6), 0.6 if kind == "ectasia" else 0.15, 0.5 if kind == "ectasia" else 1.0
    )
    if kind == "ectasia":  # irregular walls
        gain *= 1 - 0.12 * (1 + np.sin(2 * np.pi * (u * length / rng.uniform(9, 16) + rng.random())))
    before = work.scale[branch_id].copy()
    work.scale[branch_id][first:last] *= 1 + gain
    if before[first:last].max() * (1 + gain).max() < 1.5 or overlapping_branches(work.tree()) is not None:
        work.scale[branch_id] = before  # no room beside a neighbour: this patient goes without
        return False
    work.occupy(branch_id, first, last)
    work.placed.append(_Placed(kind, branch_id, first, last, 0.0))
    return True


def _narrow_diffusely(work: _Work, item: _Planned, rng: np.random.Generator) -> bool:
    found = work.choose(item.group, rng.uniform(25, 60), rng, main_only=True)
    if found is None:
        return False
    branch_id, first, last = found
    arc = work.arc[branch_id][first:last] - work.arc[branch_id][first]
    u = arc / arc[-1]
    waves = sum(rng.uniform(0.3, 1) * np.sin(2 * np.pi * (arc / rng.uniform(6, 18) + rng.random())) for _ in range(3))
    loss = rng.uniform(0.15, 0.32) + 0.05 * waves
    work.scale[branch_id][first:last] *= 1 - loss * _bump(u, 0.5, 0.75)
    # Focal lesions may sit on it, so the stretch stays free.
    work.placed.append(_Placed("diffuse", branch_id, first, last, 0.0))
    return True


def _narrow(work: _Work, item: _Planned, rng: np.random.Generator) -> bool:
    length = float(np.clip(np.exp(rng.normal(np.log(10.5), 0.42)), 5, 25))
    percent = rng.uniform(70, 90) if item.severe else rng.uniform(30, 65)
    found = work.choose(item.group, length, rng) or work.choose(item.group, 5.0, rng)
    if found is None:
        return False
    branch_id, first, last = found
    branch = work.branches[branch_id]
    profile = _bump(np.linspace(0, 1, last - first), rng.uniform(0.35, 0.65), rng.uniform(0.0, 0.3))
    loss = percent / 100 * profile / profile.max()
    eccentric = float(rng.uniform(0.4, 1.0) if rng.random() < ECCENTRIC_SHARE else rng.uniform(0.0, 0.25))
    middle = first + int(np.argmax(profile))
    tangent = np.gradient(branch.points_lps_mm, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    wall = np.cross(tangent[middle], rng.normal(size=3))
    wall /= np.linalg.norm(wall)
    # One wall all along the lesion: across the vessel everywhere, exactly so at its narrowest.
    across = wall - (tangent[first:last] @ wall)[:, None] * tangent[first:last]
    work.shift[branch_id][first:last] += (eccentric * loss * branch.radius_mm[first:last])[:, None] * across
    work.scale[branch_id][first:last] *= 1 - loss
    work.occupy(branch_id, first, last)
    work.placed.append(_Placed("stenosis", branch_id, first, last, eccentric))
    return True
