# SPDX-License-Identifier: Apache-2.0
"""From a finished run to the weights of the package: ``python -m licag3d.train.embed_encoder --run DIR``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

LIMITS = (
    "Trained on synthetic frames alone unless the data say otherwise; real frames differ in texture and devices. "
    "Features describe a frame at 3 x 3 tiles: what is finer is not seen. Distances are comparable only between values "
    "of the same hash."
)


def embed(folder, *, scores: dict | None = None, destination: Path | None = None) -> dict:
    """Write ``encoder.safetensors`` of a run as half-precision weights with a card; returns the card.

    Args:
        folder: of a run of :func:`licag3d.train.vasomim.pretrain`.
        scores: what to state besides the validation of the run, for example of the downstream tasks.
        destination: another folder than that of the package.

    Raises:
        InputError: no finished run there.
    """
    from licag3d import weights
    from licag3d.models.vasomim import encoder_from, encoder_metadata, read_encoder_file, state_hash
    from licag3d.train.vasomim import read_curves

    folder = Path(folder)
    state, config = read_encoder_file(folder / "encoder.safetensors")
    encoder = encoder_from(state, config, folder.name)
    try:
        facts = json.loads((folder / "config.json").read_text("utf-8"))
        settings, told = facts["settings"], facts["config"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no configuration of a run ({error}); give the folder of a finished run") from None
    records = [r for r in read_curves(folder) if "loss" in r]
    held = [r["validation"] for r in read_curves(folder) if "validation" in r]
    chosen = records[:: max(1, len(records) // 20)] + records[-1:]
    keys = ("step", "reconstruction", "consistency", "vessel_share", "beta")
    card = {
        "what": "angiogram encoder, vision transformer pre-trained by masked image modelling (docs/vasomim.md)",
        "licence": "Apache-2.0",
        "config": encoder_metadata(encoder.config),
        "hash": state_hash(encoder.state_dict()),
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "data": told["data"],
        "masking": told["masking"],
        "seed": settings["seed"],
        "steps": records[-1]["step"] if records else 0,
        "batch": settings["batch"],
        "curve": [{key: record[key] for key in keys} for record in chosen],
        "scores": {"validation": held[-1] if held else None, **(scores or {})},
        "limits": LIMITS,
    }
    return weights.save("encoder", encoder.state_dict(), card, destination)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(prog="python -m licag3d.train.embed_encoder", description="Embed a pre-trained encoder as weights.")
    made.add_argument("--run", required=True, metavar="DIR", help="folder of a finished run")
    made.add_argument("--downstream", metavar="DIR", help="results of licag3d.train downstream, for the card")
    made.add_argument("--to", metavar="DIR", help="another folder than that of the package")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Embed and say what was written."""
    arguments = parser().parse_args(argv)
    scores = None
    if arguments.downstream:
        try:
            rows = json.loads((Path(arguments.downstream) / "summary.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{arguments.downstream}: no summary of downstream results ({error})") from None
        scores = {"downstream": rows}
    card = embed(arguments.run, scores=scores, destination=None if arguments.to is None else Path(arguments.to))
    print(f"encoder {card['hash']}, {card['parameters']} parameters, {card['bytes']} bytes")
    return 0


if __name__ == "__main__":
    run(main)
