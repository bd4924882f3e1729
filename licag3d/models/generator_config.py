# SPDX-License-Identifier: Apache-2.0
"""Sizes of the generator, and how a card holds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from licag3d.errors import InputError

FIELDS = ("vessel", "vessel+background")
#: Attenuation of opacified blood above tissue at contrast one, 1/mm: the middle of the phantom's range.
INSIDE_MU = 0.155


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture.

    Args:
        z_dim, w_dim: sizes of the random input and of a style. mapping_hidden, mapping_layers: of the mapping network.
        plane_resolution, plane_channels: R and C of the planes. hidden: units of the decoder.
        structure: styles of the structure stage; 0 leaves it out. structure_hidden: units of its heads.
        widths: channels of the convolutions at 4, 8, 16, ... pixels; what the last makes is enlarged to R bilinearly.
        labels: names of the entries of the label vector, each 0 or 1: artery (right or left), and whether the patient
            is co-dominant.
        pose_dim: numbers of the camera that the mapping may see in training; 0 leaves the pose out.
        own_codes: whether the codes of each artery have a distribution of their own (an affine map before the mapping).
        kinds: how many kinds of trees of an artery have codes of their own where trees are drawn at random (dominance,
            see :meth:`Generator.random_codes`); 0 draws through ``map`` alone.
        own_deltas: whether it is known how the deltas of each artery and style spread (:meth:`Generator.delta_of`).
        box_size_mm: edge of the box. mu_scale: 1/mm, of the decoder. start_mu: 1/mm, mean of the field at the start.
        fields: ``vessel``, or ``vessel+background`` for a second, coarse tri-plane that is added to the integral.
        background_resolution, background_channels: of that.
    """

    z_dim: int = 256
    w_dim: int = 256
    mapping_hidden: int = 256
    mapping_layers: int = 2
    plane_resolution: int = 256
    plane_channels: int = 32
    hidden: int = 64
    structure: int = 5
    structure_hidden: int = 384
    widths: tuple[int, ...] = (64, 64, 64, 48, 32, 16)
    labels: tuple[str, ...] = ("right", "left", "co-dominant")
    pose_dim: int = 0
    own_codes: bool = False
    kinds: int = 0
    own_deltas: bool = False
    box_size_mm: float = 140.0
    mu_scale: float = 0.01
    start_mu: float = 1e-5
    fields: str = "vessel"
    background_resolution: int = 32
    background_channels: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        object.__setattr__(self, "labels", tuple(str(label) for label in self.labels))
        if self.fields not in FIELDS:
            raise InputError(f"fields is '{self.fields}'; choose {' or '.join(FIELDS)}")
        for name, low, high in (
            ("z_dim", 1, 4096),
            ("w_dim", 1, 4096),
            ("mapping_hidden", 1, 4096),
            ("mapping_layers", 0, 16),
            ("plane_resolution", 8, 2048),
            ("plane_channels", 1, 512),
            ("hidden", 1, 4096),
            ("structure", 0, 8),
            ("structure_hidden", 1, 4096),
            ("pose_dim", 0, 64),
            ("kinds", 0, 16),
            ("box_size_mm", 10, 400),
            ("mu_scale", 1e-6, 10),
            ("start_mu", 1e-7, 1),
            ("background_resolution", 4, 256),
            ("background_channels", 1, 64),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; give {low} to {high}")
        if self.kinds and len(self.labels) < 3:
            raise InputError(f"labels is {self.labels}; kinds of trees need right, left and co-dominant")
        if not 1 <= len(self.widths) <= 9 or not all(1 <= width <= 1024 for width in self.widths):
            raise InputError(f"widths is {self.widths}; give 1 to 9 numbers from 1 to 1024, for 4, 8, 16, ... pixels")
        if 4 << (len(self.widths) - 1) > self.plane_resolution:
            raise InputError(
                f"widths has {len(self.widths)} levels, {4 << (len(self.widths) - 1)} pixels at the last; "
                f"plane_resolution is {self.plane_resolution}: leave out some levels"
            )
        if self.structure and self.plane_resolution % (4 << (len(self.widths) - 1)):
            raise InputError(
                f"plane_resolution is {self.plane_resolution}; with a structure stage give a multiple of the "
                f"{4 << (len(self.widths) - 1)} pixels that widths ends at"
            )


def config_of(card: dict, source: str) -> GeneratorConfig:
    """The configuration that a card holds.

    Raises:
        InputError: there is none, or it is one of another version.
    """
    found = card.get("config") if card.get("model") == "generator" else None
    if not isinstance(found, dict):
        raise InputError(f"{source}: no weights of a generator; train one (python -m licag3d.train generator)")
    known = {item.name for item in fields(GeneratorConfig)}
    if strange := sorted(found.keys() - known):
        raise InputError(f"{source}: of another version of the generator (it has {strange[0]})")
    try:
        return GeneratorConfig(**found)
    except TypeError as error:
        raise InputError(f"{source}: the configuration of the generator cannot be read ({error})") from None


def config_facts(config: GeneratorConfig) -> dict:
    """The configuration as JSON."""
    return asdict(config)
