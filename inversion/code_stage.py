# SPDX-License-Identifier: Apache-2.0
"""Latent optimisation and tuning through the renderer: line integrals of the generator's own field against both views.

W first (code z), then W+ (deltas of the styles), with the gradients of ``render_triplane`` for codes, placement and
cameras; then, on request, a residual on the tri-planes with a locality penalty (what pivotal tuning does to weights,
Roich et al. 2022, done to the planes: nothing changes where no ray passes). Rays are drawn where the evidence or the
tree is; a fifth of them is held out, and the residual stops when these get worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from licag3d.geometry import Camera, Cameras, Rays
from licag3d.inversion.prior_fit import PriorFit
from licag3d.inversion.prior_tree import Codes, MovingCamera, moving_cameras, named_tree, rotation
from licag3d.models.generator import Generator
from licag3d.ops import render_triplane
from licag3d.structures import VesselEvidence


@dataclass(frozen=True)
class CodeSettings:
    """Effort and weights.

    Args:
        steps: of z, and of the deltas. residual_steps: of the tri-plane residual; 0 leaves it out.
        rays: per view. samples: per ray.
        rate: of the codes; camera_rate_mm of the offsets; residual_rate of the planes.
        data: weight of the unexplained share of the images against |z|^2 / 2. pull: of the distance of codes from where
            they began, per squared standard deviation. locality: of the squared residual.
    """

    steps: tuple[int, int] = (8, 12)
    residual_steps: int = 0
    rays: int = 1000
    samples: int = 160
    rate: float = 0.02
    camera_rate_mm: float = 0.03
    residual_rate: float = 0.02
    data: float = 200.0
    pull: float = 0.5
    locality: float = 0.02


@dataclass(frozen=True)
class CodeResult:
    """``fit`` with refined codes, tree and cameras; ``planes`` ``(3, C, R, R)`` with the residual; ``losses``: share of
    the images not explained per step, ``held_out`` the same of rays not learned from."""

    fit: PriorFit
    planes: torch.Tensor
    losses: tuple[float, ...]
    held_out: tuple[float, ...]


def refine_code(
    fit: PriorFit,
    evidence: Sequence[VesselEvidence],
    *,
    generator: Generator,
    settings: CodeSettings | None = None,
    seed: int = 0,
    move_cameras: bool = True,
    progress: Callable[[float, str], None] | None = None,
) -> CodeResult:
    """Refine codes and cameras of a fit against the line integrals of its views."""
    settings = settings or CodeSettings()
    codes = fit.codes.take([0])
    codes.view_shift_mm.zero_()
    codes.view_turn_deg.zero_()
    scene = _Scene(fit.cameras, evidence, fit, settings, seed)
    losses: list[float] = []
    held: list[float] = []
    home = codes.take([0])
    gains = None
    names = ("z", "delta", "center_mm", "view_shift_mm", "view_turn_deg")
    values = {name: getattr(codes, name).clone().requires_grad_() for name in names}
    rates = (settings.rate, 0.3 * settings.rate, 0.05, settings.camera_rate_mm, 0.01)
    optimizer = torch.optim.Adam([{"params": [values[n]], "lr": rate} for n, rate in zip(names, rates, strict=True)])
    total = sum(settings.steps)
    for step in range(total):
        values["delta"].requires_grad_(step >= settings.steps[0])
        for name in ("view_shift_mm", "view_turn_deg"):
            values[name].requires_grad_(move_cameras)
        now = replace(codes, **values)
        planes = _planes(generator, now)
        seen = scene.project(planes, generator, now)
        gains = scene.gains(seen.detach()) if gains is None or step % 10 == 0 else gains
        share, out = scene.unexplained(seen, gains)
        pull = (values["z"] - home.z).square().sum() + 4.0 * (values["delta"] - home.delta).square().sum()
        pull = pull + (values["view_shift_mm"] / 0.5).square().sum() + (values["view_turn_deg"] / 0.5).square().sum()
        optimizer.zero_grad(set_to_none=True)
        (settings.data * share + settings.pull * pull).backward()
        for name in ("view_shift_mm", "view_turn_deg"):
            if values[name].grad is not None:
                values[name].grad[:, 0] = 0.0
                if name == "view_shift_mm":
                    values[name].grad[..., 2] = 0.0
        optimizer.step()
        losses.append(float(share.detach()))
        held.append(float(out))
        if progress:
            progress((step + 1) / (total + settings.residual_steps), f"codes: {100 * losses[-1]:.1f} % unexplained")
    codes = replace(codes, **{name: value.detach() for name, value in values.items()})
    with torch.no_grad():
        planes = _planes(generator, codes)
    if settings.residual_steps:
        planes = _tuned(planes, scene, generator, codes, gains, settings, losses, held)
    cameras = tuple(moving.moved(codes.view_shift_mm[0, k].numpy(), codes.view_turn_deg[0, k].numpy())
                    for k, moving in enumerate(scene.cameras))  # fmt: skip
    w_plus = fit.w_plus.copy()
    with torch.no_grad():
        w_plus[: generator.config.structure] = codes.styles(generator)[0].numpy()
    refined = replace(fit, codes=codes, tree=named_tree(generator, codes), cameras=cameras, w_plus=w_plus)
    if len(refined.tree.branches) != len(fit.trust) or any(
        a.name != b.name for a, b in zip(refined.tree.branches, fit.tree.branches, strict=False)
    ):
        # Branches came or went: their trust is that of the branch of that name, or unknown.
        known = {b.name: float(np.mean(t)) for b, t in zip(fit.tree.branches, fit.trust, strict=True)}
        trust = [np.full(len(b.points_lps_mm), known.get(b.name, 0.5)) for b in refined.tree.branches]
        refined = replace(refined, trust=tuple(trust))
    return CodeResult(refined, planes[0], tuple(losses), tuple(held))


def _planes(generator: Generator, codes: Codes) -> torch.Tensor:
    styles = codes.styles(generator)
    rest = generator.spread(generator.average(codes.label))[:, generator.config.structure :]
    return generator.planes(torch.cat([styles, rest], 1), codes.label, detail=False)


def _tuned(planes, scene: _Scene, generator, codes, gains, settings, losses, held) -> torch.Tensor:
    """Planes with a residual learned from the rays, stopped when held-out rays get worse for five steps."""
    rest = torch.zeros_like(planes).requires_grad_()
    optimizer = torch.optim.Adam([rest], lr=settings.residual_rate)
    best, kept, since = np.inf, planes, 0
    for _ in range(settings.residual_steps):
        seen = scene.project(planes + rest, generator, codes)
        share, out = scene.unexplained(seen, gains)
        if float(out) < best:
            best, kept, since = float(out), (planes + rest).detach().clone(), 0
        else:
            since += 1
            if since >= 5:
                break
        optimizer.zero_grad(set_to_none=True)
        (share + settings.locality * rest.square().mean()).backward()
        optimizer.step()
        losses.append(float(share.detach()))
        held.append(float(out))
    return kept


class _Scene:
    """Rays of all views, drawn once, with what was seen along them."""

    def __init__(self, cameras: Sequence[Camera], evidence, fit: PriorFit, settings: CodeSettings, seed: int) -> None:
        from licag3d.inversion.field import compared_pixels

        self.cameras: tuple[MovingCamera, ...] = moving_cameras(cameras)
        self.samples = settings.samples
        points = np.concatenate([branch.points_lps_mm for branch in fit.tree.branches])
        self.pixels, targets, weights, views = [], [], [], []
        for k, (camera, item) in enumerate(zip(cameras, evidence, strict=True)):
            rows, cols = compared_pixels(camera, item, points, settings.rays, seed + k)
            target = item.line_integral[rows, cols]
            trust = np.where(item.mask[rows, cols], np.maximum(item.confidence[rows, cols], 0.05), 0.25)
            weights.append(trust / max(float((trust * target**2).sum()), 1e-9))
            self.pixels.append(torch.as_tensor(np.stack([cols, rows], 1)[None], dtype=torch.float64))
            targets.append(target)
            views.append(np.full(len(rows), k))
        self.target = torch.as_tensor(np.concatenate(targets), dtype=torch.float32)
        self.weight = torch.as_tensor(np.concatenate(weights), dtype=torch.float32) / len(cameras)
        self.view = torch.as_tensor(np.concatenate(views))
        self.held = torch.rand(len(self.view), generator=torch.Generator().manual_seed(seed)) < 0.2

    def project(self, planes: torch.Tensor, generator: Generator, codes: Codes) -> torch.Tensor:
        """Line integrals of all rays; the box stands still, so the rays are moved into it."""
        origins, directions = [], []
        for k, (moving, pixels) in enumerate(zip(self.cameras, self.pixels, strict=True)):
            camera = Cameras.stack([moving.camera])
            turn = codes.view_turn_deg[:, k].double()
            camera = camera.replace(
                offset_lps_mm=camera.offset_lps_mm + codes.view_shift_mm[:, k].double() @ moving.axes,
                primary_deg=camera.primary_deg + turn[:, 0],
                secondary_deg=camera.secondary_deg + turn[:, 1],
            )
            origin, direction = camera.rays(pixels)
            origins.append(origin[0])
            directions.append(direction[0])
        scale = codes.log_scale.exp()[0].double()
        turn = rotation(codes.turn)[0].double()
        origin = (torch.cat(origins) - codes.center_mm[0].double()) @ turn / scale
        seen = render_triplane(planes, generator.decoder(), Rays(origin, torch.cat(directions) @ turn / scale),
                               box_center_mm=(0.0, 0.0, 0.0), box_size_mm=generator.config.box_size_mm,
                               samples=self.samples)  # fmt: skip
        return seen[0] * scale.float()

    def gains(self, seen: torch.Tensor) -> torch.Tensor:
        """Factor of every view, since a display image fixes line integrals only up to one; least squares."""
        out = []
        for k in range(len(self.cameras)):
            own = (self.view == k) & ~self.held
            weight, path, target = self.weight[own], seen[own], self.target[own]
            out.append(((weight * path * target).sum() / (weight * path.square()).sum().clamp_min(1e-9)).clamp(0.1, 10))
        return torch.stack(out)

    def unexplained(self, seen: torch.Tensor, gains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Share of the squared line integrals not explained, of rays learned from and of those held out."""
        error = self.weight * (gains[self.view] * seen - self.target).square()
        all_of = self.weight * self.target.square()
        parts = [error[rows].sum() / all_of[rows].sum().clamp_min(1e-9) for rows in (~self.held, self.held)]
        return parts[0], parts[1].detach()
