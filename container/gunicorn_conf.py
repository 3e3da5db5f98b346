"""gunicorn's settings and hooks. gunicorn reads this file by itself: `gunicorn -c container/gunicorn_conf.py wsgi:app`."""

import array
import logging
import mmap
import os
import signal
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from container import events, logs, resources
from container.metrics import Counters
from container.settings import Settings

_settings = Settings.read()
_run_dir = _settings.run_dir or Path("/tmp")
logs.setup(_settings.log_level)
log = logging.getLogger("container.gunicorn")

KILL_AFTER = 5.0
"""Seconds. nginx says 504 at the deadline; a worker that still computes after this much more is of no use to anyone and is replaced."""

LEAVE_SECONDS = 2.0
"""How long the exit of a worker that makes way for a successor may take."""

workers = _settings.workers or 1
bind = [f"unix:{_run_dir}/shard-{slot}.sock" for slot in range(workers)] if _settings.multi_model else f"unix:{_run_dir}/gunicorn.sock"
umask = 0  # nginx may run as another user: it must be able to connect
worker_class = "container.worker.Worker"
worker_connections = 4096
preload_app = _settings.preload != "never"
timeout = int(_settings.timeout + KILL_AFTER)
graceful_timeout = 25
keepalive = 75  # longer than nginx keeps a connection: nginx closes it, so no request meets a closing socket
backlog = 2048
limit_request_line = 0  # nginx has its own limits, and says them in JSON
limit_request_fields = 1000
limit_request_field_size = 65536  # 0 would mean 8190
forwarded_allow_ips = "*"
proc_name = "berth"
control_socket_disable = True  # it wants a writable $HOME
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(_run_dir)  # the heartbeat file: never on a slow disk

MISLEADING = ("Worker (pid:%s) was sent ", "Worker (pid:%s) exited with code ")
"""gunicorn guesses at memory here; what the kernel counted is told below."""


class GunicornLogger(Logger):
    """Hands gunicorn's messages to this process's logging, from warnings up, unless all is debugged. nginx logs the requests."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.handlers = []
        level = _settings.log_level  # what propagates is not compared with the root logger's own
        self.error_log.setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
        self.error_log.addFilter(lambda record: not str(record.msg).startswith(MISLEADING))

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: see nginx.conf."""


logger_class = GunicornLogger
ABSENT = 1 << 40
"""The number of connections of a worker that is not there: nobody leaves anything to it."""
_connections = memoryview(mmap.mmap(-1, 8 * (2 * workers + 8))).cast("q")
"""How many connections each worker has; made before the fork, so shared by all. A reload by hand has twice the workers for a moment."""
_connections[:] = memoryview(array.array("q", [ABSENT] * len(_connections)))
_oom_kills = [resources.oom_kills()]
"""The kernel's count when it was looked at last."""


def on_starting(server: Any) -> None:
    """Lets the parent see how a worker ended before gunicorn reaps it: gunicorn keeps that to itself. And takes two exit codes out of
    gunicorn's mouth: it would end all workers where a model ends one with code 3 or 4. The supervisor knows a crash loop when it sees one.
    """
    server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = -1
    reap = server.reap_workers

    def look_then_reap() -> None:
        before, _oom_kills[0] = _oom_kills[0], resources.oom_kills()  # once for all: one look may find several of them dead
        for pid in list(server.WORKERS):
            try:
                status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                continue
            if status is not None:
                _tell_death(server.WORKERS[pid], status, _oom_kills[0] > before)
        reap()

    server.reap_workers = look_then_reap


def pre_fork(server: Any, worker: Any) -> None:
    """Gives a new worker the lowest slot that no living worker has."""
    taken = {other.slot for other in server.WORKERS.values()}
    worker.slot = min(set(range(len(taken) + 1)) - taken)
    worker.run_dir = _settings.run_dir
    worker.connections = _connections
    worker.own_socket = _settings.multi_model
    _connections[worker.slot] = ABSENT


def post_worker_init(worker: Any) -> None:
    """What the application does before it is ready; then this worker counts as ready."""
    from container.errors import StartupError

    resources.be_killed(resources.BEFORE_THE_PARENT)

    counters = Counters.of_worker(_run_dir / "metrics", worker.slot, os.getpid()) if _settings.run_dir else Counters()
    try:
        warm = worker.application.start(counters, worker.slot)
    except StartupError as error:
        log.error("why:", exc_info=error.__cause__)
        events.tell(_settings.run_dir, events.FAILED, cause=str(error))
        raise SystemExit(1) from error
    events.tell(_settings.run_dir, events.READY, slot=worker.slot, pid=os.getpid(), warm=warm)


def worker_exit(server: Any, worker: Any) -> None:
    """A worker that makes way is waited for by whoever connects: threads and exit functions of a model's have a moment, and no more."""
    if worker.leaves:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, LEAVE_SECONDS)


def _tell_death(worker: Any, status: Any, out_of_memory: bool) -> None:
    """out_of_memory: whether the kernel has killed anyone for want of memory since the last look."""
    _connections[worker.slot] = ABSENT
    if status.si_code == os.CLD_EXITED:
        cause = f"it ended with code {status.si_status}"
    elif out_of_memory and status.si_status == signal.SIGKILL:
        cause = "the kernel killed it for want of memory (the cgroup's oom_kill counter says so)"
    else:
        cause = f"it was killed by {events.signal_name(status.si_status)} (not for want of memory)"
    events.tell(_settings.run_dir, events.DIED, slot=worker.slot, pid=worker.pid, cause=cause)
