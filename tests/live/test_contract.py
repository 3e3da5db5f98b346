"""The checks of the platform's contract that apply to one model (docs/contract.md), by their numbers."""

import io
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests

from tests.live.clients import busy, clients, http, send
from tests.live.launcher import in_docker
from tests.waiting import until

pytestmark = pytest.mark.live
MB = 1024 * 1024


def test_01_only_the_word_serve_is_needed(shared):
    processes = shared("echo").processes()
    program = next(process for process in processes if process.role == "serve")
    assert "python" in program.command.split()[0]
    assert program.command.split()[-1].rpartition("/")[2] == "serve"
    assert sorted(process.role for process in processes) == ["gunicorn", "nginx", "nginx worker", "serve", "worker", "worker"]


@in_docker
def test_02_an_unknown_word_is_refused_in_one_line(start):
    server = start.run("bogus", start.base_dir(), {})
    assert server.wait() != 0
    assert server.output()[0] == ""
    assert server.output()[1].count("\n") == 1
    assert "'bogus'" in server.last_words()
    assert "serve, train" in server.last_words()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_03_ping_is_200_a_hundred_times(shared, method):
    answers = [shared("echo").request(method, "/ping") for _ in range(100)]
    assert {answer.status_code for answer in answers} == {200}
    assert max(answer.elapsed.total_seconds() for answer in answers) < 1


def test_03_ping_is_this_path_alone(shared):
    assert shared("echo").get("/ping/").status_code == 404


def test_04_ping_is_503_while_the_model_loads(start):
    server = start("slow_load", ready=False)
    server.await_listening()
    assert server.get("/ping").status_code == 503
    refused = server.post("1")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert "loaded" in refused.json()["message"]
    (server.base_dir / "model" / "go").touch()
    server.await_ready()
    assert server.post("1").text == "1"


def test_04_a_model_that_cannot_be_loaded_ends_the_server(start):
    server = start("failing_load", ready=False)
    assert server.wait() != 0
    assert server.last_words().startswith("STARTUP FAILED: model_fn in ")
    assert "inference.py, line 9, raised OSError: weights.bin is truncated" in server.last_words()
    assert "ready:" not in server.logs()


def test_05_it_is_ready_soon(start):
    before = time.monotonic()
    start("defaults")
    assert time.monotonic() - before < 60


def test_05_serverless_is_one_worker(start):
    server = start("echo", env={"MODEL_SERVER_PROFILE": "serverless"})
    assert len(server.pids("worker")) == 1
    assert server.post("1").text == "1"


def test_06_connections_are_accepted_while_all_workers_compute(start):
    server = start("sleepy")
    with busy(server, 55):
        seconds = []
        for _ in range(200):
            before = time.monotonic()
            server.connect().close()
            seconds.append(time.monotonic() - before)
    assert max(seconds) < 0.25


@pytest.mark.parametrize("path", ["/ping", "/metrics", "/execution-parameters"])
def test_07_these_never_wait_for_a_prediction(start, path):
    server = start("sleepy")
    with busy(server, 55):
        answer = server.get(path, timeout=10)
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() < 2


def _npy(rows):
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows))
    return buffer.getvalue()


READ: dict[str, Callable[[bytes], Any]] = {
    "application/json": json.loads,
    "text/csv": lambda body: [float(line) for line in body.decode().split()],
    "application/jsonlines": lambda body: [json.loads(line) for line in body.splitlines()],
    "application/x-npy": lambda body: np.load(io.BytesIO(body)).tolist(),
}
BODIES = {
    "text/csv": b"1,2\n3,4\n",
    "text/csv; charset=utf-8; header=absent": b"1,2\n3,4\n",
    "application/json": b"[[1, 2], [3, 4]]",
    "Application/JSON;charset=UTF-8": b'{"instances": [[1, 2], [3, 4]]}',
    "application/jsonlines": b"[1, 2]\n[3, 4]\n",
    "application/x-npy": _npy([[1, 2], [3, 4]]),
}
ACCEPTS = {
    None: "application/json",
    "*/*": "application/json",
    "text/csv": "text/csv",
    "application/json;q=0.5, text/csv": "text/csv",
    "image/png, application/*;q=0.1": "application/json",
    "application/jsonlines": "application/jsonlines",
    "application/x-npy": "application/x-npy",
}


