# SPDX-License-Identifier: Apache-2.0
"""The X-ray tri-plane generator: code -> tri-planes -> attenuation in 1/mm -> line integrals.

    z, label -> mapping -> w -> (one style per layer: W+) -> planes XY, XZ, YZ -> decoder -> mu(x) -> render_triplane

Planes have two sources. The structure stage (:mod:`licag3d.models.branch_stage`, the first styles) writes a tree branch
by branch and draws it; modulated convolutions (the other styles) see the drawing and add what it misses.

After Chan et al. (EG3D, CVPR 2022) with three things changed for X-ray: the integral is order-free and every pixel is
one (no network after it), the third plane is YZ, and outside the box the field is exactly zero.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from licag3d.errors import InputError
from licag3d.models.branch_stage import BranchStage
from licag3d.models.branch_table import ARTERIES
from licag3d.models.generator_config import INSIDE_MU, GeneratorConfig, config_of
from licag3d.models.synthesis import MappingNetwork, ScaledLinear, SynthesisNetwork
from licag3d.ops import query_triplane, render_triplane
from licag3d.ops.triplane_decoder import TriplaneDecoder


class Decoder(nn.Module):
    """Trainable weights of a :class:`TriplaneDecoder`.

    Args:
        drawn: the first so many channels are branches of the structure stage; each gets two hidden units that make a
            ramp of ``ramp_mm`` round its wall, from nothing outside to the contrast (the channel after them) inside.
    """

    def __init__(self, channels: int, hidden: int, mu_scale: float, start_mu: float, *, drawn: int = 0):
        super().__init__()
        self.mu_scale = mu_scale
        self.weight_1 = nn.Parameter(torch.randn(hidden, channels) * math.sqrt(3.0 / channels))
        self.bias_1 = nn.Parameter(torch.zeros(hidden))
        self.weight_2 = nn.Parameter(torch.randn(1, hidden) * 0.5 / math.sqrt(hidden))
        self.bias_2 = nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            start = math.log(math.expm1(start_mu / mu_scale))
            if drawn:
                self._read_branches(drawn, start)
            # At zero features softplus gives log 2 in each free hidden unit; with the bias the field then starts at
            # start_mu, so that a projection starts at the mean of the data and not where gradients have died.
            self.bias_2.fill_(start - self.weight_2[:, 2 * drawn :].sum().item() * math.log(2.0))

    def _read_branches(self, drawn: int, start: float, *, ramp_mm: float = 0.4, inside_mu: float = INSIDE_MU) -> None:
        sharp = 4.0
        # The mean over three planes of a drawn channel is a third of the distance to the wall, mm.
        self.weight_1[: 2 * drawn] = 0.0
        self.weight_1[2 * drawn :, : drawn + 1] = 0.0
        self.weight_2[:, 2 * drawn :] *= 0.1
        height = (math.log(math.expm1(inside_mu / self.mu_scale)) - start) / sharp
        for k in range(drawn):
            self.weight_1[2 * k : 2 * k + 2, k] = 3 * sharp / ramp_mm
            self.bias_1[2 * k : 2 * k + 2] = 0.75 * sharp
            self.weight_1[2 * k + 1, drawn] = -sharp
            self.weight_2[0, 2 * k], self.weight_2[0, 2 * k + 1] = height, -height

    def weights(self) -> TriplaneDecoder:
        return TriplaneDecoder(
            self.weight_1.float(), self.bias_1.float(), self.weight_2.float(), self.bias_2.float(), self.mu_scale
        )


class Generator(nn.Module):
    """See the text of the module. Sizes: B codes, L = ``layers`` styles each.

    Example:
        >>> g = Generator(GeneratorConfig(plane_resolution=32, widths=(16, 16)))
        >>> label = labels_of(["rca", "lca"])
        >>> w = g.map(torch.randn(2, 256), label)
        >>> planes = g.planes(g.spread(w), label)
        >>> tuple(w.shape), tuple(planes.shape)
        ((2, 256), (2, 3, 32, 32, 32))
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        c = config
        self.mapping = MappingNetwork(
            c.z_dim,
            len(c.labels) + c.pose_dim,
            c.w_dim,
            hidden=c.mapping_hidden,
            layers=c.mapping_layers,
            own=len(ARTERIES) if c.own_codes else 0,
        )
        self.structure, drawn = None, 0
        if c.structure:
            self.structure = BranchStage(
                c.w_dim,
                groups=c.structure,
                hidden=c.structure_hidden,
                resolution=c.plane_resolution,
                box_size_mm=c.box_size_mm,
            )
            drawn = self.structure.channels
            if c.plane_channels < drawn + 1 or c.hidden < 2 * drawn:
                raise InputError(
                    f"plane_channels is {c.plane_channels} and hidden {c.hidden}; the structure stage needs at least "
                    f"{drawn + 1} and {2 * drawn}"
                )
            # Contrast of the vessels: a factor near one.
            self.contrast = ScaledLinear(c.w_dim, 1, gain=0.05, bias=1.0)
        self.drawn = drawn
        self.synthesis = SynthesisNetwork(
            c.w_dim, c.widths, 3 * c.plane_channels, context=3 * drawn, out_gain=0.0 if drawn else 1.0
        )
        self.field = Decoder(c.plane_channels, c.hidden, c.mu_scale, c.start_mu, drawn=drawn)
        # One row per artery: the middle between a right and a left tree is no tree.
        self.register_buffer("w_average", torch.zeros(2, c.w_dim))
        if c.kinds:
            # Fitted in closed form (licag3d.train.generator_prior): share, mean and root of the covariance of codes.
            self.register_buffer("kind_share", torch.full((2, c.kinds), 1.0 / c.kinds))
            self.register_buffer("kind_mean", torch.zeros(2, c.kinds, c.z_dim))
            self.register_buffer("kind_root", torch.eye(c.z_dim).expand(2, c.kinds, -1, -1).clone())
        if c.own_deltas:
            # Fitted as well: of what each style adds to the code of a patient the mean, and a root of the covariance as
            # it is and of a wider one, for trees that are no patients of the training.
            self.register_buffer("delta_mean", torch.zeros(2, c.structure, c.w_dim))
            # Until then (or of too few patients) half a unit in every direction. Rows: right and left, then both wide.
            self.register_buffer("delta_root", 0.5 * torch.eye(c.w_dim).expand(4, c.structure, -1, -1).contiguous())
        if c.fields == "vessel+background":
            r, k = c.background_resolution, c.background_channels
            self.background_start = nn.Parameter(torch.randn(3, k, r, r) * 0.1)
            self.background_style = ScaledLinear(c.w_dim, 3 * k, bias=1.0)
            self.background_field = Decoder(k, 16, c.mu_scale, c.start_mu)

    @property
    def layers(self) -> int:
        """Styles of a W+ code."""
        return self.config.structure + self.synthesis.layers

    def map(
        self, z: torch.Tensor, label: torch.Tensor, *, truncation: float = 1.0, pose: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Codes w ``(B, w_dim)``.

        Args:
            z: ``(B, z_dim)``, standard normal. label: ``(B, labels)`` from :func:`labels_of`, or ``(B,)`` int64 with
                0 for right and 1 for left.
            truncation: 1 takes w as it is, 0 the average of the artery.
            pose: ``(B, pose_dim)`` where the configuration has one; None is the pose zero.
        """
        label = self.label_vector(label, z)
        w = self.map_code(self.mapping.placed(z, label), label, pose=pose)
        return w if truncation == 1.0 else torch.lerp(self.average(label).to(w.dtype), w, truncation)

    def map_code(self, code: torch.Tensor, label: torch.Tensor, *, pose: torch.Tensor | None = None) -> torch.Tensor:
        """w ``(B, w_dim)`` of codes as an encoder of trees gives them, ``(B, z_dim)``, which are no normal deviates."""
        return self.mapping(code, self._with_pose(self.label_vector(label, code), pose))

    def random_codes(
        self, z: torch.Tensor, label: torch.Tensor, chance: torch.Tensor, *, truncation: float = 1.0
    ) -> torch.Tensor:
        """Codes w ``(B, w_dim)`` of trees drawn at random: a mixture over the kinds of an artery.

        Trees of a right, a left and a balanced coronary circulation have different branches, so that their codes
        together are no normal density; those of each kind nearly are. :meth:`map` is the one normal density, smooth in
        z, that fits them all: for optimising, not for drawing.

        Args:
            z: ``(B, z_dim)``, standard normal. label: as for :meth:`map`. chance: ``(B,)`` in 0..1, chooses the kind; a
                co-dominant patient has the last kind, all others one before it.
            truncation: 1 takes w as it is, 0 the average of the kind.
        """
        label = self.label_vector(label, z)
        if not self.config.kinds:
            return self.map(z, label, truncation=truncation)
        index = (label[:, 1] > label[:, 0]).long()
        share = self.kind_share[index].to(z.dtype)
        share = torch.cat([share[:, :-1] * (1 - label[:, 2:3]), label[:, 2:3]], 1)
        edge = share.cumsum(1) / share.sum(1, keepdim=True).clamp_min(1e-9)
        kind = (chance[:, None] >= edge[:, :-1]).sum(1)
        middle = self.kind_mean[index, kind]
        w = self.map_code(middle + torch.einsum("bi,bij->bj", z, self.kind_root[index, kind]), label)
        return w if truncation == 1.0 else torch.lerp(self.map_code(middle, label), w, truncation)

    def delta_of(self, deviates: torch.Tensor, label: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
        """What the structure styles add to w, ``(B, structure, w_dim)``.

        Args:
            deviates: ``(B, structure, w_dim)``, standard normal. label: as for :meth:`map`.
            wide: ``(B,)`` bool: False spreads as patients of the training do, True wider, in all directions.
        """
        label = self.label_vector(label, deviates)
        which = 2 * wide.long() + (label[:, 1] > label[:, 0]).long()
        out = torch.zeros_like(deviates)
        # One product per root that occurs: a root for each of many codes would take gigabytes.
        for k in which.unique().tolist():
            root, mean = self.delta_root[k], self.delta_mean[k % 2]
            written = mean.to(deviates.dtype) + torch.einsum("gij,bgj->bgi", root.to(deviates.dtype), deviates)
            out = torch.where((which == k)[:, None, None], written, out)
        return out

    def label_vector(self, label: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """``(B, labels)`` in the type of ``like``, from that or from ``(B,)`` indices of arteries."""
        if label.ndim == 1:
            label = torch.nn.functional.one_hot(label.long(), len(self.config.labels))
        if label.ndim != 2 or label.shape[1] != len(self.config.labels):
            raise ValueError(f"label has shape {tuple(label.shape)}; expected (B,) or (B, {len(self.config.labels)})")
        return label.to(device=like.device, dtype=like.dtype)

    def average(self, label: torch.Tensor) -> torch.Tensor:
        """Mean w of the artery of each label, ``(B, w_dim)``."""
        label = self.label_vector(label, self.w_average)
        return self.w_average[(label[:, 1] > label[:, 0]).long()]

    def spread(self, w: torch.Tensor) -> torch.Tensor:
        """``(B, w_dim)`` to W+ ``(B, layers, w_dim)``: the same style for every layer."""
        return w[:, None].expand(-1, self.layers, -1)

    def planes(
        self,
        w_plus: torch.Tensor,
        label: torch.Tensor | None = None,
        *,
        levels: int | None = None,
        detail: bool = True,
        vectors=None,
        least_radius_mm: float = 0.0,
    ) -> torch.Tensor:
        """Planes ``(B, 3, C, R, R)`` float32, order XY, XZ, YZ.

        Args:
            w_plus: ``(B, layers, w_dim)``. label: as for :meth:`map`, tells which artery's branches are written; None
                takes the artery whose average is nearer to the first style.
            levels: of the synthesis, for a coarse start of training. detail: False leaves the convolutions out.
            vectors: what to draw, as :meth:`vectors` gives it, instead of what the styles write.
            least_radius_mm: thinner vessels are drawn this wide, for a grid that cannot hold them.
        """
        c, first = self.config, self.config.structure
        drawn = None
        if self.structure is not None:
            vectors = self.vectors(w_plus, label) if vectors is None else vectors
            drawn = self.structure.draw_all(vectors, least_radius_mm=least_radius_mm)
            contrast = self.contrast(w_plus[:, 0]).float()[:, None, :, None, None]
            drawn = torch.cat([drawn, contrast.expand(-1, 3, -1, *drawn.shape[-2:])], 2)
            if not detail:
                return nn.functional.pad(drawn, (0, 0, 0, 0, 0, c.plane_channels - drawn.shape[2]))
        context = drawn[:, :, :-1].flatten(1, 2) if drawn is not None else None
        planes = self.synthesis(w_plus[:, first:], context=context, levels=levels).float()
        if planes.shape[-1] != c.plane_resolution:
            planes = nn.functional.interpolate(planes, size=c.plane_resolution, mode="bilinear", align_corners=False)
        # channels_last memory would make the native operators copy it anyway
        planes = planes.contiguous().unflatten(1, (3, c.plane_channels))
        if drawn is not None:
            planes = torch.cat([planes[:, :, : drawn.shape[2]] + drawn, planes[:, :, drawn.shape[2] :]], 2)
        return planes

    def vectors(
        self, w_plus: torch.Tensor, label: torch.Tensor | None = None
    ) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """What the structure stage writes: for each artery present its name, the rows of the batch it has, and their
        vectors (``licag3d.models.branch_table``, presence as logit).
        """
        if label is None:
            near = (w_plus[:, :1].float() - self.w_average).square().sum(2).argmin(1)
        else:
            label = self.label_vector(label, self.w_average)
            near = (label[:, 1] > label[:, 0]).long()
        out = []
        for index, artery in enumerate(ARTERIES):
            rows = (near == index).nonzero()[:, 0]
            if len(rows):
                out.append((artery, rows, self.structure.vectors(w_plus[rows], artery)))
        return out

    def lumen_mu_per_mm(self, w_plus: torch.Tensor) -> torch.Tensor:
        """Attenuation inside the vessels of W+ codes, ``(B,)`` in 1/mm; half of it is where a wall lies."""
        if self.structure is None:
            return w_plus.new_full((len(w_plus),), INSIDE_MU)
        return INSIDE_MU * self.contrast(w_plus[:, 0])[:, 0].float()

    def decoder(self) -> TriplaneDecoder:
        """The decoder of the vessel field as the operators take it; gradients reach the generator's weights."""
        return self.field.weights()

    def project(
        self, planes: torch.Tensor, cameras, *, box_center_mm=(0.0, 0.0, 0.0), samples: int = 256
    ) -> torch.Tensor:
        """Line integrals ``(B, V, rows, cols)`` of the vessel field; arguments as those of ``render_triplane``."""
        with torch.autocast(planes.device.type, enabled=False):
            return render_triplane(
                planes,
                self.decoder(),
                cameras,
                box_center_mm=box_center_mm,
                box_size_mm=self.config.box_size_mm,
                samples=samples,
            )

    def attenuation(
        self, planes: torch.Tensor, points_mm: torch.Tensor, *, box_center_mm=(0.0, 0.0, 0.0)
    ) -> torch.Tensor:
        """Vessel field mu in 1/mm at points ``(..., 3)`` world LPS mm: ``(B, ...)``; exactly zero outside the box."""
        with torch.autocast(planes.device.type, enabled=False):
            return query_triplane(
                planes, self.decoder(), points_mm, box_center_mm=box_center_mm, box_size_mm=self.config.box_size_mm
            )

    def background(self, w: torch.Tensor, cameras, *, box_center_mm=(0.0, 0.0, 0.0), samples: int = 48) -> torch.Tensor:
        """Line integrals ``(B, V, rows, cols)`` of the background field of codes ``(B, w_dim)``, to be added.

        Raises:
            InputError: the generator was built without that field.
        """
        if self.config.fields != "vessel+background":
            raise InputError("this generator has no background field; build it with fields='vessel+background'")
        style = self.background_style(w).unflatten(1, (3, -1))[..., None, None]
        planes = (self.background_start * style).float()
        return render_triplane(
            planes,
            self.background_field.weights(),
            cameras,
            box_center_mm=box_center_mm,
            box_size_mm=self.config.box_size_mm,
            samples=samples,
        )

    def _with_pose(self, label: torch.Tensor, pose: torch.Tensor | None) -> torch.Tensor:
        size = self.config.pose_dim
        if size == 0:
            return label
        pose = label.new_zeros(len(label), size) if pose is None else pose.to(label)
        return torch.cat([label, pose], 1)


def labels_of(arteries, co_dominant=None, labels: int = 3) -> torch.Tensor:
    """Label vectors ``(B, labels)`` of arteries (``rca`` or ``lca``) and, where known, co-dominance of the patients.

    Raises:
        InputError: an artery of another name.

    Example:
        >>> labels_of(["lca"], [True]).tolist()
        [[0.0, 1.0, 1.0]]
    """
    out = torch.zeros(len(arteries), labels)
    for row, artery in zip(out, arteries, strict=True):
        if artery not in ARTERIES:
            raise InputError(f"artery is '{artery}'; choose rca or lca")
        row[ARTERIES.index(artery)] = 1.0
    if co_dominant is not None:
        out[:, 2] = torch.as_tensor([float(value) for value in co_dominant])
    return out


def load_generator(name_or_path: str = "generator", device: str | torch.device = "cpu") -> tuple[Generator, dict]:
    """A generator in eval mode, and its card.

    Args:
        name_or_path: embedded weights, or a ``.safetensors`` file that a training run wrote.

    Raises:
        InputError: missing, damaged, or of another architecture.
    """
    from licag3d.train.checkpoints import load_into, load_weights
    from licag3d.weights import load

    if name_or_path.endswith(".safetensors"):
        tensors, card = load_weights(name_or_path)
    else:
        tensors, card = load(name_or_path)
    generator = Generator(config_of(card, name_or_path))
    load_into(generator, {key: value.float() for key, value in tensors.items()}, name_or_path)
    return generator.eval().requires_grad_(False).to(device), card
