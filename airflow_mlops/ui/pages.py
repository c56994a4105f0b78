"""The pages: a list of the models, and what happened to each."""

from __future__ import annotations

import logging
import secrets
from datetime import datetime
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel, DagTag
from airflow.utils.session import create_session
from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import select
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_mlops.call.store import VALIDATIONS, Store
from airflow_mlops.call.wire import ArtifactRef
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.mlflow import MlflowHook, store_root
from airflow_mlops.spec.google import STORE_TAG
from airflow_mlops.ui.history import UNREADABLE, History, Snapshot, Summary
from airflow_mlops.ui.plugin import PREFIX

log = logging.getLogger(__name__)

app = FastAPI(title="MLOps", docs_url=None, redoc_url=None, openapi_url=None)

_PROBLEMS = {
    401: ("Not logged in", "Log in to Airflow, then open this page again."),
    403: ("Not allowed", "You may not see this page."),
    404: ("Not found", "There is no such page, or no such model that you may see."),
}


_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def _written(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


_templates = Environment(
    loader=PackageLoader("airflow_mlops.ui"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["written"] = _written


def _page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page that can run no script and load no style but its own."""
    nonce = secrets.token_urlsafe(16)
    text = _templates.get_template(template).render(base=request.scope.get("root_path", ""), nonce=nonce, **values)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return HTMLResponse(text, status, headers={**_HEADERS, "Content-Security-Policy": policy})


@app.exception_handler(AnyHTTPException)
def _refused(request: Request, error: AnyHTTPException) -> HTMLResponse:
    title, text = _PROBLEMS.get(error.status_code, ("This did not work", str(error.detail)))
    return _page(request, "message.html", error.status_code, title=title, text=text)


@app.exception_handler(RequestValidationError)
def _misspelt(request: Request, error: RequestValidationError) -> HTMLResponse:
    return _refused(request, AnyHTTPException(404))


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, MlopsError) else f"A file has another form: {type(error).__name__}: {error}"


def _unreadable(request: Request, error: Exception) -> HTMLResponse:
    log.warning("the store cannot be read", exc_info=error)
    return _page(request, "message.html", 503, title="The store cannot be read", text=_told(error))


for kind in UNREADABLE:
    app.add_exception_handler(kind, _unreadable)


@app.get("/")
def show_models(request: Request, user: GetUserDep) -> HTMLResponse:
    """Every model that the user may see."""
    mlflow = _mlflow()
    summaries: list[Summary] = []
    models, broken = _models(user)
    for name, store in sorted(models.items()):
        history = _history(store, name, request, mlflow)
        if not _may_read(history.dags(), user):
            continue
        try:
            summaries.append(history.summary())
        except UNREADABLE as error:
            log.warning("the history of %s cannot be read", name, exc_info=error)
            broken.append((name, _told(error)))
    return _page(request, "models.html", summaries=summaries, broken=broken)


@app.get("/models/{model}")
def show_model(request: Request, user: GetUserDep, model: str, page: int = 1) -> HTMLResponse:
    """What happened to one model.

    Raises:
        HTTPException: when there is none of that name, or the user may not see it.
    """
    # A name is only ever one that a store has listed, so it leads to no other place.
    models, _ = _models(user)
    if model not in models:
        raise HTTPException(404)
    history = _history(models[model], model, request, _mlflow())
    if not _may_read(history.dags(), user):
        raise HTTPException(404)
    return _page(request, "model.html", summary=history.summary(), timeline=history.timeline(page))


@app.get("/dags/{dag_id}")
def show_dag(request: Request, user: GetUserDep, dag_id: str, page: int = 1) -> HTMLResponse:
    """The model of a DAG.

    Raises:
        HTTPException: when the user may not read the DAG.
    """
    if not _may_read({dag_id}, user):
        raise HTTPException(404)
    store, mlflow = Snapshot(_store_of(dag_id)), _mlflow()
    for name in store.models():
        history = _history(store, name, request, mlflow)
        if dag_id in history.dags():
            return _page(request, "model.html", summary=history.summary(), timeline=history.timeline(page))
    return _page(
        request,
        "message.html",
        title="No model yet",
        text=f"The DAG {dag_id} has trained and judged no model so far. If it is one of a pipeline, "
        "its history shows here after the first promotion or rejection.",
    )


@app.get("/dags/{dag_id}/validations/{identity}")
def show_validation(
    request: Request, user: GetUserDep, dag_id: str, identity: Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
) -> HTMLResponse:
    """What a validation in a run of a DAG has found.

    Raises:
        HTTPException: when the user may not read the DAG.
    """
    if not _may_read({dag_id}, user):
        raise HTTPException(404)
    store = Store(_store_of(dag_id))
    found = store.read_json(VALIDATIONS, f"{identity}.json")
    if found is None or found["run"].split("/")[0] != dag_id:
        return _page(
            request,
            "message.html",
            404,
            title="No validation report",
            text="The task has not come so far, or its report was removed from the store. Its log says more.",
        )
    text = store.fetch(ArtifactRef.model_validate(found["page"])).read_text(encoding="utf-8")
    # The page brings its own style, and nothing else may run or load.
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": policy})


def _declared() -> dict[str, str]:
    """The stores that are declared, by the ids of their DAGs."""
    with create_session() as session:
        found = session.execute(select(DagTag.dag_id, DagTag.name).where(DagTag.name.startswith(f"{STORE_TAG}gs://")))
        return {dag_id: name.removeprefix(STORE_TAG) for dag_id, name in found}


def _store_of(dag_id: str) -> str:
    """The root of a DAG's store: the one declared, or the configured one."""
    return _declared().get(dag_id) or store_root()


def _models(user: Any) -> tuple[dict[str, Snapshot], list[tuple[str, str]]]:
    """Every model with its store, and the declared stores of the user's DAGs that cannot be read, with the reason."""
    declared = _declared()
    found: dict[str, Snapshot] = {}
    broken = []
    for root in sorted(set(declared.values())):
        try:
            store = Snapshot(root)
            found |= dict.fromkeys(store.models(), store)
        except UNREADABLE as error:
            log.warning("the store %s cannot be read", root, exc_info=error)
            if _may_read({dag_id for dag_id, its in declared.items() if its == root}, user):
                broken.append((root, _told(error)))
    store = Snapshot(store_root())
    return {**dict.fromkeys(store.models(), store), **found}, broken


def _history(store: Snapshot, model: str, request: Request, mlflow: str | None) -> History:
    airflow = str(request.scope.get("root_path", "")).removesuffix(PREFIX)
    return History(store, model, airflow=airflow, mlflow=mlflow)


def _may_read(dag_ids: set[str] | frozenset[str], user: Any) -> bool:
    """Whether the user may read one of these DAGs."""
    manager = get_auth_manager()
    teams = DagModel.get_dag_id_to_team_name_mapping(sorted(dag_ids))
    details = (DagDetails(id=dag_id, team_name=teams.get(dag_id)) for dag_id in sorted(dag_ids))
    return any(manager.is_authorized_dag(method="GET", details=each, user=user) for each in details)


def _mlflow() -> str | None:
    """Where a browser reaches MLflow, by the default connection; None where that cannot be told."""
    try:
        registry = MlflowHook().registry("")
    except Exception as error:  # whatever a secrets backend raises: links are not worth a page
        log.debug("there is no address of MLflow: %s", error)
        return None
    return (registry.ui_url or registry.uri).rstrip("/")
