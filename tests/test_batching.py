"""Real greenlets wait here for made-up predictions: who is predicted when, with whom, and who is not begun any more."""

import random
from types import SimpleNamespace

import gevent
import pytest

from container.batching import Batcher, Waiting
from container.errors import ClientGone, DeadlineExceeded, Unavailable

NOW = 1000.0
DEADLINE = 10


class Model:
    """Stands for predict_many: notes the batches, and answers each piece of data with its capital."""

    def __init__(self, answer=str.upper, during=lambda: None):
        self.batches, self._answer, self._during, self._busy = [], answer, during, False

    def __call__(self, items):
        assert not self._busy, "two predictions at a time"
        self._busy = True
        self.batches.append([data for data, _ in items])
        self._during()
        try:
            return [self._answer(data) for data, _ in items]
        finally:
            self._busy = False


def waiting(data, arrived=NOW, deadline=float("inf"), is_gone=lambda: False):
    return Waiting(data, SimpleNamespace(deadline=deadline), arrived, is_gone)


def batcher(model, max_size=4, **fields):
    return Batcher(model, max_size, max_wait=30.0, clock=lambda: NOW, **fields)


def asking(batcher, item):
    """A greenlet whose value is the outcome, or what was raised."""

    def ask():
        try:
            return batcher.predict(item)
        except BaseException as error:
            return error

    return gevent.spawn(ask)


def outcomes(greenlets):
    """What each of them ended with, in order; all must end in time."""
    assert len(gevent.joinall(greenlets, timeout=DEADLINE)) == len(greenlets), "somebody still waits"
    return [greenlet.value for greenlet in greenlets]


def answers(batcher, *items):
    """Outcomes of items (or their data) that all come at once."""
    return outcomes([asking(batcher, item if isinstance(item, Waiting) else waiting(item)) for item in items])


def test_a_lone_request_is_predicted_by_itself_and_knows_when():
    item, model = waiting("a"), Model()
    assert answers(batcher(model), item) == ["A"]
    assert model.batches == [["a"]]
    assert (item.started, item.ended, item.batch_size, item.done) == (NOW, NOW, 1, True)


@pytest.mark.parametrize(
    ("size", "batches"),
    [(1, ["a", "b", "c", "d", "e"]), (2, ["ab", "cd", "e"]), (4, ["abcd", "e"]), (5, ["abcde"]), (64, ["abcde"])],
)
def test_those_that_came_together_are_predicted_together_in_order_up_to_the_bound(size, batches):
    model = Model()
    items = [waiting(letter) for letter in "abcde"]
    assert answers(batcher(model, size), *items) == list("ABCDE")
    assert ["".join(batch) for batch in model.batches] == batches
    assert [item.batch_size for item in items] == [len(batch) for batch in batches for _ in batch]


def test_who_is_alone_does_not_look_around():
    model = Model()
    assert answers(batcher(model, is_alone=lambda: True), "a", "b", "c") == ["A", "B", "C"]
    assert model.batches[0] == ["a"]


def test_what_the_last_prediction_took_is_told():
    one, seconds = batcher(Model()), iter([0.0, 1.0, 3.5])
    one.clock = lambda: next(seconds)
    assert (one.took, answers(one, "a"), one.took) == (0.0, ["A"], 2.5)


def test_what_came_during_a_prediction_is_in_the_next_one():
    later: list[gevent.Greenlet] = []

    def during():
        if not later:
            later.extend(asking(batches, waiting(letter)) for letter in "bcd")
            gevent.sleep(0)  # user code may let others run; they must not predict meanwhile

    model = Model(during=during)
    batches = batcher(model)
    assert answers(batches, "a") == ["A"]
    assert outcomes(later) == ["B", "C", "D"]
    assert model.batches == [["a"], ["b", "c", "d"]]


