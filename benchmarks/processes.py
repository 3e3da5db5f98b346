"""Server processes: started, waited for, weighed and ended. Linux only (/proc). Knows nothing of what they serve."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 30.0


class ServerError(Exception):
    """A server that did not start; the message has the end of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, below those that clients get (Multi Model Server refuses high ones)."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def serving(command: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path, ready: Callable[[], bool]) -> Iterator[int]:
    """Runs a server while the block runs: ready at its start, gone with all its descendants at its end. Gives its process id.

    Raises `ServerError` when it ends, or is not ready after START_SECONDS.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        _await(process, ready, log)
        yield process.pid
    finally:
        _stop(process)


def family(pid: int) -> list[int]:
    """A process and all its descendants that live now."""
    found = [pid]
    for parent in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def proportional_bytes(pid: int) -> int:
    """The memory of a process and its descendants in bytes: each page's share among all that map it (Pss)."""
    return _sum(_pss, pid)


def cpu_seconds(pid: int) -> float:
    """Processor time, user and system, that a process and its living descendants have used so far."""
    return _sum(_ticks, pid) / os.sysconf("SC_CLK_TCK")


def _sum(figure: Callable[[int], int], pid: int) -> int:
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):  # it has ended since
            total += figure(member)
    return total


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12])  # utime and stime


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the program's name: the state, and on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _pss(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            what = f"ended with code {code}" if code is not None else f"was not ready after {START_SECONDS:.0f} s"
            raise ServerError(f"{process.args!r} {what}; its log ends:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    members = family(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and (left := [pid for pid in members if _lives(pid, process.pid)]):
        for pid in left:  # Multi Model Server's launcher, for one, leaves its Java behind
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()


def _lives(pid: int, session: int) -> bool:
    """Whether a process is there, is no zombie, and is of a session: its number may have gone to a stranger."""
    try:
        return os.getsid(pid) == session and _stat(pid)[0] != "Z"
    except OSError:
        return False
