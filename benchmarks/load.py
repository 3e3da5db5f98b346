"""Load on one server, made by wrk, with every answer checked (see load.lua). Knows HTTP requests; knows no model and no server."""

import contextlib
import http.client
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_THREADS = 8
SCRIPT = Path(__file__).with_name("load.lua")


class LoadError(Exception):
    """wrk is missing, or did not run."""


@dataclass(frozen=True)
class Case:
    """A request body and the answer that is right for it; white space in an answer does not count."""

    body: bytes
    expected: str
    path: str = ""
    """Where it is sent, if not to the path of all."""


@dataclass(frozen=True)
class Requests:
    """What is sent to a server, in turn: `cases` to `path` with `headers`."""

    path: str
    headers: Mapping[str, str]
    cases: Sequence[Case]


@dataclass(frozen=True)
class Measured:
    """One cell. `wrong` counts the answers that were not 200 or not the expected one, `failed` the connections that broke or timed out."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    answers: int
    wrong: int
    failed: int
    sample: str = ""
    """The first wrong answer; empty when there is none."""
    cpu_ms: float = 0.0
    """Processor time of the server for each answer, in milliseconds; filled in by those who know the server's processes."""

    @property
    def good(self) -> bool:
        """There were answers, and all of them were right."""
        return self.answers > 0 and not self.wrong and not self.failed


def measure(port: int, requests: Requests, clients: int, seconds: int, work_dir: Path) -> Measured:
    """Sends requests from `clients` connections, each waiting for its answer before the next, for whole `seconds`.

    Raises `LoadError` when wrk is not there or fails.
    """
    cases = work_dir / "cases.lua"
    cases.write_text(as_lua(requests))
    threads = next(count for count in range(MOST_THREADS, 0, -1) if clients % count == 0)  # wrk drops a remainder
    target = f"http://127.0.0.1:{port}{requests.path}"
    command = [find_wrk(), f"-t{threads}", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s", "-s", str(SCRIPT), target]
    command += ["--", str(cases), str(clients // threads)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise LoadError(f"wrk ended with code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return parse(done.stdout)


def is_ready(port: int, requests: Requests) -> bool:
    """Whether GET /ping and the first case are answered with 200 (Multi Model Server's /ping is 200 before its workers are there)."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, "GET", "/ping")[0] == 200 and ask(port, "POST", requests.path, requests.cases[0].body, requests.headers)[0] == 200
    return False


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """One request on a connection of its own: status and body. Raises OSError or http.client.HTTPException when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def find_wrk() -> str:
    """The path of wrk. Raises `LoadError`, saying how to get it."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadError("wrk, which makes the load, is not on PATH: on Debian and Ubuntu, `apt-get install wrk`")
    return found


def as_lua(requests: Requests) -> str:
    """The requests as the Lua table that load.lua reads."""
    headers = ", ".join(f"[{_quoted(name.encode())}] = {_quoted(value.encode())}" for name, value in requests.headers.items())
    rows = [
        f"  {{path = {_quoted((case.path or requests.path).encode())}, headers = {{{headers}}}, body = {_quoted(case.body)}, "
        f"expected = {_quoted(''.join(case.expected.split()).encode())}}},\n"
        for case in requests.cases
    ]
    return f"return {{\n{''.join(rows)}}}\n"


def parse(output: str) -> Measured:
    """The figures that load.lua printed. Raises `LoadError` when they are not there."""
    figures = re.search(r"^figures (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", output, re.MULTILINE)
    sample = re.search(r"^sample (.*)$", output, re.MULTILINE)
    if figures is None or sample is None:
        raise LoadError(f"wrk printed no figures, but: {output.strip()[-500:]}")
    microseconds, answers, wrong, failed, p50, p99 = (int(figure) for figure in figures.groups())
    return Measured(
        requests_per_second=answers / microseconds * 1e6,
        p50_ms=p50 / 1000,
        p99_ms=p99 / 1000,
        answers=answers,
        wrong=wrong,
        failed=failed,
        sample=sample[1].strip(),
    )


def _quoted(value: bytes) -> str:
    """A Lua string literal: letters and digits as they are, all else as decimal escapes."""
    return '"' + "".join(chr(byte) if chr(byte).isascii() and chr(byte).isalnum() else f"\\{byte:03d}" for byte in value) + '"'
