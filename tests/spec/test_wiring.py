"""What only the whole shows: rules between the parts of a declaration, and between declarations."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import Declaration, load_declarations
from airflow_mlops.spec.metrics import Task
from airflow_mlops.spec.wiring import check, check_all, possible_tasks, problems_of

LEAST = "name: {name}\ndata: {{source: rows.parquet, target: y}}\ntrain: {{estimator: sklearn.dummy.DummyClassifier}}\n"
WINDOWED = LEAST.replace("rows.parquet", "'rows/{{window}}.parquet'")


def declare(folder: Path, more: str = "", *, name: str = "churn", text: str = LEAST) -> Declaration:
    file = folder / f"{name}.yaml"
    file.write_text(text.format(name=name) + more + "\n")
    (declaration,) = load_declarations(file)
    return declaration


def told(folder: Path, more: str, family: str | None = None, text: str = LEAST) -> list[str]:
    found = problems_of(declare(folder, more, text=text), family)
    return [problem.removeprefix(f"{folder}/churn.yaml:") for problem in found]


@pytest.mark.parametrize(
    "more",
    [
        "",
        "task: regression\nevaluate: {metrics: [rmse, mae]}\nvalidate_model: {max: {rmse: 3}, min: {}}",
        "evaluate: {metrics: [roc_auc]}\nvalidate_model: {min: {roc_auc: 0.8}, versus_champion: {metric: roc_auc}}",
        "evaluate: {metrics: [f1, accuracy, log_loss]}\nvalidate_model: {max: {log_loss: 1}, min: {f1: 0.1}}",
        "validate_model: {min: {accuracy: 0.8}}",
        "prepare: {split: {by: group, group: shop}}",
        "evaluate: {fairness: [a.b]}\nvalidate_model: {max: {fairness.a.b.tpr_difference: 0.1}}",
        "task: regression\nevaluate: {fairness: sex}\nvalidate_model: {max: {fairness.sex.mae_difference: 3}}",
        "deploy: {allow_pickle: true}",
    ],
)
def test_a_sound_declaration_has_no_problems(tmp_path: Path, more: str) -> None:
    assert told(tmp_path, more) == []


@pytest.mark.parametrize(
    ("more", "start"),
    [
        (
            "evaluate: {metrics: [roc_auk]}",
            "4: pipeline 'churn', stage 'evaluate': there is no metric 'roc_auk'; allowed: roc_auc, ",
        ),
        (
            "task: regression\nevaluate:\n  metrics:\n  - rmse\n  - roc_auc",
            "8: pipeline 'churn', stage 'evaluate': the task 'regression' has no metric 'roc_auc'; "
            "allowed: rmse, mae, median_ae, mape, r2",
        ),
        (
            "evaluate: {metrics: [f1, f1_macro]}",
            "4: pipeline 'churn', stage 'evaluate': no task has both 'f1_macro' and f1; allowed: roc_auc, ",
        ),
        (
            "evaluate: {metrics: [f1]}\nvalidate_model: {min: {accuracy: 0.8}}",
            "5: pipeline 'churn', stage 'validate_model': the gate asks for 'accuracy', which is not evaluated; "
            "allowed: f1; try: add accuracy to evaluate.metrics",
        ),
        (
            "evaluate: {metrics: [f1]}\nvalidate_model: {versus_champion: {metric: mcc}}",
            "5: pipeline 'churn', stage 'validate_model': the gate asks for 'mcc', which is not evaluated",
        ),
        (
            "evaluate: {metrics: [log_loss]}\nvalidate_model:\n  min:\n    log_loss: 0.5",
            "7: pipeline 'churn', stage 'validate_model': less log_loss is better, so min does not protect it; "
            "try: validate_model.max",
        ),
        (
            "validate_model: {max: {fairness.sex.tpr_difference: 0.1}}",
            "4: pipeline 'churn', stage 'validate_model': the gate asks for differences between the values of 'sex', "
            "which are not measured; try: evaluate: {fairness: [sex]}",
        ),
        (
            "evaluate: {fairness: sex}\nvalidate_model: {min: {fairness.sex.tpr_difference: 0.1}}",
            "5: pipeline 'churn', stage 'validate_model': less tpr_difference is better, so min does not protect it; "
            "try: validate_model.max",
        ),
        (
            "evaluate: {fairness: sex}\nvalidate_model: {max: {fairness.sex.tpr_diff: 0.1}}",
            "5: pipeline 'churn', stage 'validate_model': there is no difference 'tpr_diff'; allowed: "
            "fairness.sex.selection_rate_difference, fairness.sex.tpr_difference, ",
        ),
        (
            "task: regression\nevaluate: {fairness: sex}\nvalidate_model: {max: {fairness.sex.tpr_difference: 0.1}}",
            "6: pipeline 'churn', stage 'validate_model': the task 'regression' has no difference 'tpr_difference'; "
            "allowed: fairness.sex.mae_difference, fairness.sex.mean_error_difference",
        ),
        (
            "evaluate: {fairness: sex}\nvalidate_model: {max: {fairness: 0.1}}",
            "5: pipeline 'churn', stage 'validate_model': there is no metric 'fairness'",
        ),
        (
            "validate_model: {max: {r2: 0.5}}",
            "4: pipeline 'churn', stage 'validate_model': more r2 is better, so max does not protect it; "
            "try: validate_model.min",
        ),
        (
            "validate_model: {min: {acuracy: 1}}",
            "4: pipeline 'churn', stage 'validate_model': there is no metric 'acur",
        ),
        ("prepare: {split: {by: time}}", "4: pipeline 'churn', stage 'prepare': a split by time needs a time column"),
        ("prepare: {split: {by: group}}", "4: pipeline 'churn', stage 'prepare': a split by group needs the group's"),
        ("prepare: {split: {group: g}}", "4: pipeline 'churn', stage 'prepare': a group without `by: group`"),
        ("train: {estimator: a.B, windows: {last: 3}}", "3: pipeline 'churn', stage 'train': several windows of data"),
        (
            "monitor: {windows: {last: 2}}",
            "4: pipeline 'churn', stage 'monitor': several windows of data that comes in",
        ),
        ("monitor: {schedule: '@daily'}", "4: pipeline 'churn', stage 'monitor': monitoring needs windows"),
        (
            "monitor: {data_drift: {columns: [a, y]}}",
            "4: pipeline 'churn', stage 'monitor': the target 'y' is not known when drift is judged",
        ),
        (
            "retrain: {triggers: [drift, {model: churn}]}",
            "4: pipeline 'churn', stage 'retrain': a promotion of 'churn' would retrain 'churn', for ever",
        ),
        (
            "retrain: {triggers: [{pubsub: wishes}]}",
            "4: pipeline 'churn', stage 'retrain': in which project the subscription 'wishes' is, is not declared; "
            "try: projects/P/subscriptions/wishes",
        ),
        (
            "train: {estimator: a.B, serialization: cloudpickle}\ndeploy: {}",
            "4: pipeline 'churn': no server loads a model that is written with cloudpickle",
        ),
        (
            "deploy: {rollback_on: {metric_drop: 0.1}}",
            "4: pipeline 'churn': a candidate's metric is known by labels only, and no labels are",
        ),
    ],
)
def test_parts_that_do_not_fit_are_told_by_line(tmp_path: Path, more: str, start: str) -> None:
    text = LEAST.rpartition("train:")[0] if more.startswith("train:") else LEAST
    found = told(tmp_path, more, text=text)
    assert len(found) == 1
    assert found[0].startswith(start)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("{source: a.csv, target: y, key: [id, y]}", "the target 'y' cannot be among data.key"),
        ("{source: a.csv, target: y, drop: y}", "the target 'y' cannot be among data.drop"),
        ("{source: a.csv, target: y, time: y}", "the target 'y' cannot be the time column"),
        ("{source: 'a/{date}.csv', target: y}", "'a/{date}.csv' holds an unknown placeholder; allowed: {window}"),
        (
            "{source: '{window}-{window.key}.csv', target: y}",
            "'{window}-{window.key}.csv' holds an unknown placeholder",
        ),
    ],
)
def test_data_that_contradicts_itself_is_told(tmp_path: Path, data: str, what: str) -> None:
    text = "name: {name}\n" + f"data: {data}\n".replace("{", "{{").replace("}", "}}") + "train: {{estimator: a.B}}\n"
    (problem,) = told(tmp_path, "", text=text)
    assert problem.startswith(f"2: pipeline 'churn', stage 'data': {what}")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    more = "evaluate: {metrics: [nope]}\nprepare: {split: {by: time}}\nmonitor: {schedule: '@daily'}"
    assert [line[0] for line in told(tmp_path, more)] == ["4", "5", "6"]


def test_a_known_estimator_settles_the_family_of_the_task(tmp_path: Path) -> None:
    assert told(tmp_path, "evaluate: {metrics: [rmse]}") == []
    (problem,) = told(tmp_path, "evaluate: {metrics: [rmse]}", "classifier")
    assert "stage 'evaluate': a classifier has no metric 'rmse'; allowed: roc_auc, " in problem
    problem, *_ = told(tmp_path, "task: regression", "classifier")
    assert problem.startswith(
        "4: pipeline 'churn': the task is 'regression', but sklearn.dummy.DummyClassifier is a clas"
    )
    assert told(tmp_path, "task: multiclass", "classifier") == []


@pytest.mark.parametrize(
    ("declared", "family", "tasks"),
    [
        ("multiclass", None, ("multiclass",)),
        (None, "classifier", ("binary", "multiclass")),
        (None, "regressor", ("regression",)),
        (None, None, ("binary", "multiclass", "regression")),
    ],
)
def test_the_declaration_leaves_tasks_open(
    tmp_path: Path, declared: str | None, family: str | None, tasks: tuple[Task, ...]
) -> None:
    pipeline = declare(tmp_path, f"task: {declared}" if declared else "").pipeline
    assert possible_tasks(pipeline, family) == tasks


def test_windows_let_a_pipeline_be_trained_and_watched_over_several(tmp_path: Path) -> None:
    pipeline = declare(tmp_path, "monitor: {schedule: '@daily', windows: {last: 3}}", text=WINDOWED).pipeline
    assert list(check(pipeline)) == []


KEYED = WINDOWED.replace("target: y", "target: y, key: id")


@pytest.mark.parametrize(
    "performance",
    [
        "{}",
        "{metric: accuracy}",
        "{labels: 'labels/{window}.csv', label_delay: 14d, drop: 0.05, min_labels: 50, confidence: 0.9}",
        "{labels: {connection: db, table: labels}}",
        "{labels: {connection: db, query: 'SELECT id, y FROM t WHERE at >= :start AND at < :end'}}",
    ],
)
def test_sound_labels_have_no_problems(tmp_path: Path, performance: str) -> None:
    more = "monitor: {prediction_drift: {consecutive: 2, within: 3}, performance: " + performance + "}"
    assert told(tmp_path, more, text=KEYED) == []


@pytest.mark.parametrize(
    ("text", "more", "start"),
    [
        (LEAST, "prediction_drift: {}", "predictions are watched by window, and the data comes in none; try: put"),
        (WINDOWED, "performance: {}", "labels are joined to predictions by key, and there is none; try: declare data."),
        (KEYED, "performance: {metric: auc}", "there is no metric 'auc'; allowed: roc_auc, "),
        (
            KEYED,
            "performance: {metric: mcc}",
            "'mcc' has no value at promotion, for it is not evaluated; allowed: ",
        ),
        (
            KEYED,
            "performance: {labels: 'labels/{date}.csv'}",
            "'labels/{date}.csv' holds an unknown placeholder; allowed: {window}",
        ),
        (
            KEYED,
            "performance: {labels: {connection: db, query: \"SELECT * FROM t WHERE m = '{window}'\"}}",
            "a query gets its window as parameters; allowed: :start, :end",
        ),
    ],
)
def test_what_cannot_be_watched_of_predictions_is_told_by_line(
    tmp_path: Path, text: str, more: str, start: str
) -> None:
    (problem,) = told(tmp_path, f"monitor:\n  {more}", text=text)
    assert problem.startswith(f"5: pipeline 'churn', stage 'monitor': {start}")


def test_a_metric_that_is_evaluated_may_be_watched_and_no_other(tmp_path: Path) -> None:
    more = "monitor: {performance: {metric: f1}}\nevaluate: {metrics: [mcc]}"
    (problem,) = told(tmp_path, more, text=KEYED)
    assert problem.startswith("4: pipeline 'churn', stage 'monitor': 'f1' has no value at promotion")
    assert problem.endswith("allowed: mcc; try: add f1 to evaluate.metrics")
    assert told(tmp_path, more.replace("f1", "mcc"), text=KEYED) == []


def test_labels_and_the_column_watched_are_checked_for_their_bounds(tmp_path: Path) -> None:
    for wrong, what in (
        ("performance: {min_labels: 3}", "min_labels"),
        ("performance: {confidence: 0.999}", "confidence"),
        ("performance: {drop: -1}", "drop"),
        ("prediction_drift: {consecutive: 3, within: 2}", "'within' must be at least 'consecutive'"),
        ("prediction_drift: {multivariate: true}", "multivariate"),
    ):
        with pytest.raises(DeclarationError, match=what):
            declare(tmp_path, f"monitor: {{{wrong}}}", text=KEYED)


def chain(folder: Path, **after: str) -> list[Declaration]:
    """Pipelines by name, each retrained after those that it names."""
    made = []
    for name, models in after.items():
        triggers = ", ".join(f"{{model: {model}}}" for model in models)
        made.append(declare(folder, f"retrain: {{triggers: [{triggers}]}}", name=name))
    return made


def test_a_name_is_taken_once_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    declarations = [declare(tmp_path), declare(tmp_path / "other"), declare(tmp_path, name="fraud")]
    assert list(check_all(declarations)) == [
        f"{tmp_path}/other/churn.yaml:1: pipeline 'churn': the name is taken in {tmp_path}/churn.yaml:1"
    ]


@pytest.mark.parametrize(
    ("after", "circles"),
    [
        ({"a": "b", "b": ""}, []),
        ({"a": "bc", "b": "d", "c": "d", "d": ""}, []),
        ({"a": "x"}, []),
        ({"a": "b", "b": "a"}, [("a.yaml:4", "a -> b -> a")]),
        ({"a": "b", "b": "c", "c": "a", "d": "a"}, [("a.yaml:4", "a -> b -> c -> a")]),
        ({"a": "b", "b": "a", "c": "d", "d": "c"}, [("a.yaml:4", "a -> b -> a"), ("c.yaml:4", "c -> d -> c")]),
    ],
)
def test_retraining_in_a_circle_over_several_files_is_told_once(
    tmp_path: Path, after: dict[str, str], circles: list[tuple[str, str]]
) -> None:
    found = list(check_all(chain(tmp_path, **after)))
    assert found == [
        f"{tmp_path}/{where}: pipeline '{where[0]}', stage 'retrain': retraining goes round in a circle: {way}; "
        "try: leave one of these triggers out"
        for where, way in circles
    ]


def test_a_pipeline_that_retrains_itself_is_no_circle_of_several(tmp_path: Path) -> None:
    assert list(check_all(chain(tmp_path, a="a"))) == []
