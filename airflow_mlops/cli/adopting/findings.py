"""What a person is told of a script: what was found, and what to look at."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from airflow_mlops.cli.adopting.code import Feature, Rebuilt
from airflow_mlops.cli.adopting.rows import Column, Rows
from airflow_mlops.spec.metrics import METRICS, Task

_CLASSIFIERS = {
    "LabelPropagation", "LabelSpreading", "LinearDiscriminantAnalysis", "LinearSVC", "LogisticRegression",
    "LogisticRegressionCV", "NearestCentroid", "NuSVC", "Perceptron", "QuadraticDiscriminantAnalysis", "SVC",
}  # fmt: skip
_MULTICLASS = {"f1": "f1_macro", "f1_weighted": "f1_macro", "roc_auc": "roc_auc_ovr"}


class Check(NamedTuple):
    """What a person must look at, and the script's line."""

    line: int
    text: str


@dataclass
class Found:
    """What was found. Lines are the script's."""

    estimator: str | None = None
    line: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    function: Rebuilt | None = None
    """The estimator's constructor, where its arguments are more than plain values."""
    target: Column | None = None
    rows: Rows | None = None
    """What the model is fitted on."""
    steps: list[ast.expr] = field(default_factory=list)
    """The transformers, in their order."""
    lines: list[str] = field(default_factory=list)
    """The script."""
    features: list[Feature] = field(default_factory=list)
    not_by_row: list[ast.stmt] = field(default_factory=list)
    """Statements that assign to a column, and need more than the row itself."""
    test: float | int | None = None
    ordered: bool = False
    """Whether the newest rows, or the last ones, are held out."""
    group: str | None = None
    split_line: int = 0
    seed: int | None = None
    metrics: list[str] = field(default_factory=list)
    search: dict[str, Any] | None = None
    """The declaration's section ``tune``."""
    search_line: int = 0
    reads: list[tuple[int, str]] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def said(self, line: int, last: int | None = None) -> str:
        """What stands on lines of the script."""
        return " ".join(" ".join(self.lines[line - 1 : min(last or line, line + 5)]).split())

    @property
    def classifies(self) -> bool | None:
        """Whether the model is a classifier; None where there is none."""
        if self.estimator is None:
            return None
        name = self.estimator.rpartition(".")[2]
        return name.endswith(("Classifier", "ClassifierCV", "NB")) or name in _CLASSIFIERS

    def metrics_of(self, task: Task) -> list[str]:
        """The script's metrics that a task has."""
        named = [_MULTICLASS.get(each, each) if task == "multiclass" else each for each in self.metrics]
        return [each for each in dict.fromkeys(named) if each in METRICS and task in METRICS[each].tasks]
