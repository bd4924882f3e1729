# SPDX-License-Identifier: Apache-2.0
"""Encoding of views: from vessel evidence and cameras to a W+ code, where the tree lies, and how sure that is.

encoder = load_tree_encoder()
encoding = encode_views(evidence, cameras, encoder=encoder)        # 1 to 8 views
tree = encoded_tree(encoding, load_generator()[0])                 # named branches, LPS mm
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from licag3d.errors import InputError
from licag3d.geometry import Camera
from licag3d.models.branch_table import ARTERIES, tree_of
from licag3d.models.encoder import MOST_VIEWS, TreeFromViews
from licag3d.models.view_windows import Window, camera_numbers, cut_window
from licag3d.structures import VesselEvidence, VesselTree, View

#: What a ray through the centre of the tree is wrong by, and how far a tree lies from the isocentre, mm.
_RAY_MM, _ISOCENTRE_MM = 3.0, 25.0
#: Views whose centres miss each other by more have cameras that do not fit together yet: the first view decides.
_TOGETHER_MM = 8.0
#: Sweeps after the first correction: later ones change little (docs/encoder.md).
SWEEPS = 8


@dataclass(frozen=True)
class Encoding:
    """What the encoder reads off some views of one patient.

    Args:
        w_plus: ``(styles, w_dim)`` float32 code of the generator; the first five write the tree.
        artery: ``rca`` or ``lca``, of which ``w_plus`` speaks.
        label_probability: ``(3,)`` right, left, co-dominant patient.
        tuple_code: ``(tuple_dim,)`` unit length: close for views of one patient (:func:`tuple_consistency`).
        center_mm: ``(3,)`` centre of the box of the tree, world LPS mm; the depth along the beam of a single view is
            that of the isocentre.
        scale: size of the tree against one at ``center_mm``, from how large the tree looks; 1 is the isocentre's.
            scale_spread: its expected error (log).
        course_mm: expected error of the courses, mm: how far the code may be trusted.
        place_mm: ``(V, 2)`` (u, v) of the centre of the box in each view, mm at the isocentre.
        offset_mm: ``(V, 3)`` what would have to be added to the offset of each camera for its view to meet
            ``center_mm``, across its beam; near zero where the cameras fit together.
        names: ``(V, slots, M, M)`` probability of each branch of ``artery`` where there is a vessel, and
            share: ``(V, M, M)`` share of its length, on maps of ``windows`` (:meth:`names_at`).
        windows: what was seen. box_size_mm, label: as the generator needs them.
    """

    w_plus: np.ndarray
    artery: str
    label_probability: np.ndarray
    tuple_code: np.ndarray
    center_mm: np.ndarray
    scale: float
    scale_spread: float
    course_mm: float
    place_mm: np.ndarray
    offset_mm: np.ndarray
    names: np.ndarray
    share: np.ndarray
    windows: tuple[Window, ...]
    window_mm: float

    @property
    def confidence(self) -> float:
        """0..1: one for a code without error, a half at 4 mm of error of the courses."""
        return 1.0 / (1.0 + self.course_mm / 4.0)

    def names_at(self, view: int, camera: Camera, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which branch the vessel at pixels ``(N, 2)`` (col, row) of a view is: probability ``(N, slots + 1)`` in the
        order of ``branch_table.table_of(artery)``, the last for "no vessel of this tree"; share ``(N,)`` of its length.
        """
        from licag3d.models.view_windows import plane_mm

        at = plane_mm(camera, pixels) - self.windows[view].center_mm
        grid = torch.from_numpy((2 * at / self.window_mm).astype(np.float32))[None, None]
        both = torch.from_numpy(np.concatenate([self.names[view], self.share[view][None]]))[None]
        found = torch.nn.functional.grid_sample(both, grid, align_corners=False, padding_mode="border")[0, :, 0].T
        return found[:, :-1].numpy(), found[:, -1].numpy()


def encode_views(
    views_or_evidence: Sequence[View | VesselEvidence],
    cameras: Sequence[Camera] | None = None,
    *,
    encoder: TreeFromViews,
    artery: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    device: str | torch.device | None = None,
    sweeps: int = SWEEPS,
) -> Encoding:
    """One encoding of one to eight views of a patient.

    Args:
        views_or_evidence: evidence per view, or views whose evidence is found first.
        cameras: per view; as the user has them or corrected. None takes those of the views.
        artery: ``rca`` or ``lca`` where it is known; None: the likelier one.
        images: frames ``(rows, cols)`` 0..1, for encoders that see them (``channels`` 3).
        sweeps: corrections of the code after the first, about 15 ms each with two views.

    Raises:
        InputError: no view or more than eight, cameras of another number or another size than the evidence.
    """
    return _encode(views_or_evidence, cameras, encoder, artery, images, device, sweeps, each=False)[0]


