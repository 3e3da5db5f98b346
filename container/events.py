"""What the processes of one container tell their supervisor: datagrams on a unix socket in the run directory."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

READY = "ready"
"""A worker (slot, pid) has its model and has passed its warm-up."""
ANSWERED = "answered"
"""A worker (slot, pid) has answered for the first time."""
LEAVES = "leaves"
"""A worker (slot, pid) is about to end by itself, because its successor will take up less memory."""
DIED = "died"
"""A worker (slot, pid) is gone; cause: in words."""
FAILED = "failed"
"""The server cannot start; cause: in words."""

LONGEST = 4000
"""Characters of one fact that are told. A cause may quote a whole request or model; a datagram holds some 200 KB, a log line less."""


def _path(run_dir: Path) -> str:
    return str(run_dir / "supervisor.sock")


def tell(run_dir: Path | None, kind: str, **facts: Any) -> None:
    """Tells the supervisor. Without one (no run directory, or nobody listens) there is nobody to tell."""
    if run_dir is None:
        return
    told = {name: fact[:LONGEST] if isinstance(fact, str) else fact for name, fact in facts.items()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(json.dumps({"kind": kind, **told}).encode(), _path(run_dir))
        except (FileNotFoundError, ConnectionRefusedError):
            return


def listen(run_dir: Path) -> socket.socket:
    """The supervisor's end; non-blocking."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(_path(run_dir))
    listener.setblocking(False)
    return listener


def receive(listener: socket.socket) -> list[dict[str, Any]]:
    """All that has been told since."""
    told: list[dict[str, Any]] = []
    while True:
        try:
            told.append(json.loads(listener.recv(65_536)))
        except BlockingIOError:
            return told


def signal_name(number: int) -> str:
    """SIGKILL, and the like; real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
