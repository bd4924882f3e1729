# SPDX-License-Identifier: Apache-2.0
"""From file names to views: everything that can be wrong is found before a pixel is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.geometry import Camera, view_angle_deg
from licag3d.io import cameras as camera_files
from licag3d.io.collimator import burnt_in_marks, valid_area
from licag3d.io.files import Frame, PartialCamera, Source, check_file, check_frame, sniff, split_frame
from licag3d.io.images import open_image, read_mask
from licag3d.io.keyframe import KeyFrame, contrast_free_background, find_key_frame
from licag3d.structures import View

MAX_VIEWS = 8
SAME_DIRECTION_DEG = 5.0
_USER = "the command line or cameras.json"
PerView = float | Sequence[float] | None


def open_source(text: str) -> Source:
    """Check one input, ``file`` or ``file#frame``: kind, size, frame number; nothing is decoded.

    Raises:
        InputError: one line for each thing that may be wrong with a file.
    """
    path, frame = split_frame(text)
    check_file(path)
    kind = sniff(path)
    if kind == "DICOM":
        from licag3d.io.dicom import open_dicom

        return open_dicom(path, frame)
    return open_image(path, kind, frame)


def read_views(paths: Sequence[str], *, cameras: str | Path | None = None,
               angles: Sequence[tuple[float, float]] | None = None, sid_mm: PerView = None,
               sod_mm: PerView | str = None, pixel_spacing_mm: PerView = None, masks: Sequence[str] | None = None,
               polarity: str = "auto", need_geometry: bool = True) -> tuple[list[View], list[str]]:
    """Read 1 to 8 views with their cameras.

    What the command line says (``angles``, ``sid_mm``, ``sod_mm``, ``pixel_spacing_mm``) goes before ``cameras``, which
    goes before the tags of a DICOM file. Files, headers, cameras and sizes of all views are checked before any pixel is
    decoded.

    Args:
        paths: files, each optionally ``file#frame`` (frames counted from 0); a cine without it gets its key frame
            found.
        cameras: path of a cameras.json (docs/formats.md), views in the order of ``paths`` or told apart by file name.
        angles: (primary, secondary) per view, degrees, LAO and cranial positive.
        sid_mm, sod_mm, pixel_spacing_mm: one value for all views or one per view; ``sod_mm`` may be ``"default"`` for
            765 mm.
        masks: image files with the user's vessel mask, one per view.
        polarity: ``dark`` (vessels are dark), ``bright``, or ``auto`` (bright vessels are recognised and turned over).
        need_geometry: False for work in single images: views without geometry get the documented standard camera.

    Returns:
        The views, and what was assumed or is doubtful, one sentence each (also in ``View.notes`` where it concerns one
        view).

    Raises:
        InputError: anything wrong with the input, in one line.

    Example:
        >>> views, warnings = read_views(["a.png", "b.png"], angles=[(30, 0), (-30, 0)], sid_mm=1000, sod_mm=765,
        ...                              pixel_spacing_mm=0.3)  # doctest: +SKIP
    """
    paths = [paths] if isinstance(paths, (str, Path)) else [str(path) for path in paths]
    if not 1 <= len(paths) <= MAX_VIEWS:
        raise InputError(f"{len(paths)} views given: give 1 to {MAX_VIEWS}, two are the standard case")
    if polarity not in ("auto", "dark", "bright"):
        raise InputError(f"polarity {polarity!r} is not known: give auto, dark or bright")
    sources = [open_source(path) for path in paths]
    stated = _stated(sources, cameras, angles, sid_mm, sod_mm, pixel_spacing_mm)
    sources = [_with_frame(source, item) for source, item in zip(sources, stated, strict=True)]
    fingerprints = _check_distinct_files(paths, sources)
    plans, warnings = _plan_cameras(sources, stated, need_geometry)
    view_masks = _read_masks(masks, sources, warnings)
    if len(sources) == 1 and need_geometry:
        warnings.append("Only one view was given: depth along the rays comes from assumptions alone; give a second "
                        "view.")
    for (i, first), (j, second) in _pairs([plan.camera for plan in plans]) if need_geometry else ():
        angle = view_angle_deg(first, second)
        if min(angle, 180 - angle) < SAME_DIRECTION_DEG:
            warnings.append(f"Views {i + 1} and {j + 1} look along the same line within {min(angle, 180 - angle):.1f} "
                            f"degrees: they tell next to nothing about depth; 30 degrees or more between views is "
                            f"advisable.")
    views = [_read(plan, mask, polarity) for plan, mask in zip(plans, view_masks, strict=True)]
    _check_distinct_pixels(views, sources, fingerprints)
    for k, view in enumerate(views):
        warnings.extend(f"View {k + 1} ({view.file}): {note}" for note in view.notes)
    return views, list(dict.fromkeys(warnings))


@dataclass(frozen=True)
class _Plan:
    """One view, checked; ``partial`` is None when its camera is the standard one."""

    source: Source
    camera: Camera
    stated: PartialCamera
    partial: PartialCamera | None
    notes: tuple[str, ...]

    def camera_of(self, frame: int) -> tuple[Camera, tuple[str, ...]]:
        if self.partial is None:
            return self.camera, self.notes
        tags = self.source.camera(frame)
        merged = camera_files.overlay(tags, self.stated, _USER)
        return camera_files.complete(merged, self.source.rows, self.source.cols, self.source.label), merged.notes


def _per_view(value, count: int, flag: str) -> list[float | None]:
    """One number for all, or one per view."""
    if value is None:
        return [None] * count
    values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
    try:
        values = [float(x) for x in values]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{flag} {value!r} is not a number: give millimetres") from None
    if any(not np.isfinite(x) or x <= 0 for x in values):
        raise InputError(f"{flag} {', '.join(f'{x:g}' for x in values)}: give finite millimetres above 0")
    if len(values) not in (1, count):
        raise InputError(f"{flag} has {len(values)} values for {count} views: give one, or one per view")
    return values * count if len(values) == 1 else values


def _stated(sources: Sequence[Source], cameras, angles, sid_mm, sod_mm,
            pixel_spacing_mm) -> list[tuple[PartialCamera, int | None]]:
    """What the user states per view, apart from DICOM tags, with the frame cameras.json names."""
    count = len(sources)
    items: list[tuple[PartialCamera, int | None]] = [(PartialCamera(), None)] * count
    if cameras is not None:
        items = _match(camera_files.read_cameras_json(cameras), sources, Path(cameras).name)
    if angles is not None:
        pairs = list(angles)
        if len(pairs) != count:
            raise InputError(f"--angles has {len(pairs)} pairs for {count} views: give PRIMARY,SECONDARY once per view")
        try:
            pairs = [tuple(float(x) for x in pair) for pair in pairs]
        except (TypeError, ValueError, OverflowError):
            raise InputError("--angles: give PRIMARY,SECONDARY in degrees per view, for example 30,0 -30,0") from None
        for pair in pairs:
            if len(pair) != 2 or not (abs(pair[0]) <= 180 and abs(pair[1]) <= 90):
                raise InputError(f"--angles {','.join(f'{x:g}' for x in pair)}: give a primary angle within -180..180 "
                                 f"and a secondary angle within -90..90 degrees")
    sod_note: tuple[str, ...] = ()
    if isinstance(sod_mm, str):
        if sod_mm.strip().lower() != "default":
            sod_mm = _per_view(sod_mm, 1, "--sod")[0]
        else:
            sod_mm = camera_files.DEFAULT_SOD_MM
            sod_note = (f"SOD was taken to be {sod_mm:g} mm, the vendor-neutral default, as asked for.",)
    sid, sod = _per_view(sid_mm, count, "--sid"), _per_view(sod_mm, count, "--sod")
    spacing = _per_view(pixel_spacing_mm, count, "--pixel-spacing")
    result = []
    for k, (item, frame) in enumerate(items):
        flags = PartialCamera(*(pairs[k] if angles is not None else (None, None)), sid_mm=sid[k], sod_mm=sod[k],
                              spacing_row_mm=spacing[k], spacing_col_mm=spacing[k], notes=sod_note)
        result.append((camera_files.overlay(item, flags, "the command line"), frame))
    return result


def _match(entries, sources: Sequence[Source], name: str) -> list[tuple[PartialCamera, int | None]]:
    """Cameras to views: by file name where every name is there exactly once, else by order."""
    if len(entries) != len(sources):
        raise InputError(f"{name} has {len(entries)} cameras but {len(sources)} views were given: give one camera per "
                         f"view")
    given = [source.label for source in sources]
    named = [Path(file).name if file else None for _, file, _ in entries]
    if len(set(given)) == len(given) and sorted(given) == sorted(x or "" for x in named):
        entries = [entries[named.index(label)] for label in given]
        return [(partial, frame) for partial, _, frame in entries]
    result = []
    for k, (partial, _, frame) in enumerate(entries):
        if named[k] and named[k] != given[k]:
            note = f"{name} names {named[k]!r} for this view; cameras were matched by order."
            partial = replace(partial, notes=(*partial.notes, note))
        result.append((partial, frame))
    return result


def _with_frame(source: Source, item: tuple[PartialCamera, int | None]) -> Source:
    """``#frame`` goes before the frame of cameras.json, which goes before the search for the key frame."""
    frame = item[1]
    if source.frame is not None or frame is None or (source.frames == 1 and frame == 0):
        return source
    if source.frames == 1 and source.kind != "DICOM":
        return source  # a still exported from a cine: the number belongs to the cine
    check_frame(source.label, frame, source.frames)
    return replace(source, frame=frame, notes=(*source.notes, f"Frame {frame} was taken as cameras.json says."))


