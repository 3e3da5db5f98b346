"""One key: its rows, the user's fit, what is told of an error."""

import asyncio
import gzip
import json
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from container import fitting, training, user_code
from container.errors import StartupError
from container.fitting import Work
from container.settings import environment

ROOT = Path(__file__).parent.parent


class Model:
    def __init__(self, value: object = None) -> None:
        self.value = value

    def predict(self, rows):
        return rows


@pytest.fixture
def one(tmp_path):
    """Fits one key with a function of this file; returns its entry."""

    def fit(function, text="x,y\n1,2\n3,4\n", name="a.csv"):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        work = Work.of(function, None, {"alpha": 1}, tmp_path, ".algo-1-")
        [entry], _ = fitting.run(work, [("a", path)])
        return entry

    return fit


def test_fit_gets_key_rows_and_hyperparameters(one):
    def fit(key, data, hyperparameters):
        assert (key, data.to_dict("list"), hyperparameters) == ("a", {"x": [1, 3], "y": [2, 4]}, {"alpha": 1})
        return Model()

    entry = one(fit)
    assert (entry.error, entry.rows, entry.file) == (None, 2, "a.tar.gz")


def test_a_fit_may_change_its_hyperparameters(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")

    def fit(key, data, hyperparameters):
        return Model(hyperparameters["grid"].pop())

    work = Work.of(fit, None, {"grid": [1, 2]}, tmp_path, ".")
    entries, _ = fitting.run(work, [(key, tmp_path / "a.csv") for key in "abc"])
    assert [entry.error for entry in entries] == [None] * 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"id,y\n007,1.5\n007,2.5\n"),
        ("A.CSV.GZ", gzip.compress(b"id,y\n007,1.5\n007,2.5\n")),
    ],
)
def test_csv(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert fitting.table(tmp_path / name, content).y.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("x,y\n1,2,3\n", None),
        ("x,y\n0,2,3\n1,2,3\n", None),  # as an index of rows that has no name
        ("x,y\n1,2,3,4\n", None),
        ("x,y\n1,2\n3,4,5\n", None),
        ("x,y\n1,2,\n3,4,\n", [1, 3]),
        ("x,y\n1\n3,4\n", [1, 3]),
        (",x\n0,1\n1,3\n", [1, 3]),
        ("x\n", []),
    ],
)
def test_fields_of_csv_stay_in_their_columns(one, text, x):
    def fit(key, data, hyperparameters):
        assert data.x.tolist() == x
        return Model()

    error = one(fit, text).error
    if x is None:
        assert re.match(
            r"ValueError: a.csv has rows of more fields than its header|ParserError: .*Expected 2 fields in line 3, saw 3", error
        )
    else:
        assert error is None


def test_parquet_keeps_its_types(tmp_path):
    path = tmp_path / "a.parquet"
    duckdb.sql(f"COPY (SELECT DATE '2024-01-01' + i::INTEGER AS day, '007' AS id, i * 1.5 AS y FROM range(3) r(i)) TO '{path}'")
    found = fitting.table(path, path.read_bytes())
    assert found.day.tolist() == list(pd.date_range("2024-01-01", periods=3))
    assert found.id.tolist() == ["007"] * 3
    assert found.y.astype(float).tolist() == [0, 1.5, 3]


@pytest.mark.parametrize("name", ["c[1]", "c?", "c*", "c[!x]"])
def test_parquet_of_a_name_that_looks_like_a_pattern_is_that_file(tmp_path, name):
    for number, stem in enumerate(("c1", name)):
        duckdb.sql(f"COPY (SELECT {number} AS y) TO '{tmp_path / 'y.parquet'}'")
        (tmp_path / "y.parquet").rename(tmp_path / f"{stem}.parquet")
    path = tmp_path / f"{name}.parquet"
    assert fitting.table(path, path.read_bytes()).y.tolist() == [1]


class Speechless(Exception):
    def __str__(self):
        raise ValueError


def raising(error: BaseException):
    def fit(key, data, hyperparameters):
        raise error

    return fit


