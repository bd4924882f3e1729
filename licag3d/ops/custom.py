# SPDX-License-Identifier: Apache-2.0
"""Operators of the native core as torch operators.

``torch.library.custom_op`` does the same and loads torch's compiler (0.7 s) at the first call of any of them, for
programs that never compile anything. Here the same public registrations are made without that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class CustomOp:
    """A torch operator ``namespace::name`` made of a Python function; made by :func:`custom_op`.

    Calling it goes through torch's dispatcher: autograd, fake tensors, vmap and export see one opaque operator.
    """

    def __init__(self, name: str, function: Callable) -> None:
        self.name = name
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, "default", function)
        namespace, short = name.split("::")
        self._overload = getattr(getattr(torch.ops, namespace), short).default
        self.__doc__ = function.__doc__

    def __call__(self, *arguments, **named):
        return self._overload(*arguments, **named)

    def register_fake(self, function: Callable) -> Callable:
        """``function`` gives the shape of the result where there are no numbers; also a decorator."""
        torch.library.register_fake(self.name, function)
        return function

    def register_vmap(self, function: Callable) -> Callable:
        """``function(info, in_dims, *arguments)`` is the operator under ``torch.vmap``; also a decorator."""
        torch.library.register_vmap(self.name, function)
        return function

    def register_autograd(self, backward: Callable, *, setup_context: Callable | None = None) -> None:
        """The derivative, as for ``torch.library.register_autograd``."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def custom_op(name: str) -> Callable[[Callable], CustomOp]:
    """Decorator: the function, which changes no argument and returns new tensors, becomes operator ``name``."""
    return lambda function: CustomOp(name, function)
