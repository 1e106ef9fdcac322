"""Tables line up, escape what they show, and are Markdown that has as many cells as they have."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_geninit._utils.tables import Table

WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=9)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = draw(st.integers(1, 4))
    row = st.tuples(*[WORDS] * columns)
    return Table(
        draw(row), draw(st.lists(row, min_size=1, max_size=4)), numbers=draw(st.sets(st.integers(0, 3)))
    )


@given(tables())
def test_columns_line_up_on_their_side(table: Table) -> None:
    header, rule, *rows = str(table).splitlines()
    position = 0
    for column, dashes in enumerate(rule.split("  ")):
        place = slice(position, position + len(dashes))
        position += len(dashes) + 2
        for line, cells in zip([header, *rows], [table.header, *table.rows], strict=True):
            shown = line[place].ljust(len(dashes))  # spaces at the end of a line are cut off
            assert shown.strip() == cells[column]
            assert shown.startswith(cells[column]) or column in table.numbers
            assert shown.endswith(cells[column]) or column not in table.numbers


def test_lines_around_the_rows() -> None:
    table = Table(("a",), [("1",)], above=["first", "second"], below=["last"])
    assert str(table) == repr(table) == "first\nsecond\n\na\n-\n1\n\nlast"
    assert str(Table(("a",), [], above=["nothing"])) == "nothing"


def test_cells_of_a_row_are_as_many_as_of_the_header() -> None:
    with pytest.raises(ValueError):
        str(Table(("a", "b"), [("1",)]))


def test_markdown_has_a_rule_and_escapes_bars_and_line_ends() -> None:
    table = Table(("name", "value"), [("a|b", "1\n2")], numbers={1}, above=["not shown"])
    assert table.markdown() == "| name | value |\n|---|---:|\n| a\\|b | 1 2 |"


def test_html_is_well_formed_and_shows_every_text() -> None:
    hostile = "<script>&\"'"
    table = Table((hostile,), [(hostile,)], above=[hostile, "one"], below=[hostile])
    root = ElementTree.fromstring(f"<div>{table._repr_html_().replace('<br>', '<br/>')}</div>")
    assert [element.text for element in root.iter("th")] == [hostile]
    assert [element.text for element in root.iter("td")] == [hostile]
    above, below = root.iter("p")
    assert "".join(above.itertext()) == f"{hostile}one" and "".join(below.itertext()) == hostile
    assert Table(("a",), [])._repr_html_() == ""
