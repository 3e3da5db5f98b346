"""Scripts as they were written for other containers run unchanged. The scripts are ours, modelled on public samples of each kind."""

import json
import shutil

import pytest

from tests.live.server import ROOT

pytestmark = pytest.mark.live
IRIS = ROOT / "examples" / "iris" / "data" / "train"


@pytest.fixture
def tree(start):
    """The server of like_sklearn_container.py, with the model that the same file has trained."""
    base = start.base_dir("input/config", "input/data", "output", "code")
    shutil.copytree(IRIS, base / "input" / "data" / "train")
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps({"max_leaf_nodes": "3"}))
    (base / "input" / "config" / "inputdataconfig.json").write_text(json.dumps({"train": {"TrainingInputMode": "File"}}))
    start.copy("like_sklearn_container", base / "code" / "script.py")
    training = start.run("train", base, {"SAGEMAKER_PROGRAM": "script.py"})
    assert training.wait() == 0, training.logs()

    def put(model_dir):
        shutil.copytree(base / "model", model_dir, dirs_exist_ok=True)
        (model_dir / "code").mkdir(exist_ok=True)
        start.copy("like_sklearn_container", model_dir / "code" / "script.py")

    return start(model=put, env={"SAGEMAKER_PROGRAM": "script.py"})


def test_a_script_for_the_scikit_learn_container(tree):
    rows = tree.post("5.1,3.5,1.4,0.2\n6.3,3.3,6.0,2.5\n", "text/csv", "text/csv").text.splitlines()
    assert [max(range(3), key=[float(value) for value in row.split(",")].__getitem__) for row in rows] == [0, 2]
    answer = tree.post('{"instances": [[5.1, 3.5, 1.4, 0.2]]}', "application/json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"instances": [{"features": [1.0, 0.0, 0.0]}]}
    assert tree.post("5.1,3.5", "text/html").status_code == 400
    assert tree.post("5.1,3.5,1.4,0.2", accept="image/png").status_code == 500


def test_a_script_for_the_inference_toolkit(start):
    server = start("like_inference_toolkit")
    attributes = {"X-Amzn-SageMaker-Custom-Attributes": "a=b"}
    answer = server.post('{"text": "good good bad"}', "application/json", headers=attributes)
    assert answer.json() == {"score": 1, "attributes": "a=b"}
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "score=1"
    plain = server.post("bad bad", "text/plain", "text/plain")
    assert (plain.text, plain.headers["Content-Type"].partition(";")[0]) == ("-2", "text/plain")
    refused = server.post("bad", "text/plain")
    assert (refused.status_code, refused.json()["message"]) == (422, "two words at least, please")


def test_a_script_with_transform_fn(start):
    server = start("like_transform_fn", model=lambda path: (path / "weights.json").write_text('{"weights": [1, 10]}'))
    answer = server.post('{"inputs": [[1, 2], [3, 4]]}', "application/json", "application/json")
    assert answer.json() == {"scores": [21, 43]}
    assert answer.headers["Content-Type"] == "application/json"
    assert server.post("1,2", "text/csv").status_code == 500
