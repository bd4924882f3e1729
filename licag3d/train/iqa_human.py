# SPDX-License-Identifier: Apache-2.0
"""Human scores of synthetic angiograms for CAS-IQA: a table of files and opinions becomes samples.

Readers differ in what they call good. As in CAS-IQA every reader's scores are taken in his own standard units,
``Z = (S - mu) / sigma``, and averaged per frame; they are then brought back to the mean and spread of all readers (the
paper's way of scaling back is not published; this is ours).
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.losses.iqa import SCORES

NEEDED = ("synthetic", "frame", "patient", *SCORES)
MAX_ROWS = 200_000
MAX_BYTES = 100_000_000
#: Share of the patients that choose the checkpoint.
HELD_SHARE = 0.2


def read_human_scores(table, folder):
    """Samples of training and of validation patients, see :class:`licag3d.train.iqa_data.SampleFolder`.

    Args:
        table: CSV with a header: ``synthetic``, ``frame``, ``patient``, the scores, and if known ``reference`` and
            ``rater``; files relative to the table. folder: where the samples are kept.

    Raises:
        InputError: the table or a frame cannot be read, a score is out of range, there is one patient only, or the
            folder holds samples of another table.
    """
    from hashlib import sha256

    from licag3d.train.iqa_data import SampleFolder, check_made_of

    folder = Path(folder)
    rows = read_table(table)
    made_of = f"scores of readers {sha256(Path(table).read_bytes()).hexdigest()[:12]}"
    patients = sorted({row["patient"] for row in rows})
    if len(patients) < 2:
        raise InputError(f"{table}: all frames are of one patient; at least two are needed, one to check the others")
    order = np.random.default_rng(94).permutation(len(patients))
    # What readers call their patients stays in their table.
    numbers = {patient: str(k) for k, patient in enumerate(patients)}
    held = {patients[k] for k in order[: max(1, round(HELD_SHARE * len(patients)))]}
    opinions = mean_opinions(rows)
    for name in ("training", "validation"):
        if check_made_of(folder / name, made_of):
            continue
        chosen = [key for key in opinions if (key[3] in held) == (name == "validation")]
        _write(folder / name, Path(table).parent, chosen, opinions, numbers, made_of)
    return SampleFolder(folder / "training"), SampleFolder(folder / "validation")


def read_table(table) -> list[dict]:
    """Rows of the table, checked.

    Raises:
        InputError: see :func:`read_human_scores`.
    """
    path = Path(table)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{table}: larger than {MAX_BYTES // 10**6} MB; this is no table of scores")
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{table}: no column {', '.join(missing)}; the first row names the columns")
            rows = []
            for number, row in enumerate(reader, 2):
                if number > MAX_ROWS:
                    raise InputError(f"{table}: more than {MAX_ROWS} rows")
                rows.append(_checked(row, f"{table}, row {number}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read as a table ({' '.join(str(error).split())[:120]})") from None
    if not rows:
        raise InputError(f"{table}: holds no scores")
    return rows


def _checked(row: dict, where: str) -> dict:
    scores = []
    for name in SCORES:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            raise InputError(f"{where}: {name} is {row[name]!r}; give 0 to 100") from None
        if not 0 <= value <= 100:
            raise InputError(f"{where}: {name} is {value}; give 0 to 100")
        scores.append(value)
    for name in ("synthetic", "frame", "patient"):
        if not (row[name] or "").strip():
            raise InputError(f"{where}: {name} is empty")
    key = (row["synthetic"], row["frame"], row.get("reference") or "", row["patient"])
    return {"key": key, "patient": row["patient"], "rater": row.get("rater") or "", "scores": scores}


def mean_opinions(rows: list[dict]) -> dict[tuple, np.ndarray]:
    """Mean opinion ``(3,)`` by frame: ``mean + spread * mean_i Z_ij``, within 0..100.

    Example:
        >>> rows = [{"key": k, "rater": r, "scores": [s] * 3} for k, r, s in
        ...         ((("a",), "kind", 80), (("b",), "kind", 90), (("a",), "strict", 20), (("b",), "strict", 30))]
        >>> {key[0]: round(float(value[0]), 1) for key, value in mean_opinions(rows).items()}
        {'a': 50.0, 'b': 60.0}
    """
    raters = {row["rater"] for row in rows}
    unit = {}
    for rater in raters:
        own = np.array([row["scores"] for row in rows if row["rater"] == rater], float)
        unit[rater] = own.mean(0), np.maximum(own.std(0), 1e-6)
    middle = np.mean([m for m, _ in unit.values()], 0)
    spread = np.mean([s for _, s in unit.values()], 0)
    found: dict[tuple, list] = {}
    for row in rows:
        mean, own = unit[row["rater"]]
        found.setdefault(row["key"], []).append((np.array(row["scores"]) - mean) / own)
    return {key: np.clip(middle + spread * np.mean(z, 0), 0, 100) for key, z in found.items()}


def _write(
    folder: Path, base: Path, keys: list[tuple], opinions: dict, numbers: dict[str, str], made_of: str
) -> None:
    from licag3d.quality import read_frames
    from licag3d.train.iqa_data import as_bytes, write_samples
    from licag3d.train.iqa_frames import SIDE

    scenes, frames, lines = [], [], []
    for synthetic, bare, reference, patient in keys:
        files = [str(base / name) for name in (synthetic, bare, reference) if name]
        images = [_square(image, SIDE) for image in read_frames(files)]
        frames.append(as_bytes(images[0]))
        scenes.append(as_bytes(np.stack((images[1], images[2 if reference else 1]))))
        scores = [float(x) for x in opinions[(synthetic, bare, reference, patient)]]
        line = {"scene": len(scenes) - 1, "patient": numbers[patient], "defects": {}, "has_reference": bool(reference)}
        lines.append(line | {"scores": scores})
    write_samples(folder, np.stack(scenes), np.stack(frames), lines, made_of)


def _square(image: np.ndarray, side: int) -> np.ndarray:
    import torch

    from licag3d.models.iqa import to_side

    return to_side(torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None], side)[0, 0].numpy()
