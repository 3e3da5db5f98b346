"""Many small models in one job: two processes beside one, what is not the user's fit, memory of ten times the keys, Prophet beside a loop.

    python -m benchmarks.fleet [--rounds 3] [--write]

Each figure is from the real `train` in a process of its own. Seconds are those of fleet.train, the start of its processes included, in
which each imports what the script imports (here pandas and scikit-learn). The share of orchestration is what of its processes' time was
not spent in the user's fit: 1 - seconds in fit / (seconds x processes).
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import goals, report
from benchmarks.processes import proportional_bytes
from benchmarks.stacks import ROOT
from container import manifest
from container.settings import environment

SCRIPT = Path(__file__).with_name("fleet_training.py")
DAYS = 365
KEYS = 500
SERIES = 500
"""Of Prophet's: at some 0.05 s each, Stan, which each process loads in 0.4 s, is little beside them."""
MANY = (1000, 10_000)
COUNTED = 60_000_000
"""Numbers that a bare loop goes through, in some three seconds."""
SAMPLE_SECONDS = 0.25
"""Between two looks at the memory: each takes some milliseconds of a processor that the fits want."""


class FleetError(Exception):
    """A job that failed, or made another number of models than it was given keys."""


@dataclass(frozen=True)
class Run:
    """One job. seconds: of fleet.train; in_fit: of these, summed over the processes, in it. peak: bytes of the whole tree (Pss)."""

    fit: str
    keys: int
    workers: int
    seconds: float
    in_fit: float
    peak: int

    @property
    def orchestration(self) -> float:
        return 1 - self.in_fit / (self.seconds * self.workers)


@dataclass(frozen=True)
class Beside:
    """The same fits in one round: seconds of a plain loop, seconds of two such loops at once with half of them each, and the job."""

    loop: float
    two_loops: float
    run: Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code: 0, 2 (a job failed)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often one process and two are timed, in turn")
    parser.add_argument("--write", action="store_true", help="also into README.md and results/fleet.json")
    options = parser.parse_args(arguments)
    facts = report.machine()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            data = make(Path(name) / "data", max(MANY))
            speed, bare = list[Run](), list[float]()
            for _ in range(options.rounds):
                speed += [train(data, "lasso", KEYS, workers) for workers in (1, 2)]
                bare.append(bare_ratio())
            start = statistics.median(train(data, "mean", 2, 2).seconds for _ in range(options.rounds))
            grown = [train(data, "mean", keys, 2) for keys in MANY]
            prophet = [
                Beside(loop(data, "prophet", SERIES), loop(data, "prophet", SERIES, 2), train(data, "prophet", SERIES, 2))
                for _ in range(options.rounds)
            ]
    except FleetError as error:
        print(error, file=sys.stderr)
        return 2
    markdown = f"{as_markdown(speed, statistics.median(bare), start, grown, prophet)}\n\n{report.machine_line(facts)}"
    print(markdown)
    if options.write:
        runs = [dataclasses.asdict(run) for run in (*speed, *grown)]
        beside = [dataclasses.asdict(round_) for round_ in prophet]
        report.write("fleet", markdown, {"machine": facts, "runs": runs, "start_seconds": start, "bare_ratios": bare, "prophet": beside})
    return 0


def make(directory: Path, keys: int) -> Path:
    """A year of days for each key, in a file of its own: season, week and noise."""
    directory.mkdir()
    numbers = np.random.default_rng(0)
    days = pd.date_range("2025-01-01", periods=DAYS)
    season = np.sin(np.arange(DAYS) * 2 * np.pi / 365.25) * 200 + np.sin(np.arange(DAYS) * 2 * np.pi / 7) * 50
    for key in range(keys):
        values = 500 + season + numbers.normal(0, 30, DAYS)
        pd.DataFrame({"day": days, "y": values.round(2)}).to_csv(directory / f"c{key:05}.csv", index=False)
    return directory


def train(data: Path, fit: str, keys: int, workers: int) -> Run:
    """One job on the first keys of the data. Raises FleetError."""
    with tempfile.TemporaryDirectory(prefix="bench-ml-") as name:
        base = Path(name)
        channel, config, code = base / "input/data/train", base / "input/config", base / "code"
        for directory in (channel, config, code):
            directory.mkdir(parents=True)
        for path in first(data, keys):
            (channel / path.name).symlink_to(path)
        (config / "hyperparameters.json").write_text(json.dumps({"fit": fit}))
        (code / "training.py").write_text(SCRIPT.read_text())
        peak = _watched(base, workers)
        summary = json.loads((base / "output/data/summary.json").read_text())
        if summary["made"] != keys:
            raise FleetError(f"{fit}: {summary['made']} of {keys} models were made")
        in_fit = sum(entry.seconds or 0 for entry in manifest.read(base / "checkpoints/manifest.jsonl"))
        run = Run(fit, keys, workers, summary["seconds"], in_fit, peak)
    print(
        f"{fit:<8} {keys:>6} keys, {workers} processes: {run.seconds:.1f} s, {run.orchestration:.1%}, {peak / 1e6:.0f} MB", file=sys.stderr
    )
    return run


