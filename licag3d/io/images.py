# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG and TIFF frames: header first, bounded, grey only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.io.files import (
    MAX_FRAMES,
    MAX_IMAGE_BYTES,
    Frame,
    Source,
    check_file,
    check_frame,
    check_size,
    hostile,
    quiet_libraries,
)

# Channels of a grey picture that went through JPEG differ by a few grey values; a photograph differs by dozens.
CHROMA_LIMIT = 20
COLOURED_FRACTION = 0.02
MAX_VALUE = 1e10
#: A mask of whole numbers up to this holds labels of branches or segments, not grey values.
MASK_LABELS = 32

_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def open_image(path: Path, kind: str, frame: int | None = None, *, what: str = "view") -> Source:
    """Check the header of a PNG, JPEG or TIFF file; nothing is decoded.

    Args:
        path: an existing file of that ``kind`` (see :func:`licag3d.io.files.sniff`).
        frame: page of a multi-page TIFF, 0-based, or None.

    Raises:
        InputError: unreadable header, too large, no such page.
    """
    from PIL import Image

    label = path.name
    check_file(path, what=what, limit=MAX_IMAGE_BYTES)
    if kind == "JPEG":
        _check_eight_bit(path)
    limit = Image.MAX_IMAGE_PIXELS
    with hostile(label, f"reading the {kind} header"):
        try:
            Image.MAX_IMAGE_PIXELS = None  # our own bound, which is lower, gives the clearer message
            with Image.open(path, formats=[kind]) as image:
                cols, rows = image.size
                check_size(label, rows, cols)
                # Walking the pages of a TIFF reads directories only.
                frames = 1 if kind != "TIFF" else _count_pages(image)
                mode = image.mode
                bits = image.tag_v2.get(258, (8,)) if kind == "TIFF" else ()
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    check_size(label, rows, cols, frames)
    check_frame(label, frame, frames)
    eight_bit = mode in _EIGHT_BIT and not (bits and max(bits) > 8)
    summary = (("kind", f"{kind}, {'8 bit' if eight_bit else mode}"),)

    def decode(numbers: Sequence[int]) -> Iterator[Frame]:
        for number in numbers:
            yield _decode(path, kind, number, rows, cols)

    return Source(path=path, label=label, frame=frame, kind=kind, rows=rows, cols=cols, frames=frames, decode=decode,
                  full_scale=255.0 if eight_bit else None, summary=summary)


def _check_eight_bit(path: Path) -> None:
    """Refuse the 12 and 16 bit and the lossless varieties of JPEG, which Pillow does not decode, by their own name."""
    from licag3d.io.codestream import codestream

    with open(path, "rb") as file:
        header = codestream(file.read(2**20))
    if header and header.bits != 8:
        raise InputError(f"{path.name}: JPEG of {header.bits} bits cannot be read: save it as 16-bit PNG or TIFF")


def _count_pages(image) -> int:
    count = 1
    while count <= MAX_FRAMES:
        try:
            image.seek(count)
        except EOFError:
            break
        count += 1
    image.seek(0)
    return count


def _is_compressed(image) -> bool:
    # Pillow swaps the bytes of such pixels although libtiff has done so already.
    return image.tag_v2.get(259, 1) != 1


def _decode(path: Path, kind: str, number: int, rows: int, cols: int) -> Frame:
    from PIL import Image

    label = path.name
    with hostile(label, f"decoding the {kind} image"), quiet_libraries():
        with Image.open(path, formats=[kind]) as image:
            if number:
                image.seek(number)
            if image.size != (cols, rows):
                raise InputError(f"{label}: page {number} has {image.size[1]} x {image.size[0]} pixels, page 0 has "
                                 f"{rows} x {cols}: give the frame you mean with FILE#PAGE")
            if kind == "TIFF" and image.tag_v2.prefix == b"MM" and image.mode in ("F", "I") and _is_compressed(image):
                raise InputError(f"{label}: compressed big-endian TIFF with signed or float pixels cannot be read "
                                 f"reliably: save it uncompressed or little-endian")
            inverted = kind == "TIFF" and image.tag_v2.get(262) == 0 and image.mode not in ("1", "L", "P")
            if image.mode in ("P", "PA", "LA", "La", "CMYK", "YCbCr", "RGBX", "RGBa", "LAB", "HSV"):
                image = image.convert("RGBA" if "A" in image.mode or image.mode == "La" or "transparency" in image.info
                                      else "RGB")
            elif image.mode == "1":
                image = image.convert("L")
            array = np.asarray(image)
        if array.dtype.kind not in "uif" or array.shape[:2] != (rows, cols):
            raise InputError(f"{label}: pixels of type {array.dtype} and shape {array.shape} are not a grey image: "
                             f"save it as 8 or 16 bit greyscale")
        return to_grey(array, label, inverted=inverted)


