"""A customer's next days: {"period": 7} -> {"dates": [...], "yhat": [...], "yhat_lower": [...], "yhat_upper": [...]}."""

import ast
import json
from pathlib import Path

import joblib

LONGEST = 3650
WARMUP = ("application/json", b'{"period": 7}')
EXPECTED = f'expected is {{"period": days}}, a whole number from 1 to {LONGEST}'
FORECASTERS = ("default", "prophet")


class Refused(ValueError):
    """A request that cannot be answered, and the status that says so."""

    def __init__(self, status_code, message):
        super().__init__(message)
        self.status_code = status_code


def forecaster(name):
    """The module of a forecaster, with fit, load and predict."""
    if name == "prophet":
        import with_prophet as module  # here, so that nobody else waits for Prophet, or needs it
    else:
        import seasonal as module
    return module


def model_fn(model_dir):
    """(forecaster, its model)"""
    model = joblib.load(Path(model_dir) / "model.joblib")
    used = forecaster(model["forecaster"])
    return used, used.load(model)


def input_fn(body, content_type):
    """The period. A JSON string that holds the document, as some notebooks send it, is unpacked first."""
    if content_type != "application/json":
        raise Refused(415, f"cannot read {content_type!r}; send application/json")
    document = json.loads(body)
    if isinstance(document, str):
        document = unquoted(document)
    period = document.get("period") if isinstance(document, dict) else None
    if not isinstance(period, int) or isinstance(period, bool) or not 1 <= period <= LONGEST:
        raise Refused(400, f"{body[:100]!r} was sent: {EXPECTED}")
    return period


def unquoted(text):
    """What a string holds, in JSON or as Python writes it: those notebooks read it with literal_eval. None if it holds neither."""
    try:
        return ast.literal_eval(text[:100])
    except (SyntaxError, ValueError):
        return None


def predict_fn(data, model):
    used, fitted = model
    return used.predict(fitted, data)


def output_fn(prediction, accept):
    """Always JSON. Raises Refused where the client takes none."""
    if not any(name in accept.lower() for name in ("json", "*/*", "application/*")):
        raise Refused(406, f"cannot write {accept!r}; accept application/json")
    return json.dumps(prediction), "application/json"
