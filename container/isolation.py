"""ISOLATION=process: a model in a process of its own, forked from its shard, so that neither its memory nor its crash is another's.

Shard and child speak over a socket pair: a length, then pickled fields. Nothing from a request is unpickled but what this program
itself has pickled.
"""

import contextlib
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from gevent import socket as cooperative
from gevent.lock import Semaphore

from container import predictor
from container.errors import InsufficientStorage, ServingError, StartupError, to_response
from container.message import Context, Request, Response
from container.predictor import Predictor
from container.settings import Settings

_LENGTH = struct.Struct("!Q")


class ProcessDied(ServingError):
    """The process of this model, and of no other, has ended while it had this request."""

    status = 502


def loader(settings: Settings) -> Callable[[Path], Predictor]:
    """A way to load models that gives each a process of its own; takes the place of predictor.load."""
    return lambda directory: _Child(settings, directory).predictor()


class _Child:
    """The shard's end of a model's process. One request at a time."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """Forks, and waits until the child has loaded its model. Raises StartupError or InsufficientStorage in its words."""
        here, there = socket.socketpair()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(there, settings, directory)
        there.close()
        self._dead = False
        try:
            kind, said = _receive(here)
        except EOFError:
            self._bury()
            raise InsufficientStorage(f"the process that loaded {directory} was killed: it needs more memory than there is") from None
        if kind != "loaded":
            self._bury()
            raise InsufficientStorage(said) if kind == "memory" else StartupError(said)
        self._source, self._load_seconds = said
        self._turn = Semaphore(1)
        self._socket = here
        self._cooperative: Any = None

    def predictor(self) -> Predictor:
        """The model as every other: the request goes to the child as it is, and its Response comes back."""
        return Predictor(
            decode=lambda request: request,
            predict=lambda request, context: self._call(request),
            encode=lambda response, request: response,
            max_batch_size=1,
            warmup=None,
            source=f"{self._source}, in process {self.pid}",
            load_seconds=self._load_seconds,
            close=self.close,
            is_dead=lambda: self._dead,
        )

    def close(self) -> None:
        """Ends the child; returns when its memory is back."""
        self._dead = True
        self._socket.close()
        if self._cooperative is not None:
            self._cooperative.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._bury()

    def _bury(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _call(self, request: Request) -> Response:
        context = request.context
        self._turn.acquire()
        keep = False
        try:
            if self._cooperative is None:  # made here, where the greenlets are: loading may have been on a thread
                self._cooperative = cooperative.socket(fileno=self._socket.detach())
            _send(
                self._cooperative,
                (request.body, request.content_type, request.accept, dict(context.headers), context.request_id, context.deadline),
            )
            status, content_type, headers, body = _receive(self._cooperative)
            keep = body is None
            return Response(self._parts() if keep else body, content_type, status, headers)
        except (EOFError, OSError) as error:
            self._dead = True
            raise ProcessDied("the process of this model died with this request; it is started again for the next") from error
        finally:
            if not keep:
                self._turn.release()

    def _parts(self) -> Iterator[bytes]:
        try:
            while True:
                part, failed = _receive(self._cooperative)
                if failed:
                    raise ServingError("the stream broke off")
                if part is None:
                    return
                yield part
        except (EOFError, OSError) as error:
            self._dead = True
            raise ProcessDied("the process of this model died in the middle of a stream") from error
        finally:
            self._turn.release()


def _child(connection: socket.socket, settings: Settings, directory: Path) -> NoReturn:
    """The other end: loads, answers until the shard is gone, and never returns into the shard's code."""
    try:
        kept = connection.fileno()
        os.closerange(3, kept)  # the shard's connections: nginx would not see them close
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        try:
            loaded = predictor.load(settings, directory)
        except StartupError as error:
            _send(connection, ("broken", str(error)))
        except MemoryError:
            _send(connection, ("memory", f"{directory} does not fit into memory"))
        else:
            _send(connection, ("loaded", (loaded.source, loaded.load_seconds)))
            while True:
                _answer(connection, loaded)
    except (EOFError, OSError):
        pass  # the shard has closed its end
    finally:
        os._exit(0)


def _answer(connection: socket.socket, loaded: Predictor) -> None:
    body, content_type, accept, headers, request_id, deadline = _receive(connection)
    context = Context(headers, request_id, deadline)
    try:
        response = loaded.respond(Request(body, content_type, accept, context))
    except (Exception, SystemExit) as error:
        response = to_response(error, request_id)
    whole = isinstance(response.body, bytes)
    _send(connection, (response.status, response.content_type, dict(response.headers), response.body if whole else None))
    if not isinstance(response.body, bytes):
        try:
            for part in response.body:
                _send(connection, (part, False))
            _send(connection, (None, False))
        except (Exception, SystemExit) as error:
            to_response(error, request_id)  # for the log
            _send(connection, (None, True))


def _send(connection: Any, fields: tuple[Any, ...]) -> None:
    data = pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive(connection: Any) -> Any:
    """Raises EOFError if the other end is closed."""
    length = _LENGTH.unpack(_exactly(connection, _LENGTH.size))[0]
    return pickle.loads(_exactly(connection, length))  # noqa: S301 - from a process that this one has forked


def _exactly(connection: Any, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
