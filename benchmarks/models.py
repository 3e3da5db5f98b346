"""The models of the benchmark, the requests that are made of them and the answers that are right. Knows no server."""

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy
from threadpoolctl import threadpool_limits

from benchmarks.load import Case, Requests

SHOPS = ("Anorak", "Bluebell", "Cordwain", "Denimer", "Espadril", "Fedora", "Gingham", "Harrow", "Indigo", "Jerkin")
TOWNS = ("Aarhus", "Bergen", "Cork", "Delft", "Espoo", "Faro", "Ghent", "Haarlem", "Izmir", "Jaca")
LABELS = dict.fromkeys(SHOPS, "SHOP") | dict.fromkeys(TOWNS, "TOWN")
SENTENCES = (
    "last spring {shop} opened a second store near the old harbour of {town} and hired forty people from the quarter",
    "people who live in {town} say that the coats of {shop} last for longer than any winter they remember",
    "we walked all over {town} in the rain and found nothing but a small window with two scarves by {shop}",
    "the new shoes by {shop} fit well , but the parcel took three weeks to reach us in {town}",
)


@dataclass(frozen=True)
class Model:
    """A model that can be built, asked directly, and served.

    `kind` is "tabular" (CSV rows in, predictions out) or "entities" (a text in, its entities out).
    """

    name: str
    title: str
    kind: str
    build: Callable[[Path], None]
    """Writes the artifact into a directory that is there."""


@dataclass(frozen=True)
class Artifact:
    """A model as it lies in `base_dir`/model, loaded from there, with the requests to send."""

    model: Model
    base_dir: Path
    requests: Requests
    predict: Callable[[Sequence[Any]], Any]
    inputs: Sequence[Any]
    """What `predict` takes, one for each case."""

    def call_seconds(self, size: int, budget: float = 1.0) -> float:
        """The median time of one direct call of the model on a batch of `size`, in seconds; measured for about `budget` seconds."""
        batch = [self.inputs[i % len(self.inputs)] for i in range(size)]
        times: list[float] = []
        with threadpool_limits(1):  # as in every server
            self.predict(batch)
            end = time.perf_counter() + budget
            while len(times) < 5 or time.perf_counter() < end:
                start = time.perf_counter()
                self.predict(batch)
                times.append(time.perf_counter() - start)
        return statistics.median(times)


def prepare(model: Model, base_dir: Path) -> Artifact:
    """Builds a model below `base_dir` and asks it, directly, for the right answer to each request."""
    directory = base_dir / "model"
    directory.mkdir(parents=True)
    model.build(directory)
    return _tabular(model, base_dir) if model.kind == "tabular" else _entities(model, base_dir)


def _tabular(model: Model, base_dir: Path) -> Artifact:
    estimator = joblib.load(base_dir / "model" / "model.joblib")

    def predict(rows: Sequence[Any]) -> Any:
        return estimator.predict(numpy.array(rows))

    rows = _iris_rows()
    cases = [Case(",".join(map(str, row)).encode(), f"{predict([row])[0]}") for row in rows]
    return Artifact(model, base_dir, Requests("/invocations", {"Content-Type": "text/csv", "Accept": "text/csv"}, cases), predict, rows)


def _entities(model: Model, base_dir: Path) -> Artifact:
    import spacy

    nlp = spacy.load(base_dir / "model")

    def predict(texts: Sequence[str]) -> list[list[list[str]]]:
        return [[[entity.text, entity.label_] for entity in doc.ents] for doc in nlp.pipe(texts)]

    texts = [" . ".join(_sentence(i + j) for j in range(2)) for i in range(8)]
    cases = [Case(json.dumps({"input": text}).encode(), json.dumps({"output": predict([text])[0]})) for text in texts]
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return Artifact(model, base_dir, Requests("/invocations", headers, cases), predict, texts)


def _iris_rows() -> list[list[float]]:
    """Eight flowers; no two neighbours are of one kind."""
    from sklearn.datasets import load_iris

    data = load_iris().data
    return [data[position].tolist() for position in (0, 55, 105, 10, 110, 60, 15, 115)]


def _sentence(seed: int) -> str:
    draw = random.Random(seed)
    return SENTENCES[seed % len(SENTENCES)].format(shop=draw.choice(SHOPS), town=draw.choice(TOWNS))


def _build_regression(directory: Path) -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(*load_iris(return_X_y=True)), directory / "model.joblib")


def _build_forest(directory: Path) -> None:
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(n_estimators=100, random_state=0)
    joblib.dump(forest.fit(*load_iris(return_X_y=True)), directory / "model.joblib")


def _build_entities(directory: Path) -> None:
    """A blank English pipeline whose recogniser has seen sixty sentences, fifteen times."""
    import spacy
    from spacy.training import Example
    from thinc.api import fix_random_seed

    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner")
    examples = []
    for i in range(60):
        text = _sentence(i)
        spans = [(text.index(word), text.index(word) + len(word), label) for word, label in LABELS.items() if word in text]
        examples.append(Example.from_dict(nlp.make_doc(text), {"entities": spans}))
    nlp.initialize(lambda: examples)
    for _ in range(15):
        for start in range(0, len(examples), 15):
            nlp.update(examples[start : start + 15])
    nlp.to_disk(directory)


MODELS = {
    model.name: model
    for model in (
        Model("regression", "scaler + logistic regression", "tabular", _build_regression),
        Model("forest", "forest of 100 trees", "tabular", _build_forest),
        Model("entities", "spaCy NER", "entities", _build_entities),
    )
}
