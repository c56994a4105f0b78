"""The ASGI application: MLflow's endpoints, limits, keys and metrics around a `Server`."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version as version_of
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from airflow_mlops.deployments.endpoint import PROBE_HEADER
from airflow_mlops.errors import DeploymentError
from airflow_mlops.serving.handle import Overloaded, Reply
from airflow_mlops.serving.server import Server

VERSION_HEADER = "X-Model-Version"
REQUEST_HEADER = "X-Request-Id"
ROUTING_HEADER = "X-Routing-Key"
_OPEN = frozenset({"/ping", "/health"})
"""What needs no key: those that look whether it lives have none."""
_LONGEST_ID = 128
_MOST_SWALLOWED = 256 << 20


class Limits(NamedTuple):
    """What a client may ask for."""

    body: int = 16 << 20
    """The bytes of a request."""
    seconds: float = 30.0
    """How long a client may take to send them, and the model to answer."""
    key: str | None = None
    """The API key that is wanted; None: none is."""


class Refused(Exception):
    """A request that is not even read."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Meters:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("version", "role")
        self.requests = Counter(
            "mlops_serving_requests", "Requests by their status.", (*labels, "status"), registry=self.registry
        )
        self.rows = Counter("mlops_serving_rows", "Rows answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "mlops_serving_seconds",
            "Seconds from a request's last byte to its answer.",
            labels,
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
        )
        self.refused = Counter(
            "mlops_serving_refused", "Requests not read, by status.", ("status",), registry=self.registry
        )
        self.state = {
            name: Gauge(f"mlops_serving_{name}", text, registry=self.registry)
            for name, text in {
                "degraded": "1 where something is wrong.",
                "ledger_entry": "The entry of the ledger that is followed.",
                "log_rows_logged": "Rows of predictions in the store.",
                "log_rows_queued": "Rows of predictions that wait.",
                "log_rows_dropped": "Rows of predictions that are lost.",
            }.items()
        }

    def answered(self, reply: Reply, role: str, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(reply.version, role, str(reply.status)).inc()
        self.rows.labels(reply.version, role).inc(reply.rows)
        self.seconds.labels(reply.version, role).observe(seconds)

    def text(self, server: Server) -> bytes:
        """The metrics now."""
        stands = server.serving()
        self.state["degraded"].set(stands.state != "ok")
        self.state["ledger_entry"].set(stands.entry)
        for name in ("logged", "queued", "dropped"):
            self.state[f"log_rows_{name}"].set(getattr(stands, name))
        return generate_latest(self.registry)


def application(server: Server, meters: Meters, limits: Limits) -> Starlette:
    """The application."""

    async def invocations(request: Request) -> Response:
        identity = request.headers.get(REQUEST_HEADER, "")[:_LONGEST_ID] or uuid.uuid4().hex
        body = await _body(request, limits)
        kind = request.headers.get("content-type", "application/json")
        try:
            routing, probe = request.headers.get(ROUTING_HEADER), PROBE_HEADER in request.headers
            reply = await server.answer(body, kind, identity, routing, probe=probe)
        except Overloaded as error:
            raise Refused(503, "TEMPORARILY_UNAVAILABLE", "too many requests wait; try again") from error
        except TimeoutError as error:
            raise Refused(504, "DEADLINE_EXCEEDED", f"no answer within {limits.seconds:g} s") from error
        except DeploymentError as error:
            raise Refused(503, "TEMPORARILY_UNAVAILABLE", error.what) from error
        headers = {VERSION_HEADER: reply.version, REQUEST_HEADER: identity}
        return Response(reply.body, reply.status, headers, "application/json")

    async def ping(request: Request) -> Response:
        alive = server.route is not None and server.route.champion.alive
        return Response("\n", 200 if alive else 503)

    async def health(request: Request) -> Response:
        told = server.serving().model_dump(mode="json")
        told |= {"mlflow": server.mlflow, "store": server.store}
        alive = server.route is not None and server.route.champion.alive
        return Response(json.dumps(told), 200 if alive else 503, media_type="application/json")

    async def version(request: Request) -> Response:
        served = server.route.champion.version if server.route else ""
        return Response(version_of("mlflow"), headers={VERSION_HEADER: served}, media_type="text/plain")

    async def metrics(request: Request) -> Response:
        return Response(meters.text(server), media_type=CONTENT_TYPE_LATEST)

    def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                _check_key(request, limits)
                return await endpoint(request)
            except Refused as refused:
                meters.refused.labels(str(refused.status)).inc()
                text = json.dumps({"error_code": refused.code, "message": refused.message})
                headers = {"Connection": "close"} if refused.status in (408, 413) else {}
                if refused.status == 503:
                    headers["Retry-After"] = "1"
                return Response(text, refused.status, headers, "application/json")
            except ClientDisconnect:
                return Response(status_code=499)

        return answer

    return Starlette(
        routes=[
            Route("/invocations", guarded(invocations), methods=["POST"]),
            *(
                Route(path, guarded(endpoint), methods=["GET"])
                for path, endpoint in (
                    ("/ping", ping),
                    ("/health", health),
                    ("/version", version),
                    ("/metrics", metrics),
                )
            ),
        ]
    )


def _check_key(request: Request, limits: Limits) -> None:
    if limits.key is None or request.url.path in _OPEN:
        return
    said = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(said.encode(), limits.key.encode()):
        raise Refused(401, "UNAUTHENTICATED", "the API key is missing or wrong; send Authorization: Bearer KEY")


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, as far as limits allow.

    Raises:
        Refused: when it is too large, or comes too slowly.
    """
    most = f"the body is larger than {limits.body:,} bytes, which is the most here"
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.body:
        if "expect" not in request.headers:  # else the client waits to be told whether it may send
            await _swallow(request, limits)
        raise Refused(413, "REQUEST_LIMIT_EXCEEDED", most)
    pieces, size, started = [], 0, time.monotonic()
    try:
        async with asyncio.timeout(limits.seconds):
            async for piece in request.stream():
                size += len(piece)
                pieces.append(piece)
                if size > limits.body:
                    break
    except TimeoutError as error:
        took = time.monotonic() - started
        raise Refused(408, "REQUEST_TIMEOUT", f"the body was not there after {took:.0f} s") from error
    if size > limits.body:
        pieces.clear()
        await _swallow(request, limits)
        raise Refused(413, "REQUEST_LIMIT_EXCEEDED", most)
    return b"".join(pieces)


async def _swallow(request: Request, limits: Limits) -> None:
    """Let a client finish what is refused, within limits: many read no answer before they have sent everything."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(limits.seconds):
            while size < _MOST_SWALLOWED:
                message = await request.receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
