"""What history answers a replay of a declared pipeline: it is trained, scored, judged and gated as it would have been.

Everything goes into a store and a registry of the replay's own; what was computed once is found there by its content.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from airflow_mlops.call.dispatch import stage_module
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome, RegistryRef
from airflow_mlops.cli.run import run_plan
from airflow_mlops.errors import DataNotFoundError, MlopsError
from airflow_mlops.registry.mlflow_api import mlflow_api
from airflow_mlops.registry.replay import Gated, Judge, Judged, Training
from airflow_mlops.spec import Declaration, train_plan
from airflow_mlops.spec.pipeline import DataDrift
from airflow_mlops.spec.plan import monitor_node
from airflow_mlops.spec.stages import Extract, Monitor, ValidateModel
from airflow_mlops.spec.window import Window

_Value = TypeVar("_Value")


class Past:
    """A world of a pipeline's own windows: whatever some policy asks for is computed once."""

    def __init__(self, declaration: Declaration, root: Path) -> None:
        pipeline = declaration.pipeline
        lean = pipeline.evaluate.model_copy(update={"plots": False, "importance_rows": 0})
        self.declaration = declaration._replace(pipeline=pipeline.model_copy(update={"evaluate": lean}))
        self.store = Store(str(root / "store"))
        self.registry = f"sqlite:///{root}/mlflow.db"
        self.past = stage_module("past")
        self.evidently = self.past.Evidently()
        self.notes: list[str] = []
        node = monitor_node(pipeline)
        self.monitor: Monitor = node.params.resolved(declaration.base)  # type: ignore[assignment]
        plan = {each.stage: each.params.resolved(declaration.base) for each in train_plan(pipeline)}
        self.extract: Extract = plan["extract"].model_copy(update={"last": 1})  # type: ignore[assignment]
        self.limits: ValidateModel = plan["validate_model"]  # type: ignore[assignment]
        self._models: dict[str, Any] = {}
        self._trainings: dict[str, Training] = {}
        self._known: dict[tuple[Any, ...], Any] = {}
        # What a first import and a new database cost is no cost of a training.
        for each in ("train", "evaluate"):
            stage_module(each)
        mlflow_api(self.registry).experiment_id(pipeline.name)

    def close(self) -> None:
        """End what was started."""
        self.evidently.close()

    def model(self, window: Window) -> Any:
        """The model that was trained with this window as the newest.

        Raises:
            DataError: when none could be.
        """
        training = self.train(window)
        if training.failed:
            raise DataNotFoundError(f"there is no model of {window.key}: {training.failed}")
        return self._models[window.key]

    def primary(self, window: Window) -> str:
        """The primary metric of a model."""
        return str(self.model(window).evaluation["primary"])

    def train(self, window: Window) -> Training:
        """See `World`."""
        if window.key not in self._trainings:
            _say(f"training on windows up to {window.key}")
            self._trainings[window.key] = self._train(window)
        return self._trainings[window.key]

    def _train(self, window: Window) -> Training:
        pipeline = self.declaration.pipeline
        name = f"{pipeline.name}-{window.key}"
        registry = RegistryRef(uri=self.registry, model=name, experiment=pipeline.name)
        run = f"replay/{window.key}/{datetime.now():%Y%m%dT%H%M%S}-{os.getpid()}"
        outcomes: dict[str, Outcome] = {}
        before = _cpu()
        failed = None
        try:
            run_plan(
                self.declaration,
                window=window,
                store=self.store.root,
                registry=registry,
                run=run,
                progress=lambda *_: None,
                outcomes=outcomes,
                cache=pipeline.cache,
                promote=False,
            )
        except MlopsError as error:
            if error.retryable:
                raise
            failed = error.what
            if not self._trainings:
                raise  # without a champion to begin with there is nothing to walk through
        spent = _cpu() - before
        if "evaluate" not in outcomes:
            return Training(failed or "; ".join(list(outcomes.values())[-1].verdict.reasons), spent)
        call = Call(
            pipeline=pipeline.name, stage="replay", run=run, window=window, store=self.store.root, registry=registry
        )
        outputs = {stage: dict(outcome.outputs) for stage, outcome in outcomes.items()}
        model = self._models[window.key] = self.past.model_of(call, outputs, self.store)
        # What was found again cost nothing now; what it did cost was noted when it was made.
        place = ("replay", "cost", f"{model.model.digest[7:39]}.json")
        self.store.create_json({"cpu": spent}, *place)
        kept = self.store.read_json(*place) or {"cpu": spent}
        return Training(failed, float(kept["cpu"]))

    def metric(self, model: Window, window: Window) -> float | None:
        """See `World`."""

        def measured() -> float | None:
            _say(f"scoring the model of {model.key} on {window.key}")
            trained = self.model(model)
            try:
                value: float | None = self.past.metric_of(
                    trained, self.extract, window, self.primary(model), self.store
                )
            except DataNotFoundError as error:
                self.notes.append(f"{window.key}: {error.what}")
                return None
            return value

        return self._once(("metric", model.key, window.key), measured)

    def judge(self, by: Judge, model: Window, window: Window, earlier: Sequence[Window]) -> Judged:
        """See `World`."""
        if by == "evidently":
            return self._once(("evidently", model.key, window.key), lambda: self._evidently(model, window))
        assert isinstance(by, DataDrift)  # noqa: S101 - nobody else judges
        before = _cpu()
        verdict = self.verdict(by, model, window, earlier)
        # Where another policy has asked for it, it is as dear: what the first one paid is kept with it.
        verdict.setdefault("cpu", _cpu() - before)
        return Judged(verdict["status"], verdict["reasons"][0], verdict["cpu"])

    def verdict(self, rule: DataDrift, model: Window, window: Window, earlier: Sequence[Window]) -> dict[str, Any]:
        """What monitoring says of a window if this model is the champion, and it has judged these windows before."""
        keys = tuple(each.key for each in earlier)
        return self._once(
            ("drift", rule.model_dump_json(), model.key, window.key, keys),
            lambda: self._drift(rule, model, window, earlier),
        )

    def _drift(self, rule: DataDrift, model: Window, window: Window, earlier: Sequence[Window]) -> dict[str, Any]:
        told = {each.key: self.verdict(rule, model, each, earlier[:at]) for at, each in enumerate(earlier)}
        params = self.monitor.model_copy(update={"data_drift": rule})
        _say(f"holding {window.key} against the reference of {model.key}")
        try:
            found: dict[str, Any] = self.past.drift_of(
                self.model(model), params, window, self.past.Said(told), self.store
            )
        except MlopsError as error:
            if error.retryable:
                raise
            self.notes.append(f"a person must look at {window.key}, held against {model.key}: {error.what}")
            # As the sensor writes it down.
            return {"status": "error", "reasons": [error.what], "moved": [], "champion": None}
        return found

    def _evidently(self, model: Window, window: Window) -> Judged:
        _say(f"asking Evidently about {window.key} against {model.key}")
        found = self.evidently.verdict(self.model(model), self.extract, window, self.store)
        if found["failed"]:
            self.notes.append(f"Evidently has no verdict on {window.key} against {model.key}: {found['failed']}")
            return Judged("error", f"no verdict: {found['failed']}", found["cpu"])
        return Judged("drift" if found["drift"] else "ok", f"{found['share']:.0%} of the columns drifted", found["cpu"])

    def gate(self, model: Window, champion: Window) -> Gated:
        """See `World`."""

        def gated() -> Gated:
            _say(f"the gate: the model of {model.key} against that of {champion.key}")
            try:
                verdict = self.past.gate_of(self.model(model), self.model(champion), self.limits, self.store)
            except MlopsError as error:
                if error.retryable:
                    raise
                return Gated(False, f"the gate could not be computed: {error.what}")
            return Gated(verdict.passed, "; ".join(verdict.reasons))

        return self._once(("gate", model.key, champion.key), gated)

    def _once(self, key: tuple[Any, ...], compute: Callable[[], _Value]) -> _Value:
        if key not in self._known:
            self._known[key] = compute()
        found: _Value = self._known[key]
        return found


def _cpu() -> float:
    """The CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def _say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)
