# SPDX-License-Identifier: Apache-2.0
"""Opening files that may be anything: existence, kind by content, bounded reads."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from licag3d.errors import InputError

# The largest flat detectors in cardiology have fewer than 4096 x 4096 pixels; one decoded frame stays under 150 MB.
MAX_PIXELS = 4096 * 4096
MAX_SIDE = 16384
MIN_SIDE = 32
MAX_FRAMES = 4096
# A whole cine, decoded one frame at a time: 600 frames of 1024 x 1024 are 0.63e9 pixels.
MAX_CINE_PIXELS = 2**31
MAX_IMAGE_BYTES = 512 * 2**20
MAX_DICOM_BYTES = 2 * 2**30


@dataclass(frozen=True)
class PartialCamera:
    """What a file says of its camera; None where it says nothing. Fields as in :class:`licag3d.geometry.Camera`."""

    primary_deg: float | None = None
    secondary_deg: float | None = None
    sid_mm: float | None = None
    sod_mm: float | None = None
    spacing_row_mm: float | None = None
    spacing_col_mm: float | None = None
    rows: int | None = None
    cols: int | None = None
    offset_lps_mm: tuple[float, float, float] | None = None
    principal_row: float | None = None
    principal_col: float | None = None
    notes: tuple[str, ...] = ()
    #: Why these values may not be used as they are (for example a prone patient), or "".
    refused: str = ""


@dataclass(frozen=True)
class Frame:
    """One decoded frame: ``values`` ``(rows, cols)`` float32, vessels as stored; ``bad`` ``(rows, cols)`` bool or
    None."""

    values: np.ndarray
    bad: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """One input file whose header has been checked; nothing is decoded yet.

    Args:
        label: file name without folders, for messages.
        frame: the frame asked for with ``#frame`` (0-based), or None.
        kind: ``PNG``, ``JPEG``, ``TIFF`` or ``DICOM``.
        frames: number of frames.
        decode: yields the frames of a list of 0-based numbers, in that order.
        camera: what the file says of the camera of a frame.
        full_scale: largest possible value, when a fixed scale is right (8 bit), else None.
        intensity: ``display``, ``linear`` or ``log`` (see :class:`licag3d.structures.View`).
        shutter: ``(rows, cols)`` bool, True where the file says that the X-ray field is open, or None.
        flip: image axes (0 rows, 1 columns) to reverse so that the camera equations hold.
    """

    path: Path
    label: str
    frame: int | None
    kind: str
    rows: int
    cols: int
    frames: int
    decode: Callable[[Sequence[int]], Iterator[Frame]]
    camera: Callable[[int], PartialCamera] = field(default=lambda frame: PartialCamera())
    full_scale: float | None = None
    intensity: str = "display"
    shutter: np.ndarray | None = None
    flip: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    summary: tuple[tuple[str, str], ...] = ()


def split_frame(text: str) -> tuple[Path, int | None]:
    """``cine.dcm#8`` -> (path, 8). A file whose own name holds a ``#`` is taken as it is.

    Raises:
        InputError: what follows ``#`` is not a whole number from 0 up.
    """
    text = os.fspath(text)
    if "\0" in text or not text.strip():
        raise InputError(f"view {text!r} is not a file name: give the path of an image")
    if "#" not in text or _exists(Path(text)):
        return Path(text), None
    name, _, number = text.rpartition("#")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise InputError(f"{Path(text).name}: frame {number!r} is not a whole number: write FILE#FRAME with frames "
                         f"counted from 0")
    return Path(name), int(number)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def check_file(path: Path, *, what: str = "view", limit: int = MAX_DICOM_BYTES) -> int:
    """Size in bytes of a regular, readable file.

    Raises:
        InputError: missing, a folder, a device, not readable, empty, or larger than ``limit``.
    """
    name = path.name[-100:] or str(path)
    try:
        info = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{what} {str(path)[-200:]!r} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {name!r} cannot be opened ({_reason(error)}): check the path") from None
    if stat.S_ISDIR(info.st_mode):
        raise InputError(f"{what} {name!r} is a folder: give a file")
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{what} {name!r} is a device or a pipe: give a regular file")
    if info.st_size == 0:
        raise InputError(f"{what} {name!r} is empty (0 bytes): copy it again")
    if info.st_size > limit:
        raise InputError(f"{what} {name!r} has {info.st_size / 2**20:.0f} MiB, more than the limit of "
                         f"{limit / 2**20:.0f} MiB: give a single frame or a shorter cine")
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise InputError(f"{what} {name!r} cannot be read ({_reason(error)}): check its permissions") from None
    return info.st_size


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def sniff(path: Path, *, what: str = "view") -> str:
    """Kind of file by its first bytes: ``PNG``, ``JPEG``, ``TIFF`` or ``DICOM``; names do not count.

    Raises:
        InputError: any other kind, naming it where it is a known one.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"{what} {path.name!r} cannot be read ({_reason(error)}): check its permissions") from None
    if head[128:132] == b"DICM":
        return "DICOM"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    # DICOM without preamble begins with a group 2 or group 8 element.
    if head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] in (b"\x00", b"\x01") and len(head) > 64:
        return "DICOM"
    known = {b"\x1f\x8b": "a gzip file (NIfTI?)", b"PK": "a zip archive", b"%PDF": "a PDF", b"GIF8": "a GIF",
             b"BM": "a BMP", b"RIFF": "a WebP or AVI file", b"\x89HDF": "an HDF5 file",
             b"\0\0\0\x0cjP": "a JPEG 2000 file", b"NRRD": "an NRRD volume"}
    name = next((text for magic, text in known.items() if head.startswith(magic)), "")
    if not name:
        text = not any(byte < 9 or 13 < byte < 32 for byte in head)
        name = "a text file" if text else "of an unknown kind"
    raise InputError(f"{what} {path.name!r} is {name}, not a PNG, TIFF, JPEG or DICOM image: convert it, or give "
                     f"another file")


