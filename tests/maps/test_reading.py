"""Merge maps where it is known which patches each query picks, in every kind of model; and nothing left in it."""

import copy

import pytest
import torch
from torch import nn

from conftest import make_images, make_timm, make_vit
from hosts.families import FAMILIES as TIMM
from hosts.families import family_images, make_family
from hosts.tiny import FAMILIES as TRANSFORMERS
from hosts.tiny import make_inputs, make_model, padded_inputs, positions_of
from insertion_helpers import Strided, snapshot
from maps.constructed import expected, picking
from patchmerger import PatchMerger, insert, mergers, preset
from patchmerger.maps import merge_maps, read_maps
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")

CORNERS = [[(0, 0)], [(0, 3), (1, 2)], [(3, 3)]]
WITHOUT_GRID = ("ViTMAEModel", "VideoMAE", "Vivit", "Gemma 4")
PICKED = [(0, 0), (0, 3), (2, 1), (3, 3)]


def located(model: nn.Module, number: int, places: list[tuple[float, float]]) -> None:
    """Let each query of a merger see one place and nothing else."""
    merger = mergers(model)[number].module
    with torch.no_grad():
        merger.weight.zero_()
        merger.prior.center.copy_(torch.tensor(places))
        merger.prior.log_width.fill_(-7.0)


@pytest.mark.parametrize("variant", ["class token", "average pooling", "registers, LayerScale", "distilled"])
def test_each_map_is_at_the_patches_that_its_query_picks(variant):
    model = picking(CORNERS, variant=variant)
    torch.testing.assert_close(merge_maps(model, make_images()), expected(CORNERS, (4, 4), 2))


@pytest.mark.parametrize("grid", [(2, 8), (8, 2), (3, 5)])
def test_images_that_are_not_square(grid):
    rows, columns = grid
    picks = [[(0, columns - 1)], [(rows - 1, 0)], [(1, 1), (0, 1)]]
    images = torch.randn(3, 3, 8 * rows, 8 * columns)
    torch.testing.assert_close(merge_maps(picking(picks, grid=grid), images), expected(picks, grid, 3))


def test_several_mergers_are_composed_back_to_the_patches():
    first = [[(0, 0), (0, 1)], [(3, 2)], [(2, 2), (1, 3)], [(3, 0)]]
    second = [[(3, 2), (3, 0)], [(0, 0), (0, 1)]]  # of which the first merger holds one token each
    maps = read_maps(picking(first, second), make_images())
    torch.testing.assert_close(maps[0].maps, expected(first, (4, 4), 2))
    # The token of the first query is half of each of two patches, and so looks less like one of them.
    torch.testing.assert_close(maps[1].maps, expected(second, (4, 4), 2), atol=1e-3, rtol=0)
    assert [(m.name, m.after, m.reducer) for m in maps] == [
        ("blocks.0.merger", 1, "PatchMerger"),
        ("blocks.1.merger", 2, "PatchMerger"),
    ]


def test_the_weights_are_those_that_the_forward_pass_computes():
    model = insert(make_vit(), num_tokens=[6, 4], after=[1, 3], prior=None)
    seen = []
    hooks = [
        m.module.register_forward_hook(lambda module, args, output: seen.append((module, args[0])))
        for m in mergers(model)
    ]
    model(images := make_images())
    for hook in hooks:
        hook.remove()
    first, second = (module(tokens, return_weights=True)[1].double() for module, tokens in seen)
    composed = torch.zeros(2, 4, 16, dtype=torch.float64)
    for b in range(2):
        for m in range(4):
            for n in range(16):
                composed[b, m, n] = sum(second[b, m, k] * first[b, k, n] for k in range(6))
    torch.testing.assert_close(merge_maps(model, images).double().flatten(2), composed, atol=1e-6, rtol=1e-5)


def test_prefix_tokens_that_are_merged_have_their_own_share():
    model = insert(make_vit("pooling with prefix"), num_tokens=4, prefix="merge")
    [maps] = read_maps(model, make_images())
    assert maps.prefix_weights.shape == (2, 4, 4)
    torch.testing.assert_close(maps.maps.sum(dim=(2, 3)) + maps.prefix_weights.sum(dim=2), torch.ones(2, 4))


