"""A version's process as the front holds it: requests in, answers out, several at a time where they come so fast."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

import msgspec

from airflow_mlops.errors import DeploymentError
from airflow_mlops.registry.serving import Served
from airflow_mlops.serving.frames import Answers, Ask, Batch, Logged, Ready, Start, length, pack

MOST_TOGETHER = 64
"""How many requests are answered together at most."""
MOST_BYTES = 8 << 20
"""How many bytes they have together at most, unless one alone has more."""
MOST_WAITING = 1000
"""How many requests may wait for a version; more are refused at once."""
MOST_WAITING_BYTES = 256 << 20
"""How many bytes they may have together."""
_RECENT = 2000
_TO_END = 30.0
_PAGE = 1 << 16


class Overloaded(Exception):
    """More requests wait already than may."""


class Reply(NamedTuple):
    """An answer as the client gets it."""

    status: int
    body: bytes
    version: str
    rows: int


class _Waiting(NamedTuple):
    ask: Ask
    body: bytes
    reply: asyncio.Future[Reply]
    since: float


class Handle:
    """One version's process. Make it by `load`."""

    def __init__(self, process: asyncio.subprocess.Process, start: Start) -> None:
        self.version, self.digest, self.start = start.version, start.digest, start
        self.ready = Ready()
        self.log = Logged()
        self.requests = self.errors = self.compared = self.disagreements = 0
        self._process = process
        self._waiting: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self._times: deque[float] = deque(maxlen=_RECENT)
        self._busy = self._size = 0
        self._sent = 0.0
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def load(cls, start: Start, seconds: float) -> Handle:
        """Start a process and wait until it has loaded the model.

        Raises:
            DeploymentError: when it does not; with what it said.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "airflow_mlops.serving.scorer"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            limit=MOST_BYTES,
        )
        handle = cls(process, start)
        try:
            assert process.stdin is not None  # noqa: S101 - a pipe was asked for
            process.stdin.write(msgspec.json.encode(start) + b"\n")
            await process.stdin.drain()
            async with asyncio.timeout(seconds):
                handle.ready = msgspec.json.decode(await handle._frame(), type=Ready)
        except (OSError, EOFError, TimeoutError) as error:
            await handle._kill()
            why = f"is not loaded after {seconds:.0f} s" if isinstance(error, TimeoutError) else "ended while it loaded"
            raise DeploymentError(f"the process of version {start.version} {why}") from error
        except BaseException:
            await handle._kill()
            raise
        if handle.ready.problem:
            await handle._kill()
            raise DeploymentError(handle.ready.problem)
        handle._task = asyncio.create_task(handle._work())
        return handle

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return not self._ended and self._process.returncode is None

    @property
    def waiting(self) -> int:
        """How many requests it has not answered."""
        return len(self._waiting) + self._busy

    def end_if_stuck(self, seconds: float) -> bool:
        """Kill the process where it has not answered a batch for so long; say whether it was."""
        stuck = self.alive and self._busy > 0 and time.perf_counter() - self._sent > seconds
        if stuck:
            with suppress(ProcessLookupError):
                self._process.kill()
        return stuck

    async def ask(self, ask: Ask, body: bytes) -> Reply:
        """Have a request answered.

        Raises:
            Overloaded: when too many wait.
            DeploymentError: when the process has ended.
        """
        if not self.alive:
            raise DeploymentError(f"the process of version {self.version} has ended")
        if len(self._waiting) >= MOST_WAITING or self._size + len(body) > MOST_WAITING_BYTES:
            raise Overloaded
        self._size += len(body)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(ask, body, reply, time.perf_counter()))
        self._news.set()
        try:
            return await reply
        finally:
            self._size -= len(body)

    def served(self) -> Served:
        """What it has answered so far."""
        times = sorted(self._times)
        return Served(
            requests=self.requests,
            errors=self.errors,
            p50=times[len(times) // 2] if times else None,
            p99=times[min(len(times) - 1, len(times) * 99 // 100)] if times else None,
            compared=self.compared,
            disagreements=self.disagreements,
        )

    async def look(self) -> None:
        """Learn how the log stands, where nobody asks for answers."""
        if self.alive and not self.waiting:
            with suppress(Overloaded, DeploymentError):
                # An empty batch: a request that is none.
                await self.ask(Ask("", "", ""), b"")

    async def close(self) -> None:
        """Answer what waits, let the log be written, and end."""
        while self.alive and self.waiting:
            await asyncio.sleep(0.01)
        self._ended = True
        self._news.set()
        if self._task:
            await self._task
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_TO_END):
                with suppress(OSError, EOFError, msgspec.MsgspecError):
                    self.log = msgspec.json.decode(await self._frame(), type=Answers).log
                await self._process.wait()
        except TimeoutError:
            await self._kill()
        # What was not written by now never will be.
        self.log = Logged(self.log.logged, 0, self.log.dropped + self.log.queued, self.log.problem)

    async def _work(self) -> None:
        """Send batches, one at a time: what comes meanwhile makes the next."""
        problem = f"the process of version {self.version} has ended"
        try:
            while True:
                while not self._waiting:
                    if self._ended:
                        return
                    self._news.clear()
                    if not self._waiting and not self._ended:
                        await self._news.wait()
                batch = self._next()
                self._busy, self._sent = len(batch), time.perf_counter()
                try:
                    await self._answer(batch)
                except (OSError, EOFError, msgspec.MsgspecError) as error:
                    self._fail(batch, problem)
                    raise EOFError(problem) from error
                finally:
                    self._busy = 0
        except EOFError:
            self._ended = True
            self._fail(self._waiting, problem)
            self._waiting.clear()
            await self._kill()

    def _next(self) -> list[_Waiting]:
        batch, size = [self._waiting.popleft()], 0
        size = len(batch[0].body)
        while self._waiting and len(batch) < MOST_TOGETHER and size + len(self._waiting[0].body) <= MOST_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].body)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101 - pipes
        asked = [each for each in batch if each.ask.request]
        bodies = [each.body for each in asked]
        frame = pack(Batch([each.ask for each in asked], [len(each) for each in bodies]), bodies)
        self._process.stdin.writelines(frame)
        await self._process.stdin.drain()
        answers = msgspec.json.decode(await self._frame(), type=Answers)
        self.log = answers.log
        texts = [await self._process.stdout.readexactly(size) for size in answers.sizes]
        now = time.perf_counter()
        for each, said, text in zip(asked, answers.said, texts, strict=True):
            if said.status < 400 or said.status >= 500:
                self.requests += 1
                self.errors += said.status >= 500
                self._times.append((now - each.since) * 1000)
            if not each.reply.done():
                each.reply.set_result(Reply(said.status, text, self.version, said.rows))
        for each in batch:
            if not each.reply.done():
                each.reply.set_result(Reply(204, b"", self.version, 0))

    async def _frame(self) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        return await self._process.stdout.readexactly(length(await self._process.stdout.readexactly(4)))

    def _fail(self, batch: list[_Waiting] | deque[_Waiting], problem: str) -> None:
        for each in batch:
            self.requests += bool(each.ask.request)
            self.errors += bool(each.ask.request)
            if not each.reply.done():
                each.reply.set_exception(DeploymentError(problem))

    async def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
