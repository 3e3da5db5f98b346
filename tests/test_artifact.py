"""Models without a script: what is found in the directory, how it is asked, and what is said of what cannot be."""

import pickle
import re
import shutil
import warnings

import joblib
import numpy as np
import pytest
import spacy
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression

from container import artifact
from container.errors import ClientError, StartupError

ROWS = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
SUMS = LinearRegression().fit(ROWS, ROWS.sum(axis=1))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A spaCy pipeline that knows one name, on disk."""
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "ORG", "pattern": "Acme"}])  # type: ignore[attr-defined]
    path = tmp_path_factory.mktemp("spacy") / "pipeline"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def nlp(pipeline):
    return spacy.load(pipeline)


@pytest.mark.parametrize("name", ["model.joblib", "model.pkl", "inner/model.joblib", "b/model.pkl"])
def test_a_pickled_model_is_found_one_directory_too_deep_with_a_warning(tmp_path, caplog, name):
    (tmp_path / "code").mkdir()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    joblib.dump(SUMS, tmp_path / name)
    assert artifact.load(tmp_path).predict([[2.0, 3.0]]) == pytest.approx([5.0])
    told = [record.getMessage() for record in caplog.records]
    assert told == ([f"the model is in {(tmp_path / name).parent}: one directory too many in the archive"] if "/" in name else [])


def test_what_comes_first_is_taken(tmp_path):
    joblib.dump("joblib", tmp_path / "model.joblib")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps("pickle"))
    assert artifact.load(tmp_path) == "joblib"


@pytest.mark.parametrize("name", [".", "pipeline"])
def test_a_pipeline_is_found_in_the_directory_or_in_a_folder_of_it(tmp_path, caplog, pipeline, name):
    shutil.copytree(pipeline, tmp_path / name, dirs_exist_ok=True)
    assert artifact.load(tmp_path).pipe_names == ["entity_ruler"]
    assert caplog.records == []


ACCEPTED = "accepted are model.joblib, model.pkl, a spaCy pipeline folder, or a script, code/inference.py with model_fn"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, f"{{0}} is not there: {ACCEPTED}"),
        ({}, f"{{0}} is empty: {ACCEPTED}"),
        ({"weights.bin": b"", "a.txt": b""}, f"{{0}} holds a.txt, weights.bin: {ACCEPTED}"),
        ({"code/model.joblib": b""}, f"{{0}} holds code: {ACCEPTED}"),
        ({"a/b/model.joblib": b""}, f"{{0}} holds a: {ACCEPTED}"),
        ({"config.cfg": b""}, f"{{0}} holds config.cfg: {ACCEPTED}"),
        ({"model.joblib": b""}, "{0}/model.joblib cannot be loaded: EOFError"),
        ({"model.pkl": b"no pickle"}, "{0}/model.pkl cannot be loaded: "),
        ({"model.pkl": b"cno_such_library\nModel\n."}, "{0}/model.pkl needs no_such_library, which is not installed in this image"),
        ({"model.pkl": b"cjson\nNoSuch\n."}, "{0}/model.pkl cannot be loaded: AttributeError: "),
        ({"config.cfg": b"", "meta.json": b"{}"}, "{0} cannot be loaded as a spaCy pipeline: "),
    ],
)
def test_what_is_said_of_a_directory_without_a_model_that_loads(tmp_path, files, said):
    where = tmp_path / "model"
    for name, content in (files or {}).items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(content)
    if files is not None:
        where.mkdir(exist_ok=True)
    with pytest.raises(StartupError, match=f"^{re.escape(said.format(where))}"):
        artifact.load(where)


def test_what_cannot_predict_is_no_model():
    with pytest.raises(StartupError, match=r"^the artifact is builtins\.dict, which has no predict method: bring a script"):
        artifact.library({"a": 1})


def test_a_model_that_is_none_is_told_by_who_gave_it(tmp_path):
    joblib.dump(None, tmp_path / "model.joblib")
    with pytest.raises(StartupError, match=rf"^{tmp_path}/model\.joblib holds None: a model with a predict method was expected$"):
        artifact.load(tmp_path)
    with pytest.raises(StartupError, match=r"^model_fn returned None: it must return the loaded model$"):
        artifact.library(None)


def named(*names):
    model = LinearRegression().fit(ROWS, ROWS @ [1.0, 10.0])
    model.feature_names_in_ = np.array(names, dtype=object)
    return model


@pytest.mark.parametrize(
    ("model", "value", "predicted"),
    [
        (SUMS, [[1, 2], [3, 4]], [3, 7]),
        (SUMS, ROWS, [1, 1, 2]),
        (SUMS, np.array([1.0, 2.0]), [3]),
        (SUMS, [1, 2], [3]),
        (SUMS, (1, 2), [3]),
        (SUMS, {"a": 1, "b": 2}, [3]),
        (SUMS, [{"a": 1, "b": 2}, {"b": 5, "a": 1}], [3, 6]),
        (SUMS, [["1", "2.5"]], [3.5]),
        (named("a", "b"), [{"b": 2, "a": 1}], [21]),
        (named("a", "b"), {"b": 2, "a": 1}, [21]),
        (named("a", "b"), [[1, 2]], [21]),
    ],
)
def test_scikit_learn_is_given_rows(model, value, predicted):
    library = artifact.library(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        assert library.to_output(library.predict(library.to_input(value))) == pytest.approx(predicted)
    assert library.name == "scikit-learn"


@pytest.mark.parametrize(
    ("model", "value", "said"),
    [
        (SUMS, "1,2", "the model takes rows of numbers, shape (rows, columns); this is str"),
        (SUMS, b"1,2", "the model takes rows of numbers, shape (rows, columns); this is bytes"),
        (SUMS, 7, "the model takes rows of numbers, shape (rows, columns); this is int"),
        (SUMS, None, "the model takes rows of numbers, shape (rows, columns); this is NoneType"),
        (SUMS, [[1, 2, 3]], "the rows do not fit the model: X has 3 features, but LinearRegression is expecting 2 features as input."),
        (SUMS, [[1, None]], "the rows do not fit the model: Input X contains NaN."),
        (SUMS, [["a", "b"]], "the rows do not fit the model: "),
        (SUMS, [[[1, 2]]], "the rows do not fit the model: "),
        (SUMS, np.empty((0, 2)), "the rows do not fit the model: Found array with 0 sample(s)"),
        (SUMS, np.array(7.0), "the rows do not fit the model: "),
        (SUMS, [[1, 2], [3]], "the rows differ in their number of columns"),
        (SUMS, [[1, {"a": 2}]], "the rows do not fit the model: float() argument must be"),
        (SUMS, [{"a": 1, "b": 2}, {"a": 1}], "record 2 has a; expected is a, b"),
        (SUMS, [{"a": 1, "b": 2}, [1, 2]], "record 2 has list; expected is a, b"),
        (named("a", "b"), [{"a": 1, "c": 2}], "record 1 has a, c; expected is a, b"),
    ],
)
def test_rows_that_scikit_learn_cannot_take_are_the_requests_fault(model, value, said):
    library = artifact.library(model)
    with pytest.raises(ClientError, match=f"^{re.escape(said)}"):
        library.predict(library.to_input(value))


class Echo:
    """A model of mixed columns."""

    def predict(self, table):
        return table


class Broken(Echo):
    def predict(self, table):
        raise TypeError("mine")


@pytest.mark.parametrize(
    ("value", "cells"),
    [
        ([{"age": 41, "city": "Rome"}], [[41, "Rome"]]),
        ([{"age": None, "city": None}, {"age": 2.5, "city": "Oslo"}], [[np.nan, np.nan], [2.5, "Oslo"]]),
        ([["a", True]], [["a", True]]),
        ([[1, 2]], [[1, 2]]),
    ],
)
def test_numbers_stay_numbers_beside_texts(value, cells):
    assert repr(artifact.library(Echo()).to_input(value).tolist()) == repr(cells)


def test_a_models_own_type_error_is_not_the_requests_fault():
    with pytest.raises(TypeError, match="mine"):
        artifact.library(Broken()).predict(np.zeros((1, 2)))


def test_warm_up_is_a_row_of_zeros_where_the_width_is_known():
    assert artifact.library(SUMS).warmup.tolist() == [[0.0, 0.0]]
    assert artifact.library(DummyClassifier()).warmup is None


def test_scikit_learns_reminder_of_names_is_not_in_every_log():
    library = artifact.library(named("a", "b"))
    library.predict(np.array([[1.0, 2.0]]))


def ents(*found):
    return {"ents": [{"text": "Acme", "label": "ORG", "start": start, "end": start + 4} for start in found]}


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("I like Acme", [ents(7)]),
        (b"Acme \xff", [ents(0)]),
        (["Acme", "none"], [ents(0), ents()]),
        ({"input": "Acme"}, [ents(0)]),
        ({"inputs": ["Acme", "Acme"]}, [ents(0), ents(0)]),
        ({"text": "Acme Acme"}, [ents(0, 5)]),
        ([{"text": "Acme"}, {"input": " Acme"}], [ents(0), ents(1)]),
        ([["Acme"], ["b"]], [ents(0), ents()]),
        (np.array([["Acme"], ["b"]], dtype=object), [ents(0), ents()]),
        ([], []),
    ],
)
def test_spacy_is_given_texts(nlp, value, answers):
    library = artifact.library(nlp)
    assert library.to_output(library.predict(library.to_input(value))) == answers
    assert library.name == "spaCy"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "item 1 is int"),
        (["a", 7.5], "item 2 is float"),
        ({"body": "a"}, "item 1 is NoneType"),
        ([{"body": "a"}], "item 1 is NoneType"),
        ([["a", "b"]], "item 1 is list"),
        (np.array([[1.0]]), "item 1 is float"),
        (None, "item 1 is NoneType"),
    ],
)
def test_what_is_no_text_is_the_requests_fault(nlp, value, said):
    library = artifact.library(nlp)
    with pytest.raises(ClientError, match=f"^{said}: a text was expected, or a list of texts, or objects with a text$"):
        library.to_input(value)


def test_categories_are_told_where_the_pipeline_has_them():
    nlp = spacy.blank("en")
    doc = nlp("Acme")
    doc.cats = {"good": 1.0}
    assert artifact._entities(doc) == {"ents": [], "cats": {"good": 1.0}}
