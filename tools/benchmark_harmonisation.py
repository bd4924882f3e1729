# SPDX-License-Identifier: Apache-2.0
"""Benchmark harmonisation: what do foreign displays cost the segmentor, and what does harmonisation give back?

    python tools/benchmark_harmonisation.py --pool PAIRS --out benchmarks/results/harmonisation.json

Validation patients, seen on the systems of several "vendors" (:mod:`licag3d.data.vendors`); the truth is exact. Per
vendor: Dice of the segmentor (trained with random displays) and of the classical evidence (never trained) on the frame
as it is, after matching of histograms, after percentile normalisation, and after a network (``--weights VENDOR=FILE``);
``target`` is the same patient on the target's system, the most that any harmonisation could give. Beside it, how far
the vessels moved.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the package benchmarks, which is not installed

from licag3d.command import Parser, add_debug_flag, run

SCHEMA = "licag3d-harmonisation-1"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_harmonisation.py", description="Score harmonisation between vendors.")
    made.add_argument("--pool", required=True, metavar="DIR", help="phantom frames of validation or benchmark patients")
    made.add_argument("--patients", type=int, default=12, metavar="N", help="one frame of each")
    made.add_argument("--target", default="siemens-like", metavar="VENDOR", help="whose style is wanted")
    made.add_argument("--vendors", nargs="+", metavar="VENDOR[*S]", help="foreign systems, with strength, as ge-like*2")
    made.add_argument(
        "--weights", nargs="*", default=[], metavar="VENDOR=FILE", help="networks, by the vendor they serve"
    )
    made.add_argument("--no-classical", action="store_true", help="leave out the classical evidence (slow)")
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON)")
    made.add_argument("--picture", metavar="FILE", help="bars of Dice before and after (SVG)")
    made.add_argument("--sheet", metavar="FILE", help="frames of the first patient before and after (PNG)")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Measure, write the file, print the table."""
    given = parser().parse_args(argv)
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.io.atomic import check_output_folder, write_text

    out = Path(given.out)
    check_output_folder(out.parent)
    pool = PhantomPool(given.pool)
    rows, cells = measure(pool, given)
    result = {"schema": SCHEMA, "target": given.target, "patients": len({row["patient"] for row in rows})}
    result["summary"] = summary(rows)
    write_text(out, json.dumps(result, indent=1) + "\n")
    print(table(result["summary"]))
    if given.picture:
        write_text(Path(given.picture), bars(result["summary"]))
    if given.sheet:
        import imageio.v3 as iio

        iio.imwrite(given.sheet, np.rint(255 * np.clip(cells, 0, 1)).astype(np.uint8))
    return 0


def measure(pool, given) -> tuple[list[dict], np.ndarray]:
    """One row per patient, vendor and method, and a sheet of the first patient's frames."""
    from tqdm import tqdm

    from licag3d.data.phantom_frames import benchmark_frames
    from licag3d.data.vendors import VENDORS, vendor_frame, vendor_look
    from licag3d.harmonize import matcher, network_change
    from licag3d.io.collimator import valid_area

    vendors = given.vendors or [vendor for vendor in VENDORS if vendor != given.target]
    networks = dict(text.split("=", 1) for text in given.weights)
    numbers = benchmark_frames(pool, "--pool", 2, given.patients)

    def shown(number: int, vendor: str, strength: float = 1.0) -> np.ndarray:
        frame = pool.frame(number)
        rng = np.random.default_rng([98, frame.seed])
        look = vendor_look(rng, vendor, len(frame.image), strength=strength)
        return vendor_frame(frame.contrast_free, frame.contrast, look, rng)

    targets = {number: shown(number, given.target) for number in numbers}
    rows, sheet = [], []
    for vendor in vendors:
        name, _, factor = vendor.partition("*")
        change = network_change(networks[vendor], "forth") if vendor in networks else None
        for number in tqdm(numbers, disable=None, unit="frame", desc=vendor):
            frame, image = pool.frame(number), shown(number, name, float(factor or 1))
            valid = valid_area(image)
            # What a centre would have of the target: frames of other patients.
            values = [targets[k][valid_area(targets[k])] for k in numbers if k != number]
            ways = {"as it is": lambda x, inside: x, "histogram": matcher(values), "percentiles": percentiles(values)}
            if change is not None:
                ways["network, unchecked"] = change
            before = vessels(image, valid, frame)
            for method, way in ways.items():
                made = np.where(valid, way(image, valid), image).astype(np.float32)
                rows.append(scored(made, before if method != "as it is" else None, valid, frame, vendor, method, given))
            if change is not None:
                from licag3d.metrics.synthesis import view_of
                from licag3d.models.cyclegan import harmonise

                kept = harmonise(change, view_of(image, frame.mm_per_pixel, valid))
                row = scored(kept.image, before, valid, frame, vendor, "network", given)
                rows.append(row | {"share": kept.share})
            if vendor == vendors[0]:
                seen = targets[number]
                rows.append(scored(seen, None, valid_area(seen), frame, given.target, "target", given))
            if number == numbers[0]:
                cells = [image, *(np.where(valid, way(image, valid), image) for way in list(ways.values())[1:])]
                sheet.append(np.hstack([cell[::2, ::2] for cell in [*cells, targets[number]]]))
    wide = max(line.shape[1] for line in sheet)
    return rows, np.vstack([np.pad(line, ((0, 0), (0, wide - line.shape[1]))) for line in sheet])


