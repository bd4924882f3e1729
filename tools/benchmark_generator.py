# SPDX-License-Identifier: Apache-2.0
"""Generated trees against phantom trees: shape, pictures, consistency, speed.

    python tools/benchmark_generator.py --samples 500 --cache CACHE --json benchmarks/results/generator.json

What was measured of each tree is kept in --cache, so a run can be interrupted and goes on; the references are phantom
trees of validation seeds, on the same grid and by the same way from a field to a tree. Speed:
``tools/benchmark_generator_speed.py``. Text and tables: docs/capacity.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from licag3d.io.atomic import write_bytes, write_text
from licag3d.metrics import generated as judge
from licag3d.metrics.feature_space import compare_features
from licag3d.models import samples
from licag3d.models.generator import load_generator
from licag3d.phantom import splits
from licag3d.phantom.anatomy import sample_tree
from licag3d.phantom.views import choose_angles
from licag3d.report import samples as draw
from licag3d.vessels.rasterize import tree_occupancy
from licag3d.vessels.volume import Volume

SPACING_MM, PICTURE_PX, VIEWS = 0.5, 192, 2
ARTERIES = ("rca", "lca")
#: First validation seed of the references and of the phantom trees that are judged like generated ones.
REFERENCE, CONTROL = splits.VALIDATION[2000], splits.VALIDATION[5000]
SPOILED = ("blurred", "cut", "shuffled", "mirrored")


def phantom_sample(seed: int, artery: str, disease: str, box_mm: float) -> samples.Sample:
    """A phantom tree as the generator would deliver it: centred, on voxels, with a contrast of its own."""
    tree = sample_tree(seed, artery, **({} if disease == "none" else {"disease": disease}))
    points = np.concatenate([branch.points_lps_mm for branch in tree.branches])
    middle = 0.5 * (points.min(0) + points.max(0))
    count = round(box_mm / SPACING_MM)
    corner = middle - 0.5 * SPACING_MM * (count - 1)
    share = tree_occupancy(tree, Volume(np.zeros((count,) * 3, np.uint8), tuple(corner), SPACING_MM)).values
    mu = float(np.random.default_rng([seed, 9]).uniform(0.11, 0.2))
    origin = tuple(corner - middle)
    return samples.Sample(seed, artery, Volume(share * mu, origin, SPACING_MM), 0.5 * mu)


def measured(sample: samples.Sample, number: int, how: str = "", mesh: bool = False) -> tuple[dict, np.ndarray, object]:
    """Facts, pictures ``(VIEWS, rows, cols)`` uint8 and surface of a sample, spoiled on purpose where ``how`` says."""
    volume = sample.volume
    if how:
        volume = judge.spoiled(volume, how, np.random.default_rng([number, 3]))
    facts, found = judge.facts_of(volume, sample.level_per_mm, mesh=mesh)
    rng = np.random.default_rng([number, 7])
    angles = choose_angles(rng, sample.artery, VIEWS, float(rng.uniform(30, 100)))
    seen = samples.line_integrals(volume, samples.cameras_at(angles, PICTURE_PX))
    row = asdict(facts) | {"artery": sample.artery, "tries": sample.tries}
    return row, np.stack([draw.angiogram(p) for p in seen]), found.surface


def collected(
    name: str, count: int, cache: Path, make: Callable[[int, str], samples.Sample], how: str = "", sheet: int = 0
) -> tuple[list[dict], np.ndarray]:
    """Facts and pictures of ``count`` samples, arteries in turn; what the cache holds is not made again."""
    folder = cache / name
    folder.mkdir(parents=True, exist_ok=True)
    facts, pictures = [], []
    for number in tqdm(range(count), desc=name, disable=not sys.stderr.isatty()):
        file = folder / f"{number:05d}.npz"
        if not file.exists():
            one, seen, surface = measured(make(number, ARTERIES[number % 2]), number, how, number < sheet)
            if number < sheet:
                text = f"{number} {one['artery']}: {one['pieces']} piece(s), {one['length_mm']:.0f} mm"
                write_bytes(folder / f"{number:05d}.png", draw.png(draw.mesh_row(surface, 240, text)))
            temporary = file.with_suffix(".tmp.npz")
            np.savez_compressed(temporary, facts=json.dumps(one), pictures=seen)
            temporary.replace(file)
        with np.load(file, allow_pickle=False) as found:
            facts.append(json.loads(str(found["facts"])))
            pictures.append(found["pictures"])
    return facts, np.concatenate(pictures)


def co_dominant(number: int) -> bool:
    """Whether a drawn patient is co-dominant, as often as patients of the phantom are."""
    from licag3d.phantom.plans import DOMINANCE_SHARES

    return bool(np.random.default_rng([number, 11]).random() < DOMINANCE_SHARES["co"])


def facts_list(rows: list[dict], artery: str | None = None) -> list[judge.TreeFacts]:
    """Facts of one artery, or of both."""
    chosen = [row for row in rows if artery is None or row["artery"] == artery]
    names = [item.name for item in fields(judge.TreeFacts)]
    return [judge.TreeFacts(**{k: tuple(row[k]) if k == "radii_mm" else row[k] for k in names}) for row in chosen]


def trees_report(rows: list[dict], reference: list[dict]) -> dict:
    """Connected share, and KS distances to the reference for each artery."""
    share, low, high = judge.connected_share(facts_list(rows))
    report = {"trees": len(rows), "one_tree": {"value": share, "low": low, "high": high}}
    report["largest_share_mean"] = float(np.mean([row["largest_share"] for row in rows]))
    tries = sum(row.get("tries", 1) for row in rows)
    report["codes_drawn"], report["codes_refused_share"] = tries, 1 - len(rows) / tries
    for artery in ARTERIES:
        mine, others = facts_list(rows, artery), facts_list(reference, artery)
        if len(mine) < 2 or len(others) < 2:
            continue
        report[artery] = {name: asdict(value) for name, value in judge.compare_trees(mine, others).items()}
        for key, group in (("mean", mine), ("reference_mean", others)):
            means = {name: float(np.mean([getattr(one, name) for one in group])) for name in judge.SCALARS}
            radii = [np.mean(one.radii_mm) for one in group if one.radii_mm]
            report[artery][key] = means | {"radius_mm": float(np.mean(radii)) if radii else None}
    return report


def features_of(pictures: np.ndarray, cache: Path) -> tuple[np.ndarray, str]:
    """Features ``(n, d)`` of pictures by the embedded encoder, and its name."""
    from licag3d.models.vasomim import load_encoder

    encoder = load_encoder("encoder")
    name = f"{encoder.name}-{encoder.hash[:8]}"
    file = cache / f"features-{name}-{len(pictures)}-{pictures.astype(np.int64).sum()}.npy"
    if not file.exists():
        with torch.no_grad():
            parts = [
                encoder.features(torch.from_numpy(pictures[k : k + 8].astype(np.float32) / 255)[:, None]).float()
                for k in range(0, len(pictures), 8)
            ]
        np.save(file, torch.cat(parts).numpy())
    return np.load(file, allow_pickle=False), name


def pictures_report(mine: np.ndarray, reference: np.ndarray, cache: Path) -> dict:
    """Distances in the feature space of the encoder, each with its floor."""
    real, name = features_of(reference, cache)
    other, _ = features_of(mine, cache)
    found = compare_features(real, other, encoder=name)
    return {key: asdict(value) for key, value in found.items()} | {"real": len(real), "other": len(other)}


def consistency_report(generator, seeds: range, views: int = 36, size: int = 32) -> dict:
    """Projections of the generator from a full turn against those of its baked field, ever finer voxels, some seeds.

    ``same_field_X_mm`` is the relative difference (root mean square) with voxels of X mm. One field explains all views
    when it falls with the voxels. Voxels of 0.25 mm for the first two alone, for their size; for the first
    ``view_consistency`` too: what a reconstruction from half of the views says of the other half.
    """
    from licag3d.geometry import Cameras
    from licag3d.models.tree_from_field import bake

    rows = []
    angles = [(360 * k / views - 180, 15 * np.sin(6 * np.pi * k / views)) for k in range(views)]
    cameras = samples.cameras_at(angles, size)
    for seed in seeds:
        artery = ARTERIES[seed % 2]
        w_plus = samples.codes(generator, [seed], artery)[0]
        row = torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            written = [(artery, row, samples.written_vector(generator, w_plus, artery))]
            planes = generator.planes(w_plus[None], torch.tensor([ARTERIES.index(artery)]), vectors=written)

        def render(some: list, planes=planes) -> np.ndarray:
            with torch.no_grad():
                return generator.project(planes, Cameras.stack(some), samples=512)[0].numpy()

        seen = render(cameras)
        found = {"seed": seed, "artery": artery}
        for spacing_mm in (2.0, 1.0, 0.5, 0.25) if seed in seeds[:2] else (2.0, 1.0, 0.5):
            box_mm = generator.config.box_size_mm
            volume = bake(planes[0], generator.decoder(), box_size_mm=box_mm, spacing_mm=spacing_mm)
            off = samples.line_integrals(volume, cameras) - seen
            found[f"same_field_{spacing_mm:g}_mm"] = float(np.sqrt(np.mean(off**2) / np.mean(seen**2)))
            if spacing_mm == 1.0 and seed == seeds[0]:
                found |= asdict(judge.view_consistency(render, volume, cameras))
        rows.append(found)
        print(json.dumps(found), file=sys.stderr)
    return {"views": views, "size_px": size, "samples": rows}


def written_report(generator, count: int, reference: int, disease: str, truncation: float) -> dict:
    """The branches that the generator writes before it draws them, against the phantom's own: no grid on either side.

    Cheap, so that many samples can be judged; what becomes of them in the field the other figures tell.
    """

    def phantom_facts(number: int, artery: str) -> dict:
        tree = sample_tree(REFERENCE + number, artery, **({} if disease == "none" else {"disease": disease}))
        return asdict(judge.facts_of_tree(tree)) | {"artery": artery}

    rows = []
    for number in range(count):
        artery = ARTERIES[number % 2]
        options = {"truncation": truncation, "co_dominant": co_dominant(number)}
        w_plus, tries = samples.drawn_code(generator, number, artery, **options)
        facts = judge.facts_of_tree(samples.written_tree(generator, w_plus, artery))
        rows.append(asdict(facts) | {"artery": artery, "tries": tries})
    return trees_report(rows, [phantom_facts(k, ARTERIES[k % 2]) for k in range(reference)])


def weights_digest(generator) -> str:
    """Twelve digits that name these weights, wherever they came from."""
    found = hashlib.sha256()
    for key, value in sorted(generator.state_dict().items()):
        found.update(key.encode() + value.float().numpy().tobytes())
    return found.hexdigest()[:12]


def sheet_of(folders: list[Path], count: int) -> Iterator[np.ndarray]:
    """Mesh rows of the first samples of some sets, in turn."""
    import imageio.v3 as imageio

    for number in range(count):
        for folder in folders:
            file = folder / f"{number:05d}.png"
            if file.exists():
                yield imageio.imread(file)[..., :3]


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for and write it; parts of the file that are not measured now stay."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/generator.json"))
    parser.add_argument("--cache", type=Path, default=Path("generator-cache"), help="folder of what was measured")
    parser.add_argument("--prior", default="generator", help="embedded weights, or a .safetensors file")
    parser.add_argument("--samples", type=int, default=0, help="generated trees; 0 leaves them out")
    parser.add_argument("--written", type=int, default=0, metavar="N", help="trees as written, before they are drawn")
    parser.add_argument("--trunc", type=float, default=1.0)
    parser.add_argument("--reference", type=int, default=200, help="phantom trees to compare with")
    parser.add_argument("--controls", type=int, default=0, help="phantom trees judged like generated ones")
    parser.add_argument("--disease", default="random", help="of the phantom: none or random")
    parser.add_argument("--box-mm", type=float, default=120.0, help="box of the phantom's voxels, mm")
    parser.add_argument("--consistency", type=int, default=0, metavar="N", help="samples for the view consistency")
    parser.add_argument("--sheet", type=int, default=12, help="samples on the picture sheet")
    arguments = parser.parse_args(argv)
    report = json.loads(arguments.json.read_text("utf-8")) if arguments.json.exists() else {}

    def phantom(first: int) -> Callable[[int, str], samples.Sample]:
        return lambda number, artery: phantom_sample(first + number, artery, arguments.disease, arguments.box_mm)

    cache = arguments.cache
    if arguments.samples or arguments.controls:
        reference, pictures = collected("reference", arguments.reference, cache, phantom(REFERENCE))
        report["reference"] = {"trees": len(reference), "disease": arguments.disease, "spacing_mm": SPACING_MM,
                               "one_tree": judge.connected_share(facts_list(reference))[0]}  # fmt: skip
    if arguments.controls:
        report["controls"] = {}
        for how in ("", *SPOILED):
            name = how or "phantom"
            rows, seen = collected(name, arguments.controls, cache, phantom(CONTROL), how, arguments.sheet)
            found = {"trees": trees_report(rows, reference), "pictures": pictures_report(seen, pictures, cache)}
            report["controls"][name] = found
    if arguments.samples or arguments.written or arguments.consistency:
        generator, card = load_generator(arguments.prior)
        digest = weights_digest(generator)
        report["generator"] = report.get("generator", {}) | {
            "weights": digest,
            "steps": card.get("steps"),
            "truncation": arguments.trunc,
        }
    if arguments.samples:
        name = f"generated-{digest}-{arguments.trunc:g}"

        def make(number: int, artery: str) -> samples.Sample:
            co = co_dominant(number)
            return samples.draw(generator, number, artery, truncation=arguments.trunc, co_dominant=co)

        rows, seen = collected(name, arguments.samples, cache, make, sheet=arguments.sheet)
        report["generator"]["trees"] = trees_report(rows, reference)
        report["generator"]["pictures"] = pictures_report(seen, pictures, cache)
        shown = list(sheet_of([cache / name], arguments.sheet))
        if shown:
            write_bytes(
                arguments.json.with_name("generator_meshes.png"), draw.png(draw.tiled(shown, -(-len(shown) // 2), 2))
            )
    if arguments.written:
        options = (arguments.written, arguments.reference, arguments.disease, arguments.trunc)
        report["generator"]["written"] = written_report(generator, *options)
    if arguments.consistency:
        report["generator"]["consistency"] = consistency_report(generator, range(arguments.consistency))
    write_text(arguments.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
