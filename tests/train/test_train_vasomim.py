# SPDX-License-Identifier: Apache-2.0
"""Pre-training in seconds: it learns, resumes where it stopped, and refuses what cannot work."""

from __future__ import annotations

import json
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from licag3d.data.crops import CropStream
from licag3d.data.frames import prepare_frames
from licag3d.errors import InputError
from licag3d.models.vasomim import load_encoder
from licag3d.models.vit import config_of
from licag3d.train.__main__ import main
from licag3d.train.loop import LoopSettings
from licag3d.train.vasomim import PLAIN, MaskingSettings, PretrainingData, pretrain, read_curves

CONFIG = config_of("vit-mini", image_px=32)
SETTINGS = LoopSettings(steps=24, batch=8, rate=3e-3, warmup=3, ema=0.9, precision="fp32", validate_every=24,
                        save_every=8, record_every=4, threads=1)  # fmt: skip
MASKING = MaskingSettings(segmentor_steps=6)


@pytest.fixture(scope="module", autouse=True)
def small_validation():
    from licag3d.train import vasomim

    before, vasomim.VALIDATION_CROPS = vasomim.VALIDATION_CROPS, 32
    yield
    vasomim.VALIDATION_CROPS = before


def vessel_picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    grey = 0.6 + 0.1 * np.sin(x / rng.uniform(15, 40) + y / 30)
    for _ in range(3):
        path = y - 96 * rng.uniform(0.2, 0.8) - 12 * np.sin(x / rng.uniform(8, 20) + rng.uniform(0, 6))
        grey -= 0.3 * np.exp(-0.5 * (path / 2) ** 2)
    return np.clip(255 * (grey + 0.01 * rng.standard_normal(grey.shape)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for number in range(12):
        iio.imwrite(folder / f"{number:02d}.png", vessel_picture(number))
    return folder


@pytest.fixture(scope="module")
def run(frames, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return pretrain(out, CONFIG, MASKING, SETTINGS, folders=[frames]), out


def losses(folder) -> list[tuple]:
    return [(r["step"], r["loss"], r["vessel_share"]) for r in read_curves(folder) if "loss" in r]


def test_run_learns_and_hides_more_and_more_vessels(run):
    outcome, out = run
    records = [r for r in read_curves(out) if "loss" in r]
    assert outcome.finished and [r["step"] for r in records] == list(range(4, 25, 4))
    assert records[-1]["reconstruction"] < 0.97 * records[0]["reconstruction"]
    assert records[0]["beta"] < 0.1 and records[-1]["beta"] > 0.4
    assert records[-1]["vessel_share"] > records[0]["vessel_share"] + 0.02
    assert all(r["consistency"] > 0 for r in records)
    scores = [r["validation"] for r in read_curves(out) if "validation" in r]
    assert scores and scores[-1]["score"] == -scores[-1]["reconstruction"]


def test_run_leaves_a_picture_and_an_encoder_that_loads(run):
    _, out = run
    assert iio.imread(out / "reconstruction.png").shape == (4 * 32, 6 * 32)
    encoder = load_encoder(out / "encoder.safetensors")
    assert encoder.config == CONFIG and encoder.features(torch.rand(1, 1, 96, 96)).shape == (1, CONFIG.width)
    assert encoder.hash != load_encoder("random:vit-mini").hash


def test_finished_run_becomes_weights_with_a_card(run, tmp_path, capsys):
    from licag3d import weights
    from licag3d.models.vasomim import encoder_from
    from licag3d.train import embed_encoder

    _, out = run
    assert embed_encoder.main(["--run", str(out), "--to", str(tmp_path)]) == 0
    state, card = weights.load("encoder", tmp_path)
    assert encoder_from(state, card["config"], "x").config == CONFIG
    assert card["hash"] == load_encoder(out / "encoder.safetensors").hash and card["hash"] in capsys.readouterr().out
    assert card["steps"] == 24 and len(card["curve"]) >= 6 and card["scores"]["validation"] and card["limits"]
    with pytest.raises(InputError, match="does not exist"):
        embed_encoder.embed(tmp_path / "nothing")


def test_interrupted_run_resumes_with_the_losses_of_the_whole_one(run, frames, tmp_path, monkeypatch):
    _, whole = run
    from licag3d.train import vasomim as module

    taken = {"count": 0}
    original = module._loss

    def breaks(model, batch, step, *rest):
        if step == 13 and not taken["count"]:
            taken["count"] += 1
            raise KeyboardInterrupt
        return original(model, batch, step, *rest)

    monkeypatch.setattr(module, "_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "cut", CONFIG, MASKING, SETTINGS, folders=[frames])
    assert losses(tmp_path / "cut")[-1][0] < 24
    outcome = pretrain(tmp_path / "cut", CONFIG, MASKING, SETTINGS, folders=[frames], resume=True)
    assert outcome.finished and losses(tmp_path / "cut") == losses(whole)
    same = [load_encoder(f / "encoder.safetensors").hash for f in (whole, tmp_path / "cut")]
    assert same[0] == same[1]


def test_plain_mae_is_a_switch(frames, tmp_path):
    outcome = pretrain(
        tmp_path / "plain", CONFIG, PLAIN, replace(SETTINGS, steps=4, validate_every=4), folders=[frames]
    )
    records = [r for r in read_curves(outcome.folder) if "loss" in r]
    assert all(r["beta"] == 0 and r["consistency"] == 0 for r in records)
    assert not (tmp_path / "plain" / "segmentor").exists()


def test_going_on_from_an_earlier_run(run, frames, tmp_path):
    _, earlier = run
    short = replace(SETTINGS, steps=2, warmup=1, rate=1e-6, ema=0.0, validate_every=2)
    start = earlier / "best.safetensors"
    first, new = (
        pretrain(tmp_path / name, CONFIG, PLAIN, short, folders=[frames], start=given)
        for name, given in (("on", start), ("new", None))
    )
    known, begun = (
        [r["validation"]["reconstruction"] for r in read_curves(o.folder) if "validation" in r][-1]
        for o in (first, new)
    )
    before = [r["validation"]["reconstruction"] for r in read_curves(earlier) if "validation" in r][-1]
    assert known == pytest.approx(before, abs=0.01) and known < begun - 0.02
    with pytest.raises(InputError):  # weights of another size
        pretrain(tmp_path / "x", config_of("vit-mini", image_px=32, patch_px=16), PLAIN, short, folders=[frames],
                 start=start)  # fmt: skip
    with pytest.raises(InputError):  # resumed from other weights than it began with
        pretrain(tmp_path / "on", CONFIG, PLAIN, short, folders=[frames], resume=True)


def test_a_folder_with_everything_wrong_in_it_trains_on_what_is_right(tmp_path, capsys):
    """Mixed sizes and depths, bright vessels, black and damaged files: counted before training, none met during it."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    iio.imwrite(folder / "a.png", vessel_picture(0))
    iio.imwrite(folder / "b.png", vessel_picture(1).astype(np.uint16) * 16)
    iio.imwrite(folder / "c.tiff", np.pad(vessel_picture(2), ((0, 30), (0, 9)), mode="reflect"))
    iio.imwrite(folder / "bright.png", 255 - vessel_picture(3))
    iio.imwrite(folder / "black.png", np.zeros((96, 96), np.uint8))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:700])
    (folder / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\7" * 200)
    out = tmp_path / "run"
    outcome = pretrain(out, CONFIG, PLAIN, replace(SETTINGS, steps=3, validate_every=3), folders=[folder])
    assert outcome.finished and outcome.steps == 3
    told = capsys.readouterr().err
    assert "4 frames of 4 patients from 7 files" in told and "1 files had bright vessels" in told
    listed = (out / "frames" / "skipped.txt").read_text()
    assert all(name in listed for name in ("black.png", "cut.png", "bad.dcm")) and "a.png" not in listed


def test_other_flags_cannot_resume_and_a_run_is_not_overwritten(run, frames):
    _, out = run
    with pytest.raises(InputError, match="holds a run already"):
        pretrain(out, CONFIG, MASKING, SETTINGS, folders=[frames])
    with pytest.raises(InputError, match="another masking"):
        pretrain(out, CONFIG, replace(MASKING, eta=0.1), SETTINGS, folders=[frames], resume=True)
    with pytest.raises(InputError, match="another encoder"):
        pretrain(out, config_of("vit-mini", image_px=32, width=96), MASKING, SETTINGS, folders=[frames], resume=True)


def test_batches_depend_on_their_step_alone(frames, tmp_path):
    bank = prepare_frames([frames], tmp_path / "bank")
    first, second = (CropStream([bank], 32, seed=5, priors=p) for p in (None, tmp_path))
    for step in (3, 0, 3):
        a, b = first.batch(step, 4), second.batch(step, 4)
        assert torch.equal(a["images"], b["images"]) and torch.equal(a["vesselness"], b["vesselness"])
    assert not torch.equal(first.batch(0, 4)["images"], first.batch(1, 4)["images"])
    assert 0 <= float(a["images"].min()) and float(a["images"].max()) <= 1
    assert 0.01 < float(a["vesselness"].mean()) < 0.5
    # What is on disk is taken, and what is damaged there is made anew.
    stored = sorted(tmp_path.glob("frame*.npy"))
    assert stored
    for file in stored:
        file.write_bytes(b"cut off")
    assert torch.equal(CropStream([bank], 32, seed=5, priors=tmp_path).batch(3, 4)["vesselness"], a["vesselness"])


def test_a_growing_pool_is_let_in_at_checkpoints_and_remembered():
    class Pool:
        frames = 10

        def refresh(self, known=None):
            return self.frames if known is None else known

    pool = Pool()
    data = PretrainingData(None, None, [pool], {})
    state = data.prepare(0, {})
    assert state == {"pool_frames": 10}
    pool.frames = 15
    assert data.prepare(8, state) == {"pool_frames": 15}
    resumed = PretrainingData(None, None, [pool], {})
    assert resumed.prepare(8, {"pool_frames": 12}) == {"pool_frames": 12}
    assert resumed.prepare(16, {"pool_frames": 12}) == {"pool_frames": 15}


@pytest.mark.parametrize(("flags", "message"), [
    ([], "no data"),
    (["--frames", "nowhere"], "missing"),
    (["--pool", "nowhere"], "no pool"),
    (["--frames", ".", "--size", "vit-x"], "not known"),
    (["--frames", ".", "--beta", "1.5"], "beta last"),
    (["--frames", ".", "--image-px", "60"], "no multiple"),
    (["--frames", ".", "--ema", "1"], "--ema"),
])  # fmt: skip
def test_bad_flags_are_one_line(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        main(["vasomim", "--out", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run" / "config.json").exists()


def test_command_trains_and_says_where_the_encoder_is(frames, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["vasomim", "--out", str(out), "--frames", str(frames), "--size", "vit-mini", "--image-px", "32",
                 "--steps", "3", "--batch", "4", "--warmup", "1", "--segmentor-steps", "2", "--validate-every", "3",
                 "--threads", "1"]) == 0  # fmt: skip
    assert "encoder.safetensors" in capsys.readouterr().out
    facts = json.loads((out / "config.json").read_text())
    assert facts["config"]["data"]["frames"]["count"] == 12
