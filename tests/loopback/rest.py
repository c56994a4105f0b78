"""The skeleton of a REST stand-in: a server on a free port, requests held strictly to its protos, and faults.

A service derives from `RestService` and marks its methods with `route`. What comes in is parsed as Google's own
message, so a field that does not exist or is of another type is refused as Google refuses it; what goes out is made of
one.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class RefusedError(Exception):
    """What a service answers instead: Google's own word for it, and its sentence."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Asked(NamedTuple):
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    authorization: str | None


_OF_EVERY_API = frozenset({"alt", "fields", "prettyPrint", "$alt", "$fields"})
"""Parameters that Google's front end understands for every service."""


class Reply(dict[str, Any]):
    """An answer with headers of its own, or another status code."""

    def __init__(self, body: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(body)
        self.code, self.headers = code, dict(headers or {})


class _Fault:
    def __init__(self, method: str, path: str, times: int, status: str | None, message: str, *, lost: bool) -> None:
        self.method, self.path, self.times = method, re.compile(path), times
        self.status, self.message, self.lost = status, message, lost


class _Route(NamedTuple):
    method: str
    path: re.Pattern[str]
    message: Any
    body: str | None


def route(method: str, path: str, message: Any = None, body: str | None = None) -> Callable[[Any], Any]:
    """Mark a method of a service as the answer to a request.

    Args:
        method: of HTTP.
        path: as Google's API reference writes it: ``v1/{parent=projects/*/locations/*}/customJobs``.
        message: the class of the request, of proto-plus or of protobuf; the method gets one. Default: it gets an
            `Asked` and the groups of the path.
        body: the field of the message that the request's body is; ``*`` where it is the message itself.
    """

    def group(match: re.Match[str]) -> str:
        name, _, form = match[1].partition("=")
        return f"(?P<{name.replace('.', '__')}>{(form or '*').replace('**', '.+').replace('*', '[^/:]+')})"

    pattern = re.compile(re.sub(r"\{([^}]+)\}", group, path) + "$")

    def mark(function: Any) -> Any:
        function.route = _Route(method, pattern, message, body)
        return function

    return mark


class RestService:
    """A service on a free port of loopback, running from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        """Every request that came in, in order."""
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        methods = (getattr(self, name) for name in dir(type(self)))
        self._routes = [(each.route, each) for each in methods if hasattr(each, "route")]

    def __enter__(self) -> Any:
        service = self

        class Handler(_Handler):
            stand_in = service

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(
        self,
        status: str,
        message: str = "injected",
        *,
        times: int = 1,
        method: str = ".*",
        path: str = "",
    ) -> None:
        """Refuse the next requests whose method and path match these patterns."""
        self._faults.append(_Fault(method, path, times, status, message, lost=False))

    def lose_answer(self, *, times: int = 1, method: str = ".*", path: str = "") -> None:
        """Do what the next requests ask that match, and close the connection without an answer."""
        self._faults.append(_Fault(method, path, times, None, "", lost=True))

    def forget(self) -> None:
        """Forget requests and faults; a service forgets what it keeps as well."""
        self.asked.clear()
        self._faults.clear()

    def requests(self, method: str = ".*", path: str = "") -> list[Asked]:
        """The requests so far whose method and path match these patterns."""
        return [each for each in self.asked if re.fullmatch(method, each.method) and re.search(path, each.path)]

    def answer(self, asked: Asked) -> tuple[int, Any, bool]:
        """Status code, JSON body, and whether the answer gets lost."""
        with self._lock:
            self.asked.append(asked)
            fault = next(
                (
                    each
                    for each in self._faults
                    if each.times and re.fullmatch(each.method, asked.method) and each.path.search(asked.path)
                ),
                None,
            )
            if fault:
                fault.times -= 1
        try:
            if fault and fault.status:
                raise RefusedError(fault.status, fault.message)
            return 200, self._dispatch(asked), fault is not None
        except RefusedError as error:
            code = CODES[error.status]
            return code, {"error": {"code": code, "status": error.status, "message": error.message}}, False

    def _dispatch(self, asked: Asked) -> Any:
        for its, function in self._routes:
            match = its.path.match(asked.path) if its.method == asked.method else None
            if match is None:
                continue
            if its.message is None:
                return _as_json(function(asked, **match.groupdict()))
            return _as_json(function(_message(its, match, asked)))
        raise RefusedError("NOT_FOUND", f"the stand-in has no {asked.method} {asked.path}")


def _message(its: _Route, match: re.Match[str], asked: Asked) -> Any:
    """The request as Google's own message; a proto-plus one stays one."""
    value: dict[str, Any] = {}
    told = {name: text for name, text in asked.query.items() if name not in _OF_EVERY_API}
    for name, text in (*told.items(), *match.groupdict().items()):
        *above, last = name.replace("__", ".").split(".")
        place = value
        for each in above:
            place = place.setdefault(each, {})
        place[last] = [text] if isinstance(text, str) and _is_repeated(its.message, (*above, last)) else text
    if its.body == "*":
        value |= asked.body or {}
    elif its.body:
        # The path of an update is that of the resource itself.
        inner = value.get(its.body, {})
        value[its.body] = {**(asked.body or {}), **inner} if isinstance(inner, Mapping) else asked.body
    elif asked.body is not None:
        raise RefusedError("INVALID_ARGUMENT", f"{asked.method} {asked.path} takes no body")
    plus = hasattr(its.message, "pb")
    message = its.message.pb()() if plus else its.message()
    try:
        ParseDict(value, message)
    except ParseError as error:
        raise RefusedError("INVALID_ARGUMENT", f"Invalid JSON payload received. {error}") from error
    return its.message.wrap(message) if plus else message


def _is_repeated(message: Any, path: tuple[str, ...]) -> bool:
    """Whether a field of a request, such as ``aggregation.groupByFields``, takes several values."""
    fields: Any = (message.pb() if hasattr(message, "pb") else message).DESCRIPTOR
    found = None
    for name in path:
        found = fields and (fields.fields_by_camelcase_name.get(name) or fields.fields_by_name.get(name))
        fields = found.message_type if found else None
    return bool(found and found.is_repeated)


def _as_json(answer: Any) -> Any:
    if answer is None or isinstance(answer, (dict, list)):
        return {} if answer is None else answer
    return MessageToDict(type(answer).pb(answer) if hasattr(type(answer), "pb") else answer)


class _Handler(BaseHTTPRequestHandler):
    stand_in: RestService
    protocol_version = "HTTP/1.1"
    # Without this the kernel waits for the client's acknowledgement between header and body.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(size)
        parts = urlsplit(self.path)
        try:
            body = json.loads(text) if text else None
        except ValueError:
            body = {"this is no JSON": ""}
        query: dict[str, Any] = {}
        for name, text_ in parse_qsl(parts.query, keep_blank_values=True):
            # What is given several times is a list.
            query.setdefault(name, []).append(text_)
        query = {name: each[0] if len(each) == 1 else each for name, each in query.items()}
        asked = Asked(self.command, parts.path.lstrip("/"), query, body, self.headers.get("Authorization"))
        try:
            code, value, lost = self.stand_in.answer(asked)
        except Exception as error:
            code, value, lost = 500, {"error": {"code": 500, "status": "INTERNAL", "message": repr(error)}}, False
        if lost:
            self.close_connection = True
            self.connection.close()
            return
        answer = json.dumps(value).encode()
        self.send_response(getattr(value, "code", code))
        for name, text_ in getattr(value, "headers", {}).items():
            self.send_header(name, text_)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Look again and again until something holds; what it is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.02)
    return found
