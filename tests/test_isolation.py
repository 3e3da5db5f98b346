"""A model in a process of its own: the same answers, its own crash, and never another request's answer."""

import errno
import gc
import io
import json
import os
import signal
import time
from pathlib import Path

import gevent
import pytest

from container import isolation, predictor, resources
from container.errors import DeadlineExceeded, InsufficientStorage, ServingError, StartupError
from container.exchange import Endpoint
from container.message import Context, Headers, Request
from container.metrics import Counters
from container.predictor import Predictor
from container.settings import Settings
from tests.waiting import until

DEADLINE = 10
MODEL_FN = "import os, signal, time\ndef model_fn(model_dir): return model_dir\n"
ECHO = MODEL_FN + "def transform_fn(model, body, content_type, accept): return body, content_type\n"

# From Python 3.12 on a fork beside threads warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture
def start(tmp_path):
    """Loads a script in a process of its own; all are ended afterwards."""
    started: list[Predictor] = []

    def start(source, **fields):
        directory = tmp_path / f"m{len(started)}"
        (directory / "code").mkdir(parents=True)
        (directory / "code/inference.py").write_text(source)
        loaded = isolation.loader(Settings(base_dir=tmp_path).but(**fields))(directory)
        started.append(loaded)
        return loaded

    yield start
    for loaded in started:
        loaded.close()
    gc.unfreeze()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def ask(loaded, body=b"a", content_type="text/plain", accept="", **context):
    return loaded.respond(Request(body, content_type, accept, Context(**context)))


def message(response):
    return json.loads(response.body)["message"]


def test_the_answer_is_another_processs(start):
    loaded = start(MODEL_FN + "def transform_fn(m, b, c, a): return str(os.getpid()), 'text/plain'\n")
    pid = int(ask(loaded).body)
    assert pid != os.getpid()
    assert loaded.source.endswith(f"code/inference.py, in process {pid}")
    assert int(ask(loaded).body) == pid
    loaded.close()
    loaded.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("body", [b"", b"\x00\xff" * 1000, b"x" * (9 << 20)], ids=["nothing", "anything", "9 MB"])
def test_bodies_of_any_size_come_and_go(start, body):
    loaded = start(ECHO)
    for _ in range(2):
        assert ask(loaded, body, "application/octet-stream").body == body


def test_the_script_is_told_what_every_script_is_told(start):
    source = MODEL_FN + (
        "def transform_fn(model, body, content_type, accept, context):\n"
        "    context.set_response_header('X-Own', context.headers['x-TENANT'])\n"
        "    said = [context.custom_attributes, context.target_model, context.request_id, context.model_name, context.remaining() > 5]\n"
        "    return repr([body, content_type, accept, *said]), 'text/x-own'\n"
    )
    environ = {
        "HTTP_X_TENANT": "north",
        "HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES": "c=1",
        "HTTP_X_AMZN_SAGEMAKER_TARGET_MODEL": "m.tar.gz",
        "CONTENT_TYPE": "text/csv",
    }
    context = {"headers": Headers(environ), "request_id": "r-1", "deadline": time.time() + 10, "model_name": "a/b"}
    answer = ask(start(source), b"1", "text/csv; charset=utf-8", "text/html", **context)
    assert answer.body == repr(["1", "text/csv", "text/html", "c=1", "m.tar.gz", "r-1", "a/b", True]).encode()
    assert (answer.content_type, answer.headers) == ("text/x-own", {"X-Own": "north"})


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("def predict_fn(d, m): raise KeyError('secret')", 500, "the model failed with KeyError"),
        ("def predict_fn(d, m): raise SystemExit(1)", 500, "the model failed with SystemExit"),
        ("class E(Exception): status_code = 429\ndef predict_fn(d, m): raise E('slow down')", 429, "slow down"),
        ("def input_fn(b, c): raise ValueError('a')\ndef predict_fn(d, m): return 1", 400, "input_fn could not read the request"),
        ("def predict_fn(d, m): raise MemoryError('of 1 TB')", 507, "there was not enough memory for this prediction"),
        ("def transform_fn(m, b, c, a):\n    raise KeyError('secret')\n    yield", 500, "the model failed with KeyError"),
        (
            (
                "class E(Exception): status_code = 429\n"
                "def predict_fn(d, m):\n    raise E('slow down')\n    yield\ndef output_fn(p, a): return p"
            ),
            429,
            "slow down",
        ),
        (
            (
                "def predict_fn(d, m):\n    yield 'a'\n"
                "def output_fn(p, a, context):\n    context.set_response_header('X-A', 'b\\n')\n    return p"
            ),
            500,
            "the model set a response header that HTTP cannot carry: 'X-A'",
        ),
    ],
)
def test_an_error_of_the_model_is_an_answer_and_the_process_lives_on(start, source, status, said):
    loaded = start(MODEL_FN + source)
    for _ in range(2):
        answer = ask(loaded, b"1", "text/csv")
        assert (answer.status, isinstance(answer.body, bytes)) == (status, True)
        assert message(answer).startswith(said)
        assert b"secret" not in answer.body
    assert not loaded.is_dead()


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGSEGV)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_crash_is_one_models_alone(start, end):
    source = MODEL_FN + f"def transform_fn(m, b, c, a):\n    if b == 'crash': {end}\n    return b, c\n"
    one, other = start(source), start(source)
    with pytest.raises(isolation.ProcessDied, match="died with this request; it is started again for the next") as died:
        ask(one, b"crash")
    assert died.value.status == 502
    assert (one.is_dead(), other.is_dead()) == (True, False)
    assert ask(other).body == b"a"
    with pytest.raises(isolation.ProcessDied):
        ask(one)


