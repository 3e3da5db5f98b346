"""A request's way through the hooks that a script has and those that it leaves to us; what is predicted together, and what alone."""

import itertools
import json
import re
import sys

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from container import predictor
from container.errors import ClientError, NotAcceptable, ServingError, StartupError, UnsupportedMediaType, to_response
from container.message import Context, Headers, Request, Response
from container.predictor import Predictor
from container.settings import Settings

MODEL_FN = "def model_fn(model_dir): return 7\n"
ECHO = MODEL_FN + "def predict_fn(data, model): return data\n"


def request(body=b"3", content_type="text/csv", accept="", **context):
    return Request(body, content_type, accept, Context(**context))


def parsed(response):
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


@pytest.fixture
def load(script):
    """The predictor of a script's source, and of settings as keywords."""
    return lambda source, **fields: predictor.load(script(source, **fields))


HOOKS = {
    "input_fn": ("body, content_type", "return [[float(body)]]"),
    "predict_fn": ("data, model", "return data"),
    "output_fn": ("prediction, accept", "return json.dumps(np.asarray(prediction).tolist())"),
}
MODEL = """
import json
import numpy as np
CALLS = []
class Model:
    def predict(self, table): return table
def model_fn(model_dir): return Model()
"""


@pytest.mark.parametrize("ways", list(itertools.product(["absent", "plain", "with context"], repeat=3)), ids=str)
def test_every_combination_of_hooks(load, ways):
    source, expected = MODEL, []
    for (name, (arguments, body)), way in zip(HOOKS.items(), ways, strict=True):
        if way == "plain":
            source += f"def {name}({arguments}):\n    CALLS.append('{name}')\n    {body}\n"
            expected.append(name)
        elif way == "with context":
            source += f"def {name}({arguments}, context):\n    CALLS.append('{name} ' + context.request_id)\n    {body}\n"
            expected.append(f"{name} r-1")
    response = load(source).respond(request(request_id="r-1"))
    assert parsed(response) == [[3.0]]
    assert (response.status, response.content_type) == (200, "application/json")
    assert expected == sys.modules["inference"].CALLS


def test_model_fn_is_given_the_model_directory_as_a_text(load, tmp_path):
    source = "def model_fn(model_dir): return model_dir\ndef predict_fn(data, model): return [model]"
    assert load(source).respond(request()).body == json.dumps([str(tmp_path / "model")]).encode()


@pytest.mark.parametrize(
    ("content_type", "body", "given"),
    [
        ("text/csv; charset=latin-1", "é".encode("latin-1"), ["é", "text/csv"]),
        ("Application/JSON", b"{}", ["{}", "application/json"]),
        ("", b"{}", ["{}", "application/json"]),
        ("application/jsonlines", b"1", ["1", "application/jsonlines"]),
        ("image/png", b"\xff\x00", [b"\xff\x00", "image/png"]),
        ("application/x-npy", b"\x93NUMPY", [b"\x93NUMPY", "application/x-npy"]),
    ],
)
@pytest.mark.parametrize("hook", ["input_fn", "transform_fn"])
def test_a_script_is_given_text_as_text_and_the_rest_as_bytes(load, hook, content_type, body, given):
    sources = {
        "input_fn": "def input_fn(body, content_type): return [body, content_type]\ndef predict_fn(data, model): return repr(data)\n",
        "transform_fn": "def transform_fn(model, body, content_type, accept): return repr([body, content_type])\n",
    }
    source = MODEL_FN + sources[hook] + ("def output_fn(p, accept): return p\n" if hook == "input_fn" else "")
    assert load(source).respond(request(body, content_type)).body == repr(given).encode()


