# SPDX-License-Identifier: Apache-2.0
"""Validation of the tree encoder: patients of VALIDATION seeds, seen from one, two and three views, and a sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from licag3d.io.atomic import write_bytes
from licag3d.models.branch_table import ARTERIES
from licag3d.models.encode_views import frozen_tokens
from licag3d.models.encoder import Codes, TreeFromViews
from licag3d.train.encoder_data import ViewMaker
from licag3d.train.encoder_pairs import PairWindows
from licag3d.train.encoder_step import EncoderTrainee, course_errors_mm, line_pictures

#: Views of each patient; sets of them are read.
VIEWS = 3
#: Patients on a sheet.
SHEET_ROWS = 4


class EncoderChecks:
    """Called with the averaged model: numbers, and ``sheet-STEP.png`` in the run folder.

    Args:
        folder: of the run. maker: of validation patients. patients: per artery, the first ones of the pool.
        pairs: rendered validation patients (``clean``); where there are any they give the score, with the share of the
            places whose branch is named rightly beside it.
    """

    def __init__(self, folder, maker: ViewMaker, patients: int, pairs: PairWindows | None = None):
        self.folder, self.calls = Path(folder), 0
        rows = [[(artery, k) for k in range(min(patients, len(maker.data.number[artery])))] for artery in ARTERIES]
        # Small batches: right ones first in each.
        self.batches = [
            maker.batch(np.random.default_rng([7, start]), [r for part in rows for r in part[start : start + 4]], VIEWS)
            for start in range(0, max(len(part) for part in rows), 4)
        ]
        self.rendered = [] if pairs is None else _pair_batches(pairs, maker.reader)

    @torch.no_grad()
    def __call__(self, model: EncoderTrainee) -> dict[str, float]:
        numbers, sheet = _checked(model, self.batches)
        numbers["score"] = -0.5 * (numbers["rca_2_mm"] + numbers["lca_2_mm"])
        if self.rendered:
            found, sheet = _checked(model, self.rendered)
            numbers |= {f"rendered_{key}": value for key, value in found.items()}
            numbers["score"] = -0.5 * (found["rca_2_mm"] + found["lca_2_mm"])
        self.calls += 1
        write_bytes(self.folder / f"sheet-{self.calls:04d}.png", sheet_png(*sheet))
        return numbers


def _pair_batches(pairs: PairWindows, reader) -> list[dict]:
    rows = [pairs.of(artery) for artery in range(len(ARTERIES))]
    return [
        pairs.batch(np.random.default_rng([7, start]), reader, [r for part in rows for r in part[start : start + 4]])
        for start in range(0, max(len(part) for part in rows), 4)
    ]


def _checked(model: EncoderTrainee, batches: list[dict]):
    """Numbers over some batches, and what the sheet of the first shows."""
    net, stage = model.encoder, model.generator.structure
    device = next(net.parameters()).device
    sums: dict[str, list[float]] = {}
    codes: dict[str, list] = {"first": [], "second": [], "artery": []}
    sheet = None
    for batch in batches:
        batch = {key: value.to(device) for key, value in batch.items()}
        seen = net.see(batch["windows"], batch["cameras"], frozen_tokens(net, batch["windows"]))
        most = batch["windows"].shape[1]
        for views in range(1, most + 1):
            code = net.read(seen.only(list(range(views))), batch["artery"])
            if views == most and sheet is None:
                sheet = (net, stage, batch, code)
            _collect(sums, stage, code, batch, views)
        _names(sums, net, seen.maps.float(), batch)
        for k, key in enumerate(("first", "second")):
            codes[key].append(net.read(seen.only([k]), batch["artery"], correct=False).tuple_code)
        codes["artery"].append(batch["artery"])
    numbers = {key: float(np.mean(values)) for key, values in sums.items()}
    first, second, artery = (torch.cat(codes[key]) for key in ("first", "second", "artery"))
    numbers["patient_auc"] = patient_auc(first, second, artery)
    return numbers, sheet


def _names(sums: dict, net: TreeFromViews, maps: torch.Tensor, batch: dict) -> None:
    """Share of the cells with a vessel whose branch is named rightly: all, and those of side branches of side branches
    (``.a``, ``.b``)."""
    logits, _ = net.names(maps.movedim(2, -1))  # (B, V, M, M, names)
    right, left = net.slots
    for index, first, count in ((0, 0, right), (1, right, left)):
        rows = batch["artery"] == index
        if not bool(rows.any()):
            continue
        name = batch["name"][rows]
        found = logits[rows][..., first : first + count].argmax(-1)
        small = torch.tensor(["." in slot.name for slot in net.update.tables[ARTERIES[index]].slots])
        on = name >= 0
        hit, twig = (found == name)[on], small.to(name.device)[name.clamp_min(0)][on]
        sums.setdefault("named", []).extend(hit.float().tolist())
        sums.setdefault("named_small", []).extend(hit[twig].float().tolist())


def patient_auc(first: torch.Tensor, second: torch.Tensor, artery: torch.Tensor) -> float:
    """How well the cosine of codes ``(P, D)`` of two views tells one patient from two with the same artery: area under
    the receiver operating curve, a half for chance.
    """
    alike = first @ second.T
    same = torch.eye(len(first), dtype=torch.bool, device=first.device)
    fair = artery[:, None] == artery[None]
    right, wrong = alike[same], alike[fair & ~same]
    if not len(wrong):
        return float("nan")
    above = (right[:, None] > wrong[None]).float().mean() + 0.5 * (right[:, None] == wrong[None]).float().mean()
    return float(above)


def _collect(sums: dict, stage, code: Codes, batch: dict, views: int) -> None:
    first = 0
    for artery in ARTERIES:
        truth = batch[f"{artery}.vector"]
        rows = slice(first, first + len(truth))
        first += len(truth)
        if len(truth):
            written = stage.vectors(code.w_plus[rows, : stage.groups], artery)
            sums.setdefault(f"{artery}_{views}_mm", []).extend(course_errors_mm(stage, artery, written, truth).tolist())
    found = (code.label[:, 1] > code.label[:, 0]).long()
    sums.setdefault(f"artery_{views}", []).extend((found == batch["artery"]).float().tolist())
    off = (code.place_mm - batch["place_mm"][:, :views]).norm(dim=2)
    sums.setdefault(f"place_{views}_mm", []).extend(off.flatten().tolist())


def sheet_png(net: TreeFromViews, stage, batch: dict, code: Codes) -> bytes:
    """Input windows (grey) with the encoded tree of all of them reprojected over them (red); patients in rows."""
    import imageio.v3 as imageio

    rows, first = [], 0
    for artery in ARTERIES:
        count = len(batch[f"{artery}.vector"])
        part = slice(first, first + min(count, SHEET_ROWS // 2))
        first += count
        if not count:
            continue
        written = stage.vectors(code.w_plus[part, : stage.groups], artery)
        seen = (batch["cameras"][part].float(), code.place_mm[part], code.log_scale[part])
        size = net.config.window_px
        tree = line_pictures(stage, artery, written, *seen, net.config.window_mm, size).clamp(0, 0.4) / 0.4
        grey = 1 - 0.8 * batch["windows"][part, :, 0].float().clamp(0, 1)
        colour = torch.stack([grey, grey * (1 - tree), grey * (1 - tree)], -1)
        rows += [torch.cat(list(patient), 1) for patient in colour]
    picture = (255 * torch.cat(rows, 0).clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
    return imageio.imwrite("<bytes>", picture, extension=".png")
