# SPDX-License-Identifier: Apache-2.0
"""From the results of many tunings to a table with intervals, paired differences and a picture of the curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

METRICS = {
    "segmentation": ("dice", "cldice"),
    "labelling": ("macro_f1", "accuracy"),
    "stenosis": ("ap", "auc"),
}
DRAWS = 1000
_COLOURS = ("#7f7f7f", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")


def auc(scores: Sequence[float], positive: Sequence[float]) -> float:
    """Chance that a diseased frame scores above a healthy one (Mann and Whitney), ties half; NaN without both kinds.

    Example:
        >>> auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    s, y = np.asarray(scores, float), np.asarray(positive, float) > 0.5
    if not y.any() or y.all():
        return float("nan")
    gap = s[y][:, None] - s[~y][None]
    return float((gap > 0).mean() + 0.5 * (gap == 0).mean())


def macro_f1(right: np.ndarray, named: np.ndarray, being: np.ndarray) -> float:
    """Mean over segments of F1 = 2 right / (named + being), patches pooled over frames; only segments that are there.

    Args:
        right, named, being: ``(frames, segments)`` counts of patches named rightly, named so, being so.

    Example:
        >>> macro_f1(np.array([[2, 0, 0]]), np.array([[3, 0, 1]]), np.array([[2, 2, 0]]))  # (0.8 + 0) / 2
        0.4
    """
    right, named, being = (np.asarray(x, float).sum(0) for x in (right, named, being))
    there = being > 0
    return float((2 * right[there] / (named + being)[there]).mean()) if there.any() else float("nan")


def average_precision(findings: Sequence[Sequence[float]], lesions: int) -> float:
    """Area under precision against recall, all findings of all frames in one order (Everingham et al., IJCV 2015, the
    rule of PASCAL VOC since 2010: precision at a recall is the best one at that recall or beyond).

    Args:
        findings: pairs of score and rightness (0 or 1); of equal scores the wrong ones come first.
        lesions: how many there are to find; NaN comes out where there are none.

    Example:
        >>> average_precision([(0.9, 1), (0.8, 0), (0.7, 1)], 2)  # half at 1, half at 2/3
        0.8333333333333333
    """
    if not lesions:
        return float("nan")
    pairs = np.asarray(findings, float).reshape(-1, 2)
    hit = pairs[np.lexsort((pairs[:, 1], -pairs[:, 0])), 1]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * hit).sum() / lesions)


def metric_of(scores: dict[str, list], metric: str, chosen: np.ndarray | None = None) -> float:
    """A metric over frames, or over a resample of their numbers."""
    first = next(iter(scores.values()))
    chosen = np.arange(len(first)) if chosen is None else chosen
    if metric == "auc":
        return auc(np.asarray(scores["peak"])[chosen], np.asarray(scores["lesions"])[chosen])
    if metric == "ap":
        found = [pair for k in chosen for pair in scores["findings"][k]]
        return average_precision(found, int(np.asarray(scores["lesions"])[chosen].sum()))
    if metric == "macro_f1":
        return macro_f1(*(np.asarray(scores[key])[chosen] for key in ("right", "named", "being")))
    return float(np.asarray(scores[metric], float)[chosen].mean())


def summary(results: list[dict], draws: int = DRAWS) -> list[dict]:
    """One row per task, number of labels, encoder and metric: mean over seeds and frames with a 95 % interval.

    Seeds and test patients are resampled together (patients whole, the same ones for all encoders), so the interval
    holds for other labels and other patients. ``gain`` is the paired difference to plain MAE (the encoder named
    ``mae``), with its own interval, where there is one.
    """
    rows = []
    groups = sorted({(r["task"], r["labels"]) for r in results}, key=lambda x: (list(METRICS).index(x[0]), x[1]))
    for task, labels in groups:
        own = [r for r in results if (r["task"], r["labels"]) == (task, labels)]
        names = list(dict.fromkeys(r["encoder"] for r in own))
        by = {name: {r["seed"]: r for r in own if r["encoder"] == name} for name in names}
        for metric in METRICS[task]:
            samples = {name: _resample(by[name], metric, draws) for name in names}
            for name in names:
                value = np.mean([metric_of(r["scores"], metric) for r in by[name].values()])
                row = {"task": task, "labels": labels, "encoder": name, "metric": metric, "seeds": len(by[name]),
                       "mean": float(value), "interval": _interval(samples[name])}  # fmt: skip
                if name != "mae" and "mae" in names and by[name].keys() == by["mae"].keys():
                    reference = np.mean([metric_of(r["scores"], metric) for r in by["mae"].values()])
                    row["gain"] = float(value - reference)
                    row["gain_interval"] = _interval(samples[name] - samples["mae"])
                rows.append(row)
    return rows


