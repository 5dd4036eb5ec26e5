"""The paper's models by name: sizes against timm's, by hand and as published; weights by name; the merger's options."""

import inspect
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg, is_model_pretrained
from timm.models.vision_transformer import VisionTransformer

from conftest import make_images
from patchmerger import cost, load, mergers, remove, save, zoo
from patchmerger.cli import main
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.studies.variants import shallow_twin
from patchmerger.training import Recipe
from patchmerger.zoo import SIZES, create, plain_name, without_merger

pytestmark = pytest.mark.usefixtures("one_thread")
BASE, TINY = "patchmerger_base_patch16_224", "patchmerger_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
PAGE = (Path(__file__).parents[1] / "docs" / "zoo.md").read_text()
IN_TIMM = [name for name in SIZES if plain_name(name)]
# In millions, with 1,000 classes or so: arXiv 2010.11929, table 1 (B, L, H), and arXiv 2106.04560, table 2 (G).
PUBLISHED = {
    "patchmerger_base_patch16_224": 86,
    "patchmerger_large_patch16_224": 307,
    "patchmerger_huge_patch14_224": 632,
    "patchmerger_gigantic_patch14_224": 1843,
}


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, weight_init="skip", **options)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# Sizes


def test_the_papers_models_are_there():
    sizes = {name.split("_")[1] + "/" + name.split("patch")[2].split("_")[0] for name in IN_TIMM}
    assert sizes == {"tiny/16", "small/32", "small/16", "base/32", "base/16", "large/32", "large/16", "huge/14",
        "gigantic/14"}  # fmt: skip
    assert set(timm.list_models("patchmerger_*")) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_timms_those_by_hand_and_the_published_ones(name):
    model = on_meta(name, num_classes=1000)
    assert_by_hand(SIZES[name], cost(model))
    assert row_of(name, cost(model)) in PAGE
    depth = len(model.blocks)
    assert [(m.after, m.num_tokens) for m in mergers(model)] == [(depth // 2, 8)]
    merged = shapes(remove(model))
    if name in IN_TIMM:
        plain = on_meta(plain_name(name), num_classes=1000)
        assert merged == shapes(plain)
        assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    if name in PUBLISHED:
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert millions == pytest.approx(PUBLISHED[name], rel=0.01)


def row_of(name, predicted):
    size, flops = SIZES[name], f"{predicted.plain_flops / 1e9:.3g} → {predicted.flops / 1e9:.3g}"
    numbers = f"{size.width}, {size.depth}, {size.num_heads}, {size.mlp_dim} | {predicted.tokens - 1}"
    return f"| `{name}` | {numbers} | {predicted.params / 1e6:.1f} | {flops} | {predicted.speedup:.2f} |"


def assert_by_hand(size, predicted):
    D, F, L, P = size.width, size.mlp_dim, size.depth, (size.image_size // size.patch_size) ** 2
    pixels = 3 * size.patch_size**2
    block = 4 * D * D + 4 * D + 2 * D * F + F + D + 4 * D  # attention, MLP, two norms
    plain = (pixels + 1) * D + D + (P + 1) * D + L * block + 2 * D + 1000 * (D + 1)
    assert predicted.params == plain + 8 * D + 2 * D

    def block_flops(n):
        return 2 * n * (4 * D * D + 2 * D * F) + 4 * n * n * D

    ends = 2 * P * pixels * D + 2 * D * 1000
    assert predicted.plain_flops == ends + L * block_flops(P + 1)
    assert predicted.flops == ends + L // 2 * (block_flops(P + 1) + block_flops(9)) + 4 * P * 8 * D
    assert (predicted.tokens, predicted.tokens_out) == (P + 1, 9)


@pytest.mark.parametrize("name", [TINY, "patchmerger_small_patch8_64"])
def test_no_tokens_mean_no_merger(name):
    model = on_meta(name, num_tokens=0, after=3)
    assert type(model) is VisionTransformer
    assert shapes(model) == shapes(remove(on_meta(name)))


def test_small_images_make_64_tokens():
    for name in set(SIZES) - set(IN_TIMM):
        model = on_meta(name)
        assert model.patch_embed.num_patches == 64
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, *[SIZES[name].image_size] * 2)


# Options


def test_the_mergers_options_are_those_of_insert():
    model = timm.create_model(TINY, **SMALL, num_tokens=(6, 2), after=(1, 3), preset="vit-pytorch")
    assert [(m.after, m.num_tokens, m.module.norm_mode) for m in mergers(model)] == [(1, 6, "both"), (3, 2, "both")]
    assert mergers(model)[0].module.scale == 32**-0.5
    model = timm.create_model(TINY, **SMALL, num_tokens=4, preset="paper", norm="none", scale=0.5, prefix="merge",
        global_pool="avg", class_token=False)  # fmt: skip
    (merger,) = mergers(model)
    assert (merger.module.norm_mode, merger.module.scale, merger.num_kept_prefix_tokens) == ("none", 0.5, 0)


def test_the_mergers_options_are_no_arguments_of_timms():
    ours = set(inspect.signature(create).parameters) - {"name", "pretrained", "kwargs"}
    assert not ours & set(inspect.signature(VisionTransformer.__init__).parameters)


def test_timms_arguments_pass_through():
    model = timm.create_model(TINY, **{**SMALL, "img_size": 64}, drop_path_rate=0.1, global_pool="avg")
    assert (model.patch_embed.num_patches, len(model.blocks), model.global_pool) == (64, 4, "avg")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert [m.after for m in mergers(model)] == [2]
    features = timm.create_model(TINY, **SMALL, num_tokens=4, features_only=True, out_indices=(0, 1))
    assert features.feature_info.channels() == [32, 32]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"after": 12}, ValueError, r"after \(12\) must be a block from 1 to 11"),
        ({"num_tokens": 400}, ValueError, r"num_tokens \(400\) after block 6 is more than the 196 tokens that arrive"),
        ({"num_tokens": -1}, ValueError, r"num_tokens \(-1\) must be a whole number of at least 1"),
        ({"preset": "best"}, ValueError, r"preset \('best'\) must be one of 'default', 'paper'"),
        ({"norm": "batch"}, ValueError, r"norm \('batch'\) must be one of 'scores', 'both', 'none'"),
        ({"scale": 0.0}, ValueError, r"scale \(0\.0\) must be finite and not zero"),
        ({"prefix": "merge"}, ValueError, r"prefix \('merge'\) would merge tokens that are needed"),
        ({"num_token": 8}, TypeError, r"unexpected keyword argument 'num_token'"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        on_meta(TINY, **options)


# Weights


@pytest.mark.parametrize("name", IN_TIMM)
def test_weights_are_those_of_timm_by_tag(name):
    ours, theirs = get_pretrained_cfg(name), get_pretrained_cfg(plain_name(name))
    assert (ours.tag, ours.hf_hub_id, ours.mean, ours.crop_pct) == (
        theirs.tag, theirs.hf_hub_id, theirs.mean, theirs.crop_pct)  # fmt: skip
    assert is_model_pretrained(name) == is_model_pretrained(plain_name(name))


def test_a_name_with_a_tag():
    model = on_meta(f"{BASE}.augreg_in21k")
    assert model.num_classes == 21843
    assert model.pretrained_cfg["hf_hub_id"] == "timm/vit_base_patch16_224.augreg_in21k"
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(unheard_of\)"):
        on_meta(f"{BASE}.unheard_of")


def test_a_size_without_weights_says_so():
    for name in ("patchmerger_gigantic_patch14_224", "patchmerger_small_patch4_32"):
        with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
            timm.create_model(name, pretrained=True, depth=2, embed_dim=32, num_heads=2)


@pytest.fixture
def plain(tmp_path):
    """A plain timm model whose weights are in a file, as timm's are on the hub."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
        torch.nn.init.normal_(model.head.weight)
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    return model


def with_weights(path, name=TINY, **options):
    source = {"file": str(path), "num_classes": 5, "input_size": (3, 32, 32)}
    arguments = {**SMALL, "num_tokens": 4, **options}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **arguments).eval()


def test_plain_weights_are_taken_for_everything_but_the_merger(plain, tmp_path):
    model, images = with_weights(tmp_path / "plain.safetensors"), make_images()
    (merger,) = mergers(model)
    assert float(merger.module.weight.detach().std()) == pytest.approx(32**-0.5, rel=0.3)  # as it starts
    assert torch.equal(remove(model)(images), plain(images))


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"img_size": 64}, {"in_chans": 1}])
def test_plain_weights_are_adapted_as_timm_does(plain, tmp_path, options):
    ours = remove(with_weights(tmp_path / "plain.safetensors", **options))
    theirs = with_weights(tmp_path / "plain.safetensors", "vit_tiny_patch16_224", **options, num_tokens=None)
    for name, tensor in theirs.state_dict().items():
        if not (name.startswith("head.") and "num_classes" in options):
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert ours.head.out_features == options.get("num_classes", 5)


def test_merged_weights_are_loaded_whole_and_never_in_part(plain, tmp_path):
    first, path = with_weights(tmp_path / "plain.safetensors"), tmp_path / "merged.safetensors"
    save_file(first.state_dict(), path)
    assert torch.equal(with_weights(path)(make_images()), first(make_images()))
    for options in (
        {"after": 3},
        {"num_tokens": 2},
        {"norm": "none"},
        {"num_tokens": 0},
        {"after": 3, "num_classes": 3},
    ):
        with pytest.raises(
            ValueError, match=r"the weights have blocks\.1\.merger\.norm\.bias \(32,\).*but the model has"
        ):
            with_weights(path, **options)


def test_weights_that_do_not_fit_are_refused(plain, tmp_path):
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*blocks\.4\."):
        with_weights(tmp_path / "plain.safetensors", depth=5)


# With the rest of the library


def test_saved_and_loaded(tmp_path):
    model = timm.create_model(TINY, **SMALL, num_tokens=4, after=1, preset="paper").eval()
    save(model, tmp_path / "model", model_args=without_merger(TINY))
    again = load(tmp_path / "model")
    assert [(m.after, m.num_tokens, m.module.norm_mode) for m in mergers(again)] == [(1, 4, "both")]
    assert torch.equal(again(make_images()), model(make_images()))


def test_saved_and_loaded_without_a_word(tmp_path):
    model = timm.create_model(TINY, **SMALL, num_tokens=4, after=1).eval()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert [(m.after, m.num_tokens) for m in mergers(again)] == [(1, 4)]
    save(remove(again), tmp_path / "plain")
    assert mergers(load(tmp_path / "plain")) == []
    assert "patchmerger_tiny_patch16_224" in (tmp_path / "plain" / "config.json").read_text()


def test_a_saved_folder_can_be_read_by_timm(tmp_path):
    model = timm.create_model(TINY, **SMALL, num_tokens=4, after=1).eval()
    config = {"architecture": TINY, "num_classes": 5, "model_args": {**SMALL, "num_tokens": 4, "after": 1}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {"num_classes": 5}}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(make_images()), model(make_images()))


def test_the_merge_settings_say_what_merges(tmp_path):
    size = {key: value for key, value in SMALL.items() if key != "num_classes"}
    settings = ModelSettings(TINY, size)
    assert mergers(build_model(settings, num_classes=5)) == []
    pooled = build_model(settings, MergeSettings(num_tokens=4, reducer="average"), num_classes=5)
    assert [type(m.module).__name__ for m in mergers(pooled)] == ["AveragePool"]
    merged = build_model(settings, MergeSettings(num_tokens=4, after=3), num_classes=5).eval()
    assert [(m.after, m.num_tokens) for m in mergers(merged)] == [(3, 4)]
    save(merged, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(make_images()), merged(make_images()))
    assert shallow_twin(Recipe(model=settings), cost(merged).flops).model.args["depth"] in (3, 4)
    with pytest.raises(
        ValueError, match=r"model\.args .* describe the merger of .*: give merge\.after and merge\.num_tok"
    ):
        build_model(ModelSettings(f"{TINY}.augreg_in21k", {"num_tokens": 4, "after": 1}), num_classes=5)


def test_the_command_line_knows_the_names(capsys):
    assert main(["cost", BASE, "--merge.after", "4"]) == 0
    assert "blocks.3.merger" in capsys.readouterr().out
    assert main(["cost", BASE, "--merge", "null"]) == 0
    assert "no merger" in capsys.readouterr().out
    assert main(["cost", "patchmerger_bse_patch16_224"]) == 2
    assert "did you mean patchmerger_base_patch16_224" in capsys.readouterr().err


def test_every_name_can_be_imported():
    assert set(zoo.__all__) >= set(SIZES)
    assert all(callable(getattr(zoo, name)) for name in zoo.__all__)
