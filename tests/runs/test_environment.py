import json
import multiprocessing
import subprocess
import sys

import pytest
import torch

from patchmerger.runs.environment import (
    clock,
    cpu_has_bf16,
    default_precision,
    device_name,
    environment,
    find_device,
    start_method,
)


def test_environment_names_device_threads_and_versions():
    record = environment()
    assert json.loads(json.dumps(record)) == record
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["device"] == "cpu"
    assert record["device_name"] == record["cpu"] == device_name("cpu")
    assert record["cpu"]
    assert record["cuda"] is None


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=rf"device \('{device}'\) is not there"):
        find_device(device)


def test_find_device():
    assert find_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else None
    assert expected is None or find_device().type == expected


def test_a_clock_waits_for_any_accelerator(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    assert clock(torch.device("cpu"))() <= clock(torch.device("cpu"))()
    assert not waited
    assert clock(torch.device("mps"))() <= clock(torch.device("mps"))()
    assert waited == [torch.device("mps")] * 2


@pytest.mark.parametrize("names", [["avx512_bf16"], ["amx_bf16"], ["bf16"]])
def test_a_cpu_with_bf16_arithmetic_is_known_and_used(monkeypatch, names):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)
    assert cpu_has_bf16()
    assert default_precision("cpu") == "bf16-mixed"


def test_a_cpu_without_bf16_arithmetic_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True}, raising=False)
    assert not cpu_has_bf16()
    assert default_precision("cpu") == default_precision("meta") == "32-true"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux alone")
@pytest.mark.parametrize("own", ["fork", "forkserver"])
@pytest.mark.parametrize(
    ("current", "expected"),
    [(None, "fork"), ("own", "fork"), ("spawn", None)],
    ids=["nothing started yet", "Python's own", "set by the user"],
)
def test_processes_that_load_images_are_forked_unless_the_user_has_set_another_way(monkeypatch, own, current, expected):
    others = [method for method in ("fork", "spawn", "forkserver") if method != own]
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: [own, *others])
    current = own if current == "own" else current
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: current)
    assert start_method() == expected


AS_PYTHON_3_14 = """
import multiprocessing
multiprocessing.context._default_context._default_context = multiprocessing.get_context("forkserver")
multiprocessing.get_all_start_methods = lambda: ["forkserver", "fork", "spawn"]

import torch
from patchmerger.data.batches import Loader
images = torch.arange(6)
loader = Loader(torch.utils.data.StackDataset(images), [[0, 1], [2, 3], [4, 5]], workers=2)
print(*(int(image) for batch in loader for (image,) in batch))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux alone")
def test_a_script_without_a_guard_loads_images_in_processes(tmp_path):
    (tmp_path / "script.py").write_text(AS_PYTHON_3_14)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1", "2", "3", "4", "5"]
