"""Where a stand-in runs what a job asks for: real processes, in which no Airflow can be imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests import forked

Job = forked.Process | subprocess.Popen[bytes]

_NO_AIRFLOW = """
import sys
class NoAirflow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "airflow":
            raise ModuleNotFoundError("a job has no Airflow", name="airflow")
sys.meta_path.insert(0, NoAirflow())
"""
_RUN = """
import runpy
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, *, cold: bool = False) -> Job:
    """Start a process; its output goes to ``FOLDER/log``.

    Args:
        command: as a container has it: ``python -m MODULE ARGUMENT ...``.
        environment: all of its variables.
        folder: where it runs.
        cold: in an interpreter that has imported nothing yet.
    """
    assert list(command[:2]) == ["python", "-m"], command
    with open(folder / "log", "ab") as log:
        words = ("-P", "-c", _NO_AIRFLOW + _RUN, *command[2:])
        if cold:
            words = [sys.executable, *words]
            return subprocess.Popen(words, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        return forked.Process(("python", *words[1:]), env=environment, cwd=folder, stdout=log, stderr=log)


def kill(process: Job) -> None:
    """End it and its children."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
