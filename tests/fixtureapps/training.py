"""Does what the hyperparameter `act` says: reports what it was given, fails, or trains until it is stopped."""

import json
import time


def train_fn(job):
    act = job.hyperparameters["act"]
    if act == "fail":
        raise ValueError("the loss is not a number")
    if act == "wait":
        print("training", flush=True)
        while not job.stopping():
            time.sleep(0.05)
    (job.model_dir / "seen.json").write_text(json.dumps(dict(job.hyperparameters)))
