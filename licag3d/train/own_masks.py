# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of the segmentor on a user's own frames and masks, alone or mixed with phantom frames."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from licag3d.errors import InputError

MAX_PAIRS = 20_000
#: Every fifth frame (by name) is kept for validation.
HELD_OUT = 5
#: Names of skipped files that are listed.
LISTED = 20


@dataclass(frozen=True)
class OwnFrame:
    """One frame with its mask: ``image`` ``(rows, cols)`` uint8, vessels dark; ``mask`` and ``valid`` bool."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Collection:
    """What could be used of a folder, and how often what could not be: reason to count, and some names."""

    frames: tuple[OwnFrame, ...]
    skipped: dict[str, int]
    names: tuple[str, ...]


def collect(images, masks) -> Collection:
    """Read every frame that has a mask of the same name (without suffix; ``NAME_mask`` also counts).

    Unusable pairs are skipped and counted: no mask, unreadable, mask of another size, blank, empty or full mask,
    vessels brighter than their surroundings. Sizes and bit depths may differ from frame to frame.

    Raises:
        InputError: a folder is missing, holds too many files, or no usable pair is left (with the counts).
    """
    images, masks = Path(images), Path(masks)
    for folder, flag in ((images, "--images"), (masks, "--masks")):
        if not folder.is_dir():
            raise InputError(f"{flag} {folder}: no such folder")
    files = sorted(path for path in images.iterdir() if path.is_file() and not path.name.startswith("."))
    if len(files) > MAX_PAIRS:
        raise InputError(f"--images {images}: {len(files)} files; give at most {MAX_PAIRS}")
    partner: dict[str, Path] = {}
    for path in sorted(masks.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            partner.setdefault(path.stem.removesuffix("_mask").lower(), path)
    frames, skipped, names = [], Counter(), []
    for path in files:
        try:
            mask = partner.get(path.stem.lower())
            if mask is None or mask.resolve() == path.resolve():
                raise _Unusable("no mask of its name")
            frames.append(_read(path, mask))
        except _Unusable as reason:
            skipped[str(reason)] += 1
            names.append(f"{path.name}: {reason}")
    if not frames:
        told = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common(4)) or "the folder is empty"
        raise InputError(f"{images}: no usable frame with a mask ({told})")
    return Collection(tuple(frames), dict(skipped), tuple(names[:LISTED]))


class _Unusable(Exception):
    """Why a pair is skipped."""


def _read(path: Path, mask_path: Path) -> OwnFrame:
    from scipy import ndimage

    from licag3d.io.views import read_views

    try:
        (view,), _ = read_views([str(path)], masks=[str(mask_path)], need_geometry=False, polarity="dark")
    except InputError as error:
        text = str(error)
        if "blank" in text:
            raise _Unusable("blank") from None
        if mask_path.name in text or "mask" in text:
            raise _Unusable("mask does not fit or cannot be read") from None
        raise _Unusable("cannot be read") from None
    mask = view.mask & view.valid
    if not mask.any() or mask.mean() > 0.6:
        raise _Unusable("mask is empty or covers the frame")
    ring = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask, iterations=1) & view.valid
    if ring.any() and view.image[mask].mean() > view.image[ring].mean():
        raise _Unusable("vessels are brighter than their surroundings")
    return OwnFrame(path.name, np.rint(255 * np.clip(view.image, 0, 1)).astype(np.uint8), mask, view.valid)


def split(frames: tuple[OwnFrame, ...]) -> tuple[list[OwnFrame], list[OwnFrame]]:
    """Training and validation frames: every fifth in the order of a hash of their names, at least one of each."""
    import zlib

    order = sorted(frames, key=lambda frame: (zlib.crc32(frame.name.encode()), frame.name))
    if len(order) == 1:
        return order, order
    held = max(1, len(order) // HELD_OUT)
    return order[held:], order[:held]


class OwnStream:
    """Random crops of own frames, with another display; the same entries as a phantom sample, p and devices unknown."""

    def __init__(self, frames: list[OwnFrame], size: int, pixel_mm: float, seed: int) -> None:
        self.frames, self.size, self.pixel_mm, self.seed = frames, size, pixel_mm, seed

    def sample(self, index: int) -> dict:
        """Sample ``index`` of the stream."""
        import torch
        import torch.nn.functional as F

        from licag3d.data.randomise import SCALE_MM, retouch
        from licag3d.models.segmentor import normalise

        rng = np.random.default_rng([self.seed, 72, index])
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        frame = self.frames[int(rng.integers(len(self.frames)))]
        rows, cols = frame.image.shape
        zoom = float(np.clip(np.exp(rng.uniform(*np.log(SCALE_MM))) / self.pixel_mm, 0.5, 2.0))
        row, col = np.nonzero(frame.mask)
        chosen = int(rng.integers(len(row)))
        centre = np.array((col[chosen], row[chosen])) + rng.uniform(-0.4, 0.4, 2) * self.size * zoom
        turn, flip = float(np.deg2rad(rng.normal(0, 12))), -1.0 if rng.random() < 0.5 else 1.0
        at = torch.arange(self.size, dtype=torch.float32) - (self.size - 1) / 2
        v, u = torch.meshgrid(at, at * flip, indexing="ij")
        x = centre[0] + zoom * (math.cos(turn) * u - math.sin(turn) * v)
        y = centre[1] + zoom * (math.sin(turn) * u + math.cos(turn) * v)
        grid = torch.stack([(2 * x + 1) / cols - 1, (2 * y + 1) / rows - 1], -1)[None]
        stack = np.stack([frame.image / 255.0, frame.mask, frame.valid]).astype(np.float32)
        cut = F.grid_sample(torch.from_numpy(stack)[None], grid, align_corners=False)[0]
        grey, valid = retouch(rng, cut[0:1], noise), cut[2:3] > 0.5
        zero = torch.zeros_like(grey)
        return {
            "x": normalise(grey[None], valid[None])[0],
            "vessel": (cut[1:2] > 0.5).float(),
            "device": zero,
            "p": zero,
            "weight": valid.float(),
            "known": torch.zeros(1, 1, 1),
            "grey": grey,
        }


def train_on_masks(arguments, settings) -> int:
    """Fine-tune; with ``--pool`` half of every batch are phantom frames: line integrals and devices stay alive."""
    import torch

    from licag3d.train.loop import train
    from licag3d.train.segmentor import BANK_SIZE, finish, first_model, run_config, segmentor_loss, training_pool

    if not 0.02 <= arguments.pixel_size <= 2:
        raise InputError(f"--pixel-size is {arguments.pixel_size} mm; give 0.02 to 2 mm at the isocentre")
    found = collect(arguments.images, arguments.masks)
    if found.skipped:
        print("skipped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(found.skipped.items())))
        for name in found.names:
            print(f"  {name}")
    training, held_out = split(found.frames)
    print(f"{len(training)} frames to train on, {len(held_out)} to validate on")
    model = first_model(arguments.init, arguments.encoder, settings.seed)
    own = OwnStream(training, arguments.size, arguments.pixel_size, settings.seed)
    phantom = None
    if arguments.pool:
        from licag3d.data.distractors import DistractorBank
        from licag3d.data.randomise import Randomisation, SampleStream

        bank = DistractorBank(BANK_SIZE, max(512, arguments.size))
        phantom = SampleStream(training_pool(arguments.pool), bank, settings.seed, Randomisation(size=arguments.size))

    def batch(step: int) -> dict:
        samples = []
        for k in range(settings.batch):
            stream = phantom if phantom is not None and k % 2 else own
            samples.append(stream.sample(step * settings.batch + k))
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    outcome = train(
        model,
        settings,
        arguments.out,
        make_batch=batch,
        loss=segmentor_loss,
        validate=lambda average: validate_own(average, held_out, arguments.pixel_size),
        config=run_config(model, arguments) | {"frames": len(training), "pixel_size_mm": arguments.pixel_size},
        resume=arguments.resume,
    )
    data = {"source": "own masks", "frames": len(training), "mixed": phantom is not None, "skipped": found.skipped}
    return finish(arguments, settings, model, outcome, data)


def validate_own(model, frames: list[OwnFrame], pixel_mm: float) -> dict[str, float]:
    """Mean Dice and clDice of the frames that are not trained on; ``score`` is the mean of both."""
    from licag3d.models.segmentor import predict
    from licag3d.train.scores import mask_scores

    rows = []
    for frame in frames:
        found = predict(model, frame.image.astype(np.float32) / 255, frame.valid, pixel_mm)
        rows.append(mask_scores(found.vessel > 0.5, frame.mask))
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("dice", "cldice")}
    return mean | {"score": 0.5 * (mean["dice"] + mean["cldice"])}
