"""Other encodings, closed pipes and Ctrl-C: never a failed command after the work was done, never a traceback."""

import os
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest

from patchmerger.commands.terminal import guarded

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def guarding(body: str) -> list[str]:
    """A process that runs ``body`` as a command does."""
    program = f"""
        import os, signal, sys, time
        from patchmerger.commands import terminal

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored

        def run():
            {body}
            return 0

        status = terminal.guarded(run, "fit", resumes=True)
        terminal.leave_at_once_when_interrupted()
        print("ended", file=sys.stderr)
        sys.exit(status)
    """
    return [sys.executable, "-c", textwrap.dedent(program)]


def test_a_table_is_written_where_stdout_is_not_utf8():
    body = "from patchmerger.runs.text import text_table; print(text_table([['a', 'b'], ['2 × 2', '→ 1']]))"
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(guarding(body), capture_output=True, env=environment, check=True)
    assert done.stdout.splitlines() == [b"a        b", b"----------", b"2 \xd7 2  -> 1"]  # cp1252 has ×


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", "a × b → c … − – ±", b"a x b -> c ... - - +/-"),
        ("ascii", "┏━┓│╇", b"+-+|+"),
        ("ascii", "猫", b"?"),
        ("cp1252", "× → ━", b"\xd7 -> -"),
        ("utf-8", "\udcff", b"?"),  # of a path that is not UTF-8
    ],
)
def test_what_a_stream_lacks_is_replaced(encoding, text, written):
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    done = subprocess.run(guarding(f"print({text!a})"), capture_output=True, env=environment, check=True)
    assert done.stdout.rstrip() == written


@pytest.mark.parametrize(
    "printed", ["print('a\\n' * 100_000)", "from rich.console import Console; Console().print('a')"]
)
def test_a_reader_that_has_read_enough_is_no_error(printed):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(guarding(printed), stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"ended\n")


def test_work_that_nobody_follows_any_more_is_not_called_done():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(guarding("print('epoch 1', flush=True)"), stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode != 0


def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(guarding("print('a')"), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["patchmerger fit: [Errno 28] No space left on device", "ended"]


def test_an_interrupt_is_one_line_and_a_second_one_ends_at_once():
    process = subprocess.Popen(
        guarding("print('begun', flush=True); time.sleep(60)"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    line, ended = error.strip().splitlines()
    assert (line.split(":")[:2], ended) == (["patchmerger fit", " interrupted"], "ended")

    cleaning = "(print('cleaning', flush=True), time.sleep(60))"
    body = f"import atexit; atexit.register(lambda: {cleaning}); raise KeyboardInterrupt"
    process = subprocess.Popen(
        guarding(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_ctrl_c_during_the_first_imports_is_no_traceback():
    program = """
        import runpy, sys

        class Interrupting:
            def find_spec(name, *_):
                if name == "patchmerger.cli":
                    raise KeyboardInterrupt

        sys.meta_path.insert(0, Interrupting)
        runpy.run_module("patchmerger", run_name="__main__")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert (done.returncode, done.stderr.split()) == (130, ["patchmerger:", "interrupted"])


@pytest.mark.parametrize("error", [ValueError("seeds (0)\n must be 1"), OSError("seeds (0) must be 1")])
def test_an_error_is_one_line(error, capsys):
    def fails() -> int:
        raise error

    assert guarded(fails, "compare") == 2
    assert capsys.readouterr().err == "patchmerger compare: seeds (0) must be 1\n"


def test_a_warning_is_one_line_with_advice_in_options(capsys):
    def warns() -> int:
        for _ in range(2):
            warnings.warn("seeds (0)\n are few: take seeds=3", stacklevel=2)
        warnings.warn("of a library", FutureWarning, stacklevel=1)
        return 0

    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert guarded(warns, "compare", options=lambda: ["seeds"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines == ["warning: seeds (0) are few: take --seeds 3", "warning: of a library"]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        guarded(warns, "compare", show_traceback=True)  # as Python shows them, with their places
    assert [each.category for each in found] == [UserWarning, FutureWarning]
    assert warnings.showwarning is shown


def test_a_fault_of_the_program_is_not_hidden():
    with pytest.raises(AttributeError, match="no_such_thing"):
        guarded(lambda: [].no_such_thing, None)
