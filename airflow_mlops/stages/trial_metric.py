"""A candidate on trial against its champion by labels: what both were asked since the trial began, joined by key.

A canary's rows are others than its champion's, so this is a comparison of two samples, as in the monitoring of
performance. The candidate is worse when it lies behind by more than what is declared, and the interval of the
difference says that chance does not explain it.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.call.source import written_at
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call
from airflow_mlops.errors import DataNotFoundError
from airflow_mlops.registry.ledger import Entry
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.registry.verdicts import SERVED
from airflow_mlops.spec.metrics import DEFAULT_METRICS, METRICS
from airflow_mlops.spec.stages import MonitorPerformance
from airflow_mlops.spec.window import Window, parse_key
from airflow_mlops.stages.batch_predict import read_predictions
from airflow_mlops.stages.extract import extract
from airflow_mlops.stages.intervals import difference
from airflow_mlops.stages.labels import Joined, join
from airflow_mlops.stages.model_io import Facts, read_facts
from airflow_mlops.stages.monitor_performance import estimate_of
from airflow_mlops.stages.predictions import folder_of, said
from airflow_mlops.stages.tables import read_table

log = logging.getLogger(__name__)


class Compared(NamedTuple):
    """What labels say of a candidate."""

    worse: bool
    """Whether it is to be withdrawn."""
    reason: str


def compare(
    call: Call, store: Store, registry: ModelRegistry, trial: Entry, rule: MonitorPerformance, drop: float
) -> Compared:
    """Compare a candidate with its champion.

    Args:
        call: whose run it is.
        store: the artifact store.
        registry: the registry.
        trial: the entry that the trial began with.
        rule: where labels and predictions are, the metric, and the fewest labels that tell.
        drop: how far behind the candidate may lie, in the metric's unit.
    """
    champion = str(trial.champion_after)
    folder = folder_of(rule.destination, call, store)
    windows = _windows(folder, rule, trial)
    asked = [_asked(folder, window, rule, trial) for window in windows]
    table = pa.concat_tables(asked, promote_options="default") if asked else None
    labels = [found for window in windows if (found := _labels(rule, window, store)) is not None]
    if table is None or not labels:
        return Compared(False, "no labels have come yet, so metric_drop was not judged")
    truth = pa.concat_tables(labels, promote_options="default")
    facts = _facts(registry, trial.version)
    joined = {each: _joined(table, truth, each, rule, facts) for each in (champion, trial.version)}
    counts = {each: len(found.scores.truth) for each, found in joined.items()}
    if min(counts.values()) < rule.min_labels:
        told = f"{counts[trial.version]:,} labels of the candidate and {counts[champion]:,} of the champion have come"
        return Compared(False, f"{told}, fewer than {rule.min_labels:,}: metric_drop was not judged")
    metric = rule.metric or DEFAULT_METRICS[facts.task][0]
    estimates = {each: estimate_of(metric, found.scores, rule.confidence) for each, found in joined.items()}
    own, other = estimates[trial.version], estimates[champion]
    if isinstance(own, str) or isinstance(other, str):
        return Compared(False, f"{own if isinstance(own, str) else other}: metric_drop was not judged")
    loss = difference(other, own) if METRICS[metric].more_is_better else difference(own, other)
    low = loss.value if loss.low is None else loss.low
    worse = loss.value > drop and low > 0
    reason = (
        f"{metric} {own.value:.4f} on {counts[trial.version]:,} labels against {other.value:.4f} of the champion on "
        f"{counts[champion]:,}: a loss of {loss.value:+.4f}, with {rule.confidence:.0%} confidence {low:+.4f} or more, "
        f"{'beyond' if worse else 'which is not beyond'} {drop:g}"
    )
    return Compared(worse, reason)


def _windows(folder: str, rule: MonitorPerformance, trial: Entry) -> list[Window]:
    """The windows that a server has written into since the trial began."""
    store, found = Store(folder), []
    for name in store.names():
        if not name.startswith("window="):
            continue
        files = [store.uri(name, file) for file in store.names(name) if file.startswith(SERVED)]
        if any(written_at(file) >= trial.at.timestamp() for file in files):
            found.append(parse_key(rule.grain, name.removeprefix("window=")))
    return found


def _asked(folder: str, window: Window, rule: MonitorPerformance, trial: Entry) -> pa.Table:
    tables = []
    for batch in read_predictions(folder, window.key):
        if "answered_at" not in batch.column_names:
            continue
        since = batch.filter(pc.greater_equal(batch["answered_at"], pa.scalar(trial.at, pa.timestamp("us", "UTC"))))
        names = [each for each in batch.column_names if each in (*rule.key, "model_version") or said(each)]
        tables.append(since.select(names))
    return pa.concat_tables(tables, promote_options="default")


def _labels(rule: MonitorPerformance, window: Window, store: Store) -> pa.Table | None:
    try:
        return read_table(extract(rule.extract, window, store), store)
    except DataNotFoundError as error:
        log.info("no labels: %s", error)
        return None


def _facts(registry: ModelRegistry, version: str) -> Facts:
    run_id = registry.api.version(registry.ref.model, version).run_id
    return read_facts(registry.api, run_id)


def _joined(table: pa.Table, truth: pa.Table, version: str, rule: MonitorPerformance, facts: Facts) -> Joined:
    own = table.filter(pc.equal(table["model_version"], version)).drop_columns(["model_version"])
    return join(own, truth, rule.key, facts)
