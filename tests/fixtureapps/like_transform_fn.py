"""As scripts with a transform_fn are written: the whole way of a request in one function."""
# ruff: noqa: B905, PTH118, PTH123

import json
import os


def model_fn(model_dir):
    with open(os.path.join(model_dir, "weights.json")) as file:
        return json.load(file)


def transform_fn(model, request_body, content_type, accept_type):
    if content_type != "application/json":
        raise ValueError(f"unsupported content type {content_type}")
    rows = json.loads(request_body)["inputs"]
    scores = [sum(weight * value for weight, value in zip(model["weights"], row)) for row in rows]
    return json.dumps({"scores": scores}), accept_type
