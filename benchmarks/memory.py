"""Memory: the whole process tree of our server beside the classic stack's, and what more workers add to a large model.

Counted is Pss (/proc/PID/smaps_rollup): each page's share among all that map it, summed over the first process and its
descendants, after all workers have answered.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy

from benchmarks import goals, load, report
from benchmarks.models import MODELS, Artifact, Model, prepare
from benchmarks.processes import ServerError, family, proportional_bytes
from benchmarks.stacks import STACKS, StackError

REQUESTS = 200
AT_ONCE = 8
WORKERS = 2
LARGE_WORKERS = (1, 4)
LARGE_BYTES = 300 * 1000**2
WEIGHTS = 1000
"""Numbers in one row of the large model."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code: 0, 2 (something is missing, or an answer was wrong)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="also into README.md and results/memory.json")
    options = parser.parse_args(arguments)
    facts = report.machine()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            work_dir = Path(name)
            work_dir.chmod(0o755)  # nginx, started by root, works as another user
            trees, large = trees_of_stacks(work_dir / "trees"), tree_by_workers(work_dir / "large")
    except (load.LoadError, StackError, ServerError) as error:
        print(error, file=sys.stderr)
        return 2
    markdown = f"{as_markdown(trees, large)}\n\n{report.machine_line(facts)}"
    print(markdown)
    if options.write:
        report.write("memory", markdown, {"machine": facts, "regression_bytes": trees, "large_model_bytes_by_workers": large})
    return 0


def trees_of_stacks(work_dir: Path) -> dict[str, int]:
    """{stack: bytes} serving the logistic regression with 2 workers."""
    artifact = prepare(MODELS["regression"], work_dir / "base")
    return {stack: weigh(stack, artifact, WORKERS, work_dir / stack) for stack in ("berth", "classic")}


def tree_by_workers(work_dir: Path) -> dict[int, int]:
    """{workers: bytes} of our server with a model of 300 MB."""
    artifact = large_model(work_dir / "base")
    return {workers: weigh("berth", artifact, workers, work_dir / str(workers)) for workers in LARGE_WORKERS}


def weigh(stack: str, artifact: Artifact, workers: int, run_dir: Path) -> int:
    """The memory of a stack in bytes after REQUESTS right answers. Raises LoadError when one is wrong."""
    with STACKS[stack].serve(artifact, workers, run_dir) as server, ThreadPoolExecutor(AT_ONCE) as pool:
        requests = artifact.requests

        def ask(number: int) -> None:
            case = requests.cases[number % len(requests.cases)]
            status, text = load.ask(server.port, "POST", requests.path, case.body, requests.headers)
            if status != 200 or "".join(text.split()) != "".join(case.expected.split()):
                raise load.LoadError(f"{stack} answered {status} {text[:200]!r} instead of {case.expected!r}")

        list(pool.map(ask, range(REQUESTS)))
        found = proportional_bytes(server.pid)
        print(f"{stack:<8} {workers} workers, {len(family(server.pid))} processes: {found / 1e6:,.1f} MB", file=sys.stderr, flush=True)
        return found


def large_model(base_dir: Path) -> Artifact:
    """An estimator that holds 300 MB of numbers and touches every page of them in each prediction; see inference_large.py."""
    code = base_dir / "model" / "code"
    code.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("inference_large.py"), code / "inference.py")
    weights = numpy.random.default_rng(0).random((LARGE_BYTES // (8 * WEIGHTS), WEIGHTS))
    numpy.save(base_dir / "model" / "weights.npy", weights)
    rows = [[float(number), 1.0] for number in range(8)]
    touched = float(weights.ravel()[::512].sum())
    cases = [load.Case(",".join(map(str, row)).encode(), f"{int(sum(row) + touched)}") for row in rows]
    requests = load.Requests("/invocations", {"Content-Type": "text/csv", "Accept": "text/csv"}, cases)
    model = Model("large", "300 MB of numbers", "tabular", build=lambda _: None)
    return Artifact(model, base_dir, requests, lambda batch: [int(sum(row) + touched) for row in batch], rows)


def as_markdown(trees: dict[str, int], large: dict[int, int]) -> str:
    """Both tables, each figure beside its goal."""
    share = trees["berth"] / trees["classic"]
    fewest, most = min(large), max(large)
    growth = large[most] / large[fewest] - 1
    first = report.as_table(
        ["memory, logistic regression, 2 workers", "Berth", "classic sample", "Berth / classic sample"],
        [["MB", _mb(trees["berth"]), _mb(trees["classic"]), f"{share:.2f} (at most {goals.TREE:g}: {_met(share <= goals.TREE)})"]],
    )
    second = report.as_table(
        ["memory, a model of 300 MB", *(f"{count} worker{'s' * (count > 1)}" for count in large), "growth"],
        [["MB", *(_mb(size) for size in large.values()), f"{growth:.1%} (at most {goals.GROWTH:.0%}: {_met(growth <= goals.GROWTH)})"]],
    )
    return f"{first}\n\n{second}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _met(held: bool) -> str:
    return "met" if held else "missed"


if __name__ == "__main__":
    sys.exit(main())
