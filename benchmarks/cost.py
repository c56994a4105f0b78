"""What a process and its children cost: CPU seconds, wall time and memory, as the kernel counts them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil

MIB = 1 << 20


class Cost(NamedTuple):
    """CPU is user and system time, children included; memory is that of the greatest single process."""

    cpu: float
    wall: float
    rss: int


class CommandError(RuntimeError):
    """A measured command failed; the message holds the end of what it printed."""


def python(*arguments: str, environment: Mapping[str, str], cwd: Path | None = None) -> tuple[Cost, str]:
    """Run Python; return its cost, and what it printed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=dict(environment), cwd=cwd, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        with process.stdout:
            printed = process.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    # Popen must not wait for it once more.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandError(f"{' '.join(arguments[:3])} ... ended with {process.returncode}:\n{said[-3000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - started, usage.ru_maxrss * 1024), printed


def compiled(cache: Path | None, **more: str) -> dict[str, str]:
    """An environment in which Python keeps compiled files there, and libraries are quiet and do not spin.

    One thread of OpenMP: how long threads wait for one another is no cost of what is compared here.
    """
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "no_proxy": "127.0.0.1,localhost",
        **more,
    }
    if cache is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(cache)
    return environment


def descendants_cpu(pid: int) -> float:
    """The CPU seconds of all that a process has started, ended children included, without its own.

    A child that has ended and was waited for is counted by its parent, so nothing is lost between two looks.
    """
    root = psutil.Process(pid)
    own = root.cpu_times()
    total = own.children_user + own.children_system
    for each in root.children(recursive=True):
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class PeakMemory:
    """Samples the resident memory of all that a process has started, as long as the scope lasts."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self.largest, self._root, self._every = 0, psutil.Process(pid), every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            try:
                children = self._root.children(recursive=True)
            except psutil.Error:
                return
            for each in children:
                try:
                    self.largest = max(self.largest, each.memory_info().rss)
                except psutil.Error:
                    continue
