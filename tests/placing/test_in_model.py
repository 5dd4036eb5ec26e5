"""Placing in a model: reversible, with mergers before or after, and through copies, compilers and checkpointing."""

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from conftest import make_images, make_timm, make_vit
from merged_models import ROPE, assert_same_classes, step
from patchmerger import UnsupportedModelError, insert, mergers, place, preset, remove, unplace
from patchmerger.hosts import find_host
from patchmerger.maps import read_maps
from patchmerger.mechanism.recording import recorded_weights
from patchmerger.placing import PlacingSettings, placing_of, positions_given, positions_in, saliency_given

pytestmark = pytest.mark.usefixtures("one_thread")


def make_rotary(kind: str) -> nn.Module:
    architecture, arguments = ROPE[kind]
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    return make_timm(architecture, **sizes, **arguments)


MODELS = {
    "class token": make_vit,
    "registers": lambda: make_vit("registers, LayerScale"),
    "distilled": lambda: make_vit("distilled"),
    "axial": lambda: make_rotary("axial"),
    "mixed": lambda: make_rotary("mixed"),
}


def images_for(model: nn.Module) -> Tensor:
    return make_images(2, model.patch_embed.img_size[0])


@pytest.mark.parametrize("name", MODELS)
def test_unplace_puts_back_what_was_there(name):
    plain, model = MODELS[name](), MODELS[name]()
    images = images_for(plain)
    keys = list(plain.state_dict())
    place(model, 9)
    assert [key for key in model.state_dict() if ".placement." not in key] == keys
    assert [key for key in model.state_dict() if ".placement." in key] == ["patch_embed.placement.points"]
    assert not torch.equal(model(images), plain(images))
    assert placing_of(model) == PlacingSettings(9, "sobol")
    assert find_host(model).num_patches == 9
    unplace(model)
    assert_same_classes(model, plain)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(images), plain(images))
    assert vars(model).keys() == vars(plain).keys()
    assert placing_of(model) is None


@pytest.mark.parametrize("name", MODELS)
def test_merge_after_placing_and_placing_after_a_merge(name):
    first, second = MODELS[name](), MODELS[name]()
    images = images_for(first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        insert(place(first, 9), (4, 2), (1, 2))
        torch.manual_seed(2)
        place(insert(second, (4, 2), (1, 2)), 9)
    assert_same_classes(first, second)
    assert torch.equal(first(images), second(images))
    assert [m.tokens_before - m.num_kept_prefix_tokens for m in mergers(second)] == [9, 4]
    merged = copy.deepcopy(second)
    assert torch.equal(unplace(merged)(images), unplace(copy.deepcopy(first))(images))
    assert torch.equal(remove(merged)(images), MODELS[name]()(images))
    assert_same_classes(merged, MODELS[name]())
    assert torch.equal(remove(first)(images), place(MODELS[name](), 9)(images))
    assert_same_classes(unplace(first), MODELS[name]())


@pytest.mark.parametrize("order", ["place first", "insert first"])
def test_located_queries_know_where_placed_tokens_are(order):
    model, images, seen = make_vit(), make_images(), []
    if order == "place first":
        insert(place(model, 9), (4, 2), (1, 3), **preset("located", 32))
    else:
        place(insert(model, (4, 2), (1, 3), **preset("located", 32)), 9)
    for merger in mergers(model):
        merger.module.register_forward_hook(
            lambda module, args, given, output: seen.append((given["positions"], output[1])), with_kwargs=True
        )
    given = torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(0))
    with positions_given(model, given):
        model(images)
    (places, weights), (later, _) = seen[0], seen[1]
    assert torch.equal(places, given)
    torch.testing.assert_close(later, weights @ given)
    copy.deepcopy(model)
    seen.clear()
    unplace(model)(images)
    assert seen[0][0].shape[-2:] == (16, 2)


