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


def test_of_equal_scores_the_later_weights_are_kept(tmp_path):
    """A method that finds nothing yet has the score 0 at every validation: its first weights are not its best."""


    def run(name, scores):
        scores = iter(scores)
        said = lambda model: {"score": next(scores)}  # noqa: E731
        return train(network(), SETTINGS, tmp_path / name, make_batch=batch, loss=loss, validate=said)

    level = run("level", (0.0, 0.0, 0.0))
    assert level.best_step == SETTINGS.steps
    assert load_weights(level.folder / "best.safetensors")[1]["step"] == SETTINGS.steps
    assert run("falling", (0.3, 0.2, 0.1)).best_step == SETTINGS.validate_every


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


def test_a_loss_that_is_no_number_names_its_term_and_keeps_the_last_state(tmp_path):
    def poisoned(model, batch, step):
        value, numbers = loss(model, batch, step)
        if step == 10:
            value = value * float("nan")
            numbers["density"] = value.detach()
        return value, numbers

    with pytest.raises(InputError, match=r"density is nan at step 11.*last good state is .*--resume"):
        train(network(), SETTINGS, tmp_path / "r", make_batch=batch, loss=poisoned)
    _, facts = load_weights(tmp_path / "r" / "checkpoint.safetensors")
    assert facts["step"] == 8
    outcome = train(network(), SETTINGS, tmp_path / "r", make_batch=batch, loss=loss, resume=True)
    assert outcome.finished


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    import errno
    import os

    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 2:  # config.json, the checkpoint of step 8
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="step 16 could not be written .No space left"):
        train(network(), SETTINGS, tmp_path / "r", make_batch=batch, loss=loss)
    monkeypatch.undo()
    assert load_weights(tmp_path / "r" / "checkpoint.safetensors")[1]["step"] == 8
    assert not [file for file in (tmp_path / "r").iterdir() if file.name.startswith(".")]


def test_memory_that_runs_out_names_the_setting(tmp_path):
    def greedy(model, batch, step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match=r"halve --batch \(now 4\) and double --accumulate \(now 1\)"):
        train(network(), SETTINGS, tmp_path / "r", make_batch=batch, loss=greedy)


WORKER = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_loop import SETTINGS, batch, loss
from dataclasses import replace
from licag3d.train.loop import train
torch.manual_seed(5)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.Tanh(), torch.nn.Conv2d(6, 1, 1))
train(model, replace(SETTINGS, accumulate=int(sys.argv[3])), sys.argv[1], make_batch=batch, loss=loss)
"""


def test_two_processes_learn_what_one_learns_from_two_batches_a_step(tmp_path):
    import os
    import socket
    import subprocess
    import sys
    from pathlib import Path

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)

    def start(name, accumulate, **environment):
        command = [sys.executable, str(script), str(tmp_path / name), here, str(accumulate)]
        return subprocess.Popen(command, env=shared | environment, stderr=subprocess.PIPE, text=True)

    jobs = [start("two", 1, RANK=str(k), LOCAL_RANK=str(k), WORLD_SIZE="2") for k in range(2)] + [start("one", 2)]
    for job in jobs:
        _, complaint = job.communicate(timeout=120)
        assert job.returncode == 0, complaint
    two, one = (load_weights(tmp_path / name / "checkpoint.safetensors")[0] for name in ("two", "one"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=1e-5)


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
