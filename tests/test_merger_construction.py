"""How a merger is made: its settings, its first queries, presets."""

import pytest
import torch
from torch import Tensor, nn

from conftest import tokens
from patchmerger.merger import PatchMerger
from patchmerger.presets import PRESETS, preset

pytestmark = pytest.mark.usefixtures("one_thread")


def test_norm_none_has_no_norm():
    assert [name for name, _ in PatchMerger(4, 2, norm="none").named_parameters()] == ["weight"]
    merger = PatchMerger(4, 2)
    assert [name for name, _ in merger.named_parameters()] == ["weight", "norm.weight", "norm.bias"]
    assert isinstance(merger.norm, nn.LayerNorm)
    assert merger.norm.eps == 1e-6


@pytest.mark.parametrize("dim", [16, 64, 192, 768, 1024])
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_scores_start_with_unit_variance(dim, scale):
    torch.manual_seed(0)
    merger = PatchMerger(dim, 64, scale=scale)
    keys = merger.norm(torch.randn(1, 256, dim) * 7 + 3)
    scores = merger.scale * merger.weight @ keys.transpose(1, 2)
    assert 0.85 < scores.std().item() < 1.15


def test_init():
    given_ = tokens(2, 4)
    assert torch.equal(PatchMerger(4, 2, init=given_, dtype=torch.float64).weight, given_)
    assert torch.equal(PatchMerger(4, 2, init=nn.init.ones_).weight, torch.ones(2, 4))
    assert torch.equal(PatchMerger(4, 2, init=lambda w: torch.full_like(w, 3.0)).weight, torch.full((2, 4), 3.0))
    given_.zero_()
    merger = PatchMerger(4, 2, init=given_)
    with torch.no_grad():
        merger.weight.fill_(1)
    assert bool((given_ == 0).all()), "W shares memory with init"


def test_init_may_fill_in_place_and_return_nothing():
    def fill(weight: Tensor) -> None:
        weight.fill_(2)

    merger = PatchMerger(4, 2, init=fill)
    assert torch.equal(merger.weight, torch.full((2, 4), 2.0))
    assert merger.weight.requires_grad


def test_device_and_dtype():
    merger = PatchMerger(4, 2, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in merger.parameters()} == {("meta", torch.bfloat16)}
    x = torch.empty(3, 5, 4, device="meta", dtype=torch.bfloat16)
    assert merger(x, torch.empty(3, 5, device="meta", dtype=torch.bool)).shape == (3, 2, 4)


def test_presets():
    assert set(PRESETS) == {"default", "paper", "vit-pytorch", "mean", "located", "scratch"}
    for name in PRESETS:
        merged = PatchMerger(64, 8, **preset(name, dim=64))(torch.randn(1, 5, 64), positions=torch.rand(5, 2))
        assert merged.shape == (1, 8, 64)
    assert preset("paper", dim=64) == {"norm": "both", "scale": 1.0, "init": None, "prior": None}
    assert preset("vit-pytorch", dim=64)["scale"] == 64**-0.5
    torch.manual_seed(0)
    ours = PatchMerger(64, 64, **preset("vit-pytorch", dim=64)).weight
    assert 0.9 < ours.std().item() < 1.1
    mean = PatchMerger(64, 8, **preset("mean", dim=64))
    x = torch.randn(1, 50, 64)
    torch.testing.assert_close(mean(x, return_weights=True)[1], torch.full((1, 8, 50), 1 / 50), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, r"dim \(0\) must be at least 1"),
        ({"dim": 4, "num_tokens": 0}, r"num_tokens \(0\) must be at least 1; the paper uses 8"),
        ({"dim": 4, "num_heads": 0}, r"num_heads \(0\) must divide dim \(4\)"),
        ({"dim": 4, "num_heads": 3}, r"num_heads \(3\) must divide dim \(4\) into groups of features"),
        ({"dim": 4, "norm": "batch"}, r"norm \('batch'\) must be one of 'scores', 'both', 'none'"),
        ({"dim": 4, "scale": 0}, r"scale \(0\) must be finite and not zero"),
        ({"dim": 4, "scale": float("inf")}, r"scale \(inf\) must be finite and not zero"),
        ({"dim": 4, "num_tokens": 2, "init": torch.ones(4, 2)}, r"init has shape \(4, 2\).* = \(2, 4\)"),
        ({"dim": 4, "num_tokens": 2, "init": lambda w: w[:1]}, r"init has shape \(1, 4\).* = \(2, 4\)"),
    ],
)
def test_construction_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchMerger(**arguments)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset \('best'\) must be one of 'default', 'paper', 'vit-pytorch', 'mean'"):
        preset("best", dim=4)


def test_repr_tells_the_settings():
    assert "dim=4, num_tokens=2, norm='both', scale=0.5)" in repr(PatchMerger(4, 2, norm="both", scale=0.5)).replace(
        "\n", ")"
    )
    assert "num_heads=2" in repr(PatchMerger(4, 2, num_heads=2))
