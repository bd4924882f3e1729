# SPDX-License-Identifier: Apache-2.0
"""Which methods the benchmark knows, by name, and how each is run: ours as the command a user types, rivals as
functions in a process of their own.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.baselines import Inputs, Result
from benchmarks.case_inputs import PreparedCase
from licag3d.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
OURS = "licag3d"
#: Flags of ``python -m licag3d.invert`` with which ours enters.
OUR_FLAGS = "--quiet"
#: Rivals by name: module under benchmarks/baselines and function.
RIVALS = {
    "visual_hull": "visual_hull:reconstruct",
    "sirt": "sirt_tv:reconstruct_sirt",
    "tv": "sirt_tv:reconstruct_tv",
    "epipolar_ba": "epipolar_ba:reconstruct",
    "voxel_optimisation": "voxel_optimisation:reconstruct",
    "tube_optimisation": "tube_optimisation:reconstruct",
    "neca_style": "neca_style:reconstruct",
    "deepca_style": "deepca_style:reconstruct",
}
#: Appended to a name: the same method with the common initialisation of the offset (benchmarks/offset.py).
WITH_OFFSET = "+offset"


@dataclass(frozen=True)
class Outcome:
    """What a run of one method on one case gave; ``failed`` is None or says why there is no ``result``."""

    result: Result | None
    failed: str | None
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Method:
    """One row of the leaderboard.

    Args:
        name: as printed. kind: ``ours``, ``rival`` or ``callable``.
        facts: what the leaderboard says about it.
        run: ``(case, timeout_s) -> Outcome``; never raises for what the method does.
    """

    name: str
    kind: str
    facts: dict[str, str | bool]
    run: Callable[[PreparedCase, float], Outcome]


def known_names() -> list[str]:
    """Names that can be given: ours, and every rival whose file is there, without and with the offset."""
    here = [name for name, place in RIVALS.items() if (ROOT / "benchmarks/baselines" / _file(place)).is_file()]
    return [OURS] + [name + suffix for name in here for suffix in ("", WITH_OFFSET)]


def _file(place: str) -> str:
    return place.partition(":")[0] + ".py"


def make_method(name: str, *, flags: str = OUR_FLAGS) -> Method:
    """A method by its name.

    Raises:
        InputError: no such method, or its file cannot be imported.
    """
    if name == OURS:
        return our_method(name, flags)
    plain = name.removesuffix(WITH_OFFSET)
    if name not in known_names():
        raise InputError(f"--methods {name} is not known; choose among {', '.join(known_names())}")
    target = f"benchmarks.baselines.{RIVALS[plain]}"
    module = _imported(target)[0]
    moved = name.endswith(WITH_OFFSET)
    facts = {
        "source": module.SOURCE,
        "corrects_offset": bool(module.CORRECTS_OFFSET),
        "differs": module.DIFFERS,
        "cameras": "common initialisation of the offset" if moved else "as a user has them",
    }
    return Method(name, "rival", facts, _isolated(target, moved))


def our_method(name: str, flags: str = OUR_FLAGS) -> Method:
    """Ours, through ``python -m licag3d.invert`` with the given flags."""
    facts = {
        "source": "this project",
        "corrects_offset": True,
        "differs": "",
        "cameras": "as a user has them",
        "command": f"python -m licag3d.invert {flags}",
    }
    return Method(name, "ours", facts, lambda case, timeout_s: run_command(case, shlex.split(flags), timeout_s))


def callable_method(target: str, name: str | None = None, *, isolated: bool = True) -> Method:
    """Anyone's function ``module:function``, ``Inputs -> Result``.

    Raises:
        InputError: it cannot be imported.
    """
    _imported(target)
    facts = {"source": target, "corrects_offset": False, "differs": "", "cameras": "as a user has them"}
    run = _isolated(target, False) if isolated else lambda case, timeout_s: call(target, case.inputs)
    return Method(name or target, "callable", facts, run)


def _imported(target: str):
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
        return module, getattr(module, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{target}: {error}; give MODULE:FUNCTION that can be imported") from None


def call(target: str, inputs: Inputs) -> Outcome:
    """Run a function in this process; memory is the highest of this process since the call began."""
    _reset_peak()
    began, cpu = time.perf_counter(), time.process_time()
    result, failed = None, None
    try:
        result = _imported(target)[1](inputs)
        if result.cameras is not None and len(result.cameras) != len(inputs.cameras):
            raise ValueError(f"{len(result.cameras)} cameras came back for {len(inputs.cameras)} views")
    except Exception as error:  # whatever a method raises is its failure, not the benchmark's
        result, failed = None, describe(error)
    return Outcome(result, failed, time.perf_counter() - began, time.process_time() - cpu, peak_mb(os.getpid()))


def describe(error: BaseException) -> str:
    """One line, at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _isolated(target: str, moved: bool) -> Callable[[PreparedCase, float], Outcome]:
    def run(case: PreparedCase, timeout_s: float) -> Outcome:
        return WORKER.call(target, case.moved if moved else case.inputs, timeout_s)

    return run


