# SPDX-License-Identifier: Apache-2.0
"""Benchmark CAS-IQA: does it say of a synthetic angiogram what exact truth says?

    python tools/benchmark_quality.py --pool PAIRS --out benchmarks/results/quality.json --picture quality.svg

Patients that no training saw; every kind of degradation alone in four steps, three kinds of which no training saw
either, some together, and (with ``--synthesis``) what mask-first synthesis draws. Rivals: PSNR, SSIM, SSIM of the
vessel region (they get the reference; the last one the true vessels too), the overlap of the vessels that the segmentor
finds in the synthetic frame and in the reference, and the last two in one regression. A rival's value is turned into a
score by a cubic polynomial fitted on the other patients of the benchmark: more than it could have in use. Of moving
pairs there is a row of its own: the reference shows another heartbeat, the truth is that of the frame's own moment.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the package benchmarks, which is not installed

from licag3d.command import Parser, add_debug_flag, run

SCHEMA = "licag3d-quality-benchmark-1"
STEPS = (0.25, 0.5, 0.75, 1.0)
RIVALS = ("psnr", "ssim", "region_ssim", "segmentor_cldice")
DRAWS = 200
KAPPAS = (0.0, 0.1, 0.3)
#: Frames judged with a reference of another heartbeat, and the same frames with the reference of their own moment; in
#: no other figure.
MOVING, TWIN = "moving reference", "same, still reference"
MOVING_KINDS = ("contrast", "erased", "displaced", "ghost", "swapped")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python tools/benchmark_quality.py", description="Score the judge of synthetic angiograms.")
    made.add_argument("--pool", required=True, metavar="DIR", help="phantom frames of validation or benchmark patients")
    made.add_argument("--patients", type=int, default=12, metavar="N", help="one frame of each")
    made.add_argument("--weights", nargs="+", default=["iqa"], metavar="NAME=FILE", help="networks to compare")
    made.add_argument(
        "--synthesis", metavar="FILE", help="weights of mask-first synthesis, as one more source of frames"
    )
    made.add_argument("--out", required=True, metavar="FILE", help="result file (JSON)")
    made.add_argument("--frames", metavar="FILE", help="keep frames, truth and rivals here (.npz); reused if there")
    made.add_argument("--picture", metavar="FILE", help="curves of the scores over severity (SVG)")
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
    rows, frames = kept_or_measured(pool, given)
    judged(rows, frames, given.weights)
    result = {"schema": SCHEMA, "frames": len(rows), "patients": len({row["patient"] for row in rows})}
    result["summary"] = summary(rows)
    result["monotone"] = monotone(rows)
    write_text(out, json.dumps(result, indent=1) + "\n")
    print(table(result))
    if given.picture:
        write_curves(rows, Path(given.picture))
    return 0


def kept_or_measured(pool, given) -> tuple[list[dict], np.ndarray]:
    """What :func:`measure` gives, from the file of an earlier run where there is one."""
    import io

    from licag3d.io.atomic import write_bytes

    kept = Path(given.frames) if given.frames else None
    if kept and kept.is_file():
        with np.load(kept, allow_pickle=False) as stored:
            rows, frames = json.loads(str(stored["rows"])), stored["frames"]
        if any(row["kind"] == MOVING for row in rows) or not any(entry.get("before") for entry in pool.entries):
            return rows, frames
    else:
        rows, frames = measure(pool, given)
    more, moving = measure_moving(pool)
    if more:
        rows, frames = rows + more, np.concatenate((frames, moving))
    if kept:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, rows=json.dumps(rows), frames=frames)
        write_bytes(kept, buffer.getvalue())
    return rows, frames


def judged(rows: list[dict], frames: np.ndarray, weights: list[str]) -> None:
    """Add what every network says, with and without a reference, to the rows."""
    from tqdm import tqdm

    from licag3d.models.iqa import judge, load_iqa

    for text in weights:
        name, _, file = text.rpartition("=")
        model = load_iqa(file)[0]
        name = name or model.config.routing
        for row, stack in zip(tqdm(rows, disable=None, unit="frame", desc=name), frames, strict=True):
            synthetic, bare, reference = stack.astype(np.float32) / 255
            row[name] = judge(model, synthetic, bare, reference)
            row[f"{name}, no reference"] = judge(model, synthetic, bare)


def measure(pool, given) -> tuple[list[dict], np.ndarray]:
    """One row per synthetic frame, truth and rivals, and the frames ``(n, 3, side, side)`` uint8: synthetic,
    contrast-free, reference.
    """
    from tqdm import tqdm

    from licag3d.data.phantom_frames import benchmark_frames
    from licag3d.losses.iqa import computed_scores
    from licag3d.models.mask_first import load_mask_first
    from licag3d.train.iqa_data import as_bytes
    from licag3d.train.iqa_frames import make_scene, reduced

    maker = load_mask_first(given.synthesis)[0] if given.synthesis else None
    numbers = benchmark_frames(pool, "--pool", 3, given.patients)
    rows, frames = [], []
    for place, number in enumerate(tqdm(numbers, disable=None, unit="patient")):
        rng = np.random.default_rng([97, pool.entries[number]["seed"]])
        anatomy = reduced(pool.layers(number))
        other = reduced(pool.layers(numbers[(place + 1) % len(numbers)]))
        mm = pool.entries[number]["mm_per_pixel"] * pool.entries[number]["rows"] / anatomy.mask.shape[0]
        scene = make_scene(anatomy, rng, float(rng.uniform(0, 0.2)))
        truth = Truth(scene, mm)
        made = list(degraded(scene, other, rng))
        if maker is not None:
            made += list(synthesised(maker, anatomy, scene, mm, rng))
        for kind, severity, frame, drawn, own in made:
            scores = computed_scores(own, drawn)
            if scores is None:
                continue
            row = {"patient": pool.entries[number]["seed"], "kind": kind, "severity": severity}
            row |= {"truth": scores.three(), "rivals": truth.rivals(frame)}
            rows.append(row)
            frames.append(as_bytes(np.stack((frame, own.frame, own.reference))))
    return rows, np.stack(frames)


def measure_moving(pool) -> tuple[list[dict], np.ndarray]:
    """Rows and frames as of :func:`measure`, of the moving pairs of a pool: every frame twice, with the reference of
    another heartbeat and with that of its own.
    """
    from dataclasses import replace

    from licag3d.data.contrast_pairs import PairPool
    from licag3d.losses.iqa import computed_scores
    from licag3d.train.iqa_data import as_bytes
    from licag3d.train.iqa_frames import make_scene, moved_reference, reduced, synthetic

    numbers = [number for number, entry in enumerate(pool.entries) if entry.get("before")]
    rows, frames = [], []
    pairs = PairPool(pool.folder) if numbers else None
    for number in numbers:
        entry = pool.entries[number]
        rng = np.random.default_rng([98, entry["seed"]])
        anatomy, later = reduced(pairs.before_layers(number)), reduced(pairs.layers(number))
        other = reduced(pairs.layers((number + 1) % len(pool)))
        mm = entry["mm_per_pixel"] * entry["rows"] / anatomy.mask.shape[0]
        scene = make_scene(anatomy, rng, float(rng.uniform(0, 0.2)))
        reference = moved_reference(scene, later, rng)
        asked = [({}, 0.0), *(({kind: step}, step) for kind in MOVING_KINDS for step in STEPS)]
        for kind, seen in ((MOVING, replace(scene, reference=reference)), (TWIN, scene)):
            truth = Truth(seen, mm)
            for place, (defects, severity) in enumerate(asked):
                frame, drawn = synthetic(scene, other, defects, place)
                scores = computed_scores(scene, drawn)
                if scores is None:
                    continue
                row = {"patient": entry["seed"], "kind": kind, "severity": severity}
                rows.append(row | {"truth": scores.three(), "rivals": truth.rivals(frame)})
                frames.append(as_bytes(np.stack((frame, scene.frame, seen.reference))))
    return rows, np.stack(frames) if frames else np.zeros(0)


def degraded(scene, other, rng):
    """``(kind, severity, frame, drawn, scene)``: nothing wrong, every kind in steps, and several kinds at once."""
    from licag3d.train.iqa_frames import KINDS, TRAINED, synthetic

    for own_noise in (False, True):
        yield "none", 0.0, *synthetic(scene, other, {}, 0, own_noise=own_noise), scene
    for kind in KINDS:
        spoil, own_noise = int(rng.integers(2**31)), bool(rng.random() < 0.5)
        for severity in STEPS:
            yield kind, severity, *synthetic(scene, other, {kind: severity}, spoil, own_noise=own_noise), scene
    for _ in range(6):
        defects = {str(kind): float(rng.uniform(0.1, 0.9)) for kind in rng.choice(TRAINED, 2, replace=False)}
        yield "two kinds", 0.5, *synthetic(scene, other, defects, int(rng.integers(2**31))), scene


def synthesised(maker, anatomy, scene, mm: float, rng):
    """What mask-first synthesis draws into frames with residual contrast; what it drew is known exactly."""
    from dataclasses import replace

    from licag3d.models.mask_first import THRESHOLD, synthesise
    from licag3d.train.iqa_frames import Drawn, make_scene

    for kappa in KAPPAS:
        own = make_scene(anatomy, rng, kappa, scene.look.display.family)
        for threshold in (THRESHOLD, None):
            made = synthesise(maker, own.frame, own.field, mm, threshold=threshold)
            drawn = Drawn(anatomy.contrast_free, anatomy.contrast, made.mask & own.field)
            # What is left of the contrast belongs to the vessels that are drawn.
            deep = (own.bare - own.frame_clean) + (own.frame - made.angiogram)
            drawn = replace(drawn, bare=own.bare, clean=own.bare - deep, noise=own.frame - own.frame_clean)
            yield "synthesis", kappa, made.angiogram.astype(np.float32), drawn, own


class Truth:
    """What rivals compare with: the reference, the vessel region and the vessels that the segmentor finds in it."""

    def __init__(self, scene, mm: float) -> None:
        from licag3d.metrics.images import vessel_region

        self.scene, self.mm = scene, mm
        self.region = vessel_region(scene.anatomy.mask & scene.field, mm)
        self.mask = self.vessels(scene.reference)

    def vessels(self, image: np.ndarray) -> np.ndarray:
        from licag3d.models.segmentor import load_segmentor, predict

        return predict(load_segmentor(), image, self.scene.field, self.mm).vessel > 0.5

    def rivals(self, frame: np.ndarray) -> dict[str, float]:
        from licag3d.metrics.images import psnr_db, ssim_map
        from licag3d.metrics.synthesis import vessel_scores

        like = ssim_map(frame, self.scene.reference, 1.0)
        found = vessel_scores(self.vessels(frame), self.mask, self.mm)
        return {
            "psnr": psnr_db(frame, self.scene.reference, 1.0),
            "ssim": float(like[self.scene.field].mean()),
            "region_ssim": float(like[self.region].mean()),
            "segmentor_cldice": found["cldice"],
        }


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by what they show; ``trained`` and ``held out`` are kinds of degradation, patients are new in all."""
    from licag3d.train.iqa_frames import HELD_OUT, KINDS, TRAINED

    found = {
        "all": [row for row in rows if row["kind"] not in (MOVING, TWIN)],
        "trained kinds": [row for row in rows if row["kind"] in (*TRAINED, "none", "two kinds")],
        "held-out kinds": [row for row in rows if row["kind"] in HELD_OUT],
    }
    found |= {
        kind: [row for row in rows if row["kind"] == kind] for kind in (*KINDS, "two kinds", "synthesis", MOVING, TWIN)
    }
    return {name: chosen for name, chosen in found.items() if chosen}


