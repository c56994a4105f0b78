"""The runner that a backend keeps: ``python -m airflow_mlops.call.serve``, one process for one Call after another.

Standard input brings folders, a line each; the ``call.json`` in a folder is run as by ``airflow_mlops.call``, and
answered on standard output by a line with the exit code. Log lines go to standard error.

When standard input closes, nobody is left who wants the work: the process ends, and with it the process group that it
leads. A worker that is killed leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path

from airflow_mlops.call.__main__ import LOG_FORMAT, perform

CALL, OUTCOME, ERROR, LOCK = "call.json", "outcome.json", "outcome.error.json", "lock"
"""The files of a job's folder. The lock is held, shared, for as long as the job runs."""


def main() -> int:
    """Run what comes in until nothing can come any more; the exit code is that of the last job."""
    code = 0
    # The user's code and its children get neither channel: what they read is empty, what they print is log.
    asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT)
    folders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    working = threading.Event()

    def listen() -> None:
        for line in asked:
            folders.put(line.rstrip("\n"))
        if working.is_set():
            os.killpg(0, signal.SIGKILL)
        folders.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (folder := folders.get()) is not None:
        working.set()
        with open(Path(folder, LOCK), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            code = perform(Path(folder, CALL), Path(folder, OUTCOME))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        working.clear()
        print(code, file=answers)
    return code


if __name__ == "__main__":
    sys.exit(main())
