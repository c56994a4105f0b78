"""How a task asks for a retraining: a request in the store, what the policy makes of it, and an event that rings."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Outcome
from airflow_mlops.errors import DeclarationError
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.operators.assets import retrain_asset, suggestion_asset
from airflow_mlops.operators.base import is_active_run
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.messages import Inbox, Listener, meant
from airflow_mlops.registry.messages import request_of as request_of_message
from airflow_mlops.registry.policy import Recorded
from airflow_mlops.registry.requests import Request, Requests
from airflow_mlops.spec.pipeline import Retrain
from airflow_mlops.spec.source import is_windowed, source_from
from airflow_mlops.spec.window import Grain

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


def policy_of(value: Mapping[str, Any] | None, where: str) -> Retrain:
    """The retrain policy that an operator was given; the declaration's defaults where it was given none.

    Raises:
        DeclarationError: when it is wrong; every mistake is named.
    """
    try:
        return Retrain.model_validate(value or {})
    except ValidationError as error:
        path = [f"{where}: argument 'retrain': {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DeclarationError(path) from error


def reconsider(
    context: Context, store: Store, pipeline: str, policy: Retrain, alias: Any, wish: Request | None = None
) -> None:
    """Record a wish with what the policy makes of it, look again at what waits, and ring for what may start.

    Args:
        context: the task's.
        store: where the requests are.
        pipeline: the pipeline's name.
        policy: the retrain policy.
        alias: the task's outlet, through which the assets are updated; None where nothing is rung.
        wish: the request, if there is one.
    """
    requests = Requests(store, pipeline)
    standing = requests.standing(*([wish] if wish else []))
    if wish:
        tell(requests.ask(wish, policy, standing))
    waiting = requests.review(policy, standing, lambda run: is_active_run(context, run))
    for recorded in waiting if alias is not None else ():
        tell(recorded)
        ring(context, pipeline, alias, recorded)


def ring(context: Context, pipeline: str, alias: Any, recorded: Recorded) -> None:
    """Update the asset that a request waits for, through its alias: a training's, or that of the question."""
    request, asset = recorded.request, retrain_asset if recorded.state == "started" else suggestion_asset
    window = request.window.key if request.window else None
    extra: dict[str, JsonValue] = {"request": request.id, "reason": request.reason, "window": window}
    context["outlet_events"][alias].add(asset(pipeline), extra=extra)


def tell(recorded: Recorded) -> None:
    """Say in the log how a request stands."""
    log.info("request %s is %s (%s)", recorded.request.id, recorded.last.told, recorded.request.reason)


def promotions(context: Context, pipeline: str, upstream_models: Collection[str]) -> list[Request]:
    """The promotions of other pipelines that started this run, as requests."""
    names = {f"{each}.model": each for each in upstream_models}
    found = []
    for asset, events in (context.get("triggering_asset_events") or {}).items():
        other = names.get(getattr(asset, "name", ""))
        for event in events if other else ():
            version = (event.extra or {}).get("version", "?")
            reason = f"{other} has promoted version {version}"
            found.append(Request(model=pipeline, champion=f"{other}@{version}", reason=reason, trigger="model"))
    return found


def listener_of(model: str, source: str | Mapping[str, Any] | None, time: str | None, grain: Grain) -> Listener:
    """What has to be known of a pipeline to say which messages are for it."""
    windowed = source is not None and is_windowed(source_from(source), time)
    return Listener(model=model, grain=grain if windowed else None, source=source if isinstance(source, str) else None)


@contextmanager
def received(requests: Requests, subscriptions: Sequence[str], listener: Listener) -> Iterator[list[Request]]:
    """What messages ask of a pipeline, as requests; when they were asked, they are read no more.

    Reading them again asks for the same requests. What cannot be done is told in the log.

    Args:
        requests: the pipeline's.
        subscriptions: ``projects/P/subscriptions/S``, each.
        listener: the pipeline.
    """
    champion = Ledger(requests.store, requests.model).champion() if subscriptions else None
    wishes, read = [], []
    for name in subscriptions:
        inbox = Inbox(Store(store_root()), name)
        position = inbox.position(listener.model)
        newest = inbox.load(position)
        for _, message in inbox.known(position):
            asked = meant(message, listener)
            if asked and asked.problem:
                log.warning("message %s of %s is set aside: %s", message.id, name, asked.problem)
            elif asked:
                wishes.append(request_of_message(message, name, asked, listener.model, champion))
        read.append((inbox, position, newest))
    yield wishes
    for inbox, position, newest in read:
        if newest > position:
            inbox.advance(listener, newest)