def predictions(rows: list[dict]) -> dict[str, np.ndarray]:
    """Scores ``(n, 3)`` by method; rivals through a cubic fitted on the other patients."""
    truth = np.array([row["truth"] for row in rows])
    patients = np.array([row["patient"] for row in rows])
    still = np.array([row["kind"] not in (MOVING, TWIN) for row in rows])
    made = {
        name: np.array([row[name] for row in rows])
        for name in rows[0]
        if name not in ("patient", "kind", "severity", "truth", "rivals")
    }
    values = {rival: np.array([row["rivals"][rival] for row in rows]) for rival in RIVALS}

    def powers(names) -> np.ndarray:
        units = [(values[n] - values[n].mean()) / max(values[n].std(), 1e-9) for n in names]
        return np.stack([np.ones(len(rows)), *(unit**k for unit in units for k in (1, 2, 3))], 1)

    for name, terms in [*((rival, (rival,)) for rival in RIVALS), ("region_ssim + segmentor_cldice", RIVALS[2:])]:
        x = powers(terms)
        fitted = np.zeros_like(truth)
        for patient in np.unique(patients):
            held = patients == patient
            fitted[held] = x[held] @ np.linalg.lstsq(x[~held & still], truth[~held & still], rcond=None)[0]
        made[name] = np.clip(fitted, 0, 100)
    return made


