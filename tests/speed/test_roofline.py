import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from conftest import SIZE, make_vit
from patchmerger.costs.model_cost import cost
from patchmerger.insertion import insert
from patchmerger.speed.roofline import Ceilings, Product, least_seconds, measure_ceilings, products_of

pytestmark = pytest.mark.usefixtures("one_thread")

CEILINGS = Ceilings("a device", "float32", 2, flops_per_second=1000.0, bytes_per_second=10.0)


@pytest.mark.parametrize("variant", ["class token", "attention pooling", "differential blocks"])
def test_flops_are_those_of_cost(variant):
    for model in (make_vit(variant), insert(make_vit(variant), 4)):
        found = products_of(model, None, batch_size=3, precision="float32")
        assert sum(p.flops for p in found) == 3 * cost(model).flops


def test_a_model_without_formulas_at_another_size():
    model = insert(timm.create_model("vit_small_patch16_rope_224", **SIZE), 4)
    found = products_of(model, 64, batch_size=2, precision="bf16")
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

    linear, attention = products_of(Net(), None, batch_size=2, precision=precision)
    assert linear == Product(2 * (2 * 8) * 8 * 5, size * (2 * 8 * 8 + 8 * 5 + 5 + 2 * 8 * 5))
    assert attention == Product(4 * 2 * 8 * 8 * 5, size * 4 * (2 * 8 * 5))


def test_the_slower_of_the_two_ceilings_counts():
    products = [Product(flops=4000, bytes=10), Product(flops=1000, bytes=30)]
    assert least_seconds(products, CEILINGS, training=False, params=7) == 4 + 3
    assert least_seconds(products, CEILINGS, training=True, params=7) == 3 * (4 + 3) + 28 * 7 / 10


def test_ceilings_are_measured():
    found = measure_ceilings(torch.device("cpu"), "float32", seconds=0.0)
    assert (found.precision, found.threads) == ("float32", 1)
    assert found.flops_per_second > 1e8
    assert 1e8 < found.bytes_per_second < 1e13
    assert f"ceilings of {found.device}, 1 threads: " in str(found)
    assert "GFLOPs/s in float32" in str(found)
