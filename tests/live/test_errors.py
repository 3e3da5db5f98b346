"""Every error is JSON {code, message, request_id}: the workers', and those that nginx answers itself."""

import json

import pytest

from tests.live.clients import begun, busy, clients, http, send
from tests.waiting import until

pytestmark = pytest.mark.live
CLOSE = "Connection: close\r\n"


def error_of(answer):
    """The error in a raw answer: its status and JSON, after the checks that hold for every error."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    status = int(lines[0].split()[1])
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)
    assert set(error) == {"code", "message", "request_id"}
    assert error["code"] == status
    assert len(error["request_id"]) == 32
    return status, error["message"]


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (b"NONSENSE\r\n\r\n", 400, "not a valid HTTP request"),
        (b"GET /ping HTTP/1.1\r\n\r\n", 400, "not a valid HTTP request"),
        (http(headers=CLOSE + "Content-Length: x\r\n"), 400, "not a valid HTTP request"),
        (http(headers=CLOSE + "Transfer-Encoding: chunked\r\n"), 400, "not a valid HTTP request"),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "not a valid HTTP request"),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "not a valid HTTP request"),
        (b"GET /ping HTTP/3.0\r\nHost: x\r\n\r\n", 400, "not a valid HTTP request"),
        (http(headers=CLOSE + "X-Control: \x06\r\n"), 400, "control character"),
        (http(method="GET", path="/nothing", headers=CLOSE), 404, "/invocations, /ping"),
        (http(method="GET", headers=CLOSE), 405, "accepted is POST"),
        (http(method="DELETE", headers=CLOSE), 405, "accepted is POST"),
        (http(method="TRACE", headers=CLOSE), 405, "accepted is POST"),
        (http(method="NONSENSE-OF-A-METHOD-NAME", headers=CLOSE), 405, "accepted is POST"),
        (http(method="GET", path="/../..", headers=CLOSE), 400, "not a valid HTTP request"),
        (http(method="GET", path="/ping%00", headers=CLOSE), 400, "not a valid HTTP request"),
        (http(headers=CLOSE + "Content-Length: 99999999\r\n").replace(b"Content-Length: 0\r\n", b""), 413, "SAGEMAKER_MAX_PAYLOAD_IN_MB"),
        (http(path="/" + "x" * 40000, headers=CLOSE), 431, "32 KB"),
        (http(headers=CLOSE + f"X-Long: {'x' * 40000}\r\n"), 431, "32 KB"),
    ],
    ids=lambda value: value[:40].decode().split("\r")[0] if isinstance(value, bytes) else None,
)
def test_what_is_refused_before_a_worker_has_it(shared, request_, status, says):
    found, message = error_of(shared("echo").raw(request_))
    assert found == status
    assert says in message


@pytest.mark.parametrize(("path", "allowed"), [("/invocations", "POST"), ("/ping", "GET, HEAD, POST")])
def test_405_names_the_methods_that_are_taken(shared, path, allowed):
    answer = shared("echo").request("DELETE", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_the_errors_own_locations_are_no_paths(shared):
    assert shared("echo").get("/errors/502").status_code == 404


def test_502_for_a_request_whose_worker_is_killed(start):
    server = start("crash")
    assert server.post("fine").text == "fine"
    with server.connect() as connection:
        connection.sendall(http(b"SIGSEGV", headers=CLOSE + "Content-Type: text/csv\r\n"))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status, message = error_of(answer)
    assert status == 502
    assert "worker" in message
    server.await_log("SIGSEGV")
    until(lambda: len(server.pids("worker")) == 2, 20, "a new worker")
    assert {server.post("fine").status_code for _ in range(10)} == {200}


def test_504_past_the_deadline_and_the_worker_is_replaced(start):
    server = start("sleepy", env={"SAGEMAKER_MODEL_SERVER_TIMEOUT": "1", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    (stuck,) = server.pids("worker")
    with clients() as pool:
        first = send(pool, server, 300)
        server.await_log("began 300\n")
        waiting = server.raw(http(b"0.5", headers=CLOSE + "Content-Type: text/csv\r\n"))
        refused = first.result()
    for status, message in ((refused.status_code, refused.json()["message"]), error_of(waiting)):
        assert status == 504
        assert "1 s" in message
        assert "SAGEMAKER_MODEL_SERVER_TIMEOUT" in message
    until(lambda: server.pids("worker") not in ([], [stuck]), 20, "a new worker in the place of the stuck one")
    until(lambda: server.post("0").status_code == 200, 20, "an answer of the new worker")
    assert begun(server, 0.5) == 0


def test_503_for_what_has_waited_too_long(start):
    server = start("sleepy", env={"MODEL_SERVER_MAX_WAIT": "0.5", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    with busy(server, 3, workers=1), clients() as pool:
        refused = [send(pool, server, 0) for _ in range(5)]
    for answer in (future.result() for future in refused):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert "MODEL_SERVER_MAX_WAIT" in answer.json()["message"]
    assert begun(server, 0) == 0
    assert server.post("0").status_code == 200


def test_work_is_not_begun_for_a_client_that_has_gone(start):
    server = start("sleepy", env={"SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    with busy(server, 2, workers=1), clients() as pool:
        with server.connect() as impatient:
            impatient.sendall(http(b"0.25"))
        assert send(pool, server, 0.125).result().status_code == 200
    assert server.post("0").status_code == 200
    assert begun(server, 0.25) == 0


def test_exit_in_a_script_fails_its_request_and_not_the_worker(start):
    server = start("exits")
    before = server.pids("worker")
    answer = server.post("exit")
    assert answer.status_code == 500
    assert "SystemExit" in answer.json()["message"]
    assert server.post("fine").text == "fine"
    assert server.pids("worker") == before
