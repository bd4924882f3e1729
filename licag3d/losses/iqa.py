# SPDX-License-Identifier: Apache-2.0
"""What CAS-IQA learns: three scores computed from exact truth, and the loss of a network that predicts them.

**Computed, not human.** The definitions are ours; they stand for what a reader would be asked (Huang et al., CAS-IQA,
ICONIP 2025: vessel morphology consistency, branch detection, overall quality; 0 to 100) and are written down in
docs/quality.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

#: Names of the scores, in order.
SCORES = ("morphology", "branches", "overall")
#: Darkening (of the grey range) that anatomy alone makes everywhere: a vessel no deeper than this is hardly seen.
CLUTTER = 0.012
#: Pixels of 256 within which two centrelines are one.
REACH_PX = 2.0
#: Shortest piece of a branch that counts as one, pixels of seen centreline.
LEAST_PX = 6.0
#: A branch counts as not found below the first, as found from the second share of its seen length.
FOUND = (0.3, 0.8)
#: Shares of the three parts in the overall score: morphology, branches, appearance outside the vessels.
OVERALL = (0.35, 0.35, 0.3)


@dataclass(frozen=True)
class ComputedScores:
    """Scores in 0..100, and the parts they are made of in 0..1."""

    morphology: float
    branches: float
    overall: float
    cldice: float
    darkening: float
    branch_recall: float
    branch_precision: float
    appearance: float

    def three(self) -> tuple[float, float, float]:
        """The scores, as :data:`SCORES` names them."""
        return self.morphology, self.branches, self.overall

    def facts(self) -> dict[str, float]:
        """Everything by name."""
        return asdict(self)


def computed_scores(scene, drawn) -> ComputedScores | None:
    """Scores of a synthetic frame, from :func:`licag3d.train.iqa_frames.synthetic`; None where the true angiogram
    itself shows no vessel.

    A vessel pixel is *seen* with ``q = u^2 / (1 + u^2)``, u its darkening (smoothed over a pixel) over three times the
    noise that is left after such smoothing, clutter included. *Morphology* is the mean of the centreline Dice of seen
    vessels and of the overlap ``2 sum(min) / sum(both)`` of the darkening. *Branches* is the harmonic mean of recall
    (each true branch counts one, its share found counts from 30 % to 80 %) and of the share of the seen synthetic
    centreline that lies on true ones. *Appearance* is SSIM with the true angiogram off the vessels, as a share of what
    the true angiogram reaches with noise of its own.
    """
    from scipy.ndimage import binary_dilation, distance_transform_edt
    from skimage.morphology import skeletonize

    from licag3d.metrics.images import ssim_map

    field, truth = scene.field, scene.anatomy.mask & scene.field
    mask = drawn.mask & field
    deep, deep_drawn = (scene.bare - scene.clean) * field, (drawn.bare - drawn.clean) * field
    seen = _seen(deep, scene.reference - scene.clean, field)
    seen_drawn = _seen(deep_drawn, drawn.noise, field)
    line, line_drawn = skeletonize(truth), skeletonize(mask)
    visible = seen[line].sum()
    if visible < LEAST_PX:
        return None
    near = _within(distance_transform_edt, line_drawn)
    # How well the synthetic frame shows what lies here, beside how well the true one does.
    best = largest_near(np.where(mask, seen_drawn, 0))
    shown_share = np.minimum(1, best / np.maximum(seen, 1e-6)) * (near <= REACH_PX)
    recall = float((seen * shown_share)[line].sum() / visible)
    weight = seen_drawn[line_drawn]
    total = float(weight.sum())
    true_near = _within(distance_transform_edt, line) <= REACH_PX
    precision = float(weight[true_near[line_drawn]].sum() / total) if total > LEAST_PX else 0.0
    cldice = 2 * precision * recall / max(precision + recall, 1e-9)
    wide = binary_dilation(truth | mask, iterations=2)
    ours, theirs = np.clip(deep_drawn, 0, None)[wide], np.clip(deep, 0, None)[wide]
    darkening = float(2 * np.minimum(ours, theirs).sum() / max(ours.sum() + theirs.sum(), 1e-9))
    branch_recall = _branch_recall(scene.anatomy.labels, line, seen, shown_share)
    branches = 2 * branch_recall * precision / max(branch_recall + precision, 1e-9)
    off = field & ~wide
    synthetic = np.clip(drawn.clean + drawn.noise, 0, 1)
    like = ssim_map(synthetic, scene.clean, 1.0)[off].mean() if off.any() else 1.0
    best_like = ssim_map(scene.reference, scene.clean, 1.0)[off].mean() if off.any() else 1.0
    appearance = float(np.clip(like / max(best_like, 1e-3), 0, 1))
    parts = 0.5 * (cldice + darkening), branches, appearance
    overall = sum(share * part for share, part in zip(OVERALL, parts, strict=True))
    return ComputedScores(
        100 * parts[0], 100 * parts[1], 100 * overall, cldice, darkening, branch_recall, precision, appearance
    )


def largest_near(x: np.ndarray) -> np.ndarray:
    """Largest value within :data:`REACH_PX`."""
    from scipy.ndimage import maximum_filter

    return maximum_filter(x, int(2 * REACH_PX + 1))


def _seen(darkening: np.ndarray, noise: np.ndarray, field: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    left = gaussian_filter(noise, 1.0)[field].std() if field.any() else 0.0
    u = np.clip(gaussian_filter(darkening, 1.0), 0, None) / (3 * float(np.hypot(left, CLUTTER)))
    return u * u / (1 + u * u)


def _within(distance, line: np.ndarray) -> np.ndarray:
    return distance(~line) if line.any() else np.full(line.shape, np.inf)


def _branch_recall(labels: np.ndarray, line: np.ndarray, seen: np.ndarray, shown_share: np.ndarray) -> float:
    names = labels[line]
    length = np.bincount(names, seen[line])
    found = np.bincount(names, (seen * shown_share)[line])
    counted = np.flatnonzero(length >= LEAST_PX)
    counted = counted[counted > 0]
    if not len(counted):
        return float(found.sum() / max(length.sum(), 1e-9))
    share = found[counted] / length[counted]
    return float(np.clip((share - FOUND[0]) / (FOUND[1] - FOUND[0]), 0, 1).mean())


def iqa_loss(predicted, truth, correlation: float = 0.3):
    """Mean absolute error on a scale of 0..1 (smooth near zero), and one minus the linear correlation over the batch.

    Args:
        predicted, truth: ``(n, 3)`` in 0..100.

    Returns:
        The loss and its two terms.
    """
    import torch.nn.functional as F

    error = F.smooth_l1_loss(predicted / 100, truth / 100, beta=0.1)
    a, b = predicted - predicted.mean(0), truth - truth.mean(0)
    linear = (a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).add(1e-2).sqrt()
    apart = (1 - linear).mean()
    return error + correlation * error.detach().clamp_max(1) * apart, {"error": error, "apart": apart}
