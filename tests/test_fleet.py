"""fleet.train in this process: what is fitted, what a failure does, what the next run finds, how it stops. tests/live has the processes."""

import pickle
import re
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from container import bundles, fleet, manifest, training
from container.pools import Pool
from container.settings import Settings
from tests import fleets


class Died(Exception):
    """In the place of the pool's own."""


@pytest.fixture(autouse=True)
def pools(monkeypatch):
    """Calls are made here, at once. Returns the batches of each pool that was opened; `deadly` keys end it, as a crash would."""
    opened = []

    @contextmanager
    def local(plan, settings, shared):
        monkeypatch.setattr("container.fitting._loaded", {})  # a process of a pool is new
        batches: list[list[str]] = []
        opened.append(batches)
        dead: list[object] = []
        work = pickle.loads(pickle.dumps(shared))

        def submit(function, batch):
            batches.append([key for key, _ in batch])
            future: Future = Future()
            deadly = next((index for index, (key, _) in enumerate(batch) if key in DEADLY), None)
            if dead or deadly is not None:
                if not dead:
                    function(work, batch[:deadly])  # nobody is told of them
                dead.append(batch)
                future.set_exception(Died("SIGKILL(-9)"))
            else:
                future.set_result(function(work, batch))
            return future

        yield Pool(submit, lambda: plan.workers, (Died,), True, str)

    monkeypatch.setattr("container.pools.local", local)
    monkeypatch.setattr(fleet, "BATCH_SECONDS", 1000.0)
    yield opened
    DEADLY.clear()


DEADLY: set[str] = set()


def run(base, script=fleets.SCRIPT, keys=5, **changes):
    """A job in this process: exit code, failure text, entries by key."""
    fleets.write(base, keys, script, **changes)
    code = training.run(Settings(base_dir=base, workers=2))
    failure = base / "output/failure"
    found = base / "checkpoints/manifest.jsonl"
    entries = {entry.key: entry for entry in manifest.read(found)} if found.exists() else {}
    return code, failure.read_text() if failure.exists() else "", entries


def test_each_key_has_an_artifact_and_a_line(base, caplog):
    code, failure, entries = run(base)
    assert (code, failure) == (0, "")
    assert sorted(fleets.artifacts(base)) == [f"c{number}.tar.gz" for number in range(5)]
    assert "failed; each is in" not in caplog.text
    assert [(entry.key, entry.rows, entry.metrics, entry.file) for entry in entries.values()] == [
        (f"c{number}", 2, {"slope": number + 0.5}, f"c{number}.tar.gz") for number in range(5)
    ]
    assert (base / "model/manifest.jsonl").read_bytes() == (base / "checkpoints/manifest.jsonl").read_bytes()


def test_the_artifact_has_the_code_that_serves_it(base):
    run(base, keys=1)
    record = bundles.read(base / "checkpoints/c0.tar.gz")
    assert sorted(record.sha256) == ["code/inference.py", "code/line.py", "code/training.py", "model.joblib", "versions.json"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("def model_fn(model_dir)\n", "is not valid Python: expected ':' (line 1)"),
        ("def predict_fn(data, model): ...\n", "has no model_fn"),
    ],
)
def test_code_that_could_serve_no_artifact_is_refused_before_the_first_fit(base, monkeypatch, pools, script, reason):
    monkeypatch.setattr(fleets, "INFERENCE", script)
    code, failure, entries = run(base)
    assert (code, pools, entries) == (1, [], {})
    assert failure.startswith(f"the artifacts could not be served: {base}/code/inference.py {reason}")


def test_what_is_finished_is_not_made_again(base, caplog):
    caplog.set_level("INFO")
    _, _, before = run(base)
    bytes_before = fleets.artifacts(base)
    _, _, after = run(base)
    assert after == before, "seconds too"
    assert fleets.artifacts(base) == bytes_before
    assert "5 of them found finished" in caplog.text


def test_models_that_nobody_may_keep_are_warned_of_once(base, caplog):
    warning = "was not there when the job began. If the job has no CheckpointConfig"
    run(base)
    assert caplog.text.count(warning) == 1
    caplog.clear()
    run(base)
    assert warning not in caplog.text


def test_artifacts_without_a_manifest_are_found(base, caplog):
    caplog.set_level("INFO")
    _, _, before = run(base)
    (base / "checkpoints/manifest.jsonl").unlink()
    _, _, after = run(base)
    assert [entry.sha256 for entry in after.values()] == [entry.sha256 for entry in before.values()]
    assert "5 of them found finished" in caplog.text


def changed_helper(base):
    return {"script": fleets.SCRIPT + "\n# changed\n"}


def broken_artifact(base):
    path = base / "checkpoints/c1.tar.gz"
    path.write_bytes(path.read_bytes()[:-9])
    return {}


def removed_artifact(base):
    (base / "checkpoints/c1.tar.gz").unlink()
    return {}


