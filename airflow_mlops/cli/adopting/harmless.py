"""Statements of a script that a pipeline has no need of: imports, plain values, what is printed, drawn and saved."""

from __future__ import annotations

import ast

from airflow_mlops.cli.adopting.names import Names, Unknown

_ROOTS = {
    "argparse", "collections", "datetime", "IPython", "joblib", "json", "logging", "matplotlib", "mlflow", "os",
    "pathlib", "pickle", "plotly", "pprint", "random", "seaborn", "sys", "time", "typing", "wandb", "warnings", "yaml",
}  # fmt: skip
_MADE_OF = {"catboost", "lightgbm", "sklearn", "xgboost"}
_BUILT_IN = {"display", "exit", "get_ipython", "len", "open", "print", "quit", "range", "str", "zip"}
_METHODS = {
    "add_argument", "append", "best_params_", "best_score_", "close", "corr", "debug", "decision_function", "describe",
    "exists", "head", "hist", "info", "isnull", "items", "legend", "mean", "mkdir", "nunique", "parse_args", "plot",
    "predict", "predict_proba", "save_model", "savefig", "score", "seed", "set_option", "set_title", "set_xlabel",
    "set_ylabel", "show", "std", "tail", "title", "to_csv", "to_parquet", "transform", "value_counts", "warning",
    "write",
}  # fmt: skip


def is_harmless(statement: ast.stmt, names: Names) -> bool:
    """Whether a statement neither makes nor changes rows, features or a model."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=value) | ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            names_only = [each.targets[0]] if isinstance(each := statement, ast.Assign) else []
            if any(isinstance(each, ast.Subscript) for each in names_only):
                return False
            return _is_plain(value, names) or _only_looks(value, names, isinstance(statement, ast.Expr))
        case ast.AugAssign() | ast.Delete():
            return False
    return True


def _is_plain(value: ast.expr, names: Names) -> bool:
    try:
        names.value(value)
    except Unknown:
        return False
    return True


def _only_looks(value: ast.expr, names: Names, alone: bool) -> bool:
    """Whether the outermost call prints, draws, saves, measures, or goes into a function of the script."""
    if isinstance(value, ast.Subscript | ast.Attribute):
        return _only_looks(value.value, names, alone) or (alone and isinstance(value, ast.Attribute))
    if isinstance(value, ast.Compare):
        return _only_looks(value.left, names, alone)
    if isinstance(value, ast.Name):
        return alone
    if isinstance(value, ast.JoinedStr):
        return True
    if not isinstance(value, ast.Call):
        return False
    path = names.dotted(value.func)
    root, _, last = (path or "").rpartition(".")
    if root.partition(".")[0] in _ROOTS or path in _ROOTS:
        return True
    if root.partition(".")[0] in _MADE_OF and (last[:1].isupper() or last.startswith("make_")):
        return True  # what is made counts where it is used
    match value.func:
        case ast.Name(id=name):
            return name in _BUILT_IN or (name in names.functions and alone)
        case ast.Attribute(value=inner, attr=attr):
            return attr in _METHODS or _only_looks(inner, names, alone)
    return False
