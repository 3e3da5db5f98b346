"""Answers part by part: {"parts": how many, "seconds": before each but the first, "fail_at": the part that fails, "sized": bytes each}."""

import json
import time


def model_fn(model_dir):
    return None


def input_fn(body, content_type):
    return json.loads(body)


def predict_fn(wish, model):
    for number in range(wish["parts"]):
        if number:
            time.sleep(wish.get("seconds", 0))
        if number == wish.get("fail_at"):
            raise RuntimeError("the stream's secret")
        yield f"part {number}\n".ljust(wish.get("sized", 0), ".")


def output_fn(parts, accept):
    return parts, "text/event-stream"
