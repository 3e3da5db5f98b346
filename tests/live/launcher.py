"""Starts servers for tests, here or in containers, each with a model of its own, and leaves nothing behind."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.live.server import ROOT, DockerServer, HostServer, Server

SCRIPTS = ROOT / "tests" / "fixtureapps"

on_host = pytest.mark.parametrize("where", ["host"], indirect=True)
"""Only on this machine: the image would show the same, more slowly."""
in_docker = pytest.mark.parametrize("where", [pytest.param("docker", marks=pytest.mark.docker)], indirect=True)
"""Only in the image: it is about containers."""


class Launcher(AbstractContextManager["Launcher"]):
    """image: the image to run; None runs on this machine. label: for the containers. All that was started ends with the block."""

    def __init__(self, image: str | None, label: str) -> None:
        self._image, self._label = image, label
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # not pytest's: nginx, started by root, becomes another user and must be able to enter
        self._folder = Path(tempfile.mkdtemp(prefix="berth-live-"))
        self._folder.chmod(0o755)
        self._stack.callback(shutil.rmtree, self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(
        self,
        script: str | None = None,
        *,
        model: Callable[[Path], object] | None = None,
        env: Mapping[str, str] | None = None,
        docker: Sequence[str] = (),
        ready: bool = True,
    ) -> Server:
        """A server of a script of tests/fixtureapps, or of what `model` puts into the model directory; two workers unless env says.

        docker: further arguments of `docker run`. ready: wait until it is.
        """
        base = self.base_dir()
        if script:
            (base / "model" / "code").mkdir()
            self.copy(script, base / "model" / "code" / "inference.py")
        if model:
            model(base / "model")
        server = self.run("serve", base, {"SAGEMAKER_MODEL_SERVER_WORKERS": "2"} | dict(env or {}), docker)
        if ready:
            server.await_ready()
        return server

    @staticmethod
    def copy(script: str, path: Path) -> None:
        """A script of tests/fixtureapps, as a user's file."""
        shutil.copy(SCRIPTS / f"{script}.py", path)

    def base_dir(self, *directories: str) -> Path:
        """What /opt/ml is to be: a new directory with an empty model directory, and others."""
        base = Path(tempfile.mkdtemp(prefix="ml-", dir=self._folder))
        base.chmod(0o755)
        for name in ("model", *directories):
            (base / name).mkdir(parents=True)
        return base

    def run(self, word: str, base: Path, env: Mapping[str, str], docker: Sequence[str] = ()) -> Server:
        """`serve` or `train` with the files of a base directory."""
        server: Server
        if self._image is None:
            folder = base / "tmp"
            folder.mkdir()
            server = HostServer(base, folder, env, word)
        else:
            server = DockerServer(self._image, self._label, base, env, docker, word)
        self._stack.callback(server.remove)
        return server

    def leftovers(self) -> list[str]:
        """What the servers on this machine have left in their temporary directories, besides their output."""
        return [str(path) for path in self._folder.glob("ml-*/tmp/*") if path.name not in ("stdout", "stderr")]
