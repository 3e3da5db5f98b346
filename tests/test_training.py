"""The train program: what the platform tells a job, what the user's code is given, what is left behind, and how it ends."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import joblib
import pytest

from container import training, training_job
from container.settings import Settings, environment
from container.training_job import TrainingError
from container.training_script import arguments

TRAIN = Path(__file__).parent.parent / "train"
SAVES = "def train_fn(job):\n    (job.model_dir / 'weights').write_text('1')\n"
RETURNS = """
from sklearn.dummy import DummyClassifier

def train_fn(job):
    return DummyClassifier(strategy="constant", constant="a").fit([[0], [1]], ["a", "b"])
"""


def write(base, path, content):
    """A file below the base directory; anything but a string is written as JSON."""
    file = base / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def configure(base, **files):
    for name, content in files.items():
        write(base, f"input/config/{name}.json", content)


def run(base, script=SAVES, file="training.py", **settings):
    """Runs a job in this process; returns its exit code and the failure text, empty if there is none."""
    write(base, f"code/{file}", script)
    code = training.run(Settings(base_dir=base, **settings))
    failure = base / "output/failure"
    assert (base / "output/success").exists() == (code == 0)
    return code, failure.read_text() if failure.exists() else ""


def start(base, **variables):
    """The program itself, as the platform starts it."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN)],
        env=environment(SAGEMAKER_BASE_DIR=str(base), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# What the platform says


def test_without_files_there_is_one_host_and_the_directories_are_the_channels(base):
    write(base, "input/data/train/rows.csv", "1,2\n")
    job = training_job.read(Settings(base_dir=base))
    assert (job.hyperparameters, job.hosts, job.current_host, job.is_first_host) == ({}, ("algo-1",), "algo-1", True)
    assert [path.name for path in job.channel("train").files()] == ["rows.csv"]


def test_hyperparameters_are_typed_and_the_sdks_are_split_off(base):
    given = {
        "rate": "0.1",
        "n": "3",
        "on": "true",
        "off": "True",
        "list": "[1, 2]",
        "text": '"quoted"',
        "word": "plain",
        "none": "null",
        "real": 7,
    }
    configure(base, hyperparameters={**given, "sagemaker_program": '"a.py"'})
    job = training_job.read(Settings(base_dir=base))
    typed = {"rate": 0.1, "n": 3, "on": True, "off": "True", "list": [1, 2], "text": "quoted", "word": "plain", "none": None, "real": 7}
    assert job.hyperparameters == typed
    assert job.platform_parameters == {"sagemaker_program": "a.py"}


@pytest.mark.parametrize("name", ["resourceconfig", "resourceConfig"])
def test_hosts_under_both_names_of_the_file(base, name):
    configure(base, **{name: {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}})
    job = training_job.read(Settings(base_dir=base))
    assert (job.hosts, job.current_host, job.is_first_host) == (("algo-1", "algo-2"), "algo-2", False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"hyperparameters": "{"}, r"hyperparameters\.json is not JSON"),
        ({"hyperparameters": "[1]"}, "is list; a JSON object was expected"),
        ({"inputdataconfig": {"train": {"TrainingInputMode": "Tape"}}}, "'Tape' is unknown; accepted are File, FastFile and Pipe"),
        ({"inputdataconfig": {"train": "File"}}, "an object was expected"),
        ({"resourceconfig": {"current_host": "algo-3", "hosts": ["algo-1"]}}, "'algo-3' is not one of hosts, algo-1"),
    ],
)
def test_what_the_platform_would_not_write_is_refused_by_name(base, files, message):
    configure(base, **files)
    with pytest.raises(TrainingError, match=message):
        training_job.read(Settings(base_dir=base))