@pytest.mark.parametrize("preset_name", ["paper", "located"])
def test_merge_maps_are_laid_out_at_true_places(preset_name):
    model, images = insert(place(make_vit(), 16, "grid"), 4, **preset(preset_name, 32)), make_images()
    expected = read_maps(unplace(copy.deepcopy(model)), images)[0]
    (found,) = read_maps(model, images)
    torch.testing.assert_close(found.maps, expected.maps, rtol=0, atol=1e-5)
    assert torch.equal(found.is_patch, expected.is_patch)
    assert expected.places is None
    assert torch.equal(found.places, positions_in(model, images))
    corner, between = [0.0, 0.0], [0.25, 0.625]  # between the first two rows, at the third column
    model = insert(place(make_vit(), positions=[corner, between]), 2, **preset(preset_name, 32))
    with recorded_weights(model, {2: model.blocks[1]}) as weights:
        model(images)
    maps = read_maps(model, images)[0].maps
    torch.testing.assert_close(maps[:, :, 0, 0], weights[2][:, :, 0])
    torch.testing.assert_close(maps[:, :, 0, 2], weights[2][:, :, 1] / 2)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 2))


def test_a_copy_is_taken_after_a_batch_with_learned_positions():
    model = insert(place(make_vit(), 9, "learned"), 4, **preset("located", 32))
    model.train()(make_images()).sum().backward()
    assert torch.equal(copy.deepcopy(model).eval()(make_images()), model.eval()(make_images()))


@pytest.mark.parametrize("kind", ROPE)
def test_merged_tokens_have_the_rotary_positions_of_those_they_were_placed_as(kind):
    """A merger that picks single tokens hands on their own rows of the rotary table, whatever order they are in."""
    model, seen = make_rotary(kind), []
    place(model, 9)
    insert(model, 4, 1, prior=None)
    (merger,) = mergers(model)
    picked = [7, 0, 3, 5]

    def forward(x: Tensor, return_weights: bool = False) -> tuple[Tensor, Tensor]:
        weights = torch.eye(9)[picked].expand(len(x), -1, -1)
        return weights @ x, weights

    merger.module.forward = forward
    for block in (model.blocks[0], model.blocks[2]):
        attention = block.attn
        attention.register_forward_pre_hook(lambda _, __, given: seen.append(given["rope"]), with_kwargs=True)
    if kind == "mixed":  # each block has a table of its own
        tables = model._pos_embed(model.patch_embed(images_for(model)))[1]
        model(images_for(model))
        seen[0] = tables[2]
    else:
        model(images_for(model))
    torch.testing.assert_close(seen[1], seen[0][..., picked, :])


def test_copies_and_pickles():
    model, images = insert(place(make_vit(), 9), 4), make_images()
    expected = model(images)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_classes(again, model)
        assert torch.equal(again(images), expected)
        assert torch.equal(unplace(again)(images), unplace(copy.deepcopy(model))(images))
    other = insert(place(make_vit(), 9, seed=7), 4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), expected)


def test_checkpointing_gives_the_same_gradients():
    model, images = insert(place(make_vit(), 9, "learned"), 4, **preset("located", 32)).train(), make_images()
    outputs, gradients = step(model, images)
    model.set_grad_checkpointing()
    again, others = step(model, images)
    torch.testing.assert_close(again, outputs)
    assert "patch_embed.placement.offset" in gradients
    torch.testing.assert_close(others, gradients)


@pytest.mark.parametrize(
    ("make", "sampler"), [("registers", "sobol"), pytest.param("axial", "edges", marks=pytest.mark.slow)]
)
def test_export(make, sampler):
    model = insert(place(MODELS[make](), 9, sampler), 4, **preset("located", find_host(MODELS[make]()).dim))
    images = images_for(model)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.cat((images, images.flip(0)))[1:]
    torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("make", "sampler"), [("axial", "edges"), ("mixed", "learned")])
def test_compile(make, sampler):
    model = insert(place(MODELS[make](), 9, sampler), 4, **preset("located", find_host(MODELS[make]()).dim))
    images = images_for(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))


def test_features():
    model, images = place(make_vit(), 9), make_images()
    last, features = model.forward_intermediates(images, output_fmt="NLC")
    assert {f.shape for f in features} == {(2, 9, 32)}
    torch.testing.assert_close(model.forward_head(last), model(images))
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\).*placed"):
        model.forward_intermediates(images)