@pytest.mark.parametrize("content_type", BODIES)
@pytest.mark.parametrize("accept", ACCEPTS)
def test_08_content_type_and_accept(shared, content_type, accept):
    answer = shared("defaults").post(BODIES[content_type], content_type, accept)
    assert answer.status_code == 200
    answered = answer.headers["Content-Type"].partition(";")[0]
    assert answered == ACCEPTS[accept]
    values = READ[answered](answer.content)
    assert (values["predictions"] if isinstance(values, dict) else values) == [3, 7]


@pytest.mark.parametrize(
    ("script", "body", "content_type", "accept", "status", "says"),
    [
        ("defaults", "1,2", "image/png", None, 415, "text/csv"),
        ("defaults", "1,2", "text/csv", "image/png", 406, "application/json"),
        ("defaults", "1,2", "text/csv", "application/octet-stream", 406, "application/json"),
        ("defaults", '{"instances": [', "application/json", None, 400, "JSON"),
        ("defaults", b"\xff\xfe\x00", "text/csv", None, 400, "utf-8"),
        ("raises", "input_fn", "text/csv", None, 400, "expected a number"),
        ("raises", "runtime", "text/csv", None, 500, "RuntimeError"),
        ("raises", "predict_fn", "text/csv", None, 500, "ValueError"),
        ("raises", "output_fn", "text/csv", None, 500, "KeyError"),
        ("raises", "status", "text/csv", None, 422, "try the other endpoint"),
    ],
)
def test_09_what_fails_says_why(shared, script, body, content_type, accept, status, says):
    answer = shared(script).post(body, content_type, accept)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()
    assert set(error) == {"code", "message", "request_id"}
    assert error["code"] == status
    assert says.lower() in error["message"].lower()
    assert len(answer.content) < 1000
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text


def test_09_the_log_has_the_traceback_under_the_request_id(shared):
    server = shared("raises")
    request_id = server.post("predict_fn").json()["request_id"]
    log = server.await_log(f"request {request_id}: 500 ValueError: secret of the prediction\nTraceback")
    assert 'inference.py", line' in log


def test_10_unknown_headers_are_no_obstacle(shared):
    headers = {f"X-Amzn-Unknown-{number}": "x" * 1024 for number in range(16)}
    headers |= {"X-Forwarded-For": "10.0.0.1, 10.0.0.2", "X-Forwarded-Proto": "https", "X-Amzn-Trace-Id": "Root=1-2-3;Sampled=1"}
    assert shared("echo").post("1", headers=headers).text == "1"


@pytest.mark.parametrize("headers", [{"X-Long": "x" * 30000}, {f"X-{number}": "" for number in range(150)}], ids=["long", "many"])
def test_10_large_headers_are_no_obstacle(shared, headers):
    assert shared("echo").post("1", headers=headers).text == "1"


def test_10_neither_is_a_long_query(shared):
    assert shared("echo").request("POST", f"/invocations?{'x' * 20000}", data="1").text == "1"


def test_11_the_platforms_headers_reach_the_script(shared):
    sent = {
        "X-Amzn-SageMaker-Custom-Attributes": 'a=b; c="d"',
        "X-Amzn-SageMaker-Target-Model": "one.tar.gz",
        "X-Amzn-SageMaker-Target-Variant": "blue",
        "X-Amzn-SageMaker-Inference-Id": "id-1",
        "X-Amzn-SageMaker-Session-Id": "NEW_SESSION",
    }
    answer = shared("headers").post("{}", "application/json", headers=sent)
    seen = answer.json()
    lower = {name.lower(): value for name, value in seen["headers"].items()}
    assert {name: lower.get(name.lower()) for name in sent} == sent
    assert seen["custom_attributes"] == 'a=b; c="d"'
    assert seen["inference_id"] == "id-1"
    assert len(seen["request_id"]) == 32
    assert 50 < seen["remaining"] <= 60
    assert "X-Amzn-SageMaker-Custom-Attributes" not in answer.headers