@pytest.mark.parametrize(
    ("change", "fitted"),
    [
        (lambda base: {}, 0),
        (lambda base: {"max_failed": 0.5}, 0),
        (broken_artifact, 1),
        (removed_artifact, 1),
        (changed_helper, 5),
        (lambda base: {"alpha": 1}, 5),
    ],
)
def test_what_has_changed_is_made_again(base, caplog, change, fitted):
    caplog.set_level("INFO")
    run(base)
    changes = change(base)
    caplog.clear()
    code, _, _ = run(base, **changes)
    assert code == 0
    expected = f"{5 - fitted} of them found finished" if fitted < 5 else "5 of 5 done, 0 failed"
    assert expected in caplog.text


def test_changed_input_is_fitted_again(base, caplog):
    caplog.set_level("INFO")
    run(base)
    fleets.put(base / "input/data/train/c1.csv", "x,y\n1,9\n")
    training.run(Settings(base_dir=base))
    assert "4 of them found finished" in caplog.text
    assert bundles.read(base / "checkpoints/c1.tar.gz").metrics == {"slope": 9}


def test_unfinished_files_of_a_killed_run_are_removed(base):
    fleets.put(base / "checkpoints/.algo-1-x.unfinished", "half")
    run(base)
    assert not [name for name in fleets.artifacts(base) if name.startswith(".")]


FAILS = fleets.SCRIPT.replace(
    "    slope =",
    """    number = int(key[1:])
    if number in hyperparameters.get("bad", []):
        raise ValueError(f"no {key}")
    if number in hyperparameters.get("none", []):
        return None
    slope =""",
)


def test_one_key_that_fails_fails_alone(base, caplog):
    code, _, entries = run(base, FAILS, keys=10, bad=[3])
    assert code == 0
    assert (
        f"fleet: 1 of 10 keys failed; each is in {base}/checkpoints/manifest.jsonl:\n1 x ValueError: no c3 (training.py:8 in fit), as 'c3'"
    ) in caplog.messages
    assert entries["c3"].error == "ValueError: no c3 (training.py:8 in fit)"
    assert (entries["c3"].rows, entries["c3"].file) == (2, None)
    assert len(fleets.artifacts(base)) == 9


def test_too_many_failures_fail_the_job_with_the_commonest_causes(base, caplog):
    code, failure, _ = run(base, FAILS, keys=10, bad=[1, 3, 4], none=[2], max_failed=0.3)
    assert code == 1
    assert "each is in" not in caplog.text, "the failure says it"
    first, *causes = failure.splitlines()
    assert re.fullmatch(r"4 of 10 keys failed \(\d+ were tried\), which is more than max_failed=0.3 allows:", first)
    assert causes[0] == "3 x ValueError: no c1 (training.py:8 in fit), as 'c1'"
    assert causes[1].startswith("1 x TypeError: fit returned None; a model was expected, or (model, {'metric': number})")


def test_a_long_message_does_not_hide_its_line(base):
    _, failure, _ = run(base, FAILS.replace('f"no {key}"', '"long " * 50'), bad=[1])
    assert failure.splitlines()[1] == f"1 x {('ValueError: ' + 'long ' * 50)[:200]}... (training.py:8 in fit), as 'c1'"


@pytest.mark.parametrize(("share", "code"), [(0, 1), (0.1, 1), (0.2, 0), (1, 0)])
def test_max_failed_is_a_share_of_the_keys(base, share, code):
    assert run(base, FAILS, keys=10, bad=[0, 9], max_failed=share)[0] == code


def test_a_share_is_not_rounded(base):
    assert run(base, FAILS, keys=100, bad=list(range(29)), max_failed=0.29)[0] == 0


@pytest.mark.parametrize("value", [-1, 1.5, True, "many", None])
def test_max_failed_that_is_no_share_is_refused(base, value):
    code, failure, _ = run(base, max_failed=value)
    assert code == 1
    assert f"max_failed is {value!r}; accepted is a share of the keys, 0 to 1" in failure


def test_max_failed_is_looked_at_before_anything_is_split(base):
    fleets.write(base, script=fleets.SCRIPT.replace("job, fit", "job, fit, column='none'"), max_failed=2)
    assert training.run(Settings(base_dir=base)) == 1
    assert "max_failed is 2" in (base / "output/failure").read_text()


def test_a_manifest_that_cannot_be_written_fails_the_job_with_its_name(base, monkeypatch):
    def add(self, entry):
        raise manifest.ManifestError(f"{self.path} cannot be written: No space left on device")

    monkeypatch.setattr(manifest.Manifest, "add", add)
    code, failure, _ = run(base)
    assert code == 1
    assert failure.startswith(f"{base}/checkpoints/manifest.jsonl cannot be written: No space left on device\n  at code/training.py")


def test_a_directory_that_cannot_be_written_to_is_named(base):
    code, failure, _ = run(base, fleets.SCRIPT.replace("job, fit", "job, fit, directory=job.model_dir / '../code/line.py'"))
    assert code == 1
    assert failure.startswith(f"{base}/model/../code/line.py cannot be written to: File exists")


