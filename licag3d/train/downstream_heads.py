# SPDX-License-Identifier: Apache-2.0
"""The small heads of the downstream tasks, their losses and scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.data.crops import vary_display
from licag3d.models.vasomim import TILES, from_tiles, to_tiles
from licag3d.models.vessel_masking import segmentation_loss
from licag3d.models.vit import Encoder, EncoderConfig, patchify
from licag3d.train.downstream_data import SEGMENTS, LabelledFrames

LEAST_VESSEL = 0.06


class TokenModel(nn.Module):
    """An encoder with a head on its tokens; ``(n, 1, k side, k side)`` to whatever the head makes of them.

    The encoder sees tiles of the size of its training; the head sees the tokens of all of them side by side.
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        config = self.encoder.config
        count = images.shape[-1] // config.image_px
        frozen = not next(self.encoder.parameters()).requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            middle, last = self.encoder.levels(to_tiles(images, count), 2)
        tokens = torch.cat([middle, last], -1).transpose(1, 2)
        maps = from_tiles(tokens.reshape(len(tokens), -1, config.grid, config.grid), count)
        return self.head(maps, images)


class SegmentationHead(nn.Module):
    """Two layers per patch to its pixels, then two thin convolutions with the image: logits at full size."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        p = config.patch_px
        self.patch_px = p
        self.first, self.second = nn.Conv2d(2 * config.width, 192, 1), nn.Conv2d(192, 4 * p * p, 1)
        self.mix, self.out = nn.Conv2d(5, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        nn.init.constant_(self.out.bias, -2.0)  # vessels are few

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(self.second(F.gelu(self.first(maps))), self.patch_px)
        return self.out(F.relu(self.mix(torch.cat([pixels, images.to(pixels.dtype) - 0.5], 1))))


class PatchHead(nn.Module):
    """Per patch, from its 3 x 3 neighbourhood, its place and the mean of the image: ``outputs`` logits."""

    def __init__(self, config: EncoderConfig, outputs: int) -> None:
        super().__init__()
        self.near, self.whole = nn.Conv2d(2 * config.width + 2, 128, 3, padding=1), nn.Linear(2 * config.width, 128)
        self.far = nn.Conv2d(128, 128, 3, padding=3, dilation=3)
        self.out = nn.Conv2d(128, outputs, 1)

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        n, _, rows, cols = maps.shape
        whole = self.whole(maps.mean((2, 3)))[:, :, None, None]
        at = [torch.linspace(-1, 1, k, device=maps.device, dtype=maps.dtype) for k in (rows, cols)]
        place = torch.stack([at[0][:, None].expand(rows, cols), at[1][None].expand(rows, cols)])
        x = F.gelu(self.near(torch.cat([maps, place.expand(n, -1, -1, -1)], 1)) + whole)
        return self.out(x + F.gelu(self.far(x)))


HEADS = {
    "segmentation": SegmentationHead,
    "labelling": lambda config: PatchHead(config, len(SEGMENTS)),
    "stenosis": lambda config: PatchHead(config, 1),
}


def _crop_places(frames: LabelledFrames, side: int, rng: np.random.Generator, size: int):
    """Random frames and corners; lesions, where there are any, are inside half of the crops."""
    whole = frames.images.shape[-1]
    for _ in range(size):
        number = int(rng.integers(len(frames)))
        top, left = (int(x) for x in rng.integers(0, whole - side + 1, 2))
        lesions = frames.lesions[number]
        if len(lesions) and rng.random() < 0.7:
            col, row = lesions[int(rng.integers(len(lesions)))]
            left, top = (int(np.clip(x - rng.uniform(0.2, 0.8) * side, 0, whole - side)) for x in (col, row))
        yield number, top, left


def _segmentation_batch(frames: LabelledFrames, config: EncoderConfig, rng: np.random.Generator, size: int):
    side, images, masks = config.image_px, [], []
    for number, top, left in _crop_places(frames, side, rng, size):
        part = np.s_[number, top : top + side, left : left + side]
        image, mask = torch.from_numpy(frames.images[part]), torch.from_numpy(frames.masks[part]).float()
        if rng.random() < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        images.append(vary_display(image, rng))
        masks.append(mask)
    return torch.stack(images)[:, None], torch.stack(masks)[:, None]


def _segmentation_loss(model: TokenModel, batch) -> Tensor:
    return segmentation_loss(model(batch[0]), batch[1])


def _apply(model: TokenModel, images: np.ndarray) -> np.ndarray:
    """Output maps ``(n, c, h, w)`` for whole frames, a few at a time."""
    out = []
    for start in range(0, len(images), 8):
        part = torch.from_numpy(images[start : start + 8])[:, None]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out.append(model(part).float())
    return torch.cat(out).numpy()


def _segmentation_scores(model: TokenModel, frames: LabelledFrames) -> dict[str, list[float]]:
    found = _apply(model, frames.images)[:, 0] > 0
    pairs = list(zip(found, frames.masks, strict=True))
    return {"dice": [dice(a, b) for a, b in pairs], "cldice": [centreline_dice(a, b) for a, b in pairs]}


def dice(found: np.ndarray, true: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty."""
    total = int(found.sum()) + int(true.sum())
    return 1.0 if total == 0 else 2.0 * int((found & true).sum()) / total