@pytest.mark.parametrize("name", [name for name in TIMM if name not in WITHOUT_GRID])
def test_every_family_of_timm(name):
    model = insert(make_family(name), 4, 1, positions=TIMM[name].positions, **preset("located", 32))
    located(model, 0, [((r + 0.5) / 6, (c + 0.5) / 6) for r, c in PICKED])
    maps = merge_maps(model, family_images())
    torch.testing.assert_close(maps, expected([[p] for p in PICKED], (6, 6), len(maps)))
    plain = insert(make_family(name), 4, 1, positions=TIMM[name].positions)
    assert merge_maps(plain, family_images()).shape == maps.shape


@pytest.mark.parametrize("name", [n for n in TRANSFORMERS if not n.startswith(WITHOUT_GRID)])
def test_every_family_of_transformers(name):
    model, inputs = make_model(name), make_inputs(name)
    side = 5 if inputs.get("pixel_values", torch.empty(0)).shape[-1] == 40 else 4
    insert(model, 4, 1, positions=positions_of(name), **preset("located", 32))
    located(model, 0, [((r + 0.5) / side, (c + 0.5) / side) for r, c in PICKED])
    maps = merge_maps(model, inputs)
    torch.testing.assert_close(maps, expected([[p] for p in PICKED], (side, side), len(maps)))


def test_located_queries_tell_their_places_and_widths():
    model = insert(make_vit(), 4, 1, **preset("located", 32))
    [maps] = read_maps(model, make_images())
    torch.testing.assert_close(maps.centers, torch.tensor([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]))
    torch.testing.assert_close(maps.widths, torch.full((4, 2), 0.125))
    [maps] = read_maps(insert(make_vit(), 2, 1, **preset("scratch", 32)), make_images())  # heads at 1/8, 3/8, 5/8, 7/8
    torch.testing.assert_close(maps.centers, torch.tensor([[0.25, 0.5], [0.75, 0.5]]))
    torch.testing.assert_close(maps.widths, torch.tensor([[1 / 8, (1 / 16**2 + 5 / 64) ** 0.5]] * 2))
    assert read_maps(insert(make_vit(), 4, prior=None), make_images())[0].centers is None


def test_images_of_several_sizes_lie_at_the_top_left():
    architecture = "naflexvit_base_patch16_gap"
    model = make_timm(architecture, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5)
    insert(model, 4, 1, **preset("located", 32))
    places = [(0.01, 0.01), (0.01, 0.99), (0.99, 0.01), (0.99, 0.99)]  # the corners of each image
    located(model, 0, places)
    sizes = [(2, 3), (4, 2)]
    coord = torch.zeros(2, 10, 2, dtype=torch.long)
    valid = torch.zeros(2, 10, dtype=torch.bool)
    for image, (rows, columns) in enumerate(sizes):
        count = rows * columns
        coord[image, :count] = torch.tensor([(r, c) for r in range(rows) for c in range(columns)])
        valid[image, :count] = True
    inputs = {"patches": torch.randn(2, 10, 192), "patch_coord": coord, "patch_valid": valid}
    [found] = read_maps(model, inputs)
    wanted = torch.zeros(2, 4, 4, 3)
    for image, (rows, columns) in enumerate(sizes):
        corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
        for token, (row, column) in enumerate(corners):
            wanted[image, token, row, column] = 1
    torch.testing.assert_close(found.maps, wanted)
    assert found.is_patch.sum(dim=(1, 2)).tolist() == [6, 8]
    assert bool(found.is_patch[0, :2].all())
    assert bool(found.is_patch[1, :, :2].all())


def test_padded_batches_of_siglip2():
    model = make_model("Siglip2VisionModel")
    inputs = padded_inputs()
    insert(model, 2, 1)
    [found] = read_maps(model, inputs)
    shapes = inputs["spatial_shapes"].tolist()
    assert found.maps.shape[2:] == (max(r for r, _ in shapes), max(c for _, c in shapes))
    torch.testing.assert_close(found.maps.sum(dim=(2, 3)), torch.ones(len(shapes), 2))
    assert found.maps.masked_select(~found.is_patch[:, None].expand_as(found.maps)).abs().sum() == 0


