"""The image itself: what it says, what it holds, and where it runs."""

import json
import re

import pytest

from tests.live.conftest import LABEL, docker

pytestmark = pytest.mark.docker

LIBRARIES = "import flask, gevent, gunicorn, gunicorn_h1c, joblib, numpy, orjson, prometheus_client, sklearn.ensemble, spacy"
NLP = "nlp = spacy.blank('en'); nlp.add_pipe('ner').add_label('X'); nlp.initialize(); print([word.text for word in nlp('Hello there')])"


def run(image, *command, options=(), entrypoint=None):
    """A container to its end: (exit code, stdout, stderr)."""
    entry = ("--entrypoint", entrypoint) if entrypoint else ()
    ended = docker("run", "--rm", "--label", LABEL, *options, *entry, image, *command, check=False)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def configuration(image):
    return json.loads(docker("image", "inspect", image).stdout)[0]["Config"]


def test_labels(configuration):
    assert configuration["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert configuration["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_process_1_is_the_program(configuration):
    assert configuration["Entrypoint"] == ["python3", "-m", "container"]
    assert configuration["User"] == ""


def test_an_unknown_word_is_refused_in_one_line(image):
    code, out, error = run(image, "bogus")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"berth: cannot run 'bogus'; accepted are serve, train .*\n", error)


@pytest.mark.parametrize("word", ["serve", "train"])
def test_both_programs_are_on_path(image, word):
    assert run(image, "-c", f"command -v {word}", entrypoint="sh") == (0, f"/opt/program/{word}\n", "")


def test_no_compiler_and_no_caches(image):
    listed = "command -v gcc cc ld make; find / -xdev -name '*.deb' -o -xdev -path '/root/.cache/*' -o -xdev -path '/var/lib/apt/lists/*_*'"
    assert run(image, "-c", listed, entrypoint="sh")[1] == ""


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="root"),
        pytest.param(
            ("--user", "54321:54321", "--read-only", "--tmpfs", "/tmp", "--network", "none", "--cap-drop", "ALL"),
            id="any user, read-only, no network",
        ),
    ],
)
def test_libraries_work(image, options):
    code, out, error = run(image, "-W", "error::ImportWarning", "-c", f"{LIBRARIES}\n{NLP}", options=options, entrypoint="python3")
    assert (code, out) == (0, "['Hello', 'there']\n"), error


def test_all_bytecode_is_there(image):
    """A user who cannot write would compile every module at every start."""
    missing = (
        "import pathlib, sys\n"
        "roots = [pathlib.Path(path) for path in ('/opt/program/container', '/opt/venv')]\n"
        "for root in roots:\n"
        "    for path in root.rglob('*.py'):\n"
        "        cached = path.parent / '__pycache__' / f'{path.stem}.{sys.implementation.cache_tag}.pyc'\n"
        "        if not cached.exists(): print(path)\n"
    )
    code, out, error = run(image, "-c", missing, entrypoint="python3")
    assert (code, out) == (0, ""), error
