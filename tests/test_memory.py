"""Who may take how much memory: reservations that shards see of each other, and the way back."""

import array
import errno
import gc
import re
import urllib.parse
import weakref

import gevent
import pytest

from container import memory
from container.errors import ClientError, InsufficientStorage, StartupError
from container.memory import MARGIN, Budget

MB = 2**20


@pytest.fixture
def shards(tmp_path):
    """The budgets of two shards, with so many bytes free."""

    def make(free):
        reserved = memoryview(array.array("q", [0, 0]))
        return [Budget(reserved, slot, tmp_path / "lock", lambda: free + MARGIN) for slot in (0, 1)]

    return make


def test_a_load_that_does_not_fit_is_refused_with_both_numbers(shards):
    first, _ = shards(100 * MB)
    with (
        pytest.raises(InsufficientStorage, match=r"^it needs about 101 MB of memory, and 100 MB are left$"),
        first.reserve(100 * MB + 1, "it"),
    ):
        raise AssertionError("it was reserved")
    assert InsufficientStorage.status == 507


def test_what_one_shard_reserves_the_other_has_not(shards, monkeypatch):
    monkeypatch.setattr(memory, "PATIENCE", 0)
    first, second = shards(100 * MB)
    with first.reserve(60 * MB, "a"):
        assert second.left() == 40 * MB
        with pytest.raises(InsufficientStorage, match=r"needs about 60 MB of memory, and 40 MB are left"), second.reserve(60 * MB, "b"):
            raise AssertionError("it was reserved")
        with second.reserve(40 * MB, "c"), first.reserve(0, "d"):
            assert first.left() == 0
    assert first.left() == second.left() == 100 * MB


def test_what_another_load_holds_may_come_back(shards):
    """Loads of unknown need hold half of what is left; twenty at once would leave nothing, though they need next to nothing."""
    first, second = shards(100 * MB)
    together = []

    def load(budget):
        with budget.reserve(30 * MB, "it", share=2):
            together.append(first.left())
            gevent.sleep(0)

    loads = [gevent.spawn(load, budget) for budget in (first, second) * 10]
    gevent.joinall(loads, timeout=10, raise_error=True)
    assert len(together) == 20
    assert min(together) >= 0
    assert first.left() == 100 * MB


def test_a_load_that_fails_gives_its_reservation_back(shards):
    first, second = shards(100 * MB)
    with pytest.raises(ValueError, match="broken"), first.reserve(60 * MB, "a"):
        raise ValueError("broken")
    assert second.left() == 100 * MB


def test_what_a_dead_shard_had_reserved_its_successor_gives_back(tmp_path):
    reserved = memoryview(array.array("q", [7, 30 * MB]))
    assert Budget(reserved, 1, tmp_path / "lock", lambda: 100 * MB).left() == 100 * MB - MARGIN - 7


@pytest.mark.parametrize("free", [0, MARGIN - 1])
def test_nothing_is_less_than_nothing_for_people(tmp_path, free):
    budget = Budget(memoryview(array.array("q", [0])), 0, tmp_path / "lock", lambda: free)
    with pytest.raises(InsufficientStorage, match=re.escape("needs about 1 MB of memory, and 0 MB are left")), budget.reserve(1, "it"):
        raise AssertionError("it was reserved")


@pytest.mark.parametrize(
    ("error", "cause", "short"),
    [
        (MemoryError(), None, True),
        (StartupError("a"), MemoryError(), True),
        (StartupError("a"), KeyError(), False),
        (KeyError(), None, False),
    ],
)
def test_what_is_a_want_of_memory(error, cause, short):
    error.__cause__ = cause
    assert memory.ran_out(error) == short


class TooLarge(Exception):
    status_code = 413


def raised(*errors):
    """The last of errors, each raised while the one before it was dealt with."""
    if len(errors) == 1:
        return errors[0]
    try:
        raise raised(*errors[:-1])
    except BaseException:
        try:
            raise errors[-1]
        except BaseException as error:
            return error


@pytest.mark.parametrize(
    ("errors", "short"),
    [
        ([MemoryError(), KeyError("weights"), RuntimeError("no weights")], True),
        ([OSError(errno.ENOMEM, "Cannot allocate memory"), ValueError("no mmap")], True),
        ([OSError(errno.ENOENT, "No such file")], False),
        ([MemoryError(), ClientError("too large for me")], False),
        ([MemoryError(), TooLarge()], False),
    ],
    ids=lambda value: " ".join(type(error).__name__ for error in value) if isinstance(value, list) else "",
)
def test_a_want_of_memory_behind_other_errors(errors, short):
    error = raised(*errors)
    assert memory.ran_out(error) == short
    refused = memory.refused(error)
    assert (getattr(refused, "status", None) == 507, refused is error) == (short, not short)


def test_a_want_of_memory_that_the_script_has_dealt_with():
    error = KeyError("a")
    error.__context__, error.__suppress_context__ = MemoryError(), True
    assert not memory.ran_out(error)


def test_cycles_are_collected_but_what_is_frozen_stays():
    class Cycle:
        def __init__(self):
            self.own = self

    frozen = weakref.ref(Cycle())
    gc.freeze()
    loaded = weakref.ref(Cycle())
    try:
        memory.collect()
        assert (loaded() is None, frozen() is None) == (True, False)
    finally:
        gc.unfreeze()
        gc.collect()


def test_caches_let_go_of_what_models_left():
    urllib.parse.urlsplit("/models/m1/invoke")
    memory.collect()
    assert urllib.parse.urlsplit.cache_info().currsize == 0  # type: ignore[attr-defined]


def test_full_collections_are_the_rarer_the_more_models_there_are():
    before = gc.get_threshold()
    try:
        memory.collect_rarely(5000)
        assert gc.get_threshold() == (*before[:2], memory.FULL_EVERY + 5000)
        memory.collect_rarely(0)
        assert gc.get_threshold()[2] == memory.FULL_EVERY
    finally:
        gc.set_threshold(*before)
    gc.unfreeze()


def test_giving_back_needs_no_glibc(monkeypatch):
    memory.give_back()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    memory.give_back()


def test_loads_of_unknown_need_hold_shares_so_that_no_two_count_on_the_same_memory(tmp_path):
    reserved = memoryview(bytearray(16)).cast("q")
    first, second = (Budget(reserved, slot, tmp_path / "lock", lambda: 100 * MB + MARGIN) for slot in (0, 1))
    with first.reserve(MB, "a", share=2) as held, second.reserve(MB, "b", share=2) as rest, first.reserve(20 * MB, "c", share=2) as more:
        assert (held, rest, more) == (50 * MB, 25 * MB, 20 * MB)
        assert first.left() == 5 * MB
    assert first.left() == 100 * MB
