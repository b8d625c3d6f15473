"""A row of a table has all its cells."""

import pytest

from drrho.plotting.table import markdown_table


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 cells, got 1"):
        markdown_table(["a", "b"], [["1"]])
