# SPDX-License-Identifier: Apache-2.0
"""Headers of compressed pictures, checked before a native decoder sees them (ITU-T T.81, T.87, T.800)."""

from __future__ import annotations

from typing import NamedTuple


class Codestream(NamedTuple):
    """What a compressed picture says of itself."""

    rows: int
    cols: int
    samples: int
    bits: int
    huffman: bool = False


def codestream(data: bytes) -> Codestream | None:
    """The header of a JPEG, JPEG Lossless, JPEG-LS or JPEG 2000 code stream, None when there is none.

    Everything up to the first scan is walked; a second frame header is refused, for decoders size their buffers by one
    and write by the other.
    """
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        at = data.find(b"\xff\x4f\xff\x51")
        if at < 0 or len(data) < at + 43:
            return None
        x1, y1, x0, y0 = (int.from_bytes(data[at + k:at + k + 4], "big") for k in (8, 12, 16, 20))
        return Codestream(y1 - y0, x1 - x0, int.from_bytes(data[at + 40:at + 42], "big"), (data[at + 42] & 0x7F) + 1)
    if data[:2] != b"\xff\xd8":
        return None
    at, found, tables = 2, None, set()
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], "big")
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            # A scan that names a Huffman table nobody defined makes GDCM follow a null pointer.
            count = data[at + 4]
            named = {data[k] >> 4 for k in range(at + 6, at + 5 + 2 * count, 2) if k < len(data)}
            return found if found and (not found.huffman or named <= tables) else None
        if marker == 0xC4:
            tables |= _tables(data[at + 4:at + 2 + length])
        elif 0xC0 <= marker <= 0xC7 or marker == 0xF7:
            if found:
                return None
            rows, cols = (int.from_bytes(data[at + k:at + k + 2], "big") for k in (5, 7))
            found = Codestream(rows, cols, data[at + 9], data[at + 4], marker != 0xF7)
        elif not (0xE0 <= marker <= 0xEF or marker in (0xDB, 0xDD, 0xF8, 0xFE)):
            return None
        at += 2 + length
    return None


def _tables(segment: bytes) -> set[int]:
    """Numbers of the DC (or lossless) Huffman tables in a DHT segment (ITU-T T.81 B.2.4.2)."""
    found, at = set(), 0
    while at + 17 <= len(segment):
        if segment[at] >> 4 == 0:
            found.add(segment[at] & 15)
        at += 17 + sum(segment[at + 1:at + 17])
    return found
