"""The files of a first declaration, with the script's lines, and with what a person must look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from airflow_mlops.cli.adopting.decide import Decided
from airflow_mlops.cli.adopting.findings import Check
from airflow_mlops.spec.data_schema import on_one_line
from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.spec.schema_wiring import FILL_IN

_MOST_CHECKS = 30
_WIDEST = 96


class Called(NamedTuple):
    """How things are called."""

    pipeline: str
    script: str
    """The script's file, without its folder."""
    data: str
    source: str
    """``data.source``, as the declaration has it."""
    grain: str | None
    rows: int
    """How many rows the table has."""


def declaration(decided: Decided, called: Called) -> str:
    """The declaration as YAML. It can be loaded; what is missing is `FILL_IN`, which lint finds."""
    found, name, task = decided.found, called.pipeline, decided.task
    metrics = found.metrics_of(task) if task else []
    if task and found.metrics and not metrics:
        found.checks.append(Check(0, f"the script's metrics are none of a task {task!r}: {', '.join(found.metrics)}"))
    first = metrics[0] if metrics else "METRIC"
    gate = "min" if first not in METRICS or METRICS[first].more_is_better else "max"
    lines = [
        f"# {name}, adopted from {called.script}, whose lines are named, and {called.data}.",
        "# Look at whatever begins with `check:`, and take the comment away when it is right.",
        "apiVersion: airflow-mlops/v1",
        f"name: {name}",
        *([f"task: {task}"] if task and found.function else []),
        "data:",
        *_data(decided, called),
        *_prepare(decided, called),
        "train:",
        *_train(decided, called),
    ]
    if found.search is not None and found.function is None:
        lines += [f"# line {found.search_line}", f"tune: {on_one_line(found.search)}"]
    if metrics:
        lines.append(f"evaluate: {on_one_line({'metrics': metrics})}")
    lines += [
        "# check: what is good enough, when it is trained, and when it is watched; such as",
        f"# validate_model: {{{gate}: {{{first}: VALUE}}}}",
        '# schedule: "@monthly"',
        '# monitor: {schedule: "@daily"}',
        *_checks(found.checks, called.script),
    ]
    return "\n".join(lines) + "\n"


def _checks(checks: Iterable[Check], script: str) -> Iterator[str]:
    shown = sorted(set(checks))
    for line, text in shown[:_MOST_CHECKS]:
        yield f"# check: {f'line {line}: ' if line else ''}{on_a_line(text)}"
    if len(shown) > _MOST_CHECKS:
        yield f"# check: and {len(shown) - _MOST_CHECKS} lines more of {script} that were not understood"


def _data(decided: Decided, called: Called) -> Iterator[str]:
    found, table = decided.found, decided.table
    yield from (f"  # line {line} reads {on_a_line(path)}" for line, path in found.reads)
    if len(found.reads) > 1:
        yield "  # check: the script reads several tables; this one must hold all that the model needs"
    yield f"  source: {on_one_line(called.source)}"
    if decided.target is not None and found.target is not None:
        yield f"  # line {found.target.line}"
        yield f"  target: {on_one_line(decided.target)}"
    else:
        taken = f"the script has {found.target.name!r}, the table not" if found.target else "it was not found"
        yield f"  # check: fill in the column to predict; {on_a_line(taken)}. There are:"
        yield f"  # {on_a_line(', '.join(table))}"
        yield f"  target: {FILL_IN}"
    if decided.time:
        others = [name for name in decided.times() if name != decided.time]
        also = f" There are others: {on_a_line(', '.join(others))}" if others else ""
        yield f"  # check: does it say when a row happened?{also}"
        yield f"  time: {on_one_line(decided.time)}"
    elif texts := [name for name, look in table.items() if look.time_as_text]:
        yield f"  # check: times that are written as text cannot be `time`: {on_a_line(', '.join(texts))}"
        yield "  # Store them as timestamps or dates where the data is written, in CSV as 2024-05-26, and adopt again."
    if decided.key:
        yield "  # check: does it identify a row?"
        yield f"  key: {on_one_line(list(decided.key))}"
    if decided.dropped:
        yield "  # check: nothing is made of these"
        yield f"  drop: {on_one_line(decided.dropped)}"
    if called.grain or decided.time:
        yield f"  window: {called.grain or 'month'}"
    yield f"  schema: {called.pipeline}/schema.yaml"


