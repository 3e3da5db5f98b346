"""Thousands of models: our engine beside a stock Multi Model Server in the same run, and then as many as one asks for.

    python -m benchmarks.many [--models 1000 10000] [--rounds 3] [--write]
    python -m benchmarks.many --container IMAGE --memory 4g --models 1000 10000 100000

Every answer is checked; each model has its own. Loads are made one after the other on a kept connection, as the platform makes them,
except where "8 at once" is said.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from benchmarks import load, many_report, report
from benchmarks.endpoints import ENGINES, HANDLERS, Endpoint, container
from benchmarks.many_report import Engine, Grown, Step
from benchmarks.models import MODELS, prepare
from benchmarks.processes import ServerError
from benchmarks.stacks import ROOT, StackError

FEW = 50
"""Models that are loaded on both engines. Multi Model Server has two Python processes for each of its workers."""
CLIENTS = 8
SECONDS = 3
QUIET_SECONDS = 8.0
"""After the last unload: what the last few leave is looked for a second later, and a shard without models and connections starts anew."""
CSV = {"Content-Type": "text/csv", "Accept": "text/csv"}


@dataclass(frozen=True)
class Models:
    """Artifacts by name, and a request to each with the answer that only it gives. kind: as the peers' handlers are called."""

    kind: str
    directories: Mapping[str, Path]
    requests: load.Requests

    def __len__(self) -> int:
        return len(self.directories)

    def part(self, start: int, end: int | None = None) -> "Models":
        names = list(self.directories)[start:end]
        cases = self.requests.cases[start:end]
        return Models(self.kind, {name: self.directories[name] for name in names}, load.Requests("", self.requests.headers, cases))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code: 0, 2 (something is missing, or an answer was wrong)."""
    options = _options().parse_args(arguments)
    facts = report.machine()
    HANDLERS["tabular"] = options.handler
    try:
        load.find_wrk()
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            work_dir = Path(name)
            work_dir.chmod(0o755)  # nginx, started by root, works as another user
            if options.container:
                models = small_models(work_dir / "models", max(options.models))
                grown = fill_container(options.container, options.memory, models, options.models, work_dir)
                _tell("many_container", many_report.container_markdown(grown, options.memory), {"grown": grown}, facts, options.write)
                return 0
            tabular = versus(small_models(work_dir / "few", FEW), 10, CLIENTS, options.rounds, work_dir)
            entities = versus(text_models(work_dir / "texts", 10), 2, 1, 1, work_dir)
            grown = grow(small_models(work_dir / "models", max(options.models)), options.models, options.rounds, work_dir)
    except (load.LoadError, StackError, ServerError) as error:
        print(error, file=sys.stderr)
        return 2
    found = {"tabular": tabular, "entities": entities, "grown": grown}
    _tell("many", many_report.as_markdown(tabular, entities, grown), found, facts, options.write)
    return 0


def versus(models: Models, first: int, at_once: int, rounds: int, work_dir: Path) -> dict[str, Engine]:
    """{engine: figures} with models of a kind, both servers up. `first` of them are loaded one at a time, the others `at_once`.

    Memory for each model is what the others add. Requests are counted in interleaved rounds, with all loaded.
    """
    few, others = models.part(0, first), models.part(first)
    found = {name: Engine() for name in ENGINES}
    with contextlib.ExitStack() as running:
        servers = {
            name: running.enter_context(engine.serve(models.kind, work_dir / f"{name}-{models.kind}")) for name, engine in ENGINES.items()
        }
        for round_ in range(rounds):
            for name, server in servers.items():
                figures = found[name]
                figures.loads += server.load(few.directories)
                server.ask(few.requests)
                before = server.weight()
                loads = server.load(others.directories, at_once)
                (figures.loads if at_once == 1 else figures.loads_at_once).extend(loads)
                server.ask(models.requests)
                figures.weights = {len(few): before, len(models): server.weight()}
                _say(f"{name:<6} {len(models)} {models.kind}: load p50 {statistics.median(figures.loads) * 1e3:.1f} ms, {figures.weights}")
                if round_ + 1 < rounds:
                    figures.unloads += server.unload(list(models.directories))
        if len(models) == FEW:
            for name, rates in rates_of({name: (server, models) for name, server in servers.items()}, rounds, work_dir).items():
                found[name].rates = rates
        for name, server in servers.items():
            found[name].unloads += server.unload(list(models.directories))
    return found


def grow(models: Models, steps: Sequence[int], rounds: int, work_dir: Path) -> Grown:
    """Our engine, filled. Beside it another server with only FEW models, so that what many cost can be told from what the machine does."""
    berth = ENGINES["berth"]
    with berth.serve(models.kind, work_dir / "berth-few") as few, berth.serve(models.kind, work_dir / "berth-full") as full:
        few.load(models.part(0, FEW).directories)
        few.ask(models.part(0, FEW).requests)
        return fill(full, few, models, sorted({FEW, *steps}), rounds, work_dir)


def fill_container(image: str, memory: str, models: Models, steps: Sequence[int], work_dir: Path) -> Grown:
    """Our image, filled as far as it goes; without the server beside it."""
    with container(image, work_dir, memory) as full:
        return fill(full, None, models, sorted({FEW, *steps}), 1, work_dir)


def fill(full: Endpoint, few: Endpoint | None, models: Models, steps: Sequence[int], rounds: int, work_dir: Path) -> Grown:
    """Loads up to each step in turn, asking each model once; then unloads all of them."""
    grown = Grown(full.weight())
    loads: list[float] = []
    for count in steps:
        part = models.part(len(loads), count)
        done = full.load(part.directories)
        loads += done
        grown.refused = full.refusal
        full.ask(part.part(0, len(done)).requests)
        names, pages = full.pages()
        if sorted(names) != sorted(list(models.directories)[: len(loads)]):
            raise load.LoadError(f"{len(names)} models are listed, and {len(loads)} are loaded")
        servers = {"full": (full, models.part(0, len(loads)))} | ({"few": (few, models.part(0, FEW))} if few else {})
        rates = rates_of(servers, rounds, work_dir)
        grown.steps.append(
            Step(len(loads), sum(loads), _median(loads[-1000:]), full.weight(), max(pages) * 1e3, rates["full"], rates.get("few", {}))
        )
        _say(str(grown.steps[-1]))
        if len(done) < len(part):
            break
    grown.first_thousand_ms = _median(loads[:1000])
    grown.unload_ms = _median(full.unload(list(models.directories)[: len(loads)]))
    time.sleep(QUIET_SECONDS)
    grown.unloaded = full.weight()
    return grown


def rates_of(servers: Mapping[str, tuple[Endpoint, Models]], rounds: int, work_dir: Path) -> dict[str, dict[str, float]]:
    """{server: {"one model", "50 models": requests a second}}, rounds interleaved. Raises LoadError if an answer is wrong.

    The 50 are spread over all that are loaded.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"one model": [], "50 models": []} for name in servers}
    for _ in range(rounds):
        for figure in ("one model", "50 models"):
            for name, (server, models) in servers.items():
                cases = models.requests.cases
                chosen = [cases[len(cases) // 2]] if figure == "one model" else cases[:: max(1, len(cases) // FEW)][:FEW]
                requests = load.Requests("", models.requests.headers, chosen)
                load.measure(server.port, requests, CLIENTS, 1, work_dir)
                measured = load.measure(server.port, requests, CLIENTS, SECONDS, work_dir)
                if not measured.good:
                    raise load.LoadError(f"{name}, {figure}: {measured.wrong} wrong answers, {measured.failed} failures. {measured.sample}")
                found[name][figure].append(measured.requests_per_second)
    return {name: {figure: statistics.median(rounds_) for figure, rounds_ in figures.items()} for name, figures in found.items()}


def small_models(directory: Path, count: int) -> Models:
    """Linear regressions of about 1 KB; the answer of each to the same row is its number."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 0.0])
    directories, cases = {}, []
    for number in range(count):
        name, model.intercept_ = f"m{number:06d}", float(number)
        path = directory / name / "model"
        path.mkdir(parents=True)
        joblib.dump(model, path / "model.joblib")
        directories[name] = path
        cases.append(load.Case(b"0", f"{float(number)}", f"/models/{name}/invoke"))
    return Models("tabular", directories, load.Requests("", CSV, cases))


def text_models(directory: Path, count: int) -> Models:
    """Copies of the NER pipeline with the script that a user would write; each is asked another text."""
    artifact = prepare(MODELS["entities"], directory)
    directories = {}
    for number in range(count):
        path = directory / f"ner{number}" / "model"
        shutil.copytree(directory / "model", path)
        (path / "code").mkdir()
        shutil.copy(ROOT / "benchmarks" / "inference_entities.py", path / "code" / "inference.py")
        directories[f"ner{number}"] = path
    known = artifact.requests.cases
    cases = [
        load.Case(known[number % len(known)].body, known[number % len(known)].expected, f"/models/{name}/invoke")
        for number, name in enumerate(directories)
    ]
    return Models("entities", directories, load.Requests("", artifact.requests.headers, cases))


def _tell(name: str, markdown: str, found: Mapping[str, Any], facts: Mapping[str, Any], write: bool) -> None:
    """Prints the tables; with `write` also puts them into README.md and the figures into results/, and draws the plot of what is there."""
    markdown = f"{markdown}\n\n{report.machine_line(facts)}"
    print(markdown)
    if write:
        report.write(name, markdown, {"machine": facts, **found})
        many_report.plot(report.HERE / "results", ROOT / "docs" / "figures" / "many-models.svg")


def _median(seconds: Sequence[float]) -> float:
    """In milliseconds."""
    return statistics.median(seconds) * 1e3


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", type=int, default=[1000, 10_000], help="how many, in steps (default: 1000 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of these counts (default: 3)")
    what = "Multi Model Server's: the toolkit's default, or the least that is possible"
    parser.add_argument("--handler", choices=("toolkit", "tabular"), default="toolkit", help=what)
    parser.add_argument("--container", metavar="IMAGE", help="fill a container of this image instead")
    parser.add_argument("--memory", default="4g", help="of the container (default: 4g)")
    parser.add_argument("--write", action="store_true", help="also into README.md, results/many.json and docs/figures/many-models.svg")
    return parser


if __name__ == "__main__":
    sys.exit(main())
