"""As scripts for the SageMaker scikit-learn container are written: one file that trains when it is run, and serves when it is imported."""
# ruff: noqa: PTH118, PTH123, PTH208

import argparse
import csv
import json
import os
from io import StringIO

import joblib
import numpy as np
from sklearn.tree import DecisionTreeClassifier


def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))


def input_fn(request_body, request_content_type):
    if request_content_type == "text/csv":
        return np.array(list(csv.reader(StringIO(request_body))), dtype=float)
    if request_content_type == "application/json":
        return np.array(json.loads(request_body)["instances"])
    raise ValueError(f"{request_content_type} not supported by script!")


def predict_fn(input_data, model):
    return model.predict_proba(input_data)


def output_fn(prediction, accept):
    if accept == "application/json":
        return json.dumps({"instances": [{"features": row} for row in prediction.tolist()]})
    if accept == "text/csv":
        return "\n".join(",".join(map(str, row)) for row in prediction.tolist())
    raise RuntimeError(f"{accept} accept type is not supported by this script.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_leaf_nodes", type=int, default=-1)
    parser.add_argument("--output-data-dir", type=str, default=os.environ["SM_OUTPUT_DATA_DIR"])
    parser.add_argument("--model-dir", type=str, default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--train", type=str, default=os.environ["SM_CHANNEL_TRAIN"])
    args = parser.parse_args()
    rows = []
    for name in sorted(os.listdir(args.train)):
        with open(os.path.join(args.train, name)) as file:
            rows += list(csv.reader(file))
    labels, measurements = [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=float)
    tree = DecisionTreeClassifier(max_leaf_nodes=args.max_leaf_nodes, random_state=0).fit(measurements, labels)
    joblib.dump(tree, os.path.join(args.model_dir, "model.joblib"))
