# SPDX-License-Identifier: Apache-2.0
"""The sensitivity card: what the distances of one encoder notice, and what they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from licag3d.metrics.feature_space.compare import Distance, compare_features
from licag3d.metrics.feature_space.degradations import Scene, degradations, degrade, other_tree

#: Rows that are no degradation of a scene: other scenes as they are, and the vessels of another patient.
CLEAN, OTHER_TREE = "clean (other scenes)", "another patient's vessels"


def sensitivity_card(
    scenes: Sequence[Scene],
    features: Callable[[np.ndarray], np.ndarray],
    *,
    encoder: str,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, dict[str, Distance]]:
    """Distances between clean frames and degraded frames of other scenes, row by row.

    Half of the scenes stay clean and are the reference; the other half are degraded, so that no row compares a frame
    with itself. Every row is computed at the same sizes.

    Args:
        scenes: at least 40 phantom scenes of one size.
        features: maps frames ``(n, rows, cols)`` float32 0..1 to ``(n, d)``.
        encoder: name and hash, part of every name.

    Returns:
        Row name to the distances of :func:`licag3d.metrics.feature_space.compare_features`.

    Raises:
        ValueError: fewer than 40 scenes.
    """
    if len(scenes) < 40:
        raise ValueError(f"{len(scenes)} scenes; a card needs at least 40")
    half = len(scenes) // 2
    reference, changed = scenes[:half], scenes[half : 2 * half]
    clean = features(np.stack([scene.image for scene in reference]))
    rows: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {CLEAN: lambda k, rng: changed[k].image}
    for name in degradations():
        rows[name] = lambda k, rng, name=name: degrade(name, changed[k], rng)
    rows[OTHER_TREE] = lambda k, rng: other_tree(changed[k], changed[(k + 1) % half])
    card = {}
    for number, (name, make) in enumerate(rows.items()):
        frames = np.stack([make(k, np.random.default_rng([seed, number, k])) for k in range(half)])
        card[name] = compare_features(clean, features(frames), encoder=encoder, seed=seed)
        if progress:
            progress((number + 1) / len(rows), name)
    return card


def card_table(card: dict[str, dict[str, Distance]], encoder: str) -> str:
    """The card as a Markdown table: Frechet distance as a multiple of its floor, KID and MMD in thousandths, p, recall.

    The floor is the distance of two halves of the clean set.
    """
    lines = [
        f"| {encoder} | FD / floor | FD | KID x 1000 | MMD x 1000 | p (MMD) | precision | coverage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in card.items():
        fd, kid, mmd, p, precision, coverage = (
            row[f"{key}_{encoder}"] for key in ("fd", "kid", "mmd", "mmd_p", "precision", "coverage")
        )
        cells = (
            name,
            f"{fd.value / max(fd.floor or 0.0, 1e-12):.2f}",
            f"{fd.value:.2f} ({fd.low:.2f} to {fd.high:.2f})",
            f"{1000 * kid.value:.1f}",
            f"{1000 * mmd.value:.1f}",
            f"{p.value:.3f}",
            f"{precision.value:.2f}",
            f"{coverage.value:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
