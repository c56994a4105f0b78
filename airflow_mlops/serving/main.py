"""A server from its settings to its end: a socket, the application on it, and who answers behind it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from airflow_mlops.errors import DeploymentError
from airflow_mlops.serving.app import Limits, Meters, application
from airflow_mlops.serving.server import Server, Settings

_DRAIN = 30
_MOST_HEAD = 256 << 10
"""The bytes of a request's first lines; what is longer is no request."""


def serve(settings: Settings, limits: Limits, host: str, port: int) -> None:
    """Serve until a signal ends it. The first line on standard output is JSON: server, url, version, pid, bytes.

    Raises:
        DeploymentError: when the address cannot be had, or the model cannot be loaded.
        ModelNotFoundError: when there is no champion yet.
    """
    with listen(host, port) as listening, suppress(KeyboardInterrupt):
        asyncio.run(_serve(settings, limits, listening))


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        DeploymentError: when the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        fix = "--port 0 takes a free one" if taken else "--host with an address of this machine"
        raise DeploymentError(f"{host}:{port} cannot be had: {error}", fix=fix) from error
    # An answer is written in two pieces, and the second would wait 40 ms for the client's word about the first. asyncio
    # sees to that only for sockets that were made with the protocol's number; connections inherit it from here.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def reachable(host: str) -> str:
    """The address by which others find a server that listens at this one.

    One that listens on all of a machine's addresses is found by that of the machine's own name, which in a container is
    the container's; where the name has none, the address stays what it is.
    """
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return str(socket.getaddrinfo(socket.gethostname(), None, family)[0][4][0])
    except OSError:
        return host


# Which of two classes it is depends on what is installed.
class _Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """A connection whose client has to say what it wants: uvicorn waits for a head for ever, and keeps all of it."""

    seconds = 30.0
    _timer: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and see whether they end a head, or begin the next."""
        super().data_received(data)
        if self.cycle is not None and (self.cycle.more_body or not self.cycle.response_complete):
            self._head = 0
        else:
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self.transport.close()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._give_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Front(uvicorn.Server):
    """Uvicorn, which would end the process by the signal it got before the log is written; here it only stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the loop."""
        yield


async def _serve(settings: Settings, limits: Limits, listening: socket.socket) -> None:
    meters = Meters()
    server = Server(settings, meters.answered)
    host, port = listening.getsockname()[:2]
    address = reachable(host)
    server.url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    config = uvicorn.Config(
        application(server, meters, limits),
        http=type("_Impatient", (_Impatient,), {"seconds": limits.seconds}),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_DRAIN,
        server_header=False,
    )
    front = _Front(config)

    def stop() -> None:
        front.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await server.start()
        server.watch()
        serving = asyncio.create_task(front.serve(sockets=[listening]))
        while not (front.started and server.route) and not serving.done():
            await asyncio.sleep(0.01)
        route = server.route
        if front.started and route is not None:
            # Whoever hears that it is ready finds it among the servers of the model.
            await server.beat()
            ready = {
                "server": server.id,
                "url": server.url,
                "version": route.champion.version,
                "pid": os.getpid(),
                "bytes": route.champion.ready.bytes,
            }
            print(json.dumps(ready), flush=True)
        await serving
    finally:
        await server.close()
        sys.stdout.flush()
