"""A version's process: loads the model with its own code, and answers batches of requests until its input ends.

``python -m airflow_mlops.serving.scorer`` reads a `Start` from its standard input, says `Ready`, and then answers each
`Batch` by `Answers`. It is started by the front alone. What a model prints goes to standard error.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from airflow_mlops.call.code import told
from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.errors import MlopsError, RegistryError
from airflow_mlops.registry.files import files_of
from airflow_mlops.registry.mlflow_api import MlflowApi
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.serving.frames import Answers, Ask, Batch, Logged, Ready, Said, Start, length, pack
from airflow_mlops.serving.log import Place, PredictionLog
from airflow_mlops.serving.protocol import (
    RequestError,
    Rows,
    answer_body,
    answers_apart,
    column_of,
    error_body,
    read_rows,
    require,
    table_of,
    together,
)
from airflow_mlops.spec.load import load_pipeline
from airflow_mlops.spec.pipeline import Pipeline
from airflow_mlops.spec.plan import kept_columns
from airflow_mlops.stages.batch_predict import score_rows
from airflow_mlops.stages.golden import name_of_class
from airflow_mlops.stages.model_io import DECLARATION, Model, facts_of, loaded, read_facts

log = logging.getLogger(__name__)

_PROBE = "probe"
"""The role of requests that only measure: nothing is to be learned from their rows."""
_INPUT = "input."
"""What the model's raw columns begin with in the log, where a name might be one of the log's own."""


class Asked(NamedTuple):
    """One request, read."""

    at: int
    """Its place in the batch."""
    ask: Ask
    rows: Rows


class Scorer:
    """Answers requests with a loaded model.

    Args:
        model: the model.
        version: its version.
        name: the registered model's name.
        server: the server's id.
        log: where predictions are logged; None: they are not.
        keep: the columns, with their Arrow types where they are known, that the log keeps beside the predictions.
    """

    def __init__(
        self,
        model: Model,
        *,
        version: str,
        name: str,
        server: str,
        log: PredictionLog | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        self.model, self.version, self.name, self.server = model, version, name, server
        self.log, self.keep = log, tuple(keep)
        self._wanted = frozenset((*model.facts.columns, *self.keep))

    def answer(self, asks: Sequence[Ask], bodies: Sequence[bytes]) -> tuple[list[Said], list[bytes]]:
        """Answer requests; those that can be are scored together, and one that cannot spoils no other."""
        said = [Said(500) for _ in asks]
        answers: list[bytes] = [b""] * len(asks)
        read: list[Asked] = []
        for at, (ask, body) in enumerate(zip(asks, bodies, strict=True)):
            try:
                rows = read_rows(body, ask.kind, self._wanted)
                require(rows, self.model.facts.columns)
            except Exception as error:
                said[at].status, answers[at] = _refusal(error)
            else:
                read.append(Asked(at, ask, rows))
        for asked, status, body in self._scored(read):
            said[asked.at], answers[asked.at] = Said(status, asked.rows.number), body
        return said, answers

    def _scored(self, read: list[Asked]) -> list[tuple[Asked, int, bytes]]:
        if not read:
            return []
        try:
            rows = together([each.rows for each in read], self._wanted)
            table = table_of(rows, self.model.facts.columns)
            columns = score_rows(self.model, table)
        except Exception as error:
            if len(read) > 1:
                # One of them is to blame; each is asked by itself.
                return [found for each in read for found in self._scored([each])]
            return [(read[0], *_refusal(error))]
        if self.log is not None and any(each.ask.role != _PROBE for each in read):
            try:
                self.log.take(self._logged(read, rows, table, columns))
            except Exception:
                # Answers go on, whatever becomes of their log.
                log.exception("predictions were not logged")
                self.log.lose(table.num_rows)
        bodies = self._bodies(columns, [each.rows for each in read])
        return [(each, 200, body) for each, body in zip(read, bodies, strict=True)]

    def _bodies(self, columns: Mapping[str, Any], requests: Sequence[Rows]) -> list[bytes]:
        classes = self.model.facts.classes
        said = columns["prediction"].to_pylist()
        chances: dict[str, list[float]] = {}
        if "probability" in columns:
            chance = columns["probability"].to_numpy()
            chances = {name_of_class(classes[0]): (1 - chance).tolist(), name_of_class(classes[1]): chance.tolist()}
        else:
            for name, values in columns.items():
                if name.startswith("probability."):
                    chances[name.removeprefix("probability.")] = values.to_pylist()
        bodies, start = [], 0
        for rows in requests:
            part = slice(start, start + rows.number)
            own = {name: values[part] for name, values in chances.items()}
            found, beside = (answers_apart(said[part], own), {}) if rows.apart else (said[part], own)
            bodies.append(answer_body(found, beside))
            start += rows.number
        return bodies

    def _logged(self, read: Sequence[Asked], rows: Rows, table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
        """What the log has of a batch: what is kept, what was said, the raw columns, and where it comes from."""
        count = table.num_rows
        kept = {name: self._kept(rows, table, name) for name in self.keep}
        of_request = pa.array([number for number, each in enumerate(read) for _ in range(each.rows.number)], pa.int32())
        stamps = {"model": self.name, "model_version": self.version, "run": f"serving/{self.server}"}
        of_each = {"request": [each.ask.request for each in read], "role": [each.ask.role for each in read]}
        logged = pa.table(
            {name: values for name, values in kept.items() if values is not None}
            | dict(columns)
            | {f"{_INPUT}{name}": table[name] for name in table.column_names}
            | {name: pa.repeat(value, count) for name, value in stamps.items()}
            | {name: pa.array(values, pa.string()).take(of_request) for name, values in of_each.items()}
            | {"answered_at": pa.repeat(pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")), count)}
        )
        return logged.filter(pc.not_equal(logged["role"], _PROBE))

    def _kept(self, rows: Rows, table: pa.Table, name: str) -> Any:
        if name in table.column_names:
            return table[name]
        if name not in rows.columns:
            return None
        # A kept column is no business of the model's: what cannot be kept is left out, and the answer given.
        values = [each if isinstance(each, str | int | float | bool) else None for each in rows.columns[name]]
        if self.log is not None and name == self.log.place.time:
            return pa.array([_moment(each) for each in values], pa.timestamp("us"))
        kinds = set(map(type, values)) - {type(None)}
        try:
            return pa.array(values if len(kinds) <= 1 else [None if each is None else str(each) for each in values])
        except (pa.ArrowException, ValueError, OverflowError):
            return None


def _moment(value: Any) -> datetime | None:
    try:
        found: datetime | None = column_of("", [value], "timestamp[us]")[0].as_py()
    except RequestError:
        return None
    return found


def _refusal(error: Exception) -> tuple[int, bytes]:
    """Status and body for a request that cannot be answered."""
    if isinstance(error, RequestError):
        return error.status, error.body()
    if not isinstance(error, MlopsError):
        log.error("a request could not be answered", exc_info=error)
    return 500, error_body("INTERNAL_ERROR", error.what if isinstance(error, MlopsError) else told(error))


def main() -> int:
    """Load what is asked for, and answer until the input ends."""
    # A terminal's Ctrl-C is the front's to deal with: it ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    start = msgspec.json.decode(source.readline(), type=Start)
    ref = RegistryRef.model_validate(start.registry)
    place: Place | None = None
    keep: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if start.files is not None:
                with files_of(start.files) as files:
                    facts = facts_of(files).model_copy(update={"model_digest": start.digest})
                    scope = loaded(facts, Path(folder, "model"), None, allow_pickle=start.allow_pickle)
                    model = scope.__enter__()
            else:
                registry = ModelRegistry(ref, Store(start.store))
                run_id = registry.api.version(ref.model, start.version).run_id
                facts = read_facts(registry.api, run_id).model_copy(update={"model_digest": start.digest})
                if start.log_to is not None:
                    place, keep = _place(start, registry, run_id, Path(folder))
                scope = loaded(facts, Path(folder, "model"), registry.api, allow_pickle=start.allow_pickle)
                model = scope.__enter__()
        except MlopsError as error:
            _send(sink, pack(Ready(problem=str(error))))
            return 1
        try:
            journal = PredictionLog(place, start.flush) if place else None
            scorer = Scorer(model, version=start.version, name=ref.model, server=start.server, log=journal, keep=keep)
            _send(sink, pack(Ready(bytes=model.size, classifies=facts.task != "regression")))
            _serve(scorer, source, sink)
            if journal:
                journal.close()
                _send(sink, pack(Answers([], [], journal.stands())))
        finally:
            scope.__exit__(None, None, None)
    return 0


def _place(start: Start, registry: ModelRegistry, run_id: str, folder: Path) -> tuple[Place, tuple[str, ...]]:
    pipeline = _declared(registry.api, run_id, folder)
    store = Store(start.store)
    target = start.log_to or (pipeline.predict.output if pipeline else None)
    if target and "://" not in target and not os.path.isabs(target):
        raise RegistryError(
            f"predictions are declared to go to {target!r} beside the declaration, a place that a server does not know",
            fix="--log-to FOLDER, the same folder",
        )
    return Place(
        store=store,
        folder=target or store.uri("predictions", registry.ref.model),
        grain=pipeline.grain if pipeline else "day",
        time=pipeline.data.time if pipeline else None,
        # A version may be loaded by one server again and again: when its process has ended, or the champion comes back.
        writer=f"{start.server}-{start.version}-{os.urandom(3).hex()}",
    ), kept_columns(pipeline) if pipeline else ()


def _declared(api: MlflowApi, run_id: str, folder: Path) -> Pipeline | None:
    """The declaration that the model was trained by; None where a team's own DAG did."""
    from airflow_mlops.errors import ModelNotFoundError

    try:
        return load_pipeline(api.fetch(run_id, DECLARATION, folder))
    except ModelNotFoundError:
        return None


def _serve(scorer: Scorer, source: BinaryIO, sink: BinaryIO) -> None:
    while head := source.read(4):
        batch = msgspec.json.decode(source.read(length(head)), type=Batch)
        bodies = [source.read(size) for size in batch.sizes]
        said, answers = scorer.answer(batch.asks, bodies)
        stands = scorer.log.stands() if scorer.log else Logged()
        _send(sink, pack(Answers(said, [len(each) for each in answers], stands), answers))


def _send(sink: BinaryIO, pieces: list[bytes]) -> None:
    sink.write(b"".join(pieces))
    sink.flush()


if __name__ == "__main__":
    sys.exit(main())