@pytest.mark.parametrize(
    ("fit", "error"),
    [
        (raising(ValueError("no\n such")), "ValueError: no such (test_fitting.py:"),
        (raising(SystemExit(3)), "SystemExit: 3 ("),
        (raising(MemoryError()), "MemoryError ("),
        (raising(asyncio.CancelledError()), "CancelledError ("),
        (raising(Speechless()), "Speechless: (its message raised ValueError) ("),
        (raising(KeyError("x" * 2000)), "KeyError: 'xxx"),
        (lambda key, data, hyperparameters: None, "TypeError: fit returned None; a model was expected"),
        (lambda key, data, hyperparameters: {"a": 1}, "TypeError: fit returned dict, which has no predict, and there is no inference.py"),
        (lambda key, data, hyperparameters: (Model(), {"mae": "low"}), "TypeError: fit returned 'low' as metric 'mae'; a number"),
        (
            lambda key, data, hyperparameters: (Model(), {"x\nfleet:mae": 1}),
            r"ValueError: fit returned a metric of the name 'x\nfleet:mae'; acc",
        ),
        (lambda key, data, hyperparameters: (Model(), {"x=0;": 1}), "ValueError: fit returned a metric of the name 'x=0;'; accepted are"),
        (lambda key: None, "TypeError: "),
    ],
)
def test_an_error_is_told_with_its_line(one, fit, error):
    entry = one(fit)
    assert entry.error.startswith(error)
    assert len(entry.error) < 700
    assert entry.file is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), training.Stopped()])
def test_what_ends_the_job_is_no_keys_error(one, error):
    with pytest.raises(type(error)):
        one(raising(error))


def test_a_key_that_no_file_name_can_hold_fails_alone(tmp_path):
    (tmp_path / "long.csv").write_text("x\n1\n")
    work = Work.of(lambda key, data, hyperparameters: Model(), None, {}, tmp_path, ".algo-1-")
    entries, _ = fitting.run(work, [("株" * 23, tmp_path / "long.csv"), ("b", tmp_path / "long.csv")])
    assert [entry.error is None for entry in entries] == [False, True]
    assert "makes a file name of 207 bytes; accepted are 200" in str(entries[0].error)


@pytest.mark.parametrize(("text", "error"), [("", "EmptyDataError: "), (None, "FileNotFoundError: "), ('x,y\n"1,2\n', "ParserError: ")])
def test_input_that_cannot_be_read_is_the_keys_error(one, text, error):
    entry = one(lambda key, data, hyperparameters: Model(), text)
    assert entry.error.startswith(error)
    assert (entry.rows, entry.seconds) == (None, None)


def test_a_metric_that_is_not_finite_is_none(one):
    entry = one(lambda key, data, hyperparameters: (Model(), {"r2": float("nan"), "mae": np.float32(0.5), "mape": np.inf}))
    assert (entry.error, entry.metrics) == (None, {"r2": None, "mae": 0.5, "mape": None})


@pytest.mark.parametrize("made", [(1, 2), (Model(), 3)])
def test_a_tuple_without_metrics_is_a_model_itself(one, made):
    assert one(lambda key, data, hyperparameters: made).error.startswith("TypeError: fit returned tuple, which has no predict")


