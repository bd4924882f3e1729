# SPDX-License-Identifier: Apache-2.0
"""Folders of frames: what is read, turned over, skipped, dropped and kept apart."""

from __future__ import annotations

import os

import imageio.v3 as iio
import numpy as np
import pytest

from licag3d.data.frame_hashes import HashSet, perceptual_hash
from licag3d.data.frames import (
    FrameBank,
    ReadingSettings,
    describe,
    list_files,
    prepare_frames,
)
from licag3d.errors import InputError


def picture(seed: int, rows: int = 120, cols: int = 120) -> np.ndarray:
    """A frame with dark wavy vessels over a smooth background, uint8."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.standard_normal((rows, cols)), 18)
    grey = 0.65 + 0.12 * ground / np.abs(ground).max()
    y, x = np.mgrid[:rows, :cols]
    for _ in range(3):
        path = y - rows * rng.uniform(0.2, 0.8) - 12 * np.sin(x / rng.uniform(8, 20) + rng.uniform(0, 6))
        grey -= 0.3 * np.exp(-0.5 * (path / 2.2) ** 2)
    return np.clip(255 * (grey + 0.01 * rng.standard_normal(grey.shape)), 0, 255).astype(np.uint8)


def dicom(
    path, seed: int, *, tag: str = "MONOCHROME2", depth: int = 10, size: int = 120, frames: int = 3, patient: str = ""
):
    """A small XA cine; returns the data set, for tests that spoil it."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.12.1"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.3.{seed}"
    ds.Modality, ds.PatientID = "XA", patient or f"p{seed}"
    stack = np.stack([picture(1000 + 10 * seed + k, size, size) for k in range(frames)]).astype(np.uint16)
    if tag == "MONOCHROME1":
        stack = 255 - stack
    ds.Rows, ds.Columns, ds.NumberOfFrames = size, size, frames
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (8, 8, 7) if depth == 8 else (16, depth, depth - 1)
    ds.PixelRepresentation, ds.SamplesPerPixel, ds.PhotometricInterpretation = 0, 1, tag
    ds.PixelData = (stack.astype(np.uint8) if depth == 8 else stack << (depth - 8)).tobytes()
    ds.save_as(path, enforce_file_format=True)
    return ds


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "frames"
    made.mkdir()
    return made


def test_sizes_and_depths_may_mix(folder, tmp_path):
    iio.imwrite(folder / "a.png", picture(1))
    iio.imwrite(folder / "b.png", (picture(2, 90, 140).astype(np.uint16) * 16))
    iio.imwrite(folder / "c.tiff", picture(3, 700, 640))
    iio.imwrite(folder / "d.jpg", picture(4), quality=95)
    bank = prepare_frames([folder], tmp_path / "bank")
    shapes = sorted(bank.image(k).shape for k in range(len(bank)))
    assert shapes == [(90, 140), (120, 120), (120, 120), (512, 468)]
    assert all(bank.image(k).dtype == np.uint8 and bank.image(k).max() > 100 for k in range(4))
    assert bank.report["skipped"] == {} and "4 frames of 4 patients from 4 files" in describe(bank)


def test_bright_vessels_are_turned_over(folder, tmp_path):
    iio.imwrite(folder / "a.png", picture(1))
    iio.imwrite(folder / "b.png", 255 - picture(2))
    bank = prepare_frames([folder], tmp_path / "bank")
    assert bank.report["turned"] == 1
    assert np.abs(bank.image(1).astype(int) - picture(2)).max() <= 1


def test_copies_and_near_copies_are_dropped_before_the_split(folder, tmp_path):
    frame = picture(1, 128, 128)
    iio.imwrite(folder / "a.png", frame)
    iio.imwrite(folder / "b_copy.png", frame)
    iio.imwrite(folder / "c_compressed.jpg", frame, quality=70)
    iio.imwrite(folder / "d_window.png", np.clip(frame.astype(float) * 0.8 + 20, 0, 255).astype(np.uint8))
    iio.imwrite(folder / "e_half.png", frame.reshape(64, 2, 64, 2).mean((1, 3)).astype(np.uint8))
    iio.imwrite(folder / "f_other.png", picture(2, 128, 128))
    bank = prepare_frames([folder], tmp_path / "bank")
    assert len(bank) == 2 and bank.report["dropped"] == {"duplicate": 1, "near-duplicate": 3}
    listed = (tmp_path / "bank" / "skipped.txt").read_text()
    assert "b_copy.png#0: duplicate" in listed and str(tmp_path) not in listed


