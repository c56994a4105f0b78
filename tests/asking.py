"""Asks for a process of `tests.forked`: ``python -IS asking.py SOCKET python|airflow-mlops WORDS`` takes 20 ms."""

from __future__ import annotations

import json
import os
import socket
import sys


def ask(path: str, words: list[str], cwd: str, environment: dict[str, str], streams: list[int]) -> int:
    """Have a process forked that runs ``python`` with these words, or ``airflow-mlops``, and wait for its exit code."""
    with socket.socket(socket.AF_UNIX) as parent:
        parent.connect(path)
        socket.send_fds(parent, [b"."], streams)
        parent.sendall(json.dumps([words, cwd, environment]).encode() + b"\n")
        with parent.makefile() as answer:
            # One that is killed says nothing.
            return int(answer.read() or 255)


if __name__ == "__main__":
    sys.exit(ask(sys.argv[1], sys.argv[2:], os.getcwd(), dict(os.environ), [0, 1, 2]))