def encode_each(
    views_or_evidence: Sequence[View | VesselEvidence],
    cameras: Sequence[Camera] | None = None,
    *,
    encoder: TreeFromViews,
    artery: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    device: str | torch.device | None = None,
    sweeps: int = SWEEPS,
) -> list[Encoding]:
    """Every view by itself: whether views show the same artery (``label_probability``) of the same patient
    (:func:`tuple_consistency`). Arguments as of :func:`encode_views`.
    """
    return _encode(views_or_evidence, cameras, encoder, artery, images, device, sweeps, each=True)


def tuple_consistency(first: Encoding, second: Encoding, *, encoder: TreeFromViews) -> float:
    """Probability that two views (encoded by :func:`encode_each`) show one artery of one patient.

    The probability that both show the same artery times that of the same patient given that, which was calibrated on
    phantom validation pairs of the same patient against pairs of two patients with the same artery, half of each.
    """
    codes = [torch.from_numpy(e.tuple_code) for e in (first, second)]
    total = 0.0
    for index in range(len(ARTERIES)):
        both = [e.label_probability[index] / max(e.label_probability[:2].sum(), 1e-9) for e in (first, second)]
        total += float(both[0] * both[1] * encoder.same_patient_probability(*codes, index))
    return total


def encoded_tree(encoding: Encoding, generator) -> VesselTree:
    """The tree of an encoding, branches named, world LPS mm."""
    w = torch.from_numpy(encoding.w_plus)[None]
    with torch.no_grad():
        vector = generator.structure.vectors(w[:, : generator.config.structure], encoding.artery)[0]
    return vector_tree(generator.structure, encoding.artery, vector, encoding.center_mm)


def vector_tree(stage, artery: str, vector: torch.Tensor, center_mm=(0.0, 0.0, 0.0)) -> VesselTree:
    """The tree of a vector that the structure stage wrote, world LPS mm: branches are there with a probability."""
    table = stage.tables[artery]
    sure = vector.clone()
    places = list(table.offsets[:-1])
    sure[places] = torch.sigmoid(4 * sure[places])
    return tree_of(sure.numpy().astype(np.float64), table, np.asarray(center_mm, np.float64))


@torch.no_grad()
def _encode(items, cameras, encoder, artery, images, device, sweeps, *, each: bool) -> list[Encoding]:
    evidence, cameras, images = _checked(items, cameras, images, encoder, artery)
    config = encoder.config
    device = next(encoder.parameters()).device if device is None else torch.device(device)
    windows = [
        cut_window(e, camera, window_px=config.window_px, window_mm=config.window_mm, image=image)
        for e, camera, image in zip(evidence, cameras, images, strict=True)
    ]
    pictures = torch.from_numpy(np.stack([window.picture for window in windows]))[None].to(device)
    numbers = torch.from_numpy(camera_numbers(cameras, [w.center_mm for w in windows]))[None].to(device)
    seen = encoder.see(pictures, numbers, frozen_tokens(encoder, pictures))
    chosen = None if artery is None else torch.tensor([ARTERIES.index(artery)], device=device)
    groups = [[k] for k in range(len(windows))] if each else [list(range(len(windows)))]
    out = []
    for group in groups:
        part = seen.only(group)
        codes = encoder.read(part, chosen, sweeps=sweeps)
        out.append(_encoding(encoder, codes, part, [windows[k] for k in group], [cameras[k] for k in group], artery))
    return out


def frozen_tokens(encoder: TreeFromViews, pictures: torch.Tensor) -> torch.Tensor | None:
    """Tokens ``(B, V, width, h, w)`` of the embedded angiogram encoder for encoders that begin from it, else None.

    It sees what it was trained on as nearly as evidence allows: the frame where there is one, or vessels dark on grey.
    """
    if encoder.config.start != "vasomim":
        return None
    angiogram = getattr(encoder, "_angiogram", None)
    if angiogram is None:
        from licag3d.models.vasomim import load_encoder

        # Kept outside the modules: its weights are files of their own.
        angiogram = load_encoder().to(pictures.device)
        object.__setattr__(encoder, "_angiogram", angiogram)
    with torch.no_grad():
        frames = pictures[:, :, 2] if pictures.shape[2] > 2 else 0.6 * torch.exp(-0.7 * pictures[:, :, 1])
        maps = angiogram.maps(frames.flatten(0, 1)[:, None].float(), 1)[-1]
    return maps.unflatten(0, pictures.shape[:2])


