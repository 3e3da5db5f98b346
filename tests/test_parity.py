"""Nothing is written twice: every front answers the same request alike, or the table says why not."""

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from mms.context import Context as MmsContext
from mms.context import RequestProcessor
from werkzeug.datastructures import Headers

from container import app, model_handler, multi_app, predictor
from container.errors import ServingError
from container.metrics import Counters
from container.settings import Settings
from tests.parity import CASES, REQUEST_ID, Answer, Case, write

Front = Callable[[Case], Answer]


def flask(settings: Settings, closing: ExitStack) -> Front:
    """Front 1, through Flask's test client."""
    return _asking(app.create_app(settings, predictor.load(settings)).test_client(), "/invocations")


def many(settings: Settings, closing: ExitStack) -> Front:
    """Front 2 with one shard, which the model is loaded into as the platform has it done."""
    run_dir = settings.base_dir / "run"
    (run_dir / "metrics").mkdir(parents=True)
    shard = multi_app.create_app(settings.but(run_dir=run_dir, workers=1, preload_libraries=("json",)))
    shard.start(Counters.of_worker(run_dir / "metrics", 0, os.getpid()), 0)
    closing.callback(shard.models._ledger.close)
    closing.callback(shard.models._threads.kill)
    client = shard.test_client()
    assert client.post("/_load/a", json={"model_name": "a", "url": str(settings.model_dir)}).status_code == 200
    return _asking(client, "/models/a/invoke")


def _asking(client: Any, path: str) -> Front:
    def ask(case: Case) -> Answer:
        answer = client.post(path, data=case.body, headers=dict(case.headers) | {"X-Request-Id": REQUEST_ID})
        try:
            return Answer.of(answer.status_code, answer.headers, answer.data)
        except ServingError as error:  # of which a server makes a broken answer
            return Answer.of(answer.status_code, answer.headers, repr(error).encode())
        finally:
            answer.close()

    return ask


def handler(settings: Settings, closing: ExitStack) -> Front:
    """Front 3, called as a worker of Multi Model Server calls it, with that server's own context."""
    context = MmsContext("model", str(settings.model_dir), None, 1, None, "1.1.11")
    assert model_handler.handle(None, context) is None

    def ask(case: Case) -> Answer:
        body = bytearray(case.body)
        parameters = {"body": {"content-type": case.headers.get("Content-Type", "")}}  # of each parameter it says the type so
        context.request_processor = [RequestProcessor(parameters | dict(case.headers) | {"X-Request-Id": REQUEST_ID})]
        answers = model_handler.handle([{"body": body}], context)
        assert answers is not None
        return Answer.of(context.get_response_status(0)[0], Headers(context.get_response_headers(0)), answers[0])

    return ask


FRONTS = {"flask": flask, "many": many, "handler": handler}
"""The first is what the others are compared with."""
FIRST = next(iter(FRONTS))


class Fronts(AbstractContextManager["Fronts"]):
    """The fronts, each with a model of its own for each model of the table, loaded when it is first asked."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders, self._loaded, self._patch, self._closing = folders, dict[tuple[str, str], Front](), pytest.MonkeyPatch(), ExitStack()

    def __exit__(self, *error: object) -> None:
        self._closing.close()
        self._patch.undo()
        gc.unfreeze()

    def ask(self, front: str, case: Case) -> Answer:
        """What a front answers to a case."""
        if (front, case.model) not in self._loaded:
            base = self._folders.mktemp(case.model)
            (base / "model").mkdir()
            write(case.model, base / "model")
            self._patch.setenv("SAGEMAKER_BASE_DIR", str(base))
            self._loaded[front, case.model] = FRONTS[front](Settings.read(), self._closing)
        return self._loaded[front, case.model](case)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    with Fronts(tmp_path_factory) as fronts:
        yield fronts.ask


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("front", list(FRONTS)[1:])
def test_the_fronts_answer_alike(asked, front, case):
    expected = asked(FIRST, case)
    assert expected.status == case.status
    assert (asked(front, case) == expected) == (front not in case.differs)


def test_every_difference_has_a_reason():
    reasons = [reason for case in CASES for reason in case.differs.values()]
    assert reasons
    assert all(len(reason) > 20 for reason in reasons)
    assert {front for case in CASES for front in case.differs} <= {*FRONTS, "mms"}