def channels(base):
    modes = {"file": "File", "fast": "FastFile", "empty": "File", "pipe": "Pipe", "gone": "File"}
    configure(base, inputdataconfig={name: {"TrainingInputMode": mode} for name, mode in modes.items()})
    for path in ("file/a.csv", "file/deep/b.csv", "file/.hidden", "file/.ipynb_checkpoints/a.csv", "fast/c.jsonl"):
        write(base, f"input/data/{path}", "x")
    (base / "input/data/empty").mkdir()
    return training_job.read(Settings(base_dir=base))


@pytest.mark.parametrize(("name", "names"), [("file", ["a.csv", "b.csv"]), ("fast", ["c.jsonl"])])
def test_files_of_a_channel(base, name, names):
    assert [path.name for path in channels(base).channel("train", name).files()] == names


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda job: job.channel("train", "training"), "no channel 'train' or 'training'; its channels: empty, fast, file, gone, pipe"),
        (lambda job: job.channel("empty").files(), "is empty"),
        (lambda job: job.channel("fast").files("*.csv"), r"no file '\*\.csv': .* holds c\.jsonl"),
        (lambda job: job.channel("gone").path, "is announced, but there is no"),
        (lambda job: job.channel("pipe").files(), r"Pipe mode and has no files: read its streams with channel\.epochs\(\)"),
        (lambda job: next(job.channel("file").epochs()), r"File mode: its files are in channel\.path"),
        (lambda job: next(job.channel("pipe").epochs(patience=0)), "pipe_0 did not appear within 0 s"),
    ],
)
def test_a_channel_says_what_it_has_not(base, ask, message):
    with pytest.raises(TrainingError, match=message):
        ask(channels(base))


def test_pipe_channel_is_read_epoch_by_epoch_and_waits_for_its_fifos(base):
    pipe = channels(base).channel("pipe")

    def platform():
        for epoch in range(2):
            fifo = base / f"input/data/pipe_{epoch}"
            os.mkfifo(fifo)
            fifo.write_bytes(b"epoch %d" % epoch)

    writer = threading.Thread(target=platform)
    writer.start()
    assert [stream.read() for stream in pipe.epochs(2, patience=20)] == [b"epoch 0", b"epoch 1"]
    writer.join()


def test_hosts_are_waited_for(base):
    configure(base, resourceconfig={"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]})
    job = training_job.read(Settings(base_dir=base))
    asked = []

    def resolve(host):
        asked.append(host)
        if asked.count("algo-2") == 1 and host == "algo-2":
            raise OSError("not yet")

    job.wait_for_hosts(resolve=resolve)
    assert asked == ["algo-1", "algo-2", "algo-2"]

    def unknown(host):
        raise OSError("unknown")

    with pytest.raises(TrainingError, match="'algo-1' did not resolve within 0 s"):
        job.wait_for_hosts(patience=0, resolve=unknown)


# Which script


def test_the_script_is_found_by_variable_then_hyperparameter_then_name(base, tmp_path):
    for path in ("code/training.py", "code/other.py", "elsewhere/other.py", "elsewhere/training.py"):
        write(base, path, SAVES)
    elsewhere = str(tmp_path / "elsewhere")
    table: list[tuple[dict[str, Any], dict[str, str], str]] = [
        ({}, {}, "code/training.py"),
        ({}, {"sagemaker_program": "other.py"}, "code/other.py"),
        ({"program": "training.py"}, {"sagemaker_program": "other.py"}, "code/training.py"),
        ({}, {"sagemaker_submit_directory": elsewhere}, "elsewhere/training.py"),
        (
            {"submit_directory": elsewhere},
            {"sagemaker_submit_directory": "s3://bucket/a.tar.gz", "sagemaker_program": "other.py"},
            "elsewhere/other.py",
        ),
    ]
    for variables, hyperparameters, expected in table:
        configure(base, hyperparameters=hyperparameters)
        settings = Settings(base_dir=base, **variables)
        assert training.find(settings, training_job.read(settings))[0] == (base / expected).resolve()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"program": "absent.py"}, "code/absent.py were looked for"),
        ({"submit_directory": "s3://bucket/code.tar.gz"}, "s3://bucket/code.tar.gz is not on this machine.*channel 'code'"),
        ({"program": "../outside.py"}, "is outside of"),
    ],
)
def test_a_script_that_is_not_there_is_a_clear_failure(base, settings, message):
    write(base, "outside.py", SAVES)
    code, failure = run(base, **settings)
    assert code == 1
    assert re.search(message, failure)


