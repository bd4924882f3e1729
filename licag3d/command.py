# SPDX-License-Identifier: Apache-2.0
"""What every command shares: exit status, one-line errors, flags that name their units.

A verb is a module with ``main(argv) -> int | None`` and, at its end::

    if __name__ == "__main__":
        run(main)
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from licag3d.errors import InputError

DONE, INTERNAL, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Call ``main(argv)`` and leave the process with its exit status; see :func:`status_of`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(status_of(main, arguments))


def status_of(main: Callable[[list[str]], int | None], arguments: Sequence[str]) -> int:
    """Exit status of a command: 0 done, 2 bad input (one line on stderr), 130 interrupted, 1 an internal error.

    A traceback is shown only with ``--debug`` among the arguments.
    """
    arguments = list(arguments)
    debug = "--debug" in arguments
    try:
        status = main(arguments) or DONE
        sys.stdout.flush()
        return status
    except InputError as error:
        return _fail(str(error), BAD_INPUT, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, False)
    except BrokenPipeError:
        # The reader of our output went away (for example `head`); nothing is wrong, and nothing can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MemoryError:
        return _fail("not enough memory: use smaller views or --quality fast", INTERNAL, debug)
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        return _fail(f"internal error: {type(error).__name__}: {detail} (run again with --debug for the "
                     f"traceback)", INTERNAL, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"licag3d: error: {message}" if status != INTERRUPTED else f"licag3d: {message}", file=sys.stderr, flush=True)
    return status


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults (zero is one, nothing is none) and keeps the lines of texts that have several, as examples do."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == ()
        return action.help if nothing else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text.strip():
            return super()._fill_text(text, width, indent)
        return "".join(indent + line for line in text.strip("\n").splitlines(keepends=True))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other bad input, and that takes negative angle pairs."""

    def __init__(self, *args, **kwargs) -> None:
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, **kwargs)
        # `--angles 30,0 -30,0`: what begins with a minus and a digit is a value, never a flag.
        self._negative_number_matcher = re.compile(r"^-(\d|\.\d)")

    def error(self, message: str):
        raise InputError(f"{message}: see {self.prog} --help")


def device_of(name: str) -> str:
    """Torch device of a ``--device`` flag: ``cpu``, ``cuda``, or ``auto`` for CUDA where torch sees it.

    Raises:
        InputError: ``cuda`` where torch sees none.
    """
    if name == "cpu":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise InputError(
            "--device cuda: torch sees no CUDA device here; give --device cpu, or see python -m licag3d.doctor"
        )
    return "cpu"


def add_debug_flag(parser: argparse.ArgumentParser) -> None:
    """``--debug``: full traceback on errors."""
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")


def add_geometry_flags(parser: argparse.ArgumentParser) -> None:
    """``--cameras``, ``--angles``, ``--sid``, ``--sod``, ``--pixel-spacing``: see :func:`geometry_of`."""
    group = parser.add_argument_group("geometry (views that are not DICOM, or to override its tags)")
    group.add_argument("--cameras", metavar="FILE", help="cameras.json, one camera per view")
    group.add_argument("--angles", nargs="+", metavar="A,B", help="primary,secondary angle per view in degrees, LAO "
                                                                  "and cranial positive, for example 30,0 -30,0")
    group.add_argument("--sid", nargs="+", metavar="MM", help="distance source to detector in mm, one for all views or "
                                                              "one per view")
    group.add_argument("--sod", nargs="+", metavar="MM", help="distance source to isocentre in mm, or 'default' for "
                                                              "765 mm")
    group.add_argument("--pixel-spacing", nargs="+", metavar="MM", help="pixel spacing at the detector in mm")


def geometry_of(arguments: argparse.Namespace) -> dict:
    """Keyword arguments for :func:`licag3d.io.views.read_views` from the flags of :func:`add_geometry_flags`.

    Raises:
        InputError: something that is not a number where a number belongs.
    """
    angles = None
    if arguments.angles is not None:
        # `30,0 -30,0`, also when the shell or the user joined them with semicolons.
        pairs = [pair for text in arguments.angles for pair in text.replace(";", " ").split()]
        angles = []
        for pair in pairs:
            try:
                primary, secondary = (float(x) for x in pair.split(","))
            except ValueError:
                raise InputError(f"--angles {pair!r}: give PRIMARY,SECONDARY in degrees, for example 30,0") from None
            angles.append((primary, secondary))

    def numbers(values: list[str] | None, flag: str):
        if values is None:
            return None
        if flag == "--sod" and [value.lower() for value in values] == ["default"]:
            return "default"
        try:
            return [float(value) for value in values]
        except ValueError:
            raise InputError(f"{flag} {' '.join(values)}: give millimetres") from None

    return {"cameras": arguments.cameras, "angles": angles, "sid_mm": numbers(arguments.sid, "--sid"),
            "sod_mm": numbers(arguments.sod, "--sod"),
            "pixel_spacing_mm": numbers(arguments.pixel_spacing, "--pixel-spacing")}