def centreline_dice(found: np.ndarray, true: np.ndarray) -> float:
    """clDice (Shit et al., CVPR 2021): harmonic mean of the share of each skeleton inside the other mask."""
    from skimage.morphology import skeletonize

    if not found.any() or not true.any():
        return float(found.any() == true.any())
    a, b = skeletonize(found), skeletonize(true)
    precision, recall = (a & true).sum() / max(a.sum(), 1), (b & found).sum() / max(b.sum(), 1)
    return float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0


def patch_segments(segments: np.ndarray, patch_px: int) -> np.ndarray:
    """Most frequent segment of each patch ``(n, patches)`` minus one; -1 where less than 6 % is vessel."""
    cells = patchify(torch.from_numpy(segments)[:, None].float(), patch_px).long()
    counts = F.one_hot(cells, len(SEGMENTS) + 1).sum(-2)[..., 1:]
    enough = counts.sum(-1) >= LEAST_VESSEL * cells.shape[-1]
    return torch.where(enough, counts.argmax(-1), -1).numpy()


def _labelling_batch(frames: LabelledFrames, config: EncoderConfig, rng: np.random.Generator, size: int):
    # Whole frames: which segment a vessel is shows only in the tree. No flips: left is left. A frame is nine crops.
    numbers = rng.integers(0, len(frames), max(1, size // TILES**2))
    images = torch.stack([vary_display(image, rng) for image in torch.from_numpy(frames.images[numbers])])
    return images[:, None], torch.from_numpy(patch_segments(frames.segments[numbers], config.patch_px))


def _labelling_loss(model: TokenModel, batch) -> Tensor:
    logits = model(batch[0]).float().flatten(2).transpose(1, 2).reshape(-1, len(SEGMENTS))
    return F.cross_entropy(logits, batch[1].reshape(-1), ignore_index=-1)


def _labelling_scores(model: TokenModel, frames: LabelledFrames) -> dict[str, list[float]]:
    """Share of the vessel patches of each frame with the right name."""
    found = _apply(model, frames.images).argmax(1).reshape(len(frames), -1)
    true = patch_segments(frames.segments, model.encoder.config.patch_px)
    vessel = true >= 0
    return {"accuracy": [float((f == t)[v].mean()) if v.any() else 1.0
                         for f, t, v in zip(found, true, vessel, strict=True)]}  # fmt: skip


def lesion_map(lesions: np.ndarray, rows: int, patch_px: int) -> np.ndarray:
    """Patches ``(rows, rows)``: 1 where a lesion lies, -1 (ignored) around it, 0 elsewhere; ``lesions`` col, row px."""
    out = np.zeros((rows, rows), np.float32)
    cells = [(int(row // patch_px), int(col // patch_px)) for col, row in lesions]
    cells = [(r, c) for r, c in cells if 0 <= r < rows and 0 <= c < rows]
    for r, c in cells:
        out[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2] = -1
    for r, c in cells:
        out[r, c] = 1
    return out


def _stenosis_batch(frames: LabelledFrames, config: EncoderConfig, rng: np.random.Generator, size: int):
    side, images, targets = config.image_px, [], []
    for number, top, left in _crop_places(frames, side, rng, size):
        image = torch.from_numpy(frames.images[number, top : top + side, left : left + side])
        target = torch.from_numpy(lesion_map(frames.lesions[number] - (left, top), config.grid, config.patch_px))
        if rng.random() < 0.5:
            image, target = image.flip(-1), target.flip(-1)
        images.append(vary_display(image, rng))
        targets.append(target)
    return torch.stack(images)[:, None], torch.stack(targets)[:, None]


def _stenosis_loss(model: TokenModel, batch) -> Tensor:
    logits, target = model(batch[0]).float(), batch[1]
    # One patch in a few hundred is a lesion.
    weight = torch.where(target > 0, 30.0, (target == 0).float())
    return F.binary_cross_entropy_with_logits(logits, target.clamp_min(0), weight=weight)


def _stenosis_scores(model: TokenModel, frames: LabelledFrames, reach: int = 1, guesses: int = 3) -> dict[str, list]:
    """Per frame the highest logit (``peak``), whether it is diseased, and whether one of the three highest separate
    patches of a diseased frame lies within one patch of a lesion (``hit``, NaN for healthy frames)."""
    maps, p = _apply(model, frames.images)[:, 0], model.encoder.config.patch_px
    peaks, hits, diseased = [], [], []
    for values, lesions in zip(maps, frames.lesions, strict=True):
        peaks.append(float(values.max()))
        diseased.append(float(len(lesions) > 0))
        left, hit = values.copy(), 0.0
        for _ in range(guesses):
            r, c = np.unravel_index(int(left.argmax()), left.shape)
            hit = max(hit, float(any(max(abs(row // p - r), abs(col // p - c)) <= reach for col, row in lesions)))
            left[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2] = -np.inf
        hits.append(hit if len(lesions) else float("nan"))
    return {"peak": peaks, "diseased": diseased, "hit": hits}


#: Per task: batch from labelled frames, loss, scores.
RECIPES = {
    "segmentation": (_segmentation_batch, _segmentation_loss, _segmentation_scores),
    "labelling": (_labelling_batch, _labelling_loss, _labelling_scores),
    "stenosis": (_stenosis_batch, _stenosis_loss, _stenosis_scores),
}
