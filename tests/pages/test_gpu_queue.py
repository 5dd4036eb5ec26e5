"""The queue of studies that wait for a GPU: it ends in time, resumes, goes on after a failure, and hands over."""

import json
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
from tools.gpu_queue import QUEUE, SMALL_NAMES, main, names
from tools.job_queue import ARCHIVE_FILE, STATE_FILE, Job, Queue, resume

from patchmerger.cli import read_command

# Writes its result; "wait" waits for Ctrl-C first, and "fail" fails.
PROGRAM = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
(out / "began").touch()
if "wait" in sys.argv:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        (out / "interrupted").touch()
        raise
if "fail" in sys.argv:
    sys.exit("no such data")
(out / "results.json").write_text(json.dumps({"said": sys.argv[1:]}))
"""


def queue(root: Path, *jobs: Job) -> Queue:
    return Queue(jobs, root, [sys.executable, "-c", PROGRAM])


def work(of: Queue, seconds: float = 60) -> None:
    of.work(seconds, accelerator="cpu", small=False)


def test_jobs_are_done_once_and_handed_over(tmp_path):
    jobs = Job("first", "fit {root}", ""), Job("second", "compare", "", processes=2)
    first = queue(tmp_path / "root", *jobs)
    work(first)
    assert first.done
    first.hand_over(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "first.json").read_text())["said"]
    assert said == [
        "fit", str(tmp_path / "root"), "--training.accelerator", "cpu", "--out", str(tmp_path / "root" / "first")
    ]  # fmt: skip
    resume(tmp_path / "out" / ARCHIVE_FILE, tmp_path / "bare")
    again = queue(tmp_path / "bare", *jobs)
    assert again.done
    work(again)
    assert not (tmp_path / "bare" / "first" / "began").exists()


def test_a_call_ends_in_time_by_ctrl_c_and_the_next_one_goes_on(tmp_path):
    slow = queue(tmp_path, Job("slow", "wait", ""), Job("next", "fit", ""))
    began = time.monotonic()
    work(slow, seconds=3)
    assert time.monotonic() - began < 15
    assert (tmp_path / "slow" / "interrupted").exists()
    assert (slow.state["slow"]["done"], slow.state["slow"]["failures"]) == (False, 0)
    assert not (tmp_path / "next" / "began").exists()
    again = queue(tmp_path, Job("slow", "fit", ""), Job("next", "fit", ""))
    assert again.state["slow"]["seconds"] > 2
    work(again)
    assert again.done


def test_a_failure_stops_no_other_job_and_is_tried_once_more(tmp_path, capsys):
    jobs = Job("wrong", "fail", "", group="g"), Job("right", "fit", "", group="g")
    for failures in (1, 2, 2):
        tried = queue(tmp_path, *jobs)
        work(tried)
        assert tried.state["wrong"]["failures"] == failures
        assert tried.state["right"]["done"]
    assert "wrong failed: no such data" in capsys.readouterr().out
    tried.hand_over(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "g.json").read_text()).keys() == {"right"}


def test_weights_that_later_jobs_need_are_trained_again_where_they_are_gone(tmp_path):
    job = Job("model", "fit", "", keeps="model")
    first = queue(tmp_path / "root", job)
    work(first)
    first.hand_over(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / ARCHIVE_FILE) as archive:
        assert archive.getnames() == [STATE_FILE]
    (tmp_path / "root" / "model" / "model").mkdir()
    assert queue(tmp_path / "root", job).done
    shutil.rmtree(tmp_path / "root" / "model")
    assert not queue(tmp_path / "root", job).done


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("job", QUEUE, ids=lambda job: job.name)
def test_every_command_of_the_queue_is_one_that_the_command_line_takes(job, small, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # where the paths of configs begin
    name, *arguments = job.arguments(
        {**(SMALL_NAMES if small else names()), "root": "runs/queue"}, accelerator="cpu", small=small
    )
    command = read_command(name, arguments)
    assert str(command.out).startswith("runs/queue/")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_queue_from_end_to_end_on_a_cpu_with_budgets_of_seconds(tmp_path, monkeypatch):
    kinds = {job.command.split()[0]: job for job in reversed(QUEUE)}
    commands = " ".join(job.command for job in kinds.values())
    chosen = [job for job in QUEUE if job in kinds.values() or f"{{root}}/{job.name}" in commands]
    monkeypatch.setattr("tools.gpu_queue.QUEUE", chosen)
    arguments = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out"), "--small", "--accelerator", "cpu"]
    arguments += ["--processes", "2"]
    assert main([*arguments, "--minutes", "0.05"]) == 1
    logs = "".join(path.read_text() for path in (tmp_path / "root").glob("*.log"))
    assert main([*arguments, "--minutes", "60"]) == 0, logs
    handed = {path.name for path in (tmp_path / "out").iterdir()}
    wanted = {f"{job.group or job.name}.json" for job in kinds.values() if not job.keeps}
    assert handed == {*wanted, STATE_FILE, ARCHIVE_FILE}
    assert len(handed) <= 8
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 2**22
    assert main([*arguments, "--resume", str(tmp_path / "out" / ARCHIVE_FILE), "--minutes", "5"]) == 0
