# SPDX-License-Identifier: Apache-2.0
"""Pictures of generated trees: projections as an angiogram shows them, sheets, videos; every one says synthetic."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from licag3d.report.pictures import three_sides
from licag3d.vessels.surface import Surface

MARK = "SYNTHETIC"
NOTE = "Synthetic: made by a generator of coronary trees; no patient, no acquisition, not for diagnosis."


def angiogram(line_integral: np.ndarray) -> np.ndarray:
    """Grey values uint8 of a line integral, vessels dark: ``exp(-p)`` (Beer-Lambert) over a plain light ground."""
    return np.clip(np.rint(225.0 * np.exp(-np.maximum(line_integral, 0.0))), 0, 255).astype(np.uint8)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture, grey ``(rows, cols)`` or ``(rows, cols, 3)`` uint8, with a line of text in its lower left corner."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(picture)
    size = max(9, min(15, picture.shape[0] // 18))
    dark = picture[-size:].mean() > 127
    tone = 40 if dark else 215
    ink = tone if picture.ndim == 2 else (tone,) * 3
    ImageDraw.Draw(canvas).text((4, picture.shape[0] - size - 5), text, fill=ink, font=ImageFont.load_default(size))
    return np.asarray(canvas)


def tiled(pictures: Sequence[np.ndarray], rows: int, cols: int, *, gap_px: int = 2) -> np.ndarray:
    """Pictures of one size in a grid, row by row; empty places stay black."""
    height, width = pictures[0].shape[:2]
    shape = (rows * (height + gap_px) - gap_px, cols * (width + gap_px) - gap_px, *pictures[0].shape[2:])
    sheet = np.zeros(shape, np.uint8)
    for number, picture in enumerate(pictures[: rows * cols]):
        top, left = number // cols * (height + gap_px), number % cols * (width + gap_px)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def mesh_row(surface: Surface | None, size_px: int, text: str) -> np.ndarray:
    """A surface from three sides beside each other, ``(size, 3 size, 3)`` uint8; black where there is none."""
    if surface is None:
        return captioned(np.zeros((size_px, 3 * size_px, 3), np.uint8), f"{text}: empty")
    sides = [side for _, side in three_sides(surface, size_px=size_px)]
    return captioned(np.concatenate(sides, axis=1), text)


def png(picture: np.ndarray, *, note: str = NOTE) -> bytes:
    """PNG with the note as its description."""
    from PIL import Image, PngImagePlugin

    facts = PngImagePlugin.PngInfo()
    facts.add_text("Description", note)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=facts, optimize=True)
    return buffer.getvalue()


def video(frames: Sequence[np.ndarray], *, frames_per_s: float = 15.0) -> tuple[str, bytes]:
    """A video of grey frames: its file ending and content; MP4 where imageio has an encoder for it, else GIF."""
    import imageio.v3 as imageio

    stack = np.stack(frames)
    try:
        import imageio_ffmpeg  # noqa: F401  the plugin of imageio needs it, and only then writes MP4

        even = stack[:, : stack.shape[1] // 2 * 2, : stack.shape[2] // 2 * 2]
        content = imageio.imwrite(
            "<bytes>", np.repeat(even[..., None], 3, 3), extension=".mp4", plugin="FFMPEG", fps=frames_per_s
        )
        return ".mp4", content
    except ImportError:
        content = imageio.imwrite(
            "<bytes>", stack, extension=".gif", plugin="pillow", duration=1000.0 / frames_per_s, loop=0, comment=NOTE
        )
        return ".gif", content
