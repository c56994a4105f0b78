"""The clients of the serving benchmark count what they meet; what they meet here is made up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.load import Clients

TRUTH = {"1": "one", "2": "two"}


@contextmanager
def server(*answers: tuple[int, str, str]) -> Iterator[str]:
    """A server that gives these answers in turn: status, version and body."""
    turn = itertools.cycle(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            assert self.rfile.read(int(self.headers["Content-Length"])) == b"{}"
            status, version, body = next(turn)
            self.send_response(status)
            self.send_header("X-Model-Version", version)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_right_answers_of_both_versions_are_neither_failed_nor_mixed() -> None:
    with server((200, "1", "one"), (200, "2", "two")) as url:
        found = Clients(url, b"{}", 4, 0.5, TRUTH).result()
    assert (found.failed, found.mixed) == (0, 0)
    assert set(found.versions) == {"1", "2"} and sum(found.versions.values()) == len(found.times) > 10
    assert found.rate == pytest.approx(len(found.times) / found.seconds) and found.seconds >= 0.5


def test_a_status_and_an_answer_of_the_other_version_are_counted_until_they_are_told_to_stop() -> None:
    with server((200, "1", "one"), (503, "1", "one"), (200, "1", "two"), (200, "3", "one")) as url:
        clients = Clients(url, b"{}", 1, 3600, TRUTH)
        threading.Event().wait(0.5)
        found = clients.stop()
    asked = len(found.times)
    assert asked > 10
    assert abs(found.failed - asked / 4) <= 1 and abs(found.mixed - asked / 2) <= 2


def test_clients_that_are_not_answered_say_so() -> None:
    with pytest.raises(RuntimeError, match="got no answer"):
        Clients("http://127.0.0.1:9", b"{}", 1, 1.0)
