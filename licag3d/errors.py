# SPDX-License-Identifier: Apache-2.0
"""The one exception for input a user can mend."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: what is wrong, the value seen, what to do, in one line. Commands exit with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
