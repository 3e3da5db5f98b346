"""One model, our server beside the peers: requests a second and latencies, every answer checked.

The stacks are all up, idle, while one of them is under load; rounds are interleaved (A B C D, A B C D, ...), so that whatever
the machine does meanwhile hits all of them. Wrong answers, failed connections or no answers at all make the run fail.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import load, report
from benchmarks.models import MODELS, Artifact, prepare
from benchmarks.processes import ServerError, cpu_seconds
from benchmarks.stacks import STACKS, Server, StackError

WORKERS = 2
WARM_UP_SECONDS = 1
BATCHES = (1, 8, 32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code: 0, 1 (a stack gave wrong answers), 2 (something is missing)."""
    options = _options().parse_args(arguments)
    facts = report.machine()
    try:
        load.find_wrk()
        speed = measure(options.models, options.stacks, options.clients, options.rounds, options.seconds)
    except (load.LoadError, StackError, ServerError) as error:
        print(error, file=sys.stderr)
        return 2
    how = f"{WORKERS} worker processes for each server; median of {options.rounds} rounds of {options.seconds} s."
    markdown = f"{report.speed_markdown(speed)}\n\n{report.machine_line(facts)} {how}"
    print(markdown)
    bad = complaints(speed.cells)
    for line in bad:
        print(line, file=sys.stderr)
    if options.write and not bad:
        report.write("one_model", markdown, {"machine": facts, "how": how, "calls": speed.calls, "cells": speed.cells})
    return 1 if bad else 0


def measure(models: Sequence[str], stacks: Sequence[str], clients: Sequence[int], rounds: int, seconds: int) -> report.Speed:
    """Measures every combination. Raises LoadError, StackError or ServerError when it cannot."""
    cells: list[report.Cell] = []
    calls = {}
    for model in models:
        with tempfile.TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as running:
            work_dir = Path(name)
            work_dir.chmod(0o755)  # nginx, started by root, works as another user
            artifact = prepare(MODELS[model], work_dir / "base")
            calls[model] = {size: artifact.call_seconds(size) for size in BATCHES}
            servers = {stack: running.enter_context(STACKS[stack].serve(artifact, WORKERS, work_dir / stack)) for stack in stacks}
            cells += _rounds(artifact, servers, clients, rounds, seconds, work_dir)
    titles = {key: item.title for table in (MODELS, STACKS) for key, item in table.items()}
    return report.Speed(titles, models, stacks, clients, cells, calls)


def complaints(cells: Sequence[report.Cell]) -> list[str]:
    """One line for each cell whose answers were not all right."""
    lines = []
    for cell in cells:
        for round_, measured in enumerate(cell.rounds, 1):
            if not measured.good:
                lines.append(
                    f"{cell.model} on {cell.stack} with {cell.clients} clients, round {round_}: {measured.answers} answers, "
                    f"{measured.wrong} of them wrong, {measured.failed} connections failed. {measured.sample}".rstrip()
                )
    return lines


def _rounds(
    artifact: Artifact, servers: dict[str, Server], clients: Sequence[int], rounds: int, seconds: int, work_dir: Path
) -> list[report.Cell]:
    measured: dict[tuple[str, int], list[load.Measured]] = {(stack, count): [] for stack in servers for count in clients}
    for server in servers.values():
        load.measure(server.port, artifact.requests, max(clients), 2 * WARM_UP_SECONDS, work_dir)  # all workers have answered
    for round_ in range(1, rounds + 1):
        for stack, server in servers.items():
            for count in clients:
                load.measure(server.port, artifact.requests, count, WARM_UP_SECONDS, work_dir)
                before = cpu_seconds(server.pid)
                found = load.measure(server.port, artifact.requests, count, seconds, work_dir)
                used = cpu_seconds(server.pid) - before
                measured[stack, count].append(dataclasses.replace(found, cpu_ms=used * 1e3 / max(found.answers, 1)))
                print(
                    f"round {round_}  {artifact.model.name:<11}{stack:<8} {count:>2} clients {found.requests_per_second:>8,.0f} a second",
                    f" p50 {found.p50_ms:.2f} ms  p99 {found.p99_ms:.2f} ms",
                    file=sys.stderr,
                    flush=True,
                )
    return [report.Cell(artifact.model.name, stack, count, found) for (stack, count), found in measured.items()]


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=_at_least_one, default=4, help="of load in each cell, after 1 s of warm-up (default: 4)")
    parser.add_argument("--rounds", type=_at_least_one, default=3, help="the median of these counts (default: 3)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    parser.add_argument("--clients", nargs="+", type=_at_least_one, default=[1, 8, 32])
    parser.add_argument("--write", action="store_true", help="also into README.md and results/one_model.json")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
