# SPDX-License-Identifier: Apache-2.0
"""One training step of the tree encoder: every loss, on every set of views of the batch (each alone, and all)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from licag3d.losses.tuple import tuple_loss
from licag3d.losses.vessel import soft_cldice_loss, soft_dice_loss
from licag3d.losses.volume import point_dice_loss, wall_ramp
from licag3d.models.branch_table import ARTERIES
from licag3d.models.encode_views import frozen_tokens
from licag3d.models.encoder import Codes, TreeFromViews, ViewFeatures
from licag3d.models.generator_config import INSIDE_MU
from licag3d.models.lift import with_residual
from licag3d.models.named_update import project
from licag3d.train.encoder_settings import EncoderStepSettings
from licag3d.train.generator_vectors import as_logits, vector_loss


class EncoderTrainee(nn.Module):
    """The encoder; the frozen generator and angiogram encoder stand beside it and are not saved with it."""

    def __init__(self, encoder: TreeFromViews, generator, step: EncoderStepSettings):
        super().__init__()
        self.encoder, self.step = encoder, step
        object.__setattr__(self, "generator", generator.eval().requires_grad_(False))
        #: What the parts that are not in every step gave last, so that curves show them at every step.
        self.last: dict[str, torch.Tensor] = {}

    def angiogram_encoder(self):
        """The embedded one, loaded when it is first needed."""
        if getattr(self, "_angiogram", None) is None:
            from licag3d.models.vasomim import load_encoder

            object.__setattr__(self, "_angiogram", load_encoder())
        return self._angiogram


def encoder_loss(model: EncoderTrainee, batch: dict, step: int) -> tuple[torch.Tensor, dict]:
    """The sum of the losses, and the numbers to record. ``batch``: of ``licag3d.train.encoder_data.ViewMaker``."""
    s, net = model.step, model.encoder
    v = batch["windows"].shape[1]
    windows = batch["windows"]
    seen = net.see(windows, batch["cameras"], frozen_tokens(net, windows))
    numbers: dict[str, torch.Tensor] = {}
    with torch.autocast(windows.device.type, enabled=False):
        total = s.dense * _dense_part(net, seen.maps.float(), batch, numbers)
    sets = _sets(v)
    codes = {}
    for name, views in sets.items():
        # The second view alone is only asked whose it is.
        codes[name] = net.read(seen.only(views), batch["artery"], correct=name != "two")
    with torch.autocast(windows.device.type, enabled=False):
        for name, code in codes.items():
            total = total + _code_part(model, code, sets[name], batch, numbers, name) / len(sets)
        total = total + s.tuple * _tuple_part(model, codes, batch, numbers)
        if s.projection:
            total = total + _picture_part(model, codes["all"], batch, step, numbers)
        if s.field and step % s.field_every == 0:
            total = total + s.field * _field_part(model, seen, codes["all"], batch, numbers)
    model.last |= {key: numbers[key] for key in ("vessel", "perceptual", "field") if key in numbers}
    return total, model.last | numbers


def _sets(views: int) -> dict[str, list[int]]:
    """Which views are read together: the first alone, the second alone, all."""
    return {"one": [0], "two": [1], "all": list(range(views))} if views > 1 else {"all": [0]}


def _code_part(
    model: EncoderTrainee, code: Codes, views: list[int], batch: dict, numbers: dict, name: str
) -> torch.Tensor:
    s, stage, net = model.step, model.generator.structure, model.encoder
    total = 0.0
    errors, spreads = [], []
    first = 0
    for index, artery in enumerate(ARTERIES):
        truth, known = batch[f"{artery}.vector"], batch[f"{artery}.known"]
        rows = slice(first, first + len(truth))
        first += len(truth)
        if not len(truth):
            continue
        share = len(truth) / len(batch["artery"])
        written = stage.vectors(code.w_plus[rows, : stage.groups], artery)
        loss, facts = vector_loss(stage, artery, written, truth, known)
        if code.guess is not code.w_plus:
            guessed = stage.vectors(code.guess[rows, : stage.groups], artery)
            first_loss, _ = vector_loss(stage, artery, guessed, truth, known)
            loss = loss + s.guess * first_loss
        target = batch[f"{artery}.w"]
        off = (code.w_plus[rows, : stage.groups] - target[:, None] - batch[f"{artery}.delta"]) / net.w_spread[index]
        rest = (code.w_plus[rows, stage.groups] - target) / net.w_spread[index]
        in_w = F.smooth_l1_loss(off, torch.zeros_like(off)) + F.smooth_l1_loss(rest, torch.zeros_like(rest))
        total = total + share * (s.vector * loss + s.code * in_w)
        mean_mm = course_errors_mm(stage, artery, written, truth)
        errors.append(mean_mm)
        spreads.append(code.log_spread[rows, 0])
        if name in ("one", "all"):
            numbers[f"{artery}_{name}_mm"] = mean_mm.mean()
            if name == "all":
                with torch.no_grad():
                    by_guess = stage.vectors(code.guess[rows, : stage.groups], artery)
                    numbers[f"{artery}_guess_mm"] = course_errors_mm(stage, artery, by_guess, truth).mean()
                numbers |= {f"{artery}_{key}": value for key, value in facts.items()}
                numbers[f"{artery}_w_plus"] = in_w.detach()
    latent = (code.delta / net.w_spread[batch["artery"]][:, None]).square().mean()
    error, spread = torch.cat(errors), torch.cat(spreads)
    # Laplace likelihood of the error with the spread that the encoder expects.
    expected = (error / (4 * spread.exp()) + spread).mean()
    place = (code.place_mm - batch["place_mm"][:, views]).norm(dim=2).mean()
    scale_off = code.log_scale - batch["log_scale"][:, views]
    scale = scale_off.abs().mean()
    mean_off = scale_off.mean(1).abs().detach()
    scale_spread = (mean_off / (0.03 * code.log_spread[:, 1].exp()) + code.log_spread[:, 1]).mean()
    label = F.cross_entropy(code.label[:, :2], batch["artery"]) + 0.3 * F.binary_cross_entropy_with_logits(
        code.label[:, 2], batch["co_dominant"]
    )
    if name in ("one", "all"):
        numbers |= {
            f"{name}_place_mm": place.detach(),
            f"{name}_label": label.detach(),
            f"{name}_latent": latent.detach(),
            f"{name}_scale": scale.detach(),
        }
    return (
        total
        + s.latent * latent
        + s.spread * (expected + scale_spread)
        + s.place * (place + 20 * scale)
        + s.label * label
    )


@torch.no_grad()
def course_errors_mm(stage, artery: str, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean distance of corresponding points of each patient's branches, from the trunk to the tips, ``(B,)``."""
    goal = stage.courses(as_logits(stage.tables[artery], truth), artery)
    ours = stage.courses(found, artery)
    there = truth[:, list(stage.tables[artery].offsets[:-1])]
    off = [(points - right).norm(dim=2).sum(1) for (points, _, _), (right, _, _) in zip(ours, goal, strict=True)]
    count = there.new_tensor([points.shape[1] for points, _, _ in goal])
    return (torch.stack(off, 1) * there).sum(1) / (there * count).sum(1)


