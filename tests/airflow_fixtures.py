"""A real Airflow in the tests' own process: a metadata database, DAG files read as Airflow reads them, and runs."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pluggy
import pytest

from airflow_mlops.call import Store
from airflow_mlops.registry.ledger import Ledger
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec import load_declarations
from tests import toy
from tests.toy import Trained, World

NAMES = """
from airflow_mlops import load_dags
load_dags("*.yaml", globals())
"""


class Run(NamedTuple):
    """How a DAG run stands, as the metadata database has it."""

    state: str
    run_id: str
    states: dict[str, str | None]
    tries: dict[str, int]
    errors: dict[str, list[BaseException]]
    """What each task has raised, try by try."""
    xcom: dict[tuple[str, str], Any]
    """The values by task and key."""
    events: list[dict[str, Any]]
    """The asset events that its tasks made: ``asset`` and ``extra``."""

    def error(self, task: str) -> BaseException:
        """The one error of a task that was tried once."""
        (error,) = self.errors[task]
        return error


class Airflow:
    """Airflow with one folder of DAG files; what a run does is asked of the database afterwards."""

    def __init__(self, world: World, errors: dict[tuple[str, str], list[BaseException]]) -> None:
        self.world, self.folder, self.name = world, world.folder, world.registry.model
        self.store = Store(world.store)
        self._errors = errors

    def declare(self, **sections: Any) -> None:
        """Write the declaration of the toy pipeline and a DAG file that loads it."""
        toy.declare(self.folder, self.name, **sections)
        self.write(NAMES)

    def promote(self, trained: Trained) -> None:
        """Make a model the champion without a run of Airflow's."""
        outcomes = toy.adopt(self.world, trained, load_declarations(self.folder / f"{self.name}.yaml")[0])
        assert outcomes["promote"].info["version"] == "1"

    def write(self, text: str, name: str = "dag_file.py") -> None:
        """Write a DAG file."""
        (self.folder / name).write_text(text)

    def bag(self) -> Any:
        """The DAG files, parsed in safe mode."""
        from airflow.dag_processing.dagbag import DagBag

        return DagBag(str(self.folder), safe_mode=True)

    def dag(self, dag_id: str) -> Any:
        """A DAG of these files; ``train``, ``monitor`` and ``predict`` are those of the toy pipeline."""
        bag = self.bag()
        assert not bag.import_errors
        return bag.dags.get(dag_id) or bag.dags[f"{self.name}.{dag_id}"]

    def test(self, dag_id: str, window: str | None = None) -> Run:
        """Run a DAG by hand, by its own ``test()``."""
        dag = self.dag(dag_id)
        return self.look(dag.test(run_conf={"window": window} if window else None))

    def run(
        self,
        dag_id: str,
        run_type: str = "manual",
        *,
        events: list[int] | None = None,
        triggers: bool = True,
        conf: dict[str, Any] | None = None,
        **dates: Any,
    ) -> Run:
        """Run a DAG as a scheduler would that does nothing else, until no task can be run.

        Args:
            dag_id: the DAG.
            run_type: what started the run.
            events: the ids of the asset events that did.
            triggers: whether a task that defers waits for its trigger; else it is left deferred.
            conf: what the run was given.
            dates: ``logical_date``, ``data_interval``, ``partition_key``.
        """
        from airflow.models.asset import AssetEvent
        from airflow.serialization.serialized_objects import DagSerialization
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        dag = self.dag(dag_id)
        self.sync()
        now = datetime.now(UTC)
        with create_session() as session:
            run = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).create_dagrun(
                run_id=f"{run_type}__{uuid.uuid4().hex[:8]}",
                run_after=now,
                start_date=now,
                conf=conf or {},
                run_type=DagRunType(run_type),
                triggered_by=DagRunTriggeredByType.TEST,
                state=DagRunState.RUNNING,
                session=session,
                **dates,
            )
            run.consumed_asset_events.extend(session.get(AssetEvent, event) for event in events or [])
            session.commit()
            self._go_on(dag, run, session, triggers)
            return self.look(run)

    def clear(self, dag_id: str, run_id: str, *tasks: str) -> Run:
        """Clear tasks of a run, and no others, as the UI does, and go on with it as a scheduler would."""
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import clear_task_instances
        from airflow.serialization.serialized_objects import DagSerialization
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from sqlalchemy import select

        dag = self.dag(dag_id)
        self.sync()
        with create_session() as session:
            run = session.scalars(select(DagRun).filter_by(dag_id=dag.dag_id, run_id=run_id)).one()
            there = {ti.task_id: ti for ti in run.get_task_instances(session=session)}
            clear_task_instances([there[task] for task in tasks], session)
            session.commit()
            run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
            run.state = DagRunState.RUNNING
            session.commit()
            self._go_on(dag, run, session, triggers=True)
            return self.look(run)

    def question(self, run: Run, task: str) -> Any:
        """What a task has asked a person: ``subject``, ``body``, ``options``, ``defaults``, ``assignees``."""
        from airflow.models.hitl import HITLDetail
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            asked = select(HITLDetail).join(TaskInstance, HITLDetail.ti_id == TaskInstance.id)
            return session.scalars(asked.where(TaskInstance.run_id == run.run_id, TaskInstance.task_id == task)).one()

    def answer(self, dag_id: str, run: Run, task: str, option: str, user: str = "ann", reason: str = "") -> Run:
        """Answer a task's question by the function behind Airflow's REST API, and go on with the task."""
        from airflow.api_fastapi.app import create_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
        from airflow.api_fastapi.core_api.datamodels.hitl import UpdateHITLDetailPayload
        from airflow.api_fastapi.core_api.routes.public.hitl import update_hitl_detail
        from airflow.utils.session import create_session

        create_auth_manager()
        with create_session() as session:
            update_hitl_detail(
                self.dag(dag_id).dag_id,
                run.run_id,
                task,
                UpdateHITLDetailPayload(chosen_options=[option], params_input={"reason": reason} if reason else {}),
                SimpleAuthManagerUser(username=user, role="admin"),
                session,
            )
        return self.resume(dag_id, run, task)

    def resume(self, dag_id: str, run: Run, task: str) -> Run:
        """Go on with a task that was answered."""
        from airflow.models.dagrun import DagRun
        from airflow.sdk.definitions.dag import _run_task
        from airflow.serialization.serialized_objects import DagSerialization
        from airflow.utils.session import create_session
        from sqlalchemy import select

        dag = self.dag(dag_id)
        with create_session() as session:
            found = session.scalars(select(DagRun).filter_by(dag_id=dag.dag_id, run_id=run.run_id)).one()
            ti = found.get_task_instance(task, session=session)
            _run_task(ti=ti, task=dag.task_dict[task])
            session.commit()
            found.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
            self._go_on(dag, found, session, triggers=True)
            return self.look(found)

    def _go_on(self, dag: Any, run: Any, session: Any, triggers: bool) -> None:
        """Run what can be run, until nothing can."""
        from airflow.sdk.definitions.dag import _run_task
        from airflow.utils.state import DagRunState, TaskInstanceState

        before: list[Any] = []
        while run.state == DagRunState.RUNNING:
            session.expire_all()
            ready, _ = run.update_state(session=session)
            stands = sorted((ti.task_id, str(ti.state)) for ti in run.get_task_instances(session=session))
            if not ready and stands == before:
                break
            before = stands
            for ti in ready:
                ti.try_number += 1
                ti.state = TaskInstanceState.SCHEDULED
            session.commit()
            for ti in ready:
                _run_task(ti=ti, task=dag.task_dict[ti.task_id], run_triggerer=triggers)
        session.commit()

    def sync(self) -> None:
        """Put the DAGs into the metadata database, as the DAG processor does."""
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db

        manager = DagBundlesManager()
        manager.sync_bundles_to_db()
        (bundle,) = manager.get_all_dag_bundles()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        sync_bag_to_db(bag, bundle.name, bundle.version)

    def look(self, run: Any) -> Run:
        """Read how a run stands."""
        from airflow.models.asset import AssetEvent
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        key = {"dag_id": run.dag_id, "run_id": run.run_id}
        with create_session() as session:
            state = session.scalar(select(DagRun.state).filter_by(**key))
            tasks = session.scalars(select(TaskInstance).filter_by(**key)).all()
            values = session.execute(select(XComModel.task_id, XComModel.key, XComModel.value).filter_by(**key)).all()
            made = session.scalars(
                select(AssetEvent).filter_by(source_dag_id=run.dag_id, source_run_id=run.run_id).order_by(AssetEvent.id)
            ).all()
            return Run(
                state=str(state),
                run_id=run.run_id,
                states={ti.task_id: ti.state and str(ti.state) for ti in tasks},
                tries={ti.task_id: ti.try_number for ti in tasks},
                errors={task: found for (run_id, task), found in self._errors.items() if run_id == run.run_id},
                xcom={(row.task_id, row.key): XComModel.deserialize_value(row) for row in values},
                events=[{"id": event.id, "asset": event.asset.uri, "extra": event.extra} for event in made],
            )

    def ledger(self) -> list[Any]:
        """The toy pipeline's ledger."""
        return Ledger(self.store, self.name).entries()

    def requests(self) -> list[Any]:
        """The toy pipeline's retrain requests."""
        return Requests(self.store, self.name).all()


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """The session's ``AIRFLOW_HOME``, its metadata database made."""
    home = Path(os.environ["AIRFLOW_HOME"])
    from airflow.utils.db import upgradedb

    upgradedb()
    return home


