"""What benchmarks/many.py has measured: as figures, as tables beside what was promised, and as a plot. Measures nothing."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import goals, report
from benchmarks.endpoints import Weight

MB = 1e6


@dataclass
class Engine:
    """A few models on one engine: seconds of each load and unload, {models: memory}, {"one model", "50 models": requests a second}."""

    loads: list[float] = field(default_factory=list)
    loads_at_once: list[float] = field(default_factory=list)
    unloads: list[float] = field(default_factory=list)
    weights: dict[int, Weight] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Our engine with so many models. seconds: of all loads so far; load_ms: p50 of the last thousand loads; page_ms: of the slowest page.

    rates, few: requests a second on this server, and on one beside it that has 50 models.
    """

    models: int
    seconds: float
    load_ms: float
    weight: Weight
    page_ms: float
    rates: Mapping[str, float]
    few: Mapping[str, float]


@dataclass
class Grown:
    """Our engine, filled step by step and emptied. start: before the first load. refused: what the first load without room was told."""

    start: Weight
    steps: list[Step] = field(default_factory=list)
    first_thousand_ms: float = 0.0
    refused: str = ""
    unload_ms: float = 0.0
    unloaded: Weight | None = None


def as_markdown(tabular: Mapping[str, Engine], entities: Mapping[str, Engine], grown: Grown) -> str:
    """All tables."""
    return "\n\n".join((versus_table("tabular", tabular, grown), versus_table("entities", entities), grown_table(grown), end_table(grown)))


def versus_table(kind: str, engines: Mapping[str, Engine], grown: Grown | None = None) -> str:
    """Our engine beside the other one. grown: where a model of ours is too small to be weighed among fifty."""
    ours, theirs = engines["berth"], engines["mms"]
    weights = ours.weights if grown is None else {step.models: step.weight for step in grown.steps}
    rows: list[tuple[str, str, float | None, float | None, Callable[[float], str]]] = [
        ("load", "load p50, ms", _ms(ours.loads), _ms(theirs.loads), _fine),
        ("load, 8 at once", "load p50, 8 at once, ms", _ms(ours.loads_at_once), _ms(theirs.loads_at_once), _fine),
        ("unload", "unload p50, ms", _ms(ours.unloads), _ms(theirs.unloads), _fine),
        ("memory", "memory for each further model (Pss), MB", each(weights, "pss"), each(theirs.weights, "pss"), _fine),
        ("memory, cgroup", "the same as the cgroup counts, MB", each(weights, "group"), each(theirs.weights, "group"), _fine),
        ("one model", "requests a second, one model, 8 clients", ours.rates.get("one model"), theirs.rates.get("one model"), _whole),
        ("50 models", "requests a second, 50 models, 8 clients", ours.rates.get("50 models"), theirs.rates.get("50 models"), _whole),
    ]
    lines = []
    for figure, title, mine, other, shown in rows:
        if mine is None or other is None:
            continue
        ratio = mine / other if figure in ours.rates else other / mine
        verdict = goals.MANY.get((kind, figure), goals.Bound()).verdict(ratio)
        lines.append([title, shown(mine), shown(other), f"{ratio:,.1f} x" + f" ({verdict})" * bool(verdict)])
    title = {"tabular": "a small scikit-learn model", "entities": "a spaCy NER pipeline"}[kind]
    return report.as_table([title, "Berth", "Multi Model Server", "better by"], lines)


def each(weights: Mapping[int, Weight], figure: str) -> float | None:
    """Megabytes that each further model takes, from the fewest that were weighed to the first thousand; None if it was not counted."""
    fewest, most = min(weights), min((count for count in weights if count >= 1000), default=max(weights))
    before, after = getattr(weights[fewest], figure), getattr(weights[most], figure)
    return None if before is None or after is None else float(after - before) / (most - fewest) / MB


def grown_table(grown: Grown) -> str:
    """One line for each step."""
    head = ["models loaded", "seconds", "load p50 of the last 1,000, ms", "memory (Pss), MB", "memory (cgroup), MB", "slowest page, ms"]
    head += ["requests a second, one model", "50 models"]
    lines = []
    for step in grown.steps:
        seconds = _judged(step.models, "seconds", step.seconds, "{:.1f}")
        memory = _judged(step.models, "memory, MB", step.weight.pss / MB, "{:,.0f}")
        group = "-" if step.weight.group is None else f"{step.weight.group / MB:,.0f}"
        page = _judged(step.models, "slowest page, ms", step.page_ms, "{:.1f}")
        rates = [f"{step.rates[figure]:,.0f}" + _beside(step, figure) for figure in ("one model", "50 models")]
        lines.append([f"{step.models:,}", seconds, f"{step.load_ms:.2f}", memory, group, page, *rates])
    return report.as_table(head, lines)


