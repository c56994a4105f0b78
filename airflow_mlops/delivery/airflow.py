"""A running Airflow, asked by its REST API: whether it has loaded a release, and whether its smoke runs succeed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

from airflow_mlops.delivery.bundle import Manifest
from airflow_mlops.delivery.places import pointer_file
from airflow_mlops.delivery.settings import Smoke, Target
from airflow_mlops.errors import AirflowUnreachableError, DeliveryError, ReleaseFailedError

_TIMEOUT = 30.0
_PAGE = 100
_POLL = 0.5
_ASK_AGAIN = 10.0
"""How many seconds after it was asked to look Airflow is asked again."""
_BUSY = frozenset({429, 500, 502, 503, 504})


class Airflow:
    """Airflow's API.

    Args:
        url: its address.
        environment: the environment that it is, for the variables that say who asks.
    """

    def __init__(self, url: str, environment: str) -> None:
        import requests

        self.url, self.environment = url.rstrip("/"), environment
        self._session = requests.Session()
        if token := self._token():
            self._session.headers["Authorization"] = f"Bearer {token}"

    def _said(self, name: str) -> str | None:
        own = re.sub(r"\W", "_", self.environment).upper()
        return os.environ.get(f"{name}_{own}") or os.environ.get(name)

    def _token(self) -> str | None:
        if token := self._said("AIRFLOW_API_TOKEN"):
            return token
        user, password = self._said("AIRFLOW_API_USER"), self._said("AIRFLOW_API_PASSWORD")
        if not (user and password):
            return None
        answer = self._send("POST", "auth/token", json={"username": user, "password": password})
        return str(answer["access_token"])

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """Make one request of the public API.

        Raises:
            AirflowUnreachableError: when Airflow does not answer.
            DeliveryError: when it refuses, with its reason.
        """
        return self._send(method, f"api/v2/{path}", json=body, params=query)

    def _send(self, method: str, path: str, **content: Any) -> Any:
        import requests

        try:
            answer = self._session.request(method, f"{self.url}/{path}", timeout=_TIMEOUT, **content)
        except requests.RequestException as error:
            raise AirflowUnreachableError(
                f"Airflow at {self.url} does not answer: {type(error).__name__}",
                fix="start it, or correct its address in deploy.yaml",
            ) from error
        if answer.ok:
            return answer.json() if answer.content else {}
        what = f"{method} {path.partition('?')[0]}: HTTP {answer.status_code}: {answer.text[:300]}"
        if answer.status_code in (401, 403):
            fix = "set AIRFLOW_API_TOKEN, or AIRFLOW_API_USER and AIRFLOW_API_PASSWORD"
            raise DeliveryError(f"Airflow at {self.url} refuses {what}", fix=fix)
        if answer.status_code in _BUSY:
            raise AirflowUnreachableError(f"Airflow at {self.url} failed on {what}")
        raise DeliveryError(f"Airflow at {self.url} refuses {what}")

    def dags(self, **query: Any) -> Iterator[dict[str, Any]]:
        """Its DAGs, page by page."""
        offset = 0
        while True:
            found = self.ask("GET", "dags", limit=_PAGE, offset=offset, **query)["dags"]
            yield from found
            offset += _PAGE
            if len(found) < _PAGE:
                return


class Watcher:
    """Waits until Airflow has loaded a release, and until its smoke runs have succeeded.

    Made before anything is switched: what Airflow has by then is not what a release brought.
    """

    def __init__(self, target: Target, environment: str) -> None:
        self.airflow = Airflow(target.airflow, environment)
        self.target = target
        self._known = {each["dag_id"]: each for each in self.airflow.dags(exclude_stale=False)}
        self._errors = {(each["filename"], each["timestamp"]) for each in self._import_errors()}

    def __call__(self, manifest: Manifest, smoke: bool) -> None:
        """Wait for a release.

        Raises:
            ReleaseFailedError: when Airflow does not load it in time or a smoke run fails; with Airflow's own reason.
        """
        until = time.monotonic() + self.target.timeout.total_seconds()
        loaded = self._loaded(manifest, until)
        if not smoke:
            return
        for each in self.target.smoke:
            self._smoke(each, manifest, loaded, until)
        if self.target.unpause:
            for dag in loaded:
                self._unpause(dag)

    def _loaded(self, manifest: Manifest, until: float) -> list[str]:
        """The DAGs of a release, once Airflow has loaded all of them."""
        wanted = set() if manifest.dags else {f"{pipeline}.train" for pipeline in manifest.pipelines}
        asked = -_ASK_AGAIN
        while True:
            with suppress(AirflowUnreachableError):  # it may be restarting; the time is limited anyway
                errors = [each for each in self._import_errors() if _is_pointer(each["filename"], manifest)]
                for error in errors:
                    new = (error["filename"], error["timestamp"]) not in self._errors
                    if manifest.release in error["stack_trace"] or (new and "release " not in error["stack_trace"]):
                        raise ReleaseFailedError(f"Airflow does not load it:\n{error['stack_trace'].strip()}")
                found = {each["dag_id"] for each in self.airflow.dags(tags=f"release:{manifest.release}")}
                if found and wanted <= found and not errors:
                    return sorted(found)
                if time.monotonic() - asked > _ASK_AGAIN:
                    asked = time.monotonic()
                    self._ask_to_look(manifest)
            if time.monotonic() > until:
                raise ReleaseFailedError(
                    f"Airflow has not loaded it within {self.target.timeout.total_seconds():.0f} s",
                    fix="see the log of its DAG processor, and that it reads the place of deploy.yaml",
                )
            time.sleep(_POLL)

    def _import_errors(self) -> list[dict[str, Any]]:
        return list(self.airflow.ask("GET", "importErrors", limit=_PAGE, order_by="-timestamp")["import_errors"])

    def _ask_to_look(self, manifest: Manifest) -> None:
        """Ask the DAG processor to parse the pointer.

        A new pointer it finds when it lists its bundle, which it does when it is asked to parse any file of it.
        """
        dags = list(self.airflow.dags())
        own = [each for each in dags if _is_pointer(each["relative_fileloc"] or "", manifest)]
        bundle = self.target.bundle
        others = {each["bundle_name"]: each for each in dags if bundle in (None, each["bundle_name"])}
        for each in own[:1] or others.values():
            with suppress(DeliveryError):  # asked already
                self.airflow.ask("PUT", f"parseDagFile/{quote(each['file_token'], safe='')}")

    def _unpause(self, dag_id: str) -> None:
        """Unpause a DAG that is new here; one that a person has paused stays so."""
        if dag_id not in self._known:
            self.airflow.ask("PATCH", f"dags/{dag_id}", {"is_paused": False}, update_mask="is_paused")

    def _smoke(self, smoke: Smoke, manifest: Manifest, loaded: list[str], until: float) -> None:
        dag_id = f"{smoke.dag}.train" if smoke.dag in manifest.pipelines else smoke.dag
        if dag_id not in loaded:
            raise DeliveryError(f"the smoke run's DAG {dag_id!r} is not in it", allowed=", ".join(loaded))
        self._unpause(dag_id)
        if self.airflow.ask("GET", f"dags/{dag_id}")["is_paused"]:
            raise DeliveryError(f"the smoke run's DAG {dag_id!r} is paused in Airflow", fix="unpause it")
        note = f"smoke run of {manifest.name} {manifest.version}, release {manifest.release}"
        body = {"logical_date": None, "conf": smoke.params, "note": note}
        run_id = self.airflow.ask("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"]
        run = f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        state = "queued"
        while state not in ("success", "failed"):
            if time.monotonic() > until:
                with suppress(DeliveryError):
                    self.airflow.ask("PATCH", run, {"state": "failed"})
                seconds = self.target.timeout.total_seconds()
                raise ReleaseFailedError(f"its smoke run {dag_id} {run_id} was still {state} after {seconds:.0f} s")
            time.sleep(_POLL)
            with suppress(AirflowUnreachableError):
                state = self.airflow.ask("GET", run)["state"]
        if state == "failed":
            raise ReleaseFailedError(f"its smoke run {dag_id} {run_id} failed: {self._why(run)}")

    def _why(self, run: str) -> str:
        """The tasks of a run that failed, and the last error in the log of the first of them."""
        tasks = self.airflow.ask("GET", f"{run}/taskInstances", limit=_PAGE)["task_instances"]
        failed = sorted(
            (each for each in tasks if each["state"] == "failed"),
            key=lambda each: datetime.fromisoformat(each["end_date"]) if each["end_date"] else datetime.max,
        )
        if not failed:
            return "no task of it did"
        told = ", ".join(each["task_id"] for each in failed)
        with suppress(DeliveryError, LookupError, TypeError, AttributeError):
            path = f"{run}/taskInstances/{failed[0]['task_id']}/logs/{failed[0]['try_number']}"
            for line in reversed(self.airflow.ask("GET", path)["content"]):
                if line.get("level") == "error":
                    detail = line.get("error_detail") or [{}]
                    return f"{told}: {detail[0].get('exc_value') or line['event']}"
        return told


def _is_pointer(path: str, manifest: Manifest) -> bool:
    return os.path.basename(path) == pointer_file(manifest.name)
