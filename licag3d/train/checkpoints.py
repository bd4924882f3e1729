# SPDX-License-Identifier: Apache-2.0
"""Files of a training run: weights, checkpoints, curves. Safetensors throughout: nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from licag3d.errors import InputError

if TYPE_CHECKING:
    import torch

SCHEMA = "licag3d-training-1"


def save_weights(path, model: torch.nn.Module, facts: dict) -> None:
    """The weights of a model as one safetensors file, with ``facts`` (JSON) in its header."""
    from safetensors.torch import save

    from licag3d.io.atomic import write_bytes

    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata={"schema": SCHEMA, "facts": json.dumps(facts)}))


def load_weights(path) -> tuple[dict[str, torch.Tensor], dict]:
    """What :func:`save_weights` wrote: tensors and facts.

    Raises:
        InputError: no such file, or not one of these.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("schema") != SCHEMA:
                raise InputError(f"{path}: not weights of this version of licag3d.train")
            facts = json.loads(header["facts"])
            if not isinstance(facts, dict):
                raise ValueError("its facts are no object")
            return {key: file.get_tensor(key) for key in file.keys()}, facts
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as weights ({' '.join(str(error).split())[:120]})") from None


def export_weights(run_folder, model: str, name: str, folder=None) -> dict:
    """Half-precision weights ``name`` and their card, of a finished run, into ``folder`` (default: the package's own).

    Args:
        run_folder: holds ``MODEL.safetensors``, ``curves.jsonl`` and ``config.json``.
        model: of the run, as ``segmentor``.

    Returns:
        The card: facts of the run, settings, and the validations as ``curve``.
    """
    from licag3d.weights import save

    run_folder = Path(run_folder)
    tensors, facts = load_weights(run_folder / f"{model}.safetensors")
    entries = [json.loads(line) for line in (run_folder / "curves.jsonl").read_text("utf-8").splitlines()]
    curve = [{"step": entry["step"], **entry["validation"]} for entry in entries if "validation" in entry]
    settings = json.loads((run_folder / "config.json").read_text("utf-8"))["settings"]
    return save(name, tensors, {"model": model, **facts, "settings": settings, "curve": curve}, folder)


def load_into(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Put tensors into a model of the same architecture.

    Raises:
        InputError: a tensor is missing, is too much or has another shape; the first of them is named.
    """
    own = model.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors:
            raise InputError(f"{source}: {key} is missing; it belongs to another architecture or version")
        if key not in own:
            raise InputError(f"{source}: {key} is unknown here; it belongs to another architecture or version")
        if own[key].shape != tensors[key].shape:
            raise InputError(
                f"{source}: {key} is {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}: it "
                "belongs to another size of the model"
            )
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in tensors.items()})


def save_checkpoint(folder: Path, model, average, optimizer, step: int, best, best_step: int, state: dict) -> None:
    """One file, so that weights, optimiser and step never come from different moments."""
    from safetensors.torch import save

    from licag3d.io.atomic import write_bytes

    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    numbered = optimizer.state_dict()["state"]
    tensors |= {f"optimizer.{i}.{k}": v for i, entry in numbered.items() for k, v in entry.items()}
    facts = {"step": step, "best": best, "best_step": best_step, "state": state}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_bytes(
        folder / "checkpoint.safetensors", save(tensors, metadata={"schema": SCHEMA, "facts": json.dumps(facts)})
    )


def restore_checkpoint(folder: Path, model, average, optimizer):
    file = folder / "checkpoint.safetensors"
    if not file.is_file():
        return 0, None, 0, {}  # interrupted before the first checkpoint: the run begins anew
    tensors, facts = load_weights(file)

    def part(prefix: str) -> dict:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    load_into(model, part("model."), str(file))
    load_into(average, part("average."), str(file))
    numbered: dict[int, dict] = {}
    for key, value in part("optimizer.").items():
        index, name = key.split(".", 1)
        numbered.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["step"]), facts["best"], int(facts["best_step"]), facts["state"]


def cut_curves(folder: Path, step: int) -> None:
    """Records after the checkpoint will be written again."""
    from licag3d.io.atomic import write_text

    file = folder / "curves.jsonl"
    if not file.is_file():
        return
    kept = []
    for line in file.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut off in the middle by the interruption
    write_text(file, "".join(kept))