@pytest.mark.parametrize("counts", [[3, 4], [3, 3]], ids=["by the kernel", "by somebody else"])
def test_whom_the_kernel_kills_for_want_of_memory_others_make_room(start, monkeypatch, counts):
    counted = iter(counts)  # when the request begins, and when it is lost
    monkeypatch.setattr(resources, "oom_kills", lambda: next(counted))
    monkeypatch.setattr(resources, "available", lambda: 5 << 20)
    loaded = start(MODEL_FN + "def transform_fn(m, b, c, a): os.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(ServingError) as lost:
        ask(loaded)
    if counts[0] == counts[1]:
        assert lost.value.status == 502
    else:
        assert lost.value.status == 507
        assert "want of memory, of which 5 MB are left now" in str(lost.value)


def test_a_process_that_was_killed_from_outside(start):
    loaded = start(MODEL_FN + "def transform_fn(m, b, c, a): return str(os.getpid())\n")
    os.kill(int(ask(loaded).body), signal.SIGKILL)
    with pytest.raises(isolation.ProcessDied):
        ask(loaded)
    assert loaded.is_dead()


def test_who_computes_past_the_deadline_is_ended(start, monkeypatch):
    monkeypatch.setattr(isolation, "KILL_AFTER", 0.1)
    loaded = start(MODEL_FN + "def transform_fn(m, b, c, a): signal.pause()\n")
    with pytest.raises(DeadlineExceeded, match="computed past the deadline and was ended"):
        ask(loaded, deadline=time.time())
    assert loaded.is_dead()


def test_who_is_given_up_in_the_middle_leaves_its_answer_to_nobody(start):
    loaded = start(MODEL_FN + "def transform_fn(m, b, c, a):\n    if b == 'wait': signal.pause()\n    return b, c\n")
    waiting = gevent.spawn(ask, loaded, b"wait")
    gevent.sleep(0)
    waiting.kill()
    assert loaded.is_dead(), "what it says next might be taken for another's answer"


STREAM = (
    MODEL_FN
    + """
def transform_fn(m, body, c, a):
    if body == 'plain':
        return 'plain', c
    return parts(m, body), c
def parts(m, body):
    try:
        for number in range(1000000 if body == 'endless' else 3):
            if body == 'fails' and number == 2: raise KeyError('a')
            if body == 'dies' and number == 2: os._exit(1)
            if body == 'hangs' and number == 2: signal.pause()
            yield 'x' * 1000
    finally:
        open(m + '/ended', 'a').write('.')
"""
)


def test_a_stream_comes_in_parts_and_the_next_answer_after_it(start):
    loaded = start(STREAM)
    for _ in range(2):
        assert list(ask(loaded, b"stream").body) == [b"x" * 1000] * 3
        assert ask(loaded, b"plain").body == b"plain"


@pytest.mark.parametrize("body", [b"stream", b"endless", b"fails"])
@pytest.mark.parametrize("read", [1, 2])
def test_after_a_stream_that_is_left_the_next_answer_is_the_next_ones_own(start, tmp_path, body, read):
    loaded = start(STREAM)
    for times in (1, 2, 3):
        parts = iter(ask(loaded, body).body)
        for _ in range(read):
            next(parts)
        parts.close()
        assert ask(loaded, b"plain").body == b"plain"
        assert (tmp_path / "m0/ended").read_text() == "." * times
    assert not loaded.is_dead()


@pytest.mark.parametrize(
    ("body", "error", "said", "dead"),
    [
        (b"fails", ServingError, "the stream broke off", False),
        (b"dies", isolation.ProcessDied, "the process of this model died", True),
        (b"hangs", DeadlineExceeded, "computed past the deadline", True),
    ],
)
def test_a_stream_that_ends_badly_breaks_off(start, monkeypatch, body, error, said, dead):
    monkeypatch.setattr(isolation, "KILL_AFTER", 0.1)
    loaded = start(STREAM, timeout=0.1)
    parts = iter(ask(loaded, body, deadline=time.time() + DEADLINE).body)
    with pytest.raises(error, match=said):
        list(parts)
    assert loaded.is_dead() == dead
    if not dead:
        assert ask(loaded, b"plain").body == b"plain"


def test_one_request_at_a_time_through_the_queue_that_all_models_have(start, tmp_path):
    loaded = start(STREAM)
    endpoint, counters = Endpoint(Settings(), loaded), Counters()

    def invoke(body):
        environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "text/plain", "REQUEST_METHOD": "POST"}
        response = endpoint.invoke(environ, counters)
        return response.body if isinstance(response.body, bytes) else b"".join(response.body)

    bodies = [b"plain", b"stream"] * 5
    asked = [gevent.spawn(invoke, body) for body in bodies]
    gevent.joinall(asked, timeout=DEADLINE)
    assert [each.value for each in asked] == [b"plain" if body == b"plain" else b"x" * 3000 for body in bodies]


