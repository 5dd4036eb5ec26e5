"""Located queries in whole models: each host's patches are where the prior looks for them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conftest import make_images, make_vit
from hosts.families import FAMILIES as TIMM
from hosts.families import family_images, make_family
from hosts.tiny import FAMILIES as TRANSFORMERS
from hosts.tiny import make_inputs, make_model, padded_inputs, positions_of
from patchmerger import PRESETS, PatchMerger, insert, load, mergers, preset, remove, save
from patchmerger.prior import grid_positions
from patchmerger.reducers import AveragePool
from patchmerger.training.optimizer import parameter_groups
from patchmerger.training.settings import TrainingSettings

WITHOUT_GRID = ("ViTMAEModel", "VideoMAE", "Vivit", "Gemma 4")
LOCATED = preset("located", 32)


def look_at(merger: nn.Module, places: list[tuple[float, float]]) -> None:
    """Let each query see one place and nothing else."""
    with torch.no_grad():
        merger.weight.zero_()
        merger.prior.center.copy_(torch.tensor(places))
        merger.prior.log_width.fill_(-7.0)


def seen_by(model: nn.Module, run) -> tuple[Tensor, Tensor, Tensor]:
    """What goes through the first merger: its tokens, its output, and its positions."""
    (merger, *_), seen = mergers(model), []
    hook = merger.module.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args[0], output, kwargs["positions"])), with_kwargs=True
    )
    with torch.no_grad():
        run()
    hook.remove()
    tokens, output, positions = seen[0]
    return tokens, output[0] if isinstance(output, tuple) else output, positions


def assert_takes(model: nn.Module, run, grid: tuple[int, int], picked: list[tuple[int, int]]) -> None:
    rows, columns = grid
    look_at(mergers(model)[0].module, [((r + 0.5) / rows, (c + 0.5) / columns) for r, c in picked])
    tokens, merged, _ = seen_by(model, run)
    assert tokens.shape[1] == rows * columns
    torch.testing.assert_close(merged, tokens[:, [r * columns + c for r, c in picked]])


@pytest.mark.parametrize("name", [name for name in TIMM if name not in WITHOUT_GRID])
def test_every_family_of_timm(name):
    model = insert(make_family(name), [4, 2], [1, 3], positions=TIMM[name].positions, **LOCATED)
    assert_takes(model, lambda: model(family_images()), (6, 6), [(0, 0), (0, 5), (4, 1), (5, 5)])


@pytest.mark.parametrize("name", [n for n in TRANSFORMERS if not n.startswith(WITHOUT_GRID)])
def test_every_family_of_transformers(name):
    model, inputs = make_model(name), make_inputs(name)
    side = 5 if inputs.get("pixel_values", torch.empty(0)).shape[-1] == 40 else 4
    insert(model, [4, 2], [1, 3], positions=positions_of(name), **LOCATED)
    assert_takes(model, lambda: model(**inputs), (side, side), [(0, 0), (0, 3), (2, 1), (3, 3)])


def test_torchvision():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    model = insert(torchvision.models.VisionTransformer(**sizes).eval(), 4, **LOCATED)
    assert_takes(model, lambda: model(make_images()), (4, 4), [(0, 0), (0, 3), (2, 1), (3, 3)])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 64), (64, 16), (24, 40)])
def test_images_of_another_size(height, width):
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    grid = (height // 8, width // 8)
    picked = [(0, 0), (grid[0] - 1, 0), (0, grid[1] - 1)]
    model = insert(make_vit(dynamic_img_size=True), [3, 2], [1, 3], **LOCATED)
    assert_takes(model, lambda: model(images), grid, picked)
    model = insert(make_model("Dinov2Model"), [3, 2], [1, 3], **LOCATED)
    assert_takes(model, lambda: model(pixel_values=images), grid, picked)
    if (height, width) != (32, 32):
        model = insert(make_model("ViTModel"), 3, **LOCATED)
        run = lambda: model(pixel_values=images, interpolate_pos_encoding=True)  # noqa: E731
        assert_takes(model, run, grid, picked)


def test_a_fixed_size_that_is_set_later():
    model = insert(make_vit(), 4, **LOCATED)
    model.set_input_size(img_size=(48, 16))
    images = torch.randn(2, 3, 48, 16, generator=torch.Generator().manual_seed(1))
    assert_takes(model, lambda: model(images), (6, 2), [(0, 0), (5, 1), (3, 0), (2, 1)])


def test_images_of_several_sizes_in_a_batch():
    coord = torch.cartesian_prod(torch.arange(2), torch.arange(4))  # 2 × 4 patches, and 3 × 2 with padding
    other = torch.cat((torch.cartesian_prod(torch.arange(3), torch.arange(2)), torch.zeros(2, 2, dtype=torch.long)))
    batch = {
        "patches": torch.randn(2, 8, 3 * 8 * 8, generator=torch.Generator().manual_seed(1)),
        "patch_coord": torch.stack((coord, other)),
        "patch_valid": torch.tensor([[True] * 8, [True] * 6 + [False] * 2]),
    }
    model = insert(make_family("NaFlex axial"), 2, **LOCATED)
    look_at(mergers(model)[0].module, [(0.25, 0.875), (0.75, 0.125)])  # row 0, column 3 and row 1, column 0 of 2 × 4
    tokens, merged, positions = seen_by(model, lambda: model(batch))
    torch.testing.assert_close(merged[0], tokens[0, [3, 4]])
    torch.testing.assert_close(positions[1, 5], torch.tensor([2.5 / 3, 0.75]))
    siglip = insert(make_model("Siglip2VisionModel"), 2, **LOCATED)
    look_at(mergers(siglip)[0].module, [(0.5, 0.125), (5 / 6, 0.875)])  # of 3 × 4: row 1, column 0 and row 2, column 3
    tokens, merged, _ = seen_by(siglip, lambda: siglip(**padded_inputs()))
    torch.testing.assert_close(merged[1], tokens[1, [4, 11]])


@pytest.mark.parametrize("name", ["class token", "RoPE axial"])
def test_a_second_merger_gets_centroids(name):
    model = make_vit() if name == "class token" else make_family(name)
    side = 4 if name == "class token" else 6
    insert(model, [3, 2], [1, 3], **LOCATED)
    seen = []
    for merger in mergers(model):
        merger.module.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((kwargs["positions"], output[1])), with_kwargs=True
        )
    model(make_images(size=8 * side))
    (grid, first), (centroids, second) = seen
    torch.testing.assert_close(grid, grid_positions((side, side)))
    torch.testing.assert_close(centroids, first @ grid)
    assert second.shape == (2, 2, 3)


def test_located_after_average_pooling():
    model = insert(make_vit(), 4, 1, reducer=AveragePool(4))
    insert(model, 2, 3, **LOCATED)
    positions = seen_by_last(model)
    rows = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(positions, torch.stack((rows, torch.full((4,), 0.5)), dim=-1).expand(2, -1, -1))


def seen_by_last(model: nn.Module) -> Tensor:
    seen = []
    mergers(model)[-1].module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["positions"]), with_kwargs=True
    )
    model(make_images())
    return seen[0]


def test_copies_pickles_and_removal():
    plain = make_vit()
    model = insert(copy.deepcopy(plain), 4, **LOCATED)
    expected = model(make_images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(make_images()), expected)
    assert {key.split("merger.")[-1] for key in model.state_dict() if ".merger." in key} == {
        "weight", "norm.weight", "norm.bias", "prior.center", "prior.log_width", "gain"
    }  # fmt: skip
    assert torch.equal(remove(model)(make_images()), plain(make_images()))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_exported_and_checkpointed(dynamic, num_heads, fresh_compiler):
    model = insert(make_vit(dynamic_img_size=dynamic), [4, 2], [1, 3], **LOCATED, num_heads=num_heads)
    expected = model(make_images())
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(make_images()), expected)
    exported = torch.export.export(model, (make_images(),)).module()
    torch.testing.assert_close(exported(make_images()), expected)
    expected.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if "prior" in name}
    model.zero_grad()
    model.train().set_grad_checkpointing()
    model(make_images()).sum().backward()
    for name, parameter in model.named_parameters():
        if "prior" in name:
            assert gradients[name].abs().max() > 0
            torch.testing.assert_close(parameter.grad, gradients[name])


def test_a_pass_keeps_its_places_beside_others(one_thread):
    model = insert(make_vit("class token", dynamic_img_size=True), 4, 2, **LOCATED)
    sizes = [(16, 64), (64, 16), (32, 32)]  # as many patches, elsewhere
    images = [torch.randn(2, 3, *size) for size in sizes]
    with torch.no_grad():
        expected = [model(batch) for batch in images]
        with ThreadPoolExecutor(len(sizes)) as pool:
            found = list(pool.map(lambda turn: model(images[turn % 3]), range(60)))
    assert all(torch.allclose(output, expected[turn % 3], atol=1e-5) for turn, output in enumerate(found))
    centers = []
    for checkpointed in (False, True):  # a checkpointed block runs again after the pass of another size
        model.set_grad_checkpointing(checkpointed)
        model.train().zero_grad()
        sum(model(batch).square().sum() for batch in images).backward()
        centers.append(mergers(model)[0].module.prior.center.grad)
    torch.testing.assert_close(*centers)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_saved_and_loaded(tmp_path, num_heads):
    model = insert(make_vit(), [4, 2], [1, 3], **LOCATED, num_heads=num_heads)
    look_at(mergers(model)[0].module, [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8)] * num_heads)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert [m.module.num_heads for m in mergers(loaded)] == [num_heads] * 2
    assert torch.equal(loaded(make_images()), model(make_images()))


def test_no_weight_decay_on_places():
    for model in (make_vit(), make_model("ViTForImageClassification")):
        insert(model, 4, **LOCATED)
        names = {parameter: name for name, parameter in model.named_parameters()}
        decayed = {
            names[p] for g in parameter_groups(model, TrainingSettings()) if g["weight_decay"] for p in g["params"]
        }
        assert not {name for name in decayed if "merger" in name}


def parameters_of(model: nn.Module) -> list[set[str]]:
    return [{name for name, _ in merger.module.named_parameters()} for merger in mergers(model)]


PAPER = {"weight", "norm.weight", "norm.bias"}
WITH_PLACES = PAPER | {"gain", "prior.center", "prior.log_width"}


def test_queries_are_located_by_default_where_the_grid_is_known():
    torch.manual_seed(0)
    model = insert(make_vit(), (4, 2), (1, 3))
    torch.manual_seed(0)
    asked = insert(make_vit(), (4, 2), (1, 3), **LOCATED)
    assert all(torch.equal(tensor, asked.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert parameters_of(model) == [WITH_PLACES] * 2
    assert parameters_of(insert(insert(make_vit(), 4, 3), 8, 1)) == [WITH_PLACES] * 2
    assert parameters_of(insert(insert(make_vit(), 8, 1, prior=None), 4, 3)) == [PAPER, WITH_PLACES]


@pytest.mark.parametrize("options", [{"prior": None}, {"norm": "both"}, {"scale": 0.5}, {"init": torch.ones(4, 32)}])
def test_who_says_what_the_queries_are_has_the_equation_of_the_paper(options):
    assert parameters_of(insert(make_vit(), 4, **options)) == [PAPER]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_whether_queries_are_located(name):
    expected = WITH_PLACES if name in ("located", "scratch") else PAPER
    assert parameters_of(insert(make_vit(), 4, **preset(name, 32))) == [expected]


def test_the_default_has_no_places_where_none_are_known():
    for plain in (make_model("VideoMAEModel"), make_model("ViTMAEModel"), make_vit(patch_drop_rate=0.5)):
        assert parameters_of(insert(plain, 4)) == [PAPER]
    prefix = make_vit("registers, average pooling", pool_include_prefix=True)
    assert parameters_of(insert(prefix, 4, prefix="merge")) == [PAPER]
    silent = insert(make_vit(), 8, 1, reducer=Silent())
    assert [*mergers(insert(silent, 4, 3))[1].module.state_dict()] == [*PatchMerger(32, 4).state_dict()]
    assert silent(make_images()).shape == (2, 5)


class Silent(nn.Module):
    """It does not tell its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2]


