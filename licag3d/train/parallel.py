# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model (``torchrun``), and curves for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licag3d.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """The processes of a training: one, or those that torchrun started. Gradients are averaged after each backward pass
    (not during it), so that parts of a model that a step does not use need no special care.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Group:
        """Join the group that torchrun describes in the environment; alone without it.

        Raises:
            InputError: fewer CUDA devices than processes on this machine.
        """
        import torch

        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, torch.device(device))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device == "cuda":
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"process {local} has no CUDA device: torchrun --nproc-per-node is more than the "
                    f"{torch.cuda.device_count()} devices here"
                )
            torch.cuda.set_device(local)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        chosen = torch.device("cuda", local) if device == "cuda" else torch.device(device)
        return cls(torch.distributed.get_rank(), size, chosen)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def first_then_others(self, run: Callable[[bool], object]):
        """``run(first)`` in the first process, then in the others, which find what it left."""
        import torch

        if self.size == 1:
            return run(True)
        out = run(True) if self.first else None
        torch.distributed.barrier()
        return out if self.first else run(False)

    def average_gradients(self, model: torch.nn.Module) -> None:
        """Mean of the gradients over the processes; a part that no step of this process used counts as zero."""
        import torch

        if self.size == 1:
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def any(self, value: bool) -> bool:
        """Whether it is true in any process: all must leave the loop together."""
        import torch

        if self.size == 1:
            return value
        flag = torch.tensor(float(value), device=self.device)
        torch.distributed.all_reduce(flag)
        return bool(flag > 0)


def board_of(folder):
    """A TensorBoard writer in the folder of a run, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
