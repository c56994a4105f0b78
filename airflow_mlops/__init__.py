"""airflow_mlops: the MLOps layer for Apache Airflow.

This module imports nothing heavy and never Airflow itself: Airflow reads a provider's package while it
starts, and an ``import airflow`` here would run into it half-initialised. The public names are lazy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Pipeline": "airflow_mlops.spec",
    "load_pipeline": "airflow_mlops.spec",
    "load_dags": "airflow_mlops.factory",
    "MlopsError": "airflow_mlops.errors",
}

__all__ = ["MlopsError", "Pipeline", "__version__", "load_dags", "load_pipeline"]

if TYPE_CHECKING:
    from airflow_mlops.errors import MlopsError
    from airflow_mlops.factory import load_dags
    from airflow_mlops.spec import Pipeline, load_pipeline


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