def test_different_frames_are_far_apart_in_hash():
    hashes = [perceptual_hash(picture(k)) for k in range(12)]
    gaps = [int(np.bitwise_count(a ^ b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(gaps) > 3 * ReadingSettings().near_bits


def test_hash_set_agrees_with_comparing_every_pair():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**63, (1400, 4)).astype(np.uint64)
    values[700:] = values[:700] ^ np.uint64(7)  # twelve bits away
    found = HashSet(12)
    assert [found.seen(v) for v in values] == [False] * 700 + [True] * 700
    strict = HashSet(11)
    assert not any(strict.seen(v) for v in values)


def test_useless_files_are_skipped_counted_and_listed(folder, tmp_path):
    iio.imwrite(folder / "good.png", picture(1))
    iio.imwrite(folder / "black.png", np.zeros((100, 100), np.uint8))
    noise = np.random.default_rng(0).integers(0, 5, (100, 100))
    iio.imwrite(folder / "dark.png", noise.astype(np.uint8))
    iio.imwrite(folder / "tiny.png", picture(1)[:16, :16])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:900])
    for number in range(40):
        (folder / f"junk{number}.dcm").write_bytes(b"\0" * 128 + b"DICM" + os.urandom(300))
    bank = prepare_frames([folder], tmp_path / "bank")
    assert len(bank) == 1 and bank.report["files"] == 47
    assert sum(bank.report["skipped"].values()) + sum(bank.report["dropped"].values()) == 46
    assert max(bank.report["skipped"].values()) >= 1 and len(bank.report["skipped"]) < 20
    listed = (tmp_path / "bank" / "skipped.txt").read_text().splitlines()
    assert len(listed) == 46 and any(line.startswith("cut.png") for line in listed)


def test_split_is_by_patient(folder, tmp_path):
    for patient in range(6):
        (folder / f"p{patient}" / "run").mkdir(parents=True)
        for number in range(3):
            iio.imwrite(folder / f"p{patient}" / "run" / f"{number}.png", picture(10 * patient + number))
    bank = prepare_frames([folder], tmp_path / "bank")
    assert bank.groups == 6
    train, held = bank.split(validation=0.3, seed=1)
    groups = [{part.group(k) for k in range(len(part))} for part in (train, held)]
    assert len(train) == 12 and len(held) == 6 and not groups[0] & groups[1]
    again = bank.split(validation=0.3, seed=1)[1]
    assert again.numbers == held.numbers
    assert bank.split(validation=0.3, seed=2)[1].numbers != held.numbers or bank.groups < 3
    alone = prepare_frames([folder / "p0"], tmp_path / "one", ReadingSettings(group_by="folder"))
    assert len(alone.split(validation=0.3)[1]) == 0


def test_dicom_patients_are_kept_together_and_their_names_are_not_kept(folder, tmp_path):
    for number in range(4):
        dicom(folder / f"x{number}.dcm", number, patient=f"Miller{number // 2}")
    bank = prepare_frames([folder], tmp_path / "bank", ReadingSettings(frames_per_file=2))
    assert (len(bank), bank.groups) == (8, 2)
    written = b"".join(path.read_bytes() for path in (tmp_path / "bank").iterdir())
    assert b"Miller" not in written


def test_second_call_takes_the_bank_and_a_changed_folder_makes_a_new_one(folder, tmp_path):
    iio.imwrite(folder / "a.png", picture(1))
    first = prepare_frames([folder], tmp_path / "bank")
    stamp = (tmp_path / "bank" / "frames.bin").stat().st_mtime_ns
    assert prepare_frames([folder], tmp_path / "bank").fingerprint == first.fingerprint
    assert (tmp_path / "bank" / "frames.bin").stat().st_mtime_ns == stamp
    iio.imwrite(folder / "b.png", picture(2))
    second = prepare_frames([folder], tmp_path / "bank")
    assert len(second) == 2 and second.fingerprint != first.fingerprint


def test_a_bank_within_its_own_folder_is_not_read_again(folder, tmp_path, monkeypatch):
    iio.imwrite(folder / "a.png", picture(1))
    monkeypatch.chdir(folder.parent)
    for _ in range(2):
        bank = prepare_frames([folder.name], f"{folder.name}/bank")
        assert bank.report["files"] == 1 and not bank.report["skipped"]


