import json

import pytest
import torch

from patchmerger.runs.environment import device_name, environment, find_device


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
