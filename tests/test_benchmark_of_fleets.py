"""The arithmetic of benchmarks/fleet.py, and that its jobs run."""

import pytest

from benchmarks import fleet
from benchmarks.fleet import Beside, Run

MB = 1_000_000


def test_what_is_no_fit_is_orchestration():
    assert Run("lasso", 10, workers=2, seconds=10, in_fit=19, peak=0).orchestration == pytest.approx(0.05)


def test_each_figure_stands_beside_its_goal():
    speed = [Run("lasso", 1000, 1, 20, 19, 0), Run("lasso", 1000, 2, 11, 19, 0), Run("lasso", 1000, 1, 20, 19, 0)]
    grown = [Run("mean", 1000, 2, 1, 0, 200 * MB), Run("line", 10_000, 2, 10, 0, 230 * MB)]
    prophet = [Beside(looped, 10, Run("prophet", 100, 2, 10, 18, 0)) for looped in (19, 16, 30)]
    text = fleet.as_markdown(speed, 1.9, 0.5, grown, prophet)
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in text.splitlines()[2:]}
    assert rows["2 processes, times as fast as 1"] == ["1.82", "at least 1.8: met |"]
    assert rows["outside of the user's fit, 2 processes"] == ["13.6%", "at most 0.1: missed |"]
    assert rows["the same without the start of the processes, 0.5 s"][0] == "9.5%"
    assert rows["memory, times as much"] == ["1.150", "at most 1.1: missed |"]
    assert rows["Prophet, times as fast as the loop"] == ["1.90", "at least 1.8: met |"]


@pytest.mark.live
def test_a_small_one(tmp_path):
    data = fleet.make(tmp_path / "data", 3)
    run = fleet.train(data, "lasso", 3, 1)
    assert (run.keys, run.workers) == (3, 1)
    assert 0 < run.in_fit < run.seconds
    assert run.peak > 20 * MB
    assert fleet.loop(data, "lasso", 3) > 0
    assert fleet.loop(data, "lasso", 3, programs=2) > 0


@pytest.mark.live
def test_a_job_that_fails_is_told(tmp_path):
    with pytest.raises(fleet.FleetError, match=r"train ended with code 1:(.|\n)*KeyError: 'none'"):
        fleet.train(fleet.make(tmp_path / "data", 1), "none", 1, 1)
