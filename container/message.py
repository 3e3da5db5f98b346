"""Request and Response, as every front sees them. Knows nothing of HTTP servers."""

import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self

CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
TARGET_MODEL = "X-Amzn-SageMaker-Target-Model"
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"


class Headers(Mapping[str, str]):
    """Request headers; names are matched without regard to case. Built from a WSGI environ, lazily: most code reads none."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Self:
        """From names, in whatever case, and values."""
        return cls({cls._key(name): value for name, value in headers.items()})

    @staticmethod
    def _key(name: str) -> str:
        key = name.upper().replace("-", "_")
        return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key

    def __getitem__(self, name: str) -> str:
        value = self._environ[self._key(name)]
        return str(value)

    def __iter__(self) -> Iterator[str]:
        for key in self._environ:
            if key.startswith("HTTP_"):
                yield key[5:].replace("_", "-").title()
            elif key in ("CONTENT_TYPE", "CONTENT_LENGTH") and self._environ[key]:
                yield key.replace("_", "-").title()

    def __len__(self) -> int:
        return sum(1 for _ in self)


NO_HEADERS = Headers({})


@dataclass(slots=True)
class Context:
    """What a hook may ask for as its last argument: all that came with the request, and what is to go back with the answer.

    deadline: seconds on the clock of time.time() after which nobody waits for the answer any more.
    response_headers: filled by the user's code; sent with the answer.
    """

    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    request_id: str = ""
    deadline: float = float("inf")
    model_name: str = ""
    response_headers: MutableMapping[str, str] = field(default_factory=dict)

    @property
    def custom_attributes(self) -> str:
        """The client's custom attributes, verbatim; empty if there are none."""
        return self.headers.get(CUSTOM_ATTRIBUTES, "")

    @property
    def target_model(self) -> str:
        """The client's name of the model on a multi-model endpoint; empty elsewhere."""
        return self.headers.get(TARGET_MODEL, "")

    @property
    def inference_id(self) -> str:
        return self.headers.get(INFERENCE_ID, "")

    def remaining(self) -> float:
        """Seconds left until the deadline."""
        return self.deadline - time.time()

    def set_response_header(self, name: str, value: str) -> None:
        self.response_headers[name] = value


@dataclass(slots=True)
class Request:
    """One request to a model. content_type and accept are the headers as they came; empty if absent."""

    body: bytes
    content_type: str = ""
    accept: str = ""
    context: Context = field(default_factory=Context)


@dataclass(slots=True)
class Response:
    """One answer. body: bytes, or an iterable of bytes that is sent part by part as it is made."""

    body: bytes | Iterable[bytes]
    content_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
