"""docs/configuration.md says what settings.py does."""

import re
from pathlib import Path

from container import settings

TEXT = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()


def test_the_table_is_the_one_that_settings_prints():
    table = TEXT.partition("<!-- table")[2].partition("\n")[2].partition("\n<!-- end")[0]
    assert table == settings.table(), "copy it anew: python -m container.settings"


def test_the_table_has_every_variable():
    rows = settings.table().splitlines()[2:]
    names = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows]
    assert names == [list(variable.names) for _, variable in settings.variables()]
    assert all(len(row.split("|")) == 6 for row in rows), "a | inside of a cell would break the table"


def test_variables_outside_the_table_are_told_too():
    assert [name for name in settings.THREAD_VARIABLES if name not in TEXT] == []


def test_every_variable_that_is_told_exists():
    known = {name for _, variable in settings.variables() for name in variable.names}
    told = set(re.findall(r"\b(?:SAGEMAKER|MODEL_SERVER)_[A-Z_]*[A-Z]\b", TEXT))
    assert told == {name for name in known if name.startswith(("SAGEMAKER_", "MODEL_SERVER_"))}
