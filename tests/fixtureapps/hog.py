"""Takes as many MB as the body says, for good; at its warm-up already as many as HOG_MB."""

import os

WARMUP = ("text/csv", os.environ.get("HOG_MB", "1").encode())
held: list[bytes] = []


def model_fn(model_dir):
    return None


def input_fn(body, content_type):
    return int(body)


def predict_fn(megabytes, model):
    held.append(b"\1" * (megabytes << 20))
    return len(held)