def test_a_process_that_dies_takes_only_the_guilty_key(base, pools, caplog):
    caplog.set_level("INFO")
    DEADLY.add("c9")
    code, _, entries = run(base, keys=20)
    assert code == 0
    assert entries["c9"].error == (
        "ProcessDied: the process that fitted it died, exit code SIGKILL(-9); SIGKILL is most often for want of memory (outside of Python)"
    )
    assert [key for key, entry in entries.items() if entry.seconds is None] == ["c9"]
    assert "found finished" not in caplog.text
    assert len(fleets.artifacts(base)) == 19
    assert pools[0][-1][0] != "c9", "others were in flight"
    assert all(len(batch) == 1 for batches in pools[1:-1] for batch in batches), "one by one"


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ("", ""),
        ("EXIT(3)", ", exit code EXIT(3)"),
        ("SIGSEGV(-11)", ", exit code SIGSEGV(-11)"),
        ("SIGKILL(-9), EXIT(3)", ", exit code SIGKILL(-9), EXIT(3); SIGKILL is most often for want of memory"),
    ],
)
def test_want_of_memory_is_supposed_where_the_kernel_kills(codes, told):
    assert fleet._ending(codes) == f"the process that fitted it died{told}"


def test_hosts_take_their_part(base):
    hosts = ("algo-1", "algo-2")
    done = []
    for host in hosts:
        code, _, _ = run(base / host, keys=12, hosts=hosts, host=host)
        assert code == 0
        assert (base / host / "model" / f"manifest-{host}.jsonl").exists()
        done.append({name for name in fleets.artifacts(base / host) if name.endswith(".tar.gz")})
    assert not done[0] & done[1]
    assert len(done[0] | done[1]) == 12


def test_a_host_without_keys_ends_well(base):
    fleets.write(base, 0, hosts=("algo-1", "algo-2"), host="algo-2")
    fleets.put(base / "input/config/inputdataconfig.json", '{"train": {"S3DistributionType": "ShardedByS3Key"}}')
    assert training.run(Settings(base_dir=base)) == 0
    assert (base / "model/manifest-algo-2.jsonl").read_text() == ""


@pytest.fixture
def cluster(base, monkeypatch):
    """Returns a function that runs a job whose pool is a cluster of `width` workers, where each call ends as `error`, or never."""

    def on(width, error=None):
        @contextmanager
        def dask(scheduler, file, shared):
            def submit(function, batch):
                future: Future = Future()
                if error is not None:
                    future.set_exception(error)
                return future

            yield Pool(submit, lambda: width, (Died,), False)

        monkeypatch.setattr("container.pools.dask", dask)
        monkeypatch.setenv("FLEET_DASK_SCHEDULER", "tcp://x:1")
        assert run(base)[0] == 1
        return (base / "output/failure").read_text()

    return on


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'container'"), FileNotFoundError(2, "No such file", "/shared")])
def test_a_dask_worker_that_comes_later_and_is_of_no_use_is_told_of(cluster, error):
    failure = cluster(1, error)
    assert failure.startswith(f"a Dask worker of tcp://x:1 cannot run this program ({error!r}): start workers from this image")


def test_a_dask_cluster_without_workers_is_not_waited_for_without_end(cluster, monkeypatch):
    monkeypatch.setattr(fleet, "HEARTBEAT", 0.01)
    monkeypatch.setattr("container.pools.SCHEDULER_SECONDS", 0.05)
    assert cluster(0).startswith("the Dask cluster tcp://x:1 has had no worker for 0.05 s")


STOPS = fleets.SCRIPT.replace(
    "    slope =",
    """    if key == "c3":
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
    slope =""",
)


def test_a_stop_ends_what_is_in_flight_and_begins_nothing(base, monkeypatch):
    monkeypatch.setattr(fleet, "BATCH_SECONDS", 0.0)
    code, failure, entries = run(base, STOPS, keys=12)
    assert (code, failure) == (0, "")
    assert 3 <= len(entries) < 12
    assert sorted(fleets.artifacts(base)) == sorted(str(entry.file) for entry in entries.values())
    code, _, entries = run(base, keys=12)
    assert len(entries) == 12


def test_a_script_that_cannot_be_imported_there_fails_the_job(base, monkeypatch):
    code, failure, _ = run(base, "import nothing_of_this_name\ndef train_fn(job): ...\n")
    assert code == 1
    assert "nothing_of_this_name" in failure


CLOSURE = """
from container import fleet

class Constant:
    def __init__(self, value):
        self.value = value
    def predict(self, rows):
        return self.value

def train_fn(job):
    offset = 7
    summary = fleet.train(job, lambda key, data, hyperparameters: Constant(offset), directory=job.model_dir)
    print(summary.keys, summary.made, summary.stopped, summary.directory == job.model_dir)
"""


def test_fit_may_be_any_function_and_the_place_any_directory(base, capsys, caplog):
    code, _, _ = run(base, CLOSURE)
    assert code == 0
    assert "CheckpointConfig" not in caplog.text
    assert "5 5 False True" in capsys.readouterr().out
    assert len(list((base / "model").glob("*.tar.gz"))) == 5
