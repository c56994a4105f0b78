"""The stage runs on this machine in another process: another interpreter, or an environment that has no Airflow.

A job is a folder: the Call, then the Outcome or the error, and a lock that is held for as long as the job runs. So any
process of this machine sees how a job stands, and a lock is never left behind by a process that was killed. The job
leads a process group, lives no longer than the worker that submitted it, and hears its end from the pipe between them.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, BinaryIO, cast

from airflow_mlops.backends.base import Handle, State
from airflow_mlops.backends.runtime import interpreter, package_folder
from airflow_mlops.call.serve import CALL, ERROR, LOCK, OUTCOME
from airflow_mlops.call.store import Store, cache_folder
from airflow_mlops.call.wire import Call, Outcome, digest_of
from airflow_mlops.errors import (
    BackendError,
    JobCancelledError,
    JobFailedError,
    JobLostError,
    MemoryLimitError,
    MlopsError,
    error_of,
)
from airflow_mlops.spec.base import format_size, parse_size

_CANCELLED, _PROCESS = "cancelled", "pid"
_LOOK_SECONDS = 0.2
_TERM_SECONDS, _KILL_SECONDS = 2.0, 5.0
_KEPT = "AIRFLOW_CTX_"


class SubprocessBackend:
    """Runs Calls in processes of their own, beside the worker.

    Args:
        python: the interpreter's path. Default: the worker's own.
        requirements: instead, a requirements file, whose environment is built by uv and kept.
        memory: the most that a job and its children may use, in bytes or as ``2GiB``. Default: no limit.
        warm: keep the process for the next Call, so that what it has imported is imported once.
    """

    attached = True

    def __init__(
        self,
        python: str | None = None,
        requirements: str | None = None,
        memory: int | str | None = None,
        warm: bool = False,
    ) -> None:
        self.python, self.requirements, self.warm = python, requirements, warm
        self.memory: int | None = parse_size(memory) if memory else None
        self._lines: dict[str, queue.SimpleQueue[str | None]] = {}
        self._runner: _Runner | None = None
        self._environment: dict[str, str] = {}

    def find(self, call: Call) -> Handle | None:
        """The job of an earlier try that runs on this machine, or is done and was not collected."""
        handle = Handle(backend="subprocess", job=call.identity, call=call)
        try:
            asked = Call.model_validate_json((_folder(handle.call) / CALL).read_bytes())
        except (OSError, ValueError):
            return None
        return handle if asked.digest == call.digest and self.status(handle) in ("running", "done") else None

    def submit(self, call: Call, secrets: Mapping[str, str]) -> Handle:
        """Start the stage; its environment is built first where that was not done before.

        Raises:
            RuntimeBuildError: when there is no interpreter for it.
        """
        handle = Handle(backend="subprocess", job=call.identity, call=call)
        folder = _folder(call)
        folder.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as undo:
            lock = undo.enter_context(open(folder / LOCK, "ab"))
            if not _try_lock(lock):
                raise BackendError(f"the job {handle.job} is there already", fix="find it before submitting")
            for name in (OUTCOME, ERROR, _CANCELLED, _PROCESS):
                (folder / name).unlink(missing_ok=True)
            (folder / CALL).write_text(call.model_dump_json(indent=1), encoding="utf-8")
            try:
                runner = self._ready(_environment(secrets))
            except MlopsError as error:
                raise error.at(call.where) from error.__cause__
            (folder / _PROCESS).write_text(str(runner.pid))
            if (folder / _CANCELLED).exists():
                raise JobCancelledError(f"the job {handle.job} was cancelled", where=call.where)
            fcntl.flock(lock, fcntl.LOCK_SH)
            runner.ask(folder)
            lines = self._lines[handle.job] = queue.SimpleQueue()
            watch = threading.Thread(target=self._watch, args=(runner, call, folder, lock, lines), daemon=True)
            watch.start()
            undo.pop_all()
        return handle

    def _ready(self, environment: dict[str, str]) -> _Runner:
        """The process that takes the next Call: the one that is kept, or a new one."""
        kept = self._runner
        if kept is None or kept.code() is not None or environment != self._environment:
            self.close()
            python = interpreter(self.python, self.requirements)
            self._runner = kept = _Runner(python, {**environment, "PYTHONPATH": str(package_folder())})
            self._environment = environment
        return kept

    def close(self) -> None:
        """End the process that is kept for the next Call."""
        if self._runner is not None:
            self._runner.end()
            self._runner = None

    def _watch(
        self, runner: _Runner, call: Call, folder: Path, lock: BinaryIO, lines: queue.SimpleQueue[str | None]
    ) -> None:
        """Hand on log lines and hold the job to its memory, until it answers or its process ends."""
        answer, log, looked, ended = b"", b"", 0.0, False
        with selectors.DefaultSelector() as selector:
            for stream in (runner.answers, runner.log):
                selector.register(stream, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(0 if ended else _LOOK_SECONDS)]
                if runner.answers in ready:
                    answer += _read(runner.answers, selector)
                if runner.log in ready:
                    *whole, log = (log + _read(runner.log, selector)).split(b"\n")
                    for line in whole:
                        lines.put(line.decode(errors="replace"))
                now = time.monotonic()
                if ended and (runner.log not in ready or now - looked > _TERM_SECONDS):
                    break
                if not ended and (answer.endswith(b"\n") or runner.code() is not None):
                    # Once more after the end: what was said before it is in the pipe by then.
                    ended, looked = True, now
                elif self.memory and not ended and now - looked > _LOOK_SECONDS:
                    looked = now
                    if (used := _used_memory(runner.pid)) > self.memory:
                        _write_error(folder, self._too_much(used, call))
                        runner.kill(signal.SIGKILL)
        if log:
            lines.put(log.decode(errors="replace"))
        if not self.warm or runner.code() is not None:
            code = runner.end()
            lines.put(f"INFO {__name__}: the process {runner.pid} has ended with {_exit(code)}")
            if not any((folder / name).exists() for name in (OUTCOME, ERROR, _CANCELLED)):
                _write_error(folder, _broken_down(code, call))
        lock.close()
        lines.put(None)

    def _too_much(self, used: int, call: Call) -> MemoryLimitError:
        return MemoryLimitError(
            f"it used more than the {format_size(self.memory or 0)} of memory that are declared: {format_size(used)}",
            where=call.where,
            fix="raise runtime.memory, or read fewer windows (train.windows)",
        )

    def status(self, handle: Handle) -> State:
        """Where the job stands, by what lies in its folder and whether its lock is held."""
        folder = _folder(handle.call)
        if not folder.exists():
            return "done" if Store(handle.call.store).read_outcome(handle.call) else "lost"
        if _is_held(folder / LOCK):
            return "running"
        ends: tuple[tuple[str, State], ...] = ((OUTCOME, "done"), (_CANCELLED, "cancelled"), (ERROR, "failed"))
        return next((state for name, state in ends if (folder / name).exists()), "lost")

    def logs(self, handle: Handle) -> Iterator[str]:
        """The job's log lines as they come, until it ends. Only the process that submitted it hears them."""
        lines = self._lines.pop(handle.job, None)
        if lines is not None:
            yield from iter(lines.get, None)
        while self.status(handle) == "running":
            time.sleep(_LOOK_SECONDS)

    def cancel(self, handle: Handle) -> None:
        """End the job's process group: asked to at first, then made to."""
        folder = _folder(handle.call)
        if self.status(handle) != "running":
            return
        (folder / _CANCELLED).touch()
        for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            with suppress(OSError, ValueError):
                _kill(int((folder / _PROCESS).read_text()), number)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if self.status(handle) != "running":
                    return
                time.sleep(0.02)

    def collect(self, handle: Handle) -> Outcome:
        """The Outcome, or the error the job ended with. The job is forgotten: a later Call of its kind runs anew."""
        state, folder, where = self.status(handle), _folder(handle.call), handle.call.where
        if state == "running":
            raise BackendError(f"the job {handle.job} is still running", where=where, fix="ask for its status first")
        try:
            if state == "cancelled":
                raise JobCancelledError(f"the job {handle.job} was cancelled", where=where)
            if state == "failed":
                raise error_of(json.loads((folder / ERROR).read_bytes()))
            if state == "lost":
                raise JobLostError(f"the job {handle.job} has ended with its worker, or never was", where=where)
            if (folder / OUTCOME).exists():
                return Outcome.model_validate_json((folder / OUTCOME).read_bytes())
            outcome = Store(handle.call.store).read_outcome(handle.call)
            if outcome is None:
                raise JobLostError(f"the outcome of {handle.job} is not in the store", where=where)
            return outcome
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(call: Call) -> Path:
    return cache_folder("jobs") / digest_of([call.identity, call.store])[7:39]


