"""HTTP in front of a predictor, through Flask's test client: statuses, headers, streams, and what the log keeps."""

import io
import json
import os
import socket
import sys
import time

import gevent
import pytest
from gevent import socket as gevent_socket
from prometheus_client.parser import text_string_to_metric_families

from container import exchange, metrics, predictor
from container.app import create_app
from container.metrics import Counters

MODEL_FN = "def model_fn(model_dir): return None\n"
ECHO = MODEL_FN + "def predict_fn(data, model): return data\n"
CSV = {"Content-Type": "text/csv", "X-Request-Id": "r-7"}


@pytest.fixture
def client(script, tmp_path):
    """A client of a script's source; its application counts into a file. Settings as keywords."""

    def build(source, **fields):
        settings = script(source, **fields)
        served = create_app(settings, predictor.load(settings))
        served.counters = Counters.of_worker(tmp_path, 0, os.getpid())
        return served.test_client()

    return build


def post(client, body=b"1,2", headers=CSV, **options):
    return client.post("/invocations", data=body, headers=headers, **options)


def counted(directory):
    """Requests by status, where there are any."""
    families = text_string_to_metric_families(metrics.text(directory).decode())
    samples = [sample for family in families for sample in family.samples if sample.name == "berth_requests_total"]
    return {sample.labels["status"]: sample.value for sample in samples if sample.value}


def test_an_answer(client, tmp_path):
    answer = post(client(ECHO))
    assert (answer.status_code, answer.data, answer.headers["Content-Type"]) == (200, b"[[1.0,2.0]]", "application/json")
    assert counted(tmp_path) == {"200": 1}


OWN = "class Own(Exception):\n    status_code = {}\n"
RAISES = OWN + MODEL_FN + "def predict_fn(data, model): raise {}\n"


