"""How what a task has written on record is told to others: after the task has ended, and at no risk to it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.store import Store
from airflow_mlops.errors import MlopsError
from airflow_mlops.hooks.mlflow import store_root
from airflow_mlops.hooks.pubsub import publish
from airflow_mlops.registry.outbox import Outbox

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)


class Publisher:
    """A task's callback that publishes what stands on record of a pipeline and was not published yet.

    Airflow calls it after the task's end is known to it, so it neither fails the task nor holds up those that follow.
    A topic that cannot be reached is a warning; what was to be told is told after the next task.

    :param topic: ``projects/P/topics/T``.
    :param connection: the Airflow connection of type ``google_cloud_platform``.
    :param pipeline: the pipeline's name.
    :param store: the artifact store's root. Default: ``[airflow_mlops] store``.
    """

    def __init__(self, topic: str, connection: str, pipeline: str, store: str | None = None) -> None:
        self.topic, self.connection, self.pipeline, self.store = topic, connection, pipeline, store

    def __call__(self, context: Context) -> None:
        """Publish."""
        try:
            sent = Outbox(Store(store_root(self.store)), self.pipeline).send(
                lambda messages: publish(
                    self.topic,
                    self.connection,
                    [(json.dumps(each.body, ensure_ascii=False).encode(), each.attributes) for each in messages],
                )
            )
        except MlopsError as error:
            log.warning(
                "what has happened to %s is not published now, and will be after the next task; until then "
                "`airflow-mlops history %s` and `airflow-mlops requests %s` tell: %s",
                self.pipeline,
                self.pipeline,
                self.pipeline,
                error,
            )
            return
        if sent:
            log.info("published %d messages about %s to %s", sent, self.pipeline, self.topic)


def publishing(topic: str | None, connection: str, pipeline: str, store: str | None = None) -> dict[str, Any]:
    """The arguments of a task that publishes; none where no topic is named."""
    if topic is None:
        return {}
    publisher = Publisher(topic, connection, pipeline, store)
    return {f"on_{end}_callback": publisher for end in ("success", "failure", "skipped")}
