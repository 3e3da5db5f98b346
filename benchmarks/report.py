"""Figures as Markdown tables and JSON files. Measures nothing."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import goals
from benchmarks.load import Measured

HERE = Path(__file__).parent
PACKAGES = ("gunicorn", "flask", "fastapi", "uvicorn", "multi-model-server", "scikit-learn", "spacy", "pandas", "numpy")


@dataclass(frozen=True)
class Cell:
    """The rounds of one model on one stack with so many clients. Each figure is the median of the rounds."""

    model: str
    stack: str
    clients: int
    rounds: Sequence[Measured]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return statistics.median(measured.requests_per_second for measured in self.rounds)

    @property
    def p50_ms(self) -> float:
        return statistics.median(measured.p50_ms for measured in self.rounds)

    @property
    def p99_ms(self) -> float:
        return statistics.median(measured.p99_ms for measured in self.rounds)

    @property
    def cpu_ms(self) -> float:
        """Processor time of the server for each answer."""
        return statistics.median(measured.cpu_ms for measured in self.rounds)


@dataclass(frozen=True)
class Speed:
    """All that one run measured: the cells, and the direct model calls as {model: {batch size: seconds}}."""

    titles: Mapping[str, str]
    """Model or stack -> what it is called in a table."""
    models: Sequence[str]
    stacks: Sequence[str]
    clients: Sequence[int]
    cells: Sequence[Cell]
    calls: Mapping[str, Mapping[int, float]]

    def cell(self, model: str, stack: str, clients: int) -> Cell:
        return next(cell for cell in self.cells if (cell.model, cell.stack, cell.clients) == (model, stack, clients))


def speed_markdown(speed: Speed) -> str:
    """The tables of a run of one_model.py."""
    return "\n\n".join((_rates(speed), _latencies(speed), _processor(speed), _calls(speed)))


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, versions, date, and how busy the machine was before."""
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": names[0] if names else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)},
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """The machine in one sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{facts['date']}, {facts['processor']}, {facts['cpus']} CPUs (load average before: {facts['load_average']:g}), "
        f"Python {facts['python']}; {versions}."
    )


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column left, the others right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, markdown: str, results: Mapping[str, Any], directory: Path = HERE) -> None:
    """Puts the tables between the markers of `name` in README.md, and the results into results/`name`.json.

    Raises ValueError when the README has no such markers.
    """
    readme = directory / "README.md"
    readme.write_text(between(readme.read_text(), name, markdown))
    (directory / "results").mkdir(exist_ok=True)
    (directory / "results" / f"{name}.json").write_text(json.dumps(results, indent=1, default=dataclasses.asdict) + "\n")


def between(text: str, name: str, markdown: str) -> str:
    """`text` with all that stands between the markers of `name` replaced. Raises ValueError when they are not there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the README has no {begin} followed by {end}: the table of {name} goes between these")
    return f"{before}{begin}\n\n{markdown}\n\n{end}{after}"


def _rates(speed: Speed) -> str:
    peers = [stack for stack in speed.stacks if stack != "berth"] if "berth" in speed.stacks else []
    head = ["requests a second", "clients", *(speed.titles[stack] for stack in speed.stacks)]
    head += [f"Berth / {speed.titles[peer]}" for peer in peers]
    rows = []
    for model in speed.models:
        for clients in speed.clients:
            rates = {stack: speed.cell(model, stack, clients).rate for stack in speed.stacks}
            ratios = [_ratio(goals.speed_goal(model, peer, clients), rates["berth"], rates[peer]) for peer in peers]
            rows.append([speed.titles[model], str(clients), *(f"{rate:,.0f}" for rate in rates.values()), *ratios])
    return as_table(head, rows)


def _ratio(goal: goals.Goal, ours: float, theirs: float) -> str:
    if not theirs:
        return "-"
    verdict = goal.verdict(ours / theirs)
    return f"{ours / theirs:.2f}" + f" ({verdict})" * bool(verdict)


def _latencies(speed: Speed) -> str:
    tail = "berth" in speed.stacks
    head = ["p50 / p99 in ms", "clients", *(speed.titles[stack] for stack in speed.stacks), *["Berth's p99 / p50"] * tail]
    rows = []
    for model in speed.models:
        for clients in speed.clients:
            cells = [speed.cell(model, stack, clients) for stack in speed.stacks]
            row = [speed.titles[model], str(clients), *(f"{cell.p50_ms:.2f} / {cell.p99_ms:.2f}" for cell in cells)]
            rows.append([*row, *[_tail(speed.cell(model, "berth", clients)) if tail else ""] * tail])
    return as_table(head, rows)


def _tail(cell: Cell) -> str:
    ratio = cell.p99_ms / cell.p50_ms if cell.p50_ms else float("inf")
    verdict = f" (at most {goals.TAIL:g}: {'met' if ratio <= goals.TAIL else 'missed'})"
    return f"{ratio:.2f}" + verdict * (cell.clients == goals.TAIL_CLIENTS)


def _processor(speed: Speed) -> str:
    head = ["processor time for each request, ms", "clients", *(speed.titles[stack] for stack in speed.stacks)]
    rows = [
        [speed.titles[model], str(clients), *(f"{speed.cell(model, stack, clients).cpu_ms:.3f}" for stack in speed.stacks)]
        for model in speed.models
        for clients in speed.clients
    ]
    return as_table(head, rows)


def _calls(speed: Speed) -> str:
    sizes = sorted({size for times in speed.calls.values() for size in times})
    alone = 1 in speed.clients
    head = ["the model called directly, ms", *(f"batch of {size}" if size > 1 else "one row" for size in sizes)]
    head += [f"{speed.titles[stack]}: p50 of one client above it" for stack in speed.stacks if alone]
    rows = []
    for model in speed.models:
        times = speed.calls[model]
        above = [speed.cell(model, stack, 1).p50_ms - times[1] * 1e3 for stack in speed.stacks if alone]
        rows.append([speed.titles[model], *(f"{times[size] * 1e3:.3f}" for size in sizes), *(f"{ms:.2f}" for ms in above)])
    return as_table(head, rows)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