@pytest.mark.parametrize(
    ("source", "body", "headers", "status", "said"),
    [
        (ECHO, b"1,2\n3", {}, 400, "line 2 has 1 columns, the first row has 2"),
        (ECHO, b"{", {"Content-Type": "application/json"}, 400, "cannot read the body as application/json"),
        (ECHO, b"", {}, 400, "it holds no rows"),
        (ECHO, b"1", {"Accept": "image/png"}, 406, "cannot answer with 'image/png'; accept one of application/json, text/csv"),
        (ECHO, b"1", {"Content-Type": "image/png"}, 415, "cannot read 'image/png'; send one of application/json, text/csv"),
        (ECHO, b"1", {"Content-Type": "csv"}, 415, "'csv' is not a media type; send one like 'text/csv'"),
        (RAISES.format(413, "Own('too many rows')"), b"1", {}, 413, "too many rows"),
        (RAISES.format(429, "Own('slow down')"), b"1", {}, 429, "slow down"),
        (RAISES.format(507, "Own('no room')"), b"1", {}, 507, "no room"),
        (RAISES.format(0, "Own('secret')"), b"1", {}, 500, "the model failed with Own; its log has the details"),
        (RAISES.format(0, "ValueError('secret')"), b"1", {}, 500, "the model failed with ValueError; its log has the details"),
        (RAISES.format(0, "SystemExit('secret')"), b"1", {}, 500, "the model failed with SystemExit; its log has the details"),
        (MODEL_FN + "def predict_fn(d, m): import sys; sys.exit(0)", b"1", {}, 500, "the model failed with SystemExit; its log"),
        (MODEL_FN + "def predict_fn(d, m): return object()", b"1", {}, 500, "cannot write a prediction of type object"),
        (ECHO + "def input_fn(b, c): exit(1)", b"1", {}, 500, "the model failed with SystemExit; its log"),
        (ECHO + "def output_fn(p, a): exit(1)", b"1", {}, 500, "the model failed with SystemExit; its log"),
    ],
)
def test_an_error_is_json_that_says_what_was_wrong(client, tmp_path, caplog, source, body, headers, status, said):
    with caplog.at_level("INFO"):
        answer = post(client(source), body, CSV | headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    error = json.loads(answer.data)
    assert (set(error), error["code"], error["request_id"]) == ({"code", "message", "request_id"}, status, "r-7")
    assert said in error["message"]
    assert b"secret" not in answer.data
    assert b"Traceback" not in answer.data
    assert sum("request r-7: " in record.getMessage() for record in caplog.records) == 1, "the log knows it by its id"
    assert counted(tmp_path) == {str(status) if status in metrics.STATUSES else "other": 1}


@pytest.mark.parametrize(
    ("method", "path", "status", "said", "allowed"),
    [
        ("GET", "/invocations", 405, "/invocations does not take GET: accepted is ", {"POST", "OPTIONS"}),
        ("DELETE", "/invocations", 405, "/invocations does not take DELETE: accepted is ", {"POST", "OPTIONS"}),
        ("POST", "/invocation", 404, "there is no /invocation: accepted are POST /invocations, GET or POST /ping", set()),
        ("POST", "/invocations/", 404, "there is no /invocations/: accepted are POST /invocations", set()),
        ("GET", "/", 404, "there is no /: accepted are POST /invocations", set()),
    ],
)
def test_other_paths_and_methods(client, tmp_path, method, path, status, said, allowed):
    answer = client(ECHO).open(path, method=method, headers=CSV)
    assert answer.status_code == status
    error = json.loads(answer.data)
    assert (error["code"], error["request_id"]) == (status, "r-7")
    assert error["message"].startswith(said)
    assert set(answer.allow) == allowed
    assert counted(tmp_path) == {str(status): 1}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_ping_where_there_is_no_nginx(client, method):
    assert client(ECHO).open("/ping", method=method).status_code == 200


def test_every_header_reaches_the_script_and_its_own_come_back(client):
    source = MODEL_FN + (
        "def transform_fn(model, body, content_type, accept, context):\n"
        "    context.set_response_header('X-Model', context.headers['x-tenant'] + ' ' + context.request_id)\n"
        "    context.set_response_header('X-Amzn-SageMaker-Custom-Attributes', context.custom_attributes)\n"
        "    return str(0 < context.remaining() <= 60), 'text/plain'\n"
    )
    answer = post(client(source), headers=CSV | {"X-Tenant": "north", "X-Amzn-SageMaker-Custom-Attributes": "c=1; d"})
    assert answer.data == b"True"
    assert answer.headers["X-Model"] == "north r-7"
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "c=1; d"
    assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("X-A", "'b\\r\\nSet-Cookie: c'", "the model set a response header that HTTP cannot carry: 'X-A'"),
        ("X-A", "'b\\n'", "the model set a response header that HTTP cannot carry: 'X-A'"),
        ("X-A", "'\\x00'", "the model set a response header that HTTP cannot carry: 'X-A'"),
        ("X-A", "'\\u20ac'", "the model set a response header that HTTP cannot carry: 'X-A'"),
        ("X-A", "7", "the model set a response header that HTTP cannot carry: 'X-A'"),
        ("X A", "'b'", "the model set a response header that HTTP cannot carry: 'X A'"),
        ("", "'b'", "the model set a response header that HTTP cannot carry: ''"),
        ("Content-Type", "'a/b\\n'", "the model set a response header that HTTP cannot carry: 'Content-Type'"),
        (
            "X-Amzn-SageMaker-Custom-Attributes",
            "'a' * 1025",
            "the model set X-Amzn-SageMaker-Custom-Attributes to 1025 characters: up to 1024 visible ASCII ones are accepted",
        ),
        (
            "x-amzn-sagemaker-custom-attributes",
            "'\\xe9'",
            "the model set X-Amzn-SageMaker-Custom-Attributes to 1 characters: up to 1024 visible ASCII ones are accepted",
        ),
    ],
)
@pytest.mark.parametrize("generator", [False, True])
def test_a_header_that_http_cannot_carry_is_the_models_fault(client, name, value, said, generator):
    predict_fn = "def predict_fn(d, m, context):\n    context.set_response_header('X-First', '1')\n    {} 'a'\n"
    output_fn = f"def output_fn(p, a, context):\n    context.set_response_header({name!r}, {value})\n    return p, 'text/plain'\n"
    asked = client(MODEL_FN + predict_fn.format("yield" if generator else "return") + output_fn)
    for _ in range(2):  # the turn has been given back
        answer = post(asked)
        assert (answer.status_code, json.loads(answer.data)["message"]) == (500, said)
        assert "X-First" not in answer.headers


@pytest.mark.parametrize("value", ["'a' * 1024", "''", "'caf\\xe9'", "'a\\tb'"])
def test_a_header_that_http_can_carry(client, value):
    source = ECHO + f"def output_fn(p, a, context):\n    context.set_response_header('X-A', {value})\n    return 'a'\n"
    assert post(client(source)).headers["X-A"] == eval(value)


STREAM = MODEL_FN + "ENDED = []\ndef predict_fn(d, m):\n    try:\n{}\n    finally:\n        ENDED.append(1)\n"
PARTS = "        yield 'a'\n        yield 'b'"


def test_a_stream_comes_in_parts_past_the_buffers_of_nginx(client, tmp_path):
    asked = client(STREAM.format(PARTS))
    for _ in range(2):
        answer = post(asked)
        assert (answer.status_code, list(answer.iter_encoded())) == (200, [b"a", b"b"])
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in answer.headers
        answer.close()
    assert counted(tmp_path) == {"200": 2}
    assert "X-Accel-Buffering" not in post(client(ECHO)).headers


def test_a_stream_of_nothing_is_an_empty_answer(client):
    answer = post(client(STREAM.format("        return\n        yield")))
    assert (answer.status_code, answer.data) == (200, b"")


