"""What was promised (issue 2, section 6, and issue 3, section 4): floors that must be met, and aims. Knows figures only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """Berth's requests a second over a peer's, on one model with so many clients: at least `floor`, at best `aim`."""

    model: str
    peer: str
    clients: int
    floor: float | None = None
    aim: float | None = None

    def verdict(self, ratio: float) -> str:
        """'floor 4.2 met, aim 5 missed'."""
        marks = (("floor", self.floor), ("aim", self.aim))
        return ", ".join(f"{word} {value:g} {'met' if ratio >= value else 'missed'}" for word, value in marks if value is not None)


SPEED = (
    Goal("regression", "classic", 1, floor=2.8),
    Goal("regression", "classic", 8, floor=4.2),
    Goal("regression", "classic", 32, floor=6.0),
    Goal("regression", "fastapi", 1, aim=1.0),
    Goal("regression", "fastapi", 8, floor=1.25, aim=1.6),
    Goal("regression", "fastapi", 32, floor=1.4, aim=1.6),
    Goal("forest", "classic", 8, floor=4.0),
    Goal("forest", "classic", 32, floor=9.0),
    Goal("forest", "fastapi", 1, aim=1.0),
    Goal("forest", "fastapi", 8, aim=3.0),
    Goal("forest", "fastapi", 32, aim=7.0),
    Goal("entities", "classic", 8, floor=1.2),
    Goal("entities", "classic", 32, floor=1.2),
)

TAIL_CLIENTS = 8
TAIL = 2.5
"""With TAIL_CLIENTS clients, Berth's p99 is at most this many times its p50."""

TREE = 0.6
"""The memory of Berth's processes is at most this share of the classic stack's."""

GROWTH = 0.10
"""From 1 worker to 4, with a model of 300 MB, Berth's memory grows by at most this share."""


def speed_goal(model: str, peer: str, clients: int) -> Goal:
    """The goal of one ratio; one without floor and aim where nothing was promised."""
    for goal in SPEED:
        if (goal.model, goal.peer, goal.clients) == (model, peer, clients):
            return goal
    return Goal(model, peer, clients)


@dataclass(frozen=True)
class Bound:
    """A figure that is at least, or at most, so much."""

    least: float | None = None
    most: float | None = None

    def verdict(self, value: float) -> str:
        """'at least 200: met'."""
        marks = (("least", self.least, value >= (self.least or 0)), ("most", self.most, value <= (self.most or 0)))
        return ", ".join(f"at {word} {limit:g}: {'met' if held else 'missed'}" for word, limit, held in marks if limit is not None)


MANY = {
    ("tabular", "load"): Bound(least=200),
    ("tabular", "load, 8 at once"): Bound(least=200),
    ("tabular", "memory"): Bound(least=1000),
    ("tabular", "memory, cgroup"): Bound(least=1000),
    ("tabular", "unload"): Bound(least=5),
    ("tabular", "one model"): Bound(least=2),
    ("tabular", "50 models"): Bound(least=1.8),
    ("entities", "load"): Bound(least=5),
    ("entities", "memory"): Bound(least=6),
    ("entities", "memory, cgroup"): Bound(least=6),
}
"""(kind of models, figure) -> how many times better than a stock Multi Model Server."""

GROWN = {
    (1000, "seconds"): Bound(most=5),
    (1000, "memory, MB"): Bound(most=400),
    (10_000, "seconds"): Bound(most=40),
    (10_000, "memory, MB"): Bound(most=600),
    (10_000, "last thousand / first"): Bound(most=1.2),
    (10_000, "one model / with 50 loaded"): Bound(least=0.9),
    (10_000, "50 models / with 50 loaded"): Bound(least=0.9),
    (10_000, "slowest page, ms"): Bound(most=20),
    (10_000, "memory unloaded / at the start"): Bound(most=1.2),
}
"""(models loaded, figure) -> what our own engine must keep to."""

FLEET = {
    "workers": Bound(least=1.8),
    "orchestration": Bound(most=0.1),
    "memory": Bound(most=1.1),
    "prophet": Bound(least=1.8),
}
"""Issue 4: two processes beside one; the share of time outside of the user's fit; memory of 10,000 keys beside 1,000; two beside a loop."""
