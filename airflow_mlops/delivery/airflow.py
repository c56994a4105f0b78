"""A running Airflow, asked by its REST API: whether it has loaded a release, and whether its smoke runs succeed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import quote

from airflow_mlops.delivery.bundle import NOT_WHOLE, Manifest
from airflow_mlops.delivery.login import HOW, User, login_of
from airflow_mlops.delivery.places import pointer_file
from airflow_mlops.delivery.settings import Smoke, Target
from airflow_mlops.errors import AirflowUnreachableError, DeliveryError, ReleaseFailedError

_TIMEOUT = 30.0
_PAGE = 100
_POLL = 0.5
_ASK_AGAIN = 10.0
"""How many seconds after it was asked to look Airflow is asked again."""
_BUSY = frozenset({429, 500, 502, 503, 504})
_UNAUTHORIZED, _FORBIDDEN = 401, 403


class Airflow:
    """Airflow's API.

    Args:
        url: its address.
        environment: the environment that it is, for the variables that say who asks.
    """

    def __init__(self, url: str, environment: str) -> None:
        import requests

        self.url, self._login = url.rstrip("/"), login_of(environment)
        self._token = self._login.token.value if self._login.token else None
        self._session = requests.Session()
        # Said for each request, so that no entry of ~/.netrc takes its place.
        self._session.auth = self._sign
        if self._login.user:
            self._log_in(self._login.user)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """Make one request of the public API.

        Raises:
            AirflowUnreachableError: when Airflow does not answer.
            DeliveryError: when it refuses, with its reason.
        """
        request = (method, f"api/v2/{path}")
        answer = self._send(*request, json=body, params=query)
        if answer.status_code == _UNAUTHORIZED and self._login.user:
            self._log_in(self._login.user)  # that token has expired, and nothing was done
            answer = self._send(*request, json=body, params=query)
        return self._content(answer, *request)

    def _sign(self, request: Any) -> Any:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _log_in(self, user: User) -> None:
        """Have a token made for a user."""
        self._token = None
        request = ("POST", "auth/token")
        answer = self._send(*request, json={"username": user.name.value, "password": user.password.value})
        who, known_by = user.name.value, user.password.variable
        if answer.status_code == _UNAUTHORIZED:
            what = f"Airflow at {self.url} does not know {who!r} by the password of {known_by}"
            raise DeliveryError(what, fix=f"correct {user.name.variable} or {known_by}")
        self._token = self._content(answer, *request).get("access_token")
        if not self._token:
            raise DeliveryError(f"Airflow at {self.url} has logged {who!r} in and given no token", fix=HOW)

    def _send(self, method: str, path: str, **content: Any) -> Any:
        import requests

        try:
            return self._session.request(method, f"{self.url}/{path}", timeout=_TIMEOUT, **content)
        except requests.RequestException as error:
            raise AirflowUnreachableError(
                f"Airflow at {self.url} does not answer: {type(error).__name__}",
                fix="start it, or correct its address in deploy.yaml",
            ) from error

    def _content(self, answer: Any, method: str, path: str) -> Any:
        """What an answer says.

        Raises:
            AirflowUnreachableError: when Airflow could not answer now.
            DeliveryError: when it refuses, or something else than Airflow has answered.
        """
        request = f"{method} {path.partition('?')[0]}"
        if answer.ok:
            try:
                return answer.json() if answer.content else {}
            except ValueError:
                what = f"what answers {request} at {self.url} is no API of Airflow's, for it says no JSON"
                raise DeliveryError(
                    what, fix="correct the address in deploy.yaml; a proxy must let the API by"
                ) from None
        said = answer.text
        for secret in filter(None, (self._token, self._login.user and self._login.user.password.value)):
            said = said.replace(secret, "***")  # a server may say what it was sent
        what = f"{request}: HTTP {answer.status_code}: {said[:300]}"
        if answer.status_code in _BUSY:
            raise AirflowUnreachableError(f"Airflow at {self.url} failed on {what}")
        raise DeliveryError(f"Airflow at {self.url} refuses {what}", fix=self._remedy(answer.status_code))

    def _remedy(self, status: int) -> str | None:
        token, user = self._login.token, self._login.user
        if status == _FORBIDDEN:
            who = repr(user.name.value) if user else f"the user of {token.variable}" if token else "who asks"
            return f"{who} needs the permission; who deploys reads DAGs and import errors, edits and triggers DAGs"
        if status == _UNAUTHORIZED:
            return f"{token.variable} is wrong or has expired: set a new one" if token else HOW
        return None

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
        # As `load_release` says it. The digest alone is in the line of the pointer that a traceback quotes, which is
        # read when the traceback is written: it may be the next release's by then.
        ours = f"release {manifest.release}"
        asked, refused = -_ASK_AGAIN, ""
        while True:
            late = ""
            with suppress(AirflowUnreachableError):  # it may be restarting; the time is limited anyway
                errors = [each for each in self._import_errors() if _is_pointer(each["filename"], manifest)]
                for error in errors:
                    told = error["stack_trace"].strip()
                    new = (error["filename"], error["timestamp"]) not in self._errors
                    if ours in told and NOT_WHOLE in told:
                        late = f":\n{told}"  # a bucket comes to Airflow file by file
                    elif ours in told or (new and "release " not in told):
                        raise ReleaseFailedError(f"Airflow does not load it:\n{told}")
                found = {each["dag_id"] for each in self.airflow.dags(tags=f"release:{manifest.release}")}
                if found and wanted <= found and not errors:
                    return sorted(found)
                if time.monotonic() - asked > _ASK_AGAIN:
                    asked = time.monotonic()
                    refused = self._ask_to_look(manifest)
            if time.monotonic() > until:
                raise ReleaseFailedError(
                    f"Airflow has not loaded it within {self.target.timeout.total_seconds():.0f} s{late or refused}",
                    fix="see the log of its DAG processor, and that it reads the place of deploy.yaml",
                )
            time.sleep(_POLL)

    def _import_errors(self) -> list[dict[str, Any]]:
        return list(self.airflow.ask("GET", "importErrors", limit=_PAGE, order_by="-timestamp")["import_errors"])

    def _ask_to_look(self, manifest: Manifest) -> str:
        """Ask the DAG processor to parse the pointer; what was refused, if anything.

        A new pointer it finds when it lists its bundle, which it does when it is asked to parse any file of it.
        """
        refused = ""
        dags = list(self.airflow.dags())
        own = [each for each in dags if _is_pointer(each["relative_fileloc"] or "", manifest)]
        bundle = self.target.bundle
        others = {each["bundle_name"]: each for each in dags if bundle in (None, each["bundle_name"])}
        for each in own[:1] or others.values():
            try:
                self.airflow.ask("PUT", f"parseDagFile/{quote(each['file_token'], safe='')}")
            except AirflowUnreachableError:
                raise
            except DeliveryError as error:  # asked already; or it has to find the pointer in its own time
                refused = f"; asked to look, it said: {error.what}"
        return refused

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
