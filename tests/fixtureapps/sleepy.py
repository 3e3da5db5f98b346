"""Predicts for as many seconds as the body says, and prints what it began. One prediction at a time."""

import os
import time


def model_fn(model_dir):
    return None


def input_fn(body, content_type):
    return float(body)


def predict_fn(seconds, model):
    print(f"began {seconds:g}\n", end="", flush=True)  # in one piece: others print, too
    time.sleep(seconds)
    return seconds


def output_fn(seconds, accept):
    return f'{{"slept": {seconds:g}, "pid": {os.getpid()}}}', "application/json"
