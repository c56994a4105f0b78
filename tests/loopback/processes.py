"""Where a stand-in runs what a job asks for: real processes, in which no Airflow can be imported.

They are forked from one interpreter that has imported what the stages import, for that would take each of them seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

NO_AIRFLOW = """
import sys
class NoAirflow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "airflow":
            raise ModuleNotFoundError("a job has no Airflow", name="airflow")
sys.meta_path.insert(0, NoAirflow())
"""

_FORKING = (
    NO_AIRFLOW
    + """
import json, os, runpy, select
import pandas, mlflow, mlflow.sklearn, pyarrow.parquet, sklearn.linear_model, sklearn.pipeline, sklearn.compose, gcsfs
import airflow_mlops.google.job
import airflow_mlops.stages.extract, airflow_mlops.stages.prepare, airflow_mlops.stages.train
import airflow_mlops.stages.evaluate, airflow_mlops.stages.tune
def child(asked):
    os.setsid()
    os.chdir(asked["folder"])
    log = os.open(asked["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    import tempfile
    tempfile.tempdir = None
    module, *sys.argv[1:] = asked["command"]
    sys.argv[0] = module
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
print("ready", flush=True)
heard = b""
while True:
    if select.select([0], [], [], 0.02)[0]:
        more = os.read(0, 65536)
        if not more:
            break
        *lines, heard = (heard + more).split(b"\\n")
        for line in lines:
            asked = json.loads(line)
            pid = os.fork() or child(asked)
            print("started", asked["id"], pid, flush=True)
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        continue
    if pid:
        print("ended", pid, os.waitstatus_to_exitcode(status), flush=True)
"""
)


class Process:
    """A process that was started, and its end."""

    def __init__(self) -> None:
        self.pid = 0
        self.started, self.ended = threading.Event(), threading.Event()
        self.code: int | None = None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it and its children."""
        if self.started.wait(60) and not self.ended.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Processes:
    """Starts processes, each a ``python -m MODULE ARGUMENT ...``."""

    def __init__(self, forking: subprocess.Popen[str]) -> None:
        self._forking, self._lock = forking, threading.Lock()
        self._waiting: dict[int, Process] = {}
        self._running: dict[int, Process] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, *, cold: bool = False
    ) -> Process:
        """Start one; its output goes to ``FOLDER/log``.

        Args:
            command: as a container has it: ``python -m MODULE ARGUMENT ...``.
            environment: all of its variables.
            folder: where it runs, and has its temporary files.
            cold: in an interpreter of its own.
        """
        assert list(command[:2]) == ["python", "-m"], command
        process = Process()
        if cold:
            self._cold(process, command, environment, folder)
            return process
        with self._lock:
            number = id(process)
            self._waiting[number] = process
            asked = {
                "id": number,
                "command": list(command[2:]),
                "environment": dict(environment),
                "folder": str(folder),
                "log": str(folder / "log"),
            }
            assert self._forking.stdin is not None
            self._forking.stdin.write(json.dumps(asked) + "\n")
            self._forking.stdin.flush()
        return process

    def _cold(self, process: Process, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        (folder / "path").mkdir(exist_ok=True)
        (folder / "path" / "sitecustomize.py").write_text(NO_AIRFLOW)
        with open(folder / "log", "ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-P", *command[1:]],
                env={**environment, "PYTHONPATH": str(folder / "path")},
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.pid = popen.pid
        process.started.set()

        def wait() -> None:
            process.code = popen.wait()
            process.ended.set()

        threading.Thread(target=wait, daemon=True).start()

    def _listen(self) -> None:
        assert self._forking.stdout is not None
        for line in self._forking.stdout:
            match line.split():
                case ["started", number, pid]:
                    process = self._waiting.pop(int(number))
                    process.pid = int(pid)
                    self._running[process.pid] = process
                    process.started.set()
                case ["ended", pid, code]:
                    process = self._running.pop(int(pid))
                    process.code = int(code)
                    process.ended.set()

    def close(self) -> None:
        """End all of them."""
        for process in list(self._running.values()):
            process.kill()


@contextmanager
def processes() -> Iterator[Processes]:
    """The interpreter that is forked from, for as long as the scope lasts."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "MLFLOW_TRACKING", "PYTHONPATH"))
    }
    with tempfile.TemporaryFile("w+") as said:
        forking = subprocess.Popen(
            [sys.executable, "-P", "-c", _FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            # gcsfs reads it when it is imported.
            env={**environment, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"},
        )
        try:
            assert forking.stdout is not None and forking.stdin is not None
            if forking.stdout.readline() != "ready\n":
                said.seek(0)
                raise RuntimeError(f"no process can be forked:\n{said.read()[-2000:]}")
            running = Processes(forking)
            yield running
            running.close()
        finally:
            forking.kill()
            forking.wait()
