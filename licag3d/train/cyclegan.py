# SPDX-License-Identifier: Apache-2.0
"""``python -m licag3d.train cyclegan``: frames of one centre in the style of another, from two folders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from licag3d.errors import InputError
from licag3d.train.loop import add_loop_flags

#: Of Adam, as in the CycleGAN family.
BETAS = (0.5, 0.999)
#: Pixel size at the isocentre at which the frozen segmentor looks, mm.
SEGMENTOR_MM = 0.32
#: Frames per side that choose the checkpoint, and the most rows of them that are looked at.
CHECKED, CHECKED_ROWS = 8, 384
#: A pixel of vessel shift costs as much as this distance of styles.
SHIFT_COST = 0.05


def add_flags(parser) -> None:
    """The flags."""
    add_loop_flags(
        parser, steps=20_000, batch=4, rate=4e-4, warmup=0, validate_every=500, save_every=500, decay=0.0, clip=10.0
    )
    data = parser.add_argument_group("data: two folders of angiograms (PNG, TIFF, JPEG, DICOM), of any patients")
    data.add_argument("--source", required=True, metavar="DIR", help="frames of the centre to be harmonised")
    data.add_argument("--target", required=True, metavar="DIR", help="frames of the centre to look like")
    data.add_argument("--pixel-size", type=float, default=0.25, metavar="MM", help="mm per pixel at the isocentre")
    data.add_argument("--size", type=int, default=128, metavar="PX", help="rows and columns of a training crop")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--method", choices=("cyclegan", "cut"), default="cyclegan", help="cycle consistency, or contrastive (one way)"
    )
    model.add_argument("--channels", type=int, default=12, metavar="N", help="of the first layer of the generators")
    model.add_argument("--buffer", type=int, default=50, metavar="N", help="older frames that discriminators are shown")
    model.add_argument("--cycle-weight", type=float, default=10.0, metavar="W")
    model.add_argument("--identity-weight", type=float, default=5.0, metavar="W")
    model.add_argument("--contrast-weight", type=float, default=1.0, metavar="W", help="of CUT")
    model.add_argument(
        "--vessel-weight", type=float, default=5.0, metavar="W", help="of the frozen segmentor, which must find the "
        "same vessels before and after; 0 leaves it out"
    )  # fmt: skip


def main(arguments) -> int:
    """Train, and say what came out."""
    import torch

    from licag3d.losses.cyclegan import HarmonyWeights, SpreadWatch, harmony_loss
    from licag3d.models.cyclegan import CycleGan, CycleganConfig
    from licag3d.models.segmentor import count_parameters
    from licag3d.train.loop import settings_of, train

    _check(arguments)
    settings = settings_of(arguments)
    config = CycleganConfig(
        method=arguments.method, channels=arguments.channels, size=arguments.size, buffer=arguments.buffer
    )
    weights = HarmonyWeights(
        cycle=arguments.cycle_weight, identity=arguments.identity_weight, contrast=arguments.contrast_weight,
        vessels=arguments.vessel_weight,
    )  # fmt: skip
    stream = CentreStream.read(arguments, settings.seed)
    torch.manual_seed(settings.seed)
    model = CycleGan(config)
    vessel_map = frozen_vessel_map(settings.device, arguments.pixel_size) if arguments.vessel_weight else None
    watch = SpreadWatch()

    def loss(net, batch, step):
        total, numbers = harmony_loss(net, batch, vessel_map, weights)
        watch.look(float(numbers["spread"]), step)
        return total, numbers

    facts = {
        "model": "cyclegan",
        "config": asdict(config),
        "parameters": count_parameters(model),
        "weights": asdict(weights),
        "betas": list(BETAS),
        "pixel_mm": arguments.pixel_size,
        "frames": stream.counts,
    }
    outcome = train(
        model,
        settings,
        arguments.out,
        make_batch=lambda step: stream.batch(step, settings.batch),
        loss=loss,
        validate=lambda average: validate(average, *stream.checked(), arguments.pixel_size),
        config=facts,
        resume=arguments.resume,
        betas=BETAS,
    )
    return _finish(settings, outcome)


def _check(arguments) -> None:
    if arguments.size % 32 or not 32 <= arguments.size <= 1024:
        raise InputError(f"--size is {arguments.size}; give a multiple of 32 from 32 to 1024")
    if not 0.02 <= arguments.pixel_size <= 2:
        raise InputError(f"--pixel-size is {arguments.pixel_size} mm; give 0.02 to 2 mm at the isocentre")
    for name in ("cycle", "identity", "contrast", "vessel"):
        value = getattr(arguments, f"{name}_weight")
        if not 0 <= value <= 1000:
            raise InputError(f"--{name}-weight is {value}; give 0 to 1000")
    if Path(arguments.source).resolve() == Path(arguments.target).resolve():
        raise InputError(f"--source and --target are both {arguments.source}: there is nothing to harmonise")


class CentreStream:
    """Crops of two banks of frames at their own pixel size, drawn independently."""

    def __init__(self, source, target, size: int, seed: int) -> None:
        # The last patients choose the checkpoint.
        self.banks, self.kept = zip(*(bank.split(validation=0.15) for bank in (source, target)), strict=True)
        self.size, self.seed = size, seed
        self.counts = [len(bank) for bank in self.banks]

    @classmethod
    def read(cls, arguments, seed: int) -> CentreStream:
        """Read both folders into banks beside the run.

        Raises:
            InputError: a folder is missing, nothing in it can be used, or its frames are smaller than a crop.
        """
        from licag3d.data.frames import describe, prepare_frames

        banks = []
        for flag in ("source", "target"):
            try:
                bank = prepare_frames([getattr(arguments, flag)], Path(arguments.out) / "frames" / flag)
            except InputError as error:
                raise InputError(f"--{flag}: {error}") from None
            smallest = min(min(bank.image(k).shape) for k in range(len(bank)))
            if smallest < arguments.size:
                raise InputError(f"--{flag}: a frame of {smallest} px is smaller than a crop; give a smaller --size")
            print(f"{flag}: {describe(bank)}")
            banks.append(bank)
        return cls(*banks, arguments.size, seed)

    def batch(self, step: int, size: int) -> dict:
        """``x`` (source) and ``y`` (target), each ``(size, 1, s, s)`` in 0..1."""
        import torch

        drawn = [[self._crop(side, step * size + k) for k in range(size)] for side in (0, 1)]
        return {"x": torch.stack(drawn[0]), "y": torch.stack(drawn[1])}

    def checked(self) -> tuple[list, list]:
        """Frames of the patients that choose the checkpoint (of training, where a folder holds one patient only)."""
        import numpy as np

        def some(side: int) -> list:
            bank = self.kept[side] if len(self.kept[side]) else self.banks[side]
            picked = np.linspace(0, len(bank) - 1, min(CHECKED, len(bank))).astype(int)
            return [_middle(bank.image(int(k)).astype(np.float32) / 255) for k in picked]

        return some(0), some(1)

    def _crop(self, side: int, index: int):
        import numpy as np
        import torch

        rng = np.random.default_rng([self.seed, 95, side, index])
        bank = self.banks[side]
        image = bank.image(int(rng.integers(len(bank))))
        top, left = (int(rng.integers(0, n - self.size + 1)) for n in image.shape)
        part = np.array(image[top : top + self.size, left : left + self.size], np.float32) / 255
        part = part[:, ::-1] if rng.random() < 0.5 else part
        return torch.from_numpy(np.ascontiguousarray(part))[None]


def _middle(image):
    top, left = ((n - min(n, CHECKED_ROWS)) // 2 for n in image.shape)
    return image[top : top + CHECKED_ROWS, left : left + CHECKED_ROWS]


def frozen_vessel_map(device: str, pixel_mm: float):
    """The embedded segmentor as a function of frames ``(n, 1, h, w)`` in 0..1 to soft vessel maps of the size it works
    at; its weights are fixed, and the gradient reaches the frames.
    """
    import copy
    import math

    import torch
    import torch.nn.functional as F

    from licag3d.models.segmentor import load_segmentor, normalise

    segmentor = copy.deepcopy(load_segmentor("segmentor", device)).eval().requires_grad_(False)
    factor = pixel_mm / max(SEGMENTOR_MM, pixel_mm / 2)

    def vessel_map(frames):
        stride = segmentor.config.stride
        size = [math.ceil(n * factor / stride) * stride for n in frames.shape[-2:]]
        seen = F.interpolate(frames.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        seen = normalise(seen, torch.ones_like(seen, dtype=torch.bool))
        return segmentor(seen.to(memory_format=torch.channels_last))[:, :1].float().sigmoid()

    return vessel_map


def validate(model, source, target, pixel_mm: float) -> dict[str, float]:
    """Distance of the harmonised frames' style from the target's, and what becomes of the vessels; ``score`` is minus
    the distance, a pixel of shift and lost or made-up vessels costing extra.
    """
    import numpy as np

    from licag3d.metrics.harmonisation import style_distance, vessel_shift
    from licag3d.models.cyclegan import translate
    from licag3d.models.segmentor import load_segmentor, predict

    made = [translate(model.forth, image) for image in source]
    if not all(np.isfinite(image).all() for image in made):
        return {"style": 9.0, "shift_px": 9.0, "lost": 1.0, "made_up": 1.0, "score": -9.0}
    segmentor, shifts = load_segmentor("segmentor", str(next(model.parameters()).device)), []
    for before, after in zip(source, made, strict=True):
        everywhere = np.ones(before.shape, bool)
        shifts.append(
            vessel_shift(*(predict(segmentor, image, everywhere, pixel_mm).vessel > 0.5 for image in (before, after)))
        )
    found = {
        "style": style_distance(made, target),
        "style_before": style_distance(source, target),
        "shift_px": float(np.mean([s.shift_px if np.isfinite(s.shift_px) else 5.0 for s in shifts])),
        "lost": float(np.mean([s.lost for s in shifts])),
        "made_up": float(np.mean([s.made_up for s in shifts])),
    }
    cost = SHIFT_COST * (found["shift_px"] + 2 * found["lost"] + 2 * found["made_up"])
    return found | {"score": -found["style"] - cost}


def _finish(settings, outcome) -> int:
    """Write ``cyclegan.safetensors``, the generators of the best validation."""
    import torch

    from licag3d.models.cyclegan import CycleGan, config_from
    from licag3d.train.checkpoints import load_into, load_weights, save_weights

    folder = outcome.folder
    tensors, facts = load_weights(folder / "best.safetensors")
    best = CycleGan(config_from(facts["config"], "best.safetensors"))
    load_into(best, tensors, "best.safetensors")
    kept = torch.nn.ModuleDict({name: part for name, part in best.named_children() if name in ("forth", "back")})
    save_weights(folder / "cyclegan.safetensors", kept, facts | {"seed": settings.seed})
    ended = "finished" if outcome.finished else "stopped at the time limit (go on with --resume)"
    best_score = f", best score {outcome.score:.4f} at step {outcome.best_step}" if outcome.score is not None else ""
    print(f"{ended} after {outcome.steps} steps{best_score}: {folder / 'cyclegan.safetensors'}")
    return 0
