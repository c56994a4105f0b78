"""Going on with an earlier ``airflow-mlops run``: which there are, and of which window each is."""

from __future__ import annotations

from pydantic import ValidationError

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import SHELL, Outcome, identity_of
from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec.window import Window

_EVERY = 1_000_000
_TOLD = 5


def earlier_runs(store: Store, pipeline: str) -> dict[str, Window | None]:
    """The runs of a pipeline that have done a stage at least, and their windows; the newest first."""
    found: dict[str, Window | None] = {}
    for name in store.newest(_EVERY, "outcomes"):
        try:
            outcome = Outcome.model_validate(store.read_json("outcomes", name))
        except ValidationError:
            continue
        if outcome.run.startswith(SHELL) and outcome.identity == identity_of(
            pipeline, outcome.stage, outcome.window, outcome.run
        ):
            found.setdefault(outcome.run.removeprefix(SHELL), outcome.window)
    return found


def window_of(store: Store, pipeline: str, run: str, key: str | None) -> Window | None:
    """The window of an earlier run, whatever data has come since; None where its data comes as one whole.

    Args:
        store: where it has left what it did.
        pipeline: the pipeline's name.
        run: the run's id.
        key: the window that was asked for, if any.

    Raises:
        DeclarationError: when there is no such run, or it is of another window.
    """
    runs = earlier_runs(store, pipeline)
    if run not in runs:
        several = f" and {len(runs) - _TOLD} older" if len(runs) > _TOLD else ""
        allowed = ", ".join(_told(each, runs[each]) for each in list(runs)[:_TOLD]) + several
        raise DeclarationError(
            [
                f"--resume: {pipeline!r} has no run {run!r} in {store.root}"
                + (f"; allowed: {allowed}" if runs else ", nor any other")
                + "; try: leave --resume out: what any run has done is found again by its content"
            ]
        )
    window = runs[run]
    if key and (window is None or window.key != key):
        raise DeclarationError([f"--window: run {_told(run, window)} is not of {key!r}; try: leave --window out"])
    return window


def _told(run: str, window: Window | None) -> str:
    return f"{run} (window {window.key if window else 'all rows'})"
