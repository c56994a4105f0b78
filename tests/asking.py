"""Asks for a process of `tests.forked`: ``python -IS asking.py SOCKET python|airflow-mlops WORDS`` takes 20 ms."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import IO


def ask(path: str, words: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> IO[str]:
    """Have a process forked that runs ``python`` with these words, or ``airflow-mlops``.

    What is returned has a line with its process id, and in the end one with its exit code.
    """
    with socket.socket(socket.AF_UNIX) as parent:
        parent.connect(path)
        socket.send_fds(parent, [b"."], streams)
        parent.sendall(json.dumps([words, cwd, environment]).encode() + b"\n")
        return parent.makefile()


if __name__ == "__main__":
    _, *said = ask(sys.argv[1], sys.argv[2:], os.getcwd(), dict(os.environ), [0, 1, 2])
    sys.exit(int(said[0]))