def test_code_baked_beside_the_program_is_the_last_resort(base, monkeypatch):
    write(base, "program/code/training.py", SAVES)
    monkeypatch.setattr(training, "PROGRAM_DIR", base / "program")
    assert training.run(Settings(base_dir=base)) == 0
    assert (base / "model/weights").exists()


# What train_fn leaves behind


def test_a_returned_estimator_is_saved_with_its_versions(base, caplog):
    caplog.set_level("INFO")
    assert run(base, RETURNS) == (0, "")
    assert joblib.load(base / "model/model.joblib").predict([[5]]) == ["a"]
    assert "sklearn" in json.loads((base / "model/versions.json").read_text())["libraries"]
    assert sorted(path.name for path in (base / "model").iterdir()) == ["model.joblib", "versions.json"]


def test_the_plan_is_logged(base, caplog):
    caplog.set_level("INFO")
    configure(
        base, hyperparameters={"depth": "3"}, inputdataconfig={"train": {}}, resourceconfig={"hosts": ["a", "b"], "current_host": "b"}
    )
    run(base)
    for line in ("training.py", "hyperparameters  depth=3", "channels         train (File)", "hosts            b of a, b"):
        assert line in caplog.text


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ("{'weights': 1}", "train_fn returned dict: accepted are a fitted scikit-learn estimator"),
        ("__import__('sklearn.dummy').dummy.DummyClassifier()", "DummyClassifier that is not fitted"),
    ],
)
def test_what_cannot_be_served_is_refused(base, returns, message):
    code, failure = run(base, f"def train_fn(job):\n    return {returns}\n")
    assert code == 1
    assert message in failure
    assert not list((base / "model").iterdir())


def test_only_the_first_host_saves_what_is_returned(base):
    configure(base, resourceconfig={"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]})
    assert run(base, RETURNS) == (0, "")
    assert not list((base / "model").iterdir())


def test_the_inference_script_goes_into_the_artifact_with_its_modules_and_without_data(base):
    for path in (
        "inference.py",
        "helper.py",
        "lib/deep/words.py",
        "lib/deep/words.txt",
        "requirements.txt",
        "data/train.csv",
        "labels.txt",
    ):
        write(base, f"code/{path}", "")
    assert run(base)[0] == 0
    copied = sorted(str(path.relative_to(base / "model/code")) for path in (base / "model/code").rglob("*") if path.is_file())
    assert copied == ["helper.py", "inference.py", "lib/deep/words.py", "lib/deep/words.txt", "requirements.txt", "training.py"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("def model_fn(model_dir): ...\n", ""),
        ("from helper import *\n", ""),
        ("from helper import model_fn\n", ""),
        ("# '\\d' is no escape\nmodel_fn = '\\d'\n", ""),
        ("import joblib\ndef model_fn(model_dir:\n", "is not valid Python: '(' was never closed (line 2): def model_fn(model_dir:"),
        ("return model_fn\n", "is not valid Python: 'return' outside function (line 1)"),
        ("model_fn = 0\0\n", "is not valid Python: source code"),
        ("", "has no model_fn(model_dir): a script must have one"),
    ],
)
def test_an_inference_script_that_serves_no_model_is_warned_of_and_the_model_kept(base, caplog, script, reason):
    write(base, "code/inference.py", script)
    assert run(base) == (0, "")
    assert (base / "model/code/inference.py").read_text() == script
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "serve" in record.getMessage()]
    assert len(warnings) == bool(reason)
    if reason:
        assert f"{base}/code/inference.py {reason}" in warnings[0]


