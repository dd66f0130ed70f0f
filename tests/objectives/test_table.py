"""The published list of objectives is that of the code."""

from scripts.objectives_table import FILE, table


def test_the_list_of_objectives_is_up_to_date():
    assert FILE.read_text(encoding="utf-8") == table(), "run python -m scripts.objectives_table"