@pytest.mark.parametrize(
    ("model_fn", "error", "said"),
    [
        ("raise KeyError('a')", StartupError, "model_fn in .*inference.py, line 4, raised KeyError"),
        ("raise MemoryError", MemoryError, "does not fit into memory"),
        ("os._exit(3)", StartupError, "the process that loaded .*m0 ended with code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", StartupError, "the process that loaded .*m0 was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", MemoryError, "the process that loaded .*m0 was killed"),
    ],
)
def test_a_load_that_fails(start, model_fn, error, said):
    with pytest.raises(error, match=said):
        start(f"import os, signal\n\ndef model_fn(model_dir):\n    {model_fn}\ndef predict_fn(d, m): return 1\n")


def test_a_load_that_fails_as_none_is_known_to(start, monkeypatch):
    def broken(settings, directory):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(predictor, "load", broken)
    with pytest.raises(StartupError, match=r"m0 cannot be loaded: OSError: \[Errno 5\] Input/output error$"):
        start(ECHO)


@pytest.mark.parametrize("missing", ["os.fork", "socket.socketpair"])
def test_without_another_process_to_be_had_others_must_go(start, monkeypatch, missing):
    def none_left():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(missing, none_left)
    with pytest.raises(InsufficientStorage, match=r"^no process can be started for .*m0: Resource temporarily unavailable$"):
        start(ECHO)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_load_that_never_ends_is_ended(start, monkeypatch):
    monkeypatch.setattr(isolation, "LOAD_SECONDS", 0.1)
    with pytest.raises(StartupError, match="was not ready within 0 s"):
        start("import signal\ndef model_fn(model_dir): signal.pause()\n")


def test_a_process_ends_with_its_shard_and_holds_none_of_its_connections(start):
    """Of two models the second was forked later: it must not hold the first one's socket open."""
    source = MODEL_FN + "def transform_fn(m, b, c, a): return ' '.join(os.listdir('/proc/self/fd')), 'text/plain'\n"
    for loaded in (start(source), start(source)):
        assert len(ask(loaded).body.split()) <= 5, "standard streams, its socket, and the directory that is listed"


def test_a_process_whose_shard_is_gone_ends(start, tmp_path):
    shard = os.fork()
    if shard == 0:
        loaded = start(MODEL_FN + "def transform_fn(m, b, c, a): return str(os.getpid())\n")
        (tmp_path / "pid.new").write_bytes(ask(loaded).body)
        (tmp_path / "pid.new").rename(tmp_path / "pid")
        os._exit(0)
    os.waitpid(shard, 0)
    pid = int((tmp_path / "pid").read_text())

    def gone():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except FileNotFoundError:
            return True

    until(gone, DEADLINE, "the model's process ends")