def test_what_is_random_follows_from_the_key(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")

    def fit(key, data, hyperparameters):
        return Model((random.random(), np.random.rand()))

    digests = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        (tmp_path / str(state)).mkdir()
        [entry], _ = fitting.run(Work.of(fit, None, {}, tmp_path / str(state), "."), [("a", tmp_path / "a.csv")])
        digests.append(entry.sha256)
    assert digests[0] == digests[1]
    assert digests[0] is not None


def test_a_partial_is_a_fit(one):
    def fit(offset, key, data, hyperparameters):
        return Model(offset)

    assert one(partial(fit, 7)).error is None


FITS = """
from functools import partial
class Fit:
    def __init__(self, value): self.value = value
    def __call__(self, key, data, hyperparameters): return self.value
def fit(key, data, hyperparameters): return key
def of(value, key, data, hyperparameters): return value
def fits(value):
    class Local:
        it = value
    return {
        "by name": fit,
        "closure": lambda key, data, hyperparameters: {"scale": value, "x": "scale"},
        "partial": partial(of, value),
        "object": Fit(value),
        "class in a function": lambda key, data, hyperparameters: Local(),
    }
"""


def digests(directory: Path, value: int, seed: int) -> dict[str, str]:
    """Of each of FITS, as a process of its own has them."""
    code = f"""
import json, sys
from pathlib import Path
from container import fitting
sys.path.insert(0, sys.argv[1])
import training
script = Path(sys.argv[1], "training.py")
print(json.dumps({{name: fitting.Work.of(fit, script, {{}}, Path("/"), ".").digest for name, fit in training.fits({value}).items()}}))
"""
    command = [sys.executable, "-c", code, str(directory)]
    found = subprocess.run(command, env=environment(PYTHONHASHSEED=str(seed)), cwd=ROOT, capture_output=True, check=True, text=True)
    return dict(json.loads(found.stdout))


def test_what_a_fit_closes_over_is_in_the_digest_and_chance_is_not(tmp_path):
    (tmp_path / "training.py").write_text(FITS)
    first, again, other = digests(tmp_path, 1, 0), digests(tmp_path, 1, 5), digests(tmp_path, 2, 0)
    assert first == again
    assert {name for name in first if first[name] == other[name]} == {"by name"}


SCRIPT = "from helper import VALUE\nclass M:\n    value = VALUE\ndef fit(key, data, hyperparameters): return M()\n"


def on_another_machine(work: Work) -> Work:
    """Where the script's directory is not."""
    assert work.script is not None
    return Work(**{**vars(work), "script": Path("/nowhere") / work.script.name})


def test_code_comes_with_the_work_where_it_is_not(tmp_path, tmp_path_factory, script, monkeypatch):
    monkeypatch.setattr(fitting, "_loaded", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("unpacked")))
    for value in (1, 2):  # the second time in a process that has had the first
        script(f"VALUE = {value}", "helper.py")
        path = script(SCRIPT, "training.py").base_dir / "training.py"
        (tmp_path / "inference.py").write_text("")
        (tmp_path / "a.csv").write_text("x\n1\n")
        for name in ("helper", "training"):
            sys.modules.pop(name, None)
        work = on_another_machine(Work.of(user_code.import_script(path).fit, path, {}, tmp_path, "."))
        fit = fitting._load(work)
        assert fit("a", None, {}).value == value
        assert fitting.UNPACKED in fit.__code__.co_filename


def test_code_comes_with_the_work_where_a_helper_is_another(tmp_path, tmp_path_factory, script, monkeypatch):
    monkeypatch.setattr(fitting, "_loaded", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("unpacked")))
    script("VALUE = 1", "code/helper.py")
    path = script(SCRIPT, "code/training.py").base_dir / "code/training.py"
    work = Work.of(user_code.import_script(path).fit, path, {}, tmp_path, ".")
    script("VALUE = 2", "code/helper.py")
    for name in ("helper", "training"):
        sys.modules.pop(name, None)
    assert fitting._load(work)("a", None, {}).value == 1


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        ("M()", "training.M"),
        ("Pipeline([('step', FunctionTransformer(mine.double)), ('ridge', Ridge())])", "mine.double"),
        ("Pipeline([('training', 'passthrough'), ('mine', Ridge())])", None),
    ],
)
def test_a_model_that_nobody_could_load_is_refused(tmp_path, script, monkeypatch, model, needs):
    monkeypatch.setattr(fitting, "_loaded", {})
    script("def double(rows): return 2 * rows", "code/lib/mine.py")
    source = f"""
    import mine
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer
    class M:
        def predict(self, rows): return rows
    def fit(key, data, hyperparameters): return {model}
    """
    path = script(source, "code/training.py").base_dir / "code/training.py"
    (tmp_path / "a.csv").write_text("x\n1\n")
    [entry], _ = fitting.run(Work.of(user_code.import_script(path).fit, path, {}, tmp_path, "."), [("a", tmp_path / "a.csv")])
    if needs:
        assert str(entry.error).startswith(
            f"BundleError: the model needs {needs}, which is not in the artifact: put an inference.py beside"
        )
    assert (entry.error is None) == (entry.file is not None) == (tmp_path / "a.tar.gz").exists() == (needs is None)


def test_a_script_that_cannot_be_imported_is_said_by_name(tmp_path):
    path = tmp_path / "training.py"
    path.write_text("import nothing_of_this_name\n")
    work = Work.of(raising(ValueError()), path, {}, tmp_path, ".")
    with pytest.raises(StartupError, match="imports nothing_of_this_name, which is not installed"):
        fitting.run(work, [])
