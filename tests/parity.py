"""One table of requests that every front must answer alike: status, content type, custom attributes and bytes.

A front is a function from settings to a function from a case to its answer; FRONTS in test_parity.py lists those that need no server,
tests/live/test_mms.py sends the same table to a real Multi Model Server.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from container.message import CUSTOM_ATTRIBUTES
from tests.bodies import npy, saved

FIXTUREAPPS = Path(__file__).parent / "fixtureapps"
REQUEST_ID = "request-7"

ATTRIBUTES = """
def model_fn(model_dir): return None
def predict_fn(data, model): return data
def output_fn(prediction, accept, context):
    context.set_response_header("X-Amzn-SageMaker-Custom-Attributes", context.custom_attributes.upper())
    return context.custom_attributes + context.inference_id + context.headers.get("X-Amzn-Trace", "-"), "text/plain"
"""
BATCHES = """
MAX_BATCH_SIZE = 4
def model_fn(model_dir): return None
def predict_fn(data, model): return data.sum(axis=1)
"""
SCRIPTS = {"attributes": ATTRIBUTES, "batches": BATCHES} | {
    name: (FIXTUREAPPS / f"{name}.py").read_text() for name in ("defaults", "echo", "headers", "raises", "stream")
}
ARTIFACT = "artifact"
"""The model without a script: scikit-learn."""

CSV, JSON = {"Content-Type": "text/csv"}, {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Case:
    """One request to a model of `models`. differs: fronts that answer it otherwise, with the reason."""

    name: str
    model: str
    status: int
    body: bytes
    headers: Mapping[str, str]
    differs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What must be equal. The request's id, which a server in front gives, is put in the place of its own."""

    status: int
    content_type: str
    attributes: str
    body: bytes

    @classmethod
    def of(cls, status: int, headers: Any, body: bytes) -> "Answer":
        """headers: a mapping whose names have no case."""
        if status >= 400:
            error = json.loads(body)
            body = json.dumps(error | {"request_id": REQUEST_ID}).encode()
        return cls(status, headers.get("Content-Type", ""), headers.get(CUSTOM_ATTRIBUTES, ""), body)


STREAMS = dict.fromkeys(("handler", "mms"), "Multi Model Server cannot stream: nothing is sent before the whole is made")

CASES = [
    Case("csv", "defaults", 200, b"1,2\n3,4.5\n", CSV),
    Case("csv with a charset", "defaults", 200, b"1,2\n3,4.5\n", {"Content-Type": "text/csv; charset=utf-8"}),
    Case("json instances", "defaults", 200, b'{"instances": [[1, 2], [3, 4]]}', JSON),
    Case("json array", "defaults", 200, b"[[1, 2], [3, 4]]", JSON),
    Case("jsonlines", "defaults", 200, b"[1, 2]\n[3, 4]\n", {"Content-Type": "application/jsonlines"}),
    Case("npy", "defaults", 200, npy(np.array([[1.0, 2.0]])), {"Content-Type": "application/x-npy"}),
    Case("csv to csv", "defaults", 200, b"1,2\n", CSV | {"Accept": "text/csv"}),
    Case("csv to npy", "batches", 200, b"1,2\n", CSV | {"Accept": "application/x-npy"}),
    Case("q-values", "defaults", 200, b"1,2\n", CSV | {"Accept": "application/json;q=0.5, text/csv;q=0.9, image/png"}),
    Case("any type", "defaults", 200, b"1,2\n", CSV | {"Accept": "*/*"}),
    Case("predicted together", "batches", 200, b"1,2\n3,4\n", CSV),
    Case("artifact, csv", ARTIFACT, 200, b"0,0\n1,1\n", CSV),
    Case("artifact, json", ARTIFACT, 200, b'{"instances": [[0, 1]]}', JSON),
    Case("artifact, npz", ARTIFACT, 200, saved(csr_matrix([[0.0, 1.0]])), {"Content-Type": "application/x-npz"}),
    Case("artifact, too wide", ARTIFACT, 400, b"1,2,3\n", CSV),
    Case("every byte", "echo", 200, bytes(range(256)), {"Content-Type": "application/octet-stream"}),
    Case("no type", "echo", 200, b"plain", {}),
    Case("text", "echo", 200, "Grüße".encode(), {"Content-Type": "text/plain; charset=utf-8"}),
    Case("text in another charset", "echo", 200, "Grüße".encode("latin-1"), {"Content-Type": "text/plain; charset=latin-1"}),
    Case("json as it came", "echo", 200, b'{"a":  1}', JSON),
    Case("form", "echo", 200, b"a=1&b=2", {"Content-Type": "application/x-www-form-urlencoded"}),
    Case("multipart", "echo", 200, b"--x\r\n\r\n1\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}),
    Case("empty", "echo", 200, b"", {"Content-Type": "application/octet-stream"}),
    Case("custom attributes", "attributes", 200, b"1", CSV | {CUSTOM_ATTRIBUTES: 'a=b; c="d"'}),
    Case("other headers", "attributes", 200, b"1", CSV | {"X-Amzn-SageMaker-Inference-Id": "i-1", "X-Amzn-Trace": "t"}),
    Case("stream", "stream", 200, b'{"parts": 3}', JSON),
    Case("ragged csv", "defaults", 400, b"1,2\n3\n", CSV),
    Case("broken json", "defaults", 400, b"{", JSON),
    Case("no rows", "defaults", 400, b"", CSV),
    Case("input_fn fails", "raises", 400, b"input_fn", {"Content-Type": "text/plain"}),
    Case("unreadable", "defaults", 415, b"1", {"Content-Type": "image/png"}),
    Case("no media type", "defaults", 415, b"1", {"Content-Type": "csv"}),
    Case("unwritable", "defaults", 406, b"1,2\n", CSV | {"Accept": "image/png"}),
    Case("a status of the script's own", "raises", 422, b"status", {"Content-Type": "text/plain"}),
    Case("input_fn breaks", "raises", 500, b"runtime", {"Content-Type": "text/plain"}),
    Case("predict_fn fails", "raises", 500, b"predict_fn", {"Content-Type": "text/plain"}),
    Case("output_fn fails", "raises", 500, b"output_fn", {"Content-Type": "text/plain"}),
    Case("a header that HTTP cannot carry", "headers", 500, b'{"X-Bad": "a\\nb"}', JSON),
    Case("attributes too long", "headers", 500, json.dumps({CUSTOM_ATTRIBUTES: "a" * 1025}).encode(), JSON),
    Case("a stream fails at once", "stream", 500, b'{"parts": 3, "fail_at": 0}', JSON),
    Case("a stream fails midway", "stream", 200, b'{"parts": 3, "fail_at": 2}', JSON, differs=STREAMS),
]


def write(model: str, directory: Path) -> None:
    """Puts a model of the table into a model directory."""
    if model == ARTIFACT:
        rows = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], dtype=float)
        joblib.dump(LogisticRegression().fit(rows, [0, 1, 0, 1]), directory / "model.joblib")
        return
    (directory / "code").mkdir()
    (directory / "code" / "inference.py").write_text(SCRIPTS[model])
