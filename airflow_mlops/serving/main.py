"""A server from its settings to its end: a socket, the application on it, and who answers behind it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn

from airflow_mlops.errors import DeploymentError
from airflow_mlops.serving.app import Limits, Meters, application
from airflow_mlops.serving.server import Server, Settings

_DRAIN = 30


def serve(settings: Settings, limits: Limits, host: str, port: int) -> None:
    """Serve until a signal ends it. The first line on standard output is JSON: server, url, version, pid, bytes.

    Raises:
        DeploymentError: when the address cannot be had, or the model cannot be loaded.
        ModelNotFoundError: when there is no champion yet.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise DeploymentError(f"{host}:{port} cannot be had: {error}", fix="--port 0 takes a free one") from error
    with listening, suppress(KeyboardInterrupt):
        asyncio.run(_serve(settings, limits, listening))


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
    server.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    config = uvicorn.Config(
        application(server, meters, limits),
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
        while not front.started and not serving.done():
            await asyncio.sleep(0.01)
        route = server.route
        if front.started and route is not None:
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
