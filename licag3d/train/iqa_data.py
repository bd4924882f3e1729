# SPDX-License-Identifier: Apache-2.0
"""Samples of CAS-IQA in a folder: made once from phantom frames (or from frames that people scored), read many times.

``scenes.npy`` ``(s, 2, side, side)`` contrast-free frame and angiogram, ``frames.npy`` ``(n, side, side)`` synthetic
frames, both uint8; ``samples.jsonl`` one line per synthetic frame: its scene, patient, defects and scores.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from licag3d.errors import InputError
from licag3d.losses.iqa import SCORES

SCHEMA = "licag3d-iqa-samples-1"
#: Synthetic frames per scene.
PER_SCENE = 8
#: How many defects a frame has: shares of 0, 1, 2 and 3.
COUNTS = (0.08, 0.5, 0.3, 0.12)


def make_samples(pool, folder, scenes: int, *, seed: int = 0, per_scene: int = PER_SCENE, kinds=None) -> int:
    """Degraded frames of a phantom pool into ``folder``; returns how many. A folder that is there already is kept.

    Args:
        pool: a :class:`licag3d.data.phantom_frames.PhantomPool`; its frames are taken in turn.
        kinds: of degradation, drawn from; the trained ones where not given.

    Raises:
        InputError: the pool holds one patient only, or no frame shows a vessel.
    """
    from tqdm import tqdm

    from licag3d.io.atomic import check_output_folder
    from licag3d.losses.iqa import computed_scores
    from licag3d.train.iqa_frames import TRAINED, make_scene, reduced, synthetic

    folder = check_output_folder(folder)
    if (folder / "samples.jsonl").is_file():
        return len(SampleFolder(folder))
    kinds = TRAINED if kinds is None else kinds
    if len({entry["seed"] for entry in pool.entries}) < 2:
        raise InputError(f"{pool.folder}: frames of at least two patients are needed")
    pairs, frames, lines = [], [], []
    for number in tqdm(range(scenes), disable=None, unit="scene"):
        rng = np.random.default_rng([seed, 91, number])
        entry = pool.entries[number % len(pool)]
        others = [k for k, e in enumerate(pool.entries) if e["seed"] != entry["seed"]]
        kappa = 0.0 if rng.random() < 0.4 else float(rng.uniform(0, 0.3))
        scene = make_scene(reduced(pool.layers(number % len(pool))), rng, kappa)
        other = reduced(pool.layers(int(rng.choice(others))))
        made = []
        for _ in range(per_scene):
            chosen = rng.choice(kinds, int(rng.choice(len(COUNTS), p=COUNTS)), replace=False)
            defects = {str(kind): float(rng.uniform(0, 1)) for kind in chosen}
            spoil, own_noise = int(rng.integers(2**31)), bool(rng.random() < 0.5)
            frame, drawn = synthetic(scene, other, defects, spoil, own_noise=own_noise)
            scores = computed_scores(scene, drawn)
            if scores is not None:
                made.append((frame, defects, scores))
        if made:
            pairs.append(as_bytes(np.stack((scene.frame, scene.reference))))
        for frame, defects, scores in made:
            frames.append(as_bytes(frame))
            line = {"scene": len(pairs) - 1, "patient": str(entry["seed"]), "defects": defects, "has_reference": True}
            lines.append(line | {"scores": scores.three()})
    if not frames:
        raise InputError(f"{pool.folder}: no frame shows a vessel")
    write_samples(folder, np.stack(pairs), np.stack(frames), lines)
    return len(frames)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """0..1 as uint8."""
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def write_samples(folder: Path, scenes: np.ndarray, frames: np.ndarray, lines: list[dict], made_of: str = "") -> None:
    """Write a folder of samples; the index last, so that a reader never meets half of one. ``made_of``: see
    :func:`check_made_of`."""
    import io

    from licag3d.io.atomic import write_bytes, write_text

    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("scenes", scenes), ("frames", frames)):
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        write_bytes(folder / f"{name}.npy", buffer.getvalue())
    head = json.dumps({"schema": SCHEMA, "made_of": made_of}) + "\n"
    write_text(folder / "samples.jsonl", head + "".join(json.dumps(line) + "\n" for line in lines))


def check_made_of(folder: Path, made_of: str) -> bool:
    """Whether ``folder`` holds samples already; those of an earlier version do not say what they were made of.

    Raises:
        InputError: they were made of something else (other readers' scores).
    """
    try:
        with (Path(folder) / "samples.jsonl").open(encoding="utf-8") as file:
            before = json.loads(file.readline(10_000)).get("made_of", "")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        return True  # a damaged folder is refused by SampleFolder, by name
    if before and before != made_of:
        raise InputError(
            f"{folder}: its samples were made of something else ({before}, now {made_of}); give another folder "
            "(--samples) or delete it"
        )
    return True


class SampleFolder:
    """Samples that :func:`write_samples` wrote.

    Raises:
        InputError: no such folder, or a damaged one.
    """

    def __init__(self, folder) -> None:
        self.folder = Path(folder)
        self._compared: np.ndarray | None = None
        self._order: tuple | None = None
        try:
            head, *lines = (self.folder / "samples.jsonl").read_text("utf-8").splitlines()
            self.lines = [json.loads(line) for line in lines]
            if json.loads(head).get("schema") != SCHEMA:
                raise InputError(f"{folder}: samples of another version; make them anew")
            self.scenes = np.load(self.folder / "scenes.npy", mmap_mode="r", allow_pickle=False)
            self.frames = np.load(self.folder / "frames.npy", mmap_mode="r", allow_pickle=False)
            self.scores = np.array([line["scores"] for line in self.lines], np.float32)
            scene = np.array([line["scene"] for line in self.lines])
            ok = len(self.frames) == len(self.lines) > 0 and scene.min() >= 0 and scene.max() < len(self.scenes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            why = " ".join(str(error).split())[:120]
            raise InputError(f"{folder}: no samples of licag3d.train iqa there ({why})") from None
        if not ok or self.scores.shape != (len(self.lines), len(SCORES)) or not np.isfinite(self.scores).all():
            raise InputError(f"{folder}: the samples are damaged; make them anew")

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, number: int, turn: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Frames ``(3, side, side)`` uint8 (synthetic, contrast-free, reference) and scores; ``turn`` 0..7 flips."""
        scene = self.scenes[self.lines[number]["scene"]]
        stack = np.stack((self.frames[number], *scene))
        stack = stack.transpose(0, 2, 1) if turn & 4 else stack
        stack = stack[:, ::-1] if turn & 2 else stack
        stack = stack[:, :, ::-1] if turn & 1 else stack
        return np.ascontiguousarray(stack), self.scores[number]

    def compared(self) -> np.ndarray:
        """Plain comparisons ``(n, 2, COMPARISONS)`` of all samples, without and with the reference; computed once.

        They do not change when a frame is turned over.
        """
        import io

        import torch
        from tqdm import tqdm

        from licag3d.io.atomic import write_bytes
        from licag3d.models.iqa import COMPARISONS, comparisons, prepare

        if self._compared is not None:
            return self._compared
        kept = self.folder / "comparisons.npy"
        if kept.is_file():
            self._compared = np.load(kept, allow_pickle=False)
            if self._compared.shape == (len(self), 2, COMPARISONS):
                return self._compared
        found = np.zeros((len(self), 2, COMPARISONS), np.float32)
        with torch.inference_mode():
            for start in tqdm(range(0, len(self), 16), disable=None, unit="batch", desc="comparisons"):
                numbers = range(start, min(start + 16, len(self)))
                frames = torch.from_numpy(np.stack([self.sample(n)[0] for n in numbers])).float() / 255
                for k in (0, 1):
                    there = torch.full((len(frames),), bool(k))
                    found[start : start + 16, k] = comparisons(prepare(frames, there), there).numpy()
        buffer = io.BytesIO()
        np.save(buffer, found, allow_pickle=False)
        write_bytes(kept, buffer.getvalue())
        self._compared = found
        return found

    def batch(self, step: int, size: int, seed: int, *, without_reference: float = 0.4, frames: bool = True) -> dict:
        """Random samples: ``frames`` ``(size, 3, side, side)`` in 0..1 (one pixel where they are not asked for),
        ``has_reference`` ``(size,)``, ``compared`` ``(size, COMPARISONS)`` and ``scores`` ``(size, 3)``. A function of
        seed and step; every sample comes once per round.
        """
        import torch

        known = self.compared()
        drawn, there, scores, compared = [], [], [], []
        for k in range(size):
            index = step * size + k
            turn = index // len(self)
            if self._order is None or self._order[0] != (seed, turn):
                self._order = (seed, turn), np.random.default_rng([seed, 92, turn]).permutation(len(self))
            number = int(self._order[1][index % len(self)])
            rng = np.random.default_rng([seed, 93, index])
            if frames:
                drawn.append(self.sample(number, int(rng.integers(8)))[0])
            else:
                drawn.append(np.zeros((3, 1, 1), np.uint8))
            there.append(bool(self.lines[number]["has_reference"] and rng.random() >= without_reference))
            compared.append(known[number, int(there[-1])])
            scores.append(self.scores[number])
        return {
            "frames": torch.from_numpy(np.stack(drawn)).float() / 255,
            "has_reference": torch.tensor(there),
            "compared": torch.from_numpy(np.stack(compared)),
            "scores": torch.from_numpy(np.stack(scores)),
        }
