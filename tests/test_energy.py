"""examples/energy: its data, its forecasters, what they answer, and what `make energy` says of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from container import predictor
from container.errors import to_response
from container.message import Request
from container.namespace import Namespace
from container.settings import Settings, environment
from local_test import energy
from local_test.endpoint import Answer, Endpoint
from tests.trained import EXAMPLES, train_example

FOLDER = EXAMPLES / "energy"
JSON = "application/json"
YEAR = np.arange("2025-01-01", "2026-01-01", dtype="datetime64[D]")
WEEK = np.array([1.0, 1.1, 1.2, 1.1, 1.0, 0.6, 0.5])[(YEAR.astype(int) + 3) % 7]
"""Monday first, as a share of the level."""


def module(name):
    """A script of the example, among modules of its own: their names are too plain for sys.modules."""
    return Namespace([FOLDER]).run(FOLDER / f"{name}.py")


generate, seasonal, training, backtest = map(module, ("generate", "seasonal", "training", "backtest"))


def forecast(values, days=YEAR, period=28):
    model = seasonal.load(seasonal.fit(days, values))
    return {name: np.array(band) for name, band in seasonal.predict(model, period).items()}


class TestGenerate:
    def test_a_customer_is_the_same_whoever_else_is_there(self):
        table = generate.customers(3)
        alone = generate.customer(2)
        assert table[table["customer_id"] == "customer-0002"].reset_index(drop=True).equals(alone)
        assert not alone["value"].equals(generate.customer(2, seed=1)["value"])

    def test_what_a_year_looks_like(self):
        customers = [generate.customer(number) for number in range(50)]
        values = pd.concat(customers)["value"]
        assert values.between(0, 1000).all()
        assert {table["date"].iloc[0] for table in customers} == {"2025-01-01"}
        assert {table["date"].iloc[-1] for table in customers} == {"2025-12-31"}
        assert 0.01 < 1 - len(values) / (50 * 365) < 0.1, "days are missing"
        far = [
            (np.abs(table["value"] / table["value"].rolling(15, center=True, min_periods=1).median() - 1) > 0.6).mean()
            for table in customers
        ]
        assert 0.001 < np.mean(far) < 0.03, "a few are outliers"

    def test_as_one_table_and_as_a_file_each(self, tmp_path, capsys):
        assert generate.main([str(tmp_path / "deep" / "table.csv"), "--customers", "2", "--days", "20"]) == 0
        assert generate.main([str(tmp_path / "each"), "--customers", "2", "--days", "20"]) == 0
        assert "2 customers, 20 days, seed 0" in capsys.readouterr().out
        table = pd.read_csv(tmp_path / "deep" / "table.csv")
        assert table["date"].is_monotonic_increasing
        for key, rows in table.groupby("customer_id"):
            assert pd.read_csv(tmp_path / "each" / f"{key}.csv").equals(rows.reset_index(drop=True))

    def test_what_it_refuses(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            generate.main([str(tmp_path), "--customers", "0"])
        assert "--customers 0 --days 365: 1 or more of each was expected" in capsys.readouterr().err


class TestSeasonal:
    def test_a_week_and_a_trend_go_on(self):
        values = 200 * (WEEK + 0.1 * np.arange(365) / 365)
        later = np.arange("2026-01-01", "2026-01-29", dtype="datetime64[D]")
        truth = 200 * (np.resize(WEEK[(later[0] - YEAR[0]).astype(int) % 7 :], 28) + 0.1)
        found = forecast(values)
        assert found["dates"].tolist() == later.astype(str).tolist()
        assert np.abs(found["yhat"] / truth - 1).max() < 0.03

    def test_outliers_and_gaps_change_little(self):
        random = np.random.default_rng(0)
        values = 200 * WEEK + random.normal(0, 5, 365)
        spoilt = values.copy()
        spoilt[random.choice(365, 8, replace=False)] *= 4
        there = random.random(365) > 0.2
        there[-1] = True
        assert np.abs(forecast(spoilt[there], YEAR[there])["yhat"] / forecast(values)["yhat"] - 1).max() < 0.05

    def test_what_the_last_day_had_left_unexplained_fades_out(self):
        noise = np.random.default_rng(1).normal(0, 0.02, 365)
        for day in range(1, 365):
            noise[day] += 0.8 * noise[day - 1]
        calm, raised = 100 * (1 + noise), 100 * (1 + noise)
        raised[-1] += 5
        more = forecast(raised)["yhat"] - forecast(calm)["yhat"]
        assert more[0] > 2
        assert abs(more[-1]) < 0.5

    @pytest.mark.parametrize("values", [np.full(365, 7.0), np.zeros(365), 5 * np.eye(365)[300]], ids=["constant", "nothing", "one day"])
    def test_dull_histories(self, values):
        found = forecast(values)
        assert found["yhat"] == pytest.approx(np.median(values), abs=0.01)

    def test_the_band_is_around_and_widens(self):
        days, values = training.history(generate.customer(5))
        found = forecast(values, days, 365)
        assert (found["yhat_lower"] <= found["yhat"]).all()
        assert (found["yhat"] <= found["yhat_upper"]).all()
        assert (found["yhat_lower"] >= 0).all()
        width = found["yhat_upper"] - found["yhat_lower"]
        assert width[0] < width[6]

    def test_too_short_a_history(self):
        with pytest.raises(ValueError, match="13 days of history: 14 or more are needed"):
            seasonal.fit(YEAR[:13], np.ones(13))
        assert len(forecast(np.ones(14), YEAR[:14], 3)["yhat"]) == 3

    def test_the_model_is_plain_and_small(self):
        model = seasonal.fit(YEAR, 100 * WEEK)
        assert json.loads(json.dumps(model)) == model
        assert backtest.saved_bytes(model) < 3000


class TestBacktest:
    def test_the_default_is_better_than_last_week_and_its_band_is_honest(self):
        found, week = (backtest.measure(make(), 20, seed=1) for make in (backtest.default, backtest.naive))
        assert found["error_7"] < 0.8 * week["error_7"]
        assert found["error_28"] < 0.8 * week["error_28"]
        assert 0.7 < found["covered_28"] <= found["covered_7"] + 0.05 < 0.9
        assert found["fit_ms"] < 60

    def test_the_naive_forecast_is_the_last_week(self):
        week = backtest.naive()
        model = week.fit(YEAR, np.arange(365.0))
        assert week.predict(model, 9)["yhat"] == [358, 359, 360, 361, 362, 363, 364, 358, 359]

    def test_its_table_goes_where_it_was(self, tmp_path, monkeypatch, capsys):
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n\n{backtest.MARK}\nold\n{backtest.MARK}\n\nafter\n")
        monkeypatch.setattr(backtest, "README", readme)
        assert backtest.main(["naive", "--customers", "2", "--write"]) == 0
        printed = capsys.readouterr().out.strip()
        before, table, after = readme.read_text().split(backtest.MARK)
        assert (before, after) == ("before\n\n", "\n\nafter\n")
        assert table.splitlines()[-1] == printed
        assert "the same day of last week" in printed

    def test_an_unknown_forecaster(self, capsys):
        with pytest.raises(SystemExit):
            backtest.main(["nave"])
        assert "nave: accepted are naive, default" in capsys.readouterr().err


class TestTraining:
    def test_days_are_sorted_and_empty_ones_left_out(self):
        days, values = training.history(pd.DataFrame({"date": ["2025-01-03", "2025-01-01", "2025-01-02"], "value": [3.0, 1.0, None]}))
        assert (days.astype(str).tolist(), values.tolist()) == (["2025-01-01", "2025-01-03"], [1.0, 3.0])

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"day": ["2025-01-01"], "kwh": [1]}, "no column date and no value: the columns are day, kwh"),
            (
                {"date": ["2025-01-01", "2025-01-02", "2025-01-01"], "value": [1, 2, 3]},
                "1 days are there twice, the first of them 2025-01-01",
            ),
            ({"date": ["2025-01-01"], "value": [-1]}, "below 0 or not finite"),
            ({"date": ["2025-01-01"], "value": [np.inf]}, "below 0 or not finite"),
            ({"date": ["2025-01-01", None], "value": [1, 2]}, "1 values have no date"),
            ({"date": ["yesterday-ish"], "value": [1]}, "yesterday-ish"),
            ({"date": ["2025-01-01"], "value": ["much"]}, "much"),
        ],
    )
    def test_what_is_no_history(self, columns, message):
        with pytest.raises(ValueError, match=message):
            training.history(pd.DataFrame(columns))

    def test_the_metric_is_of_days_that_the_model_had_not_seen(self):
        data = pd.DataFrame({"date": YEAR, "value": 100 * WEEK})
        jump = data.assign(value=np.where(np.arange(365) < 358, 100 * WEEK, 200 * WEEK))
        assert training.fit("key", data, {})[1]["wape"] < 0.01
        assert 0.4 < training.fit("key", jump, {"held_out": 7})[1]["wape"] < 0.6
        assert training.fit("key", jump, {"held_out": 0})[1] == {}

    def test_an_unknown_forecaster(self):
        with pytest.raises(ValueError, match="the forecaster 'profet' is unknown; accepted are default and prophet"):
            training.fit("key", generate.customer(0), {"forecaster": "profet"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(base directory with the model of one customer, what the training printed)"""
    base_dir = tmp_path_factory.mktemp("energy")
    return base_dir, train_example("energy", base_dir)


