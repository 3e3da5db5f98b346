"""Bytes <-> values, by content type: the one name that callers use. Knows nothing of requests, models or files.

    media       content types: what a header names, and which one to answer with
    decoding    bytes -> values
    encoding    values -> bytes
    arrays      npy and npz, for both of them

What each type is read as, and written from, stands in docs/decisions/0002-codecs.md, with the reasons and the figures.
"""

from container.decoding import decode, text_body
from container.encoding import encode
from container.media import CSV, JSON, JSONLINES, KINDS, NPY, NPZ, OCTETS, TEXT, media_type, negotiate

__all__ = ["CSV", "JSON", "JSONLINES", "KINDS", "NPY", "NPZ", "OCTETS", "TEXT", "decode", "encode", "media_type", "negotiate", "text_body"]
