"""Which keys are a host's: by the platform's distribution, by a stable split, or out of one table."""

import gzip
from pathlib import Path

import duckdb
import pytest

from container import shards
from container.settings import Settings
from container.training_job import Channel, TrainingError, TrainingJob

HOSTS = ("algo-1", "algo-2", "algo-3")


def job(directory: Path, host: str = "algo-1", hosts: tuple[str, ...] = ("algo-1",), distribution: str = "FullyReplicated") -> TrainingJob:
    channel = Channel("train", directory, description={"S3DistributionType": distribution})
    return TrainingJob("", {}, {}, {"train": channel}, hosts, host, {}, directory, directory, directory)


def mine(job: TrainingJob, column: str | None = None, **settings: str) -> dict[str, str]:
    """Key -> text of its file."""
    with shards.mine(job, "train", column, Settings(**settings)) as found:  # type: ignore[arg-type]
        return {
            key: (gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()) for key, path in found.items()
        }


def write(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")
    return directory


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("c1.csv", "c1"),
        ("c1.csv.gz", "c1"),
        ("c1.parquet", "c1"),
        ("C1.CSV.GZ", "C1"),
        ("deep/er/c1.csv", "c1"),
        ("a%2Fb.csv", "a/b"),
        ("shop 1.north.csv", "shop 1.north"),
    ],
)
def test_a_file_names_its_key(tmp_path, name, key):
    assert list(shards.files(write(tmp_path, name).rglob("*.*"))) == [key]


def test_keys_are_sorted_and_other_files_are_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, "b.csv", "a.csv", "_SUCCESS", "c.txt")
    assert list(shards.files(sorted(tmp_path.iterdir()))) == ["a", "b"]
    assert "2 files are no input, as _SUCCESS" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.csv", "a.parquet"], r"two files are for the key 'a', .*a\.csv and .*a\.parquet"),
        (["x/a.csv", "y/a.csv"], "two files are for the key 'a'"),
        (["a.txt"], r"no file ends in \.csv, \.csv\.gz, \.parquet, one for each key; there are a\.txt"),
        (["%FF.csv"], "is for no key"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, names, message):
    with pytest.raises(TrainingError, match=message):
        shards.files(sorted(path for path in write(tmp_path, *names).rglob("*") if path.is_file()))


def test_each_key_is_one_hosts(tmp_path):
    write(tmp_path, *(f"c{number}.csv" for number in range(90)))
    parts = [set(mine(job(tmp_path, host, HOSTS))) for host in HOSTS]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 90
    assert all(15 < len(part) < 45 for part in parts)


def test_the_split_does_not_depend_on_the_process_nor_on_the_order_of_the_hosts(tmp_path):
    write(tmp_path, *(f"c{number}.csv" for number in range(8)))
    assert list(mine(job(tmp_path, "algo-2", HOSTS[::-1]))) == ["c4", "c5", "c6"]


def test_what_the_platform_has_split_is_this_hosts(tmp_path):
    write(tmp_path, "a.csv", "b.csv", "c.csv")
    assert list(mine(job(tmp_path, "algo-2", HOSTS, "ShardedByS3Key"))) == ["a", "b", "c"]


def test_the_file_of_a_key_that_begins_with_an_underscore_is_this_hosts(tmp_path):
    write(tmp_path, "_z.csv", "_SUCCESS")
    assert list(mine(job(tmp_path, "algo-2", HOSTS, "ShardedByS3Key"))) == ["_z"]


@pytest.mark.parametrize("names", [[], ["_SUCCESS"], [".hidden"], [".ipynb_checkpoints/a.csv"]])
def test_a_host_for_which_no_file_is_left_has_no_keys(tmp_path, caplog, names):
    write(tmp_path, *names)
    assert mine(job(tmp_path, "algo-2", HOSTS, "ShardedByS3Key")) == {}
    assert mine(job(tmp_path / "not made", "algo-2", HOSTS, "ShardedByS3Key")) == {}
    assert "channel 'train' is ShardedByS3Key, and has no file for algo-2" in caplog.text


@pytest.mark.parametrize(
    ("names", "changes"),
    [
        ([], {"distribution": "ShardedByS3Key"}),
        ([], {"hosts": HOSTS}),
        (["a.txt"], {"hosts": HOSTS, "distribution": "ShardedByS3Key"}),
    ],
)
def test_no_file_at_all_is_an_error(tmp_path, names, changes):
    with pytest.raises(TrainingError, match=r"has no file|no file ends in"):
        mine(job(write(tmp_path, *names), **changes))


TABLE = "id,y\n7,1\n007,2\na/b,3\n7,4\n"


def test_a_table_is_split_by_a_column(tmp_path):
    (tmp_path / "all.csv").write_text(TABLE)
    assert mine(job(tmp_path), "id") == {"007": "id,y\n007,2\n", "7": "id,y\n7,1\n7,4\n", "a/b": "id,y\na/b,3\n"}


def test_what_a_killed_split_left_is_removed_and_what_another_uses_is_not(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    table = write(tmp_path / "channel", "all.csv")
    (table / "all.csv").write_text(TABLE)
    write(tmp_path / "tmp", "fleet-split-dead/a.csv", "others/a.csv")
    with shards.mine(job(table), "train", "id", Settings()) as found:
        assert not (tmp_path / "tmp/fleet-split-dead").exists()
        mine(job(table), "id")
        assert all(path.exists() for path in found.values())
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["others"]


def test_a_table_of_parquet_keeps_its_types(tmp_path):
    (tmp_path / "_SUCCESS").touch()
    duckdb.sql(f"COPY (SELECT 'a' AS id, DATE '2024-01-01' AS day) TO '{tmp_path / 'part-0.parquet'}'")
    with shards.mine(job(tmp_path), "train", "id", Settings()) as found:
        assert [path.name for path in found.values()] == ["a.parquet"]


def test_hosts_share_the_keys_of_a_table(tmp_path):
    (tmp_path / "all.csv").write_text(TABLE)
    assert sorted(key for host in HOSTS for key in mine(job(tmp_path, host, HOSTS), "id")) == ["007", "7", "a/b"]


@pytest.mark.parametrize(
    ("changes", "column", "settings", "message"),
    [
        ({}, "customer", {}, "channel 'train' cannot be split: .*no column 'customer'; its columns: id, y"),
        ({"hosts": HOSTS, "distribution": "ShardedByS3Key"}, "id", {}, "use FullyReplicated"),
        ({}, "id", {"dask_scheduler": "tcp://127.0.0.1:1"}, "Dask workers do not see"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, changes, column, settings, message):
    (tmp_path / "all.csv").write_text(TABLE)
    with pytest.raises(TrainingError, match=message):
        mine(job(tmp_path, **changes), column, **settings)