@pytest.mark.parametrize("hook", ["input_fn(body, content_type)", "transform_fn(model, body, content_type, accept)"])
@pytest.mark.parametrize(
    ("content_type", "error"),
    [("nonsense", UnsupportedMediaType), ("text/csv; charset=martian", UnsupportedMediaType), ("text/csv; charset=ascii", ClientError)],
)
def test_what_is_no_text_never_reaches_a_script(load, hook, content_type, error):
    loaded = load(MODEL_FN + f"def {hook}: raise SystemExit\n" + ("def predict_fn(d, m): pass" if "input" in hook else ""))
    with pytest.raises(error):
        loaded.respond(request(b"\xff", content_type))


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("ValueError('no such\\n type')", 400, "input_fn could not read the request: ValueError: no such type"),
        ("KeyError('a')", 400, "input_fn could not read the request: KeyError: 'a'"),
        ("TypeError('t')", 400, "input_fn could not read the request: TypeError: t"),
        ("AttributeError('b')", 400, "input_fn could not read the request: AttributeError: b"),
        ("UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')", 400, "input_fn could not read the request: UnicodeDecodeError: "),
        ("Toolkit('mine')", 415, "mine"),
        ("RuntimeError('secret')", 500, "the model failed with RuntimeError; "),
        ("OSError('secret')", 500, "the model failed with OSError; "),
    ],
)
def test_what_an_input_fn_raises(load, raised, status, said):
    toolkit = "class Toolkit(ValueError):\n    status_code = 415\n"
    loaded = load(ECHO + toolkit + f"def input_fn(body, content_type): raise {raised}\n")
    with pytest.raises(Exception) as error:  # noqa: PT011 - which one is the test
        loaded.respond(request())
    response = to_response(error.value, "")
    assert response.status == status
    assert parsed(response)["message"].startswith(said)


@pytest.mark.parametrize("raised", ["ValueError('secret')", "KeyError('secret')"])
def test_the_same_out_of_predict_fn_or_output_fn_is_the_models_fault(load, raised):
    sources = (MODEL_FN + f"def predict_fn(d, m): raise {raised}", ECHO + f"def output_fn(p, a): raise {raised}")
    for source in sources:
        with pytest.raises((ValueError, KeyError)) as error:
            load(source).respond(request())
        assert to_response(error.value, "").status == 500


@pytest.mark.parametrize(
    ("output", "accept", "body", "content_type"),
    [
        ("'a'", "", b"a", "application/json"),
        ("'a'", "*/*", b"a", "application/json"),
        ("'a'", "text/csv; header=present", b"a", "text/csv"),
        ("'a'", "text/x-own, text/csv", b"a", "text/x-own"),
        ("'a'", "*/*;q=0.5", b"a", "application/json"),
        ("'a'", "text/*", b"a", "application/json"),
        ("b'\\xff'", "image/png", b"\xff", "image/png"),
        ("bytearray(b'a')", "image/png", b"a", "image/png"),
        ("memoryview(b'a')", "image/png", b"a", "image/png"),
        ("('a', 'text/x-own')", "text/csv", b"a", "text/x-own"),
        ("(b'a', accept)", "text/csv;q=1", b"a", "text/csv;q=1"),
        ("([1, 2], 'application/json')", "text/csv", b"[1,2]", "application/json"),
        ("('a', 'b', 'c')", "application/json", b'["a","b","c"]', "application/json"),
        ("[1, 'text/csv']", "application/json", b'[1,"text/csv"]', "application/json"),
        ("{'a': 1}", "", b'{"a":1}', "application/json"),
        ("[[1, 2]]", "text/csv", b"1,2\n", "text/csv"),
    ],
)
@pytest.mark.parametrize("hook", ["output_fn(prediction, accept)", "transform_fn(model, body, content_type, accept)"])
def test_what_a_script_may_answer(load, hook, output, accept, body, content_type):
    source = MODEL_FN + f"def {hook}: return {output}\n" + ("def predict_fn(d, m): return d" if "output" in hook else "")
    response = load(source).respond(request(accept=accept))
    assert (response.body, response.content_type) == (body, content_type)


@pytest.mark.parametrize(
    ("prediction", "accept", "body"),
    [
        ("'a'", "", b'"a"'),
        ("'a'", "text/plain", b"a"),
        ("b'raw'", "application/octet-stream", b"raw"),
        ("[1.5, None]", "", b"[1.5,null]"),
        ("{'a': [1]}", "*/*", b'{"a":[1]}'),
        ("7", "text/csv", b"7\n"),
    ],
)
def test_without_an_output_fn_the_body_is_what_its_type_says(load, prediction, accept, body):
    response = load(MODEL_FN + f"def predict_fn(d, m): return {prediction}").respond(request(accept=accept))
    assert response.body == body
    assert response.content_type == (accept if "/" in accept.strip("*/") else "application/json")