def ask(base_dir, body, content_type=JSON, accept=""):
    """(status, document) of one request."""
    try:
        answer = predictor.load(Settings(base_dir=base_dir)).respond(Request(body, content_type, accept))
    except Exception as error:
        answer = to_response(error, "id")
    assert isinstance(answer.body, bytes)
    return answer.status, json.loads(answer.body)


def test_without_a_channel_one_customer_is_trained(trained):
    base_dir, output = trained
    assert "wape=0." in output
    assert sorted(path.name for path in (base_dir / "model").iterdir()) == ["code", "model.joblib", "versions.json"]


PERIODS = [
    (FOLDER / "payload.json").read_bytes(),
    b'{"period": 7}',
    json.dumps('{"period": 7}').encode(),
    json.dumps("{'period': 7}").encode(),
    b'{"period": 7, "customer": "me"}',
]


@pytest.mark.parametrize("body", PERIODS)
def test_the_next_days(trained, body):
    days, values = training.history(generate.customer(0))
    expected = seasonal.predict(seasonal.load(seasonal.fit(days, values)), 7)
    assert expected["dates"] == [f"2026-01-0{day}" for day in range(1, 8)]
    assert ask(trained[0], body) == (200, expected)


@pytest.mark.parametrize("period", [1, 3650])
def test_the_shortest_and_the_longest(trained, period):
    status, answer = ask(trained[0], b'{"period": %d}' % period)
    assert (status, [len(values) for values in answer.values()]) == (200, [period] * 4)


