"""Where a champion is served: targets that are values like backends, and what they are asked."""

from airflow_mlops.deployments.base import Deployment, deployment_of
from airflow_mlops.deployments.endpoint import Answer, Endpoint
from airflow_mlops.deployments.following import await_followed, behind

__all__ = ["Answer", "Deployment", "Endpoint", "await_followed", "behind", "deployment_of"]
