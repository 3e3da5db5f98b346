"""The handler, called as a worker of Multi Model Server calls it, with that server's own context. What every front answers alike is in
test_parity.py.
"""

import gc
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from mms.context import Context, RequestProcessor

from container import events, mms_failures, model_handler
from container.errors import StartupError

MODEL_FN = "def model_fn(model_dir): return model_dir\n"
ECHO = MODEL_FN + "def predict_fn(data, model): return data\n"
CSV = {"content-type": "text/csv"}


class Worker:
    """One worker process of Multi Model Server: loads, then takes batches of (body, headers)."""

    def __init__(self, model_dir: Path, name: str = "m") -> None:
        self.context = Context(name, str(model_dir), None, 1, None, "1.1.11")
        assert model_handler.handle(None, self.context) is None

    def take(self, *requests):
        """(status, headers, body) for each."""
        self.context.request_processor = [RequestProcessor({"body": {"content-type": ""}} | headers) for _, headers in requests]
        self.context.request_ids = {index: f"id-{index}" for index in range(len(requests))}
        bodies = model_handler.handle([{} if body is None else {"body": bytearray(body)} for body, _ in requests], self.context)
        return [
            (self.context.get_response_status(index)[0], self.context.get_response_headers(index), body)
            for index, body in enumerate(bodies or [])
        ]


@pytest.fixture
def load(script, tmp_path, monkeypatch):
    """A worker of a script's source; fields: variables. many: as one model of a multi-model endpoint."""

    def build(source, many=False, **variables):
        path = "models/hash/model/code/inference.py" if many else "model/code/inference.py"
        script(source, path)
        for name, value in ({"SAGEMAKER_BASE_DIR": tmp_path, "SAGEMAKER_MULTI_MODEL": many} | variables).items():
            monkeypatch.setenv(name, str(value).lower() if isinstance(value, bool) else str(value))
        model_handler._model.cache_clear()
        return Worker((tmp_path / path).parent.parent)

    yield build
    gc.unfreeze()


