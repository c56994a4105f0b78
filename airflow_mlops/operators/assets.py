"""The assets that tie a pipeline's DAGs to one another and to a team's own.

Their scheme starts with ``x-``, Airflow's prefix for schemes of one's own: for any other it looks through the URI
handlers of every provider, which loads Google's clients and costs three CPU seconds wherever a DAG file is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

from airflow.sdk import Asset, AssetAlias, AssetWatcher


def retrain_asset(pipeline: str) -> Asset:
    """Updated when something asks for a retraining; a train DAG is scheduled on it."""
    return Asset(name=f"{pipeline}.retrain", uri=f"x-mlops://{pipeline}/retrain", group="mlops")


def suggestion_asset(pipeline: str) -> Asset:
    """Updated when a retraining is suggested; the DAG that asks a person is scheduled on it."""
    return Asset(name=f"{pipeline}.suggestion", uri=f"x-mlops://{pipeline}/suggestion", group="mlops")


def retrain_alias(pipeline: str) -> AssetAlias:
    """What a sensor declares as its outlet: unlike an asset, it is updated only when the sensor says so."""
    return AssetAlias(name=f"{pipeline}.retrain.requests", group="mlops")


def model_asset(pipeline: str) -> Asset:
    """Updated when a version is promoted."""
    return Asset(name=f"{pipeline}.model", uri=f"x-mlops://{pipeline}/model", group="mlops")


def messages_asset(pipeline: str, watchers: Sequence[AssetWatcher] = ()) -> Asset:
    """Updated when a message asks for a retraining.

    Nothing else is an inlet, an outlet or a schedule by it: a DAG file that named it without its watchers would take
    them away.
    """
    return Asset(
        name=f"{pipeline}.messages", uri=f"x-mlops://{pipeline}/messages", group="mlops", watchers=list(watchers)
    )


def predictions_asset(pipeline: str) -> Asset:
    """Updated when a partition of predictions is written."""
    return Asset(name=f"{pipeline}.predictions", uri=f"x-mlops://{pipeline}/predictions", group="mlops")
