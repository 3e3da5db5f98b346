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


@contextlib.contextmanager
def memory_group() -> Iterator[Path | None]:
    """A memory cgroup for a server, so that the kernel itself counts what it takes; None where no such group can be made."""
    version1 = Path("/sys/fs/cgroup/memory")
    group = (version1 if version1.is_dir() else Path("/sys/fs/cgroup")) / f"bench-{os.getpid()}-{random.randrange(10**6)}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group if _group_figures(group) else None
    finally:
        deadline = time.monotonic() + STOP_SECONDS
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel is not done with the last of them
        group.rmdir()


def in_group(command: Sequence[str], group: Path | None) -> list[str]:
    """The command, started inside of a memory cgroup."""
    enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{group}/cgroup.procs"]
    return [*(enter if group else []), *command]


def group_bytes(group: Path) -> int:
    """What the kernel has counted for a memory cgroup, without what it would give up at once: files that nobody has used lately."""
    figures = _group_figures(group)
    assert figures is not None, f"{group} counts no memory"
    total, idle_files = figures
    return total - idle_files


def _group_figures(group: Path) -> tuple[int, int] | None:
    """All bytes of a group, and those of idle files; None where the kernel counts no memory in it."""
    for total, idle_files in (("memory.usage_in_bytes", "total_inactive_file"), ("memory.current", "inactive_file")):
        if (group / total).exists():
            found = re.search(rf"^{idle_files} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
            return int((group / total).read_text()), int(found[1]) if found else 0
    return None


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
