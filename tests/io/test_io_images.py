# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG and TIFF: grey values in, grey values out; colour, bombs and broken files refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from xa_files import angiogram

from licag3d.errors import InputError
from licag3d.io.views import open_source, read_views


def decoded(path) -> np.ndarray:
    return next(open_source(str(path)).decode([0])).values


def eight_bit() -> np.ndarray:
    return (angiogram(96, 120) * 255).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png(tmp_path, dtype):
    image = (angiogram(96, 120) * np.iinfo(dtype).max).astype(dtype)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path / "a.png"), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff(tmp_path, dtype, compression, byteorder):
    image = angiogram(96, 120) * (1 if dtype == np.float32 else np.iinfo(dtype).max)
    image = image.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", image, compression=compression, byteorder=byteorder)
    if compression and byteorder == ">" and dtype in (np.float32, np.int16):
        with pytest.raises(InputError, match="big-endian"):  # Pillow gives wrong numbers here: better refused
            decoded(tmp_path / "a.tif")
        return
    assert np.array_equal(decoded(tmp_path / "a.tif"), image)


def test_inverted_tiff_is_turned_back(tmp_path):
    image = (angiogram(96, 120) * 60000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="miniswhite")
    turned = decoded(tmp_path / "a.tif")
    assert np.corrcoef(turned.ravel(), image.ravel().astype(float))[0, 1] == pytest.approx(-1)
    eight = (image >> 8).astype(np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", eight, photometric="miniswhite")
    assert np.corrcoef(decoded(tmp_path / "b.tif").ravel(), eight.ravel().astype(float))[0, 1] == pytest.approx(-1)


def test_page_of_a_tiff(tmp_path):
    pages = np.stack([np.roll(eight_bit(), k, 1) for k in range(3)])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    source = open_source(f"{tmp_path / 'a.tif'}#2")
    assert (source.frames, source.frame) == (3, 2)
    assert np.array_equal(next(source.decode([2])).values, pages[2])
    with pytest.raises(InputError, match="frames 0 to 2"):
        open_source(f"{tmp_path / 'a.tif'}#3")


def test_jpeg(tmp_path):
    image = eight_bit()
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decoded(tmp_path / "a.jpg") - image).max() < 20
    assert np.abs(decoded(tmp_path / "a.jpg") - image).mean() < 2


def test_twelve_bit_jpeg_is_refused_by_name(tmp_path):
    Image.fromarray(eight_bit()).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    data[data.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(InputError, match="JPEG of 12 bits cannot be read: save it as 16-bit PNG"):
        open_source(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_grey_valued_rgb_is_accepted(tmp_path, name):
    image = eight_bit()
    Image.fromarray(np.repeat(image[..., None], 3, -1)).save(tmp_path / name)
    assert np.abs(decoded(tmp_path / name) - image).mean() < (2 if name.endswith("jpg") else 1e-4)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "CMYK", "1"])
def test_other_modes(tmp_path, mode):
    image = Image.fromarray(eight_bit())
    image = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(name)
    values = decoded(name)
    expected = np.asarray(image.convert("L"), float)
    assert np.abs(values - expected).max() <= 1.0


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_colour_photograph_is_refused(tmp_path, name):
    rng = np.random.default_rng(0)
    photo = np.clip(np.cumsum(rng.normal(0, 6, (96, 120, 3)), 1) + 128, 0, 255).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / name)
    with pytest.raises(InputError, match=r"a\.\w+: \d+ % of the pixels are coloured"):
        decoded(tmp_path / name)


def test_small_coloured_marks_are_left_out_of_the_field(tmp_path):
    image = np.repeat(eight_bit()[..., None], 3, -1)
    image[10:14, 20:40] = (255, 255, 0)
    Image.fromarray(image).save(tmp_path / "a.png")
    (view,), _ = read_views([str(tmp_path / "a.png")], need_geometry=False)
    assert not view.valid[10:14, 20:40].any() and view.valid.mean() > 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_pixels_are_refused(tmp_path, bad):
    image = angiogram(96, 120).astype(np.float32)
    image[3, 4] = bad
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(InputError, match="1 of 11520 pixels are NaN or infinite"):
        read_views([str(tmp_path / "a.tif")])


def test_blank_image_is_refused(tmp_path):
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="every pixel has the value 7"):
        read_views([str(tmp_path / "a.png")])


def png_header(cols: int, rows: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", cols, rows, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize(("cols", "rows"), [(20000, 20000), (2**31 - 1, 2**31 - 1), (60000, 40)])
def test_huge_png_is_refused_before_it_is_decoded(tmp_path, cols, rows):
    (tmp_path / "a.png").write_bytes(png_header(cols, rows))
    with pytest.raises(InputError, match=rf"{rows} x {cols} pixels .*more than the limit"):
        open_source(str(tmp_path / "a.png"))


def test_huge_tiff_is_refused_before_it_is_decoded(tmp_path):
    # One strip that claims 20000 x 20000 float pixels: the directory alone is enough to refuse it.
    tags = [(256, 4, 20000), (257, 4, 20000), (258, 3, 32), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, 20000),
            (279, 4, 1600000000), (339, 3, 3)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, kind, 1, v) for t, kind, v in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4))
    with pytest.raises(InputError, match="20000 x 20000"):
        open_source(str(tmp_path / "a.tif"))


def test_real_20000_png_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    from PIL import ImageFile

    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    Image.MAX_IMAGE_PIXELS = limit
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="20000 x 20000"):
        open_source(str(tmp_path / "a.png"))


def test_tiny_image_is_refused(tmp_path):
    Image.fromarray(eight_bit()[:10, :10]).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="at least 32 x 32"):
        open_source(str(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_file_is_refused(tmp_path, name, part):
    path = tmp_path / name
    Image.fromarray(eight_bit()).save(path)
    path.write_bytes(path.read_bytes()[:int(part * path.stat().st_size)])
    with pytest.raises(InputError, match=r"a\.\w+"):
        decoded(path)


def test_masks(tmp_path):
    image = eight_bit()
    Image.fromarray(image).save(tmp_path / "a.png")

    def read(mask: np.ndarray, name="mask.png"):
        Image.fromarray(mask).save(tmp_path / name)
        return read_views([str(tmp_path / "a.png")], masks=[str(tmp_path / name)])

    vessels = np.zeros(image.shape, np.uint8)
    vessels[40:44] = 1  # 0 and 1 instead of 0 and 255
    (view,), _ = read(vessels)
    assert view.mask.dtype == bool and np.array_equal(view.mask, vessels > 0)
    vessels[42:44] = 9  # labels of two branches: both are vessels
    (view,), notes = read(vessels)
    assert np.array_equal(view.mask, vessels > 0) and not any("binary" in note for note in notes)
    (view,), notes = read((image > 190).astype(np.uint8) * 255 - (image > 193) * np.uint8(100))
    assert any("not binary" in note for note in notes)
    with pytest.raises(InputError, match="blank"):
        read(np.zeros_like(vessels))
    with pytest.raises(InputError, match="invert"):
        read(255 - 255 * (vessels > 0).astype(np.uint8))
    with pytest.raises(InputError, match="mask 'mask.png' has 50 x 120 pixels .*96 x 120"):
        read(vessels[:50])
    with pytest.raises(InputError, match="2 masks for 1 views"):
        read_views([str(tmp_path / "a.png")], masks=[str(tmp_path / "mask.png")] * 2)
    with pytest.raises(InputError, match="mask .*does not exist"):
        read_views([str(tmp_path / "a.png")], masks=[str(tmp_path / "none.png")])