def _encoding(encoder, codes, seen, windows, cameras, artery) -> Encoding:
    chance = torch.sigmoid(codes.label[0]).cpu().numpy()
    # Right and left exclude each other.
    chance[:2] = torch.softmax(codes.label[0, :2], 0).cpu().numpy()
    index = int(chance[1] > chance[0]) if artery is None else ARTERIES.index(artery)
    place = np.stack([window.center_mm for window in windows]) + codes.place_mm[0].cpu().numpy()
    center, offset = _center(cameras, place)
    first = sum(encoder.slots[:index])
    rows = [*range(first, first + encoder.slots[index]), sum(encoder.slots)]
    names, share = encoder.names(seen.maps[0].movedim(1, -1))
    return Encoding(
        w_plus=codes.w_plus[0].float().cpu().numpy(),
        artery=ARTERIES[index],
        label_probability=chance,
        tuple_code=codes.tuple_code[0].cpu().numpy(),
        center_mm=center,
        scale=float(torch.exp(codes.log_scale[0].mean())),
        scale_spread=float(torch.exp(codes.log_spread[0, 1]) * 0.03),
        course_mm=float(4.0 * torch.exp(codes.log_spread[0, 0])),
        place_mm=place,
        offset_mm=offset,
        names=torch.softmax(names[..., rows].float(), -1).movedim(-1, 1).cpu().numpy(),
        share=torch.sigmoid(share.float()).cpu().numpy(),
        windows=tuple(windows),
        window_mm=encoder.config.window_mm,
    )


def _center(cameras: Sequence[Camera], place_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World point nearest to the rays through the places, drawn a little to the isocentre; and offsets to meet it."""
    from licag3d.models.view_windows import plane_pixels

    rays = []
    for camera, at in zip(cameras, place_mm, strict=True):
        source, to_pixel = camera.rays(*plane_pixels(camera, at))
        rays.append((source, to_pixel / np.linalg.norm(to_pixel)))
    center = _nearest(rays)
    if max(_away(ray, center) for ray in rays) > _TOGETHER_MM:
        center = _nearest(rays[:1])
    offsets = []
    for source, along in rays:
        to_center = center - source
        offsets.append(along * (to_center @ along) - to_center)
    return center, np.array(offsets)


def _nearest(rays) -> np.ndarray:
    matrix, right = np.eye(3) / _ISOCENTRE_MM**2, np.zeros(3)
    for source, along in rays:
        across = (np.eye(3) - np.outer(along, along)) / _RAY_MM**2
        matrix += across
        right += across @ source
    return np.linalg.solve(matrix, right)


def _away(ray, point: np.ndarray) -> float:
    source, along = ray
    return float(np.linalg.norm(np.cross(point - source, along)))


def _checked(items, cameras, images, encoder, artery):
    if not 1 <= len(items) <= MOST_VIEWS:
        raise InputError(f"{len(items)} views; give 1 to {MOST_VIEWS}")
    if artery is not None and artery not in ARTERIES:
        raise InputError(f"artery is '{artery}'; choose rca or lca")
    if cameras is None:
        if not all(isinstance(item, View) for item in items):
            raise InputError("evidence has no cameras: give one per view")
        cameras = [item.camera for item in items]
    if len(cameras) != len(items):
        raise InputError(f"{len(cameras)} cameras for {len(items)} views; give one per view")
    if encoder.config.channels > 2 and images is None:
        if not all(isinstance(item, View) for item in items):
            raise InputError("this encoder sees the frames too: give images, or views instead of evidence")
        images = [item.image for item in items]
    images = images if encoder.config.channels > 2 else [None] * len(items)
    evidence = []
    for k, (item, camera) in enumerate(zip(items, cameras, strict=True), 1):
        if isinstance(item, View):
            from licag3d.models.vessel_evidence import vessel_evidence

            item = vessel_evidence(item)
        if item.probability.shape != (camera.rows, camera.cols):
            raise InputError(
                f"view {k}: the evidence has {item.probability.shape[0]} x {item.probability.shape[1]} px, its camera "
                f"{camera.rows} x {camera.cols} px; resize the camera (Camera.resized)"
            )
        evidence.append(item)
    return evidence, cameras, images
