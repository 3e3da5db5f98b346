"""ISOLATION=process: a model in a process of its own, forked from its shard, so that neither its memory nor its crash is another's.

Shard and child speak over a socket pair: a length, then pickled fields. Nothing from a request is unpickled but what this program
itself has pickled.
"""

import contextlib
import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from gevent import socket as cooperative
from gevent.lock import Semaphore

from container import events, memory, predictor, resources, user_code
from container.errors import DeadlineExceeded, InsufficientStorage, ServingError, StartupError, check_headers, to_response
from container.exchange import Stream
from container.message import Context, Headers, Request, Response
from container.predictor import Predictor
from container.settings import Settings

log = logging.getLogger(__name__)

LOAD_SECONDS = 350.0
"""How long a load may take; the platform waits 360 s."""
KILL_AFTER = 5.0
"""Seconds beyond the deadline after which a process that still computes is ended: nobody waits for it any more."""
STOP = "stop"
"""Said to the child by the shard when nobody reads its stream any more."""
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
        """Forks, and waits until the child has loaded its model. Raises StartupError in its words, MemoryError where memory was short,
        InsufficientStorage where no process is to be had."""
        self._timeout = settings.timeout + KILL_AFTER
        self._cooperative: Any = None
        self._closed = False
        sys.stdout.flush()
        self.pid, here, there = _fork(directory)
        if self.pid == 0:
            _child(there, settings, directory)
        there.close()
        here.settimeout(LOAD_SECONDS)
        self._socket = here
        try:
            kind, said = _receive(here)
        except TimeoutError:
            self.close()
            raise StartupError(f"the process that loaded {directory} was not ready within {LOAD_SECONDS:.0f} s") from None
        except (EOFError, OSError):
            raise _ended_loading(directory, self.close()) from None
        if kind != "loaded":
            self.close()
            raise MemoryError(said) if kind == "memory" else StartupError(said)
        self._source, self._load_seconds = said
        self._turn = Semaphore(1)

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
            close=self._end,
            is_dead=lambda: self._closed,
        )

    def close(self) -> int:
        """Ends the child, if it has not ended; returns when its memory is back, with the code it ended with, below 0 for a signal."""
        if self._closed:  # its number may be another process's by now
            return 0
        self._closed = True
        self._socket.close()
        if self._cooperative is not None:
            self._cooperative.close()
        with contextlib.suppress(ChildProcessError):
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if not ended:
                os.kill(self.pid, signal.SIGKILL)
                status = os.waitpid(self.pid, 0)[1]
            return os.waitstatus_to_exitcode(status)
        return 0

    def _end(self) -> None:
        self.close()

    def _lost(self, error: BaseException) -> ServingError:
        """What to tell the client. The process is ended whatever happened: what it says next might be the answer to this request."""
        code = self.close()
        if isinstance(error, TimeoutError):
            return DeadlineExceeded("the process of this model computed past the deadline and was ended; it is started again for the next")
        if code == -signal.SIGKILL and resources.oom_kills() > self._oom_kills:
            left = max(0, resources.available())
            return InsufficientStorage(
                f"the kernel ended the process of this model for want of memory, of which {left >> 20} MB are left now; it is "
                "started again for the next request"
            )
        return ProcessDied("the process of this model died with this request; it is started again for the next")

    def _call(self, request: Request) -> Response:
        context = request.context
        self._turn.acquire()
        self._oom_kills = resources.oom_kills()
        keep = False
        try:
            if self._closed:
                raise EOFError
            if self._cooperative is None:  # made here, where the greenlets are: loading may have been on a thread
                self._cooperative = cooperative.socket(fileno=self._socket.detach())
            self._cooperative.settimeout(min(self._timeout, max(0.0, context.remaining()) + KILL_AFTER))
            told = (dict(context.headers), context.request_id, context.deadline, context.model_name)
            _send(self._cooperative, (request.body, request.content_type, request.accept, *told))
            status, content_type, headers, body = _receive(self._cooperative)
            keep = body is None
            return Response(self._parts() if keep else body, content_type, status, headers)
        except (EOFError, OSError) as error:
            raise self._lost(error) from error
        except BaseException:
            self._lost(EOFError())
            raise
        finally:
            if not keep:
                self._turn.release()

    def _parts(self) -> Iterator[bytes]:
        ended = False
        try:
            self._cooperative.settimeout(self._timeout)
            while not ended:
                part, failed = _receive(self._cooperative)
                ended = part is None
                if failed:
                    raise ServingError("the stream broke off")
                if part is not None:
                    yield part
        except (EOFError, OSError) as error:
            raise self._lost(error) from error
        finally:
            if not ended and not self._closed:
                self._abandon()
            self._turn.release()

    def _abandon(self) -> None:
        """Nobody reads on: the child is told, and what it has said meanwhile is thrown away."""
        try:
            _send(self._cooperative, STOP)
            while _receive(self._cooperative)[0] is not None:
                pass
        except (EOFError, OSError) as error:
            self._lost(error)


