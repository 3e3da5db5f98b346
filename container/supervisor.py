"""Runs commands as one, as PID 1 must: signals, readiness, grace, exit code, reaping. Knows nothing of what the commands do."""

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from container import events

log = logging.getLogger(__name__)

GRACE = 25.0
"""Seconds from SIGTERM to the end: the platform kills after 30."""
TO_COME = 0
"""In place of the pid of a worker that is not there yet."""
CRASHES = 3
"""So many deaths in a row of workers that never answered end the container."""


@dataclass(frozen=True)
class Command:
    """A child. stop: the signals that end it gently, in order; before each further one, those of its own children that were there
    at the signal before must have ended. So ("SIGHUP", "SIGQUIT") has nginx finish what its old workers have, while new ones
    answer that the server is stopping.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    stop: tuple[signal.Signals, ...] = (signal.SIGTERM,)


@dataclass
class Supervisor:
    """Starts the commands, publishes readiness, and stops them in the reverse of their order.

    ready_file exists while every worker has been ready once and one is now. forward: file descriptors that are copied to stdout.
    """

    commands: Sequence[Command]
    run_dir: Path
    workers: int
    grace: float = GRACE
    forward: Sequence[int] = ()
    spawn: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen
    clock: Callable[[], float] = time.monotonic
    on_ready: Callable[[], None] = lambda: None
    _running: dict[int, Command] = field(default_factory=dict)
    _groups: list[int] = field(default_factory=list)
    _ready: dict[int, int] = field(default_factory=dict)
    _proven: set[int] = field(default_factory=set)
    _leaving: set[int] = field(default_factory=set)
    _published_once: bool = False
    _crashes: int = 0
    _stopping: bool = False
    _cause: str | None = None
    _code: int = 0

    @property
    def ready_file(self) -> Path:
        return self.run_dir / "ready"

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT, or until a command ends for good. Returns the exit code: 0 only after a gentle stop."""
        self._listener = events.listen(self.run_dir)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        for descriptor in self.forward:
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._watch_signals()
        try:
            for command in self.commands:
                self._start(command)
            while not self._stopping and self._cause is None:
                self._turn(None)
            self._stop()
        finally:
            self._kill()
            self._drain_output()
            self._close()
        if self._cause:
            print(self._cause, file=sys.stderr, flush=True)
        return self._code

    def _start(self, command: Command) -> None:
        child = self.spawn(command.argv, env=dict(command.env), stdin=subprocess.DEVNULL, process_group=0)
        self._running[child.pid] = command
        self._groups.append(child.pid)
        child.returncode = 0  # reaped here, with everybody's orphans: Popen must not look for it

    def _watch_signals(self) -> None:
        reading, writing = socket.socketpair()
        for end in (reading, writing):
            end.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._signals, self._signals_end = reading, writing
        self._selector.register(reading, selectors.EVENT_READ)

    def _turn(self, timeout: float | None) -> None:
        """Waits for something to happen, and acts on all that has."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._signals:
                if set(self._signals.recv(4096)) & {signal.SIGTERM, signal.SIGINT}:
                    self._stopping = True
            elif key.fileobj is self._listener:
                self._hear()
            else:
                self._copy(key.fd)
        self._reap()

    def _copy(self, descriptor: int) -> None:
        data = os.read(descriptor, 1 << 16)
        if data:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def _hear(self) -> None:
        for event in events.receive(self._listener):
            match event.pop("kind"):
                case events.READY:
                    self._worker_ready(**event)
                case events.ANSWERED:
                    self._worker_answered(**event)
                case events.LEAVES:
                    self._worker_leaves(**event)
                case events.DIED:
                    self._worker_died(**event)
                case events.FAILED:
                    self._failed(**event)
        self._publish()

    def _worker_ready(self, slot: int, pid: int, warm: bool) -> None:
        self._ready[slot] = pid
        if warm:
            self._worker_answered(slot, pid)

    def _worker_answered(self, slot: int, pid: int) -> None:
        self._proven.add(pid)
        self._crashes = 0

    def _worker_leaves(self, slot: int, pid: int) -> None:
        """Its slot stays ready: the socket takes connections, and the successor will answer them."""
        log.info("worker %d (pid %d) makes way for a successor: no model is left in it, but memory that models have taken", slot, pid)
        self._leaving.add(pid)
        self._ready[slot] = TO_COME

    def _worker_died(self, slot: int, pid: int, cause: str) -> None:
        if pid in self._leaving:
            self._leaving.remove(pid)
            self._proven.discard(pid)
            return
        if self._ready.get(slot) in (pid, TO_COME):
            del self._ready[slot]
        if self._stopping or self._cause:
            return
        log.error("worker %d (pid %d) is gone: %s", slot, pid, cause)
        if pid in self._proven:  # whatever ends several that have served for days is no crash loop
            self._proven.remove(pid)
            return
        self._crashes += 1
        if self._crashes >= CRASHES:
            self._failed(f"{self._crashes} workers in a row died before their first answer; of the last: {cause}")

    def _failed(self, cause: str) -> None:
        if self._cause is None:
            self._cause, self._code = f"{'FAILED' if self._published_once else 'STARTUP FAILED'}: {cause}", 1

    def _publish(self) -> None:
        if len(self._ready) == self.workers and not self._published_once:
            self._published_once = True
            self.on_ready()
        if self._published_once and self._ready and not self._stopping:
            self.ready_file.touch()
        else:
            self.ready_file.unlink(missing_ok=True)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            command = self._running.pop(pid, None)
            if command and not self._stopping and self._cause is None:
                self._hear()  # what it said before it ended is the better cause
                self._failed(f"{command.name} (pid {pid}) {ending(status)}")
                self._code = max(1, os.waitstatus_to_exitcode(status))

    def _stop(self) -> None:
        """Gently, in reverse order, within the grace; what has failed already is not waited for."""
        self._stopping = self._cause is None
        self._publish()
        end = self.clock() + (self.grace if self._stopping else 1.0)
        for command in reversed(self.commands):
            pid = next((pid for pid, running in self._running.items() if running is command), None)
            for position, number in enumerate(command.stop):
                if pid is None or pid not in self._running:
                    break
                before = children(pid)
                os.kill(pid, number)
                last = position == len(command.stop) - 1
                while self.clock() < end and (pid in self._running if last else any(alive(child) for child in before)):
                    self._turn(min(0.05, max(0.0, end - self.clock())))
        if self._stopping and self._running:
            log.error("not everything ended within %.0f s of grace: %s", self.grace, ", ".join(c.name for c in self._running.values()))

    def _kill(self) -> None:
        for group in self._groups:  # those of the ended too: nginx's worker outlives its master
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        while self._running:
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            self._running.pop(pid, None)
        self.ready_file.unlink(missing_ok=True)

    def _drain_output(self) -> None:
        for descriptor in self.forward:
            while any(key.fd == descriptor for key, _ in self._selector.select(0)):
                self._copy(descriptor)

    def _close(self) -> None:
        signal.set_wakeup_fd(-1)
        for end in (self._selector, self._listener, self._signals, self._signals_end):
            end.close()


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name, in parentheses, may hold anything: what follows the last one is state, then parent
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ending(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"ended with code {code}" if code >= 0 else f"was killed by {events.signal_name(-code)}"
