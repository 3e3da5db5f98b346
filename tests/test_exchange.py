"""Responses on their way to HTTP: streams that give their turn back once, and the same headers by either way."""

import json
import time
from typing import Any

import pytest

from container import exchange
from container.errors import ServingError
from container.exchange import Front, Stream
from container.message import Response
from container.metrics import Counters


def parts(*values):
    """A generator that raises where a value is an exception."""
    for value in values:
        if isinstance(value, BaseException):
            raise value
        yield value


@pytest.fixture
def released():
    return []


def stream(released, *values):
    return Stream(parts(*values), lambda: released.append("turn"), "r-7")


@pytest.mark.parametrize("values", [(), (b"a",), (b"a", b"", b"c")])
def test_a_stream_gives_all_parts_and_its_turn_back_once(released, values):
    whole = stream(released, *values)
    whole.then(lambda: released.append("model"))
    assert released == []
    assert b"".join(whole) == b"".join(values)
    whole.close()
    whole.close()
    assert released == ["turn", "model"]


@pytest.mark.parametrize("error", [KeyError("a"), SystemExit(1), GeneratorExit()])
def test_a_stream_that_fails_at_once_fails_as_it_is_and_holds_no_turn(released, error):
    with pytest.raises(type(error)):
        stream(released, error)
    assert released == ["turn"]


@pytest.mark.parametrize("error", [KeyError("secret"), SystemExit(1)])
def test_a_stream_that_fails_later_breaks_off_and_the_log_knows_the_request(released, caplog, error):
    broken = stream(released, b"a", error)
    assert next(broken) == b"a"
    with pytest.raises(ServingError, match=r"^the stream broke off$"):
        next(broken)
    broken.close()
    assert released == ["turn"]
    assert "request r-7: 500" in caplog.text


def test_a_turn_goes_back_even_if_the_generator_does_not_want_to_end(released):
    def stubborn():
        try:
            yield b"a"
        finally:
            raise KeyError("never")

    held = Stream(stubborn(), lambda: released.append("turn"), "")
    with pytest.raises(KeyError):
        held.close()
    assert released == ["turn"]


@pytest.mark.parametrize(
    "response",
    [
        Response(b"abc", "text/plain"),
        Response(b"", "application/json", 204),
        Response(b"{}", "application/json", 503, {"Retry-After": "1", "X-A": "b"}),
        Response(b"x", "text/csv; charset=utf-8", 299),
    ],
)
def test_both_ways_out_say_the_same(response):
    said: dict[str, Any] = {}
    body = exchange.direct(response, lambda status, headers: said.update(status=status, headers=dict(headers)))
    answer = exchange.http(response)
    assert said["status"].split()[0] == str(answer.status_code)
    assert said["headers"] == dict(answer.headers)
    assert b"".join(body) == answer.get_data()


def test_a_stream_passes_the_buffers_of_nginx_by_either_way(released):
    said: dict[str, str] = {}
    body = exchange.direct(Response(stream(released, b"a"), "text/plain"), lambda status, headers: said.update(headers))
    assert said == {"Content-Type": "text/plain", "X-Accel-Buffering": "no"}
    assert list(body) == [b"a"]
    assert exchange.http(Response(stream(released, b"a"), "text/plain")).headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize(("header", "arrived"), [("1700000000.123", 1700000000.123), ("", None), ("soon", None), (None, None)])
def test_when_a_request_arrived(header, arrived):
    before = time.time()
    found = exchange.arrival({} if header is None else {"HTTP_X_REQUEST_START": header})
    assert found == arrived if arrived else before <= found <= time.time()


def test_a_front_by_itself_is_ready_and_has_nothing_to_do():
    front, counters = Front(), Counters()
    assert front.start(counters, 0) is False
    assert front.counters is counters
    assert front.batcher is None
    front.tick()
    assert front.test_client().get("/ping").json == {"status": "ready"}


def test_what_is_accepted_names_what_others_answer():
    one, many = Front(), Front()
    many.add_url_rule("/models", view_func=lambda: "", methods=["POST"])
    many.elsewhere = {"/models": ("GET",)}
    refused = many.test_client().put("/models")
    assert (refused.status_code, set(refused.allow)) == (405, {"GET", "OPTIONS", "POST"})
    assert json.loads(refused.data)["message"] == "/models does not take PUT: accepted is GET or OPTIONS or POST"
    said = [json.loads(front.test_client().post("/invocations").data)["message"] for front in (one, many)]
    assert said == [
        "there is no /invocations: accepted are GET or POST /ping",
        "there is no /invocations: accepted are GET /models, POST /models, GET or POST /ping",
    ]
