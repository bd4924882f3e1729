# SPDX-License-Identifier: Apache-2.0
"""Samples for synthesis made once and kept in memory: a sample costs tens of milliseconds, a step of a small network
less. Several trainings on one bank see the same patients, which is what a comparison of methods needs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from licag3d.data.contrast_samples import PairStream
from licag3d.errors import InputError

SCHEMA = "licag3d-contrast-bank-1"
MOST = 100_000


class SampleBank:
    """Samples of a stream, drawn from at random and mirrored half of the time.

    Args:
        samples: what :meth:`licag3d.data.contrast_samples.PairStream.batch` gives, of paired samples, any floats.
        paired: y belongs to x; otherwise it is that of another sample.
        seed: of the draws.
    """

    def __init__(self, samples: dict[str, torch.Tensor], *, paired: bool = True, seed: int = 0) -> None:
        self.samples, self.paired, self.seed = samples, paired, seed
        self.frames = len(samples["x"])
        if self.frames < 2:
            raise InputError(f"a bank of {self.frames} samples; give at least 2")

    @classmethod
    def of(cls, stream: PairStream, count: int, file=None, *, paired: bool = True, seed: int = 0) -> SampleBank:
        """The first ``count`` samples of a stream of paired samples.

        Args:
            file: where they are kept (safetensors, half precision); read if it holds the same samples already.
            seed: of the draws; the samples are the stream's, whatever it is: trainings of several seeds share them.

        Raises:
            InputError: a count out of range, or a stream of unpaired samples.
        """
        from tqdm import tqdm

        if not 2 <= count <= MOST:
            raise InputError(f"a bank of {count} samples; give 2 to {MOST}")
        if not stream.settings.paired:
            raise InputError("a bank is made of paired samples: it takes them apart itself")
        facts = {"schema": SCHEMA, "count": count, "seed": stream.seed, "settings": asdict(stream.settings)}
        # What the samples depend on: the frames of the pool, in their order.
        facts |= {"files": [entry["file"] for entry in stream.pool.entries]}
        facts = json.dumps(facts, sort_keys=True)
        samples = _read(file, facts) if file is not None else None
        if samples is None:
            made = [stream.sample(k) for k in tqdm(range(count), disable=None, unit="sample", desc="bank")]
            samples = {key: torch.stack([one[key] for one in made]).half() for key in made[0]}
            if file is not None:
                from safetensors.torch import save

                from licag3d.io.atomic import write_bytes

                write_bytes(file, save(samples, metadata={"facts": facts}))
        return cls(samples, paired=paired, seed=seed)

    def batch(self, step: int, size: int) -> dict[str, torch.Tensor]:
        """``size`` samples of a step; the same for the same step."""
        rng = np.random.default_rng([self.seed, 75, step])
        chosen = rng.integers(self.frames, size=size)
        other = (chosen + 1 + rng.integers(self.frames - 1, size=size)) % self.frames
        found = {key: values[torch.from_numpy(chosen)].float() for key, values in self.samples.items()}
        if not self.paired:
            found["y"] = self.samples["y"][torch.from_numpy(other)].float()
        if rng.random() < 0.5:
            found = {key: values.flip(-1) for key, values in found.items()}
        return found


def _read(file, facts: str) -> dict[str, torch.Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if not Path(file).is_file():
        return None
    try:
        with safe_open(str(file), framework="pt") as kept:
            if (kept.metadata() or {}).get("facts") != facts:
                return None
            return {key: kept.get_tensor(key) for key in kept.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:120]}); delete it") from None
