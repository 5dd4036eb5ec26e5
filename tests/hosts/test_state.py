"""Quantised, offloaded and meta models are refused by name; what is dense on one device is taken."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from conftest import make_vit
from patchmerger import UnsupportedModelError, cost, insert, mergers, remove, save
from patchmerger.hosts.state import refuse_unsupported_state

pytestmark = pytest.mark.usefixtures("one_thread")


def dynamic(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def packed(model):
    """The layout of bitsandbytes: two weights of four bits in a byte."""
    weight = model.blocks[1].mlp.fc1.weight
    packed = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
    model.blocks[1].mlp.fc1.weight = nn.Parameter(packed, requires_grad=False)
    return model


def float8(model):
    return model.to(torch.float8_e4m3fn)


def by_transformers(model):
    model.is_quantized = True
    return model


def offloaded(model):
    return pytest.importorskip("accelerate").cpu_offload(model, execution_device="cpu")


def dispatched(model):
    return pytest.importorskip("accelerate").dispatch_model(model, {"": "cpu"}, force_hooks=True)


def in_part_on_meta(model):
    model.blocks[0].to("meta")
    return model


def partitioned(model):
    """As DeepSpeed's ZeRO 3 leaves it: empty weights that know how large they are."""
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    return model


def lazy(model):
    model.head = nn.LazyLinear(5)
    return model


def sparse(model):
    model.head.weight = nn.Parameter(model.head.weight.detach().to_sparse())
    return model


STATES = {
    dynamic: r"quantised or sparse \(blocks.0.attn.qkv is a DynamicQuantizedLinear\)",
    torchao: r"quantised or sparse \(blocks.0.attn.qkv.weight is Int8Tensor",
    packed: r"quantised or sparse \(blocks.1.mlp.fc1.weight is Tensor of uint8\)",
    float8: r"quantised or sparse \(.* of float8_e4m3fn\)",
    by_transformers: r"quantised or sparse \(by transformers\)",
    offloaded: "accelerate offloads .* without device_map",
    dispatched: "accelerate offloads .* without device_map",
    in_part_on_meta: "meta device",
    partitioned: r"DeepSpeed \(ZeRO 3\) has partitioned its weights.*\(cls_token is \(0,\) of \(1, 1, 32\)\)",
    lazy: "head.weight has no shape yet, being lazy; run it on an image first",
    sparse: r"sparse \(head.weight is sparse Tensor of float32\)",
}
NEEDS = {torchao: "torchao", offloaded: "accelerate", dispatched: "accelerate"}


@pytest.mark.filterwarnings("ignore")  # torch's own, about its quantisation
@pytest.mark.parametrize("change", STATES, ids=lambda change: change.__name__)
def test_refused(change, tmp_path):
    if importlib.util.find_spec(NEEDS.get(change, "torch")) is None:
        pytest.skip(f"{NEEDS[change]} is not installed")
    model = change(make_vit())
    with pytest.raises(ValueError, match=f"cannot be saved: .*{STATES[change]}"):
        refuse_unsupported_state(model, "saved", meta=True)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match=STATES[change]):
        insert(model, 4)
    assert [type(module) for module in model.modules()] == classes
    for call in (cost, lambda model: save(model, tmp_path / "model")):
        with pytest.raises(ValueError, match=STATES[change]):
            call(model)


def test_the_meta_device_is_taken_where_no_weights_are_needed():
    model = insert(make_vit().to("meta"), 4)
    refuse_unsupported_state(model, "counted", meta=True)
    with pytest.raises(ValueError, match="cannot be saved: it is on the meta device"):
        refuse_unsupported_state(model, "saved")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dense_weights_are_taken(dtype):
    refuse_unsupported_state(insert(make_vit(), 4).to(dtype), "saved")


@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_may_be_quantised_later():
    images, merged = torch.randn(2, 3, 32, 32), insert(make_vit(), 4).eval()
    quantised = dynamic(copy.deepcopy(merged))
    assert quantised(images).shape == merged(images).shape
    assert [found.after for found in mergers(quantised)] == [2]
    assert mergers(remove(quantised)) == []