def test_code_that_train_fn_wrote_itself_is_left_alone(base):
    write(base, "code/inference.py", "# beside\n")
    writes = "def train_fn(job):\n    (job.model_dir / 'code').mkdir()\n    (job.model_dir / 'code/inference.py').write_text('# own')\n"
    assert run(base, writes)[0] == 0
    assert (base / "model/code/inference.py").read_text() == "# own"


# How it fails


@pytest.mark.parametrize(
    ("script", "code", "expected"),
    [
        ("def train_fn(job):\n    return int('ten')\n", 1, ["ValueError: invalid literal", "training.py:2 in train_fn: return int('ten')"]),
        ("import json\ndef train_fn(job):\n    json.loads('')\n", 1, ["JSONDecodeError", "training.py:3 in train_fn", "raised in json/"]),
        ("def train_fn(job):\n    try: 1 / 0\n    except Exception as e: raise OSError('x')\n", 1, ["OSError: x", "caused by Zero"]),
        ("def train_fn(job):\n    raise SystemExit(7)\n", 7, ["SystemExit: 7"]),
        ("def train_fn(job):\n    raise MemoryError\n", 1, ["MemoryError: no memory left"]),
        ("import absent_library\ndef train_fn(job): pass\n", 1, ["imports absent_library, which is not installed", "training.py, line 1"]),
        ("def train_fn(job):\n    job.channel('train')\n", 1, ["no channel 'train'; its channels: none", "training.py:2"]),
        ("def train_fn(job):\n    raise OSError('\\udcff.csv')\n", 1, ["OSError: \\udcff.csv"]),
        ("def train_fn(job:\n", 1, ["training.py is not valid Python", "line 1"]),
        ("def train_fn(job):\n    raise ValueError('long ' * 1000)\n", 1, ["ValueError: long", "training.py:2 in train_fn"]),
    ],
)  # fmt: skip
def test_failure_says_in_1024_characters_what_and_where(base, script, code, expected):
    got, failure = run(base, script)
    assert got == code
    assert len(failure) <= 1024
    for part in expected:
        assert part in failure


def test_sys_exit_0_is_a_way_to_end(base):
    assert run(base, SAVES + "    raise SystemExit\n") == (0, "")


def test_a_failure_file_of_the_users_own_is_kept_and_an_old_one_is_not(base):
    write(base, "output/failure", "of the last run")
    own = "def train_fn(job):\n    (job.output_data_dir.parent / 'failure').write_text('mine')\n    raise ValueError('other')\n"
    assert run(base, own) == (1, "mine")
    assert run(base, SAVES) == (0, "")


# Scripts without train_fn

PRINTS = """
import json, os, sys
from pathlib import Path
seen = {name: value for name, value in os.environ.items() if name.startswith("SM_")}
Path(os.environ["SM_MODEL_DIR"], "seen.json").write_text(json.dumps({"env": seen, "args": sys.argv[1:], "cwd": os.getcwd()}))
"""