@pytest.mark.parametrize("seed", range(30))
def test_nobody_is_passed_over_whatever_comes_when(seed):
    """Requests come in bursts, before and during predictions; some are refused, some fail."""
    chance = random.Random(seed)
    size, total = chance.randint(1, 6), chance.randint(1, 60)
    events: list[str] = []
    arrived: list[str] = []
    greenlets: list[gevent.Greenlet] = []

    def arrive():
        for _ in range(min(chance.randint(0, 9), total - len(arrived))):
            kind = chance.choice(["fine", "fine", "fine", "fails", "gone", "late"])
            arrived.append(f"{kind} {len(arrived)}")
            deadline = NOW - 1 if kind == "late" else NOW + 1
            greenlets.append(asking(tried, waiting(arrived[-1], NOW, deadline, lambda gone=kind == "gone": gone)))

    def during():
        arrive()
        if chance.random() < 0.5:
            gevent.sleep(0)

    model = Model(lambda data: ValueError(data) if data.startswith("fails") else data.upper(), during)
    tried = batcher(
        model,
        size,
        is_alone=lambda: chance.random() < 0.2,
        is_enough=lambda waiting: waiting >= size or (waiting > 0 and chance.random() < 0.2),
        on_enough=lambda: events.append("enough"),
        on_room=lambda: events.append("room"),
    )
    while len(arrived) < total:
        arrive()
        found = outcomes(list(greenlets))
    found = outcomes(greenlets)
    begun = [data for batch in model.batches for data in batch]
    expected = {"fine": str, "fails": ValueError, "gone": ClientGone, "late": DeadlineExceeded}
    assert [type(outcome) for outcome in found] == [expected[data.split()[0]] for data in arrived]
    assert [outcome for outcome in found if isinstance(outcome, str)] == [data.upper() for data in arrived if data.startswith("fine")]
    assert begun == [data for data in arrived if data.startswith("f")], "first come, first served; the refused are not begun"
    assert all(1 <= len(batch) <= size for batch in model.batches)
    assert events == ["enough", "room"] * (len(events) // 2), "each has the other, and room is the last"


@pytest.mark.parametrize(
    ("came", "enough", "events"),
    [(1, 2, []), (2, 2, ["enough", "room"]), (5, 2, ["enough", "room"]), (3, 4, []), (1, 1, ["enough", "room"]), (5, 99, [])],
)
def test_enough_is_told_once_and_room_when_there_is_some_again(came, enough, events):
    told = []
    tried = batcher(
        Model(),
        is_enough=lambda waiting: waiting >= enough,
        on_enough=lambda: told.append("enough"),
        on_room=lambda: told.append("room"),
    )
    answers(tried, *"abcde"[:came])
    assert told == events


@pytest.mark.parametrize(
    ("item", "error", "status", "said"),
    [
        (waiting("x", NOW - 5, NOW - 1), DeadlineExceeded, 504, "the request waited 5.0 s, past its deadline, and was not begun"),
        (waiting("x", NOW - 5, NOW), DeadlineExceeded, 504, "the request waited 5.0 s, past its deadline, and was not begun"),
        (
            waiting("x", NOW - 31.25),
            Unavailable,
            503,
            (
                "the request waited 31.2 s for a worker and was not begun: "
                "the limit is 30 s (MODEL_SERVER_MAX_WAIT); more workers or larger batches may help"
            ),
        ),
        (waiting("x", is_gone=lambda: True), ClientGone, 499, "the client closed the connection before its request was begun"),
    ],
    ids=["past its deadline", "at its deadline", "waited too long", "client gone"],
)
@pytest.mark.parametrize("others", ["", "a", "ab", "abcdefgh"])
@pytest.mark.parametrize("place", [0, -1])
def test_what_nobody_waits_for_is_not_begun_and_holds_up_nobody(item, error, status, said, others, place):
    model = Model()
    tried = batcher(model)
    again = waiting(item.data, item.arrived, item.context.deadline, item.is_gone)
    items = [again, *others] if place == 0 else [*others, again]
    found = answers(tried, *items)
    refusal = found.pop(place)
    assert (type(refusal), refusal.status, str(refusal)) == (error, status, said)
    assert found == list(others.upper())
    assert "x" not in "".join(letter for batch in model.batches for letter in batch)
    assert answers(tried, "z") == ["Z"]


@pytest.mark.parametrize("waited", [0.0, 29.9, 30.0])
def test_up_to_the_limit_a_request_may_wait(waited):
    assert answers(batcher(Model()), waiting("a", NOW - waited, NOW + 0.1)) == ["A"]


def test_the_look_at_the_clock_comes_after_the_wait():
    """A prediction of 40 s is followed by those that have waited too long meanwhile."""
    now = [NOW]

    def during():
        later.append(asking(tried, waiting("b")))
        gevent.sleep(0)
        now[0] += 40

    later: list[gevent.Greenlet] = []
    model = Model(during=during)
    tried = Batcher(model, 4, max_wait=30.0, clock=lambda: now[0])
    first = waiting("a")
    assert answers(tried, first) == ["A"]
    assert (first.started, first.ended) == (NOW, NOW + 40)
    assert [type(outcome) for outcome in outcomes(later)] == [Unavailable]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_a_prediction_that_fails_as_a_whole_fails_for_all_and_for_nobody_after(error):
    def broken(data):
        if data != "z":
            raise error
        return "Z"

    tried = batcher(Model(broken))
    assert answers(tried, "a", "b", "c") == [error] * 3
    assert answers(tried, "z") == ["Z"]


def test_an_exception_as_an_outcome_is_raised_to_its_request_alone():
    bad = ValueError("bad")
    assert answers(batcher(Model(lambda data: bad if data == "b" else data)), "a", "b", "c") == ["a", bad, "c"]


def test_a_stream_keeps_the_turn_until_it_is_released():
    model = Model(lambda data: iter(data) if data == "stream" else data.upper())
    tried = batcher(model, max_size=1)
    (stream,) = answers(tried, "stream")
    others = [asking(tried, waiting(letter)) for letter in "ab"]
    gevent.idle()
    assert list(stream) == list("stream")
    assert model.batches == [["stream"]], "nothing is predicted while the stream is made"
    tried.release()
    assert outcomes(others) == ["A", "B"]


def test_a_stream_that_nobody_waits_behind_leaves_the_batcher_idle():
    tried = batcher(Model(iter), max_size=1)
    for data in ("a", "b"):
        (stream,) = answers(tried, data)
        assert list(stream) == [data]
        tried.release()
