"""Predicts what waits together; answers each row with the number of rows that were predicted with it."""

import time

MAX_BATCH_SIZE = 16


def model_fn(model_dir):
    return None


def input_fn(body, content_type):
    return [float(body)]


def predict_fn(data, model):
    print(f"began {data[0]:g}\n", end="", flush=True)  # in one piece: others print, too
    time.sleep(max(data))
    return [len(data)] * len(data)
