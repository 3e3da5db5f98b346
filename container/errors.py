"""What can go wrong with a request, and the status it has; what can go wrong at start.

ServingError                500
 +-- ClientError            400   the request is at fault; user code may raise it too
 |    +-- ModelNotFound     404   no such model is loaded
 |    +-- Conflict          409   it is loaded, or being loaded, already
 |    +-- NotAcceptable     406
 |    +-- PayloadTooLarge   413
 |    +-- UnsupportedMediaType  415
 +-- Unavailable            503   come back later (Retry-After)
 +-- DeadlineExceeded       504
 +-- InsufficientStorage 507   memory, or another resource, is short: unload a model, then try again
 +-- ClientGone             499   nobody waits for the answer any more (nginx's number for it)
StartupError                      ends the process, with one line that names the cause
"""

import json
import logging
import re
import traceback

from container.message import CUSTOM_ATTRIBUTES, Response

log = logging.getLogger(__name__)

FRAMING = {"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade", "trailer", "te"}
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


class ServingError(Exception):
    """Becomes an answer with `status` and the message as it is: so it says nothing that a client may not read."""

    status = 500
    retry_after: int | None = None

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status


class ClientError(ServingError):
    status = 400


class NotAcceptable(ClientError):
    status = 406


class ModelNotFound(ClientError):
    status = 404


class Conflict(ClientError):
    status = 409


class PayloadTooLarge(ClientError):
    status = 413


class UnsupportedMediaType(ClientError):
    status = 415


class Unavailable(ServingError):
    status = 503
    retry_after: int | None = 1


class DeadlineExceeded(ServingError):
    status = 504


class InsufficientStorage(ServingError):
    status = 507


class ClientGone(ServingError):
    status = 499

    def __init__(self) -> None:
        super().__init__("the client closed the connection before its request was begun")


class StartupError(Exception):
    """The model, its script or the machine cannot be served as they are: the message says which, and what was expected."""


def to_response(error: BaseException, request_id: str) -> Response:
    """The answer to a request that failed, for every front.

    A ServingError says its own status and message. So does any exception of the user's code with a `status_code` from
    400 to 599 (the sagemaker-inference toolkit's errors have one). All else is a 500 that names the exception's type and the
    request id, under which the log has the traceback: a message or a trace may hold what a client must not read.
    """
    status = getattr(error, "status_code", None)
    if isinstance(error, ServingError):
        status, message = error.status, error.message
    elif isinstance(status, int) and 400 <= status <= 599:
        message = str(getattr(error, "message", None) or error)
    else:
        status, message = 500, f"the model failed with {type(error).__name__}; its log has the details under this request id"
    _log(error, status, request_id)
    return error_response(status, message, request_id, getattr(error, "retry_after", None))


def error_response(status: int, message: str, request_id: str, retry_after: int | None = None) -> Response:
    """The one form of every error: JSON {code, message, request_id}. nginx.conf writes its own errors the same way."""
    body = json.dumps({"code": status, "message": message, "request_id": request_id}).encode()
    return Response(body, "application/json", status, {"Retry-After": str(retry_after)} if retry_after else {})


def check_headers(response: Response) -> None:
    """Raises ServingError if the model has set a header that HTTP or the platform cannot carry."""
    for name, value in {"Content-Type": response.content_type, **response.headers}.items():
        if name.lower() in FRAMING:
            raise ServingError(f"the model set the response header {name!r}: it says where the answer ends, which is the server's to say")
        if not HEADER_NAME.fullmatch(name) or not isinstance(value, str) or not HEADER_VALUE.fullmatch(value):
            raise ServingError(f"the model set a response header that HTTP cannot carry: {name!r}")
        if name.lower() == CUSTOM_ATTRIBUTES.lower() and (len(value) > 1024 or not value.isascii()):
            raise ServingError(f"the model set {CUSTOM_ATTRIBUTES} to {len(value)} characters: up to 1024 visible ASCII ones are accepted")


def _log(error: BaseException, status: int, request_id: str) -> None:
    if isinstance(error, ServingError) and error.__cause__ is None:
        log.info("request %s: %d %s", request_id, status, error)
    elif status < 500:
        log.info("request %s: %d %s: %s", request_id, status, type(error).__name__, error)
    else:
        trace = "".join(traceback.format_exception(error)).rstrip()
        log.error("request %s: %d %s: %s\n%s", request_id, status, type(error).__name__, error, trace)