def test_average_pooling_takes_runs_of_patches():
    model = insert(make_vit(), 4, reducer=AveragePool(4))
    rows = [[(row, column) for column in range(4)] for row in range(4)]
    torch.testing.assert_close(merge_maps(model, make_images()), expected(rows, (4, 4), 2))


def test_the_model_is_left_as_it_was():
    model = insert(make_vit(), num_tokens=[6, 4], after=[1, 3]).train()
    before, states = snapshot(model), [block.merge_state for block in (model.blocks[0], model.blocks[2])]
    modes = [module.training for module in model.modules()]
    maps = merge_maps(model, make_images())
    assert not maps.requires_grad
    assert snapshot(model) == before
    assert [block.merge_state for block in (model.blocks[0], model.blocks[2])] == states
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    copy.deepcopy(model)


def test_an_error_in_between_leaves_it_so_too():
    model = insert(make_vit(), num_tokens=4)
    state = model.blocks[1].merge_state
    with pytest.raises(AssertionError, match="Input height"):
        merge_maps(model, make_images(size=40))
    assert model.blocks[1].merge_state is state


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "how", ["each block", *(pytest.param(how, marks=pytest.mark.slow) for how in ("torch.compile", "model.compile"))]
)
def test_compiled_graphs_run_afterwards_as_they_are(how):
    compiled_graphs = []

    def backend(graph, example_inputs):
        compiled_graphs.append(graph)
        return graph.forward

    model, images = insert(make_vit(depth=2), num_tokens=4), make_images()
    wanted = merge_maps(copy.deepcopy(model), images)
    runs = model
    if how == "torch.compile":
        runs = torch.compile(model, backend=backend, fullgraph=True)
    elif how == "model.compile":
        model.compile(backend=backend, fullgraph=True)
    else:
        for block in model.blocks:
            block.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        before = runs(images)
        count = len(compiled_graphs)
        assert count > 0
        torch.testing.assert_close(merge_maps(runs, images), wanted)
        after = runs(images)
    assert len(compiled_graphs) == count
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_model_without_a_merger_is_told_how_to_get_one():
    with pytest.raises(ValueError, match=r"VisionTransformer.* no merger.*insert\(model, num_tokens=8\)"):
        merge_maps(make_vit(), make_images())


def test_a_reducer_that_does_not_tell_its_weights_is_named():
    model = insert(make_vit(variant="average pooling"), 4, reducer=Strided(4))
    with pytest.raises(ValueError, match=r"blocks\.1\.merger \(Strided\).*return_weights"):
        merge_maps(model, make_images())


def test_patches_that_are_left_out_in_training_are_all_there():
    model = insert(make_vit(patch_drop_rate=0.5), 4).train()
    assert merge_maps(model, make_images()).shape == (2, 4, 4, 4)


def test_a_grid_that_is_not_known_can_be_given():
    name = next(name for name in TRANSFORMERS if name.startswith("VideoMAE"))
    model, inputs = insert(make_model(name), 4, 1), make_inputs(name)
    with pytest.raises(ValueError, match=r"grid \(None\) must be given, rows and columns of the \d+ patches"):
        merge_maps(model, inputs)
    patches = mergers(model)[0].tokens_before
    with pytest.raises(ValueError, match="no grid of 3 × 5"):
        merge_maps(model, inputs, grid=(3, 5))
    assert merge_maps(model, inputs, grid=(2, patches // 2)).shape == (len(inputs["pixel_values"]), 4, 2, patches // 2)
    with pytest.raises(ValueError, match=r"grid \(\(2, 8\)\).*4 × 4"):
        merge_maps(insert(make_vit(), 4), make_images(), grid=(2, 8))


def test_half_precision_gives_maps_in_float32():
    model = insert(make_vit(), 4).bfloat16()
    maps = merge_maps(model, make_images().bfloat16())
    assert maps.dtype == torch.float32
    assert isinstance(mergers(model)[0].module, PatchMerger)
