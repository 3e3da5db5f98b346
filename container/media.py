"""Content types: what a header names, and which type an answer has. Knows nothing of what a body holds."""

import codecs
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from werkzeug.http import parse_options_header

from container.errors import ClientError, NotAcceptable, UnsupportedMediaType

CSV = "text/csv"
JSON = "application/json"
JSONLINES = "application/jsonlines"
NPY = "application/x-npy"
NPZ = "application/x-npz"
TEXT = "text/plain"
OCTETS = "application/octet-stream"

KINDS = (JSON, CSV, JSONLINES, NPY, NPZ, TEXT, OCTETS)
ALIASES = {
    **{kind: kind for kind in KINDS},
    "application/jsonl": JSONLINES,
    "application/x-jsonl": JSONLINES,
    "application/x-jsonlines": JSONLINES,
    "application/ndjson": JSONLINES,
    "application/x-ndjson": JSONLINES,
}
TEXTUAL = frozenset({JSON, CSV, JSONLINES, TEXT})

NO_CONTENT_TYPE = JSON
"""What a body without a Content-Type is read as: the SageMaker containers' own default."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"{_WORD}/{_WORD}")
_CHARSET = re.compile(r"ascii|utf-(8|16|32).*|iso8859.*|cp\d+|koi8.*|gb.*|big5.*|shift_jis.*|euc_.*")


class Media(NamedTuple):
    """A media type as the codecs need it. kind: one of KINDS, or "" if it is none; charset: Python's name for it."""

    name: str
    kind: str
    charset: str
    header: bool


@lru_cache(maxsize=512)
def media_type(header: str) -> tuple[str, Mapping[str, str]]:
    """The lower-cased type of a Content-Type header (empty: application/json) and its parameters.

    UnsupportedMediaType if it is malformed.
    """
    name, parameters = parse_options_header(header if header.strip() else NO_CONTENT_TYPE)
    name = name.strip().lower()
    if not _MEDIA_TYPE.fullmatch(name):
        raise UnsupportedMediaType(f"{header[:200]!r} is not a media type; send one like 'text/csv' or 'application/json; charset=utf-8'")
    return name, MappingProxyType(parameters)


@lru_cache(maxsize=512)
def media_of(header: str) -> Media:
    """What the codecs need of a Content-Type header. UnsupportedMediaType if it is malformed, or its charset is not known."""
    name, parameters = media_type(header)
    charset = parameters.get("charset", "utf-8")
    found = _charset(charset)
    if not found:
        raise UnsupportedMediaType(f"charset {charset[:100]!r} is not known; send utf-8, or one like utf-16, iso-8859-1, windows-1252")
    return Media(name, ALIASES.get(name, ""), found, parameters.get("header", "").lower() == "present")


@lru_cache(maxsize=512)
def _charset(name: str) -> str:
    """Python's name of a character set; "" if there is none. Python's other codecs (zlib, idna, unicode_escape) are no charsets."""
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
    return found if _CHARSET.fullmatch(found) else ""


def malformed(media: Media, what: str) -> ClientError:
    """The error of every reader: the body is not what its content type says."""
    return ClientError(f"cannot read the body as {media.name}: {what}")


@lru_cache(maxsize=512)
def negotiate(accept: str, default: str) -> str:
    """The content type to answer with, for an Accept header (RFC 9110, 12.5.1), parameters other than q and charset ignored.

    The best q wins; among equals the range that says most, then the one named first, then the default. Absent, empty or
    `*/*`: the default as it is. A charset other than UTF-8 comes back as a parameter. NotAcceptable if nothing is left.
    """
    ranges = _ranges(accept)
    if not accept.strip() or ranges == [("*/*", "utf-8", 1.0)]:
        return default
    preferred = media_type(default)[0]
    offers = dict.fromkeys((preferred, *KINDS, *ALIASES))
    best: tuple[tuple[float, int, int], str] | None = None
    for offer in offers:
        matches = [(_breadth(name, offer), -order, charset, q) for order, (name, charset, q) in enumerate(ranges) if _breadth(name, offer)]
        if not matches:
            continue
        breadth, order, charset, q = max(matches, key=lambda match: match[:2])
        rank = (q, breadth, order)  # the default is the first of the offers, so it keeps its place among equals
        if q > 0 and (best is None or rank > best[0]):
            written = default if offer == preferred else offer
            best = rank, written if charset == "utf-8" or ALIASES.get(offer) not in TEXTUAL else f"{offer}; charset={charset}"
    if best is None:
        raise NotAcceptable(f"cannot answer with {accept[:200]!r}; accept one of {', '.join(dict.fromkeys((preferred, *KINDS)))}")
    return best[1]


def _ranges(accept: str) -> list[tuple[str, str, float]]:
    """(type, charset, q) of each range of an Accept header; what is malformed or in an unknown charset is left out."""
    ranges = []
    for part in accept.split(","):
        name, parameters = parse_options_header(part)
        name = name.strip().lower()
        charset = _charset(parameters.get("charset", "utf-8"))
        try:
            q = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if name == "*":  # what Java's URLConnection sends
            name = "*/*"
        if charset and 0 <= q <= 1 and _MEDIA_TYPE.fullmatch(name):
            ranges.append((name, charset, q))
    return ranges


def _breadth(name: str, offer: str) -> int:
    """How much a media range says of a type: 3 names it, 2 `type/*`, 1 `*/*`, 0 does not match."""
    if name == offer:
        return 3
    if name == "*/*":
        return 1
    return 2 if name.endswith("/*") and offer.startswith(name[:-1]) else 0