def _resample(runs: dict[int, dict], metric: str, draws: int) -> np.ndarray:
    """The metric in ``draws`` resamples; the random numbers are the same for all encoders, so differences pair up."""
    rng, seeds = np.random.default_rng(74), sorted(runs)
    scores = {s: {key: list(v) if key == "findings" else np.asarray(v) for key, v in runs[s]["scores"].items()}
              for s in seeds}  # fmt: skip
    patients = np.asarray(runs[seeds[0]]["patients"])
    frames = [np.flatnonzero(patients == p) for p in np.unique(patients)]
    out = np.empty(draws)
    for k in range(draws):
        chosen = np.concatenate([frames[i] for i in rng.integers(len(frames), size=len(frames))])
        drawn = rng.integers(len(seeds), size=len(seeds))
        out[k] = np.mean([metric_of(scores[seeds[i]], metric, chosen) for i in drawn])
    return out


def _interval(values: np.ndarray) -> list[float]:
    values = values[np.isfinite(values)]
    return [float(x) for x in np.quantile(values, (0.025, 0.975))] if len(values) else [float("nan")] * 2


def table(results: list[dict]) -> str:
    """The summary as a Markdown table."""
    lines = ["| task | labels | metric | encoder | mean (95 % interval) | against MAE |", "|---|---|---|---|---|---|"]
    for row in summary(results):
        low, high = row["interval"]
        gain = ""
        if "gain" in row:
            gain = f"{row['gain']:+.3f} ({row['gain_interval'][0]:+.3f} to {row['gain_interval'][1]:+.3f})"
        lines.append(f"| {row['task']} | {row['labels']} | {row['metric']} | {row['encoder']} | {row['mean']:.3f} "
                     f"({low:.3f} to {high:.3f}) | {gain} |")  # fmt: skip
    return "\n".join(lines)


def write_report(out: Path, results: list[dict]) -> None:
    """``summary.json``, ``table.md`` and ``label_efficiency.svg`` in ``out``."""
    from licag3d.io.atomic import write_text

    rows = summary(results)
    write_text(out / "summary.json", json.dumps(rows, indent=1) + "\n")
    write_text(out / "table.md", table(results) + "\n")
    write_text(out / "label_efficiency.svg", curve_svg(rows))


def curve_svg(rows: list[dict]) -> str:
    """Score against number of labels, one panel per task and metric, one line with interval bars per encoder."""
    panels = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    names = list(dict.fromkeys(row["encoder"] for row in rows))
    width, height, parts = 300, 240, []
    for index, (task, metric) in enumerate(panels):
        own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        counts = sorted({row["labels"] for row in own})
        bounds = [x for row in own for x in row["interval"] if np.isfinite(x)] or [0.0, 1.0]
        low, high = min(bounds), max(bounds)
        margin = 0.05 * (high - low) + 1e-3
        low, high = low - margin, high + margin
        left = index * width
        parts.append(f'<text x="{left + 150}" y="16" text-anchor="middle">{task}: {metric}</text>')
        parts.append(f'<path d="M{left + 50} 25V200H{left + 285}" fill="none" stroke="black"/>')
        for share in (0.0, 0.5, 1.0):
            y = 200 - 175 * share
            parts.append(f'<text x="{left + 45}" y="{y + 4:.0f}" text-anchor="end">'
                         f'{low + share * (high - low):.2f}</text>')  # fmt: skip
        at = {n: left + 75 + 185 * (k / max(1, len(counts) - 1)) for k, n in enumerate(counts)}
        for n in counts:
            parts.append(f'<text x="{at[n]:.0f}" y="216" text-anchor="middle">{n}</text>')
        for number, name in enumerate(names):
            colour, shift = _COLOURS[number % len(_COLOURS)], 4 * (number - (len(names) - 1) / 2)
            line = []
            for row in sorted((r for r in own if r["encoder"] == name), key=lambda r: r["labels"]):
                x = at[row["labels"]] + shift
                y, top, bottom = (200 - 175 * (v - low) / (high - low) for v in (row["mean"], *row["interval"][::-1]))
                line.append(f"{x:.1f},{y:.1f}")
                parts.append(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}"/>')
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}"/>')
    for number, name in enumerate(names):
        x, colour = 60 + 110 * number, _COLOURS[number % len(_COLOURS)]
        parts.append(f'<circle cx="{x}" cy="{height - 6}" r="4" fill="{colour}"/>'
                     f'<text x="{x + 8}" y="{height - 2}">{_escaped(name)}</text>')  # fmt: skip
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * max(1, len(panels))}" height="{height}" '
            f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
            + "".join(parts) + "</svg>\n")  # fmt: skip


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)
