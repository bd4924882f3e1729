# SPDX-License-Identifier: Apache-2.0
"""Embedded weights: half precision, hash checked, nothing too large."""

from __future__ import annotations

import json

import pytest
import torch

from licag3d import weights
from licag3d.errors import InputError


def test_round_trip_and_damage(tmp_path):
    tensors = {"a.weight": torch.randn(4, 3), "count": torch.tensor(7)}
    card = weights.save("net", tensors, {"model": "net", "steps": 3}, tmp_path)
    loaded, again = weights.load("net", tmp_path)
    assert again == card and again["steps"] == 3 and len(card["sha256"]) == 64
    assert loaded["a.weight"].dtype == torch.float16 and torch.equal(loaded["count"], tensors["count"])
    assert torch.allclose(loaded["a.weight"].float(), tensors["a.weight"], atol=2e-3)
    content = bytearray((tmp_path / "net.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "net.safetensors").write_bytes(bytes(content))
    with pytest.raises(InputError, match="does not match the card"):
        weights.load("net", tmp_path)


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="not part of this installation"):
        weights.load("absent", tmp_path)
    with pytest.raises(InputError, match="lower-case"):
        weights.load("../absent", tmp_path)
    with pytest.raises(InputError, match="half precision"):
        weights.save("net", {"a": torch.tensor([1e6])}, {}, tmp_path)
    monkeypatch.setattr(weights, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="at most 100"):
        weights.save("net", {"a": torch.zeros(100)}, {}, tmp_path)
    monkeypatch.undo()
    weights.save("net", {"a": torch.zeros(2)}, {}, tmp_path)
    (tmp_path / "net.json").write_text("{}")
    with pytest.raises(InputError, match="card"):
        weights.load("net", tmp_path)
    card = {"schema": "licag3d-weights-9", "sha256": ""}
    (tmp_path / "net.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="version"):
        weights.load("net", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["segmentor", "encoder", "generator", "correspondence", "tree_encoder", "iqa", "segmentor_guided", "synthesis"],
)
def test_what_is_embedded_is_sound(name):
    if not weights.available(name):
        pytest.skip(f"no weights of the {name} are part of this version")
    tensors, card = weights.load(name)
    assert tensors and card["bytes"] <= weights.MAX_BYTES and card["name"] == name
