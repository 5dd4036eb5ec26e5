import json

import pytest
import torch

from patchmerger.runs.environment import cpu_has_bf16, default_precision, device_name, environment, find_device


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


@pytest.mark.parametrize("names", [["avx512_bf16"], ["amx_bf16"], ["bf16"]])
def test_a_cpu_with_bf16_arithmetic_is_known_and_used(monkeypatch, names):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)
    assert cpu_has_bf16()
    assert default_precision("cpu") == "bf16-mixed"


def test_a_cpu_without_bf16_arithmetic_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": True}, raising=False)
    assert not cpu_has_bf16()
    assert default_precision("cpu") == default_precision("meta") == "32-true"
