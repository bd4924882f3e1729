# SPDX-License-Identifier: Apache-2.0
"""How fast training batches come: ``python -m licag3d.phantom.throughput --device cuda --workers 12``."""

from __future__ import annotations

import time

from licag3d.command import Parser, run
from licag3d.errors import InputError


def measure(settings, *, batch: int = 8, batches: int = 4, device="cpu", workers: int = 0) -> dict[str, float]:
    """Rates of a stream of phantom batches; see :class:`licag3d.phantom.batch.PhantomStream` for the arguments.

    Returns:
        Wall-clock rates: ``cases_per_s`` of the whole stream, its first batch (start of workers) not counted;
        ``draws_per_s`` of one process that draws patients; ``rays_per_s`` and ``queries_per_s`` of the device alone.
    """
    import torch

    from licag3d.phantom.batch import PhantomStream, draw_case, line_integrals, render_batch

    def now() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    stream = PhantomStream(settings, batch=batch, device=device, workers=workers)
    source = stream.batches()
    next(source)
    began = now()
    for _ in range(batches):
        next(source)
    whole = now() - began
    source.close()
    began = now()
    draws = [draw_case(seed, settings) for seed in stream.seeds(0)]
    drawing = now() - began
    last = render_batch(draws, settings, device=device)
    began = now()
    line_integrals(draws, settings.supersample, device)
    imaging = now() - began
    began = now()
    last.queries.signed_distance_mm(last.points_mm)
    asking = now() - began
    rays = last.line_integrals.numel() * settings.supersample**2
    return {
        "cases_per_s": batch * batches / whole,
        "draws_per_s": batch / drawing,
        "rays_per_s": rays / imaging,
        "queries_per_s": last.points_mm[..., 0].numel() / asking,
    }


def main(argv: list[str]) -> int:
    """Print the rates."""
    parser = Parser(prog="python -m licag3d.phantom.throughput", description="Measure the training stream.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where images and queries are made")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that draw patients")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="patients per batch")
    parser.add_argument("--batches", type=int, default=4, metavar="N", help="batches to time")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="rows and columns of an image")
    parser.add_argument("--points", type=int, default=8192, metavar="N", help="queries per patient")
    arguments = parser.parse_args(argv)
    for name, low, high in (("batches", 1, 10**6), ("batch", 1, 4096), ("workers", 0, 256)):
        if not low <= getattr(arguments, name) <= high:
            raise InputError(f"--{name} is {getattr(arguments, name)}; give {low} to {high}")
    import torch

    from licag3d.phantom.batch import BatchSettings

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no CUDA device; use --device cpu")
    settings = BatchSettings(rows=arguments.size, cols=arguments.size, points=arguments.points)
    rates = measure(settings, batch=arguments.batch, batches=arguments.batches, device=arguments.device,
                    workers=arguments.workers)  # fmt: skip
    for name, value in rates.items():
        print(f"{name:14s} {value:12.4g}")
    return 0


if __name__ == "__main__":
    run(main)
