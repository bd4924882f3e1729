# SPDX-License-Identifier: Apache-2.0
"""The small heads of the downstream tasks, their losses and scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.data.crops import vary_display
from licag3d.models.vasomim import TILES, from_tiles, to_tiles
from licag3d.models.vessel_masking import segmentation_loss
from licag3d.models.vit import Encoder, EncoderConfig, patchify
from licag3d.train.downstream_data import SEGMENTS, LabelledFrames

#: A patch has a segment when this share of its pixels is vessel.
LEAST_VESSEL = 0.06
#: One patch in a few hundred is a lesion: it counts this much.
LESION_WEIGHT = 30.0
#: Findings per frame that count in the detection of stenoses.
FINDINGS = 8
#: A stenosis is found within this share of the side of the frame: 12 of 288 pixels, about 4 mm.
REACH = 1 / 24


class TokenModel(nn.Module):
    """An encoder with a head on its tokens; ``(n, 1, k side, k side)`` to whatever the head makes of them.

    The encoder sees tiles of the size of its training; the head sees the tokens of all of them side by side, each
    channel brought to mean 0 and variance 1 over some training frames (:meth:`settle`; He et al., CVPR 2022, appendix
    A.1, do so over the batch, but a lesion in a batch of few changes its variance).
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.register_buffer("middle", torch.zeros(1, 2 * encoder.config.width, 1, 1))
        self.register_buffer("spread", torch.ones_like(self.middle))

    def settle(self, frames: LabelledFrames, count: int = 16) -> None:
        """Take mean and variance of the channels from at most ``count`` frames."""
        some = frames.take(range(min(count, len(frames))))
        tokens = with_tokens(some, self.encoder).tokens if some.tokens is None else some.tokens
        self.middle.copy_(tokens.float().mean((0, 2, 3), keepdim=True))
        self.spread.copy_(tokens.float().std((0, 2, 3), keepdim=True).clamp_min(1e-3))

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """``tokens`` of the images, where they are known already (:func:`token_maps`)."""
        maps = token_maps(self.encoder, images) if tokens is None else tokens
        return self.head(self.standard(maps), images)

    def standard(self, maps: Tensor) -> Tensor:
        """The maps as a head gets them."""
        return ((maps.float() - self.middle) / self.spread).clamp(-5, 5)


def token_maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Tokens of half and full depth side by side ``(n, 2 width, rows / patch, cols / patch)``; sides are multiples of
    the encoder's own."""
    config = encoder.config
    count = images.shape[-1] // config.image_px
    tokens = torch.cat(encoder.levels(to_tiles(images, count), 2), -1).transpose(1, 2)
    return from_tiles(tokens.reshape(len(tokens), -1, config.grid, config.grid), count)


def with_tokens(frames: LabelledFrames, encoder: Encoder) -> LabelledFrames:
    """The frames with the tokens of an encoder that stays as it is: each is then looked at once, not once per step."""
    parts = []
    for start in range(0, len(frames), 8):
        part = torch.from_numpy(frames.images[start : start + 8])[:, None]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            parts.append(token_maps(encoder, part).to(torch.bfloat16))
    return replace(frames, tokens=torch.cat(parts))


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
    """Per patch, from its 9 x 9 neighbourhood: ``outputs`` logits. With ``whole`` also from its place in the image and
    the mean over all of it, for tasks that are trained on whole frames."""

    def __init__(self, config: EncoderConfig, outputs: int, *, whole: bool, width: int = 96) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2 * config.width + 2 * whole, width, 1)
        self.whole = nn.Linear(2 * config.width, width) if whole else None
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.far = nn.Conv2d(width, width, 3, padding=3, dilation=3)
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        n, _, rows, cols = maps.shape
        if self.whole is None:
            x = self.enter(maps)
        else:
            at = [torch.linspace(-1, 1, k, device=maps.device, dtype=maps.dtype) for k in (rows, cols)]
            place = torch.stack([at[0][:, None].expand(rows, cols), at[1][None].expand(rows, cols)])
            x = self.enter(torch.cat([maps, place.expand(n, -1, -1, -1)], 1))
            x = x + self.whole(maps.mean((2, 3)))[:, :, None, None]
        x = F.gelu(x)
        x = x + F.gelu(self.near(x))
        return self.out(x + F.gelu(self.far(x)))


