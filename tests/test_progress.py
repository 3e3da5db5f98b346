"""What is said of a fleet while it is trained."""

import re
import threading

import pytest

from container.manifest import Entry
from container.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def made(seconds: float | None = 1.0, error: str | None = None, **metrics: float | None) -> Entry:
    return Entry("a", seconds, metrics=metrics, error=error)


@pytest.fixture
def clock():
    return Clock()


def progress(clock, total=1000, **changes):
    return Progress(total, clock, **{"terminal": False, **changes})


@pytest.mark.parametrize(
    ("entries", "seconds", "line"),
    [
        ([], 0, "fleet: 0 of 1,000 done, 0 failed, 0.0 a second, 0 s in all"),
        ([made()] * 310 + [made(error="x")] * 2, 13, "fleet: 310 of 1,000 done, 2 failed, 24.0 a second, 29 s left"),
        ([made()] * 5, 100, "fleet: 5 of 1,000 done, 0 failed, 0.1 a second, 5.5 h left"),
        ([made(None)] * 300 + [made()] * 7, 7, "fleet: 307 of 1,000 done, 300 of them found finished, 0 failed, 1.0 a second, 12 min left"),
        ([made(None)] * 300, 7, "fleet: 300 of 1,000 done, 300 of them found finished, 0 failed, 0.0 a second, 7 s in all"),
        ([made()] * 1000, 250, "fleet: 1,000 of 1,000 done, 0 failed, 4.0 a second, 4 min in all"),
    ],
)
def test_line(clock, entries, seconds, line):
    found = progress(clock)
    for entry in entries:
        found.add(entry)
    clock.now += seconds
    assert found.line() == line


def test_metrics_fit_the_regex_of_a_metric_definition(clock):
    found = progress(clock)
    for entry in (made(mae=1.0), made(mae=2.0, mase=0.5), made(None, mae=None), made(error="x")):
        found.add(entry)
    clock.now += 2
    text = found.measured()
    assert text == "fleet:mae=1.5; fleet:mase=0.5; fleet:models=3; fleet:failed=1; fleet:models_per_second=1.00;"
    assert re.findall(r"fleet:mae=([0-9.e+-]+)", text) == ["1.5"]


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1e308] * 3, 1e308),
        ([1e308, -1e308], 0.0),
        ([1.7e308, -1.7e308, -1.7e308, 1.7e308], 0.0),
        ([0.25] * 7, 0.25),
        ([1.0, 2.0, 6.0], 3.0),
    ],
)
def test_a_mean_of_finite_numbers_is_finite(clock, values, mean):
    found = progress(clock)
    for value in values:
        found.add(made(mae=value))
    assert found.metrics == {"mae": pytest.approx(mean)}


def test_a_line_every_ten_seconds_and_one_at_the_end(clock, caplog, capsys):
    caplog.set_level("INFO")
    found = progress(clock)
    for _ in range(25):
        clock.now += 1
        found.tell()
    assert len(caplog.messages) == 2
    found.close()
    assert len(caplog.messages) == 3
    assert capsys.readouterr().out.count("fleet:models=0;") == 3


def test_a_bar_on_a_terminal(clock, caplog, capsys):
    caplog.set_level("INFO")
    found = progress(clock, total=2, terminal=True)
    found.add(made())
    found.add(made(error="x"))
    clock.now += 60
    found.tell()
    found.close()
    assert threading.enumerate() == [threading.main_thread()], "or nothing is forked"
    assert len(caplog.messages) == 1
    assert re.search(r"fleet: 100%.*2/2.*1 failed", capsys.readouterr().err)