def _prepare(decided: Decided, called: Called) -> Iterator[str]:
    found = decided.found
    prepare: dict[str, Any] = {}
    if decided.features:
        prepare["features"] = f"{called.pipeline}.features:build"
    if decided.preprocess is not None:
        prepare["preprocess"] = f"{called.pipeline}.features:preprocess"
    split: dict[str, Any] = {}
    by_group = found.group is not None and found.group in decided.table
    if by_group:
        split |= {"by": "group", "group": found.group}
    test = found.test / called.rows if isinstance(found.test, int) and called.rows else found.test
    if test is not None and 0 < test < 1:
        split["test"] = round(test, 4)
    if split:
        prepare["split"] = split
    if found.split_line and decided.time and not found.ordered and not by_group:
        yield f"# check: line {found.split_line} splits at random. Here the newest rows are held out, as the model will"
        yield "# meet newer ones than it was trained on; `split: {by: random}` does as the script."
    elif found.ordered and not decided.time:
        yield f"# check: line {found.split_line} holds out the last rows; without a time column it is done at random"
    elif found.split_line and prepare:
        yield f"# line {found.split_line}"
    if prepare:
        yield f"prepare: {on_one_line(prepare)}"


def _train(decided: Decided, called: Called) -> Iterator[str]:
    found = decided.found
    if found.estimator is None:
        yield "  # check: fill in the model's class, such as sklearn.ensemble.HistGradientBoostingClassifier"
        yield f"  estimator: {FILL_IN}.{FILL_IN}"
        return
    yield f"  # line {found.line}"
    if found.function is not None:
        yield f"  function: {called.pipeline}.training:fit"
        return
    yield f"  estimator: {found.estimator}"
    if found.params:
        yield f"  params: {on_one_line(found.params)}"
    if found.seed is not None and found.seed >= 0:
        yield f"  seed: {found.seed}"


def features_file(decided: Decided, called: Called) -> str | None:
    """The module of ``build`` and ``preprocess``; None where there is neither."""
    if not decided.features and decided.preprocess is None:
        return None
    imports = {line for each in decided.features for line in each.imports}
    imports |= decided.preprocess.imports if decided.preprocess else set()
    imports |= {"import pandas as pd"} if decided.features else set()
    lines = [f'"""Features of {called.pipeline}, adopted from {called.script}."""', "", *_sorted(imports)]
    if decided.features:
        lines += [*_build(decided, called)]
    if decided.preprocess is not None:
        lines += [
            "",
            "",
            "def preprocess():",
            '    """Return what is learned from training rows only, not fitted yet."""',
        ]
        lines += [_cited(decided, called, line) for line in dict.fromkeys(step.lineno for step in decided.kept)]
        lines.append(f"    return {decided.preprocess.source}")
    return "\n".join(lines) + "\n"


def _build(decided: Decided, called: Called) -> Iterator[str]:
    yield from (
        "",
        "",
        "def build(frame: pd.DataFrame) -> pd.DataFrame:",
        '    """Return one row of features for each row of `frame`, each from its own row; the target is not there."""',
        "    frame = frame.copy()",
    )
    left_out = "# check: not taken over, as it may learn from other rows, which preprocess may"
    taken = [(each.line, each.source) for each in decided.features]
    for line, source in sorted([*taken, *((each.lineno, left_out) for each in decided.found.not_by_row)]):
        yield _cited(decided, called, line)
        yield f"    {source}"
    yield f"    return frame[{list(decided.inputs)!r}]"


def training_file(decided: Decided, called: Called) -> str | None:
    """The module of ``fit``; None where the declaration says all of the model."""
    made = decided.found.function
    if made is None:
        return None
    lines = [
        f'"""The model of {called.pipeline}, adopted from {called.script}."""',
        "",
        *_sorted(made.imports),
        "",
        "",
        "def fit(features, target, params):",
        '    """Return a model that is fitted on these rows; `params` are those of the declaration."""',
        f"    # {called.script}:{decided.found.line}",
        f"    model = {made.source}",
        "    return model.fit(features, target)",
    ]
    return "\n".join(lines) + "\n"


def _sorted(imports: Iterable[str]) -> list[str]:
    return sorted(imports, key=lambda line: (line.split()[1], line))


def _cited(decided: Decided, called: Called, line: int) -> str:
    return f"    # {called.script}:{line}: {on_a_line(decided.found.said(line))}"


def on_a_line(text: str) -> str:
    """A text that fits into a comment."""
    plain = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    return plain if len(plain) <= _WIDEST else f"{plain[: _WIDEST - 3]}..."
