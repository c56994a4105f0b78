"""What kind of values a column holds, and the word that every column gets: judged, or not judged and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_mlops.drift.profile import ColumnProfile, DatasetProfile

Kind = Literal["number", "category", "time", "other", "null", "mixed", "twice"]
"""What a column holds. ``other`` is what nothing here compares, ``null`` a column of no type of its own, ``mixed`` a
column of another kind in another file, ``twice`` a name that stands twice."""

Status = Literal[
    "comparable", "missing", "new", "empty", "emptied", "type_changed", "identifier", "time", "unsupported", "mixed",
    "twice",
]  # fmt: skip
"""Whether a column can be compared, and if not, why."""


class ColumnFact(NamedTuple):
    """What can be said of a column before any statistic."""

    name: str
    kind: Kind
    status: Status
    note: str
    """The reason as a clause that follows the column's name; empty where the column can be compared."""

    @property
    def broken(self) -> bool:
        """Whether the data no longer have the form of the reference: a person must look, and no retraining helps."""
        return self.status in ("missing", "type_changed", "mixed", "twice")


def kind_of(kind: pa.DataType) -> Kind:
    """The kind of an Arrow type.

    Booleans and texts are categories, whether or not they are encoded as a dictionary; integers, floats and decimals of
    any width are numbers; dates and timestamps are times; all else (lists, structs, bytes, durations) is ``other``.
    """
    from pyarrow import types

    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return kind_of(kind.value_type)
    if types.is_null(kind):
        return "null"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "category"
    return "time" if types.is_timestamp(kind) or types.is_date(kind) else "other"


def merged_kind(one: Kind, other: Kind) -> Kind:
    """The kind of a column that is of one kind in some files and of another in others."""
    if other in (one, "null"):
        return one
    if one == "null":
        return other
    return "twice" if "twice" in (one, other) else "mixed"


def facts(reference: DatasetProfile, current: DatasetProfile, names: Sequence[str] = ()) -> tuple[ColumnFact, ...]:
    """A word on every column of either side, those of the reference first.

    Args:
        reference: what the columns are held against.
        current: the rows that are judged.
        names: these columns only, whether they are there or not. Default: all but the reference's `others`.
    """
    new = [name for name in current.columns if name not in reference.others]
    wanted = list(names) or list(dict.fromkeys([*reference.columns, *new]))
    return tuple(fact(name, reference.columns.get(name), current.columns.get(name)) for name in wanted)


def fact(name: str, reference: ColumnProfile | None, current: ColumnProfile | None) -> ColumnFact:
    """Whether a column can be compared, and if not, why."""
    if reference is None:
        kind: Kind = current.kind if current else "other"
        note = "is new: the reference does not have it" if current else "is in neither the reference nor the data"
        return ColumnFact(name, kind, "new" if current else "missing", note)
    if current is None:
        return ColumnFact(name, reference.kind, "missing", "is missing, and the reference has it")
    for side, where in ((reference, "the reference"), (current, "the data")):
        if side.kind == "twice":
            return ColumnFact(name, "twice", "twice", f"stands twice in {where}")
        if side.kind == "mixed":
            return ColumnFact(name, "mixed", "mixed", f"holds {side.type} in different files of {where}")
    kinds = {reference.kind, current.kind} - {"null"}
    if len(kinds) > 1:
        return ColumnFact(
            name, reference.kind, "type_changed", f"holds {current.type}, and {reference.type} in the reference"
        )
    kind = kinds.pop() if kinds else "null"
    if kind == "other":
        return ColumnFact(name, kind, "unsupported", f"holds {reference.type}, which is not compared")
    if not reference.valid:
        return ColumnFact(name, kind, "empty", "has no value in the reference")
    if not current.valid:
        return ColumnFact(name, kind, "emptied", "has no value any more")
    if kind == "time":
        return ColumnFact(name, kind, "time", f"holds {reference.type}: time moves on by itself")
    if reference.identifier and current.identifier:
        return ColumnFact(name, kind, "identifier", "looks like an identifier: no value stands twice")
    return ColumnFact(name, kind, "comparable", "")
