"""The model card: what a reader must know before they trust a model, made from the run's own evidence and nothing else.

The form follows Mitchell et al., Model cards for model reporting, FAT* 2019. It is written by the evaluation, and again
by the gate with its verdict, over what was there: equal evidence gives equal bytes, so a retry changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from airflow_mlops.call.store import Store
from airflow_mlops.call.wire import Call
from airflow_mlops.errors import StoreError, StoreUnreachableError
from airflow_mlops.registry.mlflow_api import Logged
from airflow_mlops.registry.models import CARD, CARD_TAG, ModelRegistry
from airflow_mlops.registry.requests import Requests
from airflow_mlops.spec.metrics import METRICS
from airflow_mlops.stages.document import (
    Badge,
    Block,
    Bullets,
    Code,
    Document,
    Facts,
    Figure,
    Heading,
    Link,
    Section,
    Table,
    Text,
    as_html,
    as_markdown,
)

log = logging.getLogger(__name__)

_MOST_COLUMNS = 60
_MOST_CLASSES = 12
_NONE = "\N{EN DASH}"

_FIGURES = {
    "roc": "ROC",
    "precision_recall": "Precision and recall",
    "confusion": "Confusion",
    "calibration": "Calibration",
    "predictions": "Predicted and true",
    "residuals": "Residuals",
    "residuals_by_prediction": "Residuals by prediction",
    "slices": "Slices",
    "importance": "Permutation importance",
}
"""What each plot shows; the names of the files that `airflow_mlops.stages.plots` draws."""
_DIFFERENCES = {
    "selection_rate_difference": "predicted positive (demographic parity)",
    "tpr_difference": "positives found (equal opportunity)",
    "fpr_difference": "negatives called positive",
    "accuracy_difference": "predicted right",
    "mae_difference": "mean absolute error",
    "mean_error_difference": "mean of true minus predicted",
}


class Lineage(NamedTuple):
    """Where a model comes from, and where more can be seen."""

    model: str
    version: str | None
    version_url: str | None
    run: str
    run_id: str
    run_url: str | None
    requests: tuple[str, ...]
    """The retrain requests that led here, in words."""


def log_card(
    call: Call,
    store: Store,
    registry: ModelRegistry,
    evaluation: Mapping[str, Any],
    *,
    run_id: str,
    version: str | None,
    decision: Mapping[str, Any] | None = None,
) -> str:
    """Write the card to the MLflow run, as HTML and Markdown, and name it in the version's tag ``mlops.model_card``.

    Args:
        call: whose run it is.
        store: where the evaluation's plots are.
        registry: where the card is logged.
        evaluation: the evaluation's own JSON.
        run_id: the MLflow run that has logged the model.
        version: the model's version, where it is registered already.
        decision: the gate's own JSON, once it has spoken.

    Returns:
        Where a browser sees the card, or its URI where MLflow has no server.
    """
    requests = Requests(store, registry.ref.model)
    claimed = [recorded for each in requests.claimed_by(call.run) if (recorded := requests.find(each))]
    lineage = Lineage(
        model=registry.ref.model,
        version=version,
        version_url=registry.version_url(version) if version else None,
        run=call.run,
        run_id=run_id,
        run_url=registry.run_url(run_id),
        requests=tuple(f"{each.request.id}: {each.request.reason}" for each in claimed),
    )
    card = card_of(evaluation, decision, registry.api.logged(run_id), lineage, _plots(evaluation, store))
    registry.api.log_text(run_id, CARD, as_html(card))
    registry.api.log_text(run_id, CARD.replace(".html", ".md"), as_markdown(card))
    where = registry.run_url(run_id, CARD) or f"runs:/{run_id}/{CARD}"
    if version:
        registry.api.tag_version(registry.ref.model, version, {CARD_TAG: where})
    return where


def _plots(evaluation: Mapping[str, Any], store: Store) -> dict[str, bytes]:
    """The plots that the evaluation has made; one that is lost keeps no model from its gate."""
    found = {}
    for name, digest in evaluation["plots"].items():
        try:
            found[name] = store.fetch(store.ref("plot", digest, ".png")).read_bytes()
        except StoreUnreachableError:
            raise
        except StoreError as error:
            log.warning("the card goes without the plot %s: %s", name, error)
    return found


def card_of(
    evaluation: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
    run: Logged,
    lineage: Lineage,
    plots: Mapping[str, bytes],
) -> Document:
    """The card as a document.

    Args:
        evaluation: the evaluation's own JSON.
        decision: the gate's own JSON, or None before it has spoken.
        run: the MLflow run that the model was trained in.
        lineage: where the model comes from.
        plots: PNG files by their name.
    """
    declared = yaml.safe_load(evaluation["evidence"]["declaration"] or "") or {}
    name = f"{lineage.model} version {lineage.version}" if lineage.version else lineage.model
    lead: list[Block] = [
        _verdict_badge(decision),
        Facts(
            [
                ("Predicts", f"{evaluation['evidence']['target']} ({evaluation['task']})"),
                *([("Owner", str(declared["owner"]))] if declared.get("owner") else []),
                ("Window", evaluation["evidence"]["window"] or "all rows"),
                ("Trained by", Link(lineage.run, None)),
                ("MLflow run", Link(lineage.run_id, lineage.run_url)),
                *([("Version", Link(lineage.version, lineage.version_url))] if lineage.version else []),
            ]
        ),
    ]
    if declared.get("description"):
        lead.insert(0, Text(str(declared["description"])))
    parts = [
        ("The gate", _gate(decision)),
        ("Metrics", _metrics(evaluation, plots)),
        ("Calibration", _calibration(evaluation, plots)),
        ("Residuals", _residuals(evaluation, plots)),
        ("Slices", _slices(evaluation, plots)),
        ("Fairness", _fairness(evaluation)),
        ("What the model looks at", _importance(evaluation, plots)),
        ("Limits", _limits(evaluation)),
        ("Data", _data(evaluation, declared)),
        ("Training", _training(evaluation, run)),
        ("Lineage", _lineage(evaluation, decision, lineage)),
        ("Declaration", [Code(evaluation["evidence"]["declaration"])] if declared else []),
    ]
    sections = [Section(title, blocks) for title, found in parts if (blocks := list(found))]
    return Document(f"Model card: {name}", lead, sections)


def _verdict_badge(decision: Mapping[str, Any] | None) -> Badge:
    if decision is None:
        return Badge("not judged yet", None, "The gate has not spoken.")
    passed = decision["status"] in ("ok", "warn")
    word = {"insufficient_data": "not comparable"}.get(decision["status"], "passed" if passed else "rejected")
    return Badge(word, passed, "; ".join(map(_sentence, decision["reasons"])))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _gate(decision: Mapping[str, Any] | None) -> Iterator[Block]:
    if decision is None:
        return
    params, comparison = decision["params"], decision["comparison"]
    limits = [
        *(
            [name, number(decision["measured"].get(name)), f"at least {least:g}"]
            for name, least in params["min"].items()
        ),
        *([name, number(decision["measured"].get(name)), f"at most {most:g}"] for name, most in params["max"].items()),
    ]
    if limits:
        yield Table(("Limit", "measured", "asked for"), limits)
    if comparison:
        yield Text(
            f"Compared with champion {decision['champion']} on {comparison['rows']:,} held-out rows that neither has "
            f"seen, by a paired bootstrap. A gain above 0 is better, whichever way the metric points."
        )
        yield Table(
            ("Metric", "this model", "champion", "gain", f"gain with {comparison['confidence']:.0%} confidence"),
            [
                (
                    comparison["metric"],
                    number(comparison["challenger"]),
                    number(comparison["champion"]),
                    f"{comparison['gain']:+.4f}",
                    f"at least {comparison['lower']:+.4f}",
                )
            ],
        )
    if not limits and not comparison:
        yield Bullets([_sentence(reason) for reason in decision["reasons"]])


def _figures(plots: Mapping[str, bytes], *names: str) -> Iterator[Block]:
    for name in names:
        if name in plots:
            yield Figure(_FIGURES[name], f"plots/{name}.png", plots[name])


def _metrics(evaluation: Mapping[str, Any], plots: Mapping[str, bytes]) -> Iterator[Block]:
    yield Text(f"On {evaluation['rows']:,} held-out rows, with 95% confidence intervals that take rows as independent.")
    rows = []
    for name in _primary_first(evaluation, evaluation["metrics"]):
        value = evaluation["metrics"][name]
        way = "more is better" if METRICS[name].more_is_better else "less is better"
        primary = ", primary" if name == evaluation["primary"] else ""
        rows.append(
            (f"{name} ({way}{primary})", number(value), _bounds(*(evaluation["intervals"][name] or (None, None))))
        )
    yield Table(("Metric", "value", "95% interval"), rows)
    yield from _figures(plots, "roc", "precision_recall", "confusion", "predictions")
    classes = [str(each) for each in evaluation["classes"]]
    if "confusion" not in plots and evaluation["confusion"] and len(classes) <= _MOST_CLASSES:
        yield Heading("Confusion: true classes down, predicted ones across")
        yield Table(
            ("", *classes),
            [
                (name, *(f"{count:,}" for count in counts))
                for name, counts in zip(classes, evaluation["confusion"], strict=True)
            ],
        )


def _primary_first(evaluation: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != evaluation["primary"], name))


def _calibration(evaluation: Mapping[str, Any], plots: Mapping[str, bytes]) -> Iterator[Block]:
    found = evaluation["calibration"]
    if found is None:
        return
    yield Text(
        f"Whether things happen as often as the model says, for {found['of']}: the expected calibration error is "
        f"{number(found['ece'])}, and the Brier score {number(found['brier'])}."
    )
    yield from _figures(plots, "calibration")
    yield Table(
        ("Rows", "predicted", "happened", "95% interval"),
        [
            (
                f"{each['rows']:,}",
                number(each["predicted"]),
                number(each["observed"]["value"]),
                _bounds(each["observed"]["low"], each["observed"]["high"]),
            )
            for each in found["bins"]
        ],
        words=0,
    )


def _residuals(evaluation: Mapping[str, Any], plots: Mapping[str, bytes]) -> Iterator[Block]:
    found = evaluation["residuals"]
    if found is None:
        return
    mean = found["mean"]
    yield Text(
        f"True minus predicted: {number(mean['value'])} on average, 95% interval {_bounds(mean['low'], mean['high'])}, "
        f"with a standard deviation of {number(found['standard_deviation'])}."
    )
    yield Table(
        [f"{float(share):.0%}" for share in found["quantiles"]],
        [[number(value) for value in found["quantiles"].values()]],
        words=0,
    )
    yield from _figures(plots, "residuals", "residuals_by_prediction")


def _slices(evaluation: Mapping[str, Any], plots: Mapping[str, bytes]) -> Iterator[Block]:
    yield from _figures(plots, "slices")
    for column, entries in evaluation["slices"].items():
        names = _primary_first(evaluation, {name for entry in entries for name in entry["metrics"]})
        yield Heading(column)
        rows = []
        for entry in entries:
            cells = []
            for name in names:
                each = entry["metrics"].get(name)
                cells.append(f"{number(each['value'])} {_bounds(each['low'], each['high'])}" if each else _NONE)
            rows.append((entry["value"], f"{entry['rows']:,}", *cells))
        yield Table(("Value", "rows", *names), rows)


def _fairness(evaluation: Mapping[str, Any]) -> Iterator[Block]:
    if not evaluation["fairness"]:
        return
    yield Text(
        "Each difference is between the value with the most and the value with the least. "
        "An interval that holds 0 says that the difference may be chance."
    )
    for column, differences in evaluation["fairness"].items():
        yield Heading(column)
        rows = []
        for name in (name for name in _DIFFERENCES if name in differences):
            found = differences[name]
            if found["value"] is None:
                rows.append((name, _DIFFERENCES[name], _NONE, _NONE, "fewer than two values have enough rows"))
                continue
            most, least = (
                f"{found[end]} ({number(found['groups'][found[end]]['value'])})" for end in ("most", "least")
            )
            rows.append(
                (
                    name,
                    _DIFFERENCES[name],
                    number(found["value"]),
                    _bounds(found["low"], found["high"]),
                    f"{most}, {least}",
                )
            )
        yield Table(("Difference", "of", "value", "95% interval", "most, least"), rows, words=2)


def _importance(evaluation: Mapping[str, Any], plots: Mapping[str, bytes]) -> Iterator[Block]:
    found = evaluation["importance"]
    if found is None or "problem" in found:
        return
    yield Text(
        f"How much worse {found['metric']} gets when the values of one raw column are shuffled: the mean of "
        f"{found['repeats']} shuffles on {found['rows']:,} held-out rows. Columns that say the same thing share their "
        "importance."
    )
    yield from _figures(plots, "importance")
    shown = found["columns"][:_MOST_COLUMNS]
    yield Table(
        ("Column", "importance", "standard deviation"),
        [(each["column"], number(each["mean"]), number(each["deviation"])) for each in shown],
    )
    if len(found["columns"]) > len(shown):
        yield Text(f"{len(found['columns']) - len(shown)} further columns matter less.")


def limits_of(evaluation: Mapping[str, Any]) -> list[str]:
    """What the evidence does not say, in sentences."""
    found = [f"Data validation warned: {each}." for each in evaluation["evidence"]["warnings"]]
    for column, entries in evaluation["slices"].items():
        small = [f"{entry['value']} ({entry['rows']})" for entry in entries if "note" in entry]
        if small:
            found.append(f"Too few rows to be measured, in {column}: {', '.join(small)}.")
        for entry in entries:
            for why in entry.get("undefined", {}).values():
                found.append(f"Where {column} is {entry['value']}: {why}.")
    for column, differences in evaluation["fairness"].items():
        for name, each in differences.items():
            if each["left_out"]:
                found.append(f"Not compared by {name}, for too few rows, in {column}: {', '.join(each['left_out'])}.")
    missing = [name for name, bounds in evaluation["intervals"].items() if bounds is None]
    if missing:
        found.append(f"The rows tell no interval for {', '.join(missing)}.")
    importance = evaluation["importance"]
    if importance is None:
        found.append("Permutation importance was not asked for.")
    elif "problem" in importance:
        found.append(f"Permutation importance is not measured: {importance['problem']}.")
    if evaluation["task"] != "regression" and evaluation["calibration"] is None:
        found.append("The model gives no probabilities, so its calibration is not known.")
    return found


def _limits(evaluation: Mapping[str, Any]) -> Iterator[Block]:
    found = limits_of(evaluation)
    found.append(
        "Intervals take rows as independent; where rows of one day or one customer resemble each other, "
        "they are too narrow."
    )
    yield Bullets(found)


def _data(evaluation: Mapping[str, Any], declared: Mapping[str, Any]) -> Iterator[Block]:
    evidence = evaluation["evidence"]
    rows = [
        (name, each["digest"], _NONE if each["rows"] is None else f"{each['rows']:,}")
        for name, each in {**evidence["inputs"], "test": evidence["test"]}.items()
    ]
    yield Table(("Rows", "digest", "count"), rows, words=2)
    facts = [("Window", evidence["window"] or "all rows")]
    for title, where in (("Source", ("data", "source")), ("Time column", ("data", "time"))):
        value = _at(declared, *where)
        facts += [(title, str(value))] if value else []
    last = _at(declared, "train", "windows", "last")
    facts += [("Windows read", str(last))] if last else []
    split = _at(declared, "prepare", "split")
    if isinstance(split, Mapping):
        facts.append(("Split", ", ".join(f"{key} {value}" for key, value in split.items() if value is not None)))
    yield Facts(facts)
    yield Heading(f"The {len(evidence['columns'])} raw columns that the model takes")
    shown = list(evidence["columns"].items())[:_MOST_COLUMNS]
    yield Table(("Column", "type"), shown, words=2)
    if len(evidence["columns"]) > len(shown):
        yield Text(f"and {len(evidence['columns']) - len(shown)} more")


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _training(evaluation: Mapping[str, Any], run: Logged) -> Iterator[Block]:
    evidence = evaluation["evidence"]
    measured = [
        (name, number(run.metrics[name])) for name in ("train_rows", "features", "fit_seconds") if name in run.metrics
    ]
    if run.params or measured:
        yield Table(("Param", "value"), [*sorted(run.params.items()), *measured], words=2)
    yield Facts([("Code", evidence["code"] or "installed libraries"), ("Python", evidence["python"] or "unknown")])
    yield Bullets(evidence["requirements"])


def _lineage(evaluation: Mapping[str, Any], decision: Mapping[str, Any] | None, lineage: Lineage) -> Iterator[Block]:
    champion = evaluation["champion"]
    yield Facts(
        [
            ("Model", evaluation["model"]),
            ("Held against", f"champion {champion}" if champion else "no champion"),
            ("Scored rows", evaluation["predictions"]),
            *([("Evaluation", decision["evaluation"])] if decision else []),
            ("Run", lineage.run),
            *((("Answers request", each)) for each in lineage.requests),
        ]
    )


def number(value: float | None) -> str:
    """A number as a reader wants it: four decimals of a small one, few of a great one."""
    if value is None:
        return _NONE
    if float(value).is_integer() and abs(value) >= 10:
        return f"{value:,.0f}"
    size = abs(value)
    if 0 < size < 0.00005:
        return f"{value:.0e}"
    return f"{value:,.4f}" if size < 100 else f"{value:,.1f}"


def _bounds(low: float | None, high: float | None) -> str:
    return _NONE if low is None or high is None else f"[{number(low)}, {number(high)}]"
