"""The plugin that Airflow loads: pages of its own UI, and who goes first in a pool.

Every component of Airflow imports this file before it does anything, and only the API server shows pages: those are
imported by the first request for one. What every task and every parse of a DAG file needs is imported here all the
same. By Airflow's defaults the scheduler forks its workers and the dag-processor its parsers, so that one import,
once, saves a fifth of a CPU second in each of them.
"""

from __future__ import annotations

from typing import Any

import requests  # noqa: F401
from airflow.plugins_manager import AirflowPlugin

import airflow_mlops.call.dispatch
import airflow_mlops.registry.models
import airflow_mlops.spec.wiring  # noqa: F401
from airflow_mlops.ui.turn import InTurn

PREFIX = "/mlops"


async def pages(scope: Any, receive: Any, send: Any) -> None:
    """The pages, as an ASGI application."""
    from airflow_mlops.ui.pages import app

    await app(scope, receive, send)


class MlopsPlugin(AirflowPlugin):
    """What this package adds to Airflow: the page MLOps, a tab of that name on every DAG, and the order in a pool."""

    name = "airflow_mlops"
    priority_weight_strategies = [InTurn]  # noqa: RUF012
    fastapi_apps = [{"app": pages, "url_prefix": PREFIX, "name": "MLOps"}]  # noqa: RUF012
    # Without a slash in front, an address follows `[api] base_url`.
    external_views = [  # noqa: RUF012
        {"name": "MLOps", "destination": "nav", "href": "mlops/", "url_route": "mlops", "nav_top_level": True},
        {"name": "MLOps", "destination": "dag", "href": "mlops/dags/{DAG_ID}", "url_route": "mlops-dag"},
    ]
