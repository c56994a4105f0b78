"""Google's own analyzer of BigQuery's dialect (ZetaSQL, as WebAssembly): syntax, names, functions and types.

Its code is compiled once for a machine, which takes half a minute, and kept by its content.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from airflow_mlops.call.store import cache_folder

KINDS = {
    "INT64": "TYPE_INT64",
    "FLOAT64": "TYPE_DOUBLE",
    "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
    "BYTES": "TYPE_BYTES",
    "DATE": "TYPE_DATE",
    "TIME": "TYPE_TIME",
    "DATETIME": "TYPE_DATETIME",
    "TIMESTAMP": "TYPE_TIMESTAMP",
    "NUMERIC": "TYPE_NUMERIC",
    "BIGNUMERIC": "TYPE_BIGNUMERIC",
    "JSON": "TYPE_JSON",
    "GEOGRAPHY": "TYPE_GEOGRAPHY",
    "INTERVAL": "TYPE_INTERVAL",
    "ARRAY": "TYPE_ARRAY",
    "STRUCT": "TYPE_STRUCT",
}
_WORDS = {kind: word for word, kind in KINDS.items()}


class Column(NamedTuple):
    """A column and its type in GoogleSQL; of an array or struct only that it is one."""

    name: str
    type: str


class Refused(Exception):
    """What the analyzer says of a statement that BigQuery would refuse."""


class GoogleSql:
    """The analyzer, with the catalog of one database."""

    def __init__(self) -> None:
        import zetasql.core.wasm_client as client
        from zetasql.core.local_service import ZetaSqlLocalService
        from zetasql.types import LanguageOptions, ZetaSQLBuiltinFunctionOptions

        plain = client.Module
        client.Module = _Compiled  # type: ignore[misc]
        try:
            self._wasm = ZetaSqlLocalService.get_instance().wasm_client
        finally:
            client.Module = plain  # type: ignore[misc]
        # As a block: byte by byte it takes most of the time.
        self._wasm.write_bytes = lambda at, data: ctypes.memmove(self._address(at), data, len(data))
        self._wasm.read_bytes = lambda at, size: ctypes.string_at(self._address(at), size)
        self._known: dict[Any, tuple[Column, ...]] = {}
        self._language = LanguageOptions.maximum_features()
        self._functions = ZetaSQLBuiltinFunctionOptions(language_options=self._language)

    def analyze(
        self, sql: str, tables: Mapping[str, Sequence[Column]], parameters: Mapping[str, str]
    ) -> tuple[Column, ...]:
        """The columns that a query gives.

        Args:
            sql: the statement.
            tables: the columns of each table, by every name that it goes by.
            parameters: the types of the named parameters.

        Raises:
            Refused: when BigQuery would refuse the statement.
        """
        from zetasql.api import CatalogBuilder, TableBuilder
        from zetasql.core.exceptions import ServerError
        from zetasql.types import AnalyzeRequest, AnalyzerOptions, Type, TypeKind
        from zetasql.wasi._pb2.zetasql.local_service.local_service_pb2 import AnalyzeResponse

        asked = (sql, *((name, tuple(columns)) for name, columns in tables.items()), *parameters.items())
        if asked in self._known:
            return self._known[asked]
        catalog = CatalogBuilder("bigquery").with_builtin_functions(self._functions)
        for name, columns in tables.items():
            table = TableBuilder(name)
            for column in columns:
                table.add_column(column.name, _type(column.type))
            catalog.add_table(table.build())
        given = [
            AnalyzerOptions.QueryParameter(name=name, type=Type(type_kind=getattr(TypeKind, KINDS[kind])))
            for name, kind in parameters.items()
        ]
        options = AnalyzerOptions(language_options=self._language, query_parameters=given)
        request = AnalyzeRequest(sql_statement=sql, options=options, simple_catalog=catalog.build())
        try:
            answer: Any = self._wasm.call_grpc_func("ZetaSqlLocalService_Analyze", request.to_proto(), AnalyzeResponse)
        except ServerError as error:
            raise Refused(str(error).removeprefix("[INVALID_ARGUMENT] ")) from error
        statement = answer.resolved_statement
        node = getattr(statement, statement.WhichOneof("node"))
        kinds = ((each.name, TypeKind(each.column.type.type_kind).name) for each in node.output_column_list)
        self._known[asked] = tuple(Column(name, _WORDS.get(kind, kind)) for name, kind in kinds)
        return self._known[asked]

    def _address(self, at: int) -> int:
        return ctypes.addressof(self._wasm.memory.data_ptr().contents) + at


def _type(word: str) -> Any:
    from zetasql.api.type_factory import TypeFactory
    from zetasql.types import TypeKind

    if word == "ARRAY":
        return TypeFactory.create_array_type(TypeFactory.create_simple_type(TypeKind.TYPE_INT64))
    if word == "STRUCT":
        return TypeFactory.create_struct_type([("a", TypeFactory.create_simple_type(TypeKind.TYPE_INT64))])
    return getattr(TypeKind, KINDS[word])


class _Compiled:
    """Stands for wasmtime's module: what was compiled before is not compiled again."""

    @staticmethod
    def from_file(engine: Any, path: str) -> Any:
        import wasmtime

        code = Path(path).read_bytes()
        name = hashlib.sha256(code + version("wasmtime").encode()).hexdigest()[:16]
        kept = cache_folder("googlesql") / f"{name}.cwasm"
        with open(kept.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                beside = kept.with_suffix(f".{os.getpid()}")
                beside.write_bytes(wasmtime.Module(engine, code).serialize())
                os.replace(beside, kept)
        return wasmtime.Module.deserialize_file(engine, str(kept))
