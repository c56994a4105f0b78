"""The plugin that Airflow loads: pages of its own UI, and who goes first in a pool.

Every component of Airflow imports this file, and only the API server shows pages. So it imports nothing but Airflow's
own classes; the pages are imported by the first request for one.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

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