def percentiles(values: list):
    """Frame to one whose 1st, 50th and 99th percentile are the mean ones of ``values``, straight between them."""
    at = (1, 50, 99)
    wanted = np.mean([np.percentile(part, at) for part in values], 0)

    def change(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
        have = np.maximum.accumulate(np.percentile(image[valid], at) + np.array([0, 1e-4, 2e-4]))
        low = wanted[0] + (image - have[0]) * (wanted[1] - wanted[0]) / (have[1] - have[0])
        high = wanted[1] + (image - have[1]) * (wanted[2] - wanted[1]) / (have[2] - have[1])
        return np.clip(np.where(image < have[1], low, high), 0, 1)

    return change


def vessels(picture: np.ndarray, valid: np.ndarray, frame) -> np.ndarray:
    """What the segmentor finds, ``(rows, cols)`` bool."""
    from licag3d.models.segmentor import load_segmentor, predict

    return predict(load_segmentor(), picture, valid, frame.mm_per_pixel).vessel > 0.5


def scored(made, before, valid, frame, vendor: str, method: str, given) -> dict:
    """Scores of the vessels found in a frame, and how far they lie from those found before, where given."""
    from licag3d.metrics.harmonisation import vessel_shift
    from licag3d.metrics.synthesis import independent_mask, vessel_scores

    mask = vessels(made, valid, frame)
    row = {"patient": frame.seed, "vendor": vendor, "method": method}
    row["learned"] = vessel_scores(mask, frame.mask, frame.mm_per_pixel, ignore=frame.faint)["dice"]
    if not given.no_classical:
        classical = independent_mask(made, frame.mm_per_pixel, valid)
        row["classical"] = vessel_scores(classical, frame.mask, frame.mm_per_pixel, ignore=frame.faint)["dice"]
    if before is not None:
        shift = vessel_shift(before, mask)
        row |= {"shift_px": shift.shift_px, "lost": shift.lost, "made_up": shift.made_up}
    return row


def summary(rows: list[dict]) -> list[dict]:
    """Mean with bootstrap interval over patients, and the mean paired gain over the frame as it is."""
    from benchmarks.statistics import statistics

    before = {(row["patient"], row["vendor"]): row for row in rows if row["method"] == "as it is"}
    lines = []
    for vendor, method in dict.fromkeys((row["vendor"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["vendor"], row["method"]) == (vendor, method)]
        line = {"vendor": vendor, "method": method}
        for key in ("learned", "classical", "shift_px", "lost", "made_up", "share"):
            values = [row[key] for row in chosen if key in row]
            if values:
                line[key] = statistics(values)
        for key in ("learned", "classical"):
            pairs = [(row, before.get((row["patient"], vendor))) for row in chosen if key in row]
            gains = [row[key] - other[key] for row, other in pairs if other is not None and method != "as it is"]
            if gains:
                line[f"{key}_gain"] = statistics(gains)
        lines.append(line)
    return lines


def table(lines: list[dict]) -> str:
    """The summary as text."""
    text = [f"{'vendor':18s}{'method':20s}{'Dice learned (gain)':>40s}{'Dice classical (gain)':>40s}{'shift px':>10s}"]
    for line in lines:
        cells = []
        for key in ("learned", "classical"):
            cell = "-"
            if key in line:
                cell = f"{line[key]['mean']:.3f}"
                if f"{key}_gain" in line:
                    g = line[f"{key}_gain"]
                    cell += f" ({g['mean']:+.3f}, {g['low_95']:+.3f} to {g['high_95']:+.3f})"
            cells.append(cell.rjust(40))
        shift = f"{line['shift_px']['mean']:10.2f}" if "shift_px" in line else f"{'-':>10s}"
        text.append(f"{line['vendor']:18s}{line['method']:20s}{''.join(cells)}{shift}")
    return "\n".join(text)


def bars(lines: list[dict]) -> str:
    """Dice of the segmentor per vendor and method as an SVG; whiskers are 95 % intervals."""
    methods = [m for m in dict.fromkeys(line["method"] for line in lines) if m not in ("target", "network, unchecked")]
    vendors = list(dict.fromkeys(line["vendor"] for line in lines if line["method"] != "target"))
    colours = ("#555", "#30638e", "#00798c", "#d1495b")
    step, left, top, high = 24 * len(methods) + 30, 46, 24, 220
    wide = left + step * len(vendors) + 20
    parts = []
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = top + high * (1 - value)
        parts.append(
            f'<path d="M{left} {y:.1f}H{wide - 10}" stroke="#ddd"/><text x="14" y="{y + 4:.1f}">{value:.1f}</text>'
        )
    for line in lines:
        s = line["learned"]
        if line["method"] == "target":
            y = top + high * (1 - s["mean"])
            parts.append(f'<path d="M{left} {y:.1f}H{wide - 10}" stroke="#222" stroke-dasharray="5 4"/>')
        elif line["method"] in methods:
            k, j = vendors.index(line["vendor"]), methods.index(line["method"])
            x, y = left + step * k + 15 + 24 * j, top + high * (1 - s["mean"])
            parts.append(f'<rect x="{x}" y="{y:.1f}" width="20" height="{top + high - y:.1f}" fill="{colours[j]}"/>')
            ends = [top + high * (1 - s[key]) for key in ("low_95", "high_95")]
            parts.append(f'<path d="M{x + 10} {ends[0]:.1f}V{ends[1]:.1f}" stroke="#000"/>')
    for k, vendor in enumerate(vendors):
        parts.append(f'<text x="{left + step * k + 15}" y="{top + high + 16}">{vendor}</text>')
    for j, method in enumerate(methods):
        parts.append(f'<text x="{left + 130 * j}" y="{top + high + 38}" fill="{colours[j]}">{method}</text>')
    parts.append(f'<text x="{left}" y="14">Dice of the segmentor; dashed: same patients on the target system</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(wide, 560)}" height="{top + high + 50}" font-size="12" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    run(main)