@pytest.fixture
def short_dir():
    """A run directory: a socket's address is too short for pytest's own."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def message(answer):
    return json.loads(answer[2])["message"]


def test_one_request(load):
    ((status, headers, body),) = load(ECHO).take((b"1,2", CSV))
    assert (status, headers, body) == (200, {"content-type": "application/json"}, b"[[1.0,2.0]]")


def test_the_model_is_loaded_once(load, capfd):
    worker = load("def model_fn(model_dir): print('loading', flush=True)\ndef predict_fn(data, model): return data\n")
    worker.take((b"1", CSV))
    worker.take((b"1", CSV))
    assert capfd.readouterr().out.count("loading") == 1


def test_of_a_batch_what_is_wrong_fails_alone(load):
    answers = load(ECHO).take((b"1", CSV), (b"1\n2,3", CSV), (b"1", {"content-type": "image/png"}), (b"2", CSV))
    assert [status for status, _, _ in answers] == [200, 400, 415, 200]
    assert answers[3][2] == b"[[2.0]]"
    assert json.loads(answers[1][2])["request_id"] == "id-1"


@pytest.mark.parametrize(("largest", "calls"), [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (8, [5])])
def test_a_batch_is_predicted_together_as_far_as_the_script_allows(load, capfd, largest, calls):
    source = f"MAX_BATCH_SIZE = {largest}\n" + MODEL_FN
    worker = load(source + "def predict_fn(data, model): print('rows', len(data), flush=True); return data\n")
    answers = worker.take(*[(b"%d" % number, CSV) for number in range(5)])
    assert [body for _, _, body in answers] == [b"[[%d.0]]" % number for number in range(5)]
    assert [int(line.split()[1]) for line in capfd.readouterr().out.splitlines() if line.startswith("rows")] == calls


def test_many_models_are_where_the_context_says(load, tmp_path):
    source = "def model_fn(model_dir): return model_dir\n"
    source += "def transform_fn(model, body, content_type, accept, context): return context.model_name + ' ' + model, 'text/plain'\n"
    ((_, _, body),) = load(source, many=True).take((b"", CSV))
    assert body.decode() == f"m {tmp_path}/models/hash/model"


def test_one_model_has_no_name(load):
    source = MODEL_FN + "def transform_fn(model, body, content_type, accept, context): return repr(context.model_name), 'text/plain'\n"
    ((_, _, body),) = load(source).take((b"", CSV))
    assert body == b"''"


def test_what_nginx_says_of_the_request_is_believed(load):
    source = MODEL_FN + (
        "def transform_fn(model, body, content_type, accept, context):\n"
        "    return ' '.join([content_type, context.request_id, context.headers['content-type']]), 'text/plain'\n"
    )
    headers = {"content-type": "application/octet-stream", "X-Berth-Content-Type": "text/csv; charset=utf-8", "X-Request-Id": "n-1"}
    ((_, _, body),) = load(source).take((b"1", headers))
    assert body == b"text/csv n-1 text/csv; charset=utf-8"


@pytest.mark.parametrize(
    ("waited", "variables", "status", "said"),
    [
        (100, {}, 504, "past its deadline"),
        (40, {}, 503, "the limit is 30 s"),
        (40, {"MODEL_SERVER_MAX_WAIT": "50"}, 200, None),
        (0, {}, 200, None),
    ],
)
def test_what_has_waited_too_long_is_not_begun(load, waited, variables, status, said):
    (answer,) = load(ECHO, **variables).take((b"1", CSV | {"X-Request-Start": str(time.time() - waited)}))
    assert answer[0] == status
    assert said is None or said in message(answer)


@pytest.mark.parametrize("start", ["", "soon"])
def test_a_start_that_is_no_time_is_now(load, start):
    (answer,) = load(ECHO).take((b"1", CSV | {"X-Request-Start": start}))
    assert answer[0] == 200


def test_a_form_that_was_taken_apart(load):
    (answer,) = load(ECHO).take((None, {"content-type": "application/x-www-form-urlencoded"}))
    assert answer[0] == 415
    assert "application/x-www-form-urlencoded" in message(answer)


@pytest.mark.parametrize(("many", "status"), [(False, 500), (True, 507)])
def test_memory_that_a_prediction_lacks(load, many, status):
    (answer,) = load(MODEL_FN + "def predict_fn(data, model): raise MemoryError('secret')\n", many).take((b"1", CSV))
    assert answer[0] == status
    assert "secret" not in message(answer)


def test_a_content_type_that_the_protocol_would_break_at(load):
    (answer,) = load(MODEL_FN + "def transform_fn(m, b, c, a): return 'x', 'text/plain; name=\\xfc'\n").take((b"1", CSV))
    assert answer[0] == 500
    assert "not ASCII" in message(answer)


BROKEN = "def model_fn(model_dir): raise OSError('truncated')\ndef predict_fn(data, model): return data\n"
TOO_LARGE = BROKEN.replace("OSError('truncated')", "MemoryError")


@pytest.mark.parametrize(("source", "error"), [(BROKEN, StartupError), (TOO_LARGE, MemoryError)])
def test_what_cannot_be_loaded_raises_and_tells_the_supervisor(load, short_dir, source, error):
    with events.listen(short_dir) as listener:
        with pytest.raises(error, match=r"model_fn in .*line 1"):
            load(source, MODEL_SERVER_RUN_DIR=short_dir)
        (told,) = events.receive(listener)
    assert told["kind"] == events.FAILED
    assert "model_fn in" in told["cause"]


@pytest.mark.parametrize(("source", "error"), [(BROKEN, StartupError), (TOO_LARGE, MemoryError)])
def test_one_of_many_that_cannot_be_loaded_leaves_its_cause(load, short_dir, source, error):
    with events.listen(short_dir) as listener:
        with pytest.raises(error):
            load(source, many=True, MODEL_SERVER_RUN_DIR=short_dir)
        assert events.receive(listener) == []
    assert "model_fn in" in mms_failures.cause_file(short_dir, "m").read_text()


def test_a_failing_warm_up_fails_the_load(load):
    with pytest.raises(StartupError, match="warm-up"):
        load('WARMUP = ("text/csv", b"1")\n' + MODEL_FN + "def predict_fn(data, model): raise ArithmeticError\n")


@pytest.mark.parametrize(("many", "files"), [(False, 1), (True, 0)])
def test_one_model_says_that_it_is_loaded(load, short_dir, many, files):
    load(ECHO, many, MODEL_SERVER_RUN_DIR=short_dir)
    assert len(list(short_dir.glob(f"{model_handler.LOADED}*"))) == files


def test_while_it_loads_it_is_the_first_to_be_killed(load, capfd):
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    source = "from pathlib import Path\n" + ECHO.replace("return model_dir", "print('score', Path('/proc/self/oom_score_adj').read_text())")
    load(source)
    assert "score 1000" in capfd.readouterr().out
    assert score.read_text() == before


def test_who_is_stuck_ends():
    child = os.fork()
    if child == 0:
        try:
            with model_handler._ended_if_stuck(0.01):
                signal.pause()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGALRM


def test_who_is_not_stuck_goes_on(load):
    load(ECHO).take((b"1", CSV))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
