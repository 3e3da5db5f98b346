"""What is told arrives; where nobody listens nothing happens."""

import pytest

from container import events


@pytest.fixture
def listener(tmp_path):
    with events.listen(tmp_path) as listener:
        yield listener


def test_all_that_was_told_since_arrives_in_order(tmp_path, listener):
    events.tell(tmp_path, events.READY, slot=0, pid=10, warm=True)
    events.tell(tmp_path, events.DIED, slot=0, pid=10, cause="so\nit is: ünïcode")
    assert events.receive(listener) == [
        {"kind": "ready", "slot": 0, "pid": 10, "warm": True},
        {"kind": "died", "slot": 0, "pid": 10, "cause": "so\nit is: ünïcode"},
    ]
    assert events.receive(listener) == []


@pytest.mark.parametrize("letter", ["x", '"', "\0", "😀"])
def test_a_cause_of_any_length_arrives_cut(tmp_path, listener, letter):
    events.tell(tmp_path, events.FAILED, cause=letter * 1_000_000)
    (told,) = events.receive(listener)
    assert told == {"kind": "failed", "cause": letter * events.LONGEST}


def test_without_a_supervisor_there_is_nobody_to_tell(tmp_path):
    events.tell(None, events.ANSWERED, slot=0, pid=1)
    events.tell(tmp_path, events.ANSWERED, slot=0, pid=1)
    assert list(tmp_path.iterdir()) == []


def test_nor_after_it_has_gone(tmp_path):
    events.listen(tmp_path).close()
    events.tell(tmp_path, events.ANSWERED, slot=0, pid=1)
