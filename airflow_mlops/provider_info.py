"""What Airflow asks of a provider: one dict.

The plugin is *not* named here: Airflow 3.3 loads plugins from the ``airflow.plugins`` entry point only.
"""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, its connection type and its configuration."""
    return {
        "package-name": "airflow-mlops",
        "name": "MLOps",
        "description": (
            "Declared ML pipelines, drift-triggered retraining and gated promotion, with MLflow as registry."
        ),
        "integrations": [
            {"integration-name": "MLOps", "external-doc-url": "https://mlflow.org/docs/latest/", "tags": ["service"]}
        ],
        "operators": [{"integration-name": "MLOps", "python-modules": ["airflow_mlops.operators"]}],
        "sensors": [{"integration-name": "MLOps", "python-modules": ["airflow_mlops.sensors"]}],
        "triggers": [{"integration-name": "MLOps", "python-modules": ["airflow_mlops.triggers"]}],
        "hooks": [{"integration-name": "MLOps", "python-modules": ["airflow_mlops.hooks.mlflow"]}],
        "extra-links": [
            "airflow_mlops.operators.links.MlflowRunLink",
            "airflow_mlops.operators.links.MlflowReportLink",
            "airflow_mlops.operators.links.ModelCardLink",
            "airflow_mlops.operators.links.JobLink",
            "airflow_mlops.operators.links.JobLogLink",
        ],
        "connection-types": [
            {
                "hook-class-name": "airflow_mlops.hooks.mlflow.MlflowHook",
                "hook-name": "MLflow",
                "connection-type": "mlflow",
                "ui-field-behaviour": {
                    "hidden-fields": ["port", "schema", "extra"],
                    "relabeling": {
                        "host": "Tracking server",
                        "login": "User name",
                        "password": "Password or token",
                    },
                    "placeholders": {
                        "host": "http://127.0.0.1:5000",
                        "login": "empty when the password is a bearer token",
                    },
                },
                "conn-fields": {
                    "ui_url": {
                        "label": "Address for links",
                        "description": "Where a browser reaches MLflow, if that is not the tracking server's address.",
                        "schema": {"type": ["string", "null"], "default": None},
                    },
                    "timeout": {
                        "label": "Request timeout (seconds)",
                        "description": "How long one request may take before the task is retried.",
                        "schema": {"type": ["integer", "null"], "default": 30, "minimum": 1},
                    },
                },
            }
        ],
        "config": {
            "airflow_mlops": {
                "description": "Settings of the airflow-mlops provider.",
                "options": {
                    "store": {
                        "description": (
                            "Where artifacts, outcomes, the ledger and retrain requests are kept: any fsspec URI. "
                            "A relative path is relative to AIRFLOW_HOME. Every worker must reach it."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "gs://my-bucket/mlops",
                        "default": "mlops",
                    },
                    "environment": {
                        "description": (
                            "Which of the environments that pipelines declare this Airflow is, such as staging. "
                            "Empty: declarations are used as they stand."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "prod",
                        "default": "",
                    },
                },
            }
        },
    }
