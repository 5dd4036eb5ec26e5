import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from conftest import SIZE, make_vit
from patchmerger.costs.model_cost import cost
from patchmerger.insertion import insert
from patchmerger.speed.roofline import Matmul, PeakRates, least_seconds, matmuls_of, measure_peak_rates

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = PeakRates("a device", "float32", 2, flops_per_second=1000.0, bytes_per_second=10.0)


@pytest.mark.parametrize("variant", ["class token", "attention pooling", "differential blocks"])
def test_flops_are_those_of_cost(variant):
    for model in (make_vit(variant), insert(make_vit(variant), 4)):
        found = matmuls_of(model, None, batch_size=3, precision="float32")
        assert sum(p.flops for p in found) == 3 * cost(model).flops


def test_int8_has_a_byte_for_each_element():
    whole, narrow = (matmuls_of(make_vit("class token"), None, batch_size=2, precision=p) for p in ("float32", "int8"))
    assert [Matmul(each.flops, each.bytes // 4) for each in whole] == narrow


def test_another_family_at_another_size():
    model = insert(timm.create_model("vit_small_patch16_rope_224", **SIZE), 4)
    found = matmuls_of(model, 64, batch_size=2, precision="bf16")
    assert sum(p.flops for p in found) == 2 * cost(model, 64).flops
    assert model.patch_embed.img_size == (32, 32)


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bf16", 2)])
def test_bytes_are_those_of_weights_inputs_and_outputs(precision, size):
    class Net(nn.Module):
        image_size = 8

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 5)

        def forward(self, x):
            x = self.linear(x[:, 0])  # (B, 8, 5)
            return F.scaled_dot_product_attention(x, x, x)

    linear, attention = matmuls_of(Net(), None, batch_size=2, precision=precision)
    assert linear == Matmul(2 * (2 * 8) * 8 * 5, size * (2 * 8 * 8 + 8 * 5 + 5 + 2 * 8 * 5))
    assert attention == Matmul(4 * 2 * 8 * 8 * 5, size * 4 * (2 * 8 * 5))


def test_the_slower_of_the_two_rates_counts():
    matmuls = [Matmul(flops=4000, bytes=10), Matmul(flops=1000, bytes=30)]
    assert least_seconds(matmuls, RATES, training=False, params=7) == 4 + 3
    assert least_seconds(matmuls, RATES, training=True, params=7) == 3 * (4 + 3) + 28 * 7 / 10


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_peak_rates_are_measured(precision):
    found = measure_peak_rates(torch.device("cpu"), precision, seconds=0.0)
    assert (found.precision, found.threads) == (precision, 1)
    assert found.flops_per_second > 1e8
    assert 1e8 < found.bytes_per_second < 1e13
    assert f"peak rates of {found.device}, 1 threads: " in str(found)
    assert f"GFLOPs/s in {precision}" in str(found)
