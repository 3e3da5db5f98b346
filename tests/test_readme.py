"""What README.md says is so: its commands, its snippet, its answer, its links."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from container.message import Request
from container.predictor import load
from container.settings import Settings
from local_test.example import question
from tests.trained import train_example

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)


def block(language: str, holding: str) -> str:
    return str(next(text for name, text in BLOCKS if name == language and holding in text))


def answer(settings: Settings, body: bytes) -> Any:
    said = load(settings).respond(Request(body, "text/csv")).body
    assert isinstance(said, bytes)
    return json.loads(said)


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    base_dir = tmp_path_factory.mktemp("iris")
    train_example("iris", base_dir)
    return base_dir


def test_the_first_answer_is_what_the_model_says(iris):
    payload = (ROOT / "examples/iris/payload.csv").read_bytes()
    assert answer(Settings(base_dir=iris), payload) == json.loads(block("json", "setosa"))


def test_the_question_is_the_one_that_make_serve_prints():
    assert block("sh", "curl").strip() == question(ROOT / "examples/iris", 8080)


def test_the_script_serves_the_example(iris, tmp_path, script):
    settings = script(block("python", "model_fn"), base_dir=tmp_path)
    (settings.model_dir / "model.joblib").write_bytes((iris / "model/model.joblib").read_bytes())
    assert answer(settings, b"5.1,3.5,1.4,0.2")[0][0] > 0.9


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", TEXT))))
def test_every_target_is_in_the_makefile(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))) + re.findall(r"(local_test/[\w.]+)", TEXT))
def test_every_path_is_there(path):
    assert (ROOT / path).exists()
