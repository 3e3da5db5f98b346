"""What the supervisor answers by itself: GET /models by pages, /metrics, on a socket."""

import base64
import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from container import status
from container.metrics import Counters
from container.registry import Ledger

ROOT = Path(__file__).parent.parent


@pytest.fixture
def models(tmp_path):
    """GET /models over models of these names in two shards."""
    ledgers = [Ledger(tmp_path / f"models-{slot}.jsonl") for slot in (0, 1)]

    def make(*names):
        for number, name in enumerate(names):
            ledgers[number % 2].add(name, f"/opt/ml/models/{name}/model")
        return status.models_of(tmp_path)

    yield make
    for ledger in ledgers:
        ledger.close()


def test_without_models_the_list_is_empty_and_has_no_token(models):
    code, content_type, body = models()({}, "request-7")
    assert (code, content_type, json.loads(body)) == (200, "application/json", {"models": []})


@pytest.mark.parametrize("names", [["a"], ["é", "a/b", "\n"], [f"m{number}" for number in range(250)], ["\U0001f600" * 1024, "z", "a"]])
@pytest.mark.parametrize("limit", ["1", "100", "1000", None])
def test_each_model_is_on_one_page(models, names, limit):
    ask, query = models(*names), {} if limit is None else {"limit": limit}
    found = []
    while True:
        code, _, body = ask(query, "request-7")
        assert code == 200
        answer = json.loads(body)
        found += answer["models"]
        if "nextPageToken" not in answer:
            break
        assert answer["models"]
        query = query | {"next_page_token": answer["nextPageToken"]}
    assert found == [{"modelName": name, "modelUrl": f"/opt/ml/models/{name}/model"} for name in sorted(names)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": "0"}, "limit='0' cannot be used: accepted is a number, 1 to 1000"),
        ({"limit": "1001"}, "limit='1001' cannot be used: accepted is a number, 1 to 1000"),
        ({"limit": "-1"}, "limit='-1' cannot be used: accepted is a number, 1 to 1000"),
        ({"limit": "many"}, "limit='many' cannot be used: accepted is a number, 1 to 1000"),
        ({"limit": "1e2"}, "limit='1e2' cannot be used: accepted is a number, 1 to 1000"),
        ({"next_page_token": "x"}, "next_page_token='x' is none that this server gave"),
        ({"next_page_token": "100"}, "next_page_token='100' is none that this server gave"),
        ({"next_page_token": "é"}, "next_page_token='é' is none that this server gave"),
        ({"next_page_token": "a b="}, "next_page_token='a b=' is none that this server gave"),
        ({"next_page_token": base64.urlsafe_b64encode(b"\xff").decode()}, "next_page_token='_w==' is none that this server gave"),
        ({"next_page_token": "!" * 5000}, f"next_page_token='{'!' * 100}' is none that this server gave"),
    ],
)
def test_a_page_that_there_cannot_be(models, query, said):
    code, content_type, body = models("a")(query, "request-7")
    assert (code, content_type) == (400, "application/json")
    assert json.loads(body) == {"code": 400, "message": said, "request_id": "request-7"}


def test_a_token_of_the_last_page_and_beyond(models):
    ask = models("a", "b")
    assert json.loads(ask({"next_page_token": base64.urlsafe_b64encode(b"z").decode()}, "")[2]) == {"models": []}


@contextmanager
def listening(source, directory):
    """A program that serves until its input ends; in a process of its own, for the thread that answers has no end."""
    with subprocess.Popen(
        (sys.executable, "-c", source, str(directory)), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listens\n"
        yield
        server.communicate(timeout=10)
    assert server.returncode == 0


def test_what_is_served_on_the_socket(tmp_path):
    (tmp_path / "metrics").mkdir()
    Counters.of_worker(tmp_path / "metrics", 0, 1).count(200)
    address = tmp_path / "status.sock"
    source = (
        "import sys\nfrom pathlib import Path\nfrom container import status\nhere = Path(sys.argv[1])\n"
        "answers = {'/metrics': status.metrics_of(here / 'metrics'), '/models': status.models_of(here)}\n"
        "status.serve(here / 'status.sock', answers)\nprint('listens', flush=True)\nsys.stdin.read()\n"
    )
    with listening(source, tmp_path):
        assert address.stat().st_mode & 0o777 == 0o666
        for _ in range(2):
            head, body = get(address, "/metrics")
            assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4")
            assert f"Content-Length: {len(body)}".encode() in head
            assert b'berth_requests_total{status="200"} 1.0' in body
        head, body = get(address, "/models?limit=0&limit=5")
        assert head.startswith(b"HTTP/1.0 400 Bad Request\r\nContent-Type: application/json")
        assert json.loads(body)["request_id"] == "request-7"
        assert json.loads(get(address, "/models?limit=5")[1]) == {"models": []}


def test_without_another_thread_the_list_is_served_all_the_same(tmp_path):
    address = tmp_path / "status.sock"
    source = (
        "import sys, threading\nfrom pathlib import Path\nfrom container import status\nhere = Path(sys.argv[1])\n"
        "status.serve(here / 'status.sock', {'/models': status.models_of(here)})\n"
        'def start(thread): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\nprint('listens', flush=True)\nsys.stdin.read()\n"
    )
    with listening(source, tmp_path):
        for _ in range(2):
            assert json.loads(get(address, "/models")[1]) == {"models": []}


def get(address, target):
    """Head and body of the answer to a GET on a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(address))
        client.sendall(f"GET {target} HTTP/1.0\r\nHost: x\r\nx-request-id: request-7\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
        return head, body