class _Errors:
    """An Airflow listener that keeps what tasks raise, which neither the database nor `dag.test` does."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[BaseException]] = defaultdict(list)

    @pluggy.HookimplMarker("airflow")
    def on_task_instance_failed(self, previous_state: Any, task_instance: Any, error: Any) -> None:
        self.found[task_instance.run_id, task_instance.task_id].append(error)


@contextmanager
def airflow_of(world: World) -> Iterator[Airflow]:
    """Let Airflow look for DAG files, the store and MLflow where a test's world has them."""
    from airflow.sdk.listener import get_listener_manager

    errors = _Errors()
    get_listener_manager().add_listener(errors)
    bundle = {
        "name": "tests",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(world.folder)},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
        patch.setenv("AIRFLOW__AIRFLOW_MLOPS__STORE", world.store)
        patch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": world.registry.uri}))
        try:
            yield Airflow(world, errors.found)
        finally:
            get_listener_manager().pm.unregister(errors)


@pytest.fixture
def airflow(airflow_home: Path, world: World) -> Iterator[Airflow]:
    """Airflow in a world of its own."""
    with airflow_of(world) as running:
        yield running


@pytest.fixture
def champion(promoted: Airflow) -> Airflow:
    """Airflow where January was trained on and promoted, and no window was judged yet.

    Tests share the champion and must leave it alone.
    """
    from airflow.models.asset_state_store import AssetStateStoreModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    for kept in ("verdicts", "prediction_verdicts", "performance_verdicts", "open_verdicts", "requests"):
        shutil.rmtree(Path(promoted.world.store) / kept, ignore_errors=True)
    with create_session() as session:
        session.execute(delete(AssetStateStoreModel))
    return promoted


