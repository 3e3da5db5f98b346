"""What faults cost where many models do not all fit: a small memory, then a small memory and shards that are killed.

    python -m benchmarks.many_faults [--image berth] [--memory 1g] [--models 200] [--requests 5000] [--clients 4] [--every 5] [--seed 1]

Prints its figures and ends with 1 if one of them is not what it must be. Needs a Docker engine and the image. The platform's side is
local_test/endpoint.py: a model is loaded when it is asked for, and on 507 the one that was not used for the longest time has to go.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy

from local_test.endpoint import Endpoint
from tests.live import zipf
from tests.live.launcher import Launcher
from tests.live.many import OOM_KILLS
from tests.live.zipf import Fleet, Outcome

LABEL = "berth.benchmark=many_faults"


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as directory, Launcher(options.image, LABEL) as launch:
        fleet = Fleet.write(Path(directory), options.models, options.seed)
        wrong = [line for kills in (False, True) for line in run(launch, fleet, options, kills)]
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def run(launch: Launcher, fleet: Fleet, options: argparse.Namespace, kills: bool) -> Iterator[str]:
    """Clients ask for models that do not all fit, while shards are killed or not. Yields what is wrong."""
    targets = fleet.requests(options.requests, options.seed)
    with zipf.container(launch, options.memory, fleet) as (server, endpoint):
        began = time.monotonic()
        with zipf.killing(server, options.every) if kills else nullcontext(list[int]()) as killed:
            outcomes = fleet.drive(endpoint, targets, options.clients)
        seconds = time.monotonic() - began
        print(
            f"\n{options.clients} clients, {options.memory} of memory",
            f"a shard killed every {options.every:g} s" * kills,
            sep=", " * kills,
        )
        _report(outcomes, seconds, endpoint)
        print(f"  killed              {len(killed)} shards by us, {server.inside(OOM_KILLS).strip()} trial loads by the kernel", flush=True)
        yield from zipf.wrong(outcomes)
        failed = sum(outcome.status != 200 for outcome in outcomes)
        if failed > zipf.most_failures(len(killed), options.clients):
            yield f"{failed} requests failed: more than {len(killed)} shards can have had"
        if zipf.gone(server) != len(killed):
            yield f"{zipf.gone(server)} shards died: {len(killed)} were killed"
        yield from zipf.wrong_afterwards(fleet, endpoint)


def _report(outcomes: Sequence[Outcome], seconds: float, endpoint: Endpoint) -> None:
    statuses, calls = zipf.statuses(outcomes), endpoint.calls
    p50, p99, most = numpy.quantile([outcome.seconds for outcome in outcomes], [0.5, 0.99, 1]) * 1000
    refused, fit = calls["load", 507] + calls["invoke", 507], len(endpoint.loaded())
    failed = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()) if status != 200) or "none"
    print(f"  requests            {len(outcomes)} of {len({outcome.target for outcome in outcomes})} models in {seconds:.0f} s")
    print(f"  wrong answers       {len(zipf.wrong(outcomes))}")
    print(f"  failed              {failed}")
    print(f"  seconds to answer   p50 {p50:.1f} ms, p99 {p99:.0f} ms, at most {most:.0f} ms; with loads, where there were any")
    print(f"  loads               {calls['load', 200]}, and {refused} x 507; {calls['unload', 200]} unloads; {fit} fit")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image", default="berth")
    parser.add_argument("--memory", default="1g", help="of the container; without swap")
    parser.add_argument("--models", type=int, default=200, help="of 8 to 12 MB each")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--every", type=float, default=5, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1, help="of the models' sizes, and of the draws")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