def summary(rows: list[dict]) -> list[dict]:
    """PLCC, SRCC and RMSE per method, group and score, with 95 % intervals (bootstrap over patients); of
    single kinds the overall score.
    """
    from licag3d.losses.iqa import SCORES
    from licag3d.train.iqa import agreement
    from licag3d.train.iqa_frames import KINDS

    truth = np.array([row["truth"] for row in rows])
    made = predictions(rows)
    place = {id(row): k for k, row in enumerate(rows)}
    lines = []
    for group, chosen in groups(rows).items():
        index = np.array([place[id(row)] for row in chosen])
        owner = np.array([row["patient"] for row in chosen])
        per = {patient: index[owner == patient] for patient in np.unique(owner)}
        rng = np.random.default_rng(0)
        draws = [np.concatenate([per[p] for p in rng.choice(list(per), len(per))]) for _ in range(DRAWS)]
        for method, values in made.items():
            for k, score in enumerate(SCORES):
                if group in KINDS and score != "overall":
                    continue
                line = {"group": group, "method": method, "score": score, "n": len(index)}
                point = agreement(values[index, k], truth[index, k])
                spread = np.array([agreement(values[d, k], truth[d, k]) for d in draws])
                for j, name in enumerate(("plcc", "srcc", "rmse")):
                    low, high = np.percentile(spread[:, j], (2.5, 97.5))
                    line[name] = [round(point[j], 4), round(float(low), 4), round(float(high), 4)]
                lines.append(line)
    return lines


