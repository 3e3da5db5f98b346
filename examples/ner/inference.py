"""Texts in, entities out: {"input": text} -> {"output": [[entity, label], ...]}; a list of texts gives a list of such lists."""

import json
from pathlib import Path

import spacy

MAX_BATCH_SIZE = 32
WARMUP = ("application/json", b'{"input": "Marta Silva flew from Lisbon to Oslo for Northwind."}')


class Refused(ValueError):
    """A request that cannot be answered, and the status that says so."""

    def __init__(self, status_code, message):
        super().__init__(message)
        self.status_code = status_code


def model_fn(model_dir):
    return spacy.load(Path(model_dir) / "pipeline")


def input_fn(body, content_type):
    """[(text, whether it came alone), ...]: a list, so that the texts of several requests can be predicted together."""
    if content_type == "text/plain":
        return [(body, True)]
    if content_type != "application/json":
        raise Refused(415, f"cannot read {content_type!r}; send application/json or text/plain")
    document = json.loads(body)
    texts = document.get("input") if isinstance(document, dict) else None
    if isinstance(texts, str):
        return [(texts, True)]
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return [(text, False) for text in texts]
    raise Refused(400, 'expected is {"input": text}, or {"input": [text, ...]}')


def predict_fn(data, model):
    return [([[entity.text, entity.label_] for entity in doc.ents], alone) for doc, alone in model.pipe(data, as_tuples=True)]


def output_fn(prediction, accept):
    """Always JSON. Raises Refused where the client takes none."""
    if not any(name in accept.lower() for name in ("json", "*/*", "application/*")):
        raise Refused(406, f"cannot write {accept!r}; accept application/json")
    entities = [found for found, _ in prediction]
    alone = any(alone for _, alone in prediction)
    return json.dumps({"output": entities[0] if alone else entities}, ensure_ascii=False), "application/json"
