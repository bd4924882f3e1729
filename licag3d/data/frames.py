# SPDX-License-Identifier: Apache-2.0
"""Folders of angiograms (PNG, TIFF, JPEG, DICOM XA cines) as training frames.

Files are read once, one at a time, and written as grey 8-bit frames into one file that is memory-mapped afterwards:
training never meets a decoder. What cannot be used is skipped, counted and listed; duplicates are dropped before frames
are split, and the split is by patient, so that no frame of training has a twin in validation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from licag3d.data.frame_hashes import HashSet, perceptual_hash
from licag3d.errors import InputError

SCHEMA = "licag3d-frame-bank-1"
MAX_FILES = 500_000
#: Longer sides are reduced to this before storing.
MAX_SIDE_PX = 512
#: Reasons are counted by kind, and this many skipped files are listed by name.
MAX_LISTED = 2000


@dataclass(frozen=True)
class ReadingSettings:
    """How folders are read.

    Args:
        frames_per_file: evenly spaced frames taken of a cine at most.
        group_by: what a patient is where files do not say: ``folder`` (first folder below the given one), ``file``, or
            ``auto`` (DICOM patient, else folder where there is one, else file).
        near_bits: frames whose 256-bit hashes differ in at most this many bits are near-duplicates.
        least_spread: frames whose 1st and 99th percentile differ by less (of 0..1) are empty.
    """

    frames_per_file: int = 24
    group_by: str = "auto"
    near_bits: int = 10
    least_spread: float = 0.04

    def __post_init__(self) -> None:
        if not 1 <= self.frames_per_file <= 4096:
            raise InputError(f"frames per file is {self.frames_per_file}; give 1 to 4096")
        if self.group_by not in ("auto", "folder", "file"):
            raise InputError(f"group by {self.group_by!r} is not known; give auto, folder or file")
        if not 0 <= self.near_bits <= 64:
            raise InputError(f"near bits is {self.near_bits}; give 0 to 64 of 256")


class FrameBank:
    """Prepared frames: a folder with ``bank.json`` and ``frames.bin``, made by :func:`prepare_frames`.

    Attributes:
        entries: per frame a dict with ``offset``, ``rows``, ``cols`` and ``group`` (number of the patient).
        report: counts of files, frames, what was turned over, skipped and dropped.
        fingerprint: of the content, for the configuration of a run.

    Raises:
        InputError: no bank there, or a damaged one.
    """

    def __init__(self, folder: str | Path, numbers: Sequence[int] | None = None) -> None:
        self.folder = Path(folder)
        try:
            facts = json.loads((self.folder / "bank.json").read_text("utf-8"))
            if facts["schema"] != SCHEMA:
                raise InputError(f"{self.folder}: frames of another version ({facts['schema']}); remove the folder")
            self.entries, self.report = facts["entries"], facts["report"]
            self.fingerprint = str(facts["fingerprint"])
            size = (self.folder / "frames.bin").stat().st_size
            if size != sum(entry["rows"] * entry["cols"] for entry in self.entries):
                raise ValueError("frames.bin has another size")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder}: no prepared frames ({str(error)[:100]}); remove the folder") from None
        self._pixels = np.memmap(self.folder / "frames.bin", np.uint8, "r") if size else np.zeros(0, np.uint8)
        self.numbers = list(range(len(self.entries)) if numbers is None else numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def groups(self) -> int:
        """Number of patients among the frames."""
        return len({self.entries[number]["group"] for number in self.numbers})

    def image(self, number: int) -> np.ndarray:
        """Frame ``(rows, cols)`` uint8, vessels dark."""
        entry = self.entries[self.numbers[number]]
        rows, cols, offset = entry["rows"], entry["cols"], entry["offset"]
        return self._pixels[offset : offset + rows * cols].reshape(rows, cols)

    def key(self, number: int) -> str:
        """Name of a frame within the bank."""
        return f"frame{self.numbers[number]:07d}"

    def group(self, number: int) -> int:
        """Patient of a frame."""
        return self.entries[self.numbers[number]]["group"]

    def split(self, *, validation: float = 0.1, seed: int = 0) -> tuple[FrameBank, FrameBank]:
        """Training and validation frames; no patient is in both. One patient alone is all training.

        Raises:
            InputError: ``validation`` is not a share.
        """
        if not 0 <= validation < 1:
            raise InputError(f"validation share is {validation}; give 0 up to below 1")
        groups = sorted({self.entries[number]["group"] for number in self.numbers})
        order = np.random.default_rng([seed, 11]).permutation(groups)
        count = min(len(groups) - 1, round(validation * len(groups))) if validation else 0
        if validation and count == 0 and len(groups) > 1:
            count = 1
        held = {int(group) for group in order[:count]}
        parts = [[n for n in self.numbers if (self.entries[n]["group"] in held) == out] for out in (False, True)]
        return FrameBank(self.folder, parts[0]), FrameBank(self.folder, parts[1])


def prepare_frames(
    folders: Sequence[str | Path], out: str | Path, settings: ReadingSettings | None = None
) -> FrameBank:
    """Read folders into a bank at ``out``; a bank of the same files and settings that is there already is taken.

    Beside the bank, ``skipped.txt`` lists what was left out and why (file names without folders of the user's disk
    above the given ones).

    Raises:
        InputError: a folder is missing or empty, or nothing in it can be used.

    Example:
        >>> bank = prepare_frames(["angiograms"], "run/frames")  # doctest: +SKIP
        >>> train, validation = bank.split(validation=0.1)  # doctest: +SKIP
    """
    from licag3d.io.atomic import check_output_folder, write_text

    settings = settings or ReadingSettings()
    out = check_output_folder(out)
    files = list_files(folders, out)
    source = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for _, name, path in files:
        info = path.stat()
        source.update(f"{name} {info.st_size} {info.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    try:
        if json.loads((out / "bank.json").read_text("utf-8"))["source"] == source.hexdigest():
            return FrameBank(out)
    except (OSError, ValueError, KeyError, TypeError, InputError):
        pass  # not there, or of other files: read anew
    out.mkdir(parents=True, exist_ok=True)
    reading = _Reading(settings)
    temporary = out / ".frames.bin.part"
    try:
        with open(temporary, "wb") as pixels:
            for root, name, path in _progress(files):
                reading.take(root, name, path, pixels)
        facts = reading.facts(source.hexdigest())
        if not reading.entries:
            write_text(out / "skipped.txt", "\n".join(reading.listed) + "\n")
            kinds = "; ".join(f"{count} {why}" for why, count in reading.skipped.most_common(3))
            raise InputError(f"no usable frame in {len(files)} files ({kinds}): give PNG, TIFF, JPEG or DICOM XA files")
        os.replace(temporary, out / "frames.bin")
    finally:
        temporary.unlink(missing_ok=True)
    write_text(out / "skipped.txt", "\n".join(reading.listed) + "\n" if reading.listed else "")
    write_text(out / "bank.json", json.dumps(facts))
    return FrameBank(out)


def describe(bank: FrameBank) -> str:
    """What was read, in a few lines for the user."""
    r = bank.report
    lines = [f"{r['frames']} frames of {r['patients']} patients from {r['files']} files"]
    lines += [f"  {count} frames dropped: {why}" for why, count in r["dropped"].items()]
    lines += [f"  {count} files skipped: {why}" for why, count in r["skipped"].items()]
    if r["turned"]:
        lines.append(f"  {r['turned']} files had bright vessels and were turned over")
    return "\n".join(lines)


def list_files(folders: Sequence[str | Path], out: Path | None = None) -> list[tuple[Path, str, Path]]:
    """Regular files below ``folders``, sorted, each with its folder and its name relative to it.

    Hidden files, links to folders and the output folder (absolute) are left out.

    Raises:
        InputError: a folder is missing, is a file, cannot be listed, holds no file, or there are too many files.
    """
    found: list[tuple[Path, str, Path]] = []
    for given in folders:
        root = Path(given).expanduser()
        if not root.is_dir():
            raise InputError(f"{str(given)!r} is {'a file' if root.exists() else 'missing'}: give a folder of frames")
        before = len(found)
        errors: list[OSError] = []
        for base, names, leaves in os.walk(root, onerror=errors.append):
            here = Path(base)
            names[:] = sorted(n for n in names if not n.startswith(".") and Path(os.path.abspath(here / n)) != out)
            for leaf in sorted(leaves):
                path = here / leaf
                if not leaf.startswith(".") and leaf != "DICOMDIR" and path.is_file():
                    found.append((root, path.relative_to(root).as_posix(), path))
            if len(found) > MAX_FILES:
                raise InputError(f"{str(given)!r} holds more than {MAX_FILES} files: give fewer folders at once")
        if len(found) == before:
            reason = f" ({errors[0].strerror})" if errors else ""
            raise InputError(f"folder {str(given)!r} holds no files{reason}: give a folder of frames")
    if not found:
        raise InputError("no folder of frames was given: give at least one")
    return found


class _Reading:
    """State of one pass over the files."""

    def __init__(self, settings: ReadingSettings) -> None:
        self.settings = settings
        self.entries: list[dict] = []
        self.skipped: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.listed: list[str] = []
        self.files = self.turned = self.offset = 0
        self._groups: dict[str, int] = {}
        self._exact: set[bytes] = set()
        self._near = HashSet(settings.near_bits)
        self._digest = hashlib.sha256()

    def take(self, root: Path, name: str, path: Path, pixels) -> None:
        """Read one file into the bank, or note why not."""
        self.files += 1
        try:
            frames, owner, turned = read_file(path, self.settings.frames_per_file)
            kept = 0
            for number, frame in frames:
                kept += self._add(frame, f"{name}#{number}", self._group(root, name, owner), pixels)
            self.turned += turned and kept > 0
        except InputError as error:
            # The message begins with the file name; the kind of error is what is counted.
            self._skip(name, str(error))
        except OSError as error:
            self._skip(name, f"cannot be read ({error.strerror})")

    def _skip(self, name: str, why: str) -> None:
        self.skipped[_kind_of(why, name.rsplit("/", 1)[-1])] += 1
        self._list(f"{name}: {why}")

    def _drop(self, name: str, why: str) -> int:
        self.dropped[why] += 1
        self._list(f"{name}: {why}")
        return 0

    def _list(self, line: str) -> None:
        if len(self.listed) < MAX_LISTED:
            self.listed.append(line)

    def _group(self, root: Path, name: str, owner: str) -> int:
        parts = name.split("/")
        by = self.settings.group_by
        if by == "auto" and owner:
            key = "patient " + owner
        elif len(parts) > 1 and by != "file":
            key = f"folder {root}/{parts[0]}"
        else:
            key = f"file {root}/{name}"
        return self._groups.setdefault(key, len(self._groups))

    def _add(self, frame: np.ndarray, name: str, group: int, pixels) -> int:
        low, high = np.percentile(frame, (1, 99)) / 255.0
        if high - low < self.settings.least_spread:
            return self._drop(name, "black or empty frame" if high < 0.1 else "uniform frame")
        digest = hashlib.sha256(frame.tobytes() + str(frame.shape).encode()).digest()
        if digest in self._exact:
            return self._drop(name, "duplicate")
        if self._near.seen(perceptual_hash(frame)):
            return self._drop(name, "near-duplicate")
        self._exact.add(digest)
        self._digest.update(digest)
        pixels.write(frame.tobytes())
        self.entries.append({"offset": self.offset, "rows": frame.shape[0], "cols": frame.shape[1], "group": group})
        self.offset += frame.size
        return 1

    def facts(self, source: str) -> dict:
        report = {
            "files": self.files,
            "frames": len(self.entries),
            "patients": len({entry["group"] for entry in self.entries}),
            "turned": int(self.turned),
            "skipped": dict(self.skipped.most_common(40)),
            "dropped": dict(self.dropped),
        }
        return {"schema": SCHEMA, "source": source, "fingerprint": self._digest.hexdigest()[:16], "report": report,
                "entries": self.entries}  # fmt: skip


def read_file(path: Path, frames_per_file: int) -> tuple[Iterator[tuple[int, np.ndarray]], str, bool]:
    """Evenly spaced frames of a file as ``(number, (rows, cols) uint8)`` with dark vessels, at most 512 px a side.

    Returns:
        The frames, decoded one at a time; a digest of the DICOM patient, or ""; whether grey values were turned over.

    Raises:
        InputError: the file is not a frame or cannot be decoded (also while iterating).
    """
    from licag3d.io.views import _scale, _vessels_bright, open_source

    # A name with '#' must not be taken for a frame number.
    source = open_source(str(path))
    numbers = np.unique(np.linspace(0, source.frames - 1, min(source.frames, frames_per_file)).round().astype(int))
    probe = next(source.decode([int(numbers[len(numbers) // 2])]))
    low, high = _scale(probe, source)
    if not high > low:
        raise InputError(f"{path.name}: all pixels have one value: there is no picture in it")

    def unit(frame) -> np.ndarray:
        values = np.clip((frame.values - low) / (high - low), 0, 1).astype(np.float32)
        for axis in source.flip:
            values = np.flip(values, axis)
        return values

    turned = _vessels_bright(unit(probe))

    def frames() -> Iterator[tuple[int, np.ndarray]]:
        for number in numbers:
            values = unit(next(source.decode([int(number)])))
            yield int(number), _to_bytes(1 - values if turned else values)

    return frames(), _patient(path) if source.kind == "DICOM" else "", bool(turned)


def _patient(path: Path) -> str:
    """Digest of the patient identifier of a DICOM file, or ""; the identifier itself is never kept."""
    import pydicom

    from licag3d.io.files import BoundedFile, hostile

    with hostile(path.name, "reading the DICOM header"), BoundedFile(path) as raw:
        ds = pydicom.dcmread(raw, stop_before_pixels=True, force=True, specific_tags=["PatientID"])
        text = str(ds.get("PatientID") or "").strip()
    # Anonymised files share one of these: they say nothing about who is who.
    if text.lower() in ("", "anonymous", "anonymized", "anonymised", "anon", "unknown", "0", "none", "removed"):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey 0..1 to uint8, longer side at most :data:`MAX_SIDE_PX`."""
    factor = MAX_SIDE_PX / max(values.shape)
    if factor < 1:
        import torch

        size = [max(8, round(n * factor)) for n in values.shape]
        image = torch.from_numpy(np.ascontiguousarray(values))[None, None]
        values = torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True)[0, 0].numpy()
    return np.ascontiguousarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))


def _kind_of(message: str, leaf: str) -> str:
    """What went wrong, without names, numbers and advice, so that thousands of files fall into a few kinds.

    Example:
        >>> _kind_of("a.png: the image has 20 x 20 pixels; at least 32 are needed", "a.png")
        'the image has N x N pixels'
    """
    import re

    text = message.removeprefix(leaf + ": ")
    text = re.sub(rf"^view {re.escape(repr(leaf))} (is )?", "", text)
    text = re.split(r": | \(|; ", text)[0]
    return re.sub(r"\d+(\.\d+)*", "N", text)[:90]


def _progress(files):
    from tqdm import tqdm

    return tqdm(files, disable=None, unit="file")
