# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train synthesis-rivals``: the methods that synthesis is compared with, on the same samples.

``attentiongan`` is CAS-GAN without disentanglement and without the semantic loss, its row ``-G-``: y = x (1 - A) + C A
with one foreground attention and content, image cycle and adversaries, which are AttentionGAN's formulas (Tang et al.,
2019 and 2021). It differs from that method in two points: AttentionGAN has several content maps and draws by attention
in both directions; here the way back is a whole picture.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from licag3d.train.loop import add_loop_flags

METHODS = ("cyclegan", "cut", "attentiongan", "pix2pix", "constant-mask")
#: Those that learn from pairs.
PAIRED = ("pix2pix", "constant-mask")


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(
        parser, steps=20_000, batch=4, rate=4e-4, warmup=0, validate_every=1000, save_every=500, decay=0.0, clip=10.0
    )
    parser.add_argument(
        "--method", choices=METHODS, required=True, help="cyclegan, cut and attentiongan learn without pairs, pix2pix "
        "and constant-mask from pairs; identity, atlas and other-patient need no training: tools/benchmark_synthesis.py"
    )  # fmt: skip
    add_data_flags(parser)
    parser.add_argument("--channels", type=int, default=16, metavar="N", help="of the first layer of the generators")
    parser.add_argument("--blocks", type=int, default=3, metavar="N", help="residual blocks of encoders and generators")
    parser.add_argument(
        "--buffer", type=int, default=50, metavar="N", help="older frames that discriminators are shown"
    )
    parser.set_defaults(
        contrast_free=None, angiograms=None, pixel_size=0.25, composition="fusion", leak_noise=0.0, paired=False,
        adversarial="least-squares", semantic_weight=0.5,
    )  # fmt: skip


def add_data_flags(parser) -> None:
    """Pool, validation, size and bank."""
    from licag3d.train.casgan import add_bank_flag

    parser.add_argument("--pool", required=True, metavar="DIR", help="pool of pairs or frames of training patients")
    parser.add_argument("--validation", metavar="DIR", help="pool of validation pairs; made beside the run if missing")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="rows and columns of a training crop")
    add_bank_flag(parser)


def main(arguments) -> int:
    """Train, and say what came out."""
    from licag3d.train import casgan
    from licag3d.train.loop import settings_of

    arguments.paired = arguments.method in PAIRED
    casgan._check(arguments)
    settings = settings_of(arguments)
    data = casgan._Data(arguments, settings)
    if arguments.method == "attentiongan":
        from licag3d.models.casgan import CasganConfig

        config = CasganConfig(
            drl=False, vsgl=False, channels=arguments.channels, blocks=arguments.blocks,
            patch_channels=arguments.channels,
        )  # fmt: skip
        outcome = casgan.train_row(arguments, settings, config, Path(arguments.out), data, arguments.resume)
        print(casgan._ended(outcome, "attentiongan (row -G- of CAS-GAN)"))
        return 0
    outcome = _train(arguments, settings, data)
    print(casgan._ended(outcome, arguments.method, "synthesis_rival.safetensors"))
    return 0


def _train(arguments, settings, data):
    """Train one of the rivals that are no row of CAS-GAN; writes ``synthesis_rival.safetensors``."""
    import torch

    from licag3d.models.segmentor import count_parameters
    from licag3d.models.synthesis_rivals import RivalConfig, build, config_from, drawing_part, synthesise
    from licag3d.train.casgan import BETAS, SCALE_MM, validate
    from licag3d.train.loop import load_into, load_weights, save_weights, train

    config = RivalConfig(
        arguments.method, arguments.channels, arguments.blocks, arguments.channels, arguments.size, arguments.buffer
    )
    torch.manual_seed(settings.seed)
    model = build(config)
    facts = {
        "model": "synthesis-rival",
        "config": asdict(config),
        "parameters": count_parameters(model),
        "parameters_drawing": count_parameters(drawing_part(model)),
        "betas": list(BETAS),
        "paired": arguments.paired,
        "size": arguments.size,
        "working_mm": sum(SCALE_MM) / 2,
        "data": data.facts,
    }
    folder = Path(arguments.out)
    outcome = train(
        model,
        settings,
        folder,
        make_batch=data,
        loss=loss_of(arguments.method),
        validate=lambda average: validate(drawing_part(average), data.pairs, synthesise),
        config=facts,
        resume=arguments.resume,
        betas=BETAS,
    )
    tensors, found = load_weights(folder / "best.safetensors")
    best = build(config_from(found["config"], "best.safetensors"))
    load_into(best, tensors, "best.safetensors")
    save_weights(folder / "synthesis_rival.safetensors", drawing_part(best), found | {"seed": settings.seed})
    return outcome


def loss_of(method: str):
    """``(model, batch, step) -> (loss, numbers)`` of a method, which stops a training that has collapsed."""
    from licag3d.losses.casgan import AttentionWatch
    from licag3d.losses.cyclegan import HarmonyWeights, SpreadWatch, harmony_loss
    from licag3d.losses.synthesis_rivals import constant_mask_loss, pix2pix_loss

    # As published: nothing holds the vessels, which are to be made here.
    weights = HarmonyWeights(vessels=0.0)
    by_method = {
        "pix2pix": (pix2pix_loss, SpreadWatch(), "spread"),
        "constant-mask": (constant_mask_loss, AttentionWatch(), "attention"),
    }
    harmony = (lambda net, batch: harmony_loss(net, batch, None, weights)), SpreadWatch(), "spread"
    compute, watch, name = by_method.get(method, harmony)

    def loss(net, batch, step):
        total, numbers = compute(net, batch)
        watch.look(float(numbers[name]), step)
        return total, numbers

    return loss
