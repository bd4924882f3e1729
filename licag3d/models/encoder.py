# SPDX-License-Identifier: Apache-2.0
"""Views in, W+ code of the generator out: a pSp-style encoder that knows its cameras.

Every view is brought into a window of fixed size in mm about its vessels (:mod:`licag3d.models.view_windows`), so that
table offsets of any size leave the pictures unchanged. One small convolutional pyramid, shared by all views and turned
to their angles (FiLM), gives tokens and dense maps; style queries attend over the tokens of all views, whatever their
number and order; one head for all styles writes the code as a distance from the mean code of the artery. What the
dense maps name in each view then corrects the code along the rays (:mod:`licag3d.models.named_update`).

After Richardson et al. (pSp, CVPR 2021: pyramid, styles as offsets from the mean) and Tov et al. (e4e, SIGGRAPH 2021:
one code plus small deltas), with the map-to-style networks replaced by queries and one shared head: the published
heads hold 175 million numbers, these 0.1 million.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from licag3d.errors import InputError
from licag3d.models.branch_table import ARTERIES, table_of
from licag3d.models.encoder_config import TreeEncoderConfig, config_facts, tree_encoder_config
from licag3d.models.encoder_layers import Mixer, Residual, token_places
from licag3d.models.lift import Lift
from licag3d.models.named_update import NamedUpdate, along_courses, cells_of, patients_moments
from licag3d.models.vit import initialise

#: Most views of one patient.
MOST_VIEWS = 8
#: Sweeps: how far (mm) a pixel may lie from the branch that it is named for, at first and in the end; in these units,
#: what lies farther than ``OUTSIDE`` from every branch is none; trust in the names of the maps, and in measured places.
SWEEP_MM, OUTSIDE, TRUST, SHARPER = (3.5, 1.5), 2.0, 1.0, 4.0
#: Numbers that describe the camera of a view: beam, column and row direction, distances, pixel aspect.
CAMERA_NUMBERS = 11


@dataclass(frozen=True)
class ViewFeatures:
    """What one view gives, before views meet; ``(B, V, ...)``.

    tokens ``(B, V, T, token)``; maps ``(B, V, dense, M, M)``, of which :meth:`TreeFromViews.names` reads branches;
    cameras ``(B, V, CAMERA_NUMBERS)``; chance ``(B, V, M^2)`` how much vessel each cell shows, at_mm ``(B, V, M^2, 2)``
    where in the window.
    """

    tokens: torch.Tensor
    maps: torch.Tensor
    cameras: torch.Tensor
    chance: torch.Tensor
    at_mm: torch.Tensor

    def only(self, views) -> ViewFeatures:
        """Some of the views."""
        return ViewFeatures(*(getattr(self, item.name)[:, views] for item in fields(self)))

    def rows(self, rows: torch.Tensor) -> ViewFeatures:
        """Some of the patients."""
        return ViewFeatures(*(getattr(self, item.name)[rows] for item in fields(self)))


@dataclass(frozen=True)
class Codes:
    """What an encoding of B patients gives.

    Args:
        w_plus: ``(B, styles, w_dim)`` for the artery asked for. delta: ``(B, structure, w_dim)``, what its first styles
            have beyond the common w. guess: ``(B, styles, w_dim)``, before the correction by named places.
        label: ``(B, 3)`` logits of right, left, co-dominant.
        tuple_code: ``(B, tuple_dim)``, unit length.
        place_mm: ``(B, V, 2)`` column and row of the centre of the box from the middle of each window, at the
            isocentre. log_scale: ``(B, V)`` of the magnification against that of the isocentre.
        log_spread: ``(B, 2)`` of the expected errors: course in mm, and scale.
    """

    w_plus: torch.Tensor
    delta: torch.Tensor
    guess: torch.Tensor
    label: torch.Tensor
    tuple_code: torch.Tensor
    place_mm: torch.Tensor
    log_scale: torch.Tensor
    log_spread: torch.Tensor


class TreeFromViews(nn.Module):
    """See the text of the module. Sizes: B patients, V views (1 to 8).

    Example:
        >>> net = TreeFromViews(TreeEncoderConfig(window_px=64, widths=(8, 8, 16, 16), token=16, dense=8))
        >>> seen = net.see(torch.rand(2, 3, 2, 64, 64), torch.rand(2, 3, CAMERA_NUMBERS))
        >>> codes = net.read(seen, torch.tensor([0, 1]), correct=False)
        >>> tuple(codes.w_plus.shape), tuple(codes.place_mm.shape)
        ((2, 16, 256), (2, 3, 2))
    """

    def __init__(self, config: TreeEncoderConfig):
        super().__init__()
        self.config = c = config
        self.slots = tuple(len(table_of(artery).slots) for artery in ARTERIES)
        before = c.channels
        self.down, self.blocks_2d, self.turn = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.camera = nn.Sequential(nn.Linear(CAMERA_NUMBERS, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        for level, width in enumerate(c.widths):
            self.down.append(nn.Conv2d(before, width, 5 if level == 0 else 3, 2, 2 if level == 0 else 1))
            # The first level is wide in pixels and would cost as much as all others.
            self.blocks_2d.append(nn.Sequential(*(Residual(width) for _ in range(min(level, 2)))))
            self.turn.append(nn.Linear(64, 2 * width))
            before = width
        self.other = nn.Conv2d(VASOMIM_WIDTH, c.widths[-1], 1) if c.start == "vasomim" else None
        self.up = nn.ModuleList(
            nn.Conv2d(low + high, out, 3, padding=1)
            for low, high, out in zip(
                (c.widths[-1], *[c.dense] * (len(c.widths) - 3)),
                c.widths[-2:0:-1],
                [c.dense] * (len(c.widths) - 2),
                strict=True,
            )
        )
        self.name = nn.Linear(c.dense, sum(self.slots) + 2)
        self.enter = nn.Linear(c.widths[-1], c.token)
        self.enter_camera = nn.Linear(64, c.token)
        self.blocks = nn.ModuleList(Mixer(c.token, c.heads) for _ in range(c.blocks))
        self.back = nn.Linear(c.token, c.widths[-1])
        # Per artery: the common code and its structure styles; for both: label, patient.
        self.query = nn.Parameter(0.5 * torch.randn(2, 1 + c.structure, c.token))
        self.question = nn.Parameter(0.5 * torch.randn(2, c.token))
        self.readers = nn.ModuleList(Mixer(c.token, c.heads) for _ in range(c.readers))
        self.to_style = nn.Sequential(nn.Linear(c.token, 2 * c.token), nn.SiLU(), nn.Linear(2 * c.token, c.w_dim))
        self.to_label = nn.Linear(c.token, 3)
        self.to_tuple = nn.Linear(c.w_dim + c.token, c.tuple_dim)
        self.view_question = nn.Parameter(0.5 * torch.randn(1, c.token))
        self.view_reader = Mixer(c.token, c.heads)
        self.to_view = nn.Sequential(nn.Linear(2 * c.token, c.token), nn.SiLU(), nn.Linear(c.token, 3))
        self.to_spread = nn.Linear(c.token, 2)
        self.update = NamedUpdate(c.structure + 1, c.w_dim, c.stretches) if c.stretches else None
        for part in (self.camera, self.enter, self.enter_camera, self.back, self.to_style, self.to_label, self.to_tuple,
                     self.to_view, self.to_spread):  # fmt: skip
            initialise(part)
        for layer in (*self.down, *self.up, self.name, *self.turn):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            # Begin at the mean tree, seen in the middle of every window.
            for last in (self.to_style[-1], self.to_view[-1], self.to_spread, *self.turn):
                last.weight.mul_(0.1)
            self.name.weight.mul_(0.1)
        self.lift = Lift(c.dense, c.lifted, c.planes) if c.lifted else None
        # Set from the generator and its training vectors: the mean code of each artery, and the spread about it.
        self.register_buffer("w_average", torch.zeros(2, c.w_dim))
        self.register_buffer("w_spread", torch.ones(2, c.w_dim))
        # Fitted on validation pairs: slope and intercept of the log odds of "same patient" over the cosine of codes.
        self.register_buffer("same_patient", torch.tensor([[8.0, -4.0], [8.0, -4.0]]))

    def see(self, windows: torch.Tensor, cameras: torch.Tensor, frozen: torch.Tensor | None = None) -> ViewFeatures:
        """Features of each view by itself.

        Args:
            windows: ``(B, V, channels, S, S)`` float. cameras: ``(B, V, CAMERA_NUMBERS)``.
            frozen: ``(B, V, VASOMIM_WIDTH, h, w)`` tokens of the angiogram encoder where ``start`` is ``vasomim``.

        Raises:
            InputError: another number of channels or pixels, or more than eight views.
        """
        c = self.config
        if windows.ndim != 5 or tuple(windows.shape[2:]) != (c.channels, c.window_px, c.window_px):
            raise InputError(
                f"windows have shape {tuple(windows.shape)}; give (B, V, {c.channels}, {c.window_px}, {c.window_px})"
            )
        b, v = windows.shape[:2]
        if not 1 <= v <= MOST_VIEWS:
            raise InputError(f"{v} views; give 1 to {MOST_VIEWS}")
        angle = self.camera(cameras.reshape(b * v, -1).to(windows.dtype))
        x = windows.reshape(b * v, *windows.shape[2:]).contiguous(memory_format=torch.channels_last)
        levels = []
        for down, blocks, turn in zip(self.down, self.blocks_2d, self.turn, strict=True):
            scale, shift = turn(angle)[:, :, None, None].chunk(2, 1)
            x = F.silu(down(x) * (1 + scale) + shift)
            x = blocks(x)
            levels.append(x)
        if self.other is not None:
            if frozen is None:
                raise InputError("this encoder needs the tokens of the angiogram encoder; give frozen")
            far = F.interpolate(frozen.flatten(0, 1).to(x.dtype), size=x.shape[-2:], mode="area")
            x = x + self.other(far)
        tokens = self.enter(x.flatten(2).transpose(1, 2)) + self.enter_camera(angle)[:, None]
        place = token_places(x.shape[-1], c.token, x.device).to(tokens.dtype)
        tokens = tokens + place
        for block in self.blocks:
            tokens = block(tokens, tokens)
        # The dense maps see the tokens too: what a vessel is called depends on the whole picture.
        x = x + self.back(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
        for up, beside in zip(self.up, levels[-2:0:-1], strict=True):
            x = F.silu(up(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), beside], 1)))
        chance, at_mm = cells_of(windows.flatten(0, 1), x.shape[-1], c.window_mm)
        shape = (b, v)
        return ViewFeatures(
            tokens.unflatten(0, shape),
            x.unflatten(0, shape),
            cameras.float(),
            chance.unflatten(0, shape),
            at_mm.unflatten(0, shape),
        )

    def names(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which branch: logits ``(..., slots + 1)`` of features ``(..., dense)`` of the maps, right branches first,
        then left ones, then "no vessel of the tree"; and the logit ``(...)`` of the share of its length.
        """
        found = self.name(features)
        return found[..., :-1], found[..., -1]

    def read(
        self, seen: ViewFeatures, artery: torch.Tensor | None = None, *, correct: bool = True, sweeps: int = 0
    ) -> Codes:
        """Codes from the features of all views.

        Args:
            artery: ``(B,)`` int64, 0 right, 1 left; None takes the likelier one.
            correct: whether named places correct the code; needs :meth:`attach`. sweeps: further corrections, for
            which pixels are named by the nearest branch too (not in training).
        """
        c = self.config
        b, v, t, _ = seen.tokens.shape
        tokens = seen.tokens.reshape(b, v * t, -1)
        asked = self.question.to(tokens.dtype).expand(b, -1, -1)
        for reader in self.readers:
            asked = reader(asked, tokens)
        label = self.to_label(asked[:, 0]).float()
        if artery is None:
            artery = (label[:, 1] > label[:, 0]).long()
        styles = self.query.to(tokens.dtype)[artery]
        for reader in self.readers:
            styles = reader(styles, tokens)
        written = self.to_style(styles).float()
        spread, average = self.w_spread[artery], self.w_average[artery]
        common, delta = written[:, 0], 0.3 * written[:, 1:]
        w = average + spread * common
        w_plus = torch.cat(
            [
                w[:, None] + spread[:, None] * delta,
                w[:, None].expand(-1, c.styles - c.structure, -1),
            ],
            1,
        )
        tuple_code = F.normalize(self.to_tuple(torch.cat([common.to(tokens.dtype), asked[:, 1]], 1)).float(), dim=1)
        own = seen.tokens.reshape(b * v, t, -1)
        view = self.view_reader(self.view_question.to(own.dtype).expand(b * v, -1, -1), own)[:, 0].reshape(b, v, -1)
        view = self.to_view(torch.cat([view, styles[:, :1].expand(-1, v, -1)], 2)).float()
        log_spread = self.to_spread(styles[:, 0]).float()
        place_mm, log_scale = 20.0 * view[..., :2], 0.1 * view[..., 2]
        guess = w_plus
        if correct and self.update is not None:
            with torch.autocast(tokens.device.type, enabled=False):
                w_plus, place_mm = self._corrected(seen, guess, place_mm, log_scale, artery, sweeps)
        return Codes(w_plus, spread[:, None] * delta, guess, label, tuple_code, place_mm, log_scale, log_spread)

    def attach(self, generator) -> None:
        """Let the structure stage of a generator write the branches that the correction compares with what is seen. It
        is kept beside the modules: its weights are a file of their own.

        Raises:
            InputError: a generator of other sizes than the codes.
        """
        c, g = self.config, generator.config
        if (g.w_dim, g.structure, generator.layers) != (c.w_dim, c.structure, c.styles):
            raise InputError(
                f"the generator has {generator.layers} styles ({g.structure} of structure) of {g.w_dim} numbers, the "
                f"encoder writes {c.styles} ({c.structure}) of {c.w_dim}"
            )
        object.__setattr__(self, "_stage", generator.structure)

    def residual(self, seen: ViewFeatures, codes: Codes, box_size_mm: float) -> torch.Tensor | None:
        """What the views add to the generator's planes (``lift.with_residual``), or None without such a part."""
        if self.lift is None:
            return None
        with torch.autocast(seen.maps.device.type, enabled=False):
            return self.lift(
                seen, codes.place_mm, codes.log_scale, window_mm=self.config.window_mm, box_size_mm=box_size_mm
            )

    def _corrected(self, seen: ViewFeatures, guess, place_mm, log_scale, artery, sweeps: int):
        stage = getattr(self, "_stage", None)
        if stage is None:
            raise RuntimeError("the encoder corrects codes with the generator's structure stage: call attach first")
        new_code, new_place = guess.clone(), place_mm.clone()
        for index in range(len(ARTERIES)):
            rows = (artery == index).nonzero()[:, 0]
            if not len(rows):
                continue
            code, shift = self._corrections(
                seen.rows(rows), guess[rows], place_mm[rows], log_scale[rows], index, sweeps
            )
            new_code = new_code.index_add(0, rows, code)
            new_place = new_place.index_add(0, rows, shift)
        return new_code, new_place

    def _corrections(self, seen: ViewFeatures, guess, place_mm, log_scale, index: int, sweeps: int):
        """What is to be added to codes and places of patients of one artery."""
        c, name, stage = self.config, ARTERIES[index], self._stage
        shape = seen.chance.shape[:2]
        chance = seen.chance.flatten(0, 1)
        best = chance.topk(min(c.cells, chance.shape[1]), dim=1).indices
        chance = chance.gather(1, best)
        pixels = seen.maps.flatten(0, 1).flatten(2).transpose(1, 2).float()
        pixels = pixels.gather(1, best[..., None].expand(-1, -1, pixels.shape[2]))
        at = seen.at_mm.flatten(0, 1).gather(1, best[..., None].expand(-1, -1, 2))
        logits, share = self.names(pixels)
        first = sum(self.slots[:index])
        own = [*range(first, first + self.slots[index]), sum(self.slots)]
        logits = torch.log_softmax(logits[..., own], -1)
        measured, precision = self.update.measure(logits.exp()[..., :-1], torch.sigmoid(share), chance, at)
        start = stage.courses(stage.vectors(guess[:, : c.structure], name), name)
        like = (seen.cameras, place_mm, log_scale, name)
        origin = (self.update.places(start), place_mm)
        code, shift = self.update(origin[0], measured.unflatten(0, shape), precision.unflatten(0, shape), *like)
        for sweep in range(sweeps):
            # Where along a branch a pixel lies, its nearest point tells better than the maps once the tree is near.
            now = guess + self._all_styles(code)
            courses = stage.courses(stage.vectors(now[:, : c.structure], name), name)
            place = place_mm + shift
            away, shares = along_courses(courses, seen.cameras, place, log_scale, at.unflatten(0, shape))
            reach = max(SWEEP_MM[1], SWEEP_MM[0] * 0.7**sweep)
            gate = torch.cat([g for _, _, g in courses], 1)[:, None, None]
            near = -0.5 * (away / reach).square() + gate.clamp_min(1e-3).log()
            near = torch.cat([near, near.new_full((*near.shape[:-1], 1), -0.5 * OUTSIDE**2)], -1).flatten(0, 1)
            names = torch.softmax(TRUST * logits + near, -1)[..., :-1]
            measured, precision = self.update.measure(names, shares.flatten(0, 1), chance, at)
            code, shift = self.update(
                self.update.places(courses), measured.unflatten(0, shape), SHARPER * precision.unflatten(0, shape),
                seen.cameras, place, log_scale, name, origin=origin,
            )  # fmt: skip
        return self._all_styles(code), shift

    def _all_styles(self, code: torch.Tensor) -> torch.Tensor:
        c = self.config
        code = code.unflatten(1, (c.structure + 1, c.w_dim))
        return torch.cat([code[:, :-1], code[:, -1:].expand(-1, c.styles - c.structure, -1)], 1)

    def same_patient_probability(self, first: torch.Tensor, second: torch.Tensor, artery: int) -> torch.Tensor:
        """Probability that two tuple codes ``(..., tuple_dim)`` are of one patient, both showing this artery."""
        slope, start = self.same_patient[artery]
        return torch.sigmoid(slope * (first * second).sum(-1) + start)


