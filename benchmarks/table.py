"""The table that is printed at the end."""

from __future__ import annotations

from typing import NamedTuple

HEAD = ("what", "ours", "peer", "against the peer", "target", "met")


class Row(NamedTuple):
    """One measurement; ``met`` is None where there is no target."""

    what: str
    ours: str
    peer: str = ""
    against: str = ""
    target: str = ""
    met: bool | None = None


class Table:
    """Rows, printed as they are found and once more together."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Take a row."""
        self.rows.append(row)
        print("  " + "  ".join(cell for cell in _cells(row) if cell), flush=True)

    def difference(self, what: str, ours: float, peer: float, most: float | None, unit: str = "CPU s") -> None:
        """A row about a difference, which may be at most so much."""
        over = ours - peer
        target = ("", None) if most is None else (f"<= +{most:g}", over <= most)
        self.add(Row(what, f"{ours:.2f} {unit}", f"{peer:.2f} {unit}", f"{over:+.2f} {unit}", *target))

    def ratio(self, what: str, ours: float, peer: float, most: float | None, unit: str = "CPU s") -> None:
        """A row about a ratio, which may be at most so much."""
        share = ours / peer
        target = ("", None) if most is None else (f"<= {most:g}x", share <= most)
        self.add(Row(what, f"{ours:.2f} {unit}", f"{peer:.2f} {unit}", f"{share:.2f}x", *target))

    def text(self) -> str:
        """All of it, aligned."""
        lines = [HEAD, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
        lines.insert(1, tuple("-" * width for width in widths))
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def _cells(row: Row) -> tuple[str, ...]:
    met = "" if row.met is None else ("yes" if row.met else "NO")
    return (row.what, row.ours, row.peer, row.against, row.target, met)