def check_size(label: str, rows: Any, cols: Any, frames: Any = 1) -> None:
    """Bound the decoded size before anything is decoded.

    Raises:
        InputError: too large, too small, or too many frames.
    """
    rows, cols, frames = int(rows), int(cols), int(frames)
    if rows < MIN_SIDE or cols < MIN_SIDE:
        raise InputError(f"{label}: the image has {rows} x {cols} pixels (rows x columns); at least {MIN_SIDE} x "
                         f"{MIN_SIDE} are needed")
    if rows * cols > MAX_PIXELS or max(rows, cols) > MAX_SIDE:
        raise InputError(f"{label}: the image has {rows} x {cols} pixels (rows x columns), more than the limit of "
                         f"{math.isqrt(MAX_PIXELS)} x {math.isqrt(MAX_PIXELS)}: reduce it (and its camera) first")
    if not 1 <= frames <= MAX_FRAMES or rows * cols * frames > MAX_CINE_PIXELS:
        raise InputError(f"{label}: the file claims {frames} frames of {rows} x {cols} pixels; the limit is "
                         f"{MAX_FRAMES} frames and {MAX_CINE_PIXELS} pixels in all: cut the cine")


def check_frame(label: str, frame: int | None, frames: int) -> None:
    """A frame asked for must be there.

    Raises:
        InputError: out of range; the message states the valid range.
    """
    if frame is not None and not 0 <= frame < frames:
        span = "only frame 0" if frames == 1 else f"frames 0 to {frames - 1}"
        raise InputError(f"{label}: frame {frame} does not exist: the file has {span} (counted from 0)")


@contextlib.contextmanager
def hostile(label: str, doing: str) -> Iterator[None]:
    """Whatever a decoder throws at a broken file becomes one clear :class:`InputError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except InputError:
            raise
        except MemoryError:
            raise InputError(f"{label}: {doing} needs more memory than there is: the file is damaged or too "
                             f"large") from None
        except Exception as error:  # decoders of third parties raise anything, RecursionError and struct.error included
            detail = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(f"{label}: {doing} failed ({detail}): the file is truncated or damaged; copy or export it "
                             f"again") from None


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """C libraries (libtiff, GDCM) print their own complaints to file descriptor 2; a command prints one line of its
    own."""
    try:
        saved = os.dup(2)
    except OSError:  # no stderr at all
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class BoundedFile(io.FileIO):
    """A file whose ``read(n)`` never reserves more than what is left: a forged length of 4 GB costs nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left)) or b""
