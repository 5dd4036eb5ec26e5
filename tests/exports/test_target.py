"""A full disk and a kill in the middle of an export: nothing under the final name that was not there before."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exports.conftest import nothing_but, tiny
from exports.test_hosts import FORMATS, name_of
from patchmerger.exports import ExportSettings, export, writing

KILLED = """
import sys, time
from exports.conftest import tiny
from patchmerger.exports import export, writing

def written(path, *_):
    print(path, flush=True)
    time.sleep(600)

writing.measure_parity = written
export(tiny(), sys.argv[1], overwrite=True)
"""


@pytest.fixture
def disk(tmp_path):
    """A disk of 24 KiB; the tiny models take more."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", place], check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_nothing(disk, monkeypatch):
    programs, trace = [], writing.trace

    def once(*arguments):
        if not programs:
            programs.append(trace(*arguments))
        return programs[0]

    monkeypatch.setattr(writing, "trace", once)
    for format in FORMATS:
        out = name_of(disk, format)
        with pytest.raises(OSError, match=rf"no space is left on the disk.*{out}"):
            export(tiny(), out, ExportSettings(format=format))
        assert nothing_but(disk), format


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_file_and_its_record(tmp_path):
    out, record = tmp_path / "x.onnx", tmp_path / "x.onnx.json"
    out.write_bytes(b"the old one")
    record.write_text('{"kind": "export"}')
    command = [sys.executable, "-c", KILLED, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        partial = Path(process.stdout.readline().strip())
        assert partial.stat().st_size > 10_000  # all is written, but not compared yet
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (out.read_bytes(), record.read_text()) == (b"the old one", '{"kind": "export"}')
    assert nothing_but(tmp_path, "x.onnx", "x.onnx.json", partial.parent.name)
    assert partial.parent.name.startswith(".x.onnx.")
    assert partial.parent.name.endswith(".partial")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_link_to_what_is_not_there_is_named_before_anything_is_exported(name, overwrite, tmp_path, monkeypatch):
    out = name_of(tmp_path, name)
    out.symlink_to("gone")
    monkeypatch.setattr(writing, "measure_parity", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(FileExistsError, match=r"out \(.*\) is a link to gone, which is not there: remove the link"):
        export(tiny(), out, ExportSettings(format=name), overwrite=overwrite)
    assert out.is_symlink()
