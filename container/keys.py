"""The keys of many small models as names of files: reversible, and borne by any file system, S3 and a model's name. Reads no files."""

import re
from urllib.parse import unquote_to_bytes

LONGEST = 200
"""Bytes of a name. File systems take 255: the rest is for suffixes, those of unfinished files included."""

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")


def file_name(key: str) -> str:
    """The name, without a suffix, of the file that belongs to a key: `key` reverses it.

    ASCII letters, digits, `-` and `_` stand for themselves, every other byte of the key's UTF-8 as %XX (RFC 3986, 2.1). The dot is
    among these: no name is hidden, or `..`, and what follows the first dot of a file is its suffix. Keys that differ in case alone
    have names that do, which the file systems of macOS and Windows hold for one. Raises ValueError where there is no such name.
    """
    if not key:
        raise ValueError("the key is empty; a key of at least one character is accepted")
    try:
        text = key.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the key {key[:50]!r} is no text that UTF-8 can hold: {error.reason}") from None
    name = _UNSAFE.sub(lambda byte: b"%%%02X" % ord(byte[0]), text).decode()
    if len(name) > LONGEST:
        raise ValueError(f"the key {key[:50]!r}... makes a file name of {len(name)} bytes; accepted are {LONGEST}")
    return name


def key(file_name: str) -> str:
    """The key that a file's name, without its suffix, stands for. Names that people gave are read, too: `shop 1.a` is its own key.

    Raises ValueError for a name that is empty, or whose escapes are not UTF-8.
    """
    if not file_name:
        raise ValueError("the file name is empty; it must name a key")
    try:
        return unquote_to_bytes(file_name).decode()
    except UnicodeError as error:
        raise ValueError(f"the file name {file_name!r} stands for no key: {error}") from None
