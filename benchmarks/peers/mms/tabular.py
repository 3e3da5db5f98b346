"""The Multi Model Server handler of CSV rows."""

from pathlib import Path
from typing import Any

import joblib
import numpy

model: Any = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str] | None:
    """text/csv in, one row a line; one prediction a line out. Without data: loads the model."""
    global model  # noqa: PLW0603 - Multi Model Server's own way: a function, so that its errors are not swallowed
    if data is None:
        model = joblib.load(Path(context.system_properties["model_dir"]) / "model.joblib")
        return None
    rows = [[float(value) for value in line.split(",")] for line in bytes(data[0]["body"]).decode().splitlines()]
    context.set_response_content_type(0, "text/csv")
    return ["".join(f"{answer}\n" for answer in model.predict(numpy.array(rows)).tolist())]
