"""Whatever a job does to its process, the others have their results."""

import sys
import time
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]
from gpu_workers import Workers


@pytest.fixture
def workers():
    workers = Workers("gpu_stand_in_jobs")
    yield workers
    workers.close()


def results(workers: Workers, jobs: list[dict], count: int = 1, seconds: float = 60, job_seconds: float = 30) -> dict[int, dict]:
    """The results by the job's number, which is added here."""
    numbered = [job | {"number": i} for i, job in enumerate(jobs)]
    return {job["number"]: result for job, result in workers.run(numbered, count, time.monotonic() + seconds, job_seconds)}


def test_every_job_has_its_result(workers: Workers):
    done = results(workers, [{"result": {"value": i}, "seconds": 0.5} for i in range(6)], count=2)
    assert [done[i]["value"] for i in range(6)] == list(range(6))
    assert len({done[i]["process"] for i in range(6)}) == 2


def test_one_process_runs_all_and_the_next_batch_too(workers: Workers):
    first, second = results(workers, [{}, {}]), results(workers, [{}])
    assert len({first[0]["process"], first[1]["process"], second[0]["process"]}) == 1


def test_an_exception_is_reported_and_its_process_goes_on(workers: Workers):
    done = results(workers, [{}, {"ends": "raises"}, {}])
    assert done[1] == {"error": "ValueError: this job raises (gpu_stand_in_jobs.py:13)"}
    assert done[0]["process"] == done[2]["process"]


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("spoils the device", "RuntimeError: illegal memory access (gpu_stand_in_jobs.py:16)"),
        ("dies", "the process died with exit code 7"),
        ("hangs", "the process ran past its time limit"),
    ],
)
def test_a_lost_process_is_reported_and_replaced(workers: Workers, ending: str, error: str):
    done = results(workers, [{}, {"ends": ending}, {}], job_seconds=1)
    assert done[1] == {"error": error}
    assert done[2]["process"] != done[0]["process"]


def test_the_family_of_a_job_that_took_its_process_is_not_run(workers: Workers):
    jobs = [{"ends": "dies", "family": "grid"}, {"family": "grid"}, {"family": "resident"}]
    done = results(workers, jobs)
    assert done[1] == {"error": "not run: another job of grid took its process with it (the process died with exit code 7)"}
    assert "process" in done[2]


def test_the_family_of_an_exception_is_run(workers: Workers):
    assert "process" in results(workers, [{"ends": "raises", "family": "grid"}, {"family": "grid"}])[1]


def test_what_the_time_does_not_allow_is_left_out(workers: Workers):
    results(workers, [{}])  # the process is there
    start = time.monotonic()
    done = results(workers, [{}, {"ends": "hangs"}, {}], seconds=1)
    assert set(done) == {0}
    assert time.monotonic() - start < 5
    assert "process" in results(workers, [{}])[0]


def test_a_module_that_cannot_be_imported_is_an_error():
    workers = Workers("no_such_module")
    with pytest.raises(RuntimeError, match="no worker process can start: ModuleNotFoundError: No module named 'no_such_module'"):
        results(workers, [{}])
    workers.close()
