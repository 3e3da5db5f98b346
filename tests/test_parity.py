"""Nothing is written twice: every front answers the same request alike, or the table says why not."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from mms.context import Context as MmsContext
from mms.context import RequestProcessor
from werkzeug.datastructures import Headers

from container import model_handler, predictor
from container.app import create_app
from container.errors import ServingError
from container.settings import Settings
from tests.parity import CASES, REQUEST_ID, Answer, Case, write

Front = Callable[[Case], Answer]


def flask(settings: Settings) -> Front:
    """Front 1, through Flask's test client."""
    client = create_app(settings, predictor.load(settings)).test_client()

    def ask(case: Case) -> Answer:
        answer = client.post("/invocations", data=case.body, headers=dict(case.headers) | {"X-Request-Id": REQUEST_ID})
        try:
            return Answer.of(answer.status_code, answer.headers, answer.data)
        except ServingError as error:  # of which a server makes a broken answer
            return Answer.of(answer.status_code, answer.headers, repr(error).encode())
        finally:
            answer.close()

    return ask


def handler(settings: Settings) -> Front:
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


FRONTS = {"flask": flask, "handler": handler}
"""The first is what the others are compared with."""
FIRST = next(iter(FRONTS))


class Fronts(AbstractContextManager["Fronts"]):
    """The fronts, each with a model of its own for each model of the table, loaded when it is first asked."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders, self._loaded, self._patch = folders, dict[tuple[str, str], Front](), pytest.MonkeyPatch()

    def __exit__(self, *error: object) -> None:
        self._patch.undo()
        gc.unfreeze()

    def ask(self, front: str, case: Case) -> Answer:
        """What a front answers to a case."""
        if (front, case.model) not in self._loaded:
            base = self._folders.mktemp(case.model)
            (base / "model").mkdir()
            write(case.model, base / "model")
            self._patch.setenv("SAGEMAKER_BASE_DIR", str(base))
            self._loaded[front, case.model] = FRONTS[front](Settings.read())
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
