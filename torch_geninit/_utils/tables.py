"""Tables as aligned text, HTML and Markdown: everything that prints rows and columns asks this."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from html import escape

_GAP = "  "


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under a header; a terminal shows it aligned, a notebook as HTML.

    Attributes:
        header: a name for each column.
        rows: as many cells each.
        numbers: indices of the columns that are aligned to the right.
        above: lines to read before the rows.
        below: lines to read after them.

    Example:
        >>> print(Table(("layer", "values"), [("conv", "432"), ("head", "10")], numbers=(1,)))
        layer  values
        -----  ------
        conv      432
        head       10
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Container[int] = ()
    above: Sequence[str] = ()
    below: Sequence[str] = ()

    def __str__(self) -> str:
        parts = ["\n".join(lines) for lines in (self.above, self._aligned(), self.below) if lines]
        return "\n\n".join(parts)

    __repr__ = __str__

    def markdown(self) -> str:
        """Return the rows as a Markdown table, without the lines around them."""
        rule = "".join("---:|" if column in self.numbers else "---|" for column in range(len(self.header)))
        header, *rows = (f"| {' | '.join(map(_markdown_cell, row))} |" for row in (self.header, *self.rows))
        return "\n".join([header, f"|{rule}", *rows])

    def _aligned(self) -> list[str]:
        if not self.rows:
            return []
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = [self.header, ["-" * width for width in widths], *self.rows]
        return [
            _GAP.join(
                cell.rjust(width) if column in self.numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]

    def _repr_html_(self) -> str:
        parts = [_paragraph(self.above)]
        if self.rows:
            head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows
            )
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return "".join([*parts, _paragraph(self.below)])


def _paragraph(lines: Sequence[str]) -> str:
    return f"<p>{'<br>'.join(map(escape, lines))}</p>" if lines else ""


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
