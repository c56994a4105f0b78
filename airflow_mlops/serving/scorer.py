"""A version's process: loads the model with its own code, and answers batches of requests until its input ends.

``python -m airflow_mlops.serving.scorer`` reads a `Start` from its standard input, says `Ready`, and then answers each
`Batch` by `Answers`. It is started by the front alone. What a model prints goes to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pyarrow as pa

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import RegistryRef
from airflow_mlops.errors import MlopsError, RegistryError
from airflow_mlops.registry.mlflow_api import pointed_at
from airflow_mlops.registry.models import ModelRegistry
from airflow_mlops.serving.frames import Answers, Ask, Batch, Logged, Ready, Said, Start, length, pack
from airflow_mlops.serving.log import Place, PredictionLog
from airflow_mlops.serving.protocol import RequestError, Rows, answer_body, column_of, error_body, read_rows, table_of
from airflow_mlops.spec.load import load_pipeline
from airflow_mlops.spec.pipeline import Pipeline
from airflow_mlops.spec.plan import kept_columns
from airflow_mlops.stages.batch_predict import score_rows
from airflow_mlops.stages.golden import name_of_class
from airflow_mlops.stages.model_io import DECLARATION, Model, download, loaded, read_facts

_INPUT = "input."
"""What the model's raw columns begin with in the log, where a name might be one of the log's own."""


class Asked(NamedTuple):
    """One request, read."""

    ask: Ask
    table: pa.Table
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

    def answer(self, asks: Sequence[Ask], bodies: Sequence[bytes]) -> tuple[list[Said], list[bytes]]:
        """Answer requests; those that can be are scored together, and one that cannot spoils no other."""
        said: list[Said | None] = [None] * len(asks)
        answers: list[bytes] = [b""] * len(asks)
        read: list[tuple[int, Asked]] = []
        for at, (ask, body) in enumerate(zip(asks, bodies, strict=True)):
            try:
                found = read_rows(body, ask.kind)
                read.append((at, Asked(ask, table_of(found, self.model.facts.columns), found)))
            except RequestError as error:
                said[at], answers[at] = Said(error.status), error.body()
        for group in self._scored(read):
            for at, status, body, rows in group:
                said[at], answers[at] = Said(status, rows), body
        return [each for each in said if each is not None], answers

    def _scored(self, read: list[tuple[int, Asked]]) -> list[list[tuple[int, int, bytes, int]]]:
        if not read:
            return []
        try:
            columns = score_rows(self.model, pa.concat_tables([asked.table for _, asked in read]))
        except MlopsError as error:
            if len(read) > 1:
                # One of them is to blame; each is asked by itself.
                return [found for each in read for found in self._scored([each])]
            at, asked = read[0]
            return [[(at, 500, error_body("INTERNAL_ERROR", error.what), asked.rows.number)]]
        scored = pa.table(columns)
        found, start = [], 0
        for at, asked in read:
            part = scored.slice(start, asked.rows.number)
            start += asked.rows.number
            found.append((at, 200, self._body(part), asked.rows.number))
            self._take(asked, part)
        return [found]

    def _body(self, part: pa.Table) -> bytes:
        classes = self.model.facts.classes
        probabilities: dict[str, Any] = {}
        if "probability" in part.column_names:
            chance = part["probability"].to_numpy()
            probabilities = {
                name_of_class(classes[0]): (1 - chance).tolist(),
                name_of_class(classes[1]): chance.tolist(),
            }
        else:
            for name in part.column_names:
                if name.startswith("probability."):
                    probabilities[name.removeprefix("probability.")] = part[name].to_pylist()
        return answer_body(part["prediction"].to_pylist(), probabilities)

    def _take(self, asked: Asked, part: pa.Table) -> None:
        """Let the log have the rows: what is kept, what was said, the model's own columns, and where it comes from."""
        if self.log is None or asked.ask.role == "probe":
            return
        count = asked.rows.number
        kept = {name: self._kept(asked, name) for name in self.keep}
        stamps = {
            "model": self.name,
            "model_version": self.version,
            "run": f"serving/{self.server}",
            "request": asked.ask.request,
            "role": asked.ask.role,
        }
        self.log.take(
            pa.table(
                {name: values for name, values in kept.items() if values is not None}
                | {name: part[name] for name in part.column_names}
                | {f"{_INPUT}{name}": asked.table[name] for name in asked.table.column_names}
                | {name: pa.repeat(value, count) for name, value in stamps.items()}
                | {"answered_at": pa.repeat(pa.scalar(datetime.now(UTC), pa.timestamp("us", "UTC")), count)}
            )
        )

    def _kept(self, asked: Asked, name: str) -> Any:
        if name in asked.table.column_names:
            return asked.table[name]
        if name not in asked.rows.columns:
            return None
        values = asked.rows.columns[name]
        if self.log is not None and name == self.log.place.time:
            try:
                return column_of(name, values, "timestamp[us]")
            except RequestError:
                return None
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return None


def main() -> int:
    """Load what is asked for, and answer until the input ends."""
    # A terminal's Ctrl-C is the front's to deal with: it ends this process by closing the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start = msgspec.json.decode(source.readline(), type=Start)
    with tempfile.TemporaryDirectory() as folder:
        try:
            registry = ModelRegistry(RegistryRef.model_validate(start.registry), Store(start.store))
            run_id = registry.api.version(registry.ref.model, start.version).run_id
            with pointed_at(registry.ref.uri):
                facts = read_facts(run_id, Path(folder, "facts")).model_copy(update={"model_digest": start.digest})
                place, keep = _place(start, registry, run_id, Path(folder)) if start.log_to is not None else (None, ())
                scope = loaded(facts, Path(folder, "model"), allow_pickle=start.allow_pickle)
                model = scope.__enter__()
        except MlopsError as error:
            _send(sink, pack(Ready(problem=str(error))))
            return 1
        try:
            log = PredictionLog(place, start.flush) if place else None
            scorer = Scorer(
                model, version=start.version, name=registry.ref.model, server=start.server, log=log, keep=keep
            )
            _send(sink, pack(Ready(bytes=model.size, classifies=facts.task != "regression")))
            _serve(scorer, source, sink)
            if log:
                log.close()
        finally:
            scope.__exit__(None, None, None)
    return 0


def _place(start: Start, registry: ModelRegistry, run_id: str, folder: Path) -> tuple[Place, tuple[str, ...]]:
    pipeline = _declared(run_id, folder)
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
        server=start.server,
        version=start.version,
    ), kept_columns(pipeline) if pipeline else ()


def _declared(run_id: str, folder: Path) -> Pipeline | None:
    """The declaration that the model was trained by; None where a team's own DAG did."""
    from airflow_mlops.errors import ModelNotFoundError

    try:
        return load_pipeline(download(run_id, DECLARATION, folder))
    except ModelNotFoundError:
        return None


def _serve(scorer: Scorer, source: BinaryIO, sink: BinaryIO) -> None:
    while head := source.read(4):
        batch = msgspec.json.decode(source.read(length(head)), type=Batch)
        bodies = [source.read(size) for size in batch.sizes]
        said, answers = scorer.answer(batch.asks, bodies)
        log = scorer.log.stands() if scorer.log else Logged()
        _send(sink, pack(Answers(said, [len(each) for each in answers], log), answers))


def _send(sink: BinaryIO, pieces: list[bytes]) -> None:
    sink.write(b"".join(pieces))
    sink.flush()


if __name__ == "__main__":
    sys.exit(main())
