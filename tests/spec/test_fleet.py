"""``for_each``: what one document makes, and how a mistake in it is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.errors import DeclarationError
from airflow_mlops.factory import load_dags
from airflow_mlops.spec import Pipeline, load_declarations
from airflow_mlops.spec.environment import merged
from airflow_mlops.spec.fleet import _filled, declaration_schema

SHARED = """name: churn_{country}
data: {source: "data/{country}/{window}.parquet", target: y, key: id}
train: {estimator: sklearn.dummy.DummyClassifier, params: {max_iter: 100, seed: 1}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "churn.yaml"


def load(file: Path, text: str) -> dict[str, Pipeline]:
    file.write_text(text)
    return {each.pipeline.name: each.pipeline for each in load_declarations(file)}


def problems(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(DeclarationError) as caught:
        load_declarations(file)
    return [problem.replace(str(file), file.name) for problem in caught.value.problems]


def test_each_member_becomes_a_pipeline_with_its_value_in_every_text(file: Path) -> None:
    fleet = load(file, SHARED + "for_each: {country: [de, 'no', 49]}\nowner: 'team-{country}'\ntags: ['{country}']\n")
    assert list(fleet) == ["churn_de", "churn_no", "churn_49"]
    assert fleet["churn_no"].data.source == "data/no/{window}.parquet"
    assert (fleet["churn_49"].owner, fleet["churn_49"].tags) == ("team-49", ("49",))
    assert {str(each.train.params) for each in fleet.values()} == {"{'max_iter': 100, 'seed': 1}"}


def test_several_placeholders_make_every_combination(file: Path) -> None:
    text = SHARED.replace("churn_{country}", "'{product}_{country}'")
    fleet = load(file, text + "for_each: {country: [de, fr], product: [a, b]}\n")
    assert list(fleet) == ["a_de", "b_de", "a_fr", "b_fr"]


def test_a_member_overrides_what_it_names_and_nothing_beside_it(file: Path) -> None:
    text = """for_each:
  - {country: de, train: {params: {max_iter: 300}}, schedule: "@daily"}
  - country: fr
    data: {drop: ['vat_{country}']}
    train: {params: {seed: null}}
  - country: it
"""
    fleet = load(file, SHARED + text)
    assert fleet["churn_de"].train.params == {"max_iter": 300, "seed": 1}
    assert fleet["churn_fr"].train.params == {"max_iter": 100, "seed": None}
    assert fleet["churn_it"].train.params == {"max_iter": 100, "seed": 1}
    assert (fleet["churn_de"].schedule, fleet["churn_fr"].schedule) == ("@daily", None)
    assert (fleet["churn_fr"].data.drop, fleet["churn_fr"].data.key) == (("vat_fr",), ("id",))


def test_a_member_is_the_pipeline_that_one_would_have_written(file: Path) -> None:
    (one,) = load(file, SHARED.replace("{country}", "de")).values()
    assert load(file, SHARED + "for_each: {country: [de]}\n")["churn_de"] == one


@pytest.mark.parametrize(
    ("for_each", "problem"),
    [
        ("{}", "churn.yaml:4: for_each holds {}; allowed: a map such as {country: [de, fr]}, or a list of members"),
        ("de", "churn.yaml:4: for_each holds 'de'; allowed: "),
        ("[de]", "churn.yaml:4: a member is 'de'; allowed: a map such as {country: de}"),
        ("{country: de}", "churn.yaml:4: 'country' holds 'de'; allowed: a list of values: [de, fr]"),
        (
            "{country: [de,\n no]}",
            "churn.yaml:5: 'country' is read as False; allowed: a text or an integer; try: quote it: 'no'",
        ),
        ("[{country: 1.10}]", "churn.yaml:4: 'country' is read as 1.1; allowed: a text or an integer"),
        (
            "[{country: de, trian: {}}]",
            "churn.yaml:4: 'trian' is no key of a pipeline, so it is a placeholder, which cannot hold a dict; allowed",
        ),
        ("{window: [a]}", "churn.yaml:4: 'window' stands for the run's window"),
        ("{'a b': [a]}", "churn.yaml:4: 'a b' is no name; allowed: a name of letters, digits and _"),
        (
            "\n- {country: de}\n- {land: fr}",
            "churn.yaml:6: a member has the placeholders land, and the first one has country; try: give every member",
        ),
        (
            "{country: [de, de]}",
            "churn.yaml:1: two members of for_each have the name 'churn_de'; try: write placeholders into the name",
        ),
        (
            "\n- {country: de}\n- {country: fr, name: churn_de}",
            "churn.yaml:6: two members of for_each have the name 'churn_de'",
        ),
        (
            "{{country: [{}]}}".format(", ".join(f"c{n}" for n in range(1001))),
            "churn.yaml:4: it makes 1001 pipelines; allowed: at",
        ),
    ],
)
def test_a_mistake_in_the_list_is_told_with_its_line(file: Path, for_each: str, problem: str) -> None:
    (found,) = problems(file, f"{SHARED}for_each: {for_each}\n")
    assert found.startswith(problem)


def test_a_shared_mistake_is_told_once_and_a_member_s_own_with_its_name(file: Path) -> None:
    text = "retries: -1\nfor_each:\n  - country: de\n  - country: fr\n    train:\n      windows: {last: 0}\n"
    shared, own = problems(file, SHARED + text)
    assert shared == (
        "churn.yaml:4: pipeline 'churn_de': retries is -1: input should be greater than or equal to 0 "
        "(and in 1 more of its for_each)"
    )
    assert own.startswith("churn.yaml:9: pipeline 'churn_fr', stage 'train': train.windows.last is 0: ")


def test_what_only_wiring_shows_is_told_the_same_way(file: Path) -> None:
    text = "evaluate: {metrics: [rocauc]}\nfor_each:\n  - country: de\n  - country: fr\n    evaluate: {metrics: [r]}\n"
    file.write_text(SHARED + text + "  - country: it\n")
    with pytest.raises(DeclarationError) as caught:
        load_dags(str(file), {})
    first, second = caught.value.problems
    assert ":4: pipeline 'churn_de'" in first and first.endswith("(and in 1 more of its for_each)")
    assert ":8: pipeline 'churn_fr', stage 'evaluate': there is no metric 'r'" in second


def test_members_stand_beside_other_documents(file: Path) -> None:
    text = SHARED + "for_each: {country: [de, fr]}\n---\n" + SHARED.replace("{country}", "de")
    file.write_text(text)
    with pytest.raises(DeclarationError, match=r":6: pipeline 'churn_de': the name is taken in .*churn.yaml:1"):
        load_dags(str(file), {})


def test_a_dag_for_every_member(file: Path) -> None:
    file.write_text(SHARED + "for_each: {country: [de, fr]}\n")
    dags = load_dags(str(file), {})
    each = ("monitor", "predict", "rollback", "train")
    assert sorted(dags) == [f"churn_{c}.{what}" for c in ("de", "fr") for what in each]
    assert "source: data/de/{window}.parquet" in str(dags["churn_de.train"].doc_md)


def test_the_json_schema_knows_it(file: Path) -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(declaration_schema())
    body = {
        "name": "churn_{country}",
        "data": {"source": "a", "target": "y"},
        "train": {"estimator": "a.B"},
    }
    validator.validate({**body, "for_each": {"country": ["de", 49]}})
    validator.validate({**body, "for_each": [{"country": "de", "schedule": "@daily"}]})
    assert not validator.is_valid({**body, "for_each": {"country": "de"}})
    assert not validator.is_valid({**body, "for_each": []})


texts = st.text("abc{}xy ", max_size=20)
values = st.dictionaries(st.sampled_from(["a", "b", "xy"]), st.text("ab{}", max_size=4), min_size=1)


@given(texts, values)
def test_a_value_is_put_in_as_it_is(text: str, named: dict[str, str]) -> None:
    filled = _filled({"k": [text, 1, None]}, named)["k"]
    assert filled[1:] == [1, None]
    # Split at the placeholders: what is between them stays, and no value is looked into again.
    parts = re.split("(" + "|".join(re.escape(f"{{{name}}}") for name in sorted(named)) + ")", text)
    assert filled[0] == "".join(named.get(part[1:-1], part) if part.startswith("{") else part for part in parts)


trees = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)


@given(trees, trees)
def test_merging_keeps_what_is_not_overridden(shared: object, own: object) -> None:
    once = merged(shared, own)
    assert merged(once, own) == once
    assert merged(shared, {}) == (shared if isinstance(shared, dict) else {})
    if isinstance(shared, dict) and isinstance(own, dict):
        assert once.keys() == shared.keys() | own.keys()
        assert all(once[key] == shared[key] for key in shared.keys() - own.keys())
    else:
        assert once == own
