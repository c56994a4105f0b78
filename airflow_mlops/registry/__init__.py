"""Which model: MLflow's versions and aliases, the ledger that decides, and the requests to retrain."""

from airflow_mlops.registry.ledger import Entry, Ledger, Traffic
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.requests import Request, Requests

__all__ = ["Entry", "Ledger", "ModelRegistry", "Request", "Requests", "Traffic"]
