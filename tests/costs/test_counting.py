"""The count of each part, for variants of timm's ViT and for other families."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import SIZE, make_images, make_vit
from costs.formulas import formula_flops
from patchmerger.acceleration.planning import plan
from patchmerger.costs.model_cost import cost
from patchmerger.hosts import Host, register_host
from patchmerger.insertion import insert, remove
from patchmerger.speed.measurement import measure

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = {
    "eva02_tiny_patch14_224": None,
    "vit_small_patch16_dinov3": None,
    "cait_xxs24_224": None,
    "beit_base_patch16_224": "drop",
    "vit_relpos_small_patch16_224": "drop",
}


@pytest.mark.parametrize("options", [{"num_tokens": 9}, {"num_tokens": (9, 3), "after": (1, 3), "prior": None}])
def test_parts_of_each_variant(variant, options):
    model = insert(make_vit(variant), **options)
    found = cost(model)
    assert {part.name: part.flops for part in found.parts} == formula_flops(model)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.plain_flops == sum(formula_flops(remove(model)).values())


@pytest.mark.parametrize("architecture", FAMILIES)
def test_other_families(architecture):
    model = timm.create_model(architecture, **{**SIZE, "img_size": 64}).eval()
    plain = cost(model)
    assert plain.speedup == 1
    assert plain.params == sum(p.numel() for p in model.parameters())
    before = copy.deepcopy(model)
    insert(model, 3, after=1, positions=FAMILIES[architecture])
    merged = cost(model)
    assert merged.plain_flops == plain.flops
    assert merged.params == sum(p.numel() for p in model.parameters())
    assert merged.tokens_out == merged.tokens - 64 + 3
    assert [part.name for part in merged.parts][1:4] == ["blocks.0", "blocks.0.merger", "blocks.1"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        before.to("meta").requires_grad_(False)(make_images(1, 64).to("meta"))
    assert counter.get_total_flops() == plain.flops
    assert model.blocks[0].merger.weight.device.type == "cpu"


def test_another_image_size():
    model = insert(timm.create_model("vit_small_patch16_rope_224", **SIZE), 3)
    large = cost(model, image_size=(64, 32))
    assert (large.image_size, large.tokens, large.tokens_out) == ((64, 32), 33, 4)
    assert model.patch_embed.img_size == (32, 32)
    with pytest.raises(ValueError, match=r"image_size \(\(64, 64\)\): counting Cait on an input .* failed"):
        cost(timm.create_model("cait_xxs24_224", **SIZE), image_size=64)


def quantised(model):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_models_without_dense_weights_are_refused():
    for model in (make_vit(), insert(make_vit(), 4)):
        with pytest.raises(ValueError, match=r"cannot be counted: it is quantised or sparse \(blocks.0"):
            cost(quantised(model))
    with pytest.raises(ValueError, match=r"cannot be counted: it is quantised or sparse"):
        plan(quantised(make_vit()))
    with pytest.raises(ValueError, match=r"models\['a'\] cannot be measured: it is quantised or sparse"):
        measure({"a": quantised(make_vit())})


class Repeated(torch.nn.Module):
    """A block whose cost no shape tells."""

    def __init__(self, times):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32)
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = self.linear(x)
        return x


class Net(torch.nn.Module):
    image_size = 8

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Repeated(times) for times in (1, 1, 3, 1, 3)])

    def forward(self, images):
        x = images.flatten(2)[:, :1].expand(-1, 6, -1)[..., :32]  # (B, 6, 32)
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_are_alike_only_where_their_settings_are():
    register_host(Net)(lambda net: Host(blocks=net.blocks, dim=32, num_prefix_tokens=0))
    once = 2 * 6 * 32 * 32
    found = cost(Net())
    assert [part.flops // once for part in found.parts] == [0, 1, 1, 3, 1, 3, 0]
    assert [part.flops * 6 // once for part in cost(insert(Net(), 2, after=2)).parts[4:7]] == [6, 2, 6]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


class _SequenceFirst(nn.Module):
    """A ViT, but for attention, whose blocks take tokens as (N, B, D)."""

    image_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(_Block() for _ in range(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).permute(2, 0, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=0))


def test_tokens_of_a_host_that_has_them_first():
    register_host(_SequenceFirst)(
        lambda model: Host(blocks=list(model.blocks), dim=8, num_patches=16, sequence_first=True, grid=(4, 4))
    )
    plain, merged = cost(_SequenceFirst()), cost(insert(_SequenceFirst(), 4, 2))
    assert {part.tokens_in for part in plain.parts if part.name.startswith("blocks.")} == {16}
    assert [part.tokens_out for part in merged.parts if part.name.startswith("blocks.")][-1] == 4
    per_token = 2 * 8 * 8
    assert plain.flops - merged.flops == 2 * 12 * per_token - 2 * (4 * 16 * 8 + 4 * 16 * 8)
    assert plan(_SequenceFirst(), speedup=1.04).placements
