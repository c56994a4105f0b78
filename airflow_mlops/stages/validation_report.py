"""What validation found, as JSON for programs and as a page for people.

Of the rows that break a rule the page shows a few values of the columns the rule is about, never a whole row.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from airflow_mlops.call.wire import Call
from airflow_mlops.spec.data_schema import DataSchema

if TYPE_CHECKING:
    from airflow_mlops.stages.validate_data import Result

_WORDS = {
    "ok": "holds",
    "warn": "broken: warns",
    "quarantine": "broken: rows set aside",
    "stop": "broken: stops the run",
    "not_judged": "not judged",
}
_ORDER = ("stop", "quarantine", "warn", "not_judged", "ok")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1f2937;
  background: #fff }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .6rem; vertical-align: top;
  border-bottom: 1px solid #e5e7eb } td.n { text-align: right; font-variant-numeric: tabular-nums }
code { background: #f3f4f6; padding: 0 .25rem; border-radius: 3px; overflow-wrap: anywhere }
.stop { color: #b91c1c } .quarantine { color: #b45309 } .warn { color: #a16207 } .ok { color: #15803d }
.not_judged { color: #6b7280 }
"""


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
    rules = sorted(report["rules"], key=lambda rule: _ORDER.index(rule["verdict"]))
    broken = [rule for rule in rules if rule["verdict"] != "ok"]
    verdict = _WORDS[report["verdict"]] if report["verdict"] != "ok" else "every rule holds"
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>Validation of {_text(call.pipeline)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Validation of {_text(call.pipeline)}{_text(window)}</h1>",
        f'<p>Verdict: <strong class="{report["verdict"]}">{verdict}</strong>. {report["rows"]:,} rows were read, '
        f"{report['quarantined']:,} set aside; {report['kept']:,} are held against the rules for all rows. "
        f"{len(rules)} rules were looked at, {len(broken)} of them have something to say.</p>",
    ]
    if not report["schema"]:
        lines.append(
            "<p>No schema is declared: only the target, the time column and infinite values are looked at.</p>"
        )
    lines += ["<h2>Rules</h2>", "<table>", "<tr><th>Rule<th>Verdict<th>Rows<th>What was found<th>Examples</tr>"]
    for rule in rules:
        count = "" if rule["broken"] is None else f"{rule['broken']:,}"
        lines.append(
            f'<tr><td>{_text(rule["rule"])}<td class="{rule["verdict"]}">{_WORDS[rule["verdict"]]}'
            f'<td class="n">{count}<td>{_text(rule["said"])}<td>{_examples(rule)}</tr>'
        )
    lines += ["</table>", "<h2>Columns</h2>", "<table>", "<tr><th>Column<th>Type<th>Nulls<th>Values</tr>"]
    for name, facts in report["columns"].items():
        values = ", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("type", "nulls"))
        lines.append(
            f'<tr><td>{_text(name)}<td>{_text(facts["type"])}<td class="n">{facts["nulls"]:,}<td>{_text(values)}</tr>'
        )
    lines += ["</table>", "</body></html>", ""]
    return "\n".join(lines)


def _examples(rule: dict[str, Any]) -> str:
    shown = [f"<code>{_text(value)}</code>" for value in rule["examples"]]
    rows = ", ".join(map(str, rule["rows"]))
    return " ".join(shown) + (f" (row {rows})" if rows else "")


def _text(value: Any) -> str:
    return html.escape(str(value))
