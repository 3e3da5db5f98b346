"""The examples: trained as the platform does it, and asked through the Predictor that all fronts call."""

import json
import re

import pytest

from container import predictor
from container.errors import to_response
from container.message import Request
from container.settings import Settings
from tests.trained import EXAMPLES, train_example

FLOWERS = (EXAMPLES / "iris" / "payload.csv").read_bytes()
TEXT = (EXAMPLES / "ner" / "payload.json").read_bytes()
ENTITIES = [["Marta Silva", "PERSON"], ["Lisbon", "PLACE"], ["Oslo", "PLACE"], ["Northwind", "ORG"]]


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    """(base directory with the model, what the training printed)"""
    base_dir = tmp_path_factory.mktemp("iris")
    return base_dir, train_example("iris", base_dir, C=2)


@pytest.fixture(scope="module")
def ner(tmp_path_factory):
    base_dir = tmp_path_factory.mktemp("ner")
    return base_dir, train_example("ner", base_dir, max_steps=200)


def metric(name, output):
    found = re.search(rf"{name}=([0-9.]+)", output)
    assert found, output
    return float(found[1])


def ask(base_dir, body, content_type, accept=""):
    """(status, body) of one request."""
    request = Request(body, content_type, accept)
    try:
        answer = predictor.load(Settings(base_dir=base_dir)).respond(request)
    except Exception as error:
        answer = to_response(error, "id")
    return answer.status, answer.body


def test_iris_is_an_artifact_without_code(iris):
    base_dir, output = iris
    assert metric("validation:accuracy", output) > 0.93
    assert sorted(path.name for path in (base_dir / "model").iterdir()) == ["model.joblib", "versions.json"]
    assert ask(base_dir, FLOWERS, "text/csv") == (200, b'["setosa","virginica"]')
    assert ask(base_dir, FLOWERS, "text/csv", "text/csv") == (200, b"setosa\nvirginica\n")


def test_iris_trains_on_a_channel(tmp_path):
    data = tmp_path / "two.csv"
    data.write_text("".join(f"{kind},{size},{size},{size},{size}\n" for kind, size in [("small", 1), ("large", 9)] for _ in range(10)))
    train_example("iris", tmp_path / "base", {"train": data})
    assert ask(tmp_path / "base", b"1,1,1,1\n8,8,8,8\n", "text/csv") == (200, b'["small","large"]')


def test_ner_has_its_pipeline_and_its_code(ner):
    base_dir, output = ner
    assert metric("eval:f1", output) > 0.8
    assert 0.8 < metric("eval:precision", output) <= 1
    assert sorted(path.name for path in (base_dir / "model").iterdir()) == ["code", "pipeline", "versions.json"]
    assert sorted(path.name for path in (base_dir / "model/code").iterdir()) == ["inference.py", "training.py"]


@pytest.mark.parametrize(
    ("body", "content_type", "output"),
    [
        (TEXT, "application/json", ENTITIES),
        (b"Marta Silva flew from Lisbon to Oslo for Northwind.", "text/plain", ENTITIES),
        (json.dumps({"input": [json.loads(TEXT)["input"], "It rained."]}).encode(), "application/json; charset=utf-8", [ENTITIES, []]),
        (json.dumps({"input": [json.loads(TEXT)["input"]]}).encode(), "application/json", [ENTITIES]),
        (b'{"input": []}', "application/json", []),
    ],
)
def test_ner_answers_texts_alone_and_in_lists(ner, body, content_type, output):
    status, answer = ask(ner[0], body, content_type)
    assert (status, json.loads(answer)) == (200, {"output": output})


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "status", "message"),
    [
        (b'{"text": "x"}', "application/json", "", 400, 'expected is {"input": text}'),
        (b'{"input": [1]}', "application/json", "", 400, 'expected is {"input": text}'),
        (b"{", "application/json", "", 400, "JSONDecodeError"),
        (b"a,b", "text/csv", "", 415, "send application/json or text/plain"),
        (TEXT, "application/json", "text/csv", 406, "accept application/json"),
    ],
)
def test_ner_refuses_by_name(ner, body, content_type, accept, status, message):
    got, answer = ask(ner[0], body, content_type, accept)
    assert got == status
    assert message in json.loads(answer)["message"]


def test_ner_predicts_several_requests_together(ner):
    model = predictor.load(Settings(base_dir=ner[0]))
    assert model.max_batch_size == 32
    assert model.warm_up()
    requests = [Request(body, "application/json") for body in (TEXT, b'{"input": ["It rained.", "It snowed."]}', TEXT)]
    predictions = model.predict_many([(model.decode(request), request.context) for request in requests])
    answers = [model.encode(prediction, request).body for prediction, request in zip(predictions, requests, strict=True)]
    assert [json.loads(body)["output"] for body in answers if isinstance(body, bytes)] == [ENTITIES, [[], []], ENTITIES]


def test_ner_is_the_same_for_the_same_seed_and_holds_out_texts_where_there_is_no_eval_channel(tmp_path):
    data = EXAMPLES / "ner/data/eval/sentences.jsonl"
    prints = [train_example("ner", tmp_path / str(run), {"train": data}, max_steps=20, seed=seed) for run, seed in enumerate((1, 1, 2))]
    tables = ["\n".join(line for line in output.splitlines() if re.match(r" +\d|eval:", line)) for output in prints]
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "Oslo"}', "data.jsonl, line 2: KeyError('spans')"),
        ('{"text": "In Oslo.", "spans": [{"start": 3, "end": 5, "label": "PLACE"}]}', "does not begin and end with a word: 'Os'"),
        ("Oslo", "data.jsonl, line 2: JSONDecodeError"),
    ],
)
def test_ner_names_the_line_that_it_cannot_read(tmp_path, line, message):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "In Oslo.", "spans": []}\n' + line + "\n")
    with pytest.raises(AssertionError, match="TRAINING FAILED") as failed:
        train_example("ner", tmp_path / "base", {"train": data})
    assert message in str(failed.value)
    assert message in (tmp_path / "base/output/failure").read_text()
