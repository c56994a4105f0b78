"""What the declaration says, decided from what a script shows and what the table looks like."""

from __future__ import annotations

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
_TAKES_TEXTS = re.compile(r"Encoder|ColumnTransformer|make_column_transformer|Vectorizer|FeatureHasher")


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
        chosen = self._chosen()
        self.time = self._time()
        self.key = self._key(chosen)
        self.inputs = tuple(each for each in chosen if each not in (self.target, self.time, *self.key))
        """What the preprocessing sees: columns of the table, and those that the features add."""
        self.features = self._features()
        used = {*self.inputs, *(name for each in self.features for name in each.uses)}
        self.dropped = [name for name in table if name not in used and name not in (self.target, self.time, *self.key)]
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

    def _chosen(self) -> Sequence[str]:
        """The columns that the script's model is fitted on: of the table, and made there."""
        rows, made = self.found.rows, [each.column for each in self.found.features]
        whole = list(dict.fromkeys([*self.table, *made]))
        if rows is None:
            if self.found.estimator is not None:
                self._check("which columns the model is fitted on was not understood: all but data.drop are taken")
            return whole
        chosen = [each for each in (whole if rows.columns is None else rows.columns) if each not in rows.dropped]
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
        found, texts = self.found, self._raw("string")
        gaps = [name for name in self._raw("integer", "number") if self.table[name].nulls]
        if found.rows is not None and found.rows.encoded:
            self._check("get_dummies is left to the preprocessing, which learns the categories from training rows only")
            return self._default(gaps)
        if not found.steps:
            return self._default(gaps)
        line = found.steps[0].lineno
        try:
            steps = [rebuilt(step, self.names) for step in found.steps]
        except Unknown:
            self._check("the preprocessing was not understood: the default takes its place", line)
            return self._default(gaps)
        text = " ".join(each.source for each in steps)
        if texts and not _TAKES_TEXTS.search(text):
            self._check(f"how texts are encoded was not understood, so the default does it: {', '.join(texts)}", line)
            return self._default(gaps)
        if gaps and "Imput" not in text and "ColumnTransformer" not in text:
            self._check(f"values that are missing are filled with the median here: {', '.join(gaps)}", line)
            fill = Rebuilt("SimpleImputer(strategy='median')", frozenset({"from sklearn.impute import SimpleImputer"}))
            steps.insert(0, fill)
        if len(steps) == 1:
            return steps[0]
        imports = frozenset({"from sklearn.pipeline import make_pipeline"}).union(*(each.imports for each in steps))
        return Rebuilt(f"make_pipeline({', '.join(each.source for each in steps)})", imports)

    def _default(self, gaps: Sequence[str]) -> Rebuilt | None:
        """The default written out, where the product has none: beside a function, and for gaps among features."""
        texts = self._raw("string", "boolean")
        function = self.found.function is not None
        if not (function and (texts or gaps)) and not (self.features and gaps):
            return None
        fill = "SimpleImputer(strategy='median')"
        imports = {"from sklearn.impute import SimpleImputer"}
        if not texts:
            return Rebuilt(fill, frozenset(imports))
        imports |= {"from sklearn.compose import ColumnTransformer", "from sklearn.preprocessing import OneHotEncoder"}
        encode = "OneHotEncoder(handle_unknown='ignore', sparse_output=False)"
        return Rebuilt(f"ColumnTransformer([('texts', {encode}, {texts!r})], remainder={fill})", frozenset(imports))
