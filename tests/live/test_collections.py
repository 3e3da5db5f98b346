"""The public test collections of Multi Model Server, call by call, against both engines: what is in SageMaker's contract behaves, and what
is Multi Model Server's own is refused clearly.

Source: github.com/awslabs/multi-model-server, test/postman/management_api_test_collection.json, inference_api_test_collection.json and
https_test_collection.json. There a load has its arguments in the query and a prediction is POST /predictions/NAME; SageMaker sends a JSON
body and POST /models/NAME/invoke. Both forms are here.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.live.conftest import LABEL
from tests.live.launcher import Launcher, on_host
from tests.live.many import CSV, JSON, Answer, Endpoint
from tests.live.test_mms import MmsLauncher

pytestmark = [pytest.mark.live, on_host]

BERTH, MMS = "berth", "mms"
NOWHERE = "/opt/ml/models/nowhere/model"


@dataclass(frozen=True)
class Call:
    """One request of a collection. load: a load's arguments, in a JSON body. differs: Multi Model Server's status, where it is another."""

    name: str
    method: str
    path: str
    status: int
    load: tuple[str, str] | None = None
    body: str = ""
    differs: int = 0
    holds: Callable[[dict], bool] = bool


def models(*names: str) -> Callable[[dict], bool]:
    """Whether these models, and no others, are on a page."""
    return lambda page: [model["modelName"] for model in page["models"]] == list(names)


CALLS = [
    Call("List Models, none yet", "GET", "/models", 200, holds=models()),
    Call("Register Model", "POST", "/models", 200, load=("one", "one")),
    Call("Register Model, with its arguments in the query", "POST", "/models?model_name=two&url={two}", 400),
    Call("Get Valid Model", "GET", "/models/one", 200, holds=lambda model: model["modelName"] == "one"),
    Call("List Models", "GET", "/models", 200, holds=models("one")),
    Call("Scale Min Workers - Asynchronous", "PUT", "/models/one?min_worker=3", 405),
    Call("Scale Min Workers - Synchronous", "PUT", "/models/one?min_worker=4&synchronous=true", 405),
    Call("Scale Min Workers with GPU", "PUT", "/models/one?min_worker=6&number_gpu=1", 405),
    Call("UnRegister Model", "DELETE", "/models/one", 200),
    Call("Register Model with Additional Params", "POST", "/models?initial_workers=1&synchronous=true", 200, load=("one", "one")),
    Call("Register Model Synchronous", "POST", "/models?synchronous=true", 200, load=("two", "two")),
    Call("UnRegister Model, the other", "DELETE", "/models/two", 200),
    Call("Register Resnet Model", "POST", "/models", 200, load=("two", "two")),
    Call("List with Limit", "GET", "/models?limit=1", 200, holds=lambda page: models("one")(page) and "nextPageToken" in page),
    Call("List with Pagination", "GET", "/models?limit=1&next_page_token={token}", 200, holds=models("two")),
    Call("Update GPU Count", "PUT", "/models/two?number_gpu=10", 405),
    Call("Scale up Workers - Synchronous", "PUT", "/models/two?min_worker=5&max_worker=5&synchronous=true", 405),
    Call("Scale up Workers - Asynchronous", "PUT", "/models/two?min_worker=6&max_worker=6&synchronous=false", 405),
    Call("Update Timeout to -1", "PUT", "/models/two?timeout=-1", 405),
    Call("Update Timeout to 0", "PUT", "/models/two?timeout=0", 405),
    Call("Register Model - Invalid URL", "POST", "/models", 400, load=("three", NOWHERE), differs=404),
    Call("Get Model - Invalid Model", "GET", "/models/three", 404),
    Call("List Models - Invalid Next Page Token", "GET", "/models?next_page_token=x", 400, differs=200, holds=models("one", "two")),
    Call("Update Worker with Invalid Worker Count", "PUT", "/models/two?min_worker=10&max_worker=9", 405),
    Call("UnRegister Invalid Model Name", "DELETE", "/models/three", 404),
    Call("Model Zoo - Inference Model, as SageMaker has it", "POST", "/models/two/invoke", 200, body="0"),
    Call("Model Zoo - Inference Model", "POST", "/predictions/two", 404, body="0"),
    Call("API Description", "OPTIONS", "/", 404),
    Call("Model Zoo - Unregister model", "DELETE", "/models/two", 200),
    Call("List Models, those that are left", "GET", "/models", 200, holds=models("one")),
]


@pytest.fixture(scope="module", params=[BERTH, MMS])
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def answers(engine, where):
    """What an engine answers to each call, in their order."""
    with (Launcher if engine == BERTH else MmsLauncher)(None, LABEL) as launch:
        base = launch.base_dir("models")
        server = launch.run("serve", base, {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"})
        server.await_ready()
        endpoint = Endpoint(server, base / "models", str(base / "models"))
        endpoint.plain("one", 1)
        endpoint.plain("two", 2)
        found: dict[str, Answer] = {}
        for call in CALLS:
            token = found["List with Limit"].json()["nextPageToken"] if "{token}" in call.path else ""
            path = call.path.format(two=endpoint.urls["two"], token=token)
            name, url = call.load or ("", "")
            order = json.dumps({"model_name": name, "url": endpoint.urls.get(url, url)}) if call.load else call.body
            found[call.name] = endpoint.call(call.method, path, order, JSON if call.load else CSV if call.body else {})
        yield found


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_each_call_of_the_collections(answers, engine, call):
    answer = answers[call.name]
    assert answer.status == (call.differs if engine == MMS and call.differs else call.status), answer
    if answer.status == 200:
        assert call.holds(answer.json())
    else:
        assert answer.is_error


def test_what_is_no_call_is_told_which_are(answers):
    assert set(answers["Update Timeout to 0"].headers["Allow"].split(", ")) >= {"GET", "DELETE"}
    assert "/models" in answers["Model Zoo - Inference Model"].json()["message"]
