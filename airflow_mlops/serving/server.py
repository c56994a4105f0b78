"""Who answers: the server follows the ledger, loads what it says beside what serves, and swaps between two requests."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.errors import DeploymentError, MlopsError, ModelNotFoundError
from airflow_mlops.registry.ledger import Ledger, Traffic
from airflow_mlops.registry.mlflow_api import mlflow_api
from airflow_mlops.registry.serving import Serving, beat, end
from airflow_mlops.serving.frames import Ask, Logged, Start
from airflow_mlops.serving.handle import Handle, Overloaded, Reply

log = logging.getLogger(__name__)

_LOOK = 1.0
_BEAT = 2.0
_ASK_MLFLOW = 10.0
_TRY_AGAIN = 5.0
_LOAD = 120.0
_FULL_SHADOW = 64
"""With more requests waiting for it than these, a candidate in the shadow is not asked: it must slow down nobody."""
_SAME = 1e-6
_GRACE = 2.0
"""How much longer than an answer may take a process may be silent before it is ended, as one that never will answer."""


class Settings(NamedTuple):
    """How a server serves."""

    registry: RegistryRef
    store: Store
    version: str | None = None
    """The one version to serve, whatever the ledger says; None: follow the ledger."""
    digest: str | None = None
    """What that version's model must be. Default: what the ledger knows it by."""
    log_to: str | None = ""
    """The folder of predictions; empty for where the pipeline declares them; None: nothing is logged."""
    flush: float = 10.0
    """Seconds between two writings of the log."""
    allow_pickle: bool = False
    """Whether models that were written with cloudpickle may be loaded."""
    seconds: float = 30.0
    """How long an answer may take."""
    files: str | None = None
    """Where the files of that version are; then neither MLflow nor a ledger is asked for anything."""


class Route(NamedTuple):
    """Who answers from now on; replaced as one, so that no request sees half of a change."""

    champion: Handle
    candidate: Handle | None = None
    share: int = 0
    entry: int = 0