def monotone(rows: list[dict]) -> list[dict]:
    """Per kind and method: share of steps to a larger severity at which the overall score does not rise (by more than
    half a point), and whether the mean over patients falls at every step.
    """
    from licag3d.train.iqa_frames import KINDS

    made = predictions(rows) | {"truth": np.array([row["truth"] for row in rows])}
    patients = sorted({row["patient"] for row in rows})
    lines = []
    for kind in KINDS:
        for method, values in made.items():
            at = {(row["patient"], row["severity"]): values[k] for k, row in enumerate(rows) if row["kind"] == kind}
            clean = {row["patient"]: values[k] for k, row in enumerate(rows) if row["kind"] == "none"}
            curves = [[clean[p], *(at[(p, s)] for s in STEPS)] for p in patients if p in clean and (p, STEPS[-1]) in at]
            if not curves:
                continue
            steps = np.diff(np.array(curves)[:, :, 2], axis=1)
            mean = np.array(curves)[:, :, 2].mean(0)
            lines.append(
                {
                    "kind": kind,
                    "method": method,
                    "falling": round(float((steps <= 0.5).mean()), 3),
                    "mean_falls": bool((np.diff(mean) <= 0.5).all()),
                    "mean": [round(float(v), 1) for v in mean],
                }
            )
    return lines


def table(result: dict) -> str:
    """The summary of the overall groups as text."""
    text = [f"{'group':16s}{'method':34s}{'score':12s}{'PLCC':>24s}{'SRCC':>8s}{'RMSE':>8s}"]
    for line in result["summary"]:
        plcc, low, high = line["plcc"]
        text.append(
            f"{line['group']:16s}{line['method']:34s}{line['score']:12s}{plcc:8.3f} ({low:.3f} to {high:.3f})"
            f"{line['srcc'][0]:8.3f}{line['rmse'][0]:8.1f}"
        )
    text += [
        f"{m['kind']:12s}{m['method']:34s}{m['falling']:7.2f} {m['mean_falls']} {m['mean']}" for m in result["monotone"]
    ]
    return "\n".join(text)


def write_curves(rows: list[dict], path: Path) -> None:
    """Overall score over severity by kind, mean over patients: truth, the network, region SSIM."""
    from licag3d.io.atomic import write_text
    from licag3d.models.iqa import ROUTINGS

    lines = monotone(rows)
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    network = next(name for name in rows[0] if name in ROUTINGS)
    colours = {"truth": "#222", network: "#d1495b", f"{network}, no reference": "#edae49", "region_ssim": "#30638e"}
    wide, high, cols = 190, 150, 4
    parts = []
    for k, kind in enumerate(kinds):
        left, top = 30 + (k % cols) * (wide + 15), 30 + (k // cols) * (high + 40)
        parts.append(f'<text x="{left}" y="{top - 6}" font-size="12">{kind}</text>')
        parts.append(f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#bbb"/>')
        for line in lines:
            if line["kind"] == kind and line["method"] in colours:
                at = [f"{left + wide * j / 4:.1f},{top + high * (1 - v / 100):.1f}" for j, v in enumerate(line["mean"])]
                style = f'fill="none" stroke="{colours[line["method"]]}" stroke-width="2"'
                parts.append(f'<polyline points="{" ".join(at)}" {style}/>')
    tall = 30 + ((len(kinds) + cols - 1) // cols) * (high + 40) + 20
    for k, (name, colour) in enumerate(colours.items()):
        label = "computed from truth" if name == "truth" else name.replace(network, "CAS-IQA")
        parts.append(f'<text x="{30 + 190 * k}" y="{tall - 12}" font-size="12" fill="{colour}">{label}</text>')
    size = 30 + cols * (wide + 15)
    write_text(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{tall}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n',
    )


if __name__ == "__main__":
    run(main)