def test_a_script_is_run_as_the_training_toolkit_runs_it(base):
    configure(
        base,
        hyperparameters={
            "rate": "0.1",
            "n": "3",
            "flag": "true",
            "map": '{"b": 1, "a": 2}',
            "sagemaker_job_name": '"job-1"',
            "none": "null",
        },
        inputdataconfig={"train": {"TrainingInputMode": "File"}, "my-data": {"TrainingInputMode": "Pipe"}},
        resourceconfig={
            "current_host": "algo-1",
            "hosts": ["algo-1"],
            "current_instance_type": "ml.m5.large",
            "current_group_name": "one",
            "instance_groups": [{"instance_group_name": "one", "instance_type": "ml.m5.large", "hosts": ["algo-1"]}],
        },
    )
    assert run(base, PRINTS, "train.py", program="train.py") == (0, "")
    seen = json.loads((base / "model/seen.json").read_text())
    assert seen["args"] == ["--flag", "True", "--map", "a=2,b=1", "-n", "3", "--none", "", "--rate", "0.1"]
    assert seen["cwd"] == str((base / "code").resolve())
    expected = {
        "SM_MODEL_DIR": str(base / "model"),
        "SM_OUTPUT_DATA_DIR": str(base / "output/data"),
        "SM_INPUT_CONFIG_DIR": str(base / "input/config"),
        "SM_CHANNEL_TRAIN": str(base / "input/data/train"),
        "SM_CHANNEL_MY-DATA": str(base / "input/data/my-data"),
        "SM_CHANNELS": '["my-data","train"]',
        "SM_HOSTS": '["algo-1"]',
        "SM_CURRENT_HOST": "algo-1",
        "SM_CURRENT_INSTANCE_GROUP": "one",
        "SM_CURRENT_INSTANCE_GROUP_HOSTS": '["algo-1"]',
        "SM_IS_HETERO": "false",
        "SM_NETWORK_INTERFACE_NAME": "eth0",
        "SM_HP_RATE": "0.1",
        "SM_HP_FLAG": "true",
        "SM_HP_MAP": '{"a":2,"b":1}',
        "SM_HPS": '{"flag":true,"map":{"a":2,"b":1},"n":3,"none":null,"rate":0.1}',
        "SM_FRAMEWORK_PARAMS": '{"sagemaker_job_name":"job-1"}',
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_MODULE_NAME": "train",
        "SM_LOG_LEVEL": "20",
    }
    assert {name: seen["env"].get(name) for name in expected} == expected
    described = json.loads(seen["env"]["SM_TRAINING_ENV"])
    assert described["channel_input_dirs"]["train"] == str(base / "input/data/train")
    assert (described["job_name"], described["is_master"], described["hyperparameters"]["n"]) == ("job-1", True, 3)
    assert (base / "model/versions.json").exists()


def test_arguments_of_other_values():
    assert arguments({"list": [1, "a"], "x": False, "float": 1e-05}) == ["--float", "1e-05", "--list", "[1, 'a']", "-x", "False"]


@pytest.mark.parametrize(
    ("script", "code", "expected"),
    [
        ("import sys; print('no such column', file=sys.stderr); sys.exit(42)", 42, ["train.py exited with code 42", "no such column"]),
        (
            "def main():\n    raise ValueError('bad rate')\nmain()\n",
            1,
            ["train.py exited with code 1\nValueError: bad rate", "line 2, in main"],
        ),
        ("import os; os.kill(os.getpid(), 9)", 137, ["was killed by SIGKILL: most often the machine had no memory left"]),
        ("import os; os.kill(os.getpid(), 11)", 139, ["was ended by signal 11, Segmentation fault"]),
    ],
)
def test_a_script_fails_with_its_own_code_and_last_words(base, script, code, expected):
    got, failure = run(base, script, "train.py", program="train.py")
    assert got == code
    for part in expected:
        assert part in failure


def test_a_script_of_another_kind_runs_if_it_is_executable(base):
    script = "#!/bin/sh\necho trained > $SM_MODEL_DIR/weights\n"
    code, failure = run(base, script, "train.sh", program="train.sh")
    assert code == 1
    assert "executable with a #! line" in failure
    (base / "code/train.sh").chmod(0o755)
    assert run(base, script, "train.sh", program="train.sh") == (0, "")
    assert (base / "model/weights").read_text() == "trained\n"


# The program itself, and SIGTERM

