"""Preparation as a Beam pipeline, through the Beam provider's own operator; ``pip install 'airflow-mlops[dataflow]'``.

A class of its own and no backend: a Beam runner carries a graph of its own making, not a Call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException

from airflow_mlops.backends.local import environment
from airflow_mlops.backends.runtime import interpreter, package_folder
from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import JobFailedError
from airflow_mlops.operators.stages import PrepareDataOperator
from airflow_mlops.spec.stages import Prepare

if TYPE_CHECKING:
    from airflow.sdk import Context

_PROGRAM = "airflow_mlops.stages.prepare_beam"


class PrepareDataOnBeamOperator(PrepareDataOperator):
    """Check the feature function's contract and set test rows apart, as a Beam pipeline: on Dataflow, or here.

    Its outputs are those of `PrepareDataOperator`, byte for byte; no machine ever holds more than one row group. It
    takes the arguments of `PrepareDataOperator`, and ``runtime`` says which interpreter starts the pipeline: it needs
    Beam (for Dataflow ``apache-beam[gcp]``) beside what the stages need.

    :param runner: ``DirectRunner`` runs here, ``DataflowRunner`` on Dataflow.
    :param pipeline_options: further options of Beam, such as ``{"sdk_container_image": ..., "temp_location": ...}``.
        Dataflow's workers need this package: name an image that holds it.
    :param dataflow_config: the provider's ``DataflowConfiguration``, as a dict.
    :param gcp_conn_id: the Airflow connection of type ``google_cloud_platform``.
    :param deferrable: whether the task is deferred while Dataflow works.
    """

    def __init__(
        self,
        *,
        runner: str = "DirectRunner",
        pipeline_options: Mapping[str, Any] | None = None,
        dataflow_config: Mapping[str, Any] | None = None,
        gcp_conn_id: str = "google_cloud_default",
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.runner, self.gcp_conn_id, self.deferrable = runner, gcp_conn_id, deferrable
        self.pipeline_options, self.dataflow_config = dict(pipeline_options or {}), dict(dataflow_config or {})

    def carry(self, context: Context, call: Call) -> Outcome:
        """Run the pipeline by the provider's operator, and put together what it has left."""
        store = Store(call.store)
        done = store.read_outcome(call)
        if done is not None:
            self.log.info("%s: an earlier try has done it; its outcome is used", call.where)
            return done
        # On the worker only: the provider's module loads Google's clients.
        from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator

        store.create_json(call.model_dump(mode="json"), *_job(call), "call.json")
        _, options = self.carrier
        pipeline = BeamRunPythonPipelineOperator(
            task_id=self.task_id,
            runner=self.runner,
            py_file=_PROGRAM,
            py_options=["-m"],
            py_interpreter=interpreter(options.get("python"), options.get("requirements")),
            pipeline_options={
                **self.pipeline_options,
                "call": store.uri(*_job(call), "call.json"),
                "pieces": _pieces(store, call),
            },
            dataflow_config={
                # One name for every try: Dataflow takes no second job of a name while the first one runs.
                **{"job_name": f"mlops-{call.identity}", "append_job_name": False, "location": None},
                **self.dataflow_config,
            }
            if self.runner == "DataflowRunner"
            else None,
            gcp_conn_id=self.gcp_conn_id,
            deferrable=self.deferrable and self.runner == "DataflowRunner",
        )
        try:
            with environment({"PYTHONPATH": str(package_folder())}):
                pipeline.execute(context)
        except AirflowException as error:
            raise JobFailedError(
                f"the Beam pipeline failed: {error}; its last words are in this task's log", where=call.where
            ) from error
        return self._assembled(store, call)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on when Dataflow has ended."""
        call = self.make_call(context)
        if event.get("status") == "error":
            raise JobFailedError(f"the Beam pipeline failed: {event.get('message')}", where=call.where)
        return self.finish(context, self._assembled(Store(call.store), call))

    def _assembled(self, store: Store, call: Call) -> Outcome:
        params = Prepare.model_validate(call.params)
        outcome: Outcome = stage_module("prepare_beam").assemble(call, params, store, _pieces(store, call))
        return outcome


def _job(call: Call) -> tuple[str, ...]:
    return "jobs", call.identity


def _pieces(store: Store, call: Call) -> str:
    return store.uri(*_job(call), "pieces")
