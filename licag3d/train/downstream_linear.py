# SPDX-License-Identifier: Apache-2.0
"""Linear probes: what the tokens of an encoder that stays as it is say of a patch, by least squares in closed form.

Nothing is to be tuned and nothing is random but the choice of labels; a probe takes a second, which is why small
differences between encoders are looked for here first. The penalty is chosen on a fifth of the labelled frames.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from licag3d.models.vit import patchify
from licag3d.train.downstream_data import SEGMENTS, LabelledFrames
from licag3d.train.downstream_heads import LESION_WEIGHT, TokenModel, dice, lesion_map, patch_segments

#: Penalties tried, per labelled patch; inputs have variance 1.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
#: Every fifth labelled frame chooses the penalty.
HELD_OUT = 5


class LinearHead(nn.Module):
    """A linear map per patch, as a head of :class:`~licag3d.train.downstream_heads.TokenModel`.

    With ``whole`` a patch also knows its place (up to squares) and the mean of the last tokens of the image. Outputs of
    ``patch_px ** 2`` values per patch are laid out as pixels.
    """

    def __init__(self, outputs: int, *, whole: bool) -> None:
        super().__init__()
        self.outputs, self.whole = outputs, whole
        self.register_buffer("matrix", torch.zeros(0, 0))
        self.threshold = 0.0

    def inputs(self, maps: Tensor) -> Tensor:
        """Numbers that a patch is judged by ``(n, patches, numbers)``, a one among them."""
        n, channels, rows, cols = maps.shape
        parts = [maps.flatten(2).transpose(1, 2), torch.ones(n, rows * cols, 1)]
        if self.whole:
            y, x = (v.flatten() for v in torch.meshgrid(torch.linspace(-1.7, 1.7, rows),
                                                        torch.linspace(-1.7, 1.7, cols), indexing="ij"))  # fmt: skip
            place = torch.stack([x, y, x * y, x * x - 1, y * y - 1], -1)
            mean = 3 * maps[:, channels // 2 :].mean((2, 3))
            parts += [place.expand(n, -1, -1), mean[:, None].expand(-1, rows * cols, -1)]
        return torch.cat(parts, -1)

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        n, _, rows, cols = maps.shape
        with torch.autocast(maps.device.type, enabled=False):
            out = self.inputs(maps.float()) @ self.matrix
        out = out.transpose(1, 2).reshape(n, self.outputs, rows, cols) - self.threshold
        side = images.shape[-1] // cols
        return F.pixel_shuffle(out, side) if self.outputs == side * side else out


def probe(task: str, model: TokenModel, frames: LabelledFrames) -> TokenModel:
    """Fit ``model.head``, a :class:`LinearHead`, to labelled frames whose tokens are known."""
    head, count = model.head, model.head.outputs
    sums = [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    balance = _balance(task, frames, model.encoder.config.patch_px)
    for number in range(len(frames)):
        x = head.inputs(model.standard(frames.tokens[number : number + 1]))[0]
        y, weight = _wanted(task, frames, number, model.encoder.config.patch_px, count)
        weight = weight * balance[y.argmax(-1)] if task == "labelling" else weight
        used = weight > 0
        x, y, weight = x[used], y[used], weight[used, None]
        part = sums[number % HELD_OUT == HELD_OUT - 1 and len(frames) >= HELD_OUT]
        for k, term in enumerate((x.T @ (weight * x), x.T @ (weight * y), (weight * y * y).sum(), weight.sum())):
            part[k] = part[k] + term
    penalty = PENALTIES[1]
    if isinstance(sums[1][0], Tensor) and isinstance(sums[0][0], Tensor):
        gram, cross, *_ = sums[1]
        # |y - x m| squared on the held-out frames, up to what does not depend on the penalty.
        errors = []
        for tried in PENALTIES:
            m = _solve(*sums[0], tried)
            errors.append(float((m * (gram @ m)).sum() - 2 * (m * cross).sum()))
        penalty = PENALTIES[int(np.argmin(errors))]
    head.matrix = _solve(*(a + b for a, b in zip(*sums, strict=True)), penalty)
    if task == "segmentation":
        head.threshold = _threshold(model, frames)
    return model.eval()


def _solve(gram, cross, _, weight, penalty: float) -> Tensor:
    return torch.linalg.solve(gram + penalty * weight * torch.eye(len(gram)), cross)


def _balance(task: str, frames: LabelledFrames, patch_px: int) -> Tensor:
    """Weight of each name: one over how often it is there, so that rare ones count in the macro-F1."""
    if task != "labelling":
        return torch.ones(1)
    known = patch_segments(frames.segments, patch_px)
    often = np.bincount(known[known >= 0], minlength=len(SEGMENTS)).clip(1)
    return torch.from_numpy((often.sum() / often) ** 0.5).float()


def _wanted(task: str, frames: LabelledFrames, number: int, patch_px: int, outputs: int) -> tuple[Tensor, Tensor]:
    """What is to come out of each patch of a frame ``(patches, outputs)``, and how much it counts ``(patches,)``."""
    if task == "segmentation":
        pixels = patchify(torch.from_numpy(frames.masks[number])[None, None].float(), patch_px)[0]
        return pixels, torch.ones(len(pixels))
    if task == "labelling":
        names = torch.from_numpy(patch_segments(frames.segments[number : number + 1], patch_px)[0])
        return F.one_hot(names.clamp_min(0), outputs).float(), (names >= 0).float()
    rows = frames.images.shape[-1] // patch_px
    target = torch.from_numpy(lesion_map(frames.lesions[number], rows, patch_px)).flatten()
    return target.clamp_min(0)[:, None], torch.where(target > 0, LESION_WEIGHT, (target == 0).float())


def _threshold(model: TokenModel, frames: LabelledFrames, count: int = 24) -> float:
    """Where the outputs are cut: the best Dice on the labelled frames themselves."""
    some = frames.take(range(min(count, len(frames))))
    with torch.no_grad():
        values = model(torch.from_numpy(some.images)[:, None], some.tokens)[:, 0].numpy()
    tried = np.arange(0.1, 0.65, 0.05)
    return float(tried[np.argmax([dice(values > t, some.masks) for t in tried])])
