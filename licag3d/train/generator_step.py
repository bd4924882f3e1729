# SPDX-License-Identifier: Apache-2.0
"""One training step of the generator: everything that has a gradient.

Four parts, each on the data that serves it best:

1. vectors: encoder -> z -> w -> vector, and the same with deltas per style, against the true vector in mm (all patients
   of the batch: no planes needed, so it is cheap);
2. fields: the true tree is drawn and the decoder and the convolutions must make its attenuation of it, at points;
3. trees: a critic of vectors, encoded patients against random codes;
4. images: a discriminator of line integrals under known cameras, phantom against random codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from licag3d.geometry.batch import Rays
from licag3d.losses import adversarial, volume
from licag3d.models.branch_table import ARTERIES
from licag3d.models.discriminator import Discriminator, TreeCritic
from licag3d.models.generator import INSIDE_MU, Generator, GeneratorConfig
from licag3d.train.generator_vectors import TreeEncoder, as_logits, encoder_input, vector_loss


@dataclass(frozen=True)
class StepSettings:
    """Weights and beginnings of the parts.

    Args:
        kl: of the divergence of z from the normal density, per nat. delta: of the squared deltas.
        field: of the losses at points; connectivity, radius, density: relative to soft Dice and attenuation.
        critic, image: of the adversarial terms of the generator; gamma_critic, gamma_image: of R1, every ``lazy``
            steps.
        generator_start: first step that changes the generator; before it only encoder, critic and discriminator learn.
        critic_start, field_start, image_start: first steps of the parts. field_every, image_every: steps from one to
            the next of the dear parts (rendering on a CPU costs as much as ten steps on vectors).
        edge_mm: width of the wall in the field that is asked for.
        image_size: px of the discriminator's images; until ``progressive`` steps they hold half of that, and the
            synthesis leaves out its last resolution.
        views: of one patient that the discriminator sees together.
        pose_swap: probability that the mapping sees the cameras of another patient.
    """

    kl: float = 1e-3
    delta: float = 1e-2
    field: float = 1.0
    connectivity: float = 0.2
    radius: float = 0.2
    density: float = 0.05
    critic: float = 0.1
    image: float = 0.02
    gamma_critic: float = 1.0
    gamma_image: float = 5.0
    lazy: int = 16
    generator_start: int = 0
    critic_start: int = 200
    field_start: int = 0
    image_start: int = 200
    field_every: int = 1
    image_every: int = 1
    edge_mm: float = 0.3
    image_size: int = 64
    progressive: int = 0
    views: int = 2
    pose_swap: float = 0.5

    def has_fields(self, step: int) -> bool:
        """Whether a step asks for the attenuation at points."""
        return self.field > 0 and step >= self.field_start and step % self.field_every == 0

    def has_images(self, step: int) -> bool:
        """Whether a step has the discriminator of images in it."""
        return self.image > 0 and step >= self.image_start and step % self.image_every == 0


class Trainee(nn.Module):
    """The generator with everything that only training needs."""

    def __init__(self, config: GeneratorConfig, step: StepSettings):
        super().__init__()
        self.generator = Generator(config)
        sizes = {artery: table.size for artery, table in self.generator.structure.tables.items()}
        labels = len(config.labels)
        self.encoder = TreeEncoder(sizes, config.z_dim, config.w_dim, config.structure)
        self.critic = TreeCritic(sizes, labels)
        levels = (step.image_size // 4).bit_length() - 1
        widths = tuple(min(24 * 2**k, 96) for k in range(levels))
        self.discriminator = Discriminator(step.views, step.image_size, widths, labels)
        self.step = step

    def encode(self, artery: str, batch: dict, *, sample: bool):
        """z, its mean and log variance, and the deltas of patients of one artery."""
        x = encoder_input(self.generator.structure, artery, batch["vector"], batch["known"])
        mean, log_variance, delta = self.encoder(x, batch["contrast"][:, None] - 1, artery)
        noise = torch.randn_like(mean) * torch.exp(0.5 * log_variance) if sample else 0.0
        return mean + noise, mean, log_variance, delta


def step_loss(model: Trainee, batch: dict, step: int) -> tuple[torch.Tensor, dict]:
    """The sum of the parts that have begun, and the numbers to record.

    Args:
        batch: of ``licag3d.train.generator_batch.BatchMaker``.
    """
    s = model.step
    numbers: dict[str, torch.Tensor] = {}
    # A trained generator must not run after critics and an encoder that have yet to learn.
    model.generator.requires_grad_(step >= s.generator_start)
    with torch.autocast(batch["rca.vector"].device.type, enabled=False):
        total, codes = _vector_part(model, batch, numbers)
        if s.critic and step >= s.critic_start:
            total = total + _critic_part(model, batch, step, numbers)
    if s.has_fields(step):
        total = total + s.field * _field_part(model, batch, step, codes, numbers)
    if s.has_images(step):
        total = total + _image_part(model, batch, step, numbers)
    return total, numbers


def part_of(batch: dict, artery: str) -> dict:
    """The entries of one artery, without its name."""
    return {key.split(".", 1)[1]: value for key, value in batch.items() if key.startswith(f"{artery}.")}


def _vector_part(model: Trainee, batch: dict, numbers: dict):
    g, s = model.generator, model.step
    total, codes = 0.0, {}
    for artery in ARTERIES:
        part = part_of(batch, artery)
        z, mean, log_variance, delta = model.encode(artery, part, sample=True)
        w = g.map_code(z, part["label"], pose=_pose(part, s.pose_swap) if g.config.pose_dim else None)
        styles = g.spread(w)[:, : g.config.structure]
        known = (part["vector"], part["known"])
        by_z, in_z = vector_loss(g.structure, artery, g.structure.vectors(styles, artery), *known)
        by_styles, in_styles = vector_loss(g.structure, artery, g.structure.vectors(styles + delta, artery), *known)
        contrast = (g.contrast(w)[:, 0] - part["contrast"]).abs().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        total = total + by_z + by_styles + contrast + s.kl * divergence + s.delta * delta.square().mean()
        codes[artery] = w
        numbers |= {f"{artery}_{key}": value for key, value in in_z.items()}
        numbers |= {f"{artery}_plus_{key}": in_styles[key] for key in ("place_mm", "shape_mm")}
        numbers |= {f"{artery}_kl": divergence.detach(), f"{artery}_contrast": contrast.detach()}
    return total, codes


def seen_by_critic(model: Trainee, artery: str, vector: torch.Tensor) -> torch.Tensor:
    """Written vectors (presence as logit) in units of the spread; presence 0..1, absent branches faded out."""
    stage = model.generator.structure
    table = stage.tables[artery]
    x = (vector - getattr(stage, f"{artery}_mean")) / getattr(stage, f"{artery}_spread")
    gates: list[torch.Tensor] = []
    pieces = []
    for k, slot in enumerate(table.slots):
        first, end = table.offsets[k], table.offsets[k + 1]
        gate = torch.sigmoid(4 * vector[:, first : first + 1])
        gates.append(gate if slot.parent < 0 else gate * gates[slot.parent])
        pieces += [gates[-1], x[:, first + 1 : end] * gates[-1]]
    return torch.cat(pieces, 1)


def _critic_part(model: Trainee, batch: dict, step: int, numbers: dict) -> torch.Tensor:
    g, s, critic = model.generator, model.step, model.critic
    frozen = {key: value.detach() for key, value in critic.named_parameters()}
    total = 0.0
    for artery in ARTERIES:
        part = part_of(batch, artery)
        label = part["label"]
        w = g.map(torch.randn(len(label), g.config.z_dim, device=label.device), label)
        written = g.structure.vectors(g.spread(w)[:, : g.config.structure], artery)
        fake = seen_by_critic(model, artery, written)
        real = seen_by_critic(model, artery, as_logits(g.structure.tables[artery], part["vector"]))
        lazy = step % s.lazy == 0
        real.requires_grad_(lazy)
        on_real, on_fake = critic(real, label, artery), critic(fake.detach(), label, artery)
        for_g = adversarial.generator_loss(functional_call(critic, frozen, (fake, label, artery)))
        loss = adversarial.discriminator_loss(on_real, on_fake)
        if lazy:
            loss = loss + 0.5 * s.gamma_critic * s.lazy * adversarial.r1_penalty(on_real, real)
        total = total + loss + s.critic * for_g
        numbers |= {f"{artery}_critic_real": on_real.detach().mean(), f"{artery}_critic_fake": on_fake.detach().mean()}
    return total


def _field_part(model: Trainee, batch: dict, step: int, codes: dict, numbers: dict) -> torch.Tensor:
    g, s = model.generator, model.step
    points, distance = batch["field.points_mm"], batch["field.distance_mm"]
    contrast = torch.cat([part_of(batch, artery)["contrast"][: batch["field.count"]] for artery in ARTERIES])
    vectors, first = [], 0
    for artery in ARTERIES:
        truth = part_of(batch, artery)["vector"][: batch["field.count"]]
        rows = torch.arange(first, first + len(truth), device=truth.device)
        vectors.append((artery, rows, as_logits(g.structure.tables[artery], truth)))
        first += len(truth)
    # The true tree is drawn, so that the rest does not learn to blur what the heads do not know yet.
    w = torch.cat([codes[artery][: batch["field.count"]].detach() for artery in ARTERIES])
    planes = g.planes(g.spread(w), levels=_levels(model, step), vectors=vectors)
    mu = _each(g, planes, points)
    # The contrast of the patient, not what the styles say of it, which is learnt apart.
    share = mu / (INSIDE_MU * g.contrast(w)[:, :1].float().detach().clamp_min(0.2))
    near, far, line = batch["field.near"], batch["field.far"], batch["field.line"]
    truth = volume.wall_ramp(distance, s.edge_mm)
    weight = batch["field.weight"]
    dice = volume.point_dice_loss(share[:, : near + far], truth[:, : near + far], weight[:, : near + far])
    error = volume.attenuation_loss(share[:, : near + far], truth[:, : near + far], weight[:, : near + far])
    last = near + far + line
    # The offset keeps the branches of different patients apart.
    gap = volume.connectivity_loss(
        share[:, near + far : last].flatten(), batch["field.branch"].flatten(), int(batch["field.branches"])
    )
    calibre = volume.radius_loss(share[:, last:].flatten(), batch["field.over_radius"].flatten())
    with torch.no_grad():
        start = 0.5 * g.config.box_size_mm * (2 * torch.rand(len(points), 256, 3, device=points.device) - 1)
    smooth = volume.density_loss(
        _each(g, planes, start) / INSIDE_MU,
        _each(g, planes, start + 0.3 * torch.randn_like(start)) / INSIDE_MU,
    )
    numbers |= {"dice": dice.detach(), "attenuation": error.detach(), "gap": gap.detach(), "calibre": calibre.detach(),
                "density": smooth.detach(), "contrast": contrast.mean()}  # fmt: skip
    return dice + error + s.connectivity * gap + s.radius * calibre + s.density * smooth


def _image_part(model: Trainee, batch: dict, step: int, numbers: dict) -> torch.Tensor:
    from licag3d.ops import render_triplane

    g, s, d = model.generator, model.step, model.discriminator
    real, camera, label = batch["image.real"], batch["image.camera"], batch["image.label"]
    pose = camera.flatten(1)[:, : g.config.pose_dim] if g.config.pose_dim else None
    if pose is not None:
        pose = _swapped(pose, s.pose_swap)
    w = g.map(torch.randn(len(label), g.config.z_dim, device=label.device), label, pose=pose)
    planes = g.planes(g.spread(w), label, levels=_levels(model, step))
    with torch.autocast(real.device.type, enabled=False):
        like = {
            "box_center_mm": (0.0, 0.0, 0.0),
            "box_size_mm": g.config.box_size_mm,
            "samples": batch["image.samples"],
        }
        rays = [Rays(*pair) for pair in zip(batch["image.origin_mm"], batch["image.to_pixel_mm"], strict=True)]
        fake = render_triplane(planes, g.decoder(), rays, **like)
        if g.config.fields == "vessel+background":
            fake = fake + g.background(w, rays)
        if fake.shape[-1] != d.size:
            fake, real = (nn.functional.interpolate(x, size=d.size, mode="bilinear") for x in (fake, real))
        seen_fake, fake_camera = adversarial.augment(fake, camera, d.chance)
        seen_real, real_camera = adversarial.augment(real, camera, d.chance)
    lazy = (step // s.image_every) % s.lazy == 0
    seen_real = seen_real.detach().requires_grad_(lazy)
    frozen = {key: value.detach() for key, value in d.named_parameters()}
    # The penalty needs a second derivative, which half precision would spoil.
    with torch.autocast(
        real.device.type, dtype=torch.bfloat16, enabled=not lazy and torch.is_autocast_enabled(real.device.type)
    ):
        on_real, on_fake = d(seen_real, real_camera, label), d(seen_fake.detach(), fake_camera, label)
        for_g = adversarial.generator_loss(functional_call(d, frozen, (seen_fake, fake_camera, label)))
    loss = adversarial.discriminator_loss(on_real, on_fake)
    if lazy:
        loss = loss + 0.5 * s.gamma_image * s.lazy * adversarial.r1_penalty(on_real, seen_real)
    d.chance.copy_(adversarial.adapted_chance(d.chance, on_real))
    numbers |= {"image_real": on_real.detach().mean(), "image_fake": on_fake.detach().mean()}
    numbers |= {"image_mean_fake": fake.detach().mean(), "image_mean_real": real.mean(), "augment": d.chance.clone()}
    return loss + s.image * for_g


def _each(generator: Generator, planes: torch.Tensor, points_mm: torch.Tensor) -> torch.Tensor:
    """Attenuation ``(B, N)`` of every field at points of its own, ``(B, N, 3)``."""
    return torch.stack([generator.attenuation(*pair) for pair in zip(planes, points_mm, strict=True)])


def _levels(model: Trainee, step: int) -> int | None:
    return max(1, model.generator.synthesis.levels - 1) if step < model.step.progressive else None


def _swapped(pose: torch.Tensor, chance: float) -> torch.Tensor:
    """Poses of which some are those of other patients of the batch: the mapping cannot hide the patient in the pose
    (Chan et al., EG3D, section 4.4).
    """
    other = pose.roll(1, 0)
    return torch.where(torch.rand(len(pose), 1, device=pose.device) < chance, other, pose)


def _pose(part: dict, chance: float) -> torch.Tensor | None:
    return _swapped(part["pose"], chance) if "pose" in part else None
