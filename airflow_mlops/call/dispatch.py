"""The one door from the light half of the package to the heavy one.

`run` imports the module of the Call's stage, and with it pandas, scikit-learn, MLflow or Evidently; nothing before it
does.
"""

from __future__ import annotations

import logging
from importlib import import_module
from types import ModuleType

from airflow_mlops.call import cache
from airflow_mlops.call.code import code_scope, told, unpack
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call, Outcome
from airflow_mlops.errors import CodeError, MlopsError
from airflow_mlops.spec import stages as params

log = logging.getLogger(__name__)

STAGES: dict[str, type[params.StageParams]] = {
    kind.stage: kind
    for kind in (
        params.Extract,
        params.ValidateData,
        params.Prepare,
        params.Tune,
        params.Train,
        params.Register,
        params.Evaluate,
        params.ValidateModel,
        params.Approve,
        params.ValidateServing,
        params.Trial,
        params.Promote,
        params.Deploy,
        params.Rollback,
        params.BatchPredict,
        params.Monitor,
        params.MonitorPredictions,
        params.MonitorPerformance,
    )
}
"""Every stage by its kind."""

ONCE = frozenset({"tune", "train", "monitor_predictions", "monitor_performance"})
"""Stages that a run never does twice, even where nothing is kept for other runs (see `airflow_mlops.call.cache`)."""


def stage_module(name: str) -> ModuleType:
    """A module of the heavy half, by its name in `airflow_mlops.stages`."""
    return import_module(f"airflow_mlops.stages.{name}")


def run(call: Call) -> Outcome:
    """Run a Call here and now, and keep its Outcome in the store.

    Raises:
        MlopsError: when the stage could not be done; its ``retryable`` says whether to try again.
    """
    try:
        store = Store(call.store)
        if call.stage in ONCE and (earlier := store.read_outcome(call)) is not None:
            log.info("%s: an earlier try of this run has done it; its outcome is used", call.where)
            return earlier
        if call.stage not in STAGES:
            raise MlopsError(f"there is no stage {call.stage!r}", allowed=", ".join(STAGES))
        given = STAGES[call.stage].model_validate(call.params)
        looked = cache.look(call, given, store)
        if looked is not None:
            log.info("%s: cache %s", call.where, looked.reason)
        outcome = looked.outcome if looked else None
        if outcome is None:
            outcome = _compute(call, given, store, looked)
        store.write_outcome(outcome)
    except MlopsError as error:
        raise error.at(call.where) from error.__cause__
    except SystemExit as error:
        # Whoever runs the Call, be it a shell or Airflow, would take it for a good end or for one to be tried again.
        raise CodeError(f"the team's code raised {told(error)}", where=call.where) from error
    return outcome


def known(call: Call) -> Outcome | None:
    """What an earlier try, or an equal Call of an earlier run, has come to; None where it has to be run.

    For backends that take minutes to start what would then find the same.

    Raises:
        MlopsError: when the store or the registry cannot be asked.
    """
    store = Store(call.store)
    if call.stage in ONCE and (earlier := store.read_outcome(call)) is not None:
        return earlier
    looked = cache.look(call, STAGES[call.stage].model_validate(call.params), store)
    if looked is None or looked.outcome is None:
        return None
    log.info("%s: cache %s", call.where, looked.reason)
    store.write_outcome(looked.outcome)
    return looked.outcome


def keep(call: Call, outcome: Outcome) -> Outcome:
    """Keep what came of a Call that was not run here, for the next try and for later runs."""
    store, given = Store(call.store), STAGES[call.stage].model_validate(call.params)
    looked = cache.look(call, given, store)
    outcome = cache.keep(looked, call, given, outcome, store) if looked else outcome
    store.write_outcome(outcome)
    return outcome


def _compute(call: Call, given: params.StageParams, store: Store, looked: cache.Looked | None) -> Outcome:
    for ref in looked.damaged if looked else ():
        # Under its name nothing else would be written.
        store.discard(ref)
    stage = stage_module(call.stage)
    with code_scope(unpack(call.code, store) if call.code else None):
        outcome: Outcome = stage.run(call, given, store)
    return cache.keep(looked, call, given, outcome, store) if looked else outcome
