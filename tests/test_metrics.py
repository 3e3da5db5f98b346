"""What workers count, as Prometheus reads it."""

import json
import os

import pytest
from prometheus_client.parser import text_string_to_metric_families

from container import metrics, resources
from container.metrics import Counters


def samples(text):
    """(name, labels in the order of their names) -> value of Prometheus text."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_answers_are_counted_by_status(tmp_path):
    counters = Counters.of_worker(tmp_path, 0, os.getpid())
    for status in (200, 200, 400, 503, 499, 418):
        counters.count(status)
    counters.answered(200, 0, 0, 0, 0, 1)
    found = samples(metrics.text(tmp_path))
    counted = {key[1]: value for key, value in found.items() if key[0] == "berth_requests_total"}
    assert {status: value for status, value in counted.items() if value} == {"200": 3, "400": 1, "503": 1, "other": 2}
    assert set(counted) == {*map(str, metrics.STATUSES), "other"}


@pytest.mark.parametrize(
    ("seconds", "first"),
    [(0.0, 0.0001), (0.0001, 0.0001), (0.00011, 0.00025), (0.003, 0.005), (60.0, 60.0), (60.1, float("inf")), (1e9, float("inf"))],
)
@pytest.mark.parametrize("phase", metrics.PHASES)
def test_each_phase_has_its_histogram(tmp_path, phase, seconds, first):
    spent = {name: seconds if name == phase else 0.0 for name in metrics.PHASES}
    Counters.of_worker(tmp_path, 0, 1).answered(200, **spent, batch_size=1)
    found = samples(metrics.text(tmp_path))
    counts = {float(key[1]): value for key, value in found.items() if key[::2] == ("berth_request_seconds_bucket", phase)}
    assert counts == {bound: float(bound >= first) for bound in (*metrics.SECONDS, float("inf"))}
    assert found["berth_request_seconds_count", phase] == 1
    assert found["berth_request_seconds_sum", phase] == pytest.approx(seconds)


@pytest.mark.parametrize(("size", "first"), [(1, 1), (2, 2), (3, 4), (128, 128), (129, float("inf"))])
def test_batch_sizes_have_theirs(tmp_path, size, first):
    Counters.of_worker(tmp_path, 0, 1).answered(200, 0, 0, 0, 0, size)
    found = samples(metrics.text(tmp_path))
    counts = {float(key[1]): value for key, value in found.items() if key[0] == "berth_batch_size_bucket"}
    assert counts == {bound: float(bound >= first) for bound in (*metrics.SIZES, float("inf"))}
    assert found[("berth_batch_size_sum",)] == size


def test_workers_are_summed_and_their_memory_is_told_apart(tmp_path):
    first, second = (Counters.of_worker(tmp_path, slot, os.getpid()) for slot in (0, 1))
    Counters.of_worker(tmp_path, 10, 2**22 + 1)  # no process has this number
    for counters, seconds in ((first, 1.5), (second, 2.5)):
        counters.loaded(seconds)
        counters.answered(200, 0.5, 0.1, 0.2, 0.3, 4)
    found = samples(metrics.text(tmp_path))
    assert found["berth_requests_total", "200"] == 2
    assert found["berth_request_seconds_sum", "queue"] == 1.0
    assert found[("berth_model_load_seconds",)] == 2.5
    assert found["berth_worker_memory_bytes", "0"] == pytest.approx(resources.rss(), rel=0.5)
    assert found["berth_worker_memory_bytes", "10"] == 0


def test_a_replacement_goes_on_counting_where_the_worker_before_it_ended(tmp_path):
    Counters.of_worker(tmp_path, 0, 100).count(200)
    Counters.of_worker(tmp_path, 0, os.getpid()).count(200)
    found = samples(metrics.text(tmp_path))
    assert found["berth_requests_total", "200"] == 2
    assert found["berth_worker_memory_bytes", "0"] > 0


@pytest.mark.parametrize("content", [None, b"", b"\0" * 8], ids=["no worker", "an empty file", "a short file"])
def test_before_anything_is_counted_all_is_zero(tmp_path, content):
    if content is not None:
        (tmp_path / "worker-0").write_bytes(content)
    found = samples(metrics.text(tmp_path))
    assert found["berth_requests_total", "200"] == 0
    assert set(found.values()) == {0}


def test_counts_without_a_file_stay_in_the_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Counters().answered(200, 0, 0, 0, 0, 1)
    assert list(tmp_path.iterdir()) == []


def told(directory, shard, *models):
    (directory / f"models-{shard}.json").write_text(json.dumps({"count": len(models), "models": models}))


def figures(name, **changes):
    return {"name": name, "loads": 1, "load_seconds": 0.5, "bytes": 1000, "hits": 7, "last_use": 5.0} | changes


def test_of_many_models_each_tells_its_figures(tmp_path):
    told(tmp_path, 0, figures('a/"b"\n\\', hits=3))
    told(tmp_path, 1, figures("c", loads=2), figures("d"))
    found = samples(metrics.text(tmp_path))
    assert (found["berth_models_loaded", "0"], found["berth_models_loaded", "1"]) == (1, 2)
    assert found["berth_models_invocations", 'a/"b"\n\\', "0"] == 3
    per_model = {key[0]: value for key, value in found.items() if key[1:] == ("c", "1")}
    assert per_model == {
        "berth_models_loads": 2,
        "berth_models_load_seconds": 0.5,
        "berth_models_artifact_bytes": 1000,
        "berth_models_invocations": 7,
        "berth_models_last_use_seconds": 5.0,
    }


def test_of_ten_thousand_models_those_that_were_used_last_are_told(tmp_path):
    for shard in (0, 1):
        told(tmp_path, shard, *(figures(f"m{number}", last_use=number) for number in range(shard, 300, 2)))
    found = samples(metrics.text(tmp_path))
    assert {key[1] for key in found if key[0] == "berth_models_loads"} == {f"m{number}" for number in range(200, 300)}
    assert found["berth_models_loaded", "0"] == 150


def test_of_one_model_there_is_no_word_of_many(tmp_path):
    assert b"berth_models" not in metrics.text(tmp_path)