class _Worker:
    """One process that serves calls one after the other, so that a crash or a hang costs one case and imports are paid
    for once; it is started anew after either."""

    def __init__(self) -> None:
        self.process, self.pipe = None, None

    def call(self, target: str, inputs: Inputs, timeout_s: float) -> Outcome:
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, list(sys.path)), daemon=True)
            self.process.start()
            theirs.close()
        began = time.perf_counter()
        try:
            self.pipe.send((target, inputs))
            if self.pipe.poll(timeout_s):
                return self.pipe.recv()
            failed = f"RuntimeError: no result after {timeout_s:g} s"
        except (EOFError, OSError):
            failed = "RuntimeError: the method's process ended without a result (killed, or out of memory)"
        self.stop()
        return Outcome(None, failed, time.perf_counter() - began, float("nan"), None)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process, self.pipe = None, None


WORKER = _Worker()


def serve(pipe, path: list[str]) -> None:
    """Loop of the worker process."""
    sys.path[:] = path
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1") or 1))
    while True:
        try:
            target, inputs = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(call(target, inputs))


def run_command(case: PreparedCase, flags: list[str], timeout_s: float) -> Outcome:
    """``python -m licag3d.invert`` on the files of the case; peak memory and processor time are the child's."""
    import resource

    from licag3d.metrics.files import read_cameras, read_tree

    inputs, folder = case.inputs, case.folder
    numbers = range(1, len(inputs.cameras) + 1)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result, failed, memory_mb = None, None, None
    with tempfile.TemporaryDirectory(prefix="licag3d-benchmark-") as name:
        out = Path(name) / "out"
        command = [sys.executable, "-m", "licag3d.invert", "--views", *[str(folder / f"view_{k}.png") for k in numbers]]
        command += ["--cameras", str(folder / "cameras.json"), "--artery", inputs.artery, "--out", str(out), *flags]
        if inputs.track == "masks":
            command += ["--masks", *[str(folder / "truth" / f"view_{k}_mask.png") for k in numbers]]
        try:
            memory_mb = run_process(command, timeout_s)
            result = Result(read_tree(out / "centerlines.json"), tuple(read_cameras(out / "cameras.json")))
        except Exception as error:  # a failure of the method
            failed = describe(error)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(result, failed, time.perf_counter() - began, cpu, memory_mb)


def run_process(command: list[str], timeout_s: float) -> float | None:
    """Run to the end or to the time limit; peak resident memory in MB (None where the system does not tell).

    Raises:
        RuntimeError: time limit, or an exit status other than 0 with the last line of stderr.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        deadline, peak = time.monotonic() + timeout_s, None
        try:
            while process.poll() is None:
                peak = peak_mb(process.pid) or peak
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no result after {timeout_s:g} s")
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            errors.seek(0)
            lines = errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
            raise RuntimeError(f"exit status {process.returncode}: {lines[-1] if lines else 'no message'}")
    return peak


def peak_mb(pid: int) -> float | None:
    """High-water mark of resident memory so far. The figure of wait4 will not do: it begins with that of the parent."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) / 1024 if lines else None


def _reset_peak() -> None:
    """Start the high-water mark anew (Linux; elsewhere it stays that of the whole process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def with_facts(method: Method, **facts) -> Method:
    """The method with more facts for the record."""
    return dataclasses.replace(method, facts={**method.facts, **facts})