def loop(data: Path, fit: str, keys: int, programs: int = 1) -> float:
    """Seconds of the same fits one after the other, in a program of its own, without what it takes to start it. programs: so many at
    once, each with its share of the keys; the seconds of the slowest. Raises FleetError."""
    code = "import sys, pathlib; from benchmarks import fleet_training; print(fleet_training.loop(pathlib.Path(sys.argv[1]), sys.argv[2]))"
    with tempfile.TemporaryDirectory(prefix="bench-ml-") as name:
        started = []
        for program in range(programs):
            directory = Path(name) / str(program)
            directory.mkdir()
            for path in first(data, keys)[program::programs]:
                (directory / path.name).symlink_to(path)
            command = [sys.executable, "-c", code, str(directory), fit]
            started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        said = [process.communicate() for process in started]
    for process, (_, error) in zip(started, said, strict=True):
        if process.returncode:
            raise FleetError(f"the loop of {fit} ended with code {process.returncode}:\n{error[-2000:]}")
    seconds = max(float(output) for output, _ in said)
    print(f"{fit:<8} {keys:>6} keys, a plain loop, {programs} at once: {seconds:.1f} s", file=sys.stderr)
    return seconds


def bare_ratio() -> float:
    """How many times as fast two processes are as one here and now, where they only count: other programs may want the processors, too."""

    def seconds(processes: int, numbers: int) -> float:
        command = [sys.executable, "-c", f"for number in range({numbers}): number * number"]
        begin = time.perf_counter()
        started = [subprocess.Popen(command) for _ in range(processes)]
        codes = [process.wait() for process in started]
        assert codes == [0] * processes
        return time.perf_counter() - begin

    return seconds(1, 2 * COUNTED) / seconds(2, COUNTED)


def first(data: Path, keys: int) -> list[Path]:
    return sorted(data.iterdir())[:keys]


def _watched(base: Path, workers: int) -> int:
    """Runs `train`; returns the most that its processes have had at once, in bytes."""
    environ = environment(SAGEMAKER_BASE_DIR=str(base), SAGEMAKER_MODEL_SERVER_WORKERS=str(workers))
    peak = 0
    with (base / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(ROOT / "train")], env=environ, stdout=log, stderr=log)
    while True:
        try:
            code = process.wait(SAMPLE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, proportional_bytes(process.pid))
    if code:
        raise FleetError(f"train ended with code {code}:\n{(base / 'log').read_text()[-3000:]}")
    return peak


def as_markdown(speed: Sequence[Run], bare: float, start: float, grown: Sequence[Run], prophet: Sequence[Beside]) -> str:
    """The tables, each figure beside its goal."""
    one, two = ([run for run in speed if run.workers == workers] for workers in (1, 2))
    seconds = [statistics.median(run.seconds for run in runs) for runs in (one, two)]
    ratio = seconds[0] / seconds[1]
    share = statistics.median(run.orchestration for run in two)
    running = statistics.median(1 - run.in_fit / ((run.seconds - start) * run.workers) for run in two)
    cost = statistics.median(run.in_fit / run.keys for run in one) * 1e3
    growth = grown[-1].peak / grown[0].peak
    looped, at_once, seconds_of_prophet = (
        statistics.median(figures)
        for figures in zip(*((round_.loop, round_.two_loops, round_.run.seconds) for round_ in prophet), strict=True)
    )
    faster = statistics.median(round_.loop / round_.run.seconds for round_ in prophet)
    possible = statistics.median(round_.loop / round_.two_loops for round_ in prophet)
    series = prophet[0].run.keys
    rows = [
        [f"{KEYS:,} fits of {cost:.0f} ms: seconds, 1 process / 2", f"{seconds[0]:.1f} / {seconds[1]:.1f}", ""],
        ["2 processes, times as fast as 1", f"{ratio:.2f}", goals.FLEET["workers"].verdict(ratio)],
        ["the same of a bare loop that counts, then and there", f"{bare:.2f}", ""],
        ["outside of the user's fit, 2 processes", f"{share:.1%}", goals.FLEET["orchestration"].verdict(share)],
        [f"the same without the start of the processes, {start:.1f} s", f"{running:.1%}", ""],
        [f"peak memory, MB: {grown[0].keys:,} keys / {grown[-1].keys:,}", f"{grown[0].peak / 1e6:.0f} / {grown[-1].peak / 1e6:.0f}", ""],
        ["memory, times as much", f"{growth:.3f}", goals.FLEET["memory"].verdict(growth)],
        [
            f"Prophet, {series} series: models a second, a plain loop / two such loops at once / 2 processes",
            " / ".join(f"{series / each:.1f}" for each in (looped, at_once, seconds_of_prophet)),
            "",
        ],
        ["Prophet, times as fast as the loop", f"{faster:.2f}", goals.FLEET["prophet"].verdict(faster)],
        ["the same of the two loops, which write nothing and wait for nobody", f"{possible:.2f}", ""],
    ]
    return report.as_table(["training many models", "", "goal"], rows)


if __name__ == "__main__":
    sys.exit(main())
