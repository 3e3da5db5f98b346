"""`python -m local_test.energy`: a thousand customers from one table to one endpoint, on this machine. Ends by itself.

Generates the table of examples/energy, splits it, trains on two hosts as one job of the platform does, serves all models from one
multi-model endpoint, asks each of them twice for the next days, and compares every answer with the model called directly.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.processes import ServerError, family, free_port, proportional_bytes, serving
from container import user_code
from local_test.endpoint import Endpoint, unpack
from local_test.example import EXAMPLES, ROOT, answers

HOSTS = ("algo-1", "algo-2")
DAYS = 7
PLOTTED_DAYS, HISTORY_DAYS = 28, 150
ENGINES: dict[str, list[str]] = {"own": [str(ROOT / "serve")], "mms": ["-m", "container.dockerd_entrypoint", "serve"]}
"""What serves many models, as arguments of Python."""
REQUEST = json.dumps({"period": DAYS}).encode()
SUFFIX = ".tar.gz"


class Failed(Exception):
    """A step that did not do what it should: what is to be said of it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs all steps, each with its seconds. Returns the exit code: 0, or 1 after one line that says what went wrong."""
    given = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through every `finally` on the way out
    begin = time.perf_counter()
    work = given.build.absolute() / "energy-fleet"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with step("generate"):
            run(EXAMPLES / "energy" / "generate.py", work / "table.csv", "--customers", given.customers)
        with step("split"):
            run("-m", "container.prepare", "split", "--column", "customer_id", work / "table.csv", work / "customers")
        with step(f"train on {len(HOSTS)} hosts"):
            targets = train(work, given.customers, {"forecaster": given.forecaster})
        serve(work, targets, given.engine, given.plot or work / "forecast.svg")
    except (Failed, ServerError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"all of it: {time.perf_counter() - begin:.1f} s; what it made is in {work}")
    return 0


def train(work: Path, customers: int, hyperparameters: Mapping[str, str]) -> list[str]:
    """One job on all hosts at once. The artifacts of all are in work/artifacts, as in the place in S3; returns their names.

    Each host is given its part of the files, and of this machine's CPUs.
    """
    files = sorted((work / "customers").glob("*.csv"))
    jobs = {host: prepare(work / "hosts" / host, host, files[number :: len(HOSTS)], hyperparameters) for number, host in enumerate(HOSTS)}
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        running = {host: stack.enter_context(training(jobs[host], cpus[number :: len(HOSTS)] or cpus)) for number, host in enumerate(HOSTS)}
        codes = {host: process.wait() for host, process in running.items()}
    for host, code in codes.items():
        if code:
            raise Failed(f"train on {host} ended with {code}; the end of {jobs[host] / 'log'}: {last_lines(jobs[host] / 'log')}")
    artifacts = work / "artifacts"
    artifacts.mkdir()
    for base_dir in jobs.values():
        for artifact in (base_dir / "checkpoints").glob(f"*{SUFFIX}"):
            artifact.rename(artifacts / artifact.name)
    names = sorted(path.name for path in artifacts.iterdir())
    if len(names) != customers:
        raise Failed(f"{len(names)} artifacts were made of {customers} customers")
    size = sum(path.stat().st_size for path in artifacts.iterdir()) / len(names)
    print(f"  {len(names):,} artifacts of {size / 1000:.1f} kB; {metrics(jobs[HOSTS[0]] / 'log')}")
    return names


@contextmanager
def training(base_dir: Path, cpus: Collection[int]) -> Iterator[subprocess.Popen[bytes]]:
    """`train` on one host, with base_dir in the place of /opt/ml; it ends with the block. Its output is in base_dir/log."""
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(base_dir), "SAGEMAKER_SUBMIT_DIRECTORY": str(EXAMPLES / "energy")}
    with (base_dir / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(ROOT / "train")], env=environ, stdout=log, stderr=subprocess.STDOUT)
    os.sched_setaffinity(process.pid, cpus)  # at once: `train` plans its processes by the CPUs that it may use
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def prepare(base_dir: Path, host: str, files: Sequence[Path], hyperparameters: Mapping[str, str]) -> Path:
    """What the platform gives one host of a job: its configuration, and its part of the channel (ShardedByS3Key)."""
    config, channel = base_dir / "input" / "config", base_dir / "input" / "data" / "train"
    config.mkdir(parents=True)
    channel.mkdir(parents=True)
    for name, document in {
        "hyperparameters": hyperparameters,
        "inputdataconfig": {"train": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key", "RecordWrapperType": "None"}},
        "resourceconfig": {"current_host": host, "hosts": HOSTS, "network_interface_name": "eth0"},
    }.items():
        (config / f"{name}.json").write_text(json.dumps(document))
    for file in files:
        (channel / file.name).hardlink_to(file)
    return base_dir


def serve(work: Path, targets: Sequence[str], engine: str, picture: Path) -> None:
    """Serves the artifacts from one endpoint, asks each twice, compares, and plots the first.

    Raises Failed if an answer is not the model's own.
    """
    models, base_dir, port = work / "models", work / "server", free_port()
    models.mkdir()
    (base_dir / "model").mkdir(parents=True)
    url = f"http://127.0.0.1:{port}"
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(base_dir), "SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_BIND_TO_PORT": str(port)}
    with step("unpack the artifacts"):
        for target in targets:
            unpack(work / "artifacts" / target, models / Endpoint.id(target) / "model")
    with step("call each model directly"):
        script = user_code.import_script(EXAMPLES / "energy" / "inference.py")
        expected = {target: direct(script, models / Endpoint.id(target) / "model") for target in targets}
    command = [sys.executable, *ENGINES[engine]]
    with (
        step(f"serve ({engine})") as started,
        serving(command, ROOT, environ, work / "server" / "log", lambda: answers(f"{url}/ping")) as pid,
        Endpoint(url, work / "artifacts", models) as endpoint,
    ):
        started()
        before = proportional_bytes(pid)
        for what in ("first", "repeated"):
            with step(f"ask each: {what} calls"):
                milliseconds = ask(endpoint, expected)
                p50, p99 = percentile(milliseconds, 50), percentile(milliseconds, 99)
                print(f"  p50 {p50:.1f} ms, p99 {p99:.1f} ms; all answers are the models' own")
        total = proportional_bytes(pid)
        each = (total - before) / len(targets)
        print(f"  memory {total / 1e6:,.0f} MB in {len(family(pid))} processes, {each / 1e6:.2f} MB a model")
        with step("plot"):
            target = targets[0]
            answer = endpoint.invoke(target, json.dumps({"period": PLOTTED_DAYS}).encode(), "application/json")
            name = target.removesuffix(SUFFIX)
            plot(work / "customers" / f"{name}.csv", json.loads(answer.body), picture)
            print(f"  {name}: {picture}")


def ask(endpoint: Endpoint, expected: Mapping[str, Any]) -> list[float]:
    """Asks every model once, one after the other. Returns the milliseconds of each; raises Failed on the first that is not as expected."""
    found = []
    for target, forecast in expected.items():
        begin = time.perf_counter()
        answer = endpoint.invoke(target, REQUEST, "application/json")
        found.append(1000 * (time.perf_counter() - begin))
        if answer.status != 200 or json.loads(answer.body) != forecast:
            raise Failed(f"{target} answered {answer.status} {answer.body[:300]!r}; the model itself says {forecast}")
    return found


def direct(script: ModuleType, directory: Path) -> Any:
    """What the functions of inference.py say of an artifact, without any server, as its client would read it."""
    forecast = script.predict_fn(script.input_fn(REQUEST, "application/json"), script.model_fn(directory))
    return json.loads(script.output_fn(forecast, "application/json")[0])


def plot(history: Path, forecast: Mapping[str, Sequence[Any]], file: Path) -> None:
    """The last months of a customer, the forecast and its band, as SVG: the same bytes for the same numbers."""
    import matplotlib
    import pandas as pd

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "berth"
    from matplotlib import pyplot as plt

    days = pd.read_csv(history, parse_dates=["date"], index_col="date")["value"].asfreq("D").tail(HISTORY_DAYS)
    dates = pd.to_datetime(forecast["dates"])
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    axes.plot(days.index, days, ".-", color="0.5", linewidth=0.6, markersize=3, label="history")
    axes.fill_between(
        dates, forecast["yhat_lower"], forecast["yhat_upper"], color="tab:blue", alpha=0.25, linewidth=0, label="80 % of days"
    )
    axes.plot(dates, forecast["yhat"], color="tab:blue", label="forecast")
    axes.set(ylabel="kWh a day", title=history.stem, ylim=(0, None))
    axes.legend(loc="lower right", ncols=3, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


@contextmanager
def step(title: str) -> Iterator[Any]:
    """Prints the seconds that the block took. What the block is given can be called to say that they are over already."""
    begin, told = time.perf_counter(), False

    def tell() -> None:
        nonlocal told
        if not told:
            told = True
            print(f"{title}: {time.perf_counter() - begin:.1f} s", flush=True)

    yield tell
    tell()


def run(*words: object) -> None:
    """A program of Python's, to its end. Raises Failed with its output."""
    ended = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Failed(f"{' '.join(map(str, words))} ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-1000:]}")
    print(f"  {ended.stdout.strip()}")


def metrics(log: Path) -> str:
    """The last line of metrics that a job has printed."""
    return next(line for line in reversed(log.read_text().splitlines()) if line.startswith("fleet:"))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m local_test.energy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--forecaster", choices=["default", "prophet"], default="default")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="own", help="what serves: ours, or Multi Model Server")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where the plot goes (default: forecast.svg beside what is built)")
    given = parser.parse_args(arguments)
    if given.customers < len(HOSTS):
        parser.error(f"--customers {given.customers}: at least {len(HOSTS)} are needed, one for each host")
    return given


if __name__ == "__main__":
    sys.exit(main())
