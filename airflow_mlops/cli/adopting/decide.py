"""What the declaration says, decided from what a script shows and what the table looks like."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from airflow_mlops.cli.adopting.code import Feature, Rebuilt, rebuilt
from airflow_mlops.cli.adopting.findings import Check, Found
from airflow_mlops.cli.adopting.names import Names, Unknown
from airflow_mlops.spec.metrics import Task

if TYPE_CHECKING:
    from airflow_mlops.stages.column_looks import Look

_KEY_LIKE = re.compile(r"(?i:(^|[_-])(id|key|uuid|guid|no|nr|number)$)|[a-z](Id|ID|Key)$")
_NOT_WHEN = re.compile(r"(?i)birth|dob|born|expir|due|deadline")
_BY_NAME = re.compile(r"ColumnTransformer|make_column_transformer")
_TAKES_TEXTS = re.compile(r"Encoder|ColumnTransformer|make_column_transformer|Vectorizer|FeatureHasher")
_FILL = "SimpleImputer(strategy='median')"
_FILL_IMPORTS = frozenset({"from sklearn.impute import SimpleImputer"})


class Decided:
    """The columns' parts, the features that are kept, and the preprocessing.

    Args:
        found: what the script shows; questions that come up here go to its checks.
        names: the script's bindings.
        table: what the table's columns look like.
    """

    def __init__(self, found: Found, names: Names, table: Mapping[str, Look]) -> None:
        self.found, self.names, self.table = found, names, table
        named = found.target.name if found.target else None
        self.target = named if named in table else None
        self.spread = self._spread()
        """The table's columns that ``get_dummies`` spreads."""
        chosen = self._chosen()
        self.time = self._time()
        self.key = self._key(chosen)
        self.inputs = tuple(each for each in chosen if each not in (self.target, self.time, *self.key))
        """What the preprocessing sees: columns of the table, and those that the features add."""
        self.features = self._features()
        used = {*self.inputs, *(name for each in self.features for name in each.uses)}
        self.dropped = [name for name in table if name not in used and name not in (self.target, self.time, *self.key)]
        self.kept: list[ast.expr] = []
        """The script's expressions that the preprocessing is made of."""
        self.preprocess = self._preprocess()
        self.missing = [
            what for what, there in (("data.target", self.target), ("train.estimator", found.estimator)) if not there
        ]

    @property
    def task(self) -> Task | None:
        """What is predicted; None where it is not known yet."""
        if self.found.classifies is None or self.target is None:
            return None
        if not self.found.classifies:
            return "regression"
        return "binary" if self.table[self.target].distinct == 2 else "multiclass"

    def times(self) -> list[str]:
        """The columns that could say when a row happened."""
        whole = [
            name
            for name, look in self.table.items()
            if look.type in ("timestamp", "date") and not look.nulls and name != self.target
        ]
        return [name for name in whole if not _NOT_WHEN.search(name)]

    def _check(self, text: str, line: int = 0) -> None:
        self.found.checks.append(Check(line, text))

    def _spread(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for call in self.found.rows.spread if self.found.rows else ():
            given = {each.arg: each.value for each in call.keywords}
            try:
                listed = self.names.value(given["columns"])
            except (KeyError, Unknown):
                listed = [name for name, look in self.table.items() if look.type == "string"]
            found |= dict.fromkeys(each for each in listed if each in self.table) if isinstance(listed, list) else {}
        return tuple(found)

    def _chosen(self) -> Sequence[str]:
        """The columns that the script's model is fitted on: of the table, and made there."""
        rows, made = self.found.rows, [each.column for each in self.found.features]
        whole = list(dict.fromkeys([*self.table, *made]))
        if rows is None:
            if self.found.estimator is not None:
                self._check("which columns the model is fitted on was not understood: all but data.drop are taken")
            return whole
        chosen = [each for each in (whole if rows.columns is None else rows.columns) if each not in rows.dropped]
        made_of = {
            each: name for each in chosen if each not in whole for name in self.spread if each.startswith(f"{name}_")
        }
        if made_of:
            self._check(f"get_dummies makes {', '.join(made_of)}, and {', '.join({*made_of.values()})} is taken whole")
            chosen = list(dict.fromkeys(made_of.get(each, each) for each in chosen))
        lost = [each for each in chosen if each not in whole]
        if lost:
            self._check(f"neither in the table nor made of it row by row, and left out: {', '.join(lost)}")
        return [each for each in chosen if each not in lost]

    def _time(self) -> str | None:
        return min(self.times(), key=lambda name: name not in self.found.times, default=None)

    def _key(self, chosen: Sequence[str]) -> tuple[str, ...]:
        named = tuple(name for name in self.found.key if name in self.table and name != self.target)
        if named:
            return named
        selected = chosen if self.found.rows is not None and self.found.rows.columns is not None else ()
        for name, look in self.table.items():
            fits = look.type == "string" or (look.type == "integer" and _KEY_LIKE.search(name))
            if look.unique and fits and name != self.target and name not in selected:
                return (name,)
        return ()

    def _features(self) -> list[Feature]:
        """The statements that the inputs need, in their order."""
        wanted = set(self.inputs)
        kept = []
        for each in reversed(self.found.features):
            if each.column in wanted:
                kept.append(each)
                wanted |= each.uses
        return kept[::-1]

    def _raw(self, *kinds: str) -> list[str]:
        """The inputs that are columns of the table as they are, of these types."""
        made = {each.column for each in self.features}
        return [name for name in self.inputs if name not in made and self.table[name].type in kinds]

    def _preprocess(self) -> Rebuilt | None:
        """The script's transformers as one expression; None where the product's own default does it."""
        found = self.found
        encode = [name for name in self.inputs if name in self.spread]
        if found.rows is not None and found.rows.spread:
            self._check_spread(found.rows.spread, encode)
        if not found.steps:
            return self._default(encode)
        line = found.steps[0].lineno
        try:
            steps = [rebuilt(step, self.names) for step in found.steps]
        except Unknown:
            said = ", ".join(ast.unparse(step) for step in found.steps)
            self._check(f"not understood, so the default preprocessing takes its place: {said}", line)
            return self._default(encode)
        self.kept = [*(found.rows.spread if found.rows and encode else ()), *found.steps]
        text, gaps = " ".join(each.source for each in steps), self._gaps()
        texts = [name for name in self._raw("string") if name not in encode]
        if texts and not _TAKES_TEXTS.search(text):
            self._check(f"how texts are encoded was not understood, so OneHotEncoder does it: {', '.join(texts)}", line)
            encode += texts
        by_name = _BY_NAME.search(text) is not None
        if gaps and "Imput" not in text and not by_name:
            self._check_gaps(gaps, line)
            steps.insert(0, Rebuilt(_FILL, _FILL_IMPORTS))
        if encode:
            steps.insert(0, _one_hot(encode, "'passthrough'", by_name=by_name))
        if len(steps) == 1:
            return steps[0]
        imports = frozenset({"from sklearn.pipeline import make_pipeline"}).union(*(each.imports for each in steps))
        return Rebuilt(f"make_pipeline({', '.join(each.source for each in steps)})", imports)

    def _check_spread(self, calls: Sequence[ast.Call], encode: Sequence[str]) -> None:
        line = calls[0].lineno
        if not encode:
            self._check("get_dummies is left out, as nothing that it spreads is an input of the model", line)
            return
        what = "get_dummies is left to the preprocessing, which learns from training rows only"
        self._check(f"{what}: {', '.join(encode)}", line)
        if any(each.arg == "drop_first" for call in calls for each in call.keywords):
            self._check("get_dummies drops the first category, and here none is dropped", line)

    def _check_gaps(self, gaps: Sequence[str], line: int = 0) -> None:
        self._check(f"values that are missing are filled with the median here: {', '.join(gaps)}", line)

    def _gaps(self) -> list[str]:
        """The inputs of numbers with values that are missing."""
        return [name for name in self._raw("integer", "number") if self.table[name].nulls and name not in self.spread]

    def _default(self, encode: Sequence[str]) -> Rebuilt | None:
        """The default written out, where the product has none: beside a function, and for gaps among features."""
        gaps, texts = self._gaps(), self._raw("string", "boolean")
        numbers = [name for name in encode if name not in texts]
        if gaps:
            self._check_gaps(gaps)
        function = self.found.function is not None
        if not numbers and not (function and (texts or gaps)) and not (self.features and gaps):
            return None
        texts += numbers
        return _one_hot(texts, _FILL, _FILL_IMPORTS) if texts else Rebuilt(_FILL, _FILL_IMPORTS)


def _one_hot(
    columns: list[str], others: str, imports: frozenset[str] = frozenset(), *, by_name: bool = False
) -> Rebuilt:
    """One-hot encoding of columns; `others` is what is done to the rest. What follows may need columns `by_name`."""
    encode = "OneHotEncoder(handle_unknown='ignore', sparse_output=False)"
    names = ", verbose_feature_names_out=False).set_output(transform='pandas'" if by_name else ""
    return Rebuilt(
        f"ColumnTransformer([('texts', {encode}, {columns!r})], remainder={others}{names})",
        imports | {"from sklearn.compose import ColumnTransformer", "from sklearn.preprocessing import OneHotEncoder"},
    )