def end_table(grown: Grown) -> str:
    """What is left when all are unloaded."""
    most, left = grown.steps[-1], grown.unloaded
    assert left is not None
    lines = [
        [
            "load p50, last thousand / first",
            _judged(most.models, "last thousand / first", most.load_ms / grown.first_thousand_ms, "{:.2f}"),
        ],
        ["unload p50, ms", f"{grown.unload_ms:.2f}"],
        ["memory before the first load, MB", f"{grown.start.pss / MB:,.0f}"],
        ["memory after the last unload, MB", f"{left.pss / MB:,.0f}"],
        ["the same as a ratio", _judged(most.models, "memory unloaded / at the start", left.pss / grown.start.pss, "{:.2f}")],
    ]
    return report.as_table([f"{most.models:,} models", ""], lines)


def container_markdown(grown: Grown, memory: str) -> str:
    """A container that was filled, and what it said when it was full."""
    most = grown.steps[-1].models
    end = f"At {most:,} the next load was refused: {grown.refused}" if grown.refused else f"All {most:,} were loaded: it was not full."
    return f"One container with `-m {memory}`.\n\n{grown_table(grown)}\n\n{end}\n\n{end_table(grown)}"


def plot(results: Path, path: Path) -> None:
    """Load time, memory and throughput against the number of models, as an SVG, from many.json and, if it is there, many_container.json."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "berth"  # the same figures make the same file
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    beside = json.loads((results / "many.json").read_text())
    lines = [
        ("Berth", "o-", "#0b6e4f", beside["grown"]["steps"]),
        ("Multi Model Server", "s-", "#b23a48", _peer_steps(beside["tabular"]["mms"])),
    ]
    if (results / "many_container.json").exists():
        filled = json.loads((results / "many_container.json").read_text())["grown"]["steps"]
        lines.append(("Berth, a container of 4 GB", "o:", "#0b6e4f", filled))
    panels: list[tuple[str, Callable[[dict[str, Any]], float | None]]] = [
        ("load p50, ms", lambda step: step["load_ms"]),
        ("memory, MB", lambda step: step["weight"]["pss"] / MB),
        ("requests a second, 50 models", lambda step: step["rates"].get("50 models")),
    ]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, (title, value) in zip(axes, panels, strict=True):
        for label, style, colour, steps in lines:
            points = [(step["models"], value(step)) for step in steps if value(step) is not None]
            axis.plot(*zip(*points, strict=True), style, color=colour, label=label)
        axis.set(title=title, xlabel="models loaded", xscale="log", yscale="log")
        axis.set_ylim(axis.get_ylim()[0] / 2, axis.get_ylim()[1] * 2)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
            each.set_minor_formatter("")
        axis.grid(visible=True, which="major", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _peer_steps(engine: dict[str, Any]) -> list[dict[str, Any]]:
    """The other server's figures in the form of ours: requests a second were counted with all its models only."""
    load_ms, most = _ms(engine["loads"]), max(int(count) for count in engine["weights"])
    return [
        {"models": int(count), "load_ms": load_ms, "weight": weight, "rates": engine["rates"] if int(count) == most else {}}
        for count, weight in engine["weights"].items()
    ]


def _ms(seconds: Sequence[float]) -> float | None:
    """The median in milliseconds; None of nothing."""
    return statistics.median(seconds) * 1e3 if seconds else None


def _judged(models: int, figure: str, value: float, shown: str) -> str:
    verdict = goals.GROWN.get((models, figure), goals.Bound()).verdict(value)
    return shown.format(value) + f" ({verdict})" * bool(verdict)


def _beside(step: Step, figure: str) -> str:
    if figure not in step.few:
        return ""
    ratio = step.rates[figure] / step.few[figure]
    verdict = goals.GROWN.get((step.models, f"{figure} / with 50 loaded"), goals.Bound()).verdict(ratio)
    return f" = {ratio:.2f} of one with 50" + f" ({verdict})" * bool(verdict)


def _fine(value: float) -> str:
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"
