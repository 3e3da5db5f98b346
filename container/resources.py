"""CPUs and memory as the cgroup grants them (v1 and v2), and the plan that follows: workers and threads."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from container.settings import THREAD_VARIABLES, Settings

UNLIMITED = 1 << 60
"""cgroup v1 writes 'no limit' as a number near 2^63; nothing real is this large."""
FIRST, BEFORE_THE_PARENT = 1000, 500
"""When a process is killed where memory is short: one that can be done without; a worker, for the parent's end would be everybody's."""


@dataclass(frozen=True)
class Resources:
    """What this container may use. cpus: a number of CPUs, fractions included. memory: bytes. Each with where it is from."""

    cpus: float
    cpus_from: str
    memory: int
    memory_from: str


@dataclass(frozen=True)
class Plan:
    """What is started. threads: BLAS and OpenMP threads of each worker. reasons: one line for each decision, for people."""

    workers: int
    threads: int
    serverless: bool
    reasons: tuple[str, ...]

    def thread_environment(self, settings: Settings) -> dict[str, str]:
        """Variables to set before numpy is imported; those that the user set are not among them."""
        return {name: str(self.threads) for name in THREAD_VARIABLES if name not in settings.threads_by_user}


def granted(root: Path = Path("/")) -> Resources:
    """What affinity, cgroup quota, cgroup memory limit and host leave to this process. root: for tests."""
    cpus, cpus_from = float(len(os.sched_getaffinity(0))), "CPU affinity"
    for quota in _quotas(root):
        if quota < cpus:
            cpus, cpus_from = quota, "cgroup CPU quota"
    memory, memory_from = _meminfo(root, "MemTotal"), "host"
    for limit in _memory_limits(root):
        if limit < memory:
            memory, memory_from = limit, "cgroup memory limit"
    return Resources(cpus, cpus_from, memory, memory_from)


def plan(settings: Settings, resources: Resources, program_dir: Path, shared_memory: Path = Path("/dev/shm")) -> Plan:
    """Workers, threads and profile. program_dir: the image's own directory, writable or not is a sign of serverless."""
    serverless, why = _serverless(settings, program_dir, shared_memory)
    if serverless:
        workers, because = 1, "serverless: one request at a time"
    elif settings.workers:
        workers, because = settings.workers, settings.source("workers")
    else:
        workers, because = max(1, math.ceil(resources.cpus)), "one for each CPU"
    threads = max(1, int(resources.cpus // workers))
    named = ", ".join(f"{name}={value}" for name, value in settings.threads_by_user.items())
    return Plan(
        workers,
        threads,
        serverless,
        (
            f"resources  {resources.cpus:g} CPUs ({resources.cpus_from}), {resources.memory / 2**30:.1f} GiB ({resources.memory_from})",
            f"workers    {workers} ({because}), {threads} BLAS thread{'s' * (threads > 1)} each"
            + (f", but {named} was given" if named else ""),
            f"profile    {'serverless' if serverless else 'realtime'} ({why})",
        ),
    )


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes of this cgroup the kernel has killed for want of memory; 0 where nobody counts."""
    for name, path in (("memory", "memory.oom_control"), ("", "memory.events")):
        for group in _groups(root, name):
            for line in _lines(group / path):
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.strip().isdigit():
                    return int(value)
    return 0


def available(root: Path = Path("/")) -> int:
    """Bytes of memory that this container may still take: the least of what its cgroups and the host have left.

    What a cgroup has in its page cache and has not touched lately counts as left: the kernel takes it back first.
    """
    left = [_meminfo(root, "MemAvailable")]
    for controller, limit, usage, inactive in (
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ("", "memory.max", "memory.current", "inactive_file"),
    ):
        for group in _groups(root, controller):
            most, used = _number(group / limit), _number(group / usage)
            if most and used is not None and most < UNLIMITED:
                cache = next((int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{inactive} ")), 0)
                left.append(most - used + cache)
    return min(left)


def rss(pid: int | str = "self") -> int:
    """Resident bytes of a process, shared pages included; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def writable() -> tuple[int, int]:
    """Bytes that this process may write to without asking for more, which is what RLIMIT_DATA bounds; and how many it has touched."""
    _, resident, files, _, _, mapped, _ = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in _lines(Path("/proc/self/statm"))[0].split())
    return mapped, resident - files


def written(pid: int | str = "self") -> int:
    """Resident bytes of a process that are no file's: what it has written, before a fork or after it. 0 if it is gone."""
    lines = _lines(Path(f"/proc/{pid}/status"))
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def be_killed(when: int) -> None:
    """Has the kernel choose this process, where memory is short, before those with a lower number. What it starts inherits it."""
    with suppress(OSError):  # no such file, or not to be written
        Path("/proc/self/oom_score_adj").write_text(str(when))


def _serverless(settings: Settings, program_dir: Path, shared_memory: Path) -> tuple[bool, str]:
    if settings.profile != "auto":
        return settings.profile == "serverless", settings.source("profile")
    if settings.serverless_signs:
        return True, f"{settings.serverless_signs[0]} is set"
    if not shared_memory.is_dir() and not os.access(program_dir, os.W_OK):
        return True, f"no {shared_memory}, and {program_dir} is not writable"
    return False, "no sign of serverless"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's directories of one v1 controller, or of the v2 hierarchy (''): its own first, then those above it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            mount = root / "sys/fs/cgroup" / controller
            own = mount / path.lstrip("/")
            yield from (group for group in (own, *own.parents) if group.is_relative_to(mount) and group.is_dir())


def _number(path: Path) -> int | None:
    text = (_lines(path) or [""])[0]
    return int(text) if text.lstrip("-").isdigit() else None


def _quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            yield quota / period
    for group in _groups(root, ""):
        words = (_lines(group / "cpu.max") or ["max"])[0].split()
        if len(words) == 2 and words[0].isdigit():
            yield int(words[0]) / int(words[1])


def _memory_limits(root: Path) -> Iterator[int]:
    for controller, name in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        for group in _groups(root, controller):
            limit = _number(group / name)
            if limit and limit < UNLIMITED:
                yield limit


def _meminfo(root: Path, name: str) -> int:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return UNLIMITED
