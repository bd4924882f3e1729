# SPDX-License-Identifier: Apache-2.0
"""Training the segmentor end to end on a tiny pool, and fine-tuning on own masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from licag3d.command import BAD_INPUT, status_of
from licag3d.data.phantom_frames import PhantomPool, grow_pool, render_case
from licag3d.errors import InputError
from licag3d.phantom.splits import TRAINING, VALIDATION
from licag3d.train.__main__ import main
from licag3d.train.own_masks import collect


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    grow_pool(folder / "pool", 2, views=1, rows=160)
    grow_pool(folder / "checked", 1, views=1, rows=160, split=VALIDATION)
    return folder


def test_pool_grows_and_frames_come_back(pools):
    pool = PhantomPool(pools / "pool")
    assert len(pool) == 2 and all(entry["seed"] in TRAINING for entry in pool.entries)
    assert grow_pool(pools / "pool", 2, views=1, rows=160) == 2  # nothing is rendered twice
    frame, again = pool.frame(1), render_case(TRAINING[1], views=1, rows=160)[0]
    assert np.array_equal(frame.image, again.image) and np.array_equal(frame.mask, again.mask)
    assert np.array_equal(frame.labels, again.labels) and np.array_equal(frame.devices, again.devices)
    assert np.allclose(frame.line_integral, again.line_integral, rtol=1e-3, atol=1e-4)
    assert not frame.line_integral[~frame.mask].any() and set(np.unique(frame.labels[frame.mask])) - {0}
    # Image formation: more contrast is darker.
    assert frame.contrast[frame.mask].mean() > 5 * abs(frame.contrast[~frame.mask & ~frame.faint]).mean()


def test_pool_that_cannot_be_used(pools, tmp_path):
    with pytest.raises(InputError, match="no pool"):
        PhantomPool(tmp_path)
    (tmp_path / "index.jsonl").write_text('{"schema": "other", "file": "x.npy", "seed": 1}\n')
    with pytest.raises(InputError, match="another version"):
        PhantomPool(tmp_path)
    (tmp_path / "index.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is not a frame"):
        PhantomPool(tmp_path)


def test_training_smoke_resume_and_evidence(pools, tmp_path, capsys):
    flags = ["segmentor", "--pool", str(pools / "pool"), "--validation", str(pools / "checked"), "--size", "64"]
    flags += ["--batch", "2", "--save-every", "2", "--validate-every", "4", "--warmup", "1", "--device", "cpu"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert status_of(main, [*flags, "--steps", "4", "--out", str(whole), "--threads", "1"]) == 0
    assert status_of(main, [*flags, "--steps", "4", "--out", str(parts), "--minutes", "0.00001"]) == 0
    assert "stopped at the time limit" in capsys.readouterr().out
    assert status_of(main, [*flags, "--steps", "4", "--out", str(parts), "--resume", "--export", "tiny"]) == 0

    def losses(folder):
        lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
        return [line["validation"] for line in lines if "validation" in line and line["step"] == 4]

    assert losses(whole) == losses(parts) and losses(whole)
    card = json.loads((parts / "tiny.json").read_text())
    assert card["model"] == "segmentor" and card["step"] in (1, 4) and card["data"]["frames"] == 2 and card["curve"]
    assert status_of(main, [*flags, "--steps", "4", "--out", str(whole)]) == BAD_INPUT  # there is a run already
    assert status_of(main, [*flags, "--steps", "9", "--out", str(whole), "--resume"]) == BAD_INPUT
    assert status_of(main, ["segmentor", "--pool", str(pools / "checked"), "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert "not for training" in capsys.readouterr().err


@pytest.fixture()
def own(tmp_path):
    """Frames of several sizes and depths with masks, and most things that can be wrong with them."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)

    def write(name, shape, *, depth=8, bright=False, mask_shape=None, value=None):
        rows, cols = np.mgrid[: shape[0], : shape[1]]
        vessel = np.abs(rows - 0.5 * shape[0] - 0.2 * cols) < 4
        grey = 0.6 + (0.25 if bright else -0.25) * vessel + 0.02 * rng.standard_normal(shape)
        grey = np.full(shape, value) if value is not None else grey
        top = 2**depth - 1
        kind = np.uint8 if depth == 8 else np.uint16
        Image.fromarray((top * grey.clip(0, 1)).astype(kind)).save(images / name)
        if mask_shape is not None or not name.startswith("lonely"):
            chosen = np.zeros(mask_shape, bool) if mask_shape else vessel
            Image.fromarray((255 * chosen).astype(np.uint8)).save(masks / f"{name.split('.')[0]}.png")

    write("a.png", (120, 140))
    write("b.png", (150, 110), depth=16)
    write("c.tif", (130, 130))
    write("black.png", (100, 100), value=0.0)
    write("bright.png", (120, 120), bright=True)
    write("other.png", (120, 120), mask_shape=(60, 70))
    write("lonely.png", (120, 120))
    (images / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1\2\3")
    (masks / "broken.png").write_bytes((masks / "a.png").read_bytes())
    return images, masks


def test_own_masks_unusable_pairs_are_counted(own, tmp_path):
    found = collect(*own)
    assert sorted(frame.name for frame in found.frames) == ["a.png", "b.png", "c.tif"]
    assert sum(found.skipped.values()) == 5 and found.skipped["no mask of its name"] == 1
    assert found.skipped["vessels are brighter than their surroundings"] == 1
    assert any(name.startswith("broken.dcm: ") for name in found.names)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no usable frame"):
        collect(empty, own[1])


def test_fine_tuning_by_one_command(own, tmp_path, capsys):
    flags = ["segmentor", "--images", str(own[0]), "--masks", str(own[1]), "--size", "64", "--batch", "2"]
    flags += ["--steps", "2", "--warmup", "1", "--out", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]
    assert status_of(main, flags) == 0
    out = capsys.readouterr().out
    assert "skipped: " in out and "2 frames to train on, 1 to validate on" in out
    assert (tmp_path / "run" / "segmentor.safetensors").is_file()
    assert status_of(main, ["segmentor", "--images", str(own[0]), "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert status_of(main, ["segmentor", "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert status_of(main, ["painter", "--out", str(tmp_path / "x")]) == BAD_INPUT
