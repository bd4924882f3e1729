# SPDX-License-Identifier: Apache-2.0
"""The training loop that all models share.

A run is a folder: ``config.json`` (what was asked for), ``curves.jsonl`` (one line per record, in order),
``checkpoint.safetensors`` (everything needed to go on) and ``best.safetensors`` (averaged weights of the best
validation). A batch is a function of its step alone, and the random numbers of a step are seeded by it; so a run that
was interrupted and resumed has the losses of one that was not.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from licag3d.command import device_of
from licag3d.errors import InputError
from licag3d.train.checkpoints import (
    SCHEMA,
    cut_curves,
    load_into,
    load_weights,
    restore_checkpoint,
    save_checkpoint,
    save_weights,
)

if TYPE_CHECKING:
    import torch


__all__ = [
    "LoopSettings",
    "Outcome",
    "add_loop_flags",
    "load_into",
    "load_weights",
    "save_weights",
    "settings_of",
    "train",
]


@dataclass(frozen=True)
class LoopSettings:
    """How to train.

    Args:
        steps: optimiser steps in all; the learning rate falls along a cosine to ``final_rate`` of its peak at the end.
        minutes: stop after this time in this process (0: no limit); the run can be resumed.
        batch: samples per step (the loop itself only reports it).
        rate: peak learning rate of AdamW. warmup: steps of linear rise. decay: weight decay (matrices, kernels).
        ema: share of the old average per step; it starts lower, ``(1 + step) / (10 + step)``.
        clip: largest norm of the gradient.
        precision: ``bf16`` (autocast) or ``fp32``.
        validate_every, save_every, record_every: steps.
        accumulate: batches whose gradients make one step.
        seed: of weights and batches. device, threads: where (0 threads: as many as torch likes).
    """

    steps: int = 10_000
    minutes: float = 0.0
    batch: int = 8
    rate: float = 2e-3
    final_rate: float = 0.01
    warmup: int = 200
    decay: float = 1e-2
    ema: float = 0.998
    clip: float = 1.0
    precision: str = "bf16"
    validate_every: int = 1000
    save_every: int = 500
    record_every: int = 20
    accumulate: int = 1
    seed: int = 0
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``finished`` False means the time limit came first. ``score`` is the best validation score."""

    steps: int
    finished: bool
    score: float | None
    best_step: int
    seconds: float
    folder: Path


def add_loop_flags(parser, **defaults) -> None:
    """``--out``, ``--resume`` and the flags of :class:`LoopSettings`, with a model's own defaults."""
    base = asdict(LoopSettings()) | defaults
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    for name, kind, text in (
        ("steps", int, "optimiser steps in all"),
        ("minutes", float, "stop after this many minutes, to be resumed; 0 means no limit"),
        ("batch", int, "samples per step"),
        ("rate", float, "peak learning rate"),
        ("warmup", int, "steps until the peak learning rate"),
        ("validate-every", int, "steps between validations"),
        ("save-every", int, "steps between checkpoints"),
        ("accumulate", int, "batches whose gradients make one step: saves memory"),
        ("seed", int, "seed of weights and batches"),
        ("threads", int, "CPU threads; 0 leaves the choice to torch"),
    ):
        value = base[name.replace("-", "_")]
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=text)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=base["precision"], help="of the forward pass")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.set_defaults(_loop_defaults=base)


