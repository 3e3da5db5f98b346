"""What a user of Berth writes to serve the spaCy pipeline with the classic sample's JSON, and several requests in one prediction."""

import json

import spacy

MAX_BATCH_SIZE = 32


def model_fn(model_dir):
    return spacy.load(model_dir)


def input_fn(body, _content_type):
    return [json.loads(body)["input"]]


def predict_fn(texts, nlp):
    return [[[entity.text, entity.label_] for entity in doc.ents] for doc in nlp.pipe(texts)]


def output_fn(predictions, _accept):
    return json.dumps({"output": predictions[0]}), "application/json"