def test_11_the_script_sets_response_headers(shared):
    wish = {"X-Amzn-SageMaker-Custom-Attributes": 'e=f; g="h"', "X-Model-Version": "7"}
    answer = shared("headers").post(json.dumps(wish), "application/json")
    assert {name: answer.headers.get(name) for name in wish} == wish


@pytest.mark.parametrize(
    "wish",
    [
        {"X-Bad": "a\r\nSet-Cookie: b"},
        {"Bad name": "a"},
        {"X-Amzn-SageMaker-Custom-Attributes": "a" * 1025},
        {"X-Amzn-SageMaker-Custom-Attributes": "ä"},
    ],
    ids=["line break", "name", "too long", "not ASCII"],
)
def test_11_response_headers_that_http_cannot_carry_are_an_error(shared, wish):
    answer = shared("headers").post(json.dumps(wish), "application/json")
    assert answer.status_code == 500
    assert "Set-Cookie" not in answer.headers


def _chunked(body):
    return (body[at : at + 65536] for at in range(0, len(body), 65536))


@pytest.mark.parametrize("how", [bytes, _chunked], ids=["length", "chunked"])
def test_12_bodies_of_25_mb(shared, how):
    body = b"0123456789abcdef" * (25 * MB // 16)
    answer = shared("echo").post(how(body), "application/octet-stream")
    assert answer.status_code == 200
    assert answer.content == body


@pytest.mark.parametrize("how", [bytes, _chunked], ids=["length", "chunked"])
def test_12_larger_ones_are_413(shared, how):
    try:
        answer = shared("echo").post(how(bytes(25 * MB + 1)), "application/octet-stream")
    except requests.ConnectionError:
        pytest.fail("the connection was reset instead of answered")
    assert answer.status_code == 413
    assert "25 MB" in answer.json()["message"]
    assert "SAGEMAKER_MAX_PAYLOAD_IN_MB" in answer.json()["message"]


def test_12_the_limit_can_be_set(start):
    server = start("echo", env={"SAGEMAKER_MAX_PAYLOAD_IN_MB": "1"})
    assert server.post(bytes(MB), "application/octet-stream").status_code == 200
    refused = server.post(bytes(MB + 1), "application/octet-stream")
    assert refused.status_code == 413
    assert "1 MB" in refused.json()["message"]


def test_12_a_batch_job_sends_100_mb(start):
    server = start("echo", env={"SAGEMAKER_BATCH": "true"})
    body = b"0123456789abcdef" * (100 * MB // 16)
    assert server.post(body, "application/octet-stream").content == body


def test_13_a_stream_arrives_part_by_part(shared):
    with requests.post(f"{shared('stream').url}/invocations", json={"parts": 3, "seconds": 1}, stream=True, timeout=30) as answer:
        arrived = [(time.monotonic(), part) for part in answer.iter_content(None)]
    assert b"".join(part for _, part in arrived) == b"part 0\npart 1\npart 2\n"
    assert arrived[-1][0] - arrived[0][0] > 1.5
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Transfer-Encoding"] == "chunked"


def test_13_a_stream_that_fails_midway_breaks(shared):
    body = b'{"parts": 3, "fail_at": 2}'
    answer = shared("stream").raw(http(body, headers="Content-Type: application/json\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"part 1\n" in answer
    assert not answer.endswith(b"\r\n0\r\n\r\n")
    assert b"secret" not in answer


def test_13_a_stream_that_fails_at_once_is_an_error(shared):
    answer = shared("stream").post('{"parts": 3, "fail_at": 0}', "application/json")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json()["message"]


def test_14_sigterm_lets_a_prediction_end(start):
    server = start("sleepy")
    with clients() as pool:
        answer = send(pool, server, 5)
        server.await_log("began 5\n")
        before = time.monotonic()
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ping").status_code == 503, 3, "/ping being 503")
        assert not answer.done()
        assert answer.result().json()["slept"] == 5
    assert server.wait() == 0
    assert time.monotonic() - before < 30


def test_14_sigterm_ends_an_idle_server_at_once(start):
    server = start("echo")
    server.signal(signal.SIGTERM)
    assert server.wait(5) == 0


def test_15_a_worker_that_is_killed_is_replaced(start):
    server = start("echo")
    before = server.pids("worker")
    server.kill(before[0])
    until(lambda: len(now := server.pids("worker")) == 2 and now != before, 20, "a new worker")
    assert server.ended() is None
    assert server.post("1").text == "1"


@pytest.mark.parametrize("role", ["gunicorn", "nginx"])
def test_15_a_server_that_lost_its_half_ends(start, role):
    server = start("echo")
    (pid,) = server.pids(role)
    server.kill(pid)
    assert server.wait(10) != 0
    assert server.last_words().startswith(f"FAILED: {role} (pid ")
    assert "was killed by SIGKILL" in server.last_words()


ANY_USER = ["--user", "54321:12345"]
READ_ONLY = ["--read-only", "--tmpfs", "/tmp"]


@in_docker
@pytest.mark.parametrize(
    "docker",
    [READ_ONLY, ANY_USER, ["--ipc", "none"], READ_ONLY + ANY_USER + ["--ipc", "none", "--cap-drop", "ALL"]],
    ids=["read-only", "any user", "no shared memory", "all of these"],
)
def test_16_sandboxes(start, docker):
    server = start("defaults", docker=docker)
    assert server.post("1,2", accept="text/csv").text.strip() == "3.0"
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


ASK_INSIDE = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8080" + sys.argv[1], sys.argv[2].encode() or None, {"Content-Type": "text/csv"})
print(urllib.request.urlopen(request, timeout=5).read().decode())
"""


@in_docker
def test_17_without_network(start):
    server = start("echo", docker=["--network", "none"], ready=False)
    server.await_log("ready:", 30)
    assert "ready" in server.inside(ASK_INSIDE, "/ping", "")
    assert server.inside(ASK_INSIDE, "/invocations", "1,2").strip() == "1,2"


def test_18_only_the_given_port(start):
    server = start("echo", env={"SAGEMAKER_BIND_TO_PORT": "9123", "SAGEMAKER_SAFE_PORT_RANGE": "9124-9130"})
    assert server.url.startswith("http://127.0.0.1:")
    assert server.listening() == {9123}


@in_docker
def test_18_the_image_says_so(start):
    labels = json.loads(start("echo").inspect("{{json .Config.Labels}}"))
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert "com.amazonaws.sagemaker.capabilities.bidirectional-streaming" not in labels


def test_19_execution_parameters(start):
    answer = start("echo").get("/execution-parameters")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}


def test_25_metrics(start):
    server = start("defaults")
    server.post("1,2")
    server.post("1,2", "image/png")
    answer = server.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(lines['berth_requests_total{status="200"}']) == 1
    assert float(lines['berth_requests_total{status="415"}']) == 1
    assert float(lines['berth_request_seconds_count{phase="predict"}']) == 1
    assert float(lines['berth_worker_memory_bytes{worker="1"}']) > MB


def test_25_what_is_asked_all_the_time_is_not_logged(start):
    server = start("echo")
    for path in ("/ping", "/metrics"):
        server.get(path)
    server.post("1")
    log = server.await_log("POST /invocations")
    assert "/ping" not in log
    assert "/metrics" not in log


def test_25_there_is_no_websocket(shared):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "YmVydGgtYmVydGgtYmVydA==",
    }
    assert shared("echo").get("/invocations-bidirectional-stream", headers=upgrade).status_code == 404