def settings_of(arguments) -> LoopSettings:
    """Settings from the flags of :func:`add_loop_flags`.

    Raises:
        InputError: a value out of range, or a device that is not there.
    """
    limits = {
        "steps": (1, 10**9),
        "minutes": (0, 10**6),
        "batch": (1, 65536),
        "rate": (0, 10),
        "warmup": (0, 10**8),
        "validate_every": (1, 10**9),
        "save_every": (1, 10**9),
        "accumulate": (1, 4096),
        "seed": (0, 2**31 - 1),
        "threads": (0, 1024),
    }
    values = dict(arguments._loop_defaults)
    for name, (low, high) in limits.items():
        values[name] = getattr(arguments, name)
        if not low <= values[name] <= high:  # also catches NaN
            raise InputError(f"--{name.replace('_', '-')} is {values[name]}; give {low} to {high}")
    values["precision"] = arguments.precision
    values["device"] = device_of(arguments.device)
    return LoopSettings(**values)


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Rate at ``step`` (from 0): linear warm-up, then a cosine down to ``final_rate`` of the peak.

    Example:
        >>> s = LoopSettings(steps=100, warmup=10, rate=1.0, final_rate=0.1)
        >>> learning_rate(s, 4), learning_rate(s, 10), round(learning_rate(s, 99), 2)
        (0.5, 1.0, 0.1)
    """
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    share = min(1.0, (step - settings.warmup) / max(1, settings.steps - 1 - settings.warmup))
    return settings.rate * (settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * share)))


def train(
    model: torch.nn.Module,
    settings: LoopSettings,
    folder,
    *,
    make_batch: Callable[[int], dict],
    loss: Callable[[torch.nn.Module, dict, int], tuple[torch.Tensor, dict]],
    validate: Callable[[torch.nn.Module], dict] | None = None,
    score: str = "score",
    config: dict | None = None,
    resume: bool = False,
    prepare: Callable[[int, dict], dict] | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
) -> Outcome:
    """Train ``model`` in place, recording in ``folder``; at the end it holds its last raw (not averaged) weights.

    Under ``torchrun`` every process takes batches of its own, gradients are averaged over the processes, and the first
    one writes. Curves go to TensorBoard too where it is installed.

    Args:
        make_batch: step to a dict of tensors; must depend on nothing but the step (and what ``prepare`` was given).
        loss: ``(model, batch, step) -> (scalar, numbers to record)``; runs under autocast.
        validate: gets the averaged model in eval mode, returns numbers; ``score`` names the one that should rise.
        config: architecture and data, for ``config.json``; a resumed run must have the same.
        resume: go on from the checkpoint of ``folder``. Without it the folder must not hold a run.
        prepare: called as ``prepare(step, state)`` before the first batch and after every checkpoint; returns a small
            JSON state that is stored and handed back (for data that grows while training).
        betas: of AdamW.

    Raises:
        InputError: the folder holds a run already, holds none to resume, or one of another configuration; the loss
            is not finite.
    """
    import torch
    from tqdm import tqdm

    from licag3d.train.parallel import Group, board_of

    group = Group.join(settings.device)
    device = group.device
    folder = group.first_then_others(lambda first: _run_folder(folder, settings, config or {}, resume or not first))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model.to(device, memory_format=torch.channels_last)
    average = _copy(model)
    optimizer = torch.optim.AdamW(_groups(model, settings.decay), lr=settings.rate, betas=betas, fused=False)
    start, best, best_step, state = 0, None, 0, {}
    if resume:
        start, best, best_step, state = restore_checkpoint(folder, model, average, optimizer)
        if group.first:
            cut_curves(folder, start)
    curves = open(folder / "curves.jsonl" if group.first else os.devnull, "a", encoding="utf-8")
    board = board_of(folder) if group.first else None

    def record(**numbers) -> None:
        curves.write(json.dumps(numbers) + "\n")
        curves.flush()
        if board:
            for key, value in {**numbers, **numbers.get("validation", {})}.items():
                if isinstance(value, (int, float)):
                    board.add_scalar(key, value, numbers["step"])

    state = prepare(start, state) if prepare else state
    began = last = time.monotonic()
    late, waited = False, 0.0
    step, since, sums = start, 0, {}
    bar = tqdm(total=settings.steps, initial=start, disable=None if group.first else True, unit="step", file=sys.stderr)
    try:
        for step in range(start, settings.steps):
            model.train()
            rate = learning_rate(settings, step)
            for part in optimizer.param_groups:
                part["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            for turn in range(settings.accumulate):
                number = (step * settings.accumulate + turn) * group.size + group.rank
                torch.manual_seed(settings.seed * 1_000_003 + number)
                batch_began = time.monotonic()
                batch = {k: v.to(device) if hasattr(v, "to") else v for k, v in make_batch(number).items()}
                waited += time.monotonic() - batch_began
                try:
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
                        value, numbers = loss(model, batch, step)
                    _check_finite(value.detach(), numbers, step, folder)
                    (value / settings.accumulate).backward()
                except torch.OutOfMemoryError:
                    raise InputError(
                        f"{device}: out of memory at step {step + 1}: halve --batch (now {settings.batch}) and double "
                        f"--accumulate (now {settings.accumulate}), or use --precision bf16"
                    ) from None
                for key, entry in {"loss": value.detach(), **numbers}.items():
                    sums[key] = sums.get(key, 0.0) + float(entry) / settings.accumulate
            group.average_gradients(model)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            _check_finite(norm, {"gradient": norm}, step, folder)
            optimizer.step()
            _follow(average, model, min(settings.ema, (1 + step) / (10 + step)))
            sums["gradient"] = sums.get("gradient", 0.0) + float(norm)
            since += 1
            done = step + 1
            bar.update(1)
            late = group.any(bool(settings.minutes) and time.monotonic() - began > 60 * settings.minutes)
            end = done == settings.steps or late
            if done % settings.record_every == 0 or end:
                now = time.monotonic()
                means = {key: round(total / since, 6) for key, total in sums.items()}
                speed = since * settings.batch * settings.accumulate * group.size / max(now - last, 1e-9)
                record(
                    step=done,
                    **means,
                    rate=rate,
                    samples_per_s=round(speed, 2),
                    data_share=round(waited / max(now - last, 1e-9), 3),
                )
                bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.1f} samples/s")
                last, since, sums, waited = now, 0, {}, 0.0
            if group.first and validate is not None and (done % settings.validate_every == 0 or end):
                average.eval()
                with torch.no_grad():
                    scores = {key: round(float(number), 6) for key, number in validate(average).items()}
                record(step=done, validation=scores)
                # Of equal scores the later: a method that reaches nothing yet must not keep its first weights.
                if best is None or scores[score] >= best:
                    best, best_step = scores[score], done
                    facts = {"step": done, "scores": scores, **(config or {})}
                    save_weights(folder / "best.safetensors", average, facts)
                last = time.monotonic()
            if done % settings.save_every == 0 or end:
                if group.first:
                    try:
                        save_checkpoint(folder, model, average, optimizer, done, best, best_step, state)
                    except OSError as error:
                        raise InputError(
                            f"{folder}: the checkpoint of step {done} could not be written "
                            f"({error.strerror or error}); the one before it is whole: make room, go on with --resume"
                        ) from None
                if not end and prepare:
                    state = prepare(done, state)
            if late:
                break
    finally:
        bar.close()
        curves.close()
        if board:
            board.close()
    if validate is None and group.first:
        save_weights(folder / "best.safetensors", average, {"step": step + 1, **(config or {})})
    done = step + 1 if settings.steps > start else start
    return Outcome(done, done >= settings.steps, best, best_step, time.monotonic() - began, folder)


def _check_finite(value, numbers: dict, step: int, folder: Path) -> None:
    """Stop before the weights are touched; the last checkpoint stays as it is."""
    bad = [key for key, number in {**numbers, "loss": value}.items() if not math.isfinite(float(number))]
    if bad:
        kept = folder / "checkpoint.safetensors"
        rest = f"; the last good state is {kept}: go on from it with --resume" if kept.is_file() else ""
        number = float(numbers.get(bad[0], value))
        raise InputError(
            f"{bad[0]} is {number} at step {step + 1}, so the loss is no number: lower --rate or use --precision "
            f"fp32{rest}"
        )


def _run_folder(folder, settings: LoopSettings, config: dict, resume: bool) -> Path:
    from licag3d.io.atomic import check_output_folder, write_text

    folder = check_output_folder(folder)
    file = folder / "config.json"
    wanted = {"schema": SCHEMA, "settings": asdict(settings), "config": json.loads(json.dumps(config))}
    if resume:
        try:
            found = json.loads(file.read_text("utf-8"))
            if found["schema"] != SCHEMA:
                raise InputError(f"{folder}: a run of another version ({found['schema']}) cannot be resumed")
            before, now = found["settings"], wanted["settings"]
            # How long, how often and where do not change what is learnt from a step.
            free = {"minutes", "validate_every", "save_every", "record_every", "device", "threads"}
            before = asdict(LoopSettings()) | before  # a run of before a setting existed had its default
            changed = [k for k in now if k not in free and before.get(k) != now[k]]
            changed += [k for k in wanted["config"] if found["config"].get(k) != wanted["config"][k]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{folder}: no run to resume there; leave out --resume to begin one") from None
        if changed:
            raise InputError(f"{folder}: the run there has another {', '.join(changed)}; resume with the same flags")
        return folder
    if file.exists():
        raise InputError(f"{folder} holds a run already: give --resume to go on with it, or another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(wanted, indent=1) + "\n")
    return folder


def _copy(model):
    import copy

    average = copy.deepcopy(model)
    for parameter in average.parameters():
        parameter.requires_grad_(False)
    return average


def _groups(model, decay: float) -> list[dict]:
    """Weight decay for matrices and kernels, none for biases and scales."""
    heavy = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    light = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        group
        for group in ({"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0})
        if group["params"]
    ]


def _follow(average, model, keep: float) -> None:
    import torch

    with torch.no_grad():
        ours, theirs = list(average.parameters()), list(model.parameters())
        torch._foreach_lerp_(ours, [p.detach() for p in theirs], 1.0 - keep)
        # Statistics (batch normalisation) are averages already.
        for mine, other in zip(average.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
