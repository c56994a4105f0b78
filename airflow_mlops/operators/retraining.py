"""How a task asks for a retraining: a request in the store, and an asset event that rings for it."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Outcome
from airflow_mlops.operators.assets import retrain_asset
from airflow_mlops.operators.base import is_active_run
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.requests import Request, Requests, cooling_until

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

log = logging.getLogger(__name__)


def request_of(outcome: Outcome, model: str, trigger: str) -> Request:
    """The wish to retrain that a verdict about a window makes.

    Args:
        outcome: what was found; its info names the champion that it is about.
        model: the registered model.
        trigger: what kind of reason: ``drift`` or ``skew``.
    """
    window, page = outcome.window, outcome.outputs.get("page")
    return Request(
        model=model,
        champion=outcome.info["champion"],
        reason=f"{trigger} in {window.key if window else 'the data'}: {'; '.join(outcome.verdict.reasons)}",
        trigger=trigger,
        window=window,
        evidence=page.uri if page else outcome.info.get("report_url") or outcome.info.get("run_id"),
    )


def ask(store: Store, request: Request, cooldown: timedelta = timedelta(0)) -> None:
    """Record a request, unless the last promotion or rejection is younger than the cooldown."""
    until = cooling_until(Ledger(store, request.model).entries(), cooldown)
    if until is not None:
        log.info("%s asks for nothing before %s: the cooldown is on", request.trigger, until.isoformat())
    else:
        Requests(store, request.model).open(request)


def ring(context: Context, store: Store, pipeline: str, alias: Any) -> None:
    """Update the retrain asset through its alias for every request that nobody has answered."""
    for request in Requests(store, pipeline).unanswered(lambda run: is_active_run(context, run)):
        log.info("asking for a retraining (%s): %s", request.id, request.reason)
        window = request.window.key if request.window else None
        extra: dict[str, JsonValue] = {"request": request.id, "reason": request.reason, "window": window}
        context["outlet_events"][alias].add(retrain_asset(pipeline), extra=extra)
