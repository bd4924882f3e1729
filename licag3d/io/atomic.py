# SPDX-License-Identifier: Apache-2.0
"""Writing that either happens whole or not at all, and only below the folder that was asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from licag3d.errors import InputError

_PREFIX = ".licag3d-"


def check_output_folder(path: str | os.PathLike) -> Path:
    """Make sure, before hours of work, that a folder can be written; creates nothing.

    Returns:
        The absolute path.

    Raises:
        InputError: the path or a parent of it is a file, or the folder (the nearest one that exists) refuses a file.
    """
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    nearest = folder
    while True:
        try:
            nearest.lstat()
            break
        except (FileNotFoundError, NotADirectoryError):
            nearest = nearest.parent
        except (OSError, ValueError) as error:
            raise InputError(f"the output folder {str(path)!r} cannot be used ({_reason(error)}); "
                             "give another --out") from None
    if not nearest.is_dir():
        what = "is a file" if nearest == folder else f"lies below {str(nearest)!r}, which is not a folder"
        raise InputError(f"the output folder {str(path)!r} {what}; give another --out")
    try:
        # Asking for permission bits is not enough: read-only mounts and root get the wrong answer.
        handle, probe = tempfile.mkstemp(prefix=_PREFIX, dir=nearest)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"the output folder {str(path)!r} cannot be written ({_reason(error)} in {str(nearest)!r}); "
                         "give another --out or mend its permissions") from None
    return folder


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file atomically: a temporary file in the same folder, flushed to disk, then renamed over ``path``."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; outputs follow the user's umask
        os.replace(temporary, path)
    except BaseException:
        with _ignore_missing():
            os.unlink(temporary)
        raise


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write UTF-8 text atomically; what has no UTF-8 form (undecodable bytes of a file name) becomes ``?``."""
    write_bytes(path, content.encode("utf-8", "replace"))


@contextmanager
def staged_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A hidden folder inside ``folder``; when the block ends without error its files are renamed into ``folder``.

    On an error or an interrupt nothing of it appears. Files that are already there and are not written anew stay.
    ``folder`` is made if needed.
    """
    target = check_output_folder(folder)
    made = [p for p in (target, *target.parents) if not p.exists()]
    target.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target))
    done = False
    try:
        yield stage
        files = sorted(stage.iterdir())
        for file in files:
            destination = target / file.name
            if destination.is_dir() and not destination.is_symlink():
                raise InputError(f"{str(destination)!r} is a folder where a file is to be written; "
                                 "move it or give another --out")
        for file in files:
            os.chmod(file, 0o666 & ~_umask())
            os.replace(file, target / file.name)
        done = True
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not done:
            for path in made:  # innermost first; only what was made here, and only while empty
                try:
                    path.rmdir()
                except OSError:
                    break


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@contextmanager
def _ignore_missing() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
