"""A worker process: gunicorn's gevent worker without the monkey-patch. Only the listening socket is gevent's, so the user's
code runs as it would anywhere else; greenlets gather requests while nothing is predicted."""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import http
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.wsgi import base_environ
from gunicorn.util import unquote_to_wsgi_str
from gunicorn.workers.ggevent import GeventWorker

from container import events
from container.batching import Batcher
from container.errors import error_response, to_response
from container.exchange import SLOW, Front

log = logging.getLogger(__name__)


class Worker(GeventWorker):
    """slot: 0 to workers - 1; a replacement takes the slot of the worker that it replaces.
    connections: how many each worker has, by slot, in memory that all workers share.
    leaves: whether it ends by itself, for a successor.
    own_socket: whether it listens on the socket of its slot alone, as a shard of many models does.
    """

    slot: int = 0
    connections: Any = memoryview(bytearray(8)).cast("q")
    own_socket: bool = False
    answered: bool = False
    leaves: bool = False
    run_dir: Path | None = None

    def patch(self) -> None:
        """The part of the monkey-patch that is wanted."""
        listeners: list[Any] = [self.sockets[self.slot]] if self.own_socket else self.sockets
        self.sockets = [socket.socket(s.FAMILY, socket.SOCK_STREAM, fileno=s.sock.detach()) for s in listeners]

    def init_process(self) -> None:
        """Keeps the heart beating while the model is loaded and warmed up: gunicorn would take the silence for a hang."""
        loading = threading.Event()

        def beat() -> None:
            while not loading.wait(1.0):
                self.tmp.notify()

        self._loaded = loading.set
        threading.Thread(target=beat, name="heartbeat", daemon=True).start()
        super().init_process()

    def run(self) -> None:
        self._loaded()
        self.connections[self.slot] = 0
        # gunicorn looks its settings up many times a request, each time through two calls; after this they are plain attributes
        vars(self.cfg).update({name: setting.get() for name, setting in self.cfg.settings.items()})
        self._environ: dict[str, Any] = {
            **base_environ(self.cfg),
            "SCRIPT_NAME": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "",
            "REMOTE_ADDR": "",
            "wsgi.url_scheme": "http",
        }
        servers = [self._server(listener) for listener in self.sockets]
        if self.application.batcher is not None:
            self._gather(self.application.batcher, servers)
        for server in servers:
            server.start()
        while self.alive:
            self.notify()
            self.application.tick()
            if self._is_spent(servers):
                self.leaves = True
                events.tell(self.run_dir, events.LEAVES, slot=self.slot, pid=self.pid)
                break  # who connects from now on is taken up by the successor: the socket stays open in gunicorn's parent
            gevent.sleep(1.0)
        for server in servers:
            server.close()
        self._drain()

    def _is_spent(self, servers: Iterable[StreamServer]) -> bool:
        """Whether to leave to a successor. Not while there is a connection, so nobody notices; nginx closes those that are idle."""
        return not any(server.pool for server in servers) and self.application.is_spent

    @property
    def application(self) -> Front:
        front: Any = self.wsgi
        assert isinstance(front, Front)
        return front

    def _server(self, listener: Any) -> StreamServer:
        listener.setblocking(1)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=Pool(self.worker_connections))
        server.max_accept = 1  # the next connection may be better off with another worker
        return server

    def _gather(self, batcher: Batcher, servers: Sequence[StreamServer]) -> None:
        """Tells the batcher when this worker has enough: then new connections are left to the others until the prediction is made."""

        def stop_accepting() -> None:
            for server in servers:
                server.stop_accepting()

        def start_accepting() -> None:
            for server in servers:
                if server.started:
                    server.start_accepting()

        most = batcher.max_size
        # after a slow prediction connections are not kept: those that it has made wait are in the socket, which one has to look at
        batcher.is_alone = lambda: self.connections[self.slot] <= 1 and batcher.took < SLOW
        batcher.is_enough = lambda waiting: waiting >= most or (waiting > 0 and self._surplus() > 0)
        batcher.on_enough, batcher.on_room = stop_accepting, start_accepting

    def _surplus(self) -> int:
        """How many connections this worker has more than the one that has fewest; of no interest where each has a socket of its own."""
        return 0 if self.own_socket else int(self.connections[self.slot] - min(self.connections))

    def _drain(self) -> None:
        """Waits for the requests in flight; nginx has closed the idle connections before gunicorn is told to stop."""
        end = time.monotonic() + self.cfg.graceful_timeout
        while self.connections[self.slot] and time.monotonic() < end:
            self.notify()
            gevent.sleep(0.1)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """One connection from nginx, which closes it when it has been idle."""
        self.connections[self.slot] += 1
        request = None
        try:
            parser = http.get_parser(self.cfg, client, addr)
            keep = True
            while keep and self.alive:
                request = next(parser)
                keep = self._exchange(request, client) and not request.should_close()
        except (StopIteration, NoMoreData, OSError):
            return  # nginx has closed the connection
        except Exception as error:
            self.handle_error(request, client, addr, error)
        finally:
            self.connections[self.slot] -= 1
            client.close()

    def _exchange(self, request: Any, client: Any) -> bool:
        """One request and its answer, in one system call if it is no stream. Returns whether the connection may be kept.

        This is gunicorn's handle_request without what nginx has done already, in a third of the time.
        """
        answer = _Answer()
        environ = self._request_environ(request, client)
        environ["berth.close"] = answer.close
        parts = self.application(environ, answer.start)
        try:
            if self._surplus() > 1 or not self.alive:
                answer.close()
            if answer.streamed:
                self._stream(answer, parts, client)
            else:
                _send(client, answer.head() + (b"" if request.method == "HEAD" else b"".join(parts)))
        finally:
            close = getattr(parts, "close", None)
            if close:
                close()
        if not self.answered and answer.status.startswith("200"):
            self.answered = True
            events.tell(self.run_dir, events.ANSWERED, slot=self.slot, pid=self.pid)
        return answer.keep

    def _stream(self, answer: "_Answer", parts: Iterable[bytes], client: Any) -> None:
        client.sendall(answer.head())
        try:
            for part in parts:
                self.notify()  # a stream may take longer than a prediction, and the beat of the heart waits for it
                if part:
                    client.sendall(b"%X\r\n%b\r\n" % (len(part), part))
        except OSError:
            raise
        except Exception:
            answer.close()  # an honest end would tell the client that the stream was whole
            return
        client.sendall(b"0\r\n\r\n")

    def _request_environ(self, request: Any, client: Any) -> dict[str, Any]:
        environ = dict(self._environ)
        environ["REQUEST_METHOD"] = request.method
        environ["RAW_URI"] = request.uri
        environ["PATH_INFO"] = unquote_to_wsgi_str(request.path)
        environ["QUERY_STRING"] = request.query
        environ["SERVER_PROTOCOL"] = "HTTP/1.1"
        environ["wsgi.input"] = request.body
        environ["gunicorn.socket"] = client
        for name, value in request.headers:
            key = _environ_key(name)
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """What nginx let pass and gunicorn's parser refuses, in the form that all errors have; nothing can follow it on this connection."""
        if isinstance(exc, ParseException):
            refusal = error_response(400, f"this is not a valid HTTP request: {exc}", uuid.uuid4().hex)
        else:
            refusal = to_response(exc, uuid.uuid4().hex)
        answer = _Answer()
        answer.close()
        body = refusal.body
        assert isinstance(body, bytes)
        status = f"{refusal.status} {HTTPStatus(refusal.status).phrase}"
        answer.start(status, [("Content-Type", refusal.content_type), ("Content-Length", str(len(body)))])
        with contextlib.suppress(OSError):
            client.sendall(answer.head() + body)

    def handle_abort(self, sig: int, frame: Any) -> None:
        """gunicorn's signal to a worker whose heart stood still: a prediction took longer than any client waits."""
        log.critical("worker %d is ended: a prediction ran on long after its deadline (SAGEMAKER_MODEL_SERVER_TIMEOUT)", self.slot)
        os._exit(1)