def test_a_stream_that_fails_at_once_still_has_a_status(client, tmp_path):
    asked = client(STREAM.format("        raise KeyError('secret')\n        yield"))
    for _ in range(2):
        answer = post(asked)
        assert (answer.status_code, json.loads(answer.data)["code"]) == (500, 500)
    assert counted(tmp_path) == {"500": 2}
    assert sys.modules["inference"].ENDED == [1, 1]


@pytest.mark.parametrize("error", ["KeyError('secret')", "SystemExit(1)"])
def test_a_stream_that_fails_midway_breaks_off_and_the_log_knows_why(client, caplog, error):
    asked = client(STREAM.format(f"        yield 'a'\n        raise {error}"))
    for _ in range(2):
        answer = post(asked, buffered=False)
        parts = answer.iter_encoded()
        assert next(parts) == b"a"
        with pytest.raises(Exception, match="the stream broke off"):
            next(parts)
        answer.close()
    logged = [record.getMessage() for record in caplog.records]
    assert ["request r-7: 500 " in line and "Traceback" in line for line in logged] == [True, True]


def test_a_stream_that_nobody_reads_on_is_ended_and_gives_its_turn_back(client):
    asked = client(STREAM.format(PARTS))
    for times in (1, 2):
        answer = post(asked, buffered=False)
        assert next(answer.iter_encoded()) == b"a"
        answer.close()
        assert [1] * times == sys.modules["inference"].ENDED


def test_a_stream_of_predictions_that_output_fn_uses_up_gives_its_turn_back(client):
    asked = client(STREAM.format(PARTS) + "def output_fn(p, a): return ''.join(p)\n")
    assert [post(asked).data for _ in range(2)] == [b"ab", b"ab"]


def test_nothing_is_predicted_while_a_stream_is_made(client):
    asked = client(STREAM.format(PARTS))
    first = post(asked, buffered=False)
    second = gevent.spawn(post, asked.application.test_client())
    gevent.idle()
    assert not second.ready()
    assert list(first.iter_encoded()) == [b"a", b"b"]
    first.close()
    assert second.get(timeout=10).data == b"ab"


@pytest.mark.parametrize(
    ("ago", "status", "said"),
    [(61, 504, "past its deadline"), (31, 503, "the limit is 30 s (MODEL_SERVER_MAX_WAIT)"), (29, 200, ""), (-5, 200, "")],
)
def test_a_request_that_waited_in_a_socket_has_waited(client, tmp_path, ago, status, said):
    source = MODEL_FN + "BEGUN = []\ndef predict_fn(d, m):\n    BEGUN.append(1)\n    return d\n"
    answer = post(client(source), headers=CSV | {"X-Request-Start": f"{time.time() - ago:.3f}"})
    assert answer.status_code == status
    assert said in answer.get_data(as_text=True)
    assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)
    assert len(sys.modules["inference"].BEGUN) == (status == 200)
    assert counted(tmp_path) == {str(status): 1}


@pytest.mark.parametrize("start", ["", "soon", None])
def test_without_nginx_a_request_arrives_when_it_arrives(client, start):
    headers = CSV if start is None else CSV | {"X-Request-Start": start}
    assert post(client(ECHO, timeout=5.0), headers=headers).status_code == 200


@pytest.mark.parametrize(("peer", "status"), [("waits", 200), ("has sent more", 200), ("closed", 499)])
def test_nothing_is_begun_for_a_client_that_has_gone(client, peer, status):
    ours, theirs = socket.socketpair()
    with gevent_socket.socket(fileno=ours.detach()) as connection, theirs:
        if peer == "has sent more":
            theirs.sendall(b"POST")
        elif peer == "closed":
            theirs.close()
        answer = post(client(ECHO), environ_overrides={"gunicorn.socket": connection})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("constant", "slow", "closed"),
    [("", 0.02, True), ("MAX_BATCH_SIZE = 8", 60.0, False), ("MAX_BATCH_SIZE = 8", -1.0, True)],
    ids=["without batching", "fast", "slow"],
)
def test_the_next_request_goes_to_whoever_is_idle(client, monkeypatch, constant, slow, closed):
    monkeypatch.setattr(exchange, "SLOW", slow)
    calls = []
    post(client(ECHO + constant), environ_overrides={"berth.close": lambda: calls.append(1)})
    assert bool(calls) == closed


def test_a_body_of_unknown_length_is_read_whole(client):
    chunked = {"wsgi.input": io.BytesIO(b"1,2"), "wsgi.input_terminated": True}  # as gunicorn gives a chunked one
    assert post(client(ECHO), None, environ_overrides=chunked).data == b"[[1.0,2.0]]"


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "Transfer-Encoding", "Connection", "Keep-Alive"])
def test_where_an_answer_ends_is_not_the_models_to_say(client, name):
    source = f"""
def model_fn(model_dir): return None
def predict_fn(data, model): return [1]
def output_fn(prediction, accept, context):
    context.set_response_header({name!r}, "1")
    return b"long", "text/plain"
"""
    answer = post(client(source))
    assert answer.status_code == 500
    assert name in answer.json["message"]
