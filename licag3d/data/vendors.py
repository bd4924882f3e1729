# SPDX-License-Identifier: Apache-2.0
"""Frames as the systems of several makers would show them: the test bed of harmonisation and of image quality.

No vendor publishes its processing. The families are those of :mod:`licag3d.phantom.display`, named after the look of
frames that such systems export, with a detector of their own; every number is our approximation. A frame is put
together anew from the layers of a phantom pool, so that the very same patient and moment can be seen on any of them.

    python -m licag3d.data.vendors --pool POOL --vendor neusoft-like --out DIR
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np

from licag3d.command import Parser, add_debug_flag, run
from licag3d.errors import InputError
from licag3d.phantom.display import Display, sample_display, shown, shutters, window

#: Detected quanta per pixel of 512, blur of focus and detector in pixels of 512, scatter share: means of a family.
DETECTORS: dict[str, tuple[float, float, float]] = {
    "siemens-like": (2600.0, 0.7, 0.40),
    "philips-like": (2000.0, 0.8, 0.40),
    "ge-like": (1200.0, 0.55, 0.45),
    "neusoft-like": (800.0, 0.9, 0.50),
    "intensifier": (600.0, 1.3, 0.60),
}
VENDORS = tuple(DETECTORS)
#: Quanta of a detector without noise.
NOISELESS = 1e9


@dataclass(frozen=True)
class Look:
    """Detector and display of one frame; ``quanta`` at the frame's own pixels."""

    display: Display
    quanta: float
    blur_px: float
    scatter: float


def vendor_look(rng: np.random.Generator, vendor: str, rows: int, *, strength: float = 1.0) -> Look:
    """Settings of one frame of a vendor.

    Args:
        rows: of the frame; larger pixels catch more quanta.
        strength: 1 is the family as it is; above, its curve, sharpening, blur and noise move further away from a plain
            display by that factor, as stress for what must cope with unknown systems.

    Raises:
        InputError: an unknown vendor.
    """
    if vendor not in DETECTORS:
        raise InputError(f"vendor {vendor!r} is not known; give one of {', '.join(VENDORS)}")
    display = replace(sample_display(rng, vendor), text=False)
    quanta, blur, scatter = DETECTORS[vendor]
    quanta *= (512 / rows) ** 2 * float(np.exp(rng.normal(0, 0.2)))
    if strength != 1:
        display = replace(
            display,
            gamma=float(display.gamma**strength),
            sharpen=display.sharpen * strength,
            shoulder=float(np.clip(display.shoulder * strength, 0, 0.95)),
        )
        quanta, blur = quanta / strength**2, blur * strength
    quanta *= display.quanta_gain()
    return Look(display, quanta, blur * rows / 512, scatter)


def detect(depth: np.ndarray, look: Look, rng: np.random.Generator, *, noisy: bool = True, bright=None) -> np.ndarray:
    """Detected intensity ``(rows, cols)`` of a line integral, median about 1.

    Args:
        depth: minus log of the intensity, everything in the beam.
        bright: intensity that becomes 1 (the median of ``exp(-depth)`` where not given): pairs share one.
    """
    from licag3d.phantom.xray import _detected

    primary = np.exp(-np.clip(depth, -4, 9))
    bright = float(np.median(primary)) if bright is None else bright
    return _detected(rng, primary / bright, look.quanta if noisy else NOISELESS, look.blur_px, look.scatter)


def vendor_frame(
    contrast_free: np.ndarray, contrast: np.ndarray, look: Look, rng: np.random.Generator, *, noisy: bool = True
) -> np.ndarray:
    """The frame ``(rows, cols)`` float32 in 0..1, vessels dark.

    Args:
        contrast_free, contrast: line integrals of a phantom pool, ``(rows, cols)``.
    """
    intensity = detect(contrast_free + contrast, look, rng, noisy=noisy)
    light = shutters(look.display, *contrast.shape)
    return shown(intensity, look.display, window(intensity, look.display), light, rng)


def write_frames(
    pool, vendor: str, folder, count: int, *, first: int = 0, strength: float = 1.0, seed: int = 0
) -> list[str]:
    """Frames of a phantom pool as a vendor shows them, as PNG in ``folder``, one per patient and view, in patients'
    folders; returns their names.

    Args:
        pool: a :class:`licag3d.data.phantom_frames.PhantomPool`. first: number of the pool's first frame to take.

    Raises:
        InputError: an unknown vendor, or the pool is too small.
    """
    import imageio.v3 as iio

    from licag3d.io.atomic import write_bytes

    if first < 0 or count < 1 or first + count > len(pool):
        raise InputError(f"frames {first} to {first + count - 1} are asked for; the pool holds {len(pool)}")
    names = []
    for number in range(first, first + count):
        entry = pool.entries[number]
        layers = np.asarray(pool.layers(number)[1:3], np.float32)
        rng = np.random.default_rng([seed, 96, number])
        look = vendor_look(rng, vendor, layers.shape[1], strength=strength)
        grey = vendor_frame(layers[0], layers[1].clip(0), look, rng)
        name = f"{entry['seed']}/{entry['artery']}_{entry['view']}.png"
        (folder / str(entry["seed"])).mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, iio.imwrite("<bytes>", np.rint(255 * grey).astype(np.uint8), extension=".png"))
        names.append(name)
    return names


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = Parser(
        prog="python -m licag3d.data.vendors",
        description="Frames of a phantom pool as the system of a maker would show them, for tests of harmonisation.",
    )
    made.add_argument("--pool", required=True, metavar="DIR", help="pool of frames (licag3d.data.phantom_frames)")
    made.add_argument("--vendor", required=True, choices=tuple(DETECTORS))
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the frames, one folder per patient")
    made.add_argument("--frames", type=int, default=60, metavar="N", help="how many")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first frame of the pool")
    made.add_argument("--strength", type=float, default=1.0, metavar="S", help="1 as the family is; up to 4 for stress")
    add_debug_flag(made)
    return made


def main(argv: list[str]) -> int:
    """Write the frames."""
    from licag3d.data.phantom_frames import PhantomPool
    from licag3d.io.atomic import check_output_folder

    given = parser().parse_args(argv)
    if not 0.25 <= given.strength <= 4:
        raise InputError(f"--strength is {given.strength}; give 0.25 to 4")
    folder = check_output_folder(given.out)
    names = write_frames(
        PhantomPool(given.pool), given.vendor, folder, given.frames, first=given.first, strength=given.strength
    )
    print(f"wrote {len(names)} frames to {folder}")
    return 0


if __name__ == "__main__":
    run(main)
