import json

import gevent
import pytest
from gevent import socket

from container import peers


@pytest.fixture
def shard(tmp_path):
    """A shard that answers with given bytes, then closes: answer -> (its path, what it was asked)."""
    greenlets = []

    def start(answer):
        path, asked = tmp_path / "shard.sock", bytearray()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()

        def serve():
            with listener, listener.accept()[0] as connection:
                asked.extend(connection.recv(65_536))
                connection.sendall(answer)

        greenlets.append(gevent.spawn(serve))
        return path, asked

    yield start
    gevent.killall(greenlets)


def test_the_answer_of_another_shard(shard):
    path, asked = shard(b'HTTP/1.1 409 Conflict\r\nContent-Length: 13\r\n\r\n{"code": 409}')
    answer = peers.ask(path, "POST", "/_copy/a%2Fb", b"{}", "request-7")
    assert (answer.status, answer.body, answer.content_type) == (409, b'{"code": 409}', "application/json")
    head, _, body = bytes(asked).partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /_copy/a%2Fb HTTP/1.1"
    assert {b"Connection: close", b"X-Request-Id: request-7", b"Content-Length: 2"} <= set(head.splitlines())
    assert body == b"{}"


def test_a_shard_that_dies_of_the_request(shard):
    path, _ = shard(b"")
    assert _error(peers.ask(path, "POST", "/_copy/a", b"", "request-7")) == (502, "request-7")


def test_a_shard_that_is_not_there(tmp_path):
    assert _error(peers.ask(tmp_path / "nobody.sock", "DELETE", "/_copy/a", b"", "request-7")) == (502, "request-7")


def test_a_shard_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "LOAD_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "shard.sock"))
        listener.listen()
        assert _error(peers.ask(tmp_path / "shard.sock", "POST", "/_copy/a", b"", "request-7")) == (504, "request-7")


def _error(answer):
    error = json.loads(answer.body)
    assert error["code"] == answer.status
    return answer.status, error["request_id"]
