"""The classic scikit-learn predictor: pandas reads the CSV, pandas writes the answer, the model loads on first use."""

import io
from pathlib import Path
from typing import Any

import flask
import joblib
import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]

app = flask.Flask(__name__)


class ScoringService:
    """Keeps the model of this worker process."""

    model: Any = None

    @classmethod
    def get_model(cls) -> Any:
        if cls.model is None:
            cls.model = joblib.load(Path("model/model.joblib"))
        return cls.model

    @classmethod
    def predict(cls, frame: pandas.DataFrame) -> Any:
        return cls.get_model().predict(frame.to_numpy())


@app.get("/ping")
def ping() -> flask.Response:
    """200 when this worker can load the model."""
    return flask.Response("\n", status=200 if ScoringService.get_model() is not None else 404, mimetype="application/json")


@app.post("/invocations")
def invocations() -> flask.Response:
    """text/csv in, one row a line; one prediction a line out."""
    if flask.request.content_type != "text/csv":
        return flask.Response("This predictor only supports CSV data", status=415, mimetype="text/plain")
    frame = pandas.read_csv(io.StringIO(flask.request.data.decode()), header=None)
    print(f"Invoked with {frame.shape[0]} records")
    out = io.StringIO()
    pandas.DataFrame({"results": ScoringService.predict(frame)}).to_csv(out, header=False, index=False)
    return flask.Response(out.getvalue(), mimetype="text/csv")
