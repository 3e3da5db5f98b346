"""Requests that no client would send on purpose, and what an answer to one must look like. The model is a scikit-learn artifact, which
has no errors of its own: whatever comes, its server answers with 2xx or 4xx. Used by test_fuzz.py, and by benchmarks/faults.py."""

import io
import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from tests.live.server import Server

METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "P" * 50, "POST POST", "\x00"]
PATHS = [
    "/",
    "/ping",
    "/invocations/",
    "//invocations",
    "/invocations?a=b",
    "/%69nvocations",
    "/invocations%00",
    "/../ping",
    "/ä",
    "*",
    "/errors/500",
]
TYPES = ["text/csv", "application/json", "application/jsonlines", "application/x-npy", "application/x-npz", "text/plain"]
TYPES += [
    "application/octet-stream",
    "image/png",
    "",
    ";",
    "text/csv;charset=utf-16",
    "text/csv; charset=nonsense",
    "a/b;c=d;e",
    "ä",
    "*/*",
    "x" * 5000,
]
ACCEPTS = [*TYPES, "*/*", "text/*", "application/json;q=0", "text/csv;q=2", ",,,", "application/json, */*;q=0.1", "q" * 9000]
HEADERS = [
    "Content-Encoding: gzip",
    "Expect: 100-continue",
    "Expect: tea",
    "X-Amzn-SageMaker-Custom-Attributes: ä",
    "Range: bytes=0-1",
    "Upgrade: h2c",
]
HEADERS += [
    "X-Request-Start: 0",
    "X-Request-Start: nan",
    "X-Request-Id: " + "a" * 500,
    "Host: b",
    "Cookie: " + "a=b; " * 200,
    "X_Y: 1",
    "If-Match: *",
]
WORDS = [
    b"NaN",
    b"Infinity",
    b"-1e999",
    b"null",
    b'""',
    b"\x00",
    b"\xff\xfe",
    b"[" * 3000,
    b"{" * 300,
    b",",
    b"\n",
    b'"',
    b"1" * 400,
    "ä".encode(),
    b"\r\n\r\n",
]


@dataclass(frozen=True)
class Wire:
    """Bytes to send. broken: they are no HTTP, so that no answer at all is an answer, too."""

    data: bytes
    broken: bool


def artifact(model_dir: Path) -> None:
    """A classifier of four numbers."""
    rows = np.random.default_rng(0).normal(size=(40, 4))
    joblib.dump(LogisticRegression().fit(rows, rows[:, 0] > 0), model_dir / "model.joblib")


def wires(seed: int, count: int) -> Iterator[Wire]:
    """The same requests for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _broken(chance) if chance.random() < 0.25 else Wire(_request(chance), False)


def bodies() -> dict[str, bytes]:
    """A good body of each type."""
    rows = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 2.5]]
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, np.array(rows))
    scipy.sparse.save_npz(npz, scipy.sparse.csr_matrix(rows))
    return {
        "text/csv": b"1,2,3,4\n0.5,0,-1,2.5\n",
        "application/json": json.dumps({"instances": rows}).encode(),
        "application/jsonlines": b"[1, 2, 3, 4]\n[0.5, 0, -1, 2.5]\n",
        "application/x-npy": npy.getvalue(),
        "application/x-npz": npz.getvalue(),
        "text/plain": b"1 2 3 4",
    }


BODIES = bodies()


def _request(chance: random.Random) -> bytes:
    """A request that HTTP allows, some of its parts unusual."""
    content_type = chance.choice(list(BODIES))
    body = BODIES[content_type] if chance.random() < 0.2 else _mutated(chance, BODIES[content_type])
    method = "POST" if chance.random() < 0.9 else chance.choice(METHODS[:7])
    path = "/invocations" if chance.random() < 0.9 else chance.choice(PATHS[:7])
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close"]
    lines += [f"Content-Type: {content_type if chance.random() < 0.7 else chance.choice(TYPES)}"]
    lines += [f"Accept: {chance.choice(ACCEPTS)}"] if chance.random() < 0.5 else []
    lines += chance.sample(HEADERS[:9], chance.randrange(3))
    if chance.random() < 0.2:
        lines, body = [*lines, "Transfer-Encoding: chunked"], _chunked(chance, body)
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _broken(chance: random.Random) -> Wire:
    """A request with bytes changed anywhere, or with parts that HTTP does not allow."""
    data = _request(chance)
    for old, choices in ((b"POST", METHODS), (b"/invocations", PATHS), (b"Host: test", HEADERS)):
        if chance.random() < 0.3:
            data = data.replace(old, chance.choice(choices).encode(), 1)
    return Wire(_mutated(chance, data), True)


def _mutated(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.randrange(1, 20)
        before, touched, after = data[:at], data[at : at + length], data[at + length :]
        data = before + chance.choice(MUTATIONS)(chance, touched, after)
    return data


def _cut(chance: random.Random, touched: bytes, after: bytes) -> bytes:
    return b""


def _drop(chance: random.Random, touched: bytes, after: bytes) -> bytes:
    return after


def _repeat(chance: random.Random, touched: bytes, after: bytes) -> bytes:
    return touched * 5 + after


def _change(chance: random.Random, touched: bytes, after: bytes) -> bytes:
    return bytes([chance.randrange(256)]) + touched[1:] + after


def _insert(chance: random.Random, touched: bytes, after: bytes) -> bytes:
    return chance.choice(WORDS) + touched + after


MUTATIONS = [_cut, _drop, _repeat, _change, _insert]


def _chunked(chance: random.Random, body: bytes) -> bytes:
    size = chance.randrange(1, 50)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def complaint(wire: Wire, answer: bytes) -> str:
    """What is wrong with the answer to a request; empty if nothing is."""
    if not answer:
        return "" if wire.broken else "no answer"
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        return complaint(wire, body)
    if wire.broken and answer.startswith(b'{"') and not answer.startswith(b'{"code": 5'):
        return ""  # in HTTP/0.9, which some broken requests look like, there are no status lines
    try:
        status = int(head.split()[1])
    except (IndexError, ValueError):
        return f"no status line: {answer[:80]!r}"
    if 200 <= status < 300 or (400 <= status < 500 and (_is_error(status, body) or wire.data.startswith(b"HEAD"))):
        return ""
    return f"{status}: {body[:200]!r}"


def _is_error(status: int, body: bytes) -> bool:
    try:
        error, _ = json.JSONDecoder().raw_decode(body.decode())  # what follows may be the answer to the rest of a broken request
    except ValueError:
        return False
    return isinstance(error, dict) and set(error) == {"code", "message", "request_id"} and error["code"] == status


def send(server: Server, wire: Wire) -> bytes:
    """All that the server answers until it hangs up."""
    with server.connect(timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(wire.data)
            if wire.broken:
                connection.shutdown(socket.SHUT_WR)  # or the server would wait for what the request has promised
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        return answer


def run(server: Server, seed: int, count: int, clients: int = 8) -> list[str]:
    """Sends `count` requests and returns what was wrong with the answers, each with its request."""

    def judge(wire: Wire) -> str:
        try:
            wrong = complaint(wire, send(server, wire))
        except TimeoutError:
            wrong = "no end of the answer within 20 s"
        return f"{wrong}\n    {wire.data[:600]!r}" if wrong else ""

    with ThreadPoolExecutor(clients) as pool:
        return [wrong for wrong in pool.map(judge, wires(seed, count)) if wrong]


def memory(server: Server) -> int:
    """Bytes of the whole tree of processes, shared pages counted once."""
    return sum(process.memory for process in server.processes())
