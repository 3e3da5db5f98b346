"""Kills its own process at its first prediction, which is the warm-up."""

import os
import signal

WARMUP = ("text/csv", b"1")


def model_fn(model_dir):
    return None


def predict_fn(data, model):
    os.kill(os.getpid(), signal.SIGKILL)
