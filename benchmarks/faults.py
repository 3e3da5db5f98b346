"""What faults cost: workers killed under load, SIGTERM under load, and requests that no client would send on purpose.

    python -m benchmarks.faults [--seconds 60] [--clients 32] [--every 5] [--requests 50000] [--seed 1]

Prints its figures and ends with 1 if one of them is not what it must be. Uses the servers, clients and scripts of tests/live.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator

from tests.live import fuzz
from tests.live.launcher import Launcher
from tests.live.load import Load
from tests.live.server import Server
from tests.waiting import until

MB = 1024 * 1024
ENDING = 30.0
"""Seconds from SIGTERM to the platform's SIGKILL."""


def main() -> int:
    options = _options()
    with Launcher(image=None, label="") as start:
        wrong = [
            *kills(start("doubles"), options.seconds, options.clients, options.every),
            *sigterm(start("doubles"), options.clients),
            *mutations(start(model=fuzz.artifact), options.requests, options.seed),
        ]
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def kills(server: Server, seconds: float, clients: int, every: float) -> Iterator[str]:
    """Kills a worker every so many seconds while clients have numbers doubled. Yields what is wrong."""
    killed, end, pause = 0, time.monotonic() + seconds, threading.Event()
    with Load(server, clients) as load:
        while time.monotonic() + every < end:
            pause.wait(every)
            server.kill(server.pids("worker")[killed % 2])
            killed += 1
            until(lambda: len(server.pids("worker")) == 2, 20, "a new worker in the place of the killed one")
        pause.wait(end - time.monotonic())
    statuses = load.statuses()
    failed = sum(count for status, count in statuses.items() if status != 200)
    print(f"\n{clients} clients for {seconds:g} s, a worker killed every {every:g} s")
    print(f"  requests        {len(load.outcomes)}")
    print(f"  workers killed  {killed}")
    print(f"  wrong answers   {len(load.wrong())}")
    print(f"  failed          {failed}: {', '.join(f'{count} x {status}' for status, count in sorted(statuses.items()) if status != 200)}")
    yield from load.wrong()
    if statuses[0]:
        yield f"{statuses[0]} requests had no answer"
    if failed > killed * clients:
        yield f"{failed} requests failed: more than {killed} workers can have had"
    if server.ended() is not None:
        yield f"the server ended: {server.last_words()}"


def sigterm(server: Server, clients: int) -> Iterator[str]:
    """Ends the server while clients have numbers doubled. Yields what is wrong."""
    with Load(server, clients) as load:
        until(lambda: load.statuses()[200] > 1000, 60, "1000 answers")
        stopped = time.monotonic()
        server.signal(signal.SIGTERM)
        code = server.wait(ENDING + 10)
        seconds = time.monotonic() - stopped
    lost = load.lost(stopped)
    statuses = load.statuses()
    print(f"\n{clients} clients, then SIGTERM")
    print(f"  answers         {statuses[200]}, and {statuses[503]} x 503 after SIGTERM")
    print(f"  accepted, lost  {len(lost)}")
    print(f"  ended           with code {code} after {seconds:.1f} s")
    yield from load.wrong()
    if lost:
        yield f"{len(lost)} accepted requests were lost"
    if code or seconds > ENDING:
        yield f"the server ended with code {code} after {seconds:.1f} s"


def mutations(server: Server, requests: int, seed: int) -> Iterator[str]:
    """Sends mutated requests. Yields what is wrong with the answers, and with the server after them."""
    yield from fuzz.run(server, seed, requests // 10)
    workers, before, started = server.pids("worker"), fuzz.memory(server), time.monotonic()
    wrong = fuzz.run(server, seed + 1, requests - requests // 10)
    after = fuzz.memory(server)
    print(f"\n{requests} mutated requests, seed {seed}")
    print(f"  bad answers     {len(wrong)} (a 5xx, no answer, an error that is not JSON)")
    print(f"  memory          {before / MB:.0f} MB after the first tenth, {after / MB:.0f} MB after all (the whole tree)")
    print(f"  workers died    {'none' if server.pids('worker') == workers else 'some'}, in {time.monotonic() - started:.0f} s")
    yield from wrong
    if server.pids("worker") != workers:
        yield "workers died"
    if after > before * 1.1:
        yield "memory grew"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long workers are killed under load")
    parser.add_argument("--every", type=float, default=5, help="seconds between two kills")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=50_000, help="mutated ones")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