class Server:
    """A server of one model. Use `run` around whatever takes the requests."""

    def __init__(self, settings: Settings, on_answer: Callable[[Reply, str, float], None] | None = None) -> None:
        self.settings = settings
        self.id = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}".replace(".", "-")
        self.url = ""
        self.route: Route | None = None
        self.problem: str | None = None
        self.mlflow = self.store = "ok"
        self.started = datetime.now(UTC)
        self._on_answer = on_answer or (lambda reply, role, seconds: None)
        self._handles: dict[str, Handle] = {}
        self._ledger = Ledger(settings.store, settings.registry.model)
        self._tasks: list[asyncio.Task[None]] = []
        self._shadows: set[asyncio.Task[None]] = set()
        self._leaving: list[Handle] = []
        self._past = Logged()

    # ------------------------------------------------------------------ requests

    async def answer(self, body: bytes, kind: str, request: str, routing: str | None, *, probe: bool = False) -> Reply:
        """Answer a request by whoever's turn it is.

        A candidate that fails is asked in nobody's place: the champion answers instead. A probe is answered by the
        champion, and leaves no trace in the log.

        Raises:
            Overloaded: when too many requests wait.
            DeploymentError: when nobody can answer.
        """
        route = self.route
        if route is None:
            raise DeploymentError("no model is loaded yet")
        if probe:
            return await self._champion(route, body, kind, request, "probe")
        candidate = route.candidate
        if candidate is not None and route.share and _turn(routing or request) < route.share:
            with suppress(DeploymentError, Overloaded, TimeoutError):
                reply = await self._asked(candidate, body, kind, request, "candidate")
                if reply.status < 500:
                    return reply
        reply = await self._champion(route, body, kind, request)
        if candidate is not None and not route.share and reply.status == 200 and candidate.waiting < _FULL_SHADOW:
            task = asyncio.create_task(self._compare(candidate, body, kind, request, reply))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        return reply

    async def _champion(self, route: Route, body: bytes, kind: str, request: str, role: str = "champion") -> Reply:
        try:
            return await self._asked(route.champion, body, kind, request, role)
        except DeploymentError:
            # Its process has ended under the request. The next one is asked as soon as it is there.
            until = time.monotonic() + self.settings.seconds
            while time.monotonic() < until:
                await asyncio.sleep(0.05)
                if self.route is not None and self.route.champion.alive:
                    return await self._asked(self.route.champion, body, kind, request, role)
            raise

    async def _asked(self, handle: Handle, body: bytes, kind: str, request: str, role: str) -> Reply:
        started = time.perf_counter()
        async with asyncio.timeout(self.settings.seconds):
            reply = await handle.ask(Ask(request, kind, role), body)
        self._on_answer(reply, role, time.perf_counter() - started)
        return reply

    async def _compare(self, candidate: Handle, body: bytes, kind: str, request: str, reply: Reply) -> None:
        with suppress(DeploymentError, Overloaded, TimeoutError):
            other = await self._asked(candidate, body, kind, request, "shadow")
            candidate.compared += reply.rows
            candidate.disagreements += _disagreeing(reply.body, other.body) if other.status == 200 else reply.rows

    # ------------------------------------------------------------------ following

    async def start(self) -> None:
        """Load what the ledger, or the settings, say; where MLflow is down, `watch` does so as soon as it is there.

        Raises:
            ModelNotFoundError: when there is no champion yet.
            DeploymentError: when the model cannot be loaded; also where MLflow is down, if it is one version only.
        """
        traffic = await asyncio.to_thread(self._traffic)
        if traffic.champion is None:
            raise ModelNotFoundError(
                f"{self.settings.registry.model!r} has no champion to serve", fix="train one, and let it be promoted"
            )
        await self._follow(traffic)
        if self.problem and self.route is None:
            if self.settings.version is None:
                await self._ask_mlflow()
            if self.mlflow == "ok":
                raise DeploymentError(self.problem)

    def watch(self) -> None:
        """From here on follow the ledger, write heartbeats, and look at MLflow now and then."""
        going = [self._go_on(), self._go_beating(), self._go_watching()]
        if self.settings.files is None:
            going.append(self._go_asking())
        self._tasks = [asyncio.create_task(each) for each in going]

    async def close(self) -> None:
        """Answer what waits, write the log, and take the heartbeat away."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._shadows, return_exceptions=True)
        await asyncio.gather(*(handle.close() for handle in self._handles.values()))
        if self.settings.version is None:
            with suppress(MlopsError):
                await asyncio.to_thread(end, self.settings.store, self.settings.registry.model, self.id)

    def _traffic(self) -> Traffic:
        if self.settings.version is not None:
            return Traffic(0, self.settings.version)
        return self._ledger.traffic()

    def _digest(self, version: str) -> str:
        own = self.settings.digest if version == self.settings.version else None
        return own or self._ledger.digest(version)

    async def _follow(self, traffic: Traffic) -> None:
        """Load what is new beside what serves, swap, and end what nobody needs; what does not load changes nothing."""
        champion = traffic.champion
        if champion is None:
            return
        problems = []
        for version in dict.fromkeys(each for each in (champion, traffic.candidate) if each):
            try:
                await self._have(version)
            except (MlopsError, OSError) as error:
                problems.append(f"version {version} cannot be loaded: {error}")
                log.error("%s", problems[-1])
        self.problem = "; ".join(problems) or None
        if champion in self._handles and self._handles[champion].alive:
            candidate = self._handles.get(traffic.candidate or "")
            self.route = Route(
                self._handles[champion], candidate, traffic.share if candidate else 0, 0 if problems else traffic.entry
            )
        needed = {champion, traffic.candidate}
        if self.route is not None:
            needed.add(self.route.champion.version)
        for version in [each for each in self._handles if each not in needed]:
            await self._let_go(self._handles.pop(version))

    async def _have(self, version: str) -> None:
        digest = await asyncio.to_thread(self._digest, version)
        there = self._handles.get(version)
        if there is not None and there.alive and there.digest == digest:
            return
        settings = self.settings
        start = Start(
            store=settings.store.root,
            registry=settings.registry.model_dump(mode="json"),
            version=version,
            digest=digest,
            server=self.id,
            allow_pickle=settings.allow_pickle,
            log_to=settings.log_to,
            flush=settings.flush,
            files=settings.files,
        )
        self._handles[version] = await Handle.load(start, _LOAD)
        if there is not None:
            await self._let_go(there)

    async def _let_go(self, handle: Handle) -> None:
        """Let a version's process end, and remember what it has logged."""
        self._leaving.append(handle)
        await handle.close()
        self._leaving.remove(handle)
        self._past.logged += handle.log.logged
        self._past.dropped += handle.log.dropped

    async def _go_on(self) -> None:
        followed: Traffic | None = None
        tried = 0.0
        while True:
            await asyncio.sleep(_LOOK if self.route is not None and self.route.champion.alive else 0.05)
            try:
                traffic = await asyncio.to_thread(self._traffic)
                self.store = "ok"
            except MlopsError as error:
                self.store = str(error)
                continue
            broken = [each for each in self._handles.values() if not each.alive]
            stands = traffic == followed and not broken
            if stands and not self.problem:
                continue
            if (stands or broken) and time.monotonic() < tried + _TRY_AGAIN:
                continue
            tried = time.monotonic() if self.problem or broken else 0.0
            await self._follow(traffic)
            followed = traffic
            await self.beat()

    async def _go_beating(self) -> None:
        while True:
            for handle in list(self._handles.values()):
                await handle.look()
            await self.beat()
            await asyncio.sleep(_BEAT)

    async def _go_watching(self) -> None:
        """End processes that are stuck. Not where the ledger is followed: that waits for what an old one still owes."""
        owing: dict[int, Handle] = {}
        while True:
            await asyncio.sleep(_LOOK)
            owing |= {id(handle): handle for handle in self._handles.values()}
            for key, handle in list(owing.items()):
                if handle.end_if_stuck(self.settings.seconds + _GRACE):
                    log.error(
                        "version %s gave no answer for %.0f s: it is ended", handle.version, self.settings.seconds
                    )
                if not handle.alive:
                    del owing[key]

    async def beat(self) -> None:
        """Say in the store that this server is there, if it follows the ledger."""
        if self.settings.version is not None:
            return
        try:
            await asyncio.to_thread(beat, self.settings.store, self.settings.registry.model, self.serving())
        except MlopsError as error:
            self.store = str(error)

    async def _go_asking(self) -> None:
        while True:
            await self._ask_mlflow()
            await asyncio.sleep(_ASK_MLFLOW)

    async def _ask_mlflow(self) -> None:
        registry = self.settings.registry
        try:
            await asyncio.to_thread(mlflow_api(registry.uri).aliases, registry.model)
            self.mlflow = "ok"
        except MlopsError as error:
            self.mlflow = str(error)

    # ------------------------------------------------------------------ what is said of it

    def log(self) -> Logged:
        """How the log of all versions stands."""
        every = [self._past, *(handle.log for handle in (*self._leaving, *self._handles.values()))]
        problem = next((each.problem for each in every if each.problem), None)
        return Logged(
            sum(each.logged for each in every),
            sum(each.queued for each in every),
            sum(each.dropped for each in every),
            problem,
        )

    def wrong(self) -> str | None:
        """What is wrong, in words; None where nothing is."""
        said = [self.problem, self.log().problem]
        said += [f"{name}: {what}" for name, what in (("store", self.store), ("MLflow", self.mlflow)) if what != "ok"]
        if self.route is not None and not self.route.champion.alive:
            said.append("the champion's process has ended and is started anew")
        return "; ".join(each for each in said if each) or None

    def serving(self) -> Serving:
        """The server as its heartbeat tells it."""
        route, logged, wrong = self.route, self.log(), self.wrong()
        state: Literal["ok", "degraded"] = "degraded" if wrong else "ok"
        return Serving(
            server=self.id,
            url=self.url,
            pid=os.getpid(),
            started=self.started,
            at=datetime.now(UTC),
            entry=route.entry if route else 0,
            champion=route.champion.version if route else None,
            candidate=route.candidate.version if route and route.candidate else None,
            share=route.share if route else 0,
            state=state,
            problem=wrong,
            versions={version: handle.served() for version, handle in self._handles.items()},
            logged=logged.logged,
            queued=logged.queued,
            dropped=logged.dropped,
        )


def _turn(routing: str) -> int:
    """Where a routing key stands among a hundred; the same key always stands in the same place."""
    return int.from_bytes(hashlib.blake2b(routing.encode(), digest_size=4).digest(), "big") % 100


def _disagreeing(own: bytes, other: bytes) -> int:
    """How many rows two answers differ in: another label, or a number more than a millionth away."""
    pairs: list[tuple[Any, Any]] = list(
        zip(msgspec.json.decode(own)["predictions"], msgspec.json.decode(other)["predictions"], strict=True)
    )
    return sum(not _same(first, second) for first, second in pairs)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= _SAME * max(1.0, abs(first))
    return bool(first == second)
