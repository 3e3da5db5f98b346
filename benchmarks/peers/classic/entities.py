"""The classic spaCy predictor: `{"input": text}` in, `{"output": [[text, label], ...]}` out; the model loads with the module."""

import json

import flask
import spacy

nlp = spacy.load("model")
app = flask.Flask(__name__)


@app.get("/ping")
def ping() -> flask.Response:
    """200 when this worker has the model."""
    return flask.Response("\n", status=200 if nlp is not None else 404, mimetype="application/json")


@app.post("/invocations")
def invocations() -> flask.Response:
    """The entities of one text."""
    found = [(entity.text, entity.label_) for entity in nlp(flask.request.get_json()["input"]).ents]
    return flask.Response(json.dumps({"output": found}), mimetype="application/json")
