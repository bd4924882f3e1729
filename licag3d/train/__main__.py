# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train MODEL``: train or fine-tune a model of the package."""

from __future__ import annotations

import importlib

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError

#: What can be trained: module with ``add_flags(parser)`` and ``main(arguments) -> int``, and one line for the help.
VERBS = {
    "segmentor": (
        "licag3d.train.segmentor",
        "vessels, devices and line integrals of a frame; fine-tuning on own masks",
    ),
    "correspondence": (
        "licag3d.train.correspondence",
        "which place of the other view shows the same vessel, from pairs of views",
    ),
    "generator": ("licag3d.train.generator", "tri-plane generator of coronary trees, from phantom trees"),
    "encoder": ("licag3d.train.encoder", "encoder of views to codes of the generator, from phantom trees"),
    "vasomim": ("licag3d.train.vasomim", "masked pre-training of the angiogram encoder"),
    "mask-first": ("licag3d.train.mask_first", "synthesis of angiograms: vessels of contrast-free frames"),
    "casgan": ("licag3d.train.casgan", "synthesis of angiograms without pairs: CAS-GAN and its ablation"),
    "synthesis-rivals": (
        "licag3d.train.synthesis_rivals",
        "what synthesis is compared with: CycleGAN, CUT, AttentionGAN, pix2pix, a mask of one darkness",
    ),
    "iqa": ("licag3d.train.iqa", "quality of synthetic angiograms: computed or human scores"),
    "cyclegan": ("licag3d.train.cyclegan", "style harmonisation between two centres, vessels kept"),
    "downstream": ("licag3d.train.downstream", "segmentation, labelling and stenosis from few labels"),
}


def main(argv: list[str]) -> int:
    """Hand the flags to the module of the verb; it is imported only now, so that help is quick."""
    listing = "\n".join(f"  {verb:18s}{text}" for verb, (_, text) in VERBS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(
            f"usage: python -m licag3d.train MODEL [flags]\n\nmodels:\n{listing}\n\nflags of one model: "
            "python -m licag3d.train MODEL --help. The recipe: docs/training.md."
        )
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise InputError(f"'{verb}' is no model to train; choose {', '.join(VERBS)}")
    name, text = VERBS[verb]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(f"'{verb}' cannot be trained by this version") from None
    parser = Parser(prog=f"python -m licag3d.train {verb}", description=f"Train: {text}.")
    module.add_flags(parser)
    add_debug_flag(parser)
    return module.main(parser.parse_args(rest))


if __name__ == "__main__":
    run(main)
