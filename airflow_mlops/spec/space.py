"""The search space of a tuning: what each parameter may be. No Optuna is imported here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    StrictFloat,
    StrictInt,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from airflow_mlops.spec.base import Section

Number = StrictInt | StrictFloat


class Range(Section):
    """Numbers from ``low`` to ``high``, both included. They are whole when ``low``, ``high`` and ``step`` are."""

    low: Number
    """The least value. ``1.0`` instead of ``1`` makes a range of fractions."""
    high: Number
    """The greatest value."""
    log: bool = False
    """Whether each power of ten is as likely as the next: for learning rates and penalties."""
    step: Number | None = None
    """The distance of two values. Default: 1 between whole numbers, none between fractions."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        low, high, step = self.low, self.high, self.step
        if not all(math.isfinite(each) for each in (low, high, step or 1)):
            raise ValueError(f"the range from {low} to {high} has no end; try: finite numbers")
        if low > high:
            raise ValueError(f"low {low} is above high {high}; try: {{low: {high}, high: {low}}}")
        if low == high:
            raise ValueError(f"low and high are both {low}; try: write the one value under train.params")
        if self.log and low <= 0:
            raise ValueError(f"a logarithmic range cannot start at {low}; allowed: low above 0")
        if step is not None:
            steps = (high - low) / step if step > 0 else 0.0
            if self.log:
                raise ValueError("a logarithmic range has no step; try: leave out one of log and step")
            if round(steps) < 1 or not math.isclose(steps, round(steps), rel_tol=1e-9):
                raise ValueError(f"steps of {step} do not lead from {low} to {high}; try: another step or high")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 1))

    @property
    def count(self) -> int | None:
        """How many values there are, or None where there is no end of them."""
        step = self.step or (1 if self.whole else None)
        return None if step is None else round((self.high - self.low) / step) + 1

    def value(self, index: int) -> int | float:
        """The value of that place, counted from 0."""
        return self.low + index * (self.step or 1)


class Choices(Section):
    """One of the values listed, in no order."""

    choices: tuple[Annotated[JsonValue, WithJsonSchema({})], ...] = Field(min_length=2)
    """The values: texts, numbers, booleans, null, or lists of them."""

    @field_validator("choices")
    @classmethod
    def _different(cls, value: tuple[JsonValue, ...]) -> tuple[JsonValue, ...]:
        try:
            labels = [_label(each) for each in value]
        except ValueError as error:
            raise ValueError("a choice is no finite number; allowed: what JSON can hold") from error
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice:
            raise ValueError(f"the choice {twice} stands twice; try: keep one")
        return value

    @property
    def labels(self) -> tuple[str, ...]:
        """The choices as texts, each different from the others: ``1`` and ``true`` are equal in Python."""
        return tuple(map(_label, self.choices))

    @property
    def count(self) -> int:
        """How many choices there are."""
        return len(self.choices)

    def value(self, index: int) -> Any:
        """The choice of that place, counted from 0."""
        return self.choices[index]


def _label(choice: JsonValue) -> str:
    return json.dumps(choice, sort_keys=True, allow_nan=False)


def _written_out(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        raise ValueError(f"a list is no range; try: {{choices: {json.dumps(value, default=str)}}}")
    if not isinstance(value, (Mapping, Section)):
        raise ValueError(f"{value!r} leaves nothing to search; try: write it under train.params")
    return value


def _kind_of(value: Any) -> str:
    given = value if isinstance(value, Mapping) else vars(value) if isinstance(value, Section) else {}
    return "Choices" if "choices" in given else "Range"


Dimension = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")],
    Discriminator(_kind_of),
    BeforeValidator(_written_out),
]
"""``{low: 0.01, high: 0.3, log: true}`` or ``{choices: [a, b]}``; told apart first, so that a mistake is told once."""

Space = dict[str, Dimension]
"""What each parameter may be, by its name."""


def grid_size(space: Mapping[str, Range | Choices]) -> int | None:
    """How many points a grid over the space has, or None where a range has no end of values."""
    counts = [dimension.count for dimension in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def grid_point(space: Mapping[str, Range | Choices], index: int) -> dict[str, int]:
    """The point of that place in the grid, as the place of each parameter's value."""
    point = {}
    for name, dimension in space.items():
        index, point[name] = divmod(index, dimension.count or 1)
    return point
