"""Where a champion is served: targets that are values like backends, and what they are asked."""

from airflow_mlops.deployments.base import Deployment, deployment_of
from airflow_mlops.deployments.endpoint import Answer, Endpoint

__all__ = ["Answer", "Deployment", "Endpoint", "deployment_of"]