HEADS = {
    "segmentation": SegmentationHead,
    "labelling": lambda config: PatchHead(config, len(SEGMENTS), whole=True),
    "stenosis": lambda config: PatchHead(config, 1, whole=False),
}
#: Tiles per side of the frames of a task. Names need the whole tree at once rather than the finest vessels.
FRAME_TILES = {"segmentation": TILES, "labelling": 2, "stenosis": TILES}


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


def _crops(frames: LabelledFrames, config: EncoderConfig, rng: np.random.Generator, size: int, target_of):
    """Crops of the size of training ``(size, 1, side, side)`` and their targets, mirrored at random:
    ``target_of(number, top, left)``, the last axis of which runs with the columns."""
    side, images, targets = config.image_px, [], []
    for number, top, left in _crop_places(frames, side, rng, size):
        image = torch.from_numpy(frames.images[number, top : top + side, left : left + side])
        target = torch.from_numpy(target_of(number, top, left)).float()
        if rng.random() < 0.5:
            image, target = image.flip(-1), target.flip(-1)
        images.append(vary_display(image, rng))
        targets.append(target)
    return torch.stack(images)[:, None], torch.stack(targets)[:, None]


def _segmentation_batch(frames: LabelledFrames, config: EncoderConfig, rng: np.random.Generator, size: int):
    side = config.image_px
    return _crops(frames, config, rng, size, lambda n, top, left: frames.masks[n, top : top + side, left : left + side])


def _segmentation_loss(model: TokenModel, batch) -> Tensor:
    return segmentation_loss(model(batch[0]), batch[1])


def _apply(model: TokenModel, frames: LabelledFrames) -> np.ndarray:
    """Output maps ``(n, c, h, w)`` for whole frames, a few at a time."""
    out = []
    for start in range(0, len(frames), 8):
        part = slice(start, start + 8)
        tokens = None if frames.tokens is None else frames.tokens[part]
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out.append(model(torch.from_numpy(frames.images[part])[:, None], tokens).float())
    return torch.cat(out).numpy()


