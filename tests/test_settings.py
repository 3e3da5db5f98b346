"""Every variable at its edges, and what is said of a value that cannot be used."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from container import settings
from container.settings import Settings, SettingsError

FIELDS = dict(settings.variables())


def test_an_empty_environment_gives_the_defaults():
    read = Settings.read({})
    assert read == Settings(search_path=os.defpath)
    assert (read.port, read.timeout, read.workers, read.model_dir) == (8080, 60.0, None, Path("/opt/ml/model"))
    assert {read.source(name) for name in FIELDS} == {"default"}


def test_the_environment_is_this_process_s_own_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9090")
    assert Settings.read().port == 9090


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("SAGEMAKER_BASE_DIR", "/srv/ml", "base_dir", Path("/srv/ml")),
        ("SAGEMAKER_BIND_TO_PORT", "1", "port", 1),
        ("SAGEMAKER_BIND_TO_PORT", "65535", "port", 65535),
        ("SAGEMAKER_BIND_TO_PORT", "  8081\t", "port", 8081),
        ("SAGEMAKER_SAFE_PORT_RANGE", "21000-22000", "safe_port_range", (21000, 22000)),
        ("SAGEMAKER_SAFE_PORT_RANGE", "5-5", "safe_port_range", (5, 5)),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "512", "workers", 512),
        ("MODEL_SERVER_WORKERS", "3", "workers", 3),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "0.1", "timeout", 0.1),
        ("MODEL_SERVER_TIMEOUT", "86400", "timeout", 86400.0),
        ("MODEL_SERVER_MAX_WAIT", "1e-3", "max_wait", 0.001),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "0", "max_payload_mb", 0),
        ("MODEL_SERVER_MAX_BATCH_SIZE", "1", "max_batch_size", 1),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv", "default_accept", "text/csv"),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "application/vnd.x+json; v=2", "default_accept", "application/vnd.x+json; v=2"),
        ("SAGEMAKER_PROGRAM", "serve me.py", "program", "serve me.py"),
        ("SAGEMAKER_SUBMIT_DIRECTORY", "/opt/ml/model/code", "submit_directory", "/opt/ml/model/code"),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "10", "log_level", 10),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", "Warn", "log_level", 30),
        ("MODEL_SERVER_PROFILE", "Serverless", "profile", "serverless"),
        ("MODEL_SERVER_PRELOAD", "NEVER", "preload", "never"),
        ("MODEL_SERVER_ALLOW_VERSION_MISMATCH", "1", "allow_version_mismatch", True),
        ("MODEL_SERVER_RUN_DIR", "/run/berth", "run_dir", Path("/run/berth")),
        ("SAGEMAKER_MULTI_MODEL", "True", "multi_model", True),
        ("SAGEMAKER_MULTI_MODEL", "false", "multi_model", False),
        ("SAGEMAKER_BATCH", "0", "batch", False),
        ("SAGEMAKER_BATCH_STRATEGY", "SingleRecord", "batch_strategy", "SINGLE_RECORD"),
        ("SAGEMAKER_BATCH_STRATEGY", "multi_record", "batch_strategy", "MULTI_RECORD"),
        ("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", "10000", "max_concurrent_transforms", 10000),
        ("TRAINING_JOB_NAME", "job-1", "training_job_name", "job-1"),
    ],
)
def test_a_value_is_read_and_its_source_is_known(variable, text, field, value):
    read = Settings.read({variable: text})
    assert getattr(read, field) == value
    assert read.source(field) == variable


@pytest.mark.parametrize(
    ("variable", "texts"),
    [
        ("SAGEMAKER_BIND_TO_PORT", ["0", "65536", "-1", "http", "80.5", "8 080", "0x50", "99999999999999999999"]),
        ("SAGEMAKER_SAFE_PORT_RANGE", ["21000", "2-1", "1-2-3", "0-5", "1-65536", "-", "a-b"]),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", ["0", "-2", "513", "2.0", "nan", "auto"]),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", ["0", "0.09", "-1", "nan", "inf", "-inf", "86401", "60s", "1e400"]),
        ("MODEL_SERVER_MAX_WAIT", ["0", "nan", "inf", "half"]),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", ["-1", "102401", "25MB", "nan"]),
        ("MODEL_SERVER_MAX_BATCH_SIZE", ["0", "65537", "true"]),
        ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", ["csv", "text/", "/csv", "text/csv,application/json", "*/*", "text/c sv", "text/csv;\na"]),
        ("SAGEMAKER_CONTAINER_LOG_LEVEL", ["0", "-10", "15", "51", "loud", "20.0"]),
        ("MODEL_SERVER_PROFILE", ["lambda", "auto,serverless"]),
        ("MODEL_SERVER_PRELOAD", ["true", "maybe"]),
        ("MODEL_SERVER_ALLOW_VERSION_MISMATCH", ["yes", "2", "on"]),
        ("SAGEMAKER_MULTI_MODEL", ["yes"]),
        ("SAGEMAKER_BATCH", ["no"]),
        ("SAGEMAKER_BATCH_STRATEGY", ["record", "multi record"]),
        ("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", ["0", "10001"]),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_accepted(variable, texts):
    accepted = next(known.accepts for known in FIELDS.values() if variable in known.names)
    for text in texts:
        with pytest.raises(SettingsError) as refused:
            Settings.read({variable: text})
        assert str(refused.value) == f"{variable}={text!r} cannot be used: accepted is {accepted}"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("text", ["", " \t"], ids=["empty", "spaces"])
def test_nothing_is_as_good_as_not_given(name, text):
    read = Settings.read(dict.fromkeys(FIELDS[name].names, text))
    assert getattr(read, name) == getattr(Settings(), name)
    assert read.source(name) == "default"


@pytest.mark.parametrize(
    ("environ", "timeout"),
    [
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "7", "MODEL_SERVER_TIMEOUT": "7"}, 7.0),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "7", "MODEL_SERVER_TIMEOUT": " 7.0 "}, 7.0),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "", "MODEL_SERVER_TIMEOUT": "7"}, 7.0),
    ],
)
def test_two_names_may_agree(environ, timeout):
    assert Settings.read(environ).timeout == timeout


def test_two_names_that_disagree_are_both_told():
    with pytest.raises(SettingsError, match=r"SAGEMAKER_MODEL_SERVER_WORKERS=2 and MODEL_SERVER_WORKERS=3 disagree.*set one of them"):
        Settings.read({"MODEL_SERVER_WORKERS": "3", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"})


def test_a_second_name_that_cannot_be_used_is_an_error_too():
    with pytest.raises(SettingsError, match=r"^MODEL_SERVER_WORKERS='x'"):
        Settings.read({"MODEL_SERVER_WORKERS": "x", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MODEL_SERVER_WORKER", "MODEL_SERVER_WORKER is not a variable of this server; did you mean MODEL_SERVER_WORKERS? Known are "),
        ("MODEL_SERVER_ZZZZZZZZZZZZZZZZZZZZ", "MODEL_SERVER_ZZZZZZZZZZZZZZZZZZZZ is not a variable of this server. Known are "),
    ],
)
def test_an_unknown_name_of_ours_is_a_mistake(name, said):
    with pytest.raises(SettingsError) as refused:
        Settings.read({name: ""})
    assert str(refused.value).startswith(said)
    assert "MODEL_SERVER_PRELOAD" in str(refused.value).removeprefix(said)


def test_unknown_names_of_others_are_none_of_our_business():
    assert Settings.read({"SAGEMAKER_REGION": "eu-central-1", "SM_HOSTS": "[]", "model_server_x": "1"}) == Settings.read({})


@pytest.mark.parametrize(
    ("given", "megabytes"),
    [({}, 25), ({"batch": True}, 100), ({"max_payload_mb": 0}, 0), ({"batch": True, "max_payload_mb": 6}, 6)],
)
def test_payload_limit(given, megabytes):
    assert Settings(**given).payload_limit_mb == megabytes


@pytest.mark.parametrize(("given", "seconds"), [({}, 30.0), ({"timeout": 9.0}, 4.5), ({"timeout": 9.0, "max_wait": 8.0}, 8.0)])
def test_wait_limit_is_half_the_timeout_unless_it_is_given(given, seconds):
    assert Settings(**given).wait_limit == seconds


def test_changed_settings_leave_the_first_and_what_follows_from_them_alone():
    first = Settings(timeout=10.0)
    assert first.wait_limit == 5.0
    assert first.but(timeout=20.0).wait_limit == 10.0
    assert first.timeout == 10.0
    with pytest.raises(FrozenInstanceError):
        first.timeout = 1.0  # type: ignore[misc]


def test_what_the_user_set_for_numeric_libraries_and_the_signs_of_serverless_are_noted():
    read = Settings.read({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "", "LAMBDA_TASK_ROOT": "/var/task", "PATH": "/bin"})
    assert read.threads_by_user == {"OMP_NUM_THREADS": "3"}
    assert read.serverless_signs == ("LAMBDA_TASK_ROOT",)
    assert read.search_path == "/bin"


def test_the_platforms_directories(tmp_path):
    here = Settings(base_dir=tmp_path)
    found = (here.model_dir, here.code_dir, here.config_dir, here.data_dir, here.output_data_dir, here.failure_file, here.checkpoint_dir)
    names = ("model", "code", "input/config", "input/data", "output/data", "output/failure", "checkpoints")
    assert found == tuple(tmp_path / name for name in names)


def test_no_name_stands_for_two_settings():
    names = [name for variable in FIELDS.values() for name in variable.names]
    assert len(names) == len(set(names))


def test_the_environment_of_a_child_has_the_changes_and_leaves_ours_alone(monkeypatch):
    monkeypatch.setenv("KEPT", "1")
    child = settings.environment(ADDED="2")
    assert (child["KEPT"], child["ADDED"]) == ("1", "2")
    assert "ADDED" not in os.environ


def test_the_module_prints_its_table():
    printed = subprocess.run([sys.executable, "-m", "container.settings"], capture_output=True, text=True, check=True, timeout=30)
    assert printed.stdout == settings.table() + "\n"
