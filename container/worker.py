"""A worker process: gunicorn's gevent worker without the monkey-patch. Only the listening socket is gevent's, so the user's
code runs as it would anywhere else; greenlets gather requests while nothing is predicted."""

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http import wsgi
from gunicorn.workers.ggevent import GeventWorker

from container import events
from container.app import App

log = logging.getLogger(__name__)


class Worker(GeventWorker):
    """slot: 0 to workers - 1; a replacement takes the slot of the worker that it replaces."""

    slot: int = 0
    connections: int = 0
    answered: bool = False
    run_dir: Path | None = None

    def patch(self) -> None:
        """The part of the monkey-patch that is wanted."""
        listeners: list[Any] = self.sockets
        self.sockets = [socket.socket(s.FAMILY, socket.SOCK_STREAM, fileno=s.sock.detach()) for s in listeners]

    def init_process(self) -> None:
        """Keeps the heart beating while the model is loaded and warmed up: gunicorn would take the silence for a hang."""
        loading = threading.Event()

        def beat() -> None:
            while not loading.wait(1.0):
                self.tmp.notify()

        self._loaded = loading.set
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        super().init_process()

    def run(self) -> None:
        self._loaded()
        # gunicorn looks its settings up 17 times a request, each time through two calls; after this they are plain attributes
        vars(self.cfg).update({name: setting.get() for name, setting in self.cfg.settings.items()})
        servers = [self._server(listener) for listener in self.sockets]

        def stop_accepting() -> None:
            for server in servers:
                server.stop_accepting()

        def start_accepting() -> None:
            for server in servers:
                if server.started:
                    server.start_accepting()

        batcher = self.application.batcher
        batcher.is_alone, batcher.on_full, batcher.on_room = (lambda: self.connections <= 1), stop_accepting, start_accepting
        for server in servers:
            server.start()
        while self.alive:
            self.notify()
            gevent.sleep(1.0)
        for server in servers:
            server.close()
        self._drain()

    @property
    def application(self) -> App:
        app: Any = self.wsgi
        assert isinstance(app, App)
        return app

    def _server(self, listener: Any) -> StreamServer:
        listener.setblocking(1)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=Pool(self.worker_connections))
        server.max_accept = 1  # the next connection may be better off with another worker
        return server

    def _drain(self) -> None:
        """Waits for the requests in flight; nginx has closed the idle connections before gunicorn is told to stop."""
        end = time.monotonic() + self.cfg.graceful_timeout
        while self.connections and time.monotonic() < end:
            self.notify()
            gevent.sleep(0.1)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        self.connections += 1
        try:
            super().handle(listener, client, addr)
        finally:
            self.connections -= 1

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> bool:
        """gunicorn's own, without what nginx has done already; gives the application the means to close the connection."""
        resp: Any
        resp, environ = wsgi.create(req, sock, addr, listener_name, self.cfg)
        resp.sock = gathered = _Gathered(sock)
        environ["berth.close"] = resp.force_close
        if not self.alive:
            resp.force_close()
        parts = self.wsgi(environ, resp.start_response)
        try:
            for part in parts:
                resp.write(part)
                if resp.chunked:
                    gathered.flush()
            resp.close()
            gathered.flush()
        except OSError:
            raise  # nginx has closed the connection: the client is gone
        except Exception:
            sock.close()  # in the middle of a stream: an honest end would tell the client that it was whole
            raise StopIteration from None
        finally:
            close = getattr(parts, "close", None)
            if close:
                close()
        if not self.answered and resp.status_code == 200:
            self.answered = True
            events.tell(self.run_dir, events.ANSWERED, slot=self.slot, pid=self.pid)
        if resp.should_close():
            raise StopIteration
        return True

    def handle_abort(self, sig: int, frame: Any) -> None:
        """gunicorn's signal to a worker whose heart stood still: a prediction took longer than any client waits."""
        log.critical("worker %d is ended: a prediction ran on long after its deadline (SAGEMAKER_MODEL_SERVER_TIMEOUT)", self.slot)
        os._exit(1)


class _Gathered:
    """Takes the place of a socket for gunicorn's Response: headers and body leave in one system call, which wakes nginx once."""

    __slots__ = ("_parts", "_sock")

    def __init__(self, sock: Any) -> None:
        self._sock, self._parts = sock, list[bytes]()

    def sendall(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            self._sock.sendall(data)
