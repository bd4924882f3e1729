# SPDX-License-Identifier: Apache-2.0
"""A small CTA with known vessels in a moved frame, and a reconstruction of them that is slightly wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from licag3d.geometry import Camera
from licag3d.metrics.rigid import Rigid
from licag3d.phantom.anatomy import sample_tree
from licag3d.structures import VesselTree
from licag3d.vessels.rasterize import tree_grid, tree_occupancy


def rotation(degrees, axis) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(np.deg2rad(degrees) * np.asarray(axis) / np.linalg.norm(axis)).as_matrix()


def moved(tree: VesselTree, rigid: Rigid) -> VesselTree:
    return VesselTree(tuple(replace(b, points_lps_mm=rigid.apply(b.points_lps_mm)) for b in tree.branches))


@dataclass(frozen=True)
class CtaCase:
    """``tree`` is the truth at the isocentre, ``pred`` its reconstruction; ``rigid`` brings the CT there."""

    tree: VesselTree
    pred: VesselTree
    cameras: list[Camera]
    rigid: Rigid
    hu: np.ndarray
    mask: np.ndarray
    origin_mm: tuple[float, float, float]
    spacing_mm: float


def make_case(seed: int = 7, spacing_mm: float = 0.6) -> CtaCase:
    """A right artery of three branches in fat, 380 HU against -60 HU, with structure and noise."""
    from scipy.ndimage import gaussian_filter

    # Twigs thinner than a voxel would not be in the labels, which is not what is tested.
    tree = VesselTree(
        tuple(replace(b, radius_mm=np.maximum(b.radius_mm, 0.8)) for b in sample_tree(seed, "rca").branches[:4])
    )
    middle = np.concatenate([b.points_lps_mm for b in tree.branches]).mean(0)
    tree = moved(tree, Rigid(np.eye(3), -middle))
    rigid = Rigid(rotation(14, (1, -2, 1.5)), np.array((35.0, -160.0, 420.0)))
    grid = tree_grid(moved(tree, rigid.inverse()), spacing_mm, margin_mm=9)
    share = tree_occupancy(moved(tree, rigid.inverse()), grid, supersample=2).values
    rng = np.random.default_rng(seed)
    fat = gaussian_filter(rng.normal(size=share.shape).astype(np.float32), 6)
    hu = (-60 + 40 * fat / fat.std()) * (1 - share) + 380 * share + 15 * rng.normal(size=share.shape)

    def wrong(branch):
        p = branch.points_lps_mm / 12
        shift = 0.3 * np.stack((np.sin(p[:, 1] + 1), np.sin(p[:, 2] + 2), np.sin(p[:, 0])), axis=1)
        return replace(branch, points_lps_mm=branch.points_lps_mm + shift, radius_mm=1.05 * branch.radius_mm)

    pred = VesselTree(tuple(wrong(b) for b in tree.branches[:-1]))
    cameras = [Camera(a, b, 1000, 765, 0.6, 0.6, 240, 240) for a, b in ((30, 0), (-30, 15))]
    return CtaCase(tree, pred, cameras, rigid, hu.astype(np.int16), share > 0.5, grid.origin_mm, spacing_mm)


def save(path, values, origin_mm, spacing_mm, direction=None) -> None:
    """A volume by SimpleITK, the format by the name."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(s) for s in np.broadcast_to(spacing_mm, 3)])
    image.SetOrigin([float(x) for x in origin_mm])
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).ravel().tolist())
    sitk.WriteImage(image, str(path))


def save_series(folder, values, origin_mm, spacing_mm, *, uid="1.2.3", modality="CT", drop=(), missing=()) -> None:
    """A DICOM series: one file per slice, HU by the rescale tags, in an order that is not that of the slices."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(exist_ok=True)
    for k in range(len(values)):
        if k in drop:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid, str(k)])
        name = folder / f"{uid}_{(7 * k) % 1000:04d}_{k}.dcm"
        ds = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = modality, uid, "1.2"
        ds.Rows, ds.Columns = values.shape[1:]
        ds.PixelSpacing = [spacing_mm, spacing_mm]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [*origin_mm[:2], origin_mm[2] + k * spacing_mm]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = (values[k].astype(np.int32) + 1024).clip(0, 65535).astype("<u2").tobytes()
        for tag in missing:
            delattr(ds, tag)
        pydicom.dcmwrite(name, ds, enforce_file_format=True)
