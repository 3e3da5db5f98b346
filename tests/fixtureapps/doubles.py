"""Doubles each number; what waits is doubled together, so that a mix-up of answers would show."""

MAX_BATCH_SIZE = 16


def model_fn(model_dir):
    return 2


def input_fn(body, content_type):
    return [int(row) for row in body.splitlines()]


def predict_fn(data, model):
    return [model * value for value in data]


def output_fn(prediction, accept):
    return "\n".join(map(str, prediction)), "text/csv"