EXPECTED = 'expected is {"period": days}, a whole number from 1 to 3650'


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "message"),
    [
        *((body, JSON, "", 400, EXPECTED) for body in (b'{"period": 0}', b'{"period": 3651}', b'{"period": -7}', b'{"period": 7.0}')),
        *((body, JSON, "", 400, EXPECTED) for body in (b'{"period": "7"}', b'{"period": true}', b'{"period": null}', b"{}", b"7", b"[7]")),
        *((json.dumps(text).encode(), JSON, "", 400, EXPECTED) for text in ("", "7", "{", "{'period': 0}", "open('x')", "(" * 99, "\0")),
        (b"period=7", JSON, "", 400, "JSONDecodeError"),
        (b"7", "text/csv", "", 415, "cannot read 'text/csv'; send application/json"),
        (b'{"period": 7}', JSON, "text/csv", 406, "accept application/json"),
    ],
)
def test_what_it_refuses(trained, body, content_type, accept, status, message):
    got, answer = ask(trained[0], body, content_type, accept)
    assert (got, message in answer["message"]) == (status, True), answer


@pytest.mark.filterwarnings("ignore:The .* keyword:DeprecationWarning")  # what Prophet asks of pandas
def test_prophet_answers_in_the_same_form(tmp_path):
    model, metrics = training.fit("key", generate.customer(0), {"forecaster": "prophet", "held_out": 0})
    (tmp_path / "model").mkdir()
    joblib.dump(model, tmp_path / "model" / "model.joblib")
    shutil.copytree(FOLDER, tmp_path / "model" / "code", ignore=shutil.ignore_patterns("__pycache__"))
    state = np.random.get_state(legacy=False)
    (status, answer), again = (ask(tmp_path, b'{"period": 7}') for _ in range(2))
    assert status == 200
    assert (status, answer) == again
    assert str(np.random.get_state(legacy=False)) == str(state), "nobody else's chance is touched"
    assert metrics == {}
    assert answer["dates"] == [f"2026-01-0{day}" for day in range(1, 8)]
    assert all(low <= middle <= high for low, middle, high in zip(answer["yhat_lower"], answer["yhat"], answer["yhat_upper"], strict=True))