def _environment(secrets: Mapping[str, str]) -> dict[str, str]:
    """The worker's variables without Airflow's own, which hold its keys and connections, and without Python's path."""
    own = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in own and ("AIRFLOW_" not in name or name.startswith(_KEPT))
    }
    return {**kept, **secrets}


def _try_lock(file: BinaryIO) -> bool:
    """Lock a file or not; whoever only looks whether it is locked holds it for a moment."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def _is_held(file: Path) -> bool:
    try:
        with open(file, "rb") as lock:
            return not _try_lock(lock)
    except FileNotFoundError:
        return False


class _Runner:
    """A process that takes Calls, and the channels to it."""

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        command = [python, "-P", "-m", "airflow_mlops.call.serve"]
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        )
        self.pid = self._process.pid
        self._asked, self.answers, self.log = (
            cast(IO[bytes], stream) for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        for stream in (self.answers, self.log):
            os.set_blocking(stream.fileno(), False)

    def ask(self, folder: Path) -> None:
        """Hand it a job."""
        with suppress(BrokenPipeError):  # what became of it is seen by its end
            self._asked.write(f"{folder}\n".encode())
            self._asked.flush()

    def code(self) -> int | None:
        """Its exit code, or None while it goes on."""
        return self._process.poll()

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to it and its children."""
        _kill(self.pid, number)

    def end(self) -> int:
        """Let it end that has nothing to do, then make it, and its children with it; return its exit code."""
        with suppress(BrokenPipeError):
            self._asked.close()
        try:
            code = self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGKILL)
            code = self._process.wait()
        self.kill(signal.SIGKILL)
        self.answers.close()
        self.log.close()
        return code


def _read(stream: IO[bytes], selector: selectors.BaseSelector) -> bytes:
    """What there is to read now; at its end the stream is watched no more."""
    found = stream.read()
    if found == b"":
        selector.unregister(stream)
    return found or b""


def _kill(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"


def _write_error(folder: Path, error: MlopsError) -> None:
    beside = folder / f"{ERROR}.{os.getpid()}"
    beside.write_text(json.dumps(error.as_json()), encoding="utf-8")
    beside.replace(folder / ERROR)


def _broken_down(code: int, call: Call) -> JobFailedError:
    killed = code == -signal.SIGKILL
    return JobFailedError(
        f"its process ended with {_exit(code)} and left no outcome; the task's log has its last words",
        where=call.where,
        fix="see whether the machine ran out of memory; runtime.memory sets a limit of your own" if killed else None,
    )


def _used_memory(pid: int) -> int:
    """The resident bytes of a process, and what its children hold for themselves."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        total = int(root.memory_info().rss)
        for child in root.children(recursive=True):
            with suppress(psutil.Error):
                used = child.memory_info()
                total += int(used.rss - getattr(used, "shared", 0))
    return total
