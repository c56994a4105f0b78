"""What a training script does, as far as its text tells: from which table to which model, and how it is judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from airflow_mlops.cli.adopting.code import assigned, feature, rebuilt
from airflow_mlops.cli.adopting.findings import Check, Found
from airflow_mlops.cli.adopting.harmless import is_harmless
from airflow_mlops.cli.adopting.names import Names, Unknown
from airflow_mlops.cli.adopting.rows import READERS, SPLIT, Tracer

_LIBRARIES = {"sklearn", "xgboost", "lightgbm", "catboost"}
_MODULES = {
    "calibration", "discriminant_analysis", "dummy", "ensemble", "gaussian_process", "isotonic", "kernel_ridge",
    "linear_model", "multiclass", "naive_bayes", "neighbors", "neural_network", "svm", "tree",
}  # fmt: skip
_NO_MODELS = {"IsolationForest", "RandomTreesEmbedding", "NearestNeighbors", "KNeighborsTransformer", "OneClassSVM"}
_SEARCHES = {"GridSearchCV": "grid", "HalvingGridSearchCV": "grid", "RandomizedSearchCV": "random"}
_OTHERS = {"torch", "tensorflow", "keras", "statsmodels", "prophet", "pyspark", "fastai", "jax"}
_METRICS = {
    "roc_auc_score": "roc_auc", "average_precision_score": "average_precision", "brier_score_loss": "brier",
    "f1_score": "f1", "precision_score": "precision", "recall_score": "recall", "matthews_corrcoef": "mcc",
    "log_loss": "log_loss", "accuracy_score": "accuracy", "balanced_accuracy_score": "balanced_accuracy",
    "mean_squared_error": "rmse", "root_mean_squared_error": "rmse", "mean_absolute_error": "mae",
    "median_absolute_error": "median_ae", "mean_absolute_percentage_error": "mape", "r2_score": "r2",
    "neg_mean_squared_error": "rmse", "neg_root_mean_squared_error": "rmse", "neg_mean_absolute_error": "mae",
    "neg_log_loss": "log_loss",
}  # fmt: skip
_DRAWN = {"classification_report", "confusion_matrix", "ConfusionMatrixDisplay", "RocCurveDisplay", "roc_curve"}
_VALIDATIONS = {"cross_val_score", "cross_validate", "cross_val_predict"}


class Fit(NamedTuple):
    """A call that trains."""

    call: ast.Call
    made: ast.Call
    """The constructor of what is trained."""
    x: ast.expr | None
    y: ast.expr | None


class Reader:
    """Reads one script.

    Args:
        names: its bindings.
        table: the columns of the table.
        lines: its lines.
    """

    def __init__(self, names: Names, table: Sequence[str], lines: Sequence[str]) -> None:
        self.names, self.table, self.lines = names, table, lines
        self.tracer = Tracer(names, table)
        self.found = Found(lines=[*lines])
        self._asked_for: dict[int, list[ast.Call]] = {}
        """The calls of the script's own functions that gave a constructor back."""

    def read(self) -> Found:
        """Everything that is found; what is not is a check."""
        fit = self._chosen_fit()
        if fit is not None:
            self._model(fit)
        self._reads()
        self._target(fit)
        self._split()
        self._metrics()
        self._features()
        self._not_understood()
        self.found.checks.sort()
        return self.found

    def check(self, node: ast.AST, text: str) -> None:
        """Ask a person to look at a line."""
        self.found.checks.append(Check(getattr(node, "lineno", 0), text))

    def _said(self, node: ast.stmt | ast.expr) -> str:
        if node.lineno != node.end_lineno:
            return self.found.said(node.lineno, node.end_lineno)
        # Columns are counted in bytes.
        return self.lines[node.lineno - 1].encode()[node.col_offset : node.end_col_offset].decode(errors="replace")

    def _last(self, node: ast.AST) -> str:
        return (self.names.dotted(node) or "").rpartition(".")[2]

    def is_estimator(self, path: str | None) -> bool:
        """Whether a path names a class with fit and predict."""
        parts = (path or "").split(".")
        if parts[0] not in _LIBRARIES or not parts[-1][:1].isupper() or parts[-1] in _NO_MODELS:
            return False
        return parts[-1].endswith(("Classifier", "Regressor")) or (parts[0] == "sklearn" and parts[1] in _MODULES)

    def constructed(self, node: ast.AST | None, depth: int = 0) -> ast.Call | None:
        """The constructor call that an expression stands for."""
        if depth > 20 or node is None:
            return None
        match node:
            case ast.Name():
                bound = self.names.bound(node)
                return self.constructed(bound.node, depth + 1) if bound and bound.item is None else None
            case ast.Attribute(value=inner, attr="best_estimator_"):
                return self.constructed(inner, depth + 1)
            case ast.Call(func=func):
                last = self._last(func)
                if last[:1].isupper() or last in ("make_pipeline", "make_column_transformer"):
                    return node
                if isinstance(func, ast.Attribute) and func.attr in ("fit", "set_params", "set_output"):
                    return self.constructed(func.value, depth + 1)
                given_back = self.names.local(node)
                made = self.constructed(given_back[-1], depth + 1) if given_back else None
                if made is not None:
                    self._asked_for.setdefault(id(made), []).append(node)
                return made
        return None

    def _fits(self) -> Iterator[Fit]:
        for call in self.names.calls:
            match call.func:
                case ast.Attribute(value=receiver, attr="fit" | "fit_predict"):
                    given = [None, *call.args]
                case func if self._last(func) in _VALIDATIONS and call.args:
                    receiver, given = call.args[0], list(call.args)
                case _:
                    continue
            named = {each.arg: each.value for each in call.keywords}
            x = given[1] if len(given) > 1 else named.get("X")
            y = given[2] if len(given) > 2 else named.get("y")
            made = self.constructed(receiver)
            if made is not None and self._final(made) is not None:
                yield Fit(call, made, x, y)

    def _final(self, made: ast.Call) -> ast.Call | None:
        """The estimator inside pipelines and searches."""
        last = self._last(made.func)
        if last in _SEARCHES:
            inner = made.args[0] if made.args else _keyword(made, "estimator")
            found = self.constructed(inner)
            return self._final(found) if found is not None else None
        if last in ("Pipeline", "make_pipeline"):
            steps = self._steps_of(made)
            found = self.constructed(steps[-1][1]) if steps else None
            return self._final(found) if found is not None else None
        return made if self.is_estimator(self.names.dotted(made.func)) else None

    def _steps_of(self, made: ast.Call) -> list[tuple[str, ast.expr]]:
        if self._last(made.func) == "make_pipeline":
            return [("", each) for each in made.args]
        given: ast.AST | None = made.args[0] if made.args else _keyword(made, "steps")
        if isinstance(given, ast.Name) and (bound := self.names.bound(given)) and bound.item is None:
            given = bound.node
        found = []
        for each in given.elts if isinstance(given, ast.List | ast.Tuple) else []:
            match each:
                case ast.Tuple(elts=[ast.Constant(value=str(name)), step]):
                    found.append((name, step))
                case _:
                    return []
        return found

    def _chosen_fit(self) -> Fit | None:
        """The fit of the model that is kept; else the last one, else a model that nothing is seen to fit."""
        fits = list(self._fits())
        kept = {
            id(self.constructed(call.args[0]))
            for call in self.names.calls
            if call.args and self._last(call.func) in ("dump", "log_model", "save_model")
        }
        chosen = next((each for each in reversed(fits) if id(each.made) in kept), fits[-1] if fits else None)
        if chosen is None:
            makers = [call for call in self.names.calls if self.is_estimator(self.names.dotted(call.func))]
            chosen = Fit(makers[-1], makers[-1], None, None) if makers else None
            others = makers[:-1]
        else:
            others = [each.made for each in fits if each.made is not chosen.made]
        for made in {id(each): each for each in others}.values():
            final = self._final(made)
            if final is not None and final is not self._final(chosen.made if chosen else made):
                self.check(made, f"another model is trained as well: {self._last(final.func)}")
        return chosen

    def _model(self, fit: Fit) -> None:
        made = fit.made
        self.tracer.mark(fit.call)
        while True:
            for call in (made, *self._asked_for.get(id(made), [])):
                self.tracer.mark(call)
            last = self._last(made.func)
            inner: ast.AST | None
            if last in _SEARCHES:
                inner = made.args[0] if made.args else _keyword(made, "estimator")
                self._search(made, last)
            elif last in ("Pipeline", "make_pipeline"):
                steps = self._steps_of(made)
                self.found.steps += [step for _, step in steps[:-1] if not isinstance(step, ast.Constant)]
                inner = steps[-1][1]
            else:
                break
            found = self.constructed(inner)
            if found is None:
                return
            made = found
        self.found.estimator, self.found.line = self.names.dotted(made.func), made.lineno
        self._params(made)
        for keyword in fit.call.keywords:
            if keyword.arg not in ("X", "y", "scoring", "cv", "n_jobs", "return_train_score", "verbose"):
                given = f"`{keyword.arg or '**'}` is given to fit"
                self.check(fit.call, f"{given}, and is not declared; train.function can do it")

    def _params(self, made: ast.Call) -> None:
        unread = [*made.args]
        for keyword in made.keywords:
            try:
                value = self.names.value(keyword.value)
                if keyword.arg is not None:
                    self.found.params[keyword.arg] = value
                elif isinstance(value, dict) and all(isinstance(each, str) for each in value):
                    self.found.params |= value
                else:
                    raise Unknown
            except Unknown:
                unread.append(keyword.value)
        if unread:
            try:
                self.found.function = rebuilt(made, self.names)
            except Unknown:
                for each in unread:
                    self.check(each, f"an argument of {self._last(made.func)} was not understood: {self._said(each)}")
        seed = self.found.params.get("random_state")
        if self.found.function is None and isinstance(seed, int) and not isinstance(seed, bool):
            self.found.seed = self.found.params.pop("random_state")

    def _search(self, made: ast.Call, last: str) -> None:
        given = made.args[1] if len(made.args) > 1 else None
        grid = given or _keyword(made, "param_grid") or _keyword(made, "param_distributions")
        section: dict[str, Any] = {"sampler": _SEARCHES[last], "space": {}}
        self.found.search_line = made.lineno
        try:
            listed = self.names.value(grid) if grid is not None else None
            folds = self.names.value(cv) if (cv := _keyword(made, "cv")) is not None else 5
            trials = self.names.value(n) if (n := _keyword(made, "n_iter")) is not None else 10
        except Unknown:
            listed = folds = trials = None
        plain = isinstance(listed, dict) and all(isinstance(each, list) and each for each in listed.values())
        if (
            not isinstance(listed, dict)
            or not plain
            or not isinstance(folds, int)
            or not 2 <= folds <= 20
            or not isinstance(trials, int)
        ):
            self.check(made, "the search was not understood; tune in the declaration searches as well")
            return
        points = 1
        for name, choices in listed.items():
            section["space"][str(name).rpartition("__")[2]] = {"choices": choices}
            points *= len(choices)
        section["trials"] = min(points if section["sampler"] == "grid" else trials, 10_000)
        self.found.search = {**section, "folds": folds}

    def _reads(self) -> None:
        for call in self.names.calls:
            if self._last(call.func) not in READERS and not (self.names.dotted(call.func) or "").startswith(
                "pandas.read"
            ):
                continue
            self.tracer.mark(call)
            try:
                self.found.reads.append((call.lineno, str(self.names.value(call.args[0]))))
            except (Unknown, IndexError):
                self.found.reads.append((call.lineno, self._said(call)))
            for keyword in call.keywords:
                try:
                    if keyword.arg == "parse_dates":
                        self.found.times += self.tracer.texts(keyword.value)
                    elif keyword.arg == "index_col":
                        self.found.key += self.tracer.texts(keyword.value)
                    elif keyword.arg not in ("engine", "low_memory", "encoding", "memory_map"):
                        self.check(call, f"it is read with {keyword.arg or ''}={self._said(keyword.value)}")
                except Unknown:
                    self.check(call, f"it is read with {keyword.arg}={self._said(keyword.value)}")

    def _target(self, fit: Fit | None) -> None:
        found = self.found
        if fit is not None and fit.x is not None:
            found.rows = self.tracer.rows(fit.x)
            if found.rows is not None:
                found.steps = [*found.rows.learned, *found.steps]
        if fit is not None and fit.y is not None:
            found.target = self.tracer.column(fit.y)
        if found.target is None:
            self._likely_target()
        if found.target is not None and found.target.changed is not None:
            changed = found.target.changed
            what = f"the target is made of {found.target.name!r}, and here it is taken as it is"
            self.check(changed, f"{what}: {self._said(changed)}")

    def _likely_target(self) -> None:
        """A variable called y, or the one column that was popped."""
        for name in ("y", "target", "labels", "label", "Y", "y_train"):
            for statement in reversed(self.names.statements):
                match statement:
                    case ast.Assign(targets=[ast.Name(id=each)], value=value) if each == name:
                        if (column := self.tracer.column(value)) is not None:
                            self.found.target = column
                            return
        for call in self.names.calls:
            match call:
                case ast.Call(func=ast.Attribute(attr="pop")) if column := self.tracer.column(call):
                    self.found.target = column

    def _split(self) -> None:
        found = self.found
        if self.tracer.sliced:
            found.ordered, found.split_line = True, min(each.lineno for each in self.tracer.sliced)
            self.check(self.tracer.sliced[0], "rows are held out by their position: prepare.split.test says how many")
        for call in self.names.calls:
            last = self._last(call.func)
            groups = _keyword(call, "groups")
            if groups is not None and (column := self.tracer.column(groups)):
                found.group, found.split_line = column.name, call.lineno
            if last == "TimeSeriesSplit":
                found.ordered, found.split_line = True, call.lineno
                self.tracer.mark(call)
            if self.names.dotted(call.func) != SPLIT:
                continue
            self.tracer.mark(call)
            if found.split_line and not self.tracer.sliced:
                self.check(call, "a second split; rows are held out once here, and tuning sets its own apart")
                continue
            found.split_line = call.lineno
            given: dict[str, Any] = {}
            for keyword in call.keywords:
                try:
                    given[keyword.arg or ""] = self.names.value(keyword.value)
                except Unknown:
                    given[keyword.arg or ""] = Unknown
            size, rest = given.get("test_size"), given.get("train_size")
            if size is None and isinstance(rest, float):
                size = round(1 - rest, 6)
            if isinstance(size, int | float) and not isinstance(size, bool) and size > 0:
                found.test = size
            elif size is not None or rest is not None:
                self.check(call, "how many rows are held out was not understood: prepare.split.test")
            found.ordered = given.get("shuffle") is False
            seed = given.get("random_state")
            if found.seed is None and isinstance(seed, int) and not isinstance(seed, bool):
                found.seed = seed

    def _metrics(self) -> None:
        for call in self.names.calls:
            path = self.names.dotted(call.func) or ""
            last = path.rpartition(".")[2]
            if path.startswith("sklearn.metrics."):
                self.tracer.mark(call)
                name = _METRICS.get(last)
                if name is None and last not in _DRAWN:
                    self.check(call, f"there is no metric {last}; evaluate.metrics has others")
                self.found.metrics += [name] if name else []
            scoring = _keyword(call, "scoring")
            if isinstance(scoring, ast.Constant) and isinstance(scoring.value, str):
                self.found.metrics.append(_METRICS.get(scoring.value, scoring.value))
        if not self.found.metrics and self.found.estimator:
            scored = [
                each for each in self.names.calls if isinstance(each.func, ast.Attribute) and each.func.attr == "score"
            ]
            self.found.metrics += [("accuracy" if self.found.classifies else "r2")] if scored else []
        self.found.metrics = list(dict.fromkeys(self.found.metrics))

    def _features(self) -> None:
        target = self.found.target.name if self.found.target else None
        known = [*self.table]
        seen: set[str] = set()
        for statement in self.names.statements:
            try:
                if target is not None and assigned(statement, self.tracer) == target:
                    self.tracer.understood.add(id(statement))
                    self.check(
                        statement, f"the target is changed, and here it is taken as it is: {self._said(statement)}"
                    )
                    continue
                made = feature(statement, self.tracer, known, target)
            except Unknown:
                self.found.not_by_row.append(statement)
                self.check(statement, f"not taken over, as it may learn from other rows: {self._said(statement)}")
                self.tracer.understood.add(id(statement))
                continue
            if made is not None:
                self.tracer.mark(statement)
                known.append(made.column)
                if made.source not in seen:
                    seen.add(made.source)
                    self.found.features.append(made)

    def _not_understood(self) -> None:
        for name, path in self.names.imports.items():
            if path.partition(".")[0] in _OTHERS:
                line = next((n for n, text in enumerate(self.lines, 1) if "import" in text and name in text), 0)
                self.found.checks.append(Check(line, f"{path} is no scikit-learn: train.function may return any model"))
        for call in self.names.calls:
            if self.names.dotted(call.func) in ("xgboost.train", "lightgbm.train"):
                self.tracer.mark(call)
                library = str(self.names.dotted(call.func)).partition(".")[0]
                self.check(call, f"{library}.train is not understood; declare its scikit-learn class")
        for statement in self.names.statements:
            followed = id(statement) in self.tracer.understood or is_harmless(statement, self.names)
            if not followed or id(statement) in self.tracer.changing:
                self.check(statement, f"not understood: {self._said(statement)}")


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)
