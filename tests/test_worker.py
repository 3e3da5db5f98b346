"""A worker's own loop, run here as a greenlet and asked through a real socket."""

import logging
import os
import signal
import socket as plain_socket
import sys
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import socket
from gunicorn.config import Config

from container import events, predictor
from container.app import App, create_app
from container.worker import Worker

DEADLINE = 10
MODEL_FN = "def model_fn(model_dir): return None\n"
ECHO = MODEL_FN + "def predict_fn(data, model): return data\n"
COUNTS = MODEL_FN + "MAX_BATCH_SIZE = 8\ndef input_fn(b, c): return [b]\ndef predict_fn(data, model): return [len(data)] * len(data)\n"


class Served:
    """A running worker, and how to reach it."""

    def __init__(self, worker, path):
        self.worker, self._path, self._clients = worker, path, []
        self.running = gevent.spawn(worker.run)

    def connect(self):
        client = socket.socket(socket.AF_UNIX)
        self._clients.append(client)
        client.settimeout(DEADLINE)
        client.connect(self._path)
        return client

    def refuses(self):
        try:
            self.connect()
        except ConnectionRefusedError:
            return True
        return False

    def stop(self):
        self.worker.alive = False
        for client in self._clients:
            client.close()
        self.running.join(timeout=DEADLINE)
        assert self.running.ready(), "the worker still runs"


@pytest.fixture
def serve(script, tmp_path, monkeypatch):
    """Serves a script's source, settings as keywords. The worker looks every 10 ms, not every second, whether it is to end."""
    running: list[Served] = []
    sleep = gevent.sleep
    monkeypatch.setattr(gevent, "sleep", lambda seconds=0.0: sleep(min(seconds, 0.01)))

    def serve(source, **fields):
        settings = script(source, **fields)
        path = str(tmp_path / "worker.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        config = Config()
        config.set("keepalive", 75)
        log: Any = logging.getLogger("gunicorn.test")
        no_app: Any = None
        worker: Any = Worker(1, os.getppid(), [listener], no_app, 60, config, log)
        worker.wsgi = create_app(settings, predictor.load(settings))
        worker.pid, worker.run_dir, worker._loaded = os.getpid(), tmp_path, lambda: None
        running.append(Served(worker, path))
        return running[-1]

    yield serve
    for served in running:
        served.stop()
        served.worker.tmp.close()


def text(body=b"1,2", *headers, path="/invocations"):
    """The bytes of a request."""
    lines = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: text/csv", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def read(client):
    """(status, headers with lower-cased names, body) of an answer that has a length."""
    file = client.makefile("rb")
    status = int(file.readline().split()[1])
    headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(file.readline, b"\r\n"))
    return status, headers, file.read(int(headers["content-length"]))


