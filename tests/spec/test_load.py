"""YAML to a pipeline: every mistake at once, each with its line, what is allowed and what to do."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_mlops.errors import DeclarationError
from airflow_mlops.spec import Pipeline, dump_pipeline, load_declarations, load_pipeline
from airflow_mlops.spec.load import read_documents
from tests.spec.generated import BREAKS, MISREAD, letters, pipelines

LEAST = "name: churn\ndata: {source: rows.parquet, target: y}\ntrain: {estimator: sklearn.dummy.DummyClassifier}\n"

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "churn.yaml"


def problems(file: Path, text: str | bytes) -> list[str]:
    """What is wrong with a text, each without the folder it is in."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DeclarationError) as caught:
        load_declarations(file)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.removeprefix(f"{file.parent}/") for problem in caught.value.problems]


def load(file: Path, text: str) -> Pipeline:
    file.write_text(text, encoding="utf-8")
    return load_pipeline(file)


@one_folder
@given(pipelines)
def test_a_written_pipeline_reads_back_equal(file: Path, pipeline: Pipeline) -> None:
    again = load(file, dump_pipeline(pipeline))
    assert again == pipeline
    assert repr(again) == repr(pipeline), "equal, but of other types"


@pytest.mark.parametrize("text", MISREAD + BREAKS)
def test_a_text_that_yaml_misreads_is_written_so_that_it_does_not(file: Path, text: str) -> None:
    pipeline = load(file, LEAST)
    declared = pipeline.model_copy(update={"train": pipeline.train.model_copy(update={"params": {text: [text]}})})
    assert load(file, dump_pipeline(declared)).train.params == {text: [text]}


@one_folder
@given(st.data(), pipelines)
def test_an_unknown_key_is_reported_on_its_own_line(file: Path, data: st.DataObject, pipeline: Pipeline) -> None:
    quiet = pipeline.model_copy(update={"description": "", "tags": ()})
    lines = ["# a declaration", *dump_pipeline(quiet).splitlines()]
    keys = [number for number, line in enumerate(lines) if re.match(r"( {2})?[a-zA-Z_]+:( |$)", line)]
    place = data.draw(st.sampled_from(keys))
    indent = " " * (len(lines[place]) - len(lines[place].lstrip()))
    lines.insert(place, f"{indent}zzz: 1")
    found = problems(file, "\n".join(lines))
    assert len(found) == 1
    where = rf"churn\.yaml:{place + 1}: pipeline '{pipeline.name}'(, stage '\w+')?"
    assert re.match(rf"{where}: unknown key 'zzz'; allowed: ", found[0])


@one_folder
@given(letters | st.text("{}[]:,-&*a<!|>'\"# \n\t", max_size=30) | st.binary(max_size=12))
def test_any_text_is_a_pipeline_or_a_declaration_error(file: Path, text: str | bytes) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DeclarationError) as caught:
        load_pipeline(file)
    assert all(problem.startswith(str(file)) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("name: x\n\tdata: 1\n", "churn.yaml:2: not valid YAML: "),
        ("name: x\ndata: {source: a\n", "churn.yaml:3: not valid YAML: "),
        ("name: x\n  data: 1\n", "churn.yaml:2: not valid YAML: "),
        ("name: *other\n", "churn.yaml:1: not valid YAML: "),
        ("name: !!python/name:os.system x\n", "churn.yaml:1: not valid YAML: "),
        (LEAST + "retries: !!int many\n", "churn.yaml:4: not valid YAML: 'many' is no int"),
        (LEAST + "retries: 0x_\n", "churn.yaml:4: not valid YAML: '0x_' is no int"),
        (LEAST + "retries: !!bool perhaps\n", "churn.yaml:4: not valid YAML: 'perhaps' is no bool"),
        ("name: \a\n", r"churn.yaml: not valid YAML: the character '\x07' is not allowed"),
        ("name: " + "[" * 900 + "]" * 900, "churn.yaml: not valid YAML: it is nested too deeply"),
        ("name: é".encode("latin-1"), "churn.yaml: is not UTF-8 text; try: save it as UTF-8"),
        ("", "churn.yaml: is empty; allowed: a pipeline, which starts with 'name:'"),
        ("# nothing yet\n---\n", "churn.yaml: is empty"),
        ("- name: x\n", "churn.yaml:1: holds list; allowed: a mapping of apiVersion, name, "),
        (LEAST + "owner: a\nowner: b\n", "churn.yaml:5: the key 'owner' stands twice; try: keep one"),
        (LEAST + "on: 1\n", "churn.yaml:4: the key 'on' is read as bool True; allowed: text; try: quote it, 'on'"),
        (LEAST + "3: 1\n", "churn.yaml:4: the key '3' is read as int 3; allowed: text; try: quote it, '3'"),
        (LEAST + "? [a]\n: 1\n", "churn.yaml:4: a key is a list or a mapping; allowed: text"),
        (LEAST + "tags: &t [a, *t]\n", "churn.yaml:4: an alias refers to what it stands in; try: write the value out"),
        (LEAST + "evaluate: &e {metrics: *e}\n", "churn.yaml:4: an alias refers to what it stands in"),
    ],
)
def test_broken_yaml_is_told_by_its_line(file: Path, text: str | bytes, start: str) -> None:
    assert problems(file, text)[0].startswith(start)