REFUSED = {
    "vit_relpos_small_patch16_224": (r"VisionTransformerRelPos .*have its tokens placed", {}),
    "cait_xxs24_224": (r"Cait .*have its tokens placed", {}),
    "beit_base_patch16_224": (r"Beit .*have its tokens placed", {}),
    "naflexvit_base_patch16_gap": (r"NaFlexVit .*have its tokens placed", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_hosts_are_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=2)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name][0]):
        place(model, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_drop_rate": 0.5}, "patch_drop_rate"),
        ({"pos_drop_rate": 0.1}, r"pos_drop_rate \(0.1\)"),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, "pads images"),
    ],
)
def test_what_would_come_between_is_refused(arguments, message):
    with pytest.raises(UnsupportedModelError, match=message):
        place(make_vit(**arguments), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 17}, r"num_tokens \(17\) is more than the 16 patches"),
        ({}, r"num_tokens \(49\) is more than the 16 patches"),
        ({"num_tokens": 0}, r"num_tokens \(0\)"),
        ({"num_tokens": 4, "sampler": "halton"}, r"sampler \('halton'\) must be one of 'grid', 'center'"),
        ({"num_tokens": 4, "window": 33}, r"window \(33, 33\) is larger"),
        ({"num_tokens": 4, "window": 0}, r"window \(\(0, 0\)\)"),
        ({"num_tokens": 4, "seed": -1}, r"seed \(-1\)"),
        ({"num_tokens": 4, "std": 0.0}, r"std \(0.0\)"),
        ({"num_tokens": 4, "uniform_share": 1.5}, r"uniform_share \(1.5\)"),
        ({"positions": [[0.5, 1.2]]}, r"from 0.5 to 1.2.*clamp=True"),
        ({"positions": [[0.5, float("nan")]]}, "finite"),
        ({"positions": [0.5, 0.5]}, r"positions \(2,\)"),
        ({"positions": [[0.5, 0.5]], "num_tokens": 2}, "num_tokens is 2"),
        ({"positions": [[0.5, 0.5]], "sampler": "grid"}, "sampler 'grid'"),
    ],
)
def test_what_cannot_be_placed_is_refused(arguments, message):
    model = make_vit()
    with pytest.raises(ValueError, match=message):
        place(model, **arguments)
    assert_same_classes(model, make_vit())


def test_positions_outside_are_clamped_by_option():
    model = place(make_vit(), positions=[[0.5, 1.2]], clamp=True)
    assert positions_in(model, make_images()).tolist() == [[[0.5, 1.0]]] * 2


def test_what_does_not_fit_a_batch_is_refused():
    model, images = place(make_vit(), 4, "saliency"), make_images()
    with pytest.raises(ValueError, match="saliency_given"):
        model(images)
    with saliency_given(model, torch.ones(5, 5)), pytest.raises(ValueError, match=r"saliency \(5, 5\).*\(32, 32\)"):
        model(images)
    with saliency_given(model, torch.ones(3, 4, 4)), pytest.raises(ValueError, match=r"one for each of 2 images"):
        model(images)
    for wrong, message in ((torch.ones(4), r"saliency \(4,\)"), (-torch.ones(4, 4), "below 0")):
        with pytest.raises(ValueError, match=message), saliency_given(model, wrong):
            pass
    with pytest.raises(ValueError, match="4 tokens"), positions_given(model, torch.rand(5, 2)):
        pass
    with positions_given(model, torch.rand(3, 4, 2)), pytest.raises(ValueError, match="for the 2 images"):
        model(images)
    model = place(make_vit(), 4, "given")
    with pytest.raises(ValueError, match="positions must be given"):
        model(images)
    with pytest.raises(ValueError, match="not 'given'"), saliency_given(model, torch.ones(4, 4)):
        pass
    with pytest.raises(ValueError, match="32 × 40 pixels"):
        model(torch.zeros(1, 3, 32, 40))


def test_calls_out_of_place_are_refused():
    model = make_vit()
    for call in (unplace, lambda m: positions_in(m, make_images()), lambda m: positions_given(m, [[0, 0]]).__enter__()):
        with pytest.raises(ValueError, match="no placed tokens"):
            call(model)
    place(model, 4)
    with pytest.raises(ValueError, match="placed tokens already"):
        place(model, 4)
    with pytest.raises(ValueError, match=r"num_tokens \(8\).*4 tokens that arrive"):
        insert(model, 8)
    with pytest.raises(ValueError, match=r"num_tokens \(4\) is less than the 8 tokens"):
        place(insert(make_vit(), 8), 4)
    with pytest.raises(TypeError, match="cannot be scripted"):
        model.__prepare_scriptable__()
    model.patch_embed.register_forward_hook(lambda module, args, output: output + 0)
    with pytest.raises(RuntimeError, match="without their positions"):
        model(make_images())
