"""What memory is left, and who has put a hand on it: no load begins that will not fit beside the others that are under way."""

import contextlib
import ctypes
import errno
import fcntl
import gc
import resource
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent

from container import resources
from container.errors import InsufficientStorage, ServingError

M_MMAP_THRESHOLD = -3
"""glibc's number of this option."""
LARGE = 2**19
FULL_EVERY = 10
"""Collections of the middle generation before a full one, as Python has it, without models."""
PATIENCE = 20.0
"""Seconds that a load waits for others under way to give back what they have reserved and have not used."""
MARGIN = 48 * 2**20
"""Bytes that are never given away: requests and answers need room too."""


class Budget:
    """The memory that this container may still use, shared by all shards.

    reserved: bytes that each shard has put a hand on, in shared memory. free: bytes left as the kernel counts; for tests, as is total,
    the bytes of memory that there are in all.
    """

    def __init__(self, reserved: Any, slot: int, lock: Path, free: Any = None, total: int = 0) -> None:
        self.total = total or resources.granted().memory
        self._reserved, self._slot, self._lock = reserved, slot, lock
        self._free = free or resources.available
        reserved[slot] = 0  # what a predecessor had reserved died with it

    @contextmanager
    def reserve(self, needed: int, what: str, share: int = 0) -> Iterator[int]:
        """Holds `needed` bytes while a load is under way, or 1/share of what is left if that is more; gives the bytes that it holds.

        share: for a load of which nobody knows what it needs, so that those beside it do not count on the same memory.
        Waits for others that hold what is missing: they may not need it. Raises InsufficientStorage, with both numbers, if `needed` bytes
        are not left.
        """
        end = time.monotonic() + PATIENCE
        while (held := self._hold(needed, share)) is None:
            left = self.left()
            if needed > left + sum(self._reserved) or time.monotonic() > end:
                raise InsufficientStorage(f"{what} needs about {-(-needed >> 20)} MB of memory, and {max(0, left) >> 20} MB are left")
            gevent.sleep(0.01)
        try:
            yield held
        finally:
            self._reserved[self._slot] -= held

    def _hold(self, needed: int, share: int) -> int | None:
        """The bytes that are held from now on; None if `needed` bytes are not left."""
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # between looking and reserving nobody else may do the same
            left = self.left()
            if needed > left:
                return None
            held = max(needed, left // share) if share else needed
            self._reserved[self._slot] += held
            return held

    def left(self) -> int:
        """Bytes that are neither used, nor reserved, nor kept back."""
        return int(self._free() - sum(self._reserved) - MARGIN)


class Bound:
    """An end to this process's growth: an allocation beyond it raises MemoryError here, where the kernel would have killed somebody.

    Several may be on at a time, from several threads; the last to begin sets the end. What the C library has kept of freed memory can be
    taken without an allocation that the kernel sees, so it counts as growth; a load that is refused for it is worth another look.
    """

    def __init__(self) -> None:
        self._count, self._lock = 0, threading.Lock()
        mapped, touched = resources.writable()
        self._usual = mapped - touched

    @contextmanager
    def on(self, growth: int) -> Iterator[None]:
        """No more than `growth` bytes beside what this process has now."""
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        mapped, touched = resources.writable()
        kept = max(0, mapped - touched - self._usual)
        end = mapped + max(growth // 4, growth - kept)  # never at once: other requests allocate, too
        with self._lock:
            self._count += 1
            resource.setrlimit(resource.RLIMIT_DATA, (end if hard == resource.RLIM_INFINITY else min(end, hard), hard))
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self.off()

    @staticmethod
    def off() -> None:
        """No end: for a forked child, which inherits it."""
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def ran_out(error: BaseException) -> bool:
    """Whether an error, or what it came of, is that memory was short. One that says its own status means what it says."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, ServingError) and not hasattr(link, "status_code"):
        if isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno == errno.ENOMEM):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False


def refused(error: Exception | SystemExit) -> Exception | SystemExit:
    """What to answer a prediction that failed: where memory was short, what has the platform unload others, and ask again."""
    if not ran_out(error):
        return error
    refusal = InsufficientStorage("there was not enough memory for this prediction")
    refusal.__cause__ = error
    return refusal


def keep_no_large_pieces() -> None:
    """Has the C library return freed pieces of LARGE bytes and more at once. It would begin to keep them after the first that is freed."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Returns freed memory to the system: the C library keeps it otherwise."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # not glibc
        return


def collect_rarely(models: int) -> None:
    """Full collections walk all models: the more there are, the fewer such walks."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL_EVERY + models)


def collect() -> None:
    """A full collection, for models that hold themselves in cycles. What was imported before the fork is frozen, and stays shared.

    Two caches are emptied too, of attributes' names (4,096, in the interpreter) and of requests' paths (128): each entry is a small piece
    that keeps the megabyte around it, which is otherwise free, from being given back.
    """
    ctypes.pythonapi.PyType_ClearCache()
    urllib.parse.clear_cache()  # type: ignore[attr-defined]
    gc.collect()
