# SPDX-License-Identifier: Apache-2.0
"""Weights that come with the package: half-precision safetensors, each with a card that says what they are.

``NAME.safetensors`` holds the tensors, ``NAME.json`` the card: sha256 of the tensor file, architecture, data, seed,
steps, curve, scores, limits. The hash is checked on every load: a card never speaks for other weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from licag3d.errors import InputError

if TYPE_CHECKING:
    import torch

SCHEMA = "licag3d-weights-1"
MAX_BYTES = 15_000_000
FOLDER = Path(__file__).resolve().parent


def available(name: str, folder: Path | None = None) -> bool:
    """Whether weights of this name are there (not whether they are sound: :func:`load` checks)."""
    folder = folder or FOLDER
    return (folder / f"{_checked(name)}.safetensors").is_file() and (folder / f"{name}.json").is_file()


def load(name: str, folder: Path | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors by name (half precision where stored so; CPU) and the card.

    Args:
        name: of the weights, as ``segmentor``. folder: another folder than the package's own.

    Raises:
        InputError: missing, larger than :data:`MAX_BYTES`, damaged, or not the file the card speaks of.

    Example:
        >>> load("no-such-weights")
        Traceback (most recent call last):
        ...
        licag3d.errors.InputError: weights 'no-such-weights' are not part of this installation
    """
    folder = Path(folder or FOLDER)
    if not available(name, folder):
        raise InputError(f"weights '{name}' are not part of this installation")
    file = folder / f"{name}.safetensors"
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"weights '{name}': {size} bytes; at most {MAX_BYTES} are expected: install the package again")
    card = _card(folder / f"{name}.json", name)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card["sha256"]:
        raise InputError(
            f"weights '{name}': sha256 {digest[:12]} does not match the card ({str(card['sha256'])[:12]}): the file is "
            "damaged or another one; install the package again"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    try:
        return parse(content), card
    except SafetensorError as error:
        raise InputError(f"weights '{name}': not a safetensors file ({error})") from None


@lru_cache(maxsize=8)
def load_once(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """:func:`load`, kept in memory: for callers that load per frame."""
    return load(name)


def save(name: str, tensors: dict[str, torch.Tensor], card: dict, folder: Path | None = None) -> dict:
    """Write tensors (floating point as half precision) and card; returns the card with ``sha256`` and ``bytes``.

    Raises:
        InputError: more than :data:`MAX_BYTES`, or a value that half precision cannot hold.
    """
    import torch
    from safetensors.torch import save as encode

    from licag3d.io.atomic import write_bytes, write_text

    folder = Path(folder or FOLDER)
    half = {}
    for key, value in tensors.items():
        value = value.detach().cpu()
        stored = value.to(torch.float16) if value.is_floating_point() else value
        if value.is_floating_point() and not torch.isfinite(stored).all():
            raise InputError(f"weights '{name}': {key} does not fit into half precision")
        half[key] = stored.contiguous()
    content = encode(half)
    if len(content) > MAX_BYTES:
        raise InputError(f"weights '{name}': {len(content)} bytes; at most {MAX_BYTES} may be embedded")
    card = {
        "schema": SCHEMA,
        "name": _checked(name),
        **card,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    write_bytes(folder / f"{name}.safetensors", content)
    write_text(folder / f"{name}.json", json.dumps(card, indent=1) + "\n")
    return card


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise InputError(f"weights name {name!r}: lower-case letters, digits, - and _ only")
    return name


def _card(path: Path, name: str) -> dict:
    try:
        if path.stat().st_size > 1_000_000:
            raise ValueError("too long")
        card = json.loads(path.read_text("utf-8"))
        if card["schema"] != SCHEMA:
            raise InputError(f"weights '{name}' are of version {card['schema']}; this package reads {SCHEMA}")
        str(card["sha256"])
        return card
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"weights '{name}': the card {path.name} cannot be read; install the package again") from None