def test_folders_without_frames_are_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="holds no files"):
        prepare_frames([folder], tmp_path / "bank")
    with pytest.raises(InputError, match="missing"):
        prepare_frames([folder / "none"], tmp_path / "bank")
    (folder / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no usable frame in 1 files"):
        prepare_frames([folder], tmp_path / "bank")
    with pytest.raises(InputError, match="a file"):
        list_files([folder / "a.txt"])
    assert not (tmp_path / "bank" / ".frames.bin.part").exists()


def test_damaged_bank_is_refused(folder, tmp_path):
    iio.imwrite(folder / "a.png", picture(1))
    prepare_frames([folder], tmp_path / "bank")
    pixels = tmp_path / "bank" / "frames.bin"
    pixels.write_bytes(pixels.read_bytes()[:-5])
    with pytest.raises(InputError, match="no prepared frames"):
        FrameBank(tmp_path / "bank")
    assert len(prepare_frames([folder], tmp_path / "bank")) == 1  # made anew


@pytest.mark.parametrize("bad", [{"frames_per_file": 0}, {"group_by": "hospital"}, {"near_bits": 300}])
def test_bad_settings(bad):
    with pytest.raises(InputError):
        ReadingSettings(**bad)


def test_real_cines_and_frames(shared_data, tmp_path):
    bank = prepare_frames([shared_data / "xa-phantom", shared_data / "arcade" / "images"], tmp_path / "bank",
                          ReadingSettings(frames_per_file=3))  # fmt: skip
    assert bank.report["skipped"] == {} and bank.report["turned"] == 0
    assert 9 <= len(bank) <= 14 and bank.groups == 9  # the two cines name the same patient


def test_dicom_of_any_depth_and_polarity_looks_alike(folder, tmp_path):
    for number, (tag, depth) in enumerate((t, d) for t in ("MONOCHROME2", "MONOCHROME1") for d in (8, 10, 16)):
        dicom(folder / f"x{number}.dcm", number, tag=tag, depth=depth, size=110 + 10 * number, frames=1)
    bank = prepare_frames([folder], tmp_path / "bank")
    assert len(bank) == 6 and bank.report["skipped"] == {}
    for number in range(6):
        side = 110 + 10 * number
        true = picture(1000 + 10 * number, side, side).astype(float)
        assert bank.image(number).shape == (side, side)
        # Dark vessels whatever the tag says: what is stored goes with the picture, never against it.
        assert np.corrcoef(bank.image(number).ravel(), true.ravel())[0, 1] > 0.99, number


def test_spoilt_dicom_among_good_ones_is_skipped_with_its_reason(folder, tmp_path):
    dicom(folder / "good.dcm", 1)
    whole = (folder / "good.dcm").read_bytes()
    (folder / "cut_half.dcm").write_bytes(whole[: len(whole) // 2])  # the header is fine, the last frames are not
    (folder / "cut_header.dcm").write_bytes(whole[:300])
    (folder / "no_pixels.dcm").write_bytes(whole[: whole.index(b"\xe0\x7f\x10\x00")])
    huge = dicom(folder / "huge.dcm", 2)
    huge.Rows = huge.Columns = 65_535
    huge.save_as(folder / "huge.dcm", enforce_file_format=True)
    many = dicom(folder / "many.dcm", 3)
    many.NumberOfFrames = 2_000_000_000
    many.save_as(folder / "many.dcm", enforce_file_format=True)
    words = dicom(folder / "words.dcm", 4)
    words.BitsAllocated, words.BitsStored, words.HighBit = 64, 64, 63
    words.save_as(folder / "words.dcm", enforce_file_format=True)
    packed = dicom(folder / "packed.dcm", 5)
    packed.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.5"  # RLE, but the bytes are not
    from pydicom.encaps import encapsulate

    packed.PixelData = encapsulate([os.urandom(200) for _ in range(3)])
    packed["PixelData"].VR, packed["PixelData"].is_undefined_length = "OB", True
    packed.save_as(folder / "packed.dcm", enforce_file_format=True)
    bank = prepare_frames([folder], tmp_path / "bank")
    listed = (tmp_path / "bank" / "skipped.txt").read_text().splitlines()
    assert bank.report["files"] == 8 and {line.split(":")[0].split("#")[0] for line in listed} == {
        "cut_half.dcm", "cut_header.dcm", "no_pixels.dcm", "huge.dcm", "many.dcm", "words.dcm", "packed.dcm",
    }  # fmt: skip
    assert sum(bank.report["skipped"].values()) == 7 and bank.report["dropped"] == {}
    # What is kept is all of the good file, and nothing half read.
    assert len(bank) == 3 and {bank.group(k) for k in range(3)} == {bank.group(0)}
