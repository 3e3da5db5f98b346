"""One format on stdout, for our own lines and for gunicorn's."""

import inspect
import logging
import re

import pytest
from gunicorn import arbiter
from gunicorn.config import Config

from container import logs

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\w+) \d+ ([\w.]+): (.*)\n")


@pytest.fixture
def gunicorn():
    """gunicorn's own logger, as it was before."""
    logger = logging.getLogger("gunicorn.error")
    before = logger.propagate, logger.handlers, logger.level, logger.filters
    logger.filters = []
    yield logger
    logger.propagate, logger.handlers, logger.level, logger.filters = before


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


@pytest.mark.parametrize(
    ("level", "seen"),
    [(logging.DEBUG, ["booting", "careful"]), (logging.INFO, ["careful"]), (logging.ERROR, [])],
)
def test_gunicorn_speaks_in_our_format_and_only_of_what_is_wrong(capsys, gunicorn, level, seen):
    logs.setup(level)
    logger = logs.GunicornLogger(Config())
    logger.info("booting")
    logger.warning("careful")
    assert [text for _, _, text in LINE.findall(capsys.readouterr().out)] == seen


@pytest.mark.parametrize("start", logs.MISLEADING)
def test_gunicorns_guesses_are_dropped_and_are_still_what_it_says(capsys, gunicorn, start):
    assert start in inspect.getsource(arbiter)
    logs.setup(logging.INFO)
    logger = logs.GunicornLogger(Config())
    logger.error(f"{start}%s. Perhaps out of memory?", 7, "SIGKILL")  # noqa: G004
    logger.error("something else (pid:%s)", 7)
    assert [text for _, _, text in LINE.findall(capsys.readouterr().out)] == ["something else (pid:7)"]


def test_gunicorn_logs_no_request(capsys, gunicorn):
    logs.setup(logging.DEBUG)
    logs.GunicornLogger(Config()).access(None, None, {}, None)
    assert capsys.readouterr().out == ""
