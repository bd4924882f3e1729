# SPDX-License-Identifier: Apache-2.0
"""The shared training loop: a resumed run equals an uninterrupted one, and what cannot be trained is said early."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from licag3d.errors import InputError
from licag3d.train.loop import LoopSettings, learning_rate, load_into, load_weights, train

SETTINGS = LoopSettings(
    steps=24, batch=4, warmup=3, save_every=8, validate_every=8, record_every=4, threads=1, precision="fp32"
)


def network(width=6):
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, width, 3), torch.nn.BatchNorm2d(width), torch.nn.Dropout(0.3), torch.nn.Conv2d(width, 1, 1)
    )


def batch(step):
    return {"x": torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(step))}


def loss(model, batch, step):
    value = (model(batch["x"]) - 1).square().mean()
    return value, {"twice": 2 * value.detach()}


def validate(model):
    assert not model.training
    return {"score": -float((model(torch.ones(1, 1, 12, 12)) - 1).square().mean())}


def curves(folder):
    """Records without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("samples_per_s", "data_share")} for line in lines]


def test_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(tmp_path):
    whole, parts = network(), network()
    first = train(whole, SETTINGS, tmp_path / "a", make_batch=batch, loss=loss, validate=validate)

    def breaks(step):
        if step == 19:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(parts, SETTINGS, tmp_path / "b", make_batch=breaks, loss=loss, validate=validate)
    fresh = network()
    second = train(fresh, SETTINGS, tmp_path / "b", make_batch=batch, loss=loss, validate=validate, resume=True)
    assert curves(tmp_path / "a") == curves(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert (first.steps, first.finished, first.score) == (second.steps, second.finished, second.score)
    a, b = (load_weights(tmp_path / x / "best.safetensors")[0] for x in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_loss_falls_and_the_average_is_kept_beside_the_last_weights(tmp_path):
    model = network()
    train(model, replace(SETTINGS, steps=60, rate=0.02), tmp_path / "r", make_batch=batch, loss=loss, validate=validate)
    losses = [line["loss"] for line in curves(tmp_path / "r") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    tensors, _ = load_weights(tmp_path / "r" / "checkpoint.safetensors")
    assert not torch.equal(tensors["model.0.weight"], tensors["average.0.weight"])


def test_a_run_that_outlives_its_minutes_stops_and_can_be_resumed(tmp_path):
    short = replace(SETTINGS, minutes=1e-9)
    outcome = train(network(), short, tmp_path / "r", make_batch=batch, loss=loss)
    assert outcome.steps == 1 and not outcome.finished
    outcome = train(network(), SETTINGS, tmp_path / "r", make_batch=batch, loss=loss, resume=True)
    assert outcome.steps == SETTINGS.steps and outcome.finished


def test_data_that_grows_is_remembered(tmp_path):
    seen = []

    def prepare(step, state):
        seen.append((step, dict(state)))
        return state if state.get("step") == step else {"step": step, "frames": step + 10}

    train(network(), SETTINGS, tmp_path / "r", make_batch=batch, loss=loss, prepare=prepare)
    assert seen == [(0, {}), (8, {"step": 0, "frames": 10}), (16, {"step": 8, "frames": 18})]


def test_refused(tmp_path):
    def run(folder, settings=SETTINGS, model=None, **more):
        return train(model or network(), settings, folder, make_batch=batch, loss=loss, **more)

    with pytest.raises(InputError, match="no run to resume"):
        run(tmp_path / "none", resume=True)
    run(tmp_path / "r", replace(SETTINGS, steps=2))
    with pytest.raises(InputError, match="holds a run already"):
        run(tmp_path / "r")
    with pytest.raises(InputError, match="another rate"):
        run(tmp_path / "r", replace(SETTINGS, steps=2, rate=0.5), resume=True)
    with pytest.raises(InputError, match="another model"):
        run(tmp_path / "r", replace(SETTINGS, steps=2), config={"model": "x"}, resume=True)
    with pytest.raises(InputError, match="another size"):
        run(tmp_path / "r", replace(SETTINGS, steps=2), model=network(7), resume=True)
    with pytest.raises(InputError, match="loss is nan at step 1"):
        train(
            network(),
            SETTINGS,
            tmp_path / "n",
            make_batch=batch,
            loss=lambda m, b, s: (m(b["x"]).sum() * float("nan"), {}),
        )


def test_weights_of_another_architecture_are_named(tmp_path):
    run = train(network(), replace(SETTINGS, steps=1), tmp_path / "r", make_batch=batch, loss=loss)
    tensors, facts = load_weights(run.folder / "best.safetensors")
    assert facts["step"] == 1
    with pytest.raises(InputError, match=r"0\.weight is \(6, 1, 3, 3\), expected \(9, 1, 3, 3\)|0\.bias"):
        load_into(network(9), tensors, "file")
    with pytest.raises(InputError, match="missing"):
        load_into(network(), {k: v for k, v in tensors.items() if k != "0.bias"}, "file")
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of weights")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_weights(tmp_path / "bad.safetensors")


def test_learning_rate_rises_and_falls():
    settings = LoopSettings(steps=100, warmup=10, rate=1.0, final_rate=0.05)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in zip(rates[10:-1], rates[11:], strict=True))