def test_aliases_that_multiply_are_stopped(file: Path) -> None:
    levels = [f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = "\n".join(["train:", "  l0: &l0 [x]", *levels])
    (problem,) = problems(file, text)
    assert "more than 100000 values" in problem


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_pipeline(tmp_path / "nowhere.yaml")
    with pytest.raises(DeclarationError, match="cannot be read: Is a directory"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            "evaluate: {metric: [f1]}",
            "churn.yaml:4: pipeline 'churn', stage 'evaluate': unknown key 'metric'; "
            "allowed: metrics, slices, fairness, min_rows, importance_rows, plots; try: metrics",
        ),
        (
            "monitor:\n  data_drift:\n    fals_alarm_rate: 0.1",
            "churn.yaml:6: pipeline 'churn', stage 'monitor': unknown key 'fals_alarm_rate'; "
            "allowed: false_alarm_rate, min_effect, min_category_effect, min_rows, columns, consecutive, within, "
            "multivariate; try: false_alarm_rate",
        ),
        ("evaluate: {qqq: 1}", "churn.yaml:4: pipeline 'churn', stage 'evaluate': unknown key 'qqq'; "),
        (
            "task: binery",
            "churn.yaml:4: pipeline 'churn': task is 'binery'; "
            "allowed: 'binary', 'multiclass' or 'regression'; try: binary",
        ),
        (
            "retries: many",
            "churn.yaml:4: pipeline 'churn': retries is 'many': "
            "input should be a valid integer, unable to parse string as an integer",
        ),
        ("owner: 5", "churn.yaml:4: pipeline 'churn': owner is 5: input should be a valid string"),
        (
            "prepare: {split: {test: 1.5}}",
            "churn.yaml:4: pipeline 'churn', stage 'prepare': prepare.split.test is 1.5: input should be less than 1",
        ),
        (
            "prepare: {features: churn.build}",
            "churn.yaml:4: pipeline 'churn', stage 'prepare': prepare.features is 'churn.build', "
            "which does not have the right form; allowed: package.module:function",
        ),
        (
            "retry_delay: 24",
            "churn.yaml:4: pipeline 'churn': retry_delay: 24 is not a duration; "
            "write a number and a unit: 90s, 15m, 24h, 14d, 2w",
        ),
        (
            "retrain: {triggers: [drift, drfit]}",
            "churn.yaml:4: pipeline 'churn', stage 'retrain': retrain.triggers.1 is 'drfit'; "
            "allowed: 'drift', 'prediction_drift', 'performance' or 'skew'; try: drift",
        ),
        (
            'schedule: "@continuous"',
            "churn.yaml:4: pipeline 'churn': only monitoring can run '@continuous'; use a cron expression or a preset",
        ),
        (
            'monitor: {schedule: "@dayly"}',
            "churn.yaml:4: pipeline 'churn', stage 'monitor': monitor.schedule: '@dayly' is no schedule; allowed: "
            "a cron expression such as '0 6 * * 1', @hourly, @daily, @weekly, @monthly, @quarterly, @yearly, "
            "@continuous; try: '@daily'",
        ),
    ],
)
def test_a_mistake_says_where_what_and_what_is_allowed(file: Path, more: str, problem: str) -> None:
    found = problems(file, LEAST + more + "\n")
    assert len(found) == 1
    assert found[0] == problem or (problem.endswith("; ") and found[0].startswith(problem) and "; try:" not in found[0])


def test_what_is_missing_is_told_where_it_belongs(file: Path) -> None:
    assert problems(file, "\nname: churn\n\ndata:\n  source: a.csv\n") == [
        "churn.yaml:4: pipeline 'churn', stage 'data': 'data.target' is missing",
        "churn.yaml:2: pipeline 'churn': 'train' is missing",
    ]
    assert "churn.yaml:4: pipeline 'churn', stage 'retrain': 'retrain.triggers.0.model' is missing" in problems(
        file, LEAST + "retrain: {triggers: [{modle: x}]}\n"
    )


def test_the_model_is_one_of_estimator_and_function(file: Path) -> None:
    for train in ("{}", "{estimator: a.B, function: a:b}"):
        found = problems(file, f"name: churn\ndata: {{source: a, target: y}}\ntrain: {train}\n")
        assert found == [
            "churn.yaml:3: pipeline 'churn', stage 'train': give exactly one of 'estimator' and 'function'"
        ]


def test_all_mistakes_of_all_documents_come_at_once(file: Path) -> None:
    text = LEAST + "retries: -1\nfoo: 1\nbar: 2\nowner: a\nowner: b\n---\nname: two\n---\n" + LEAST
    lines = [int(problem.split(":")[1]) for problem in problems(file, text)]
    assert sorted(lines) == [4, 5, 6, 8, 10, 10]