def _fork(directory: Path) -> tuple[int, socket.socket, socket.socket]:
    """As os.fork, with the ends of a connection: the shard's, then the child's. Raises InsufficientStorage where there are no more."""
    with contextlib.ExitStack() as failing:
        try:
            here, there = socket.socketpair()
            for end in (here, there):
                failing.callback(end.close)
            pid = os.fork()
        except OSError as error:  # processes and open files are the container's to share out, as memory is
            raise InsufficientStorage(f"no process can be started for {directory}: {error.strerror}") from error
        failing.pop_all()
    return pid, here, there


def _ended_loading(directory: Path, code: int) -> Exception:
    """Only the kernel sends SIGKILL to a process that loads, when memory is short; all else is the artifact's fault."""
    if code == -signal.SIGKILL:
        return MemoryError(f"the process that loaded {directory} was killed")
    return StartupError(f"the process that loaded {directory} {_ending(code)}")


def _ending(code: int) -> str:
    return f"was killed by {events.signal_name(-code)}" if code < 0 else f"ended with code {code}"


def _child(connection: socket.socket, settings: Settings, directory: Path) -> NoReturn:
    """The other end: loads, answers until the shard is gone, and never returns into the shard's code."""
    try:
        kept = connection.fileno()
        os.closerange(3, kept)  # the shard's connections: nginx would not see them close
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGABRT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        memory.Bound.off()
        resources.be_killed(resources.FIRST)
        try:
            loaded = predictor.load(settings, directory)
        except Exception as error:
            if not isinstance(error, StartupError):
                log.exception("%s cannot be loaded:", directory)
            said = str(error) if isinstance(error, StartupError) else f"{directory} cannot be loaded: {user_code.describe(error)}"
            _send(connection, ("memory", f"{directory} does not fit into memory") if memory.ran_out(error) else ("broken", said))
        else:
            _send(connection, ("loaded", (loaded.source, loaded.load_seconds)))
            while True:
                _answer(connection, loaded)
    except (EOFError, OSError):
        pass  # the shard has closed its end
    finally:
        os._exit(0)


def _answer(connection: socket.socket, loaded: Predictor) -> None:
    request = _receive(connection)
    if request == STOP:  # it came when the stream had ended by itself
        return
    body, content_type, accept, headers, request_id, deadline, model_name = request
    context = Context(Headers.of(headers), request_id, deadline, model_name)
    try:
        response = loaded.respond(Request(body, content_type, accept, context))
        check_headers(response)
        if not isinstance(response.body, bytes):
            response.body = Stream(iter(response.body), lambda: None, request_id)
    except (Exception, SystemExit) as error:
        response = to_response(memory.refused(error), request_id)
    whole = isinstance(response.body, bytes)
    _send(connection, (response.status, response.content_type, dict(response.headers), response.body if whole else None))
    if isinstance(response.body, Stream):
        _stream(connection, response.body, request_id)


def _stream(connection: socket.socket, parts: Stream, request_id: str) -> None:
    said = select.poll()
    said.register(connection, select.POLLIN)
    failed = False
    try:
        for part in parts:
            _send(connection, (part, False))
            if said.poll(0):  # STOP, for nothing else is said during a stream
                break
        parts.close()
    except ServingError:  # the stream has logged why
        failed = True
    except (Exception, SystemExit) as error:
        to_response(error, request_id)  # for the log
        failed = True
    _send(connection, (None, failed))


def _send(connection: Any, fields: Any) -> None:
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
