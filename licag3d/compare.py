# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.compare``: how far a set of frames is from another, in the feature space of a named encoder."""

from __future__ import annotations

import argparse

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = Parser(
        prog="python -m licag3d.compare",
        description="Distances between two sets of angiograms (folders of PNG, TIFF, JPEG or DICOM XA) in the feature "
        "space of an angiogram encoder: Frechet, KID, MMD with p-value, precision, recall, density, coverage, each "
        "with a 95 % interval and the distance of two halves of the real set beside it. Definitions: "
        "docs/feature-space.md.",
        epilog="example: python -m licag3d.compare --real angiograms --other synthetic --json distances.json",
    )
    result.add_argument("--real", nargs="+", metavar="DIR", help="folders of the reference set, at least 20 frames")
    result.add_argument("--other", nargs="+", metavar="DIR", help="folders of the set to judge, at least 20 frames")
    result.add_argument(
        "--sensitivity",
        type=int,
        default=0,
        metavar="N",
        help="instead of --real and --other: the sensitivity card of the encoder on N phantom scenes, 40 to 2000",
    )
    result.add_argument(
        "--encoder", default="encoder", metavar="NAME", help="encoder (embedded), random, or an encoder.safetensors"
    )
    result.add_argument(
        "--size", type=int, default=256, metavar="PX", help="side to which frames are brought, 64 to 1024"
    )
    result.add_argument("--fid-weights", metavar="FILE", help="your Inception weights: standard FID too")
    result.add_argument(
        "--lpips-weights", metavar="FILE", help="your AlexNet weights: LPIPS of frames of one order too"
    )
    result.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    result.add_argument("--seed", type=int, default=0, help="of the random halves")
    add_debug_flag(result)
    return result


def main(argv: list[str]) -> int:
    """Read, measure, print."""
    arguments = parser().parse_args(argv)
    if not 64 <= arguments.size <= 1024:
        raise InputError(f"--size is {arguments.size}; give 64 to 1024 pixels")
    if not 0 <= arguments.seed < 2**31:
        raise InputError(f"--seed is {arguments.seed}; give 0 to {2**31 - 1}")
    if arguments.sensitivity:
        if arguments.real or arguments.other:
            raise InputError("--sensitivity makes its own frames: leave out --real and --other")
        if not 40 <= arguments.sensitivity <= 2000:
            raise InputError(f"--sensitivity is {arguments.sensitivity}; give 40 to 2000 scenes")
        return _sensitivity(arguments)
    if not arguments.real or not arguments.other:
        raise InputError("give --real DIR and --other DIR, or --sensitivity N")
    import numpy as np

    from licag3d.metrics.feature_space import compare_features
    from licag3d.models.vasomim import load_encoder

    encoder = load_encoder(arguments.encoder)
    name = _label(encoder)
    real, other = (_read(folders, arguments.size) for folders in (arguments.real, arguments.other))
    for flag, frames in (("--real", real), ("--other", other)):
        if len(frames) < 20:
            raise InputError(f"{flag} has {len(frames)} frames that can be used; at least 20 are needed")
    print(f"{len(real)} real frames, {len(other)} others, encoder {name}", flush=True)
    found = compare_features(_features(encoder, real), _features(encoder, other), encoder=name, seed=arguments.seed)
    facts = {key: {k: v for k, v in vars(value).items()} for key, value in found.items()}
    if arguments.fid_weights:
        from licag3d.metrics.feature_space.standard import inception_fid

        facts["fid_inception"] = {"value": inception_fid(real, other, arguments.fid_weights)}
    if arguments.lpips_weights:
        from licag3d.metrics.feature_space.standard import lpips_distance

        count = min(len(real), len(other))
        facts["lpips_alex"] = {
            "value": float(np.mean(lpips_distance(real[:count], other[:count], arguments.lpips_weights)))
        }
    print(f"{'':34}{'value':>10}   {'95 % interval':>19}   real against real")
    for key, row in facts.items():
        interval = f"{row['low']:8.4f} to {row['high']:8.4f}" if "low" in row else ""
        floor = f"{row['floor']:10.4f}" if row.get("floor") is not None else ""
        print(f"{key:34}{row['value']:10.4f}   {interval:>19}   {floor}")
    _write(arguments.json, {"encoder": name, "real": len(real), "other": len(other), "distances": facts})
    return 0


def _sensitivity(arguments) -> int:
    from licag3d.metrics.feature_space.scenes import phantom_scenes
    from licag3d.metrics.feature_space.sensitivity import card_table, sensitivity_card
    from licag3d.models.vasomim import load_encoder

    encoder = load_encoder(arguments.encoder)
    name = _label(encoder)
    scenes = phantom_scenes(arguments.sensitivity, arguments.size, seed=arguments.seed)
    card = sensitivity_card(scenes, lambda frames: _features(encoder, frames), encoder=name, seed=arguments.seed)
    print(card_table(card, name))
    rows = {row: {key: vars(value) for key, value in found.items()} for row, found in card.items()}
    _write(arguments.json, {"encoder": name, "scenes": arguments.sensitivity, "card": rows})
    return 0


def _label(encoder) -> str:
    return f"{encoder.name}-{encoder.hash[:8]}"


def _read(folders: list[str], side: int):
    """Frames ``(n, side, side)`` float32, 0..1, without duplicates."""
    import tempfile

    import numpy as np

    from licag3d.data.frames import prepare_frames

    with tempfile.TemporaryDirectory(prefix="licag3d-compare-") as folder:
        bank = prepare_frames(folders, folder)
        skipped = bank.report.get("skipped")
        if skipped:
            print(f"note: skipped {skipped}")
        return np.stack([_resized(bank.image(k), side) for k in range(len(bank))])


def _resized(image, side: int):
    import numpy as np
    import torch

    batch = torch.from_numpy(np.array(image, np.float32))[None, None] / 255
    small = torch.nn.functional.interpolate(batch, size=(side, side), mode="bilinear", antialias=True)
    return small[0, 0].clamp(0, 1).numpy()


def _features(encoder, frames):
    """Features ``(n, d)`` of frames ``(n, rows, cols)``."""
    import numpy as np
    import torch
    from tqdm import tqdm

    parts = []
    with torch.no_grad():
        for start in tqdm(range(0, len(frames), 8), desc="features", disable=None, leave=False):
            batch = torch.from_numpy(np.ascontiguousarray(frames[start : start + 8], np.float32))[:, None]
            parts.append(encoder.features(batch).float().numpy())
    return np.concatenate(parts)


def _write(path: str | None, facts: dict) -> None:
    if path:
        import json

        from licag3d.io.atomic import write_text

        write_text(path, json.dumps(facts, indent=1))
        print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
