"""Nothing that is sent makes the server fail, lose a worker or grow."""

import pytest

from tests.live import fuzz
from tests.live.launcher import on_host

pytestmark = pytest.mark.live
MB = 1024 * 1024


@on_host
def test_mutated_requests(start):
    server = start(model=fuzz.artifact)
    assert fuzz.run(server, seed=1, count=500) == []
    workers, before = server.pids("worker"), fuzz.memory(server)
    assert fuzz.run(server, seed=2, count=2500) == []
    assert server.pids("worker") == workers
    assert fuzz.memory(server) < before + 5 * MB
    assert "Traceback" not in server.logs()
    good = server.post(fuzz.BODIES["text/csv"], "text/csv", "text/csv")
    assert (good.status_code, len(good.text.split())) == (200, 2)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n1", ""),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"code": 400, "message": "", "request_id": ""}', ""),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"code": 500, "message": "", "request_id": ""}', "400: "),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n<html>", "400: b'<html>'"),
        (b'HTTP/1.1 500 Error\r\n\r\n{"code": 500, "message": "", "request_id": ""}', "500: "),
        (b"", "no answer"),
        (b"<html>", "no status line"),
    ],
)
def test_what_is_wrong_with_an_answer(answer, says):
    found = fuzz.complaint(fuzz.Wire(b"POST", broken=False), answer)
    assert found.startswith(says)
    assert bool(found) == bool(says)
