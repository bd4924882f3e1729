# SPDX-License-Identifier: Apache-2.0
"""The generator as prior: the tree of its space that explains both views and the matched points best.

What is minimised stands in :mod:`licag3d.inversion.prior_terms`; here are starts, descent and what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera
from licag3d.inversion.adam import Adam
from licag3d.inversion.chains import Chains
from licag3d.inversion.encoder_start import encoder_start
from licag3d.inversion.prior_evidence import Curve, Evidence, WeakLines, gather
from licag3d.inversion.prior_names import named_evidence
from licag3d.inversion.prior_terms import code_cost, evidence_cost, nearest_segments, schedule
from licag3d.inversion.prior_tree import PATIENTS, Codes, TreeWriter, artery_of, named_tree
from licag3d.models.branch_table import ARTERIES
from licag3d.models.generator import Generator
from licag3d.structures import VesselTree


@dataclass(frozen=True)
class PriorSettings:
    """Weights and effort of the fit.

    Args:
        steps: of Adam. trial_steps: after so many only the best of the labels goes on.
        starts: from there, with codes moved by normal deviates of ``spread`` (all but the first); the least cost wins.
        renew: nearest segments are sought anew every so many steps.
        spacing_mm: between compared points along centrelines.
        rate: step of z and deltas (no unit); place_rate_mm of the centre, mm.
        space, image, drawn: weights per mm of matched points, of centrelines, of the projected tree.
        sigma_mm: scale s of rho at the start and at the end. settle: share of the steps over which it falls.
        delta_sigma: standard deviation of a delta where the generator knows no better. delta_from: share of the steps
            after which deltas move.
        patient_gain: a code with the spread of patients may cost so much more than one with the wide spread: it is
            taken for patients of the prior's family, the wide one for other trees (docs/inversion.md).
        shift_sigma_mm, turn_sigma_deg, scale_sigma: of the placement, about the centre of the matched points.
        direction_mm, calibre_mm: what a right angle, and a factor e of calibre, add to a distance when points are
            compared.
        view_shift_sigma_mm: of what the camera search left of an offset, across the epipolar planes and toward the
            detector. view_turn_sigma_deg: the same of an angle. move_cameras: let all views but the first move.
        calibre: weight per mm of the squared log ratio of calibres.
        encoder: start from the code of the tree encoder as well.
        named_mm: one more start keeps to the encoder's names: what a branch of quite another name adds to a distance,
            as long as the scale s is larger than named_until_mm. 0: no such start.
    """

    steps: int = 220
    trial_steps: int = 60
    starts: int = 1
    spread: float = 0.5
    seed: int = 0
    renew: int = 2
    spacing_mm: float = 1.2
    rate: float = 0.06
    place_rate_mm: float = 0.4
    space: float = 0.1
    image: float = 1.0
    drawn: float = 0.5
    sigma_mm: tuple[float, float] = (10.0, 0.8)
    settle: float = 0.7
    delta_sigma: float = 0.5
    delta_from: float = 0.35
    patient_gain: float = 18.0
    shift_sigma_mm: float = 10.0
    turn_sigma_deg: float = 4.0
    scale_sigma: float = 0.06
    direction_mm: float = 4.0
    calibre_mm: float = 1.5
    calibre: float = 0.1
    encoder: bool = False
    named_mm: float = 6.0
    named_until_mm: float = 2.0
    view_shift_sigma_mm: tuple[float, float] = (0.5, 3.0)
    view_turn_sigma_deg: float = 0.5
    move_cameras: bool = True


@dataclass(frozen=True)
class PriorFit:
    """The fitted tree and how far it may be believed.

    Args:
        artery: ``rca`` or ``lca``. label: ``(labels,)``. margin: by how much the next artery costs more, as a share.
        w_plus: ``(layers, w_dim)`` float32, structure styles fitted, the rest the average. codes: one start.
        tree: named, world LPS mm. trust: per branch of the tree ``(n,)`` in 0..1, how well both views bear it out.
        center_mm, turn_deg, scale: placement of the box.
        explained: per view, share of the centreline length within ``NEAR_MM`` of the projected tree.
        residual_mm: per view, median distance of centrelines to the projected tree. cost: of the fit.
        cameras: corrected with the tree.
        overall: 0..1, how far the evidence bears the prior out; 0 is a scene that is no coronary tree.
    """

    artery: str
    label: np.ndarray
    margin: float
    w_plus: np.ndarray
    codes: Codes
    tree: VesselTree
    trust: tuple[np.ndarray, ...]
    center_mm: np.ndarray
    turn_deg: np.ndarray
    scale: float
    explained: tuple[float, ...]
    residual_mm: tuple[float, ...]
    overall: float
    cost: float
    cameras: tuple[Camera, ...]


#: Kinds of starts: from the average tree, the same kept to the encoder's names for a while, from the encoder's code.
_PLAIN, _NAMED, _ENCODED = "plain", "named", "encoded"
#: A centreline this near to the projected tree is explained by it, mm at the isocentre.
NEAR_MM = 2.0


def fit_prior(
    cameras: Sequence[Camera],
    chains: Sequence[Chains],
    points_mm: Sequence[np.ndarray],
    confidence: Sequence[np.ndarray],
    *,
    generator: Generator,
    settings: PriorSettings | None = None,
    start=None,
    labels: torch.Tensor | None = None,
    lines: Sequence[WeakLines] | None = None,
    encoding=None,
    progress: Callable[[float, str], None] | None = None,
) -> PriorFit:
    """Fit the generator's tree to matched points and the centrelines of all views.

    Args:
        cameras: with the scale gauge fixed (``Correspondence.cameras``), in which ``points_mm`` are given.
        start: an earlier :class:`PriorFit` to go on from (its artery is kept).
        labels: ``(B, labels)`` to try; default right and left, co-dominant or not.
        lines: per view, of :func:`weak_lines`: faint vessels are worth their probability.
        encoding: of :func:`licag3d.models.encode_views.encode_views`, for one more start that keeps to its names, and
            one from its code (``settings.encoder``). The cost of the end, which knows no names, tells which is best.
    """
    settings = settings or PriorSettings()
    evidence = gather(cameras, chains, points_mm, confidence, settings.spacing_mm, lines)
    encoded = None
    if encoding is not None and start is None:
        evidence = named_evidence(evidence, cameras, encoding) if settings.named_mm > 0 else evidence
        encoded = encoder_start(encoding, generator, len(cameras)) if settings.encoder else None
    writers = {artery: TreeWriter(generator, artery) for artery in ARTERIES}
    if start is not None:
        groups, kinds = {start.artery: start.codes.take([0])}, {start.artery: [_PLAIN]}
    else:
        labels = _labels(generator) if labels is None else labels
        groups, kinds = {}, {}
        for artery in dict.fromkeys(artery_of(row) for row in labels):
            rows = labels[[artery_of(row) == artery for row in labels]]
            codes = Codes.start(generator, rows, np.zeros(3), len(cameras))
            kinds[artery] = [_PLAIN] * len(rows)
            if evidence.artery == artery:
                codes, kinds[artery] = codes.and_also(codes), kinds[artery] + [_NAMED] * len(rows)
            if encoded is not None and encoding.artery == artery:
                codes, kinds[artery] = codes.and_also(encoded), [*kinds[artery], _ENCODED]
            with torch.no_grad():
                pieces = writers[artery].segments(codes, softness=4.0)
                weight = (pieces.length_mm * pieces.gate)[..., None]
                middle = (pieces.middle * weight).sum(1) / weight.sum(1)
            codes.center_mm = torch.as_tensor(evidence.middle_mm, dtype=torch.float32) - middle
            groups[artery] = codes
    home = {artery: codes.center_mm.clone() for artery, codes in groups.items()}
    trial = settings.trial_steps if start is None else 0
    costs = {}
    if trial:
        for artery, codes in groups.items():
            groups[artery], costs[artery] = _descend(
                writers[artery], codes, home[artery], evidence, settings, 0, trial, kinds[artery], progress
            )
        # The artery is told without the encoder, which is no witness of its own.
        plain = {name: float(value[[kind == _PLAIN for kind in kinds[name]]].min()) for name, value in costs.items()}
        best = min(plain, key=plain.get)
        others = [value for name, value in plain.items() if name != best]
        margin = (min(others) / plain[best] - 1) if others else 1.0
        # The best of every kind goes on: the end tells.
        rows = [min((k for k, kind in enumerate(kinds[best]) if kind == one), key=lambda k: float(costs[best][k]))
                for one in dict.fromkeys(kinds[best])]  # fmt: skip
        codes, home_best, kind = groups[best].take(rows), home[best][rows], [kinds[best][k] for k in rows]
    else:
        (best, codes), margin = next(iter(groups.items())), start.margin
        home_best, kind = home[best], kinds[best]
        trial = int(settings.steps * 0.5)
    if settings.starts > 1 and start is None:
        rest, home_rest = codes.take(range(1, len(codes.z))), home_best[1:]
        codes = _several(codes.take([0]), settings).and_also(rest)
        home_best = torch.cat([home_best[:1].expand(settings.starts, -1), home_rest])
        kind = [_PLAIN] * settings.starts + kind[1:]
    if start is None and generator.config.own_deltas:
        # Every start twice: with the wide spread of deltas, and with that of patients.
        also = codes.take(range(len(codes.z)))
        also.spread[:] = PATIENTS
        codes, home_best, kind = codes.and_also(also), torch.cat([home_best, home_best]), kind + kind
    codes, cost = _descend(writers[best], codes, home_best, evidence, settings, trial, settings.steps, kind, progress)
    row = int((cost - settings.patient_gain * (codes.spread == PATIENTS)).argmin())
    return _result(generator, codes.take([row]), best, evidence, margin, float(cost[row]))


def _labels(generator: Generator) -> torch.Tensor:
    from licag3d.models.generator import labels_of

    return labels_of(["rca", "rca", "lca", "lca"], [False, True, False, True], len(generator.config.labels))


def _descend(writer: TreeWriter, codes: Codes, home, evidence, settings, first: int, last: int, kinds, progress):
    """Adam from step ``first`` to ``last`` of the schedule; codes, and the cost ``(B,)`` at the end."""
    named = torch.tensor([kind == _NAMED and evidence.artery == writer.artery for kind in kinds]).float()
    names = ("z", "delta", "center_mm", "turn", "log_scale", "view_shift_mm", "view_turn_deg")
    values = {name: getattr(codes, name).clone().requires_grad_() for name in names}
    rates = {"z": settings.rate, "delta": 0.3 * settings.rate, "center_mm": settings.place_rate_mm,
             "turn": 0.004, "log_scale": 0.004, "view_shift_mm": 0.05, "view_turn_deg": 0.03}  # fmt: skip
    optimizer = Adam([{"params": [values[name]], "lr": rates[name], "base": rates[name]} for name in names],
                     betas=(0.9, 0.97))  # fmt: skip
    nearest = None
    for step in range(first, last):
        share, (sigma, softness) = step / settings.steps, schedule(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * min(1.0, 0.02 + 1.4 * (1 - share)) * min(1.0, (step - first + 1) / 5)
        values["delta"].requires_grad_(share >= settings.delta_from)
        for name in ("view_shift_mm", "view_turn_deg"):
            values[name].requires_grad_(settings.move_cameras and share >= settings.delta_from)
        now = Codes(codes.label, codes.spread, **values)
        pieces = writer.segments(now, softness=softness)
        if nearest is None or (step - first) % settings.renew == 0:
            nearest = nearest_segments(pieces, now, evidence, settings, sigma, named)
        cost = evidence_cost(pieces, now, nearest, evidence, settings, sigma) + code_cost(now, home, settings)
        optimizer.zero_grad()
        cost.sum().backward()
        for name in ("view_shift_mm", "view_turn_deg"):
            if values[name].grad is not None:
                values[name].grad[:, 0] = 0.0
        optimizer.step()
        if progress and step % 10 == 0:
            progress(step / settings.steps, f"prior {writer.artery}: cost {float(cost.detach().min()):.0f}")
    found = Codes(codes.label, codes.spread, **{name: value.detach() for name, value in values.items()})
    sigma, softness = schedule(settings, last)
    with torch.no_grad():
        pieces = writer.segments(found, softness=softness)
        nearest = nearest_segments(pieces, found, evidence, settings, sigma, named)
        cost = evidence_cost(pieces, found, nearest, evidence, settings, sigma) + code_cost(found, home, settings)
    return found, cost


def _several(codes: Codes, settings: PriorSettings) -> Codes:
    """A start as it is, and others with codes moved at random: the same numbers every time."""
    many = codes.take([0] * settings.starts)
    source = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn(many.z.shape, generator=source) * settings.spread
    noise[0] = 0.0
    many.z = many.z + noise
    return many


def _result(generator, codes: Codes, artery, evidence: Evidence, margin, cost) -> PriorFit:
    tree = named_tree(generator, codes)
    cameras = tuple(moving.moved(codes.view_shift_mm[0, k].numpy(), codes.view_turn_deg[0, k].numpy())
                    for k, moving in enumerate(evidence.cameras))  # fmt: skip
    explained, residual, trust = _borne_out(tree, cameras, evidence.views)
    with torch.no_grad():
        w_plus = generator.spread(generator.average(codes.label))[0].clone()
        w_plus[: generator.config.structure] = codes.styles(generator)[0]
    length = np.array([len(value) for value in trust])
    borne = float(sum(value.sum() for value in trust) / max(length.sum(), 1))
    overall = float(np.clip((min(explained) - 0.3) / 0.4, 0, 1) * np.clip((borne - 0.2) / 0.4, 0, 1))
    return PriorFit(artery, codes.label[0].numpy(), margin, w_plus.numpy(), codes, tree, trust,
                    codes.center_mm[0].numpy(), np.rad2deg(codes.turn[0].numpy()), float(codes.log_scale.exp()[0]),
                    explained, residual, overall, cost, cameras)  # fmt: skip


def with_tree(fit: PriorFit, tree: VesselTree, views: Sequence[Curve]) -> PriorFit:
    """A fit whose tree was changed: what that explains of the centrelines, and what they bear out of it. The overall
    trust stays that of the codes, which a tree with branches put where the centrelines run cannot earn."""
    explained, residual, trust = _borne_out(tree, fit.cameras, views)
    return replace(fit, tree=tree, explained=explained, residual_mm=residual, trust=trust)


def _borne_out(tree: VesselTree, cameras: Sequence[Camera], views: Sequence[Curve]):
    """Per view the share of the centreline near the projected tree and their median distance; per branch its trust."""
    from scipy.spatial import cKDTree

    lines, found = [], []
    explained, residual = [], []
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    for camera, curve in zip(cameras, views, strict=True):
        flat = camera.project(points)[0] * camera.mm_per_pixel
        weight = curve.weight.numpy()
        if not len(weight):
            explained.append(0.0)
            residual.append(float("nan"))
            continue
        gap = cKDTree(flat).query(curve.points.numpy())[0]
        explained.append(float(weight[gap < NEAR_MM].sum() / max(weight.sum(), 1e-9)))
        residual.append(float(np.median(gap)))
        lines.append(cKDTree(curve.points.numpy()))
        found.append(camera)
    trust = tuple(_trust(branch.points_lps_mm, found, lines) for branch in tree.branches)
    return tuple(explained), tuple(residual), trust


def _trust(points: np.ndarray, cameras, lines, *, window: int = 7) -> np.ndarray:
    """How near the views' centrelines come to a branch, smoothed along it: the mean over the views of
    exp(-(d / 2 mm)^2 / 2); outside an image nothing is known."""
    from scipy.ndimage import uniform_filter1d

    total, count = np.zeros(len(points)), np.zeros(len(points))
    for camera, line in zip(cameras, lines, strict=True):
        pixels, _ = camera.project(points)
        inside = ((pixels >= 0) & (pixels <= [camera.cols - 1, camera.rows - 1])).all(1)
        gap = line.query(pixels * camera.mm_per_pixel)[0]
        total += inside * np.exp(-0.5 * (gap / NEAR_MM) ** 2)
        count += inside
    value = np.where(count > 0, total / np.maximum(count, 1), 0.0)
    return uniform_filter1d(value, min(window, len(points)), mode="nearest")