def test_the_default_type_of_the_answer_can_be_set(load):
    response = load(ECHO, default_accept="text/csv").respond(request(b"1,2"))
    assert (response.body, response.content_type) == (b"1.0,2.0\n", "text/csv")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"accept": "image/png"}, NotAcceptable),
        ({"content_type": "image/png"}, UnsupportedMediaType),
        ({"body": b"{", "content_type": "application/json"}, ClientError),
    ],
)
def test_what_the_codecs_refuse_is_refused(load, given, error):
    with pytest.raises(error):
        load(ECHO).respond(request(**given))


def test_a_prediction_that_has_no_form_in_the_type_is_the_models_fault(load):
    with pytest.raises(ServingError, match="cannot write a prediction of type object as application/json"):
        load(MODEL_FN + "def predict_fn(d, m): return object()").respond(request())


def test_the_context_brings_headers_in_and_out(load):
    source = (
        MODEL_FN
        + """def predict_fn(data, model, context):
    context.set_response_header("X-Model", context.custom_attributes + context.headers["x-tenant"])
    return data
"""
    )
    headers = Headers({"HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES": "c=1", "HTTP_X_TENANT": "north"})
    assert dict(load(source).respond(request(headers=headers)).headers) == {"X-Model": "c=1north"}


def test_a_content_type_among_the_response_headers_wins(load):
    source = ECHO + "def output_fn(p, accept, context):\n    context.set_response_header('Content-Type', 'text/x-own')\n    return 'a'\n"
    response = load(source).respond(request())
    assert (response.content_type, dict(response.headers)) == ("text/x-own", {})


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (MODEL_FN + "def predict_fn(data, model):\n    yield 'a'\n    yield b'b'\n    yield {'c': 1}\n", [b"a", b"b", b'{"c":1}']),
        (ECHO + "def output_fn(prediction, accept):\n    yield 'a'\n    yield 'b'\n", [b"a", b"b"]),
        (ECHO + "def output_fn(prediction, accept): return iter(['a', 'b']), 'text/event-stream'\n", [b"a", b"b"]),
        (MODEL_FN + "def transform_fn(model, body, content_type, accept):\n    yield body\n    yield body\n", [b"3", b"3"]),
        (MODEL_FN + "def predict_fn(data, model):\n    return\n    yield\n", []),
    ],
)
def test_a_generator_is_a_stream_of_parts(load, source, parts):
    body = load(source).respond(request()).body
    assert not isinstance(body, bytes)
    assert list(body) == parts


def test_a_stream_is_made_while_it_is_sent(load):
    source = MODEL_FN + "MADE = []\ndef predict_fn(d, m):\n    for n in range(3):\n        MADE.append(n)\n        yield str(n)\n"
    body = iter(load(source).respond(request()).body)
    assert (next(body), sys.modules["inference"].MADE) == (b"0", [0])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def model_fn(model_dir):\n    raise OSError('no weights')\n", "model_fn in {0}, line 2, raised OSError: no weights"),
        ("def model_fn(model_dir):\n    exit(2)\n", "model_fn in {0}, line 2, raised SystemExit: 2"),
        (
            "def model_fn(model_dir):\n    import nothing_such\n",
            "model_fn in {0}, line 2, raised ModuleNotFoundError: No module named 'nothing_such'",
        ),
        ("def model_fn(model_dir): return {}\n", "the artifact is builtins.dict, which has no predict method"),
    ],
)
def test_a_model_that_cannot_be_loaded(load, tmp_path, source, said):
    with pytest.raises(StartupError, match=f"^{re.escape(said.format(tmp_path / 'model/code/inference.py'))}"):
        load(source)


@pytest.fixture
def regression(tmp_path):
    """Settings whose model directory holds the sum of two numbers, without a script."""
    (tmp_path / "model").mkdir()
    joblib.dump(LinearRegression().fit([[0, 1], [1, 0], [1, 1]], [1, 1, 2]), tmp_path / "model/model.joblib")
    return Settings(base_dir=tmp_path)


def test_a_script_in_the_wrong_place_is_named(regression, tmp_path, caplog):
    (tmp_path / "model/inference.py").write_text(MODEL_FN)
    predictor.load(regression)
    assert f"{tmp_path}/model/inference.py is not made use of: a model's script is code/inference.py" in caplog.messages


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "numbers"),
    [
        (b"1,2\n3,4\n", "text/csv", "", [3, 7]),
        (b'{"instances": [[1, 2], [3, 4]]}', "application/json", "*/*", [3, 7]),
        (b'[{"a": 1, "b": 2}]', "application/json", "application/json", [3]),
        (b"[1, 2]", "", "", [3]),
    ],
)
def test_an_artifact_is_asked_without_a_script(regression, body, content_type, accept, numbers):
    loaded = predictor.load(regression)
    response = loaded.respond(request(body, content_type, accept))
    assert parsed(response) == pytest.approx(numbers)
    assert (loaded.source, loaded.max_batch_size) == ("scikit-learn artifact", 64)
    assert loaded.load_seconds > 0
    assert loaded.warm_up()


