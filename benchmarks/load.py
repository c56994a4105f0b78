"""Clients of a model server, in a process of their own and cheap: one loop, connections that stay open, bytes as sent.

``python -m benchmarks.load`` reads what to do as JSON from its standard input, says ``ready`` when every client has had
an answer, and prints what came of it when the time is up, or at SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
_LONGEST = 60.0


class Load(NamedTuple):
    """What clients have met."""

    seconds: float
    """How long they have asked."""
    times: list[float]
    """The seconds of each answer."""
    failed: int
    """Requests without an answer, or with another status than 200."""
    mixed: int
    """Answers that are not what the version that they name says."""
    versions: dict[str, int]
    """How many answers each version gave."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.times) / self.seconds


class Clients:
    """Clients that ask all the time, in a process of their own.

    Args:
        url: the server.
        body: what each of them asks, as JSON.
        count: how many there are.
        seconds: how long they ask; with ``stop`` not longer than that.
        truth: of each version the one right answer; None: answers are not looked at.
    """

    def __init__(
        self, url: str, body: bytes, count: int, seconds: float, truth: Mapping[str, str] | None = None
    ) -> None:
        told = {"url": url, "body": body.decode(), "count": count, "seconds": seconds, "truth": truth}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(told))
        self._process.stdin.close()
        if self._process.stdout.readline() != "ready\n":
            self._process.wait()
            raise RuntimeError(f"clients of {url} got no answer")

    def stop(self) -> Load:
        """Have them end now."""
        self._process.send_signal(signal.SIGTERM)
        return self.result()

    def result(self) -> Load:
        """Wait until their time is up."""
        assert self._process.stdout is not None
        with self._process:
            text = self._process.stdout.read()
        if self._process.returncode:
            raise RuntimeError(f"clients ended with {self._process.returncode}")
        return Load(**json.loads(text))


class _Run:
    def __init__(self, told: Mapping[str, Any]) -> None:
        parts = urlsplit(told["url"])
        self.host, self.port = parts.hostname or "", parts.port or 80
        body = told["body"].encode()
        head = f"POST /invocations HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.truth = None if told["truth"] is None else {name: each.encode() for name, each in told["truth"].items()}
        self.until = 0.0
        self.over = False
        self.times: list[float] = []
        self.failed = self.mixed = 0
        self.versions: Counter[str] = Counter()

    async def client(self, go: asyncio.Event, warm: asyncio.Semaphore) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        await self._ask(reader, writer)
        warm.release()
        await go.wait()
        while not self.over and time.perf_counter() < self.until:
            started = time.perf_counter()
            try:
                async with asyncio.timeout(_LONGEST):
                    status, version, body = await self._ask(reader, writer)
            except (OSError, EOFError, TimeoutError):
                self.failed += 1
                writer.close()
                reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
                continue
            self.times.append(time.perf_counter() - started)
            self.versions[version] += 1
            if status != 200:
                self.failed += 1
            elif self.truth is not None and body != self.truth.get(version):
                self.mixed += 1
        writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, str, bytes]:
        writer.write(self.request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(fields["content-length"]))
        return int(head[0].split()[1]), fields.get("x-model-version", ""), body


async def _main(told: Mapping[str, Any]) -> Load:
    run, go = _Run(told), asyncio.Event()

    def stop() -> None:
        run.over = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    warm = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(run.client(go, warm)) for _ in range(told["count"])]
    for _ in tasks:
        waits = asyncio.ensure_future(warm.acquire())
        await asyncio.wait([waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if not waits.done():
            raise RuntimeError("a client got no answer")
    print("ready", flush=True)
    started = time.perf_counter()
    run.until = started + told["seconds"]
    go.set()
    await asyncio.gather(*tasks)
    return Load(time.perf_counter() - started, run.times, run.failed, run.mixed, dict(run.versions))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_main(json.load(sys.stdin)))._asdict()))
