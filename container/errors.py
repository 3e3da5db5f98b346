"""What can go wrong with a request, and the status it has; what can go wrong at start.

    ServingError                500
     +-- ClientError            400   the request is at fault; user code may raise it too
     |    +-- NotAcceptable     406
     |    +-- PayloadTooLarge   413
     |    +-- UnsupportedMediaType  415
     +-- Unavailable            503   come back later (Retry-After)
     +-- DeadlineExceeded       504
    StartupError                      ends the process, with one line that names the cause
"""


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


class PayloadTooLarge(ClientError):
    status = 413


class UnsupportedMediaType(ClientError):
    status = 415


class Unavailable(ServingError):
    status = 503
    retry_after: int | None = 1


class DeadlineExceeded(ServingError):
    status = 504


class StartupError(Exception):
    """The model, its script or the machine cannot be served as they are: the message says which, and what was expected."""
