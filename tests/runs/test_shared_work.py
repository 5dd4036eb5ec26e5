"""Sharing units of work: each once, waited for, taken over from a killed process, tried again after an error."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from patchmerger.runs.shared_work import SharedWork, shard_of

UNITS = [f"cell-{number}/seed-0" for number in range(6)]

# Works on units, with a note in the log of each, until it is at `sys.argv[2]`, in which it stays.
WORKER = """
    import sys, time
    from pathlib import Path
    from patchmerger.runs.shared_work import SharedWork

    folder, stop_at = Path(sys.argv[1]), sys.argv[2]
    units = [f"cell-{number}/seed-0" for number in range(6)]
    work = SharedWork(folder / "work", units, lambda unit: (folder / unit.replace("/", "_")).exists())
    for unit in work.take(poll_seconds=0.05):
        with (folder / "log").open("a") as log:
            log.write(f"{unit}\\n")
        if unit == stop_at:
            print("stays", flush=True)
            time.sleep(60)
        time.sleep(0.1)
        (folder / unit.replace("/", "_")).touch()
"""


def work_in(folder: Path) -> SharedWork:
    return SharedWork(folder / "work", UNITS, lambda unit: (folder / unit.replace("/", "_")).exists())


def start(folder: Path, stop_at: str = "") -> subprocess.Popen[str]:
    code = textwrap.dedent(WORKER)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), stop_at], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_do_each_unit_once_and_end_together(tmp_path):
    for process in [start(tmp_path), start(tmp_path)]:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert sorted((tmp_path / "log").read_text().split()) == UNITS


def test_the_unit_of_a_killed_process_is_taken_over(tmp_path):
    first = start(tmp_path, UNITS[1])
    assert first.stdout.readline() == "stays\n"
    second = start(tmp_path)
    said = second.stderr.readline()  # it did the others, and waits now
    assert said == f"waiting for {UNITS[1]}: another process is at it\n"
    first.kill()
    first.communicate()
    _, error = second.communicate(timeout=60)
    assert second.returncode == 0, error
    done = (tmp_path / "log").read_text().split()
    assert sorted(set(done)) == UNITS
    assert [unit for unit in UNITS if done.count(unit) > 1] == [UNITS[1]]


def test_a_unit_that_another_has_done_meanwhile_is_not_waited_for(tmp_path, capsys):
    work, other = work_in(tmp_path), work_in(tmp_path)
    (tmp_path / "work").mkdir()
    lock = other.lock(UNITS[0])
    lock.acquire()
    done = []
    for unit in work.take(poll_seconds=0.01):
        (tmp_path / unit.replace("/", "_")).touch()
        if not done:  # the first one ends while the others are gone through
            (tmp_path / UNITS[0].replace("/", "_")).touch()
        done.append(unit)
    lock.release()
    assert done == UNITS[1:]
    assert capsys.readouterr().err == ""


def test_a_failed_unit_loses_no_other_and_is_tried_again_later(tmp_path):
    work = work_in(tmp_path)
    seen = []
    for unit in work.take():
        seen.append(unit)
        if unit == UNITS[2]:
            work.failed(unit, FloatingPointError("the loss is nan"))
        else:
            (tmp_path / unit.replace("/", "_")).touch()
    assert seen == UNITS
    assert work.error(UNITS[2])["error"] == "FloatingPointError: the loss is nan"
    assert work.error(UNITS[0]) is None
    assert list(work.take()) == []
    later = work_in(tmp_path)
    for unit in later.take():
        assert unit == UNITS[2]
        (tmp_path / unit.replace("/", "_")).touch()
    assert later.error(UNITS[2]) is None


def test_a_lock_is_given_back_where_the_work_is_interrupted(tmp_path):
    work = work_in(tmp_path)
    units = work.take()
    assert next(units) == UNITS[0]
    units.close()  # as an exception in the loop's body does
    free = []
    thread = threading.Thread(target=lambda: free.append(work.lock(UNITS[0]).acquire() is not None))
    thread.start()
    thread.join()
    assert free == [True]


def test_shards_are_all_units_and_share_none():
    parts = [UNITS[shard_of(f"{number}/4")] for number in (1, 2, 3, 4)]
    assert sorted(unit for part in parts for unit in part) == UNITS
    assert [len(part) for part in parts] == [2, 2, 1, 1]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1/0", "2", "1/x", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(ValueError, match=r"shard \('.*'\) must be i/n with i from 1 to n"):
        shard_of(shard)