def test_prophet_is_imported_without_a_word():
    command = [sys.executable, "-c", "import with_prophet"]
    ended = subprocess.run(command, cwd=FOLDER, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


class Served(Endpoint):
    """An endpoint that gives one answer to everything."""

    def __init__(self, status, body):
        self._answer = Answer(status, {}, body)

    def invoke(self, target, body, content_type="", headers=None):
        return self._answer


class TestMakeEnergy:
    def test_every_answer_is_compared(self):
        assert len(energy.ask(Served(200, b'{"yhat": [0.1]}'), {"a": {"yhat": [0.1]}, "b": {"yhat": [0.1]}})) == 2

    @pytest.mark.parametrize(("status", "body"), [(200, b'{"yhat": [0.10000000000000002]}'), (500, b'{"yhat": [0.1]}')])
    def test_another_answer_fails_it(self, status, body):
        with pytest.raises(energy.Failed, match=f"a answered {status}"):
            energy.ask(Served(status, body), {"a": {"yhat": [0.1]}})

    def test_a_host_is_given_what_the_platform_gives(self, tmp_path):
        file = tmp_path / "a.csv"
        file.write_text("date,value\n")
        base_dir = energy.prepare(tmp_path / "algo-2", "algo-2", [file], {"forecaster": "default"})
        config = {path.stem: json.loads(path.read_text()) for path in (base_dir / "input" / "config").iterdir()}
        assert config["resourceconfig"]["current_host"] == "algo-2"
        assert config["inputdataconfig"]["train"]["S3DistributionType"] == "ShardedByS3Key"
        assert [path.name for path in Path(base_dir / "input" / "data" / "train").iterdir()] == ["a.csv"]

    def test_a_step_that_fails_ends_it_with_its_output(self):
        with pytest.raises(energy.Failed, match="--customers 0 --days 365: 1 or more"):
            energy.run(FOLDER / "generate.py", "x.csv", "--customers", 0)

    def test_too_few_customers_for_the_hosts(self, capsys):
        with pytest.raises(SystemExit):
            energy.main(["--customers", "1"])
        assert "at least 2 are needed, one for each host" in capsys.readouterr().err

    @pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (1, 1)])
    def test_percentiles(self, percent, value):
        assert energy.percentile(range(100, 0, -1), percent) == value
