# SPDX-License-Identifier: Apache-2.0
"""Adam for the short descents of an inversion.

``torch.optim`` loads the whole compiler of torch when its first optimiser is made, a second of every run that lasts
fifteen; trainings, which last hours, use ``torch.optim``. Same numbers (tested).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Adam:
    """Kingma and Ba, ICLR 2015, algorithm 1, without weight decay.

    Args:
        groups: each with ``params`` (tensors that require a gradient) and ``lr``; ``lr`` may be changed between steps.
            Other keys are kept as they are.
        betas, eps: decay of both moments, and what keeps the division finite.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> adam = Adam([{"params": [x], "lr": 0.1}])
        >>> for _ in range(200):
        ...     adam.zero_grad()
        ...     ((x - 1) ** 2).sum().backward()
        ...     adam.step()
        >>> bool((x - 1).abs() < 0.01)
        True
    """

    def __init__(self, groups: Iterable[dict], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.param_groups = list(groups)
        self._betas, self._eps = betas, eps
        self._state: dict[torch.Tensor, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for value in group["params"]:
                value.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every tensor that has a gradient."""
        first, second = self._betas
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                if value not in self._state:
                    self._state[value] = (0, torch.zeros_like(value), torch.zeros_like(value))
                count, mean, square = self._state[value]
                count += 1
                mean.lerp_(value.grad, 1 - first)
                square.mul_(second).addcmul_(value.grad, value.grad, value=1 - second)
                scale = (square.sqrt() / (1 - second**count) ** 0.5).add_(self._eps)
                value.addcdiv_(mean, scale, value=-group["lr"] / (1 - first**count))
                self._state[value] = (count, mean, square)
