# SPDX-License-Identifier: Apache-2.0
"""From a result file to a table in Markdown and two plots beside it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.plots import line_plot
from benchmarks.published import PUBLISHED_NOTE, PUBLISHED_ROWS
from benchmarks.statistics import FACTORS, PRIMARY, paired, statistics, strongest_rival, summarise
from licag3d.io.atomic import write_text

_COLUMNS = (
    ("F1 1 mm, after similarity", PRIMARY),
    ("after translation", "centerline_f1_1mm_after_translation"),
    ("raw", "centerline_f1_1mm"),
    ("precision", "centerline_precision_1mm_after_similarity"),
    ("recall", "centerline_recall_1mm_after_similarity"),
    ("F1 2 mm", "centerline_f1_2mm_after_similarity"),
    ("Chamfer mm", "chamfer_mm_after_similarity"),
    ("radius MAE mm", "radius_mae_mm_after_similarity"),
    ("held-out view mm", "heldout_reprojection_mm_after_similarity"),
)
_PLOTS = (("offset_mm", "shift between the views, mm"), ("separation_deg", "separation of the views, degrees"))


def render(path: Path, store: dict) -> str:
    """Write ``<name>.md`` and ``<name>_shift.svg``, ``<name>_separation.svg`` beside the result file; the text of the
    tables."""
    store = {**store, "summary": summarise(store), "strongest_rival": strongest_rival(store)}
    names = ordered(store)
    if not names:
        return "no results yet"
    figures = []
    for (factor, label), suffix in zip(_PLOTS, ("shift", "separation"), strict=True):
        figure = path.with_name(f"{path.stem}_{suffix}.svg")
        write_text(figure, factor_plot(store, names, factor, label))
        figures.append(figure.name)
    text = markdown(store, names, figures)
    write_text(path.with_suffix(".md"), text)
    return text


def ordered(store: dict) -> list[str]:
    """Methods with results, best mean of the primary score first."""
    ran = [name for name, groups in store["summary"].items() if groups["overall"]["cases"]]
    return sorted(ran, key=lambda name: -_mean(store, name, "overall"))


def markdown(store: dict, names: list[str], figures: list[str]) -> str:
    """The leaderboard as Markdown."""
    machine, rival = store["machine"], store["strongest_rival"]
    seeds = [case["seed"] for case in store["cases"].values()]
    lines = [
        f"# Benchmark: split `{store['split']}`",
        "",
        "Written by `tools/benchmark_reconstruction.py`; protocol, metrics and how to repeat it: docs/benchmark.md.",
        "",
        f"{len(store['cases'])} synthetic cases, seeds {min(seeds)} to {max(seeds)}, angle error 1 degree. Machine: "
        f"{machine.get('processor') or machine['machine']}, {machine['cores']} cores, {machine['threads']} thread(s) "
        f"used, Python {machine['python']}, torch {machine['torch']}.",
        "",
    ]
    missing = len(set(store["protocol"].get("planned", [])) - set(store["cases"]))
    if missing:
        lines += [f"**Unfinished: {missing} cases are still to be run.**", ""]
    if rival:
        lines += [f"**The rival to beat: `{rival}`**, the best mean on the cases that all rivals have in common.", ""]
    lines += _main_table(store, names) + _paired_table(store, names, rival)
    for factor in FACTORS:
        lines += _factor_table(store, names, factor)
    lines += _cross_table(store, names) + _cost_table(store, names)
    lines += ["", f"![F1 against shift]({figures[0]})", "", f"![F1 against separation]({figures[1]})"]
    lines += _methods_list(store, names) + _published() + _case_list(store, names)
    return "\n".join(lines) + "\n"


def _main_table(store: dict, names: list[str]) -> list[str]:
    head = [
        "method",
        "cases",
        "failed",
        "F1 1 mm, after similarity: mean [95 %], median",
        *[c for c, _ in _COLUMNS[1:]],
    ]
    lines = ["## All cases", "", _row(head), _row(["---"] * len(head))]
    for name in names:
        group = store["summary"][name]["overall"]
        s = group["scores"]
        cells = [f"`{name}`", group["cases"], group["failed"], _interval(s[PRIMARY]) + f", {s[PRIMARY]['median']:.2f}"]
        lines.append(_row(cells + [_number(s[score]["mean"]) for _, score in _COLUMNS[1:]]))
    return [
        *lines,
        "",
        "Shares are means with failures as zero; distances are means where a tree exists. Chamfer, radius, precision, "
        "recall, F1 2 mm and the held-out view are after the best similarity (docs/metrics.md says why). Rows that ran "
        "on every other cell have half the cases; compare them by the paired differences.",
    ]


def _paired_table(store: dict, names: list[str], rival: str | None) -> list[str]:
    if not rival:
        return []
    lines = [
        "",
        f"## Paired differences to `{rival}`",
        "",
        _row(["method", "cases", "mean [95 %]", "median", "better in"]),
    ]
    lines.append(_row(["---"] * 5))
    for name in names:
        if name != rival:
            d = paired(store, name, rival)
            if d["n"]:
                lines.append(_row([f"`{name}`", d["n"], _interval(d, "+"), f"{d['median']:+.2f}", d["better"]]))
    return [*lines, "", "F1 at 1 mm after similarity, method minus rival, on the cases both have."]


def _factor_table(store: dict, names: list[str], factor: str) -> list[str]:
    groups = list(
        dict.fromkeys(g for n in names for g in store["summary"][n] if g.startswith(factor + "=") and "," not in g)
    )
    groups.sort(key=lambda g: (_level(g) is None, _level(g) or 0.0, g))
    title = {"artery": "Artery", "separation_deg": "Separation", "offset_mm": "Offset", "background": "Background"}
    lines = ["", f"## {title[factor]}", "", _row(["method", *[g.replace("_", " ") for g in groups]])]
    lines.append(_row(["---"] * (len(groups) + 1)))
    for name in names:
        lines.append(_row([f"`{name}`", *[_group_cell(store["summary"][name].get(g)) for g in groups]]))
    return lines


def _cross_table(store: dict, names: list[str]) -> list[str]:
    groups = sorted({g for n in names for g in store["summary"][n] if "," in g})
    lines = ["", "## Background and artery", "", _row(["method", *[g.replace(",", ", ") for g in groups]])]
    lines.append(_row(["---"] * (len(groups) + 1)))
    for name in names:
        lines.append(_row([f"`{name}`", *[_group_cell(store["summary"][name].get(g)) for g in groups]]))
    return lines


def _cost_table(store: dict, names: list[str]) -> list[str]:
    lines = ["", "## Cost", "", _row(["method", "wall s, median", "processor s, median", "peak memory MB, median"])]
    lines.append(_row(["---"] * 4))
    for name in names:
        s = store["summary"][name]["overall"]["scores"]
        cells = [_number(s[k]["median"], 1 if k != "peak_memory_mb" else 0) for k in ("seconds", "cpu_seconds")]
        lines.append(_row([f"`{name}`", *cells, _number(s["peak_memory_mb"]["median"], 0)]))
    return [
        *lines,
        "",
        "Rivals run in a process that has read its libraries already and get their evidence ready-made; ours is the "
        "whole command, from reading files to writing the report. Wall times depend on what else the machine did.",
    ]


def _methods_list(store: dict, names: list[str]) -> list[str]:
    lines = ["", "## Methods", ""]
    for name in names:
        m = store["methods"][name]
        parts = [f"`{name}`: {m['source']}."]
        if m.get("command"):
            parts.append(f"`{m['command']}`.")
        parts.append("Corrects the offset itself." if m["corrects_offset"] else "Assumes calibrated views.")
        parts.append(f"Cameras: {m['cameras']}.")
        if m.get("differs"):
            parts.append(f"Not as in the source: {m['differs']}.")
        if m.get("cells") == "every other":
            parts.append("Run on every other cell.")
        lines.append("- " + " ".join(parts))
    return lines


def _published() -> list[str]:
    head = ("method", "views", "right Dice", "right clDice", "left Dice", "left clDice", "seconds")
    lines = ["", "## Published figures of peers: other data, not comparable", "", PUBLISHED_NOTE, ""]
    lines += [_row(head), _row(["---"] * len(head))]
    return lines + [_row(row) for row in PUBLISHED_ROWS]


def _case_list(store: dict, names: list[str]) -> list[str]:
    lines = ["", "## Cases", "", "F1 at 1 mm after similarity; a dash: not run; 0.00x: failed.", ""]
    lines += [_row(["case", *[f"`{name}`" for name in names]]), _row(["---"] * (len(names) + 1))]
    for name, case in store["cases"].items():
        cells = []
        for method in names:
            result = case["results"].get(method)
            cells.append("-" if result is None else f"{result['scores'][PRIMARY]:.2f}" + "x" * bool(result["failed"]))
        lines.append(_row([name, *cells]))
    return lines


def factor_plot(store: dict, names: list[str], factor: str, label: str) -> str:
    """SVG: mean primary score over the levels of a factor with 95 % intervals, a panel per background."""
    levels = sorted({case[factor] for case in store["cases"].values()})
    panels = {}
    for background in sorted({case["background"] for case in store["cases"].values()}):
        series = {}
        for name in names:
            points = []
            for level in levels:
                values = [
                    case["results"][name]["scores"][PRIMARY]
                    for case in store["cases"].values()
                    if case[factor] == level and case["background"] == background and name in case["results"]
                ]
                if values:
                    s = statistics(values)
                    points.append((level, s["mean"], s["low_95"], s["high_95"]))
            series[name] = points
        tracks = sorted({c["track"] for c in store["cases"].values() if c["background"] == background})
        panels[f"{background} background, {' and '.join(tracks)}"] = series
    return line_plot(panels, x_label=label, y_label="centreline F1 at 1 mm, after similarity", x_ticks=levels)


def _mean(store: dict, name: str, group: str) -> float:
    return store["summary"][name][group]["scores"][PRIMARY]["mean"]


def _level(group: str) -> float | None:
    try:
        return float(group.partition("=")[2])
    except ValueError:
        return None


def _group_cell(group: dict | None) -> str:
    return "-" if group is None else f"{_interval(group['scores'][PRIMARY])} n {group['cases']}"


def _interval(s: dict, sign: str = "") -> str:
    return f"{s['mean']:{sign}.2f} [{s['low_95']:{sign}.2f}, {s['high_95']:{sign}.2f}]"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value == value else "-"


def _row(cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