def everything(client):
    """All bytes until the worker closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def ask(client, *arguments, **options):
    client.sendall(text(*arguments, **options))
    return read(client)


def test_a_connection_is_kept_where_predictions_are_gathered(serve):
    client = serve(COUNTS).connect()
    for _ in range(3):
        status, headers, body = ask(client)
        assert (status, body) == (200, b"[1]")
        assert headers["connection"] == "keep-alive"


def test_and_closed_where_they_are_not(serve):
    client = serve(ECHO).connect()
    status, headers, body = ask(client)
    assert (status, headers["connection"], body) == (200, "close", b"[[1.0,2.0]]")
    assert everything(client) == b""


def test_requests_that_wait_on_several_connections_are_predicted_together(serve):
    served = serve(COUNTS)
    clients = [served.connect() for _ in range(5)]
    for client in clients:
        ask(client)
    for client in clients:
        client.sendall(text())
    assert [read(client)[2] for client in clients] == [b"[5]"] * 5


def test_all_are_answered_where_more_come_than_a_batch_holds(serve):
    served = serve(COUNTS, max_batch_size=2)
    clients = [served.connect() for _ in range(9)]
    for client in clients:
        client.sendall(text())
    assert [read(client)[0] for client in clients] == [200] * 9
    assert ask(served.connect())[0] == 200, "it takes up new connections again"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (text(b"1,2\n3"), 400),
        (text(b"1", path="/elsewhere"), 404),
        (text(b"1", "X-Request-Start: 1.0"), 504),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_an_error_has_its_status_and_leaves_the_worker_well(serve, raw, status):
    served = serve(COUNTS.replace("def input_fn(b, c): return [b]\n", ""))
    client = served.connect()
    client.sendall(raw)
    assert client.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
    assert ask(served.connect())[0] == 200


def test_a_body_that_nobody_read_is_not_taken_for_the_next_request(serve):
    client = serve(COUNTS).connect()
    assert ask(client, text(b"1"), path="/elsewhere")[0] == 404
    assert ask(client)[0] == 200


def test_the_application_sees_the_request_as_it_came(serve):
    source = (
        MODEL_FN
        + "def transform_fn(model, body, content_type, accept, context): return repr([body, content_type, accept, context.headers['x-a']])"
    )
    client = serve(source).connect()
    body = b"4\r\n1,2\n\r\n1\r\n3\r\n0\r\n\r\n"
    head = b"POST /invocations?a=b HTTP/1.1\r\nHost: x\r\ncontent-type: text/csv\r\nACCEPT: text/plain\r\nX-A: \xe9, 2\r\n"
    client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert read(client)[::2] == (200, repr(["1,2\n3", "text/csv", "text/plain", "\xe9, 2"]).encode())


def test_a_header_of_the_script_goes_out_as_it_is(serve):
    source = ECHO + "def output_fn(p, a, context):\n    context.set_response_header('X-A', 'caf\\xe9')\n    return 'a', 'text/x-own'\n"
    client = serve(source).connect()
    client.sendall(text())
    answer = everything(client)
    assert b"X-A: caf\xe9\r\n" in answer
    assert b"Content-Type: text/x-own\r\n" in answer


STREAM = MODEL_FN + "def predict_fn(d, m):\n    for part in {}:\n        yield part\n"


def test_a_stream_is_chunked_and_ends_whole(serve):
    client = serve(STREAM.format("('a', 'bc')")).connect()
    client.sendall(text())
    head, _, body = everything(client).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert body == b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"


BATCHED = COUNTS + "def output_fn(p, accept):\n    yield 'a'\n    raise OSError\n"


@pytest.mark.parametrize("source", [STREAM.format("('a', object())"), BATCHED], ids=["alone", "on a connection that would be kept"])
def test_a_stream_that_fails_midway_does_not_look_whole(serve, source):
    served = serve(source)
    for _ in range(2):
        client = served.connect()
        client.sendall(text())
        body = everything(client).partition(b"\r\n\r\n")[2]
        assert body == b"1\r\na\r\n"


def test_each_part_of_a_stream_leaves_as_soon_as_it_is_made(serve):
    gate = "import gevent.event\nGATE = gevent.event.Event()\n"
    source = gate + MODEL_FN + "def predict_fn(d, m):\n    yield 'a'\n    GATE.wait()\n    yield 'b'\n"
    client = serve(source).connect()
    client.sendall(text())
    received = b""
    while not received.endswith(b"1\r\na\r\n"):
        received += client.recv(65536)
    sys.modules["inference"].GATE.set()
    assert everything(client) == b"1\r\nb\r\n0\r\n\r\n"


def test_the_first_good_answer_is_told_once(serve, tmp_path):
    with events.listen(tmp_path) as listener:
        served = serve(COUNTS.replace("def input_fn(b, c): return [b]\n", ""))
        assert ask(served.connect(), b"1,2\n3")[0] == 400
        assert events.receive(listener) == []
        for _ in range(2):
            assert ask(served.connect())[0] == 200
        assert events.receive(listener) == [{"kind": "answered", "slot": 0, "pid": os.getpid()}]


def test_a_worker_that_is_to_end_answers_what_it_has_and_takes_no_more(serve, tmp_path):
    gate = "import gevent.event\nGATE = gevent.event.Event()\nBEGUN = gevent.event.Event()\n"
    source = gate + COUNTS.replace("return [len(data)]", "BEGUN.set(); GATE.wait(); return [len(data)]")
    served = serve(source)
    client = served.connect()
    client.sendall(text())
    assert sys.modules["inference"].BEGUN.wait(DEADLINE)
    served.worker.alive = False
    with gevent.Timeout(DEADLINE):
        while not served.refuses():
            gevent.sleep(0.01)
    assert not served.running.ready(), "it waits for the request that it has"
    sys.modules["inference"].GATE.set()
    assert read(client)[0] == 200


def test_the_application_is_called_now_and_then(serve):
    served, ticks = serve(ECHO), []
    served.worker.wsgi.tick = lambda: ticks.append(1)
    with gevent.Timeout(DEADLINE):
        while len(ticks) < 3:
            gevent.sleep(0.01)


def test_a_spent_worker_leaves_when_it_has_no_connection(serve, tmp_path, monkeypatch):
    looks = list[int]()

    def is_spent(app):
        looks.append(1)
        return len(looks) > 10

    monkeypatch.setattr(App, "is_spent", property(is_spent))
    with events.listen(tmp_path) as listener:
        served = serve(COUNTS)
        with gevent.Timeout(DEADLINE):
            while len(looks) < 5:
                gevent.sleep(0.01)
        client = served.connect()
        for _ in range(20):
            assert ask(client)[0] == 200, "as long as there is a connection it answers"
            gevent.sleep(0.01)
        assert len(looks) <= 10, "and is not even asked"
        assert events.receive(listener) == [{"kind": "answered", "slot": 0, "pid": os.getpid()}]
        client.close()
        served.running.join(timeout=DEADLINE)
        assert served.running.ready()
        assert events.receive(listener) == [{"kind": "leaves", "slot": 0, "pid": os.getpid()}]


def test_only_the_listening_sockets_are_gevents():
    ours, theirs = plain_socket.socketpair()
    with theirs:
        worker: Any = SimpleNamespace(sockets=[SimpleNamespace(FAMILY=plain_socket.AF_UNIX, sock=ours)], own_socket=False)
        Worker.patch(worker)
        (patched,) = worker.sockets
        assert isinstance(patched, socket.socket)
        assert plain_socket.socket is not socket.socket
        patched.close()


def test_a_worker_whose_heart_stood_still_says_so_and_is_gone(monkeypatch, caplog):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    worker: Any = SimpleNamespace(slot=2)
    Worker.handle_abort(worker, signal.SIGABRT, None)
    assert codes == [1]
    assert caplog.messages == ["worker 2 is ended: a prediction ran on long after its deadline (SAGEMAKER_MODEL_SERVER_TIMEOUT)"]