def _segmentation_scores(model: TokenModel, frames: LabelledFrames) -> dict[str, list]:
    found = _apply(model, frames)[:, 0] > 0
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
    # Whole frames: which segment a vessel is shows only in the tree. No flips: left is left. A frame is several crops.
    crops = (frames.images.shape[-1] // config.image_px) ** 2
    numbers = rng.integers(0, len(frames), max(1, size // crops))
    images = torch.stack([vary_display(image, rng) for image in torch.from_numpy(frames.images[numbers])])
    return images[:, None], torch.from_numpy(patch_segments(frames.segments[numbers], config.patch_px))


def _labelling_loss(model: TokenModel, batch) -> Tensor:
    logits = model(batch[0]).float().flatten(2).transpose(1, 2).reshape(-1, len(SEGMENTS))
    return F.cross_entropy(logits, batch[1].reshape(-1), ignore_index=-1)


def _labelling_scores(model: TokenModel, frames: LabelledFrames) -> dict[str, list]:
    found = _apply(model, frames).argmax(1).reshape(len(frames), -1)
    return name_scores(found, patch_segments(frames.segments, model.encoder.config.patch_px))


def name_scores(found: np.ndarray, true: np.ndarray) -> dict[str, list]:
    """Per frame the share of vessel patches with the right name, and per segment the patches named rightly (``right``),
    named so (``named``) and being so (``being``), from which F1 is made over all frames.

    Args:
        found, true: index into SEGMENTS of each patch ``(n, patches)``; patches with ``true`` -1 do not count.
    """
    out: dict[str, list] = {"accuracy": [], "right": [], "named": [], "being": []}
    for f, t in zip(found, true, strict=True):
        f, t = f[t >= 0], t[t >= 0]
        out["accuracy"].append(float((f == t).mean()) if len(t) else 1.0)
        for key, kept in (("right", f[f == t]), ("named", f), ("being", t)):
            out[key].append(np.bincount(kept, minlength=len(SEGMENTS)).tolist())
    return out


def names_by_place(training: LabelledFrames, test: LabelledFrames, patch_px: int, sigma: float = 1.5) -> np.ndarray:
    """The most frequent name of vessel patches near each place in the training frames ``(n, patches)``: what one knows
    of segments without looking at the picture."""
    from scipy import ndimage

    known = patch_segments(training.segments, patch_px)
    rows = training.images.shape[-1] // patch_px
    counts = np.stack([(known == k).sum(0).reshape(rows, rows) for k in range(len(SEGMENTS))]).astype(float)
    return np.tile(ndimage.gaussian_filter(counts, (0, sigma, sigma)).argmax(0).ravel(), (len(test), 1))


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
    def target_of(number: int, top: int, left: int) -> np.ndarray:
        return lesion_map(frames.lesions[number] - (left, top), config.grid, config.patch_px)

    return _crops(frames, config, rng, size, target_of)


def _stenosis_loss(model: TokenModel, batch) -> Tensor:
    logits, target = model(batch[0]).float(), batch[1]
    weight = torch.where(target > 0, LESION_WEIGHT, (target == 0).float())
    return F.binary_cross_entropy_with_logits(logits, target.clamp_min(0), weight=weight)


def _stenosis_scores(model: TokenModel, frames: LabelledFrames) -> dict[str, list]:
    maps, p = _apply(model, frames)[:, 0], model.encoder.config.patch_px
    return detection_scores([peaks_of(values, p) for values in maps], frames)


def peaks_of(values: np.ndarray, patch_px: int, count: int = FINDINGS) -> list[tuple[float, float, float]]:
    """The ``count`` highest patches, none beside another, highest first: score, col and row of the centre in pixels."""
    left, out = values.astype(float), []
    for _ in range(count):
        r, c = np.unravel_index(int(left.argmax()), left.shape)
        if not np.isfinite(left[r, c]):
            break
        out.append((float(left[r, c]), (c + 0.5) * patch_px, (r + 0.5) * patch_px))
        left[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2] = -np.inf
    return out


def detection_scores(findings: list[list[tuple[float, float, float]]], frames: LabelledFrames) -> dict[str, list]:
    """Per frame its findings as pairs of score and rightness, the highest score (``peak``) and how many lesions it has.

    A finding is right when it lies within :data:`REACH` of the side from the narrowest place of a lesion that no higher
    finding of the frame has taken already; it takes the nearest such lesion.
    """
    reach = REACH * frames.images.shape[-1]
    out: dict[str, list] = {"findings": [], "peak": [], "lesions": []}
    for found, lesions in zip(findings, frames.lesions, strict=True):
        free, pairs = np.array(lesions, float).reshape(-1, 2), []
        for score, col, row in sorted(found, reverse=True):
            away = np.hypot(*(free - (col, row)).T)
            right = bool(len(away)) and bool(away.min() <= reach)
            if right:
                free = np.delete(free, away.argmin(), axis=0)
            pairs.append([score, int(right)])
        out["findings"].append(pairs)
        out["peak"].append(pairs[0][0] if pairs else float("-inf"))
        out["lesions"].append(len(lesions))
    return out


def chance_scores(task: str, training: LabelledFrames, test: LabelledFrames, patch_px: int, seed: int) -> dict:
    """What one scores without looking, by name: the floor beside the encoders.

    Names: drawn as often as they are in the training frames (``chance``), or the most frequent one of the place
    (``place``). Stenoses: :data:`FINDINGS` places anywhere on the true vessels, in random order (``chance``); that
    knows where the vessels are, so it is more than a guess over the whole frame.
    """
    rng = np.random.default_rng([seed, 75])
    if task == "labelling":
        known = patch_segments(training.segments, patch_px)
        true = patch_segments(test.segments, patch_px)
        drawn = rng.choice(known[known >= 0], true.shape)
        by_place = names_by_place(training, test, patch_px)
        return {"chance": name_scores(drawn, true), "place": name_scores(by_place, true)}
    if task == "stenosis":
        places = []
        for mask in test.masks:
            at = np.argwhere(mask)
            at = at[rng.permutation(len(at))[:FINDINGS]]
            places.append([(float(rng.random()), float(col), float(row)) for row, col in at])
        return {"chance": detection_scores(places, test)}
    return {}


#: Per task: batch from labelled frames, loss, scores.
RECIPES = {
    "segmentation": (_segmentation_batch, _segmentation_loss, _segmentation_scores),
    "labelling": (_labelling_batch, _labelling_loss, _labelling_scores),
    "stenosis": (_stenosis_batch, _stenosis_loss, _stenosis_scores),
}