POLLS = """
import os, signal
def train_fn(job):
    assert not job.stopping()
    os.kill(os.getpid(), signal.SIGTERM)
    for step in range(10**9):
        if job.stopping():
            (job.checkpoint_dir / "state").write_text("saved")
            (job.model_dir / "weights").write_text("1")
            return
"""
FINALLY = """
import os, signal
def train_fn(job):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass
    except Exception:
        raise SystemExit("this is no Exception")
    finally:
        (job.checkpoint_dir / "state").write_text("saved")
        (job.model_dir / "weights").write_text("1")
"""
HANDLES = """
import os, signal
from pathlib import Path
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getppid(), signal.SIGTERM)
assert signal.sigtimedwait({signal.SIGTERM}, 30)
Path(os.environ["SM_MODEL_DIR"], "weights").write_text("1")
Path(os.environ["SM_MODEL_DIR"], "../checkpoints/state").write_text("saved")
"""


@pytest.mark.parametrize(("script", "code"), [(POLLS, 0), (FINALLY, 143), (HANDLES, 0)], ids=["asks", "finally", "script"])
def test_sigterm_leaves_the_chance_to_save(base, script, code):
    write(base, "code/training.py", script)
    write(base, "code/inference.py", "")
    process = start(base)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert (base / "checkpoints/state").read_text() == "saved"
    assert (base / "model/versions.json").exists()
    assert (base / "model/code/inference.py").exists()
    failure = base / "output/failure"
    assert failure.read_text().startswith("stopped by SIGTERM before train_fn had returned") if code else not failure.exists()


def test_a_train_fn_that_watches_but_does_not_return_is_interrupted_in_time(base, monkeypatch):
    monkeypatch.setattr(training, "STOP_GRACE", 1)
    code, failure = run(base, POLLS.replace("if job.stopping()", "if False"))
    assert code == 143
    assert "did not return within 1 s" in failure


def test_the_program_prints_metrics_as_they_come_and_exits_with_the_code(base):
    write(base, "code/training.py", "def train_fn(job):\n    print('eval:f1=0.5;')\n    raise KeyError('column')\n")
    process = start(base)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "eval:f1=0.5;" in output.splitlines()
    assert "TRAINING FAILED: KeyError: 'column'" in output
    assert (base / "output/failure").read_text().startswith("KeyError: 'column'\n  at code/training.py:3 in train_fn")


def test_a_variable_that_cannot_be_used_is_the_jobs_failure(base):
    process = start(base, SAGEMAKER_CONTAINER_LOG_LEVEL="loud")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "TRAINING FAILED: SAGEMAKER_CONTAINER_LOG_LEVEL='loud'" in output
    assert (base / "output/failure").read_text().startswith("SAGEMAKER_CONTAINER_LOG_LEVEL='loud' cannot be used")


@pytest.mark.parametrize(
    ("given", "seed"), [({"PYTHONHASHSEED": ""}, "6640"), ({"PYTHONHASHSEED": "random"}, "6640"), ({"PYTHONHASHSEED": "5"}, "5")]
)
def test_texts_hash_alike_in_every_job(base, given, seed):
    write(base, "code/training.py", "import os\ndef train_fn(job): print(os.environ['PYTHONHASHSEED'], os.getpid())\n")
    with start(base, **given) as job:
        assert f"{seed} {job.pid}\n" in job.communicate(timeout=30)[0]


def test_the_program_takes_no_arguments(capsys):
    assert training.main(["now"]) == 2
    assert "train takes no arguments; it was given now" in capsys.readouterr().err


class Constant:
    """A model of no library."""

    lock: Any = None

    def predict(self, rows):
        return [1] * len(rows)


def test_any_object_with_predict_is_saved_whole_or_not_at_all(tmp_path):
    assert joblib.load(training.save(Constant(), tmp_path)).predict([[0]]) == [1]
    broken = Constant()
    broken.lock = threading.Lock()
    (tmp_path / "model.joblib").unlink()
    with pytest.raises(TypeError, match="cannot pickle"):
        training.save(broken, tmp_path)
    assert not list(tmp_path.iterdir())