@pytest.fixture(scope="module")
def promoted(airflow_home: Path, january: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """What `champion` hands out, made once."""
    folder = tmp_path_factory.mktemp("champion")
    registry = toy.registry_ref(january.world.registry.uri, f"toy-{uuid.uuid4().hex[:10]}")
    with airflow_of(World(folder, str(folder / "store"), registry)) as running:
        toy.months(folder)
        running.declare(retries=2, retry_delay="0s")
        running.promote(january)
        yield running


@pytest.fixture
def untried(trained: Airflow) -> Airflow:
    """Airflow that has trained on January and run nothing yet: a run of January finds its training done."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    for kept in Path(trained.world.store).iterdir():
        if kept.name not in ("artifacts", "cache"):
            shutil.rmtree(kept)
    api = toy.registry_of(trained.world.store, trained.world.registry).api
    for alias in api.aliases(trained.name):
        api.set_alias(trained.name, alias, None)
    with create_session() as session:
        session.execute(delete(DagRun).where(DagRun.dag_id == f"{trained.name}.train"))
    return trained


@pytest.fixture(scope="module")
def trained(airflow_home: Path, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """What `untried` hands out, made once."""
    folder = tmp_path_factory.mktemp("trained")
    registry = toy.registry_ref(mlflow_server, f"toy-{uuid.uuid4().hex[:10]}")
    with airflow_of(World(folder, str(folder / "store"), registry)) as running:
        toy.months(folder)
        toy.train(running.world, "2024-01")
        running.declare()
        yield running


@pytest.fixture(scope="session")
def january(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The toy of January, trained once: nobody's champion until somebody promotes it."""
    folder = tmp_path_factory.mktemp("january")
    toy.months(folder, ("2024-01",))
    registry = toy.registry_ref(mlflow_server, f"january-{uuid.uuid4().hex[:10]}")
    return toy.train(World(folder, str(folder / "store"), registry), "2024-01")