def test_several_documents_are_several_pipelines(file: Path) -> None:
    file.write_text(LEAST + "---\n" + LEAST.replace("churn", "fraud") + "---\n")
    declarations = load_declarations(file)
    assert [declaration.pipeline.name for declaration in declarations] == ["churn", "fraud"]
    assert {declaration.base for declaration in declarations} == {str(file.parent)}
    with pytest.raises(DeclarationError, match=r"holds 2 pipelines: churn, fraud; try: load_declarations"):
        load_pipeline(file)


def test_numbers_are_numbers_and_all_else_is_text(file: Path) -> None:
    values = "{a: 1e-3, b: 1E5, c: .5e3, d: 2013-01-01, e: 2013-01-01 10:00:00, f: .inf, g: '1e-3', h: 1., i: true}"
    pipeline = load(file, LEAST.replace("Classifier}", f"Classifier, params: {values}}}"))
    assert list(pipeline.train.params.values()) == [
        0.001,
        100000.0,
        500.0,
        "2013-01-01",
        "2013-01-01 10:00:00",
        float("inf"),
        "1e-3",
        1.0,
        True,
    ]


def test_anchors_and_merged_keys_are_read_and_may_be_overridden(file: Path) -> None:
    text = LEAST + "monitor:\n  data_drift: {<<: &d {min_rows: 50, min_effect: 0.2}, min_rows: 60}\n"
    pipeline = load(file, text + "evaluate: {metrics: &m [f1], slices: *m}\n")
    assert (pipeline.monitor.data_drift.min_rows, pipeline.monitor.data_drift.min_effect) == (60, 0.2)
    assert pipeline.evaluate.slices == ("f1",)


def test_yaml_and_python_make_equal_pipelines(file: Path) -> None:
    from_yaml = load(
        file,
        LEAST
        + "schedule: '@weekly'\n"
        + "prepare: {features: churn.features:build, split: {by: time, test: 0.3}}\n"
        + "validate_model: {min: {f1: 0.8}, versus_champion: null}\n"
        + "retrain: {triggers: [drift, {model: geo}], cooldown: 24h}\n",
    )
    from_python = Pipeline(  # type: ignore[call-arg]
        name="churn",
        data={"source": "rows.parquet", "target": "y"},  # type: ignore[arg-type]
        train={"estimator": "sklearn.dummy.DummyClassifier"},  # type: ignore[arg-type]
        schedule="@weekly",
        prepare={"features": "churn.features:build", "split": {"by": "time", "test": 0.3}},  # type: ignore[arg-type]
        validate_model={"min": {"f1": 0.8}, "versus_champion": None},  # type: ignore[arg-type]
        retrain={"triggers": ["drift", {"model": "geo"}], "cooldown": "1d"},  # type: ignore[arg-type]
    )
    assert from_yaml == from_python


def test_a_mistake_in_python_is_told_as_one_in_yaml_is(tmp_path: Path) -> None:
    made = """from airflow_mlops import Pipeline
churn = Pipeline(
    name="churn",
    data={"source": "a.parquet", "target": "y", "tiem": "at"},
    train={"estimator": "sklearn.dummy.DummyClassifier"},
    retries=-1,%s
)
churn.dags()
"""
    (tmp_path / "churn.py").write_text(made % "")
    with pytest.raises(DeclarationError) as caught:
        runpy.run_path(str(tmp_path / "churn.py"))
    unknown, negative = caught.value.problems
    assert unknown.startswith(
        f"{tmp_path}/churn.py:2: pipeline 'churn', stage 'data': unknown key 'tiem'; allowed: source"
    )
    assert unknown.endswith("; try: time")
    assert negative.startswith(f"{tmp_path}/churn.py:2: pipeline 'churn': retries is -1: ")

    right = made.replace(', "tiem": "at"', "").replace("    retries=-1,", "    evaluate={'metrics': ['rocauc']},")
    (tmp_path / "churn.py").write_text(right % "")
    with pytest.raises(
        DeclarationError, match=r"churn.py:8: .*stage 'evaluate': there is no metric 'rocauc'.*try: roc_auc"
    ):
        runpy.run_path(str(tmp_path / "churn.py"))


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
    assert load_pipeline(file).name == "churn"
    assert problems(file, (LEAST + "foo: 1\n").replace("\n", "\r\n"))[0].startswith("churn.yaml:4:")


def test_a_document_knows_the_line_of_the_closest_thing(file: Path) -> None:
    file.write_text("a:\n  b:\n  - x\n  - c: 1\n")
    (document,) = read_documents(file)
    assert document.value == {"a": {"b": ["x", {"c": 1}]}}
    assert [document.line(path) for path in ((), ("a",), ("a", "b", 1, "c"), ("a", "b", 0, "z"), ("q",))] == [
        1,
        1,
        4,
        3,
        1,
    ]