def _dense_part(net: TreeFromViews, maps: torch.Tensor, batch: dict, numbers: dict) -> torch.Tensor:
    """Branch and share of it in the cells that show a vessel; "none" in those that evidence takes for one wrongly."""
    name, share = batch["name"].flatten(0, 1), batch["share"].flatten(0, 1)
    views = batch["name"].shape[1]
    cells = name.shape[-1]
    there = name >= 0
    near = F.max_pool2d(there.float()[:, None], 5, 1, 2)[:, 0] > 0
    chance = F.max_pool2d(batch["windows"].flatten(0, 1)[:, :1], batch["windows"].shape[-1] // cells)[:, 0]
    stray = (chance > 0.3) & ~near
    features = maps.flatten(0, 1).permute(0, 2, 3, 1)
    artery = batch["artery"].repeat_interleave(views)[:, None, None].expand_as(name)
    right, left = net.slots
    chosen = there | stray
    logits, at = net.names(features[chosen])
    artery = artery[chosen]
    target = torch.where(there, name, torch.zeros_like(name))[chosen] + artery * right
    target = torch.where(there[chosen], target, torch.full_like(target, right + left))
    # Branches of the other artery are not asked about: which artery it is, the label says.
    barred = torch.zeros(2, right + left + 1, dtype=torch.bool, device=logits.device)
    barred[0, right : right + left] = True
    barred[1, :right] = True
    logits = logits.masked_fill(barred[artery], -1e4)
    cross = F.cross_entropy(logits, target)
    on = there[chosen]
    along = (torch.sigmoid(at[on]) - share[there]).abs().mean() if bool(on.any()) else cross * 0
    with torch.no_grad():
        numbers["named_right"] = (logits.argmax(1) == target)[on].float().mean()
        numbers |= {"dense": cross.detach(), "share": along.detach()}
    return cross + 3 * along


def _tuple_part(model: EncoderTrainee, codes: dict[str, Codes], batch: dict, numbers: dict) -> torch.Tensor:
    if "two" not in codes:
        return codes["all"].tuple_code.sum() * 0.0
    twice = batch["number"][:, None] == batch["number"][None]
    loss = tuple_loss(
        codes["one"].tuple_code, codes["two"].tuple_code, batch["artery"], form=model.step.tuple_form, other=twice
    )
    numbers["tuple"] = loss.detach()
    return loss


def splat(points: torch.Tensor, mass: torch.Tensor, pixels: int) -> torch.Tensor:
    """Pictures ``(N, pixels, pixels)`` of points ``(N, P, 2)`` (x, y in px, centres at half numbers) with ``mass``
    ``(N, P)``: bilinear, so that positions have a gradient.
    """
    n = len(points)
    at = points - 0.5
    low = at.detach().floor()
    part = at - low
    low = low.long()
    out = points.new_zeros(n * pixels * pixels)
    item = torch.arange(n, device=points.device)[:, None] * (pixels * pixels)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            share = (part[..., 0] if dx else 1 - part[..., 0]) * (part[..., 1] if dy else 1 - part[..., 1])
            inside = (x >= 0) & (x < pixels) & (y >= 0) & (y < pixels)
            where = item + y.clamp(0, pixels - 1) * pixels + x.clamp(0, pixels - 1)
            out = out.index_add(0, where.flatten(), (share * mass * inside).flatten())
    return out.view(n, pixels, pixels)


def line_pictures(
    stage, artery: str, vectors: torch.Tensor, cameras: torch.Tensor, place_mm: torch.Tensor, log_scale: torch.Tensor,
    window_mm: float, pixels: int,
) -> torch.Tensor:  # fmt: skip
    """Line integrals ``(B, V, pixels, pixels)`` of written trees in their windows, at low resolution and slightly soft.

    Each stretch of a vessel adds its volume over the area of a pixel, times the attenuation of the lumen.
    """
    b, v = cameras.shape[:2]
    points, mass = [], []
    for course, radius, gate in stage.courses(vectors, artery):
        length = (course[:, 1:] - course[:, :-1]).norm(dim=2)
        points.append(0.5 * (course[:, 1:] + course[:, :-1]))
        mass.append(gate * torch.pi * (0.5 * (radius[:, 1:] + radius[:, :-1])).square() * length)
    points, mass = torch.cat(points, 1), torch.cat(mass, 1)
    step = window_mm / pixels
    at = project(points, cameras, place_mm, log_scale)[0] / step + 0.5 * pixels
    picture = splat(at.flatten(0, 1), mass[:, None].expand(b, v, -1).flatten(0, 1) / step**2, pixels)
    kernel = picture.new_tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    return (INSIDE_MU * F.conv2d(picture[:, None], kernel, padding=1)[:, 0]).unflatten(0, (b, v))


def _picture_part(model: EncoderTrainee, code: Codes, batch: dict, step: int, numbers: dict) -> torch.Tensor:
    """Projection, vessel and perceptual losses of the written tree against the clean one, in every view."""
    s, stage, net = model.step, model.generator.structure, model.encoder
    ours, theirs, first = [], [], 0
    for artery in ARTERIES:
        truth = batch[f"{artery}.vector"]
        rows = slice(first, first + len(truth))
        first += len(truth)
        if not len(truth):
            continue
        written = stage.vectors(code.w_plus[rows, : stage.groups], artery)
        seen = (batch["cameras"][rows].float(), batch["place_mm"][rows], batch["log_scale"][rows])
        like = (net.config.window_mm, s.map_px)
        own = (batch["cameras"][rows].float(), code.place_mm[rows], code.log_scale[rows])
        ours.append(line_pictures(stage, artery, written, *own, *like))
        with torch.no_grad():
            theirs.append(line_pictures(stage, artery, as_logits(stage.tables[artery], truth), *seen, *like))
    ours, theirs = torch.cat(ours).flatten(0, 1)[:, None], torch.cat(theirs).flatten(0, 1)[:, None]
    # At three scales: far apart, thin lines have no overlap and no gradient.
    projection = 0.0
    for scale in (1, 2, 4):
        a, b = (F.avg_pool2d(x, scale) if scale > 1 else x for x in (ours, theirs))
        projection = projection + (a - b).abs().sum() / b.sum().clamp_min(1e-3) / 3
    numbers["projection"] = projection.detach()
    total = s.projection * projection
    if s.vessel and step % s.vessel_every == 0:
        a, b = (1 - torch.exp(-20 * x) for x in (ours, theirs))
        vessel = soft_cldice_loss(a, b, iterations=2) + soft_dice_loss(a, b)
        numbers["vessel"] = vessel.detach()
        total = total + s.vessel * vessel
    if s.perceptual and step % s.perceptual_every == 0:
        from licag3d.losses.perceptual import perceptual_distance

        a, b = (0.6 * torch.exp(-5 * x) for x in (ours[:4], theirs[:4]))
        seen = perceptual_distance(model.angiogram_encoder(), a, b).mean()
        numbers["perceptual"] = seen.detach()
        total = total + s.perceptual * seen
    return total


def _field_part(model: EncoderTrainee, seen: ViewFeatures, code: Codes, batch: dict, numbers: dict) -> torch.Tensor:
    """The field of one written tree about the true vessels: one minus soft Dice at points."""
    g = model.generator
    stage = g.structure
    row = int(np.random.default_rng(int(batch["number"].sum())).integers(len(batch["artery"])))
    artery = ARTERIES[int(batch["artery"][row])]
    first = sum(len(batch[f"{a}.vector"]) for a in ARTERIES[: ARTERIES.index(artery)])
    truth = batch[f"{artery}.vector"][row - first : row - first + 1]
    courses = stage.courses(as_logits(stage.tables[artery], truth), artery)
    there = truth[0, list(stage.tables[artery].offsets[:-1])]
    axis = torch.cat([course[0] for k, (course, _, _) in enumerate(courses) if there[k] > 0.5])
    width = torch.cat([radius[0] for k, (_, radius, _) in enumerate(courses) if there[k] > 0.5])
    chosen = torch.randint(len(axis), (3000,), device=axis.device)
    points = axis[chosen] + torch.randn(3000, 3, device=axis.device) * (0.5 + width[chosen, None])
    distance = (torch.cdist(points, axis) - width).amin(1)
    planes = g.planes(code.w_plus[row : row + 1], batch["artery"][row : row + 1])
    residual = model.encoder.residual(seen, code, g.config.box_size_mm)
    if residual is not None:
        planes = with_residual(planes, residual[row : row + 1])
    mu = g.attenuation(planes, points)
    loss = point_dice_loss(mu / INSIDE_MU, wall_ramp(distance, 0.5)[None], torch.ones_like(mu))
    numbers["field"] = loss.detach()
    return loss
