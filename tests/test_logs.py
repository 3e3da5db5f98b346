"""One format on stdout."""

import logging
import re

import pytest

from container import logs

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\w+) \d+ ([\w.]+): (.*)\n")


@pytest.mark.parametrize(
    ("level", "seen"),
    [(logging.DEBUG, ["DEBUG", "INFO", "ERROR"]), (logging.INFO, ["INFO", "ERROR"]), (logging.CRITICAL, [])],
)
def test_lines_from_the_level_up_are_on_stdout_in_one_format(capsys, level, seen):
    logs.setup(level)
    for each in ("debug", "info", "error"):
        getattr(logging.getLogger("container.test"), each)("%s of %d", "one", 2)
    assert LINE.findall(capsys.readouterr().out) == [(name, "container.test", "one of 2") for name in seen]


def test_the_clock_is_utc(capsys, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    logs.setup(logging.INFO)
    record = logging.makeLogRecord({"msg": "x", "created": 0.25, "msecs": 250.0})
    assert logging.getLogger().handlers[0].format(record).startswith("1970-01-01T00:00:00.250Z ")


def test_a_second_setup_takes_the_place_of_the_first(capsys):
    logs.setup(logging.INFO)
    logs.setup(logging.INFO)
    logging.getLogger("container.test").info("once")
    assert capsys.readouterr().out.count("once") == 1
