"""Request headers and the context that hooks are given."""

import time

import pytest

from container.message import Context, Headers, Request, Response

ENVIRON = {
    "REQUEST_METHOD": "POST",
    "wsgi.version": (1, 0),
    "CONTENT_TYPE": "text/csv",
    "CONTENT_LENGTH": "",
    "HTTP_ACCEPT": "application/json",
    "HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES": "a=1; b=2",
    "HTTP_X_AMZN_SAGEMAKER_TARGET_MODEL": "north.tar.gz",
    "HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID": "id-1",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Accept", "application/json"),
        ("accept", "application/json"),
        ("CONTENT-TYPE", "text/csv"),
        ("X-Amzn-SageMaker-Custom-Attributes", "a=1; b=2"),
        ("X-Absent", None),
        ("Request-Method", None),
        ("wsgi.version", None),
    ],
)
def test_headers_are_found_in_any_case_and_nothing_else_is(name, value):
    headers = Headers(ENVIRON)
    assert headers.get(name) == value
    assert (name in headers) == (value is not None)


def test_headers_are_listed_without_the_rest_of_the_environ():
    assert dict(Headers(ENVIRON)) == {
        "Content-Type": "text/csv",
        "Accept": "application/json",
        "X-Amzn-Sagemaker-Custom-Attributes": "a=1; b=2",
        "X-Amzn-Sagemaker-Target-Model": "north.tar.gz",
        "X-Amzn-Sagemaker-Inference-Id": "id-1",
    }
    assert len(Headers(ENVIRON)) == 5
    assert len(Headers({})) == 0


def test_headers_that_are_not_there_are_missing_under_the_name_that_was_asked_for():
    with pytest.raises(KeyError):
        Headers(ENVIRON)["X-Absent"]


def test_a_context_tells_what_the_platform_sent():
    context = Context(Headers(ENVIRON))
    assert (context.custom_attributes, context.target_model, context.inference_id) == ("a=1; b=2", "north.tar.gz", "id-1")


def test_a_context_of_nothing_has_empty_texts_and_all_the_time():
    context = Context()
    assert (context.custom_attributes, context.target_model, context.inference_id, context.request_id) == ("", "", "", "")
    assert context.remaining() == float("inf")


def test_the_time_that_remains_is_counted_down_to_the_deadline():
    assert 99 < Context(deadline=time.time() + 100).remaining() <= 100
    assert Context(deadline=time.time() - 1).remaining() < 0


def test_response_headers_belong_to_one_context():
    first, second = Context(), Request(b"").context
    first.set_response_header("X-Model", "7")
    assert first.response_headers == {"X-Model": "7"}
    assert second.response_headers == {}


def test_a_response_is_json_and_good_unless_it_says_otherwise():
    response = Response(b"{}")
    assert (response.content_type, response.status, dict(response.headers)) == ("application/json", 200, {})
