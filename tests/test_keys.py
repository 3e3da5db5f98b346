"""Keys as names of files: any text there and back, and never a name that does harm."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container import keys


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("customer-0001_a", "customer-0001_a"),
        ("007", "007"),
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        ("1.5", "1%2E5"),
        (" ", "%20"),
        ("ß", "%C3%9F"),
        ("50%", "50%25"),
        ("%2F", "%252F"),
        ("a\0\n", "a%00%0A"),
        ("C:\\x", "C%3A%5Cx"),
        ("x" * 200, "x" * 200),
    ],
)
def test_a_name_and_its_key(key, name):
    assert keys.file_name(key) == name
    assert keys.key(name) == key


@given(st.text(min_size=1, max_size=16))
def test_any_text_comes_back(key):
    name = keys.file_name(key)
    assert re.fullmatch(r"([A-Za-z0-9_-]|%[0-9A-F]{2})+", name)
    assert keys.key(name) == key


@given(st.sets(st.text(alphabet="aA%2Ff/.ß", min_size=1, max_size=5), min_size=2))
def test_no_two_keys_share_a_name(group):
    assert len({keys.file_name(key) for key in group}) == len(group)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "the key is empty"),
        ("x" * 300, r"'x{50}'\.\.\. makes a file name of 300 bytes; accepted are 200"),
        ("ß" * 34, "of 204 bytes"),
        ("a\ud800", "no text that UTF-8 can hold"),
    ],
)
def test_keys_without_a_name(key, message):
    with pytest.raises(ValueError, match=message):
        keys.file_name(key)


@pytest.mark.parametrize(("name", "key"), [("shop 1.a", "shop 1.a"), ("50%", "50%"), ("ß", "ß"), ("%c3%9f", "ß")])
def test_names_that_people_gave(name, key):
    assert keys.key(name) == key


@pytest.mark.parametrize(("name", "message"), [("", "is empty"), ("a%FF", "'a%FF' stands for no key"), ("\udcff", "stands for no key")])
def test_names_without_a_key(name, message):
    with pytest.raises(ValueError, match=message):
        keys.key(name)