#: Width of the tokens of the embedded angiogram encoder.
VASOMIM_WIDTH = 192


def set_codes(net: TreeFromViews, generator, reader=None, data=None) -> None:
    """Mean codes of a generator and, where training vectors are given, the spread of patients about them.

    Args:
        reader: vectors to W+, as of ``licag3d.train.encoder_data.CodeReader``. data: a ``VectorSet``.
    """
    net.attach(generator)
    with torch.no_grad():
        net.w_average.copy_(generator.w_average)
        if reader is not None:
            for index, artery in enumerate(ARTERIES):
                w, delta = reader(artery, data.vector[artery], data.known[artery])
                net.w_average[index] = w.mean(0)
                net.w_spread[index] = w.std(0).clamp_min(1e-3)
                if net.update is not None:
                    codes = torch.cat([w[:, None] + delta, w[:, None]], 1)
                    patients_moments(net.update, generator.structure, codes, artery)


def load_tree_encoder(
    name_or_path: str = "tree_encoder", device: str | torch.device = "cpu", *, generator: str = "generator"
) -> TreeFromViews:
    """The encoder in eval mode, its card as ``card``.

    Args:
        name_or_path: embedded weights, a ``.safetensors`` file of a training run, or ``random`` (an untrained encoder
            about the mean codes of the generator: always the same).
        generator: whose codes it writes.

    Raises:
        InputError: missing, damaged, or of another architecture.
    """
    from licag3d.train.checkpoints import load_into, load_weights
    from licag3d.weights import load

    if name_or_path == "random":
        from licag3d.models.generator import load_generator

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = TreeFromViews(TreeEncoderConfig())
        set_codes(net.to(device), load_generator(generator, device)[0])
        net.card = {"model": "tree_encoder", "config": config_facts(net.config), "random": True}
    else:
        tensors, card = load_weights(name_or_path) if name_or_path.endswith(".safetensors") else load(name_or_path)
        net = TreeFromViews(tree_encoder_config(card, name_or_path))
        load_into(net, {key: value.float() for key, value in tensors.items()}, name_or_path)
        from licag3d.models.generator import load_generator

        net.attach(load_generator(generator, device)[0])
        net.card = card
    return net.eval().requires_grad_(False).to(device)