def test_versions_are_compared_before_anything_is_loaded(regression, caplog):
    (regression.model_dir / "versions.json").write_text('{"python": "2.7.18", "libraries": {}}')
    with pytest.raises(StartupError, match=r"made with python 2\.7\.18"):
        predictor.load(regression)
    predictor.load(regression.but(allow_version_mismatch=True))
    assert ["2.7.18" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("constant", "fields", "size"),
    [
        ("", {}, 1),
        ("", {"max_batch_size": 9}, 1),
        ("MAX_BATCH_SIZE = 32", {}, 32),
        ("MAX_BATCH_SIZE = 32", {"max_batch_size": 1}, 1),
        ("MAX_BATCH_SIZE = 32", {"max_batch_size": 8}, 8),
    ],
)
def test_how_many_may_be_predicted_together_is_the_scripts_to_say(load, constant, fields, size):
    assert load(ECHO + constant, **fields).max_batch_size == size


@pytest.mark.parametrize(
    ("source", "warm"),
    [
        (ECHO, False),
        (ECHO + "WARMUP = ('text/csv', '1,2')", True),
        (MODEL, False),
        (MODEL.replace("class Model:", "class Model:\n    n_features_in_ = 2"), True),
        (MODEL.replace("class Model:", "class Model:\n    n_features_in_ = 2") + "def input_fn(b, c): return b", False),
        (MODEL_FN + "def transform_fn(m, b, c, a): return b\n", False),
        (MODEL_FN + "def transform_fn(m, b, c, a): return b\nWARMUP = ('text/csv', '1')", True),
        (MODEL_FN + "def predict_fn(d, m):\n    yield 'a'\n    raise ValueError\nWARMUP = ('text/csv', '1')", True),
    ],
)
def test_warm_up_where_it_is_known_what_to_ask(load, source, warm):
    assert load(source).warm_up() is warm


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (ECHO + "WARMUP = ('image/png', '1')", "the warm-up prediction was refused: cannot read 'image/png'"),
        (MODEL_FN + "def predict_fn(d, m): return d['a']\nWARMUP = ('text/csv', '1')", "the warm-up prediction raised IndexError: "),
        (MODEL_FN + "def predict_fn(d, m): exit(3)\nWARMUP = ('text/csv', '1')", "the warm-up prediction raised SystemExit: 3"),
        (
            MODEL_FN + "def predict_fn(d, m):\n    raise OSError\n    yield\nWARMUP = ('text/csv', '1')",
            "the warm-up prediction raised OSError",
        ),
    ],
)
def test_a_warm_up_that_fails_is_a_start_that_fails(load, source, said):
    with pytest.raises(StartupError, match=f"^{re.escape(said)}"):
        load(source).warm_up()


def test_a_model_that_takes_no_zeros_starts_without_a_warm_up(load):
    source = MODEL.replace("return table", "raise ValueError('no zeros')").replace("class Model:", "class Model:\n    n_features_in_ = 2")
    assert load(source).warm_up() is False


# -- several requests as one ------------------------------------------------------------------------------------------


class Recorder:
    """Stands for predict: what it was called with, as shapes or lists, and an answer for each call."""

    def __init__(self, answer):
        self.calls, self._answer = [], answer

    def __call__(self, data, context):
        self.calls.append(data.shape if isinstance(data, np.ndarray) else data)
        return self._answer(data)


def together(answer, *data, size=8):
    """(what predict was called with, the outcomes) of these data, predicted as one batch."""
    recorder = Recorder(answer)
    loaded = Predictor(lambda request: None, recorder, lambda prediction, request: Response(b""), size, None, "test")
    return recorder.calls, loaded.predict_many([(item, Context()) for item in data])


def same(data):
    return data