def _check_distinct_files(paths: Sequence[str], sources: Sequence[Source]) -> list[bytes]:
    """The same frame of the same content must not be given twice."""
    digests = []
    for source in sources:
        digest = hashlib.sha256()
        try:
            with open(source.path, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{source.label}: cannot be read ({error.strerror}): check its permissions") from None
        digests.append(digest.digest())
    for (i, first), (j, second) in _pairs(digests):
        same_frame = sources[i].frame == sources[j].frame or max(sources[i].frames, sources[j].frames) == 1
        if first == second and same_frame:
            raise InputError(f"views {i + 1} and {j + 1} are the same picture ({sources[i].label}, "
                             f"{sources[j].label}): give two different views of the same tree")
    return digests


def _check_distinct_pixels(views: Sequence[View], sources: Sequence[Source], digests: Sequence[bytes]) -> None:
    for (i, first), (j, second) in _pairs(views):
        if first.image.shape == second.image.shape and np.array_equal(first.image, second.image):
            raise InputError(f"views {i + 1} and {j + 1} have identical pixels ({sources[i].label}, "
                             f"{sources[j].label}): give two different views of the same tree")


def _pairs(items: Sequence) -> Iterator[tuple[tuple[int, object], tuple[int, object]]]:
    for j in range(len(items)):
        for i in range(j):
            yield (i, items[i]), (j, items[j])


def _plan_cameras(sources: Sequence[Source], stated: Sequence[tuple[PartialCamera, int | None]],
                  need_geometry: bool) -> tuple[list[_Plan], list[str]]:
    plans, warnings = [], []
    partials = []
    for source, (said, _) in zip(sources, stated, strict=True):
        partials.append(camera_files.overlay(source.camera(source.frame or 0), said, _USER))
    nothing = [camera_files.says_nothing(partial) for partial in partials]
    assume = all(nothing) and all(source.kind != "DICOM" for source in sources)
    for k, (source, partial) in enumerate(zip(sources, partials, strict=True)):
        if assume or (nothing[k] and not need_geometry):
            camera = camera_files.standard_camera(k, source.rows, source.cols)
            note = (f"No geometry was given: assumed primary {camera.primary_deg:g}, secondary "
                    f"{camera.secondary_deg:g} degrees, SID {camera.sid_mm:g} mm, SOD {camera.sod_mm:g} mm, pixel "
                    f"spacing {camera.spacing_col_mm:.4g} mm.")
            if not need_geometry:
                note = "No geometry was given; it is not needed for work in the image."
            plans.append(_Plan(source, camera, stated[k][0], None, (note,)))
            continue
        if not need_geometry:
            try:
                camera = camera_files.complete(partial, source.rows, source.cols, source.label)
            except InputError as error:
                camera = camera_files.standard_camera(k, source.rows, source.cols)
                note = f"No geometry that could be used, which is not needed for work in the image ({error})."
                plans.append(_Plan(source, camera, stated[k][0], None, (note,)))
                continue
        else:
            camera = camera_files.complete(partial, source.rows, source.cols, source.label)
        plans.append(_Plan(source, camera, stated[k][0], partial, partial.notes))
    if assume and need_geometry:
        warnings.append("The cameras of all views were assumed (docs/geometry.md, standard pair): shape and size of "
                        "the result are only as good as this assumption; give --cameras or --angles, --sid, --sod and "
                        "--pixel-spacing.")
    return plans, warnings


def _read_masks(masks: Sequence[str] | None, sources: Sequence[Source], warnings: list[str]) -> list[np.ndarray | None]:
    if masks is None:
        return [None] * len(sources)
    masks = list(masks)
    if len(masks) != len(sources):
        raise InputError(f"{len(masks)} masks for {len(sources)} views: give one mask per view, in the same order")
    result = []
    for path, source in zip(masks, sources, strict=True):
        mask, notes = read_mask(path, source.rows, source.cols)
        for axis in source.flip:
            mask = np.flip(mask, axis)
        warnings.extend(notes)
        result.append(np.ascontiguousarray(mask))
    return result


def _read(plan: _Plan, mask: np.ndarray | None, polarity: str) -> View:
    """Decode one view: key frame, grey scale, polarity, X-ray field."""
    source, notes = plan.source, list(plan.source.notes)

    def upright(array: np.ndarray) -> np.ndarray:
        for axis in source.flip:
            array = np.flip(array, axis)
        return np.ascontiguousarray(array)

    probe_number = source.frame if source.frame is not None else source.frames // 2
    probe = next(source.decode([probe_number]))
    low, high = _scale(probe, source)
    turned = polarity == "bright"
    shutter = None if source.shutter is None else upright(source.shutter)

    def to_unit(frame: Frame) -> np.ndarray:
        unit = np.clip((upright(frame.values) - low) / (high - low), 0, 1).astype(np.float32)
        return 1 - unit if turned else unit

    if polarity == "auto":
        turned = _vessels_bright(to_unit(probe))
        if turned:
            notes.append("The vessels are bright in this file: the grey values were turned over.")

    def decode(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        return (to_unit(frame) for frame in source.decode(list(numbers)))

    key: KeyFrame | None = None
    number = source.frame
    if source.frames > 1 and number is None:
        key = find_key_frame(decode, source.frames)
        number = key.frame
        notes.append(f"Frame {number} of 0 to {source.frames - 1} was chosen as the key frame (contrast filling).")
    frame = probe if (number or 0) == probe_number else next(source.decode([number or 0]))
    image = to_unit(frame)
    valid = valid_area(image, shutter)
    if valid.mean() < 0.995:
        notes.append(f"{100 * (1 - valid.mean()):.0f} % of the image lies outside the X-ray field (border, shutter) "
                     f"and is left out.")
    if not turned and source.kind != "DICOM" or source.full_scale is not None:
        valid &= ~burnt_in_marks(image, valid)
    if frame.bad is not None:
        valid &= ~upright(frame.bad)
    background = contrast_free_background(decode, key, image, valid) if key is not None else None
    camera, camera_notes = plan.camera_of(number or 0)
    return View(image=image, camera=camera, valid=valid, mask=mask, file=source.label,
                frame=number if source.frames > 1 else None, intensity=source.intensity,
                scores=None if key is None else key.scores.astype(np.float32), background=background,
                notes=tuple(dict.fromkeys([*camera_notes, *notes])))


def _scale(frame: Frame, source: Source) -> tuple[float, float]:
    """Grey values that become 0 and 1; one scale for all frames of a cine.

    8-bit pictures keep their full scale. Others are divided by their brightest value (the 99.95th percentile): the bits
    of the container say little (10 bits in 16). Zero stays zero, so that linear intensities keep their ratios.
    """
    if source.full_scale is not None:
        return 0.0, source.full_scale
    values = frame.values if frame.bad is None else frame.values[~frame.bad]
    low, high = float(values.min()), float(np.percentile(values, 99.95))
    if 0 <= low and float(values.max()) <= 1.0 and high > 0.2:
        return 0.0, 1.0
    low = min(low, 0.0)
    return low, high if high > low else float(values.max())


#: Width of the rim left out when the polarity is judged, pixels of the reduced image.
_RIM = 8


def _vessels_bright(image: np.ndarray) -> bool:
    """True only when bright ridges are clearly stronger than dark ones: in doubt an angiogram is what it should be.

    A dark vessel has weaker bright flanks (0.45 of it for a Gaussian profile), while the steps of diaphragm and spine
    make both alike: the strongest half percent of both kinds tells (bright over dark was 0.66 to 0.81 on eight real
    frames, 1.16 in a drawn one without vessels). The rim stays out widely: a soft shutter is a strong bright ridge.
    """
    from scipy import ndimage

    from licag3d.io.keyframe import _inner, _small

    small = _small(image)
    # A border is recognised whichever way the grey values run.
    valid = ndimage.binary_erosion(_inner(valid_area(small) & valid_area(1 - small)), iterations=_RIM, border_value=0)
    if valid.sum() < 0.1 * valid.size:
        return False
    ratio = 1.0
    for sigma in (1.5, 2.5):
        rr, cc, rc = (ndimage.gaussian_filter(small, sigma, order=order)[valid] for order in ((2, 0), (0, 2), (1, 1)))
        mean, half = (rr + cc) / 2, np.hypot((rr - cc) / 2, rc)
        dark, bright = (np.percentile(sign * mean + half - np.abs(sign * mean - half), 99.5) for sign in (1, -1))
        ratio *= float(bright) / max(float(dark), 1e-9)
    return ratio**0.5 > 1.2
