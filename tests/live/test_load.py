"""Many requests at once: nobody waits needlessly, no answer is mixed up, none that was accepted is lost."""

import re
import signal
import time
from pathlib import Path

import pytest

from tests.live.clients import clients, http, send
from tests.live.launcher import on_host
from tests.live.load import Load
from tests.waiting import until

pytestmark = pytest.mark.live


def kept_connections(server):
    """Connections between nginx and the workers that are open."""
    nginx = next(process for process in server.processes() if process.role == "nginx")
    [run_dir] = re.findall(r"-p (\S+)", nginx.command)
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return [row for row in rows if row[-1] == f"{run_dir}/gunicorn.sock" and row[5] == "03"]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("script", ["sleepy", "batches"])
@on_host
def test_a_long_prediction_holds_up_nobody_while_another_worker_is_idle(start, script, warm):
    server = start(script)
    with clients(24) as pool:
        if warm:
            for answer in [send(pool, server, 0) for _ in range(400)]:
                assert answer.result().status_code == 200
            if script == "batches":  # for a tenth of a second after a rush nginx may keep to a worker: docs/decisions/0003-connections.md
                until(lambda: not kept_connections(server), 2, "nginx closes the connections that are idle")
        long = send(pool, server, 4)
        server.await_log("began 4\n")
        seconds = [send(pool, server, 0).result().elapsed.total_seconds() for _ in range(30)]
        together = [send(pool, server, 0.001) for _ in range(60)]
        seconds += [answer.result().elapsed.total_seconds() for answer in together]
        assert not long.done()
        assert long.result().status_code == 200
    assert max(seconds) < 1.5


@pytest.mark.parametrize("seconds", [0.001, 0.05])
@on_host
def test_what_waits_is_predicted_together_by_fast_models_and_by_slow_ones(start, seconds):
    server = start("batches", env={"SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    with clients(8) as pool:
        sizes = [answer.result().json()[0] for answer in [send(pool, server, seconds) for _ in range(48)]]
    assert max(sizes) >= 4


@on_host
def test_a_slow_client_holds_no_worker(start):
    server = start("echo", env={"SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    with server.connect() as slow:
        slow.sendall(http(b"half of it")[:-5])
        assert server.post("1", timeout=5).text == "1"
        slow.sendall(b"of it")
        assert slow.recv(100).startswith(b"HTTP/1.1 200 ")


@on_host
def test_a_client_that_leaves_a_stream_frees_its_worker(start):
    server = start("stream", env={"SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    with server.connect() as leaving:
        leaving.sendall(http(b'{"parts": 1000, "seconds": 0.1}', headers="Content-Type: application/json\r\n"))
        assert leaving.recv(100).startswith(b"HTTP/1.1 200 ")
    assert server.post('{"parts": 1}', "application/json", timeout=10).text == "part 0\n"


@on_host
def test_a_stream_may_take_longer_than_a_prediction(start):
    server = start("stream", env={"SAGEMAKER_MODEL_SERVER_TIMEOUT": "1", "SAGEMAKER_MODEL_SERVER_WORKERS": "1"})
    answer = server.post('{"parts": 17, "seconds": 0.5}', "application/json")
    assert len(answer.text.splitlines()) == 17
    assert answer.elapsed.total_seconds() < 5  # until the first part
    assert "is gone" not in server.logs()


@on_host
def test_long_predictions_are_spread_over_idle_workers(start):
    server = start("sleepy")
    with clients() as pool:
        before = time.monotonic()
        answers = [send(pool, server, 2).result for _ in range(2)]
        assert len({answer().json()["pid"] for answer in answers}) == 2
        assert time.monotonic() - before < 3.5


def test_no_accepted_request_is_lost_to_sigterm(start):
    server = start("doubles")
    with Load(server, clients=24) as load:
        until(lambda: load.statuses()[200] > 500, 30, "500 answers")
        stopped = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert time.monotonic() - stopped < 30
    assert load.wrong() == []
    assert set(load.statuses()) <= {200, 503, 0}
    assert load.lost(stopped) == []


@on_host
def test_workers_are_killed_under_load(start):
    server, kills = start("doubles"), 4
    with Load(server, clients=32) as load:
        for number in range(kills):
            _await_answers(load, 500)
            server.kill(server.pids("worker")[number % 2])
            until(lambda: len(server.pids("worker")) == 2, 20, "a new worker")
        _await_answers(load, 500)
    assert server.ended() is None
    assert load.wrong() == []
    assert set(load.statuses()) <= {200, 502}
    assert load.statuses()[502] <= 32 * kills
    assert server.logs().count("was killed by SIGKILL (not for want of memory)") == kills


def _await_answers(load, count):
    before = load.statuses()[200]
    until(lambda: load.statuses()[200] >= before + count, 30, f"{count} further answers")
