"""Content types and Accept, as tables of cases; then: no header at all breaks them."""

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from container.errors import NotAcceptable, UnsupportedMediaType
from container.media import CSV, JSON, NPY, TEXT, media_type, negotiate


@pytest.mark.parametrize(
    ("header", "name", "parameters"),
    [
        ("text/csv", "text/csv", {}),
        (" Text/CSV ;Charset=UTF-8", "text/csv", {"charset": "UTF-8"}),
        ('application/json; charset="utf-8"; x=1', "application/json", {"charset": "utf-8", "x": "1"}),
        ("application/vnd.some+json", "application/vnd.some+json", {}),
        ("", "application/json", {}),
    ],
)
def test_media_type(header, name, parameters):
    assert media_type(header) == (name, parameters)


@pytest.mark.parametrize("header", ["csv", "text/", "/csv", "text/csv, application/json", "text csv", ";charset=utf-8", "*"])
def test_a_malformed_content_type_is_refused(header):
    with pytest.raises(UnsupportedMediaType, match="is not a media type"):
        media_type(header)


@pytest.mark.parametrize(
    ("accept", "default", "chosen"),
    [
        ("", JSON, JSON),
        ("*/*", CSV, CSV),
        ("*/*", "application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("text/csv", JSON, CSV),
        ("TEXT/CSV", JSON, CSV),
        ("text/csv; charset=utf-8", JSON, CSV),
        ("text/csv; charset=latin-1", JSON, "text/csv; charset=iso8859-1"),
        ("application/x-npy; charset=latin-1", JSON, NPY),
        ("application/json;verbose=true", CSV, JSON),
        ("text/csv, application/json", JSON, CSV),
        ("application/json, text/csv", CSV, JSON),
        ("text/csv;q=0.5, application/json;q=0.9", CSV, JSON),
        ("application/json;q=0.1, text/*", JSON, CSV),
        ("text/*", TEXT, TEXT),
        ("application/*", CSV, JSON),
        ("*/*;q=0.1", CSV, CSV),
        ("*/*, text/csv", JSON, CSV),
        ("*/*, application/json;q=0", JSON, CSV),
        ("text/*, text/csv;q=0", CSV, TEXT),
        ("text/*;q=0.3, text/csv;q=0.7, */*;q=0.5", JSON, CSV),
        ("image/png, application/x-npy;q=0.2", JSON, NPY),
        ("application/x-ndjson", JSON, "application/x-ndjson"),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", JSON, JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", CSV, CSV),
        ("text/csv;q=bad, application/json", CSV, JSON),
        ("text/csv;q=7, application/json", CSV, JSON),
        ("image/png", "image/png", "image/png"),
    ],
)
def test_negotiate(accept, default, chosen):
    assert negotiate(accept, default) == chosen


@pytest.mark.parametrize("accept", ["image/png", "text/csv;q=0", "*/*;q=0", "rubbish", "text/csv; charset=klingon", ",", "image/*"])
def test_nothing_acceptable_says_what_came_and_what_can_be_made(accept):
    with pytest.raises(NotAcceptable, match="accept one of application/json, text/csv, ") as raised:
        negotiate(accept, JSON)
    assert repr(accept) in raised.value.message


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
@example("text/csv; q=")
@example('text/csv; charset="')
@example("*/*;q=nan")
def test_any_header_is_understood_or_refused(header):
    for read, refusal in ((lambda: media_type(header), UnsupportedMediaType), (lambda: negotiate(header, JSON), NotAcceptable)):
        with contextlib.suppress(refusal):
            assert read()
