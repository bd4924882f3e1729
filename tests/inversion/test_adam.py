# SPDX-License-Identifier: Apache-2.0
"""Our Adam against torch's, and that an inversion does not load the compiler for it."""

from __future__ import annotations

import subprocess
import sys

import torch

from licag3d.inversion.adam import Adam


def _descend(make):
    torch.manual_seed(3)
    values = [torch.randn(4, 5, requires_grad=True), torch.randn(7, dtype=torch.float64, requires_grad=True)]
    groups = [{"params": [values[0]], "lr": 0.05}, {"params": [values[1]], "lr": 0.2}]
    optimizer = make(groups)
    target = [torch.randn_like(value) for value in values]
    for step in range(60):
        optimizer.zero_grad()
        loss = ((values[0] - target[0]) ** 4).sum().double()
        # The second group rests for a while: its step count must not go on.
        if step % 3:
            loss = loss + ((values[1] - target[1]).abs() ** 1.5).sum()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 80)
        optimizer.step()
    return [value.detach() for value in values]


def test_steps_are_those_of_torch():
    ours = _descend(lambda groups: Adam(groups, betas=(0.9, 0.97)))
    theirs = _descend(lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.97), foreach=False))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_compiler_of_torch_is_not_loaded():
    code = (
        "import sys, torch\n"
        "from licag3d.inversion.adam import Adam\n"
        "x = torch.ones(2, requires_grad=True)\n"
        "adam = Adam([{'params': [x], 'lr': 0.1}])\n"
        "(x ** 2).sum().backward()\n"
        "adam.step()\n"
        "assert bool((x < 1).all())\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