def test_a_merger_that_tells_no_weights_cannot_come_before_located_queries():
    model = insert(make_vit(), 4, 3)
    with pytest.raises(ValueError, match=r"Silent.*no return_weights.*prior=None"):
        insert(model, 8, 1, reducer=Silent())
    assert len(mergers(model)) == 1


def test_what_has_no_places_is_refused():
    with pytest.raises(ValueError, match=r"prior \('grid'\).*grid.*VideoMAEModel"):
        insert(make_model("VideoMAEModel"), 4, **LOCATED)
    with pytest.raises(ValueError, match=r"prior \('grid'\).*grid.*VisionTransformer"):
        insert(make_vit(patch_drop_rate=0.5), 4, **LOCATED)
    with pytest.raises(ValueError, match=r"prior \('grid'\).*prefix='keep'"):
        insert(make_vit("registers, average pooling", pool_include_prefix=True), 4, prefix="merge", **LOCATED)
    model = make_model("ViTMAEModel")
    with pytest.raises(ValueError, match=r"prior \('grid'\)"):
        insert(model, 4, **LOCATED)
    assert not mergers(model)


def test_blocks_called_past_their_model_are_refused():
    model = insert(make_vit(dynamic_img_size=True), 4, 1, **LOCATED)
    with pytest.raises(ValueError, match=r"prior='grid'.*grid of patches.*call the model"):
        model.blocks[0](torch.zeros(1, 17, 32))
    model(make_images())
    with pytest.raises(ValueError, match=r"11 tokens.*4 × 4 patches"):
        model.blocks[0](torch.zeros(1, 12, 32))
