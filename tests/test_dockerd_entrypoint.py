"""The entry point of the image with Multi Model Server."""

import os
import subprocess
import sys

import pytest

from container import dockerd_entrypoint
from container.settings import environment
from tests.trained import ROOT


def run(*arguments, **variables):
    command = [sys.executable, "-m", "container.dockerd_entrypoint", *arguments]
    environ = environment(PYTHONPATH=str(ROOT), **variables)
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        (["echo", "a b", "*"], 0, "a b *\n"),
        (["sh", "-c", "echo $$; exit 7"], 7, None),
        (["python3", "-c", "import sys; sys.exit(3)"], 3, ""),
    ],
)
def test_any_command_is_run_with_its_arguments_as_they_are(arguments, code, out):
    done = run(*arguments)
    assert done.returncode == code
    assert out is None or done.stdout == out


def test_a_command_takes_the_place_of_the_entry_point(monkeypatch):
    """So it is process 1, and gets the signals."""
    became = []
    monkeypatch.setattr(os, "execvp", lambda file, arguments: became.append((file, arguments)))
    dockerd_entrypoint.main(["train"])
    assert became == [("train", ["train"])]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "berth: no command came"),
        (["no-such-command"], 127, "berth: cannot run 'no-such-command': No such file"),
        (["/dev/null"], 127, "berth: cannot run '/dev/null': Permission denied"),
        (["serve", "--port", "80"], 1, "STARTUP FAILED: serve takes no arguments; '--port 80' came"),
    ],
)
def test_what_cannot_be_run_says_so_in_one_line(arguments, code, said):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "soon"}, "SAGEMAKER_MODEL_SERVER_TIMEOUT='soon' cannot be used"),
        ({"JAVA_HOME": "/nowhere"}, "JAVA_HOME=/nowhere has no bin/java"),
    ],
)
def test_what_cannot_be_served_says_why(variables, said):
    done = run("serve", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"STARTUP FAILED: {said}")