def to_grey(array: np.ndarray, label: str, *, inverted: bool = False) -> Frame:
    """Grey values of an image ``(rows, cols)`` or ``(rows, cols, 3 or 4)``; refuses colour photographs.

    A picture of three equal channels is grey. Single coloured marks (at most 2 % of the pixels) are reported as bad
    pixels; so are transparent pixels.

    Raises:
        InputError: really coloured, infinite or NaN pixels, or no variation at all.
    """
    bad = None
    if array.ndim == 3:
        if array.shape[2] == 4:
            bad = array[..., 3] < 128
        channels = array[..., :3].astype(np.float32)
        scale = 255.0 if array.dtype == np.uint8 else float(max(channels.max(), 1e-9))
        chroma = (channels.max(-1) - channels.min(-1)) / scale * 255.0
        coloured = chroma > CHROMA_LIMIT
        fraction = float(coloured.mean())
        if fraction > COLOURED_FRACTION:
            raise InputError(f"{label}: {100 * fraction:.0f} % of the pixels are coloured: an angiogram is grey; give "
                             f"the X-ray frame itself")
        bad = coloured if bad is None else bad | coloured
        # JPEG leaves +-2 grey values between channels: the mean is the best grey value.
        values = channels.mean(-1)
    elif array.ndim == 2:
        values = array.astype(np.float32)
    else:
        raise InputError(f"{label}: an image of shape {array.shape} is not a grey frame: give one frame")
    check_values(values, label)
    if inverted:
        values = values.max() + values.min() - values
    return Frame(values, bad if bad is not None and bad.any() else None)


def check_values(values: np.ndarray, label: str) -> None:
    """Raises InputError on NaN, infinite, absurdly large or constant pixels."""
    finite = np.isfinite(values)
    if not finite.all():
        count = int(values.size - finite.sum())
        raise InputError(f"{label}: {count} of {values.size} pixels are NaN or infinite: replace them first")
    if max(abs(float(values.max())), abs(float(values.min()))) > MAX_VALUE:
        raise InputError(f"{label}: pixels reach from {float(values.min()):.3g} to {float(values.max()):.3g}, which "
                         f"are no grey values: scale them, for example to 0..1")
    if float(values.max()) <= float(values.min()):
        raise InputError(f"{label}: every pixel has the value {float(values.flat[0]):g}: the image is blank")


def read_mask(path: str | Path, rows: int, cols: int) -> tuple[np.ndarray, list[str]]:
    """A vessel mask ``(rows, cols)`` bool from an image file: vessels bright, halfway to the maximum and above; in an
    image of labels (whole numbers up to :data:`MASK_LABELS`) all that is not zero.

    Returns:
        The mask and notes (for example that it was not binary).

    Raises:
        InputError: unreadable, of another size, empty, or covering everything.
    """
    from licag3d.io.files import sniff

    path = Path(path)
    check_file(path, what="mask", limit=MAX_IMAGE_BYTES)
    kind = sniff(path, what="mask")
    if kind == "DICOM":
        raise InputError(f"mask {path.name!r} is a DICOM file: give a PNG, TIFF or JPEG image")
    source = open_image(path, kind, what="mask")
    if (source.rows, source.cols) != (rows, cols):
        raise InputError(f"mask {path.name!r} has {source.rows} x {source.cols} pixels (rows x columns) but its view "
                         f"has {rows} x {cols}: give a mask of the same size")
    values = next(source.decode([0])).values
    low, high = float(values.min()), float(values.max())
    if low < 0:
        raise InputError(f"mask {path.name!r} has negative pixels ({low:g}): vessels are bright, background is 0")
    labels = high <= MASK_LABELS and bool((values == np.rint(values)).all())
    mask = values > 0 if labels else values >= high / 2
    notes = []
    between = float(((values > 0.02 * high) & (values < 0.98 * high)).mean())
    if between > 0.001 and not labels:
        notes.append(f"Mask {path.name} is not binary ({100 * between:.1f} % of the pixels between 0 and the maximum "
                     f"{high:g}): vessels are taken from half of the maximum upwards.")
    fraction = float(mask.mean())
    if fraction > 0.6:
        raise InputError(f"mask {path.name!r} covers {100 * fraction:.0f} % of the view: vessels must be bright on a "
                         f"dark background; invert it")
    return mask, notes
