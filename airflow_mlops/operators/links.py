"""Links from a task to MLflow, and to the pages of the plugin."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

RUN_URL = "mlflow_url"
REPORT_URL = "report_url"
CARD_URL = "card_url"
VALIDATION_URL = "validation_url"
JOB_URL = "job_url"
JOB_LOG_URL = "job_log_url"


class MlflowRunLink(BaseOperatorLink):
    """To the MLflow run of the task."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task has stored."""
        return XCom.get_value(ti_key=ti_key, key=RUN_URL) or ""


class MlflowReportLink(BaseOperatorLink):
    """To the drift report of the task."""

    name = "Drift report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task has stored."""
        return XCom.get_value(ti_key=ti_key, key=REPORT_URL) or ""


class ModelCardLink(BaseOperatorLink):
    """To the model card of the task's model."""

    name = "Model card"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task has stored."""
        return XCom.get_value(ti_key=ti_key, key=CARD_URL) or ""


class ValidationReportLink(BaseOperatorLink):
    """To the page that tells what validation found, also where it stopped the run."""

    name = "Validation report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task has stored."""
        return XCom.get_value(ti_key=ti_key, key=VALIDATION_URL) or ""


class JobLink(BaseOperatorLink):
    """To the job that carries the task elsewhere, from when it was submitted on."""

    name = "Job"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task has stored."""
        return XCom.get_value(ti_key=ti_key, key=JOB_URL) or ""


class JobLogLink(BaseOperatorLink):
    """To the log of that job."""

    name = "Job log"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the task has stored."""
        return XCom.get_value(ti_key=ti_key, key=JOB_LOG_URL) or ""