@pytest.mark.parametrize(
    ("data", "calls"),
    [
        ([np.zeros((1, 2)), np.ones((3, 2))], [(4, 2)]),
        ([np.zeros((1, 2)), np.ones((1, 3)), np.ones((1, 2))], [(2, 2), (1, 3)]),
        ([np.zeros((1, 2)), np.ones((1, 2), dtype=np.int64)], [(1, 2), (1, 2)]),
        ([np.array([["a"]], dtype=object), np.array([[1]], dtype=object)], [(2, 1)]),
        ([np.array(1.0), np.array(2.0)], [(), ()]),
        ([np.zeros(2), np.ones(1)], [(3,)]),
        ([["a"], ["b", "c"], []], [["a", "b", "c"]]),
        ([["a"], np.zeros((1, 2)), ["b"]], [["a", "b"], (1, 2)]),
        ([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}]),
        (["a", "b"], ["a", "b"]),
        ([("a",), ("b",)], [("a",), ("b",)]),
        ([["a"]], [["a"]]),
        ([], []),
    ],
)
def test_what_can_be_joined_is_predicted_as_one_and_given_back_in_order(data, calls):
    called, outcomes = together(same, *data)
    assert called == calls
    assert [np.asarray(outcome).tolist() for outcome in outcomes] == [np.asarray(item).tolist() for item in data]


def test_without_batching_each_is_predicted_alone():
    called, outcomes = together(same, ["a"], ["b"], size=1)
    assert (called, outcomes) == ([["a"], ["b"]], [["a"], ["b"]])


def wrong_alone(data):
    if "bad" in data:
        raise ValueError("bad")
    return data


def leaves_alone(data):
    if "bad" in data:
        raise SystemExit(3)
    return data


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda data: data[:1], id="too few"),
        pytest.param(lambda data: [*data, *data], id="too many"),
        pytest.param(lambda data: 7, id="not countable"),
        pytest.param(lambda data: None, id="nothing"),
        pytest.param(lambda data: dict.fromkeys(data, 1), id="as many, but a dict"),
        pytest.param(lambda data: "x" * len(data), id="as many, but letters"),
        pytest.param(lambda data: b"x" * len(data), id="as many, but bytes"),
        pytest.param(lambda data: np.array(5.0), id="a number without a shape"),
    ],
)
def test_an_answer_that_is_not_one_a_row_is_asked_for_again_one_by_one(answer):
    called, outcomes = together(answer, ["a"], ["b"])
    assert called == [["a", "b"], ["a"], ["b"]]
    assert outcomes == [answer(["a"]), answer(["b"])]


@pytest.mark.parametrize("answer", [wrong_alone, leaves_alone])
def test_a_bad_request_fails_alone(answer):
    called, (first, bad, last) = together(answer, ["a"], ["bad"], ["c"])
    assert called == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert (first, last) == (["a"], ["c"])
    assert isinstance(bad, ValueError | SystemExit)


@pytest.mark.parametrize(
    ("answer", "outcomes"),
    [
        (lambda data: (item.upper() for item in data), [["A"], ["B", "C"]]),
        (np.array, [["a"], ["b", "c"]]),
        (tuple, [("a",), ("b", "c")]),
    ],
)
def test_what_stands_for_a_list_is_cut_into_its_parts(answer, outcomes):
    called, found = together(answer, ["a"], ["b", "c"])
    assert called == [["a", "b", "c"]]
    assert [list(outcome) for outcome in found] == [list(outcome) for outcome in outcomes]


@pytest.mark.parametrize(("size", "kind"), [(8, list), (1, type(iter([])))])
def test_a_generator_is_a_list_where_predictions_may_be_joined_and_else_a_stream(size, kind):
    _, (outcome,) = together(iter, ["a"], size=size)
    assert isinstance(outcome, kind)


def test_a_batch_that_was_predicted_alone_leaves_a_line_in_the_log(caplog):
    with caplog.at_level("INFO"):
        together(wrong_alone, ["a"], ["bad"])
    assert [record.getMessage() for record in caplog.records] == ["a batch of 2 failed and is predicted one by one: ValueError: bad"]


def test_a_flask_response_is_taken_as_it_is(script):
    settings = script(
        """
        import flask
        def model_fn(model_dir): return None
        def predict_fn(data, model): return data
        def output_fn(prediction, accept): return flask.Response("too few", 422, {"X-Why": "rows"}, content_type="text/plain")
        """
    )
    response = predictor.load(settings).respond(Request(b"[1]", "application/json"))
    assert (response.status, response.content_type, response.body) == (422, "text/plain", b"too few")
    assert dict(response.headers) == {"X-Why": "rows"}
