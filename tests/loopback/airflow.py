"""Airflow's public API, of one that loads whatever the pointers of an environment name, and runs it well."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from airflow_mlops.delivery.bundle import NOT_WHOLE
from airflow_mlops.delivery.places import Place


class Standin:
    """What it has seen and what it says.

    Args:
        place: where its environment's releases lie.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.url = ""
        self.broken: dict[str, str] = {}
        """By the version of a release the error with which it does not load."""
        self.late = 0
        """How often it is still asked before it has all files of a release."""
        self.slow = 0
        """How often it still tells the error of a release that the pointer has left, in a traceback of new lines."""
        self._told = ""
        self.runs: list[tuple[str, dict[str, Any]]] = []
        """The runs that were asked for: DAG and params."""
        self.unpaused: list[str] = []

    def _loaded(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """DAGs, and import errors."""
        dags, errors = [], []
        for name in self.place.names():
            state = self.place.look(name)
            found = re.search(r"releases/\w+/(\w{16})", state.pointer or "")
            if not found:
                continue
            if self.late:
                self.late -= 1
                stack = f"DeclarationError: release {found[1]} {NOT_WHOLE}: x is missing"
                errors.append({"filename": f"{name}_release.py", "timestamp": "t", "stack_trace": stack})
                continue
            entry = next(each for each in state.entries if each.digest.startswith(f"sha256:{found[1]}"))
            if why := self.broken.get(entry.version):
                self._told = f"DeclarationError: release {found[1]}: {why}"
                errors.append({"filename": f"{name}_release.py", "timestamp": "t", "stack_trace": self._told})
                continue
            if self._told and self.slow:
                self.slow -= 1
                stack = f"  load_release({found[0]!r}, ...)\n{self._told}"
                errors.append({"filename": f"{name}_release.py", "timestamp": "later", "stack_trace": stack})
                continue
            dags += [
                {
                    "dag_id": f"{pipeline}.{kind}",
                    "tags": [f"release:{found[1]}"],
                    "relative_fileloc": f"{name}_release.py",
                    "bundle_name": "dags-folder",
                    "file_token": name,
                    "is_paused": False,
                }
                for pipeline in self.place.bundle(name, entry.digest).manifest.pipelines
                for kind in ("train", "monitor", "rollback")
            ]
        return dags, errors

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """What is said to a request; None where there is nothing."""
        dags, errors = self._loaded()
        match [method, *path.removeprefix("/api/v2/").split("/")]:
            case ["GET", "importErrors"]:
                return {"import_errors": errors}
            case ["GET", "dags"]:
                return {"dags": [each for each in dags if set(query.get("tags", [])) <= set(each["tags"])]}
            case ["GET", "dags", name]:
                return next((each for each in dags if each["dag_id"] == name), None)
            case ["PUT", "parseDagFile", _]:
                return {}
            case ["PATCH", "dags", name]:
                self.unpaused.append(name)
                return {}
            case ["POST", "dags", name, "dagRuns"]:
                self.runs.append((name, body["conf"]))
                return {"dag_run_id": f"manual-{len(self.runs)}"}
            case ["GET", "dags", _, "dagRuns", _]:
                return {"state": "success"}
        return None


@contextmanager
def airflow_of(place: Place, port: int = 0) -> Iterator[Standin]:
    """A stand-in, for as long as the scope lasts."""
    standin = Standin(place)

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            where = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said = standin.answer(self.command, where.path, parse_qs(where.query), json.loads(body or "null"))
            text = json.dumps({"detail": "Not Found"} if said is None else said).encode()
            self.send_response(404 if said is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = _handle

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    standin.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