def _send(client: Any, data: bytes) -> None:
    """gevent's sendall, which first makes ready for an answer that the kernel does not take at once: hardly any."""
    try:
        sent = client._sock.send(data)  # noqa: SLF001 - the plain socket below gevent's
    except BlockingIOError:
        sent = 0
    if sent < len(data):
        client.sendall(data[sent:])


class _Answer:
    """What the application says of its answer, and the bytes that say it to nginx, which adds Date and Server."""

    __slots__ = ("headers", "keep", "status", "streamed")

    def __init__(self) -> None:
        self.status, self.keep, self.streamed = "", True, True
        self.headers: list[tuple[str, str]] = []

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        self.status, self.headers = status, headers
        self.streamed = all(name != "Content-Length" for name, _ in headers)
        return _no_write

    def close(self) -> None:
        self.keep = False

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status}\r\n", *(f"{name}: {value}\r\n" for name, value in self.headers)]
        lines.append("Connection: keep-alive\r\n" if self.keep else "Connection: close\r\n")
        lines.append("Transfer-Encoding: chunked\r\n\r\n" if self.streamed else "\r\n")
        return "".join(lines).encode("latin-1")


def _no_write(data: bytes) -> None:
    raise NotImplementedError("Flask does not use WSGI's write()")


@lru_cache(maxsize=256)
def _environ_key(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
