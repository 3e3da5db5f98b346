"""Which status an exception has, what the client reads of it, and what the log keeps."""

import json
import logging
import re

import pytest

from container import errors
from container.errors import to_response

SECRET = "password=1234"


class ToolkitError(Exception):
    """As sagemaker-inference's BaseInferenceToolkitError is."""

    def __init__(self, status_code, message, phrase=None):
        self.status_code, self.message, self.phrase = status_code, message, phrase


class CodeAlone(Exception):
    status_code = 429


class WithRetry(CodeAlone):
    retry_after = 7


def caused(error):
    error.__cause__ = ValueError(SECRET)
    return error


def raised(error):
    """The error with a traceback, as a request's has one."""
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.ServingError("as it is"), 500, "as it is"),
        (errors.ServingError("teapot", 418), 418, "teapot"),
        (errors.ClientError("bad row 3"), 400, "bad row 3"),
        (errors.NotAcceptable("n"), 406, "n"),
        (errors.PayloadTooLarge("p"), 413, "p"),
        (errors.UnsupportedMediaType("u"), 415, "u"),
        (errors.ClientError("busy", 429), 429, "busy"),
        (errors.Unavailable("later"), 503, "later"),
        (errors.DeadlineExceeded("late"), 504, "late"),
        (errors.ClientGone(), 499, "the client closed the connection before its request was begun"),
        (caused(errors.ClientError("bad row 3")), 400, "bad row 3"),
        (ToolkitError(415, "no such type"), 415, "no such type"),
        (ToolkitError(507, "no room"), 507, "no room"),
        (CodeAlone("slow down"), 429, "slow down"),
        (ToolkitError(200, SECRET), 500, None),
        (ToolkitError(600, SECRET), 500, None),
        (ToolkitError("400", SECRET), 500, None),
        (ValueError(SECRET), 500, None),
        (SystemExit(SECRET), 500, None),
        (KeyError(SECRET), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_status_and_message(error, status, message):
    response = to_response(error, "request-7")
    assert response.status == status
    assert isinstance(response.body, bytes)
    assert response.content_type == "application/json"
    assert json.loads(response.body) == {
        "code": status,
        "message": message or f"the model failed with {type(error).__name__}; its log has the details under this request id",
        "request_id": "request-7",
    }
    assert SECRET.encode() not in response.body


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (errors.Unavailable("later"), {"Retry-After": "1"}),
        (WithRetry("slow down"), {"Retry-After": "7"}),
        (errors.ClientError("bad"), {}),
        (ValueError("bad"), {}),
    ],
)
def test_retry_after(error, headers):
    assert to_response(error, "").headers == headers


@pytest.mark.parametrize(
    ("error", "level", "traced"),
    [
        (errors.ClientError("bad row"), logging.INFO, False),
        (errors.ServingError("bad model"), logging.INFO, False),
        (caused(errors.ClientError("bad row")), logging.INFO, False),
        (ToolkitError(404, "bad row"), logging.INFO, False),
        (caused(errors.ServingError("bad model")), logging.ERROR, True),
        (ToolkitError(503, "bad model"), logging.ERROR, True),
        (ValueError("bad model"), logging.ERROR, True),
        (SystemExit("bad model"), logging.ERROR, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_the_log_has_a_traceback_only_where_the_model_failed(caplog, error, level, traced):
    with caplog.at_level(logging.INFO):
        to_response(raised(error), "request-7")
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith("request request-7: ")
    assert ("Traceback (most recent call last)" in record.getMessage()) == traced
    assert ("test_errors.py" in record.getMessage()) == traced


def test_the_tree_in_the_docstring_is_the_tree():
    told = {name: int(status) for name, status in re.findall(r"(\w+) +(\d{3}) ", f"{errors.__doc__} ".replace("\n", " \n"))}
    there = {name: kind.status for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ServingError)}
    assert told == there
