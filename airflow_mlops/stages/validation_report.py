"""What validation found, as JSON for programs and as a page for people.

Of the rows that break a rule the page shows a few values of the columns the rule is about, never a whole row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.wire import Call
from airflow_mlops.spec.data_schema import DataSchema
from airflow_mlops.stages.document import Badge, Block, Document, Section, Table, Text
from airflow_mlops.stages.document import as_html as rendered

if TYPE_CHECKING:
    from airflow_mlops.stages.validate_data import Result

_ORDER = ("stop", "quarantine", "warn", "not_judged", "ok")
_TITLES = {
    "stop": "What stops the run",
    "quarantine": "What sets rows aside",
    "warn": "What warns",
    "not_judged": "What was not judged",
    "ok": "Rules that hold",
}
_BADGES = {
    "stop": Badge("stops the run", False),
    "quarantine": Badge("rows set aside", False),
    "warn": Badge("warns", None),
    "ok": Badge("good", True),
}


def as_json(result: Result, schema: DataSchema | None) -> dict[str, Any]:
    """The report as plain JSON: every rule with what was found, and every column in a few numbers."""
    words = {each.verdict for each in result.checked}
    return {
        "verdict": next((word for word in _ORDER if word in words and word != "not_judged"), "ok"),
        "rows": result.rows,
        "kept": result.kept,
        "quarantined": result.rows - result.kept,
        "schema": schema is not None,
        "columns": result.columns,
        "rules": [each._asdict() for each in result.checked],
        "findings": [
            {"severity": each.verdict, "columns": list(each.columns), "what": each.said}
            for each in result.checked
            if each.said
        ],
    }


def as_html(report: dict[str, Any], call: Call) -> str:
    """The report as a page that runs no script and loads nothing."""
    window = f", window {call.window.key}" if call.window else ""
    rules = [(word, [rule for rule in report["rules"] if rule["verdict"] == word]) for word in _ORDER]
    found = [Section(f"{_TITLES[word]} ({len(those):,})", [_table(word, those)]) for word, those in rules if those]
    # What is broken comes first; the columns stand before the long list of rules that hold.
    place = len(found) - bool(rules[-1][1])
    found.insert(place, Section(f"Columns ({len(report['columns']):,})", [_columns(report)]))
    return rendered(Document(f"Validation of {call.pipeline}{window}", list(_lead(report)), found))


def _lead(report: dict[str, Any]) -> Iterator[Block]:
    broken = sum(rule["verdict"] not in ("ok", "not_judged") for rule in report["rules"])
    aside = f"{report['quarantined']:,} are set aside, and " if report["quarantined"] else ""
    goes_on = "none goes on" if report["verdict"] == "stop" else f"{report['kept']:,} go on"
    yield _BADGES[report["verdict"]]._replace(
        sentence=f"{report['rows']:,} rows were read; {aside}{goes_on}. "
        f"{broken:,} of {len(report['rules']):,} rules {'is' if broken == 1 else 'are'} broken."
    )
    if not report["schema"]:
        yield Text("No schema is declared: only the target, the time column and infinite values are looked at.")


def _table(word: str, rules: list[dict[str, Any]]) -> Table:
    if word == "ok":
        return Table(("Rule", "What was found"), [(rule["rule"], rule["said"]) for rule in rules], words=2)
    rows = [
        (rule["rule"], rule["said"], _examples(rule), "" if rule["broken"] is None else f"{rule['broken']:,}")
        for rule in rules
    ]
    return Table(("Rule", "What was found", "Such as", "Rows"), rows, words=3)


def _examples(rule: dict[str, Any]) -> str:
    """A few values that broke a rule, each with the number of its row in the data that was checked."""
    pairs = zip(rule["examples"] or ("",) * len(rule["rows"]), rule["rows"], strict=True)
    return "; ".join(f"{value} (row {row:,})".strip() for value, row in pairs)


def _columns(report: dict[str, Any]) -> Table:
    kept = max(1, report["kept"])
    rows = []
    for name, facts in report["columns"].items():
        values = f"{_shown(facts['min'])} to {_shown(facts['max'])}" if facts.get("min") is not None else ""
        if "distinct" in facts:
            values = f"{_shown(facts['distinct'])} different"
        if facts.get("infinite"):
            values += f", {facts['infinite']:,} infinite"
        rows.append((name, facts["type"], values, f"{facts['nulls']:,}", f"{facts['nulls'] / kept:.1%}"))
    return Table(("Column", "type", "values", "nulls", "of the rows"), rows, words=3)


def _shown(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
