"""What fine-tuning starts from: weights that are really there, another size, new heads, mergers kept, refusals."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import patchmerger
from patchmerger import insert, mergers
from patchmerger.costs.model_cost import cost
from patchmerger.data import DataSettings, Preprocessing
from patchmerger.hosts import find_host
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.training.finetuning import content_of, start_from
from patchmerger.training.fitting import fit
from patchmerger.training.settings import Recipe, TrainingSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
NAMES = ("ant", "bee", "cow")
HOSTS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "average pooling": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
    "rope": ("vit_small_patch16_rope_224", {}),
    "rope and positions": ("eva02_tiny_patch14_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "zoo": ("patchmerger_tiny_patch4_32", {}),
}


def upstream(folder: Path, host: str = "class token", merge: bool = True, **options) -> nn.Module:
    """A saved model, with weights that no fresh model has."""
    torch.manual_seed(0)
    name, args = HOSTS[host]
    own = {"num_tokens": 0} if host == "zoo" else {}
    model = timm.create_model(name, num_classes=3, **SMALL, **own, **args)
    if merge:
        insert(model, num_tokens=4, after=2, norm="both", scale=0.25)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    patchmerger.save(
        model, folder, preprocessing=Preprocessing((0.4, 0.5, 0.6), (0.3, 0.3, 0.3)), class_names=NAMES, **options
    )
    return model.eval()


def start(folder, *, merge="auto", names=("up", "down"), **args):
    return start_from(folder, ModelSettings(args=args), merge, class_names=names)


def counted(model, size):
    model.requires_grad_(False).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


@pytest.mark.parametrize("host", HOSTS)
def test_at_twice_the_size_only_positions_and_head_are_others_and_the_cost_is_the_predicted_one(tmp_path, host):
    before = upstream(tmp_path / "up", host)
    started = start(tmp_path / "up", img_size=64)
    model, weights = started.model, before.state_dict()
    assert started.new_head
    for name, tensor in model.state_dict().items():
        if name.startswith("head."):
            assert tensor.shape[0] == 2
        elif name == "pos_embed":
            prefix = 0 if host in ("average pooling", "registers") else 1
            resized = resample_abs_pos_embed(weights[name], [16, 16], [8, 8], num_prefix_tokens=prefix)
            assert torch.equal(tensor, resized), name
        else:
            assert torch.equal(tensor, weights[name]), name
    (merger,) = mergers(model)
    assert (merger.after, merger.num_tokens, merger.module.norm_mode, merger.module.scale) == (2, 4, "both", 0.25)
    predicted, at_32 = cost(model), cost(before)
    assert predicted.image_size == (64, 64)
    assert predicted.flops == counted(model, 64)
    grown = {part.name: part.flops - same.flops for part, same in zip(predicted.parts, at_32.parts, strict=True)}
    for name, flops in grown.items():
        if name.startswith(("blocks.0", "blocks.1")):
            assert flops > 0
        elif name == "blocks.2" and find_host(model).inputs.rope is not None:
            assert 0 < flops < 0.01 * predicted.flops  # the centroid of each merged token, Σ A (row, column)
        elif name.startswith("blocks."):
            assert flops == 0


@pytest.mark.parametrize("host", HOSTS)
def test_the_head_of_the_same_classes_is_kept_and_outputs_are_those_of_the_saved_model(tmp_path, host):
    before = upstream(tmp_path, host)
    started = start(tmp_path, names=NAMES, drop_path_rate=0.5)
    assert not started.new_head
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(started.model.eval()(images), before(images))
    assert timm.data.resolve_model_data_config(started.model)["mean"] == [0.4, 0.5, 0.6]
    assert started.model.pretrained_cfg.get("state_dict") is None


def test_as_many_other_classes_get_a_new_head(tmp_path):
    before = upstream(tmp_path)
    started = start(tmp_path, names=("bee", "ant", "cow"))
    assert started.new_head
    assert not torch.equal(started.model.head.weight, before.head.weight)


def test_a_merger_is_put_into_a_plain_model_only_when_asked(tmp_path):
    upstream(tmp_path, merge=False)
    assert mergers(start(tmp_path).model) == []
    assert mergers(start(tmp_path, merge=None).model) == []
    (merger,) = mergers(start(tmp_path, merge=MergeSettings(num_tokens=2), img_size=64).model)
    assert (merger.after, merger.num_tokens) == (2, 2)


def test_the_merger_that_is_there_may_be_named_and_no_other(tmp_path):
    upstream(tmp_path)
    same = MergeSettings(num_tokens=4, after=2, norm="both", scale=0.25)
    assert len(mergers(start(tmp_path, merge=same).model)) == 1
    with pytest.raises(ValueError, match=r"merge asks for PatchMerger to 8 tokens .*has PatchMerger to 4 tokens after"):
        start(tmp_path, merge=MergeSettings(num_tokens=8, norm="both", scale=0.25))
    with pytest.raises(ValueError, match=r"norm scores.*but init .* norm both"):
        start(tmp_path, merge=MergeSettings(num_tokens=4, scale=0.25))
    with pytest.raises(ValueError, match=r"merge \(null\) asks for a plain model, but init .* has PatchMerger to 4"):
        start(tmp_path, merge=None)


def test_half_precision_weights_are_trained_in_single_precision(tmp_path):
    torch.manual_seed(0)
    model = insert(timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL), num_tokens=4).bfloat16()
    patchmerger.save(model, tmp_path, class_names=NAMES)
    started = start(tmp_path, names=NAMES).model
    assert {p.dtype for p in started.parameters()} == {torch.float32}
    assert torch.equal(started.blocks[1].merger.weight, model.blocks[1].merger.weight.float())


def test_mergers_that_the_config_does_not_name_are_refused(tmp_path):
    upstream(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["patchmerger"]["mergers"][0]["after"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has other mergers in its weights than in its config\.json: missing weights"):
        start(tmp_path)


def test_names_of_timm_are_started_from_with_their_weights(tmp_path, monkeypatch):
    created = []

    def create(name, pretrained, **args):
        created.append((name, pretrained, args))
        return timm.models.vision_transformer.VisionTransformer(**SMALL)

    monkeypatch.setattr("patchmerger.training.finetuning.timm.create_model", create)
    model = start("vit_tiny_patch16_224.augreg_in21k", merge=MergeSettings(num_tokens=4), img_size=64).model
    assert created == [("vit_tiny_patch16_224.augreg_in21k", True, {"img_size": 64})]
    assert model.head.out_features == 2
    assert len(mergers(model)) == 1
    assert content_of("vit_tiny_patch16_224") == "vit_tiny_patch16_224"


def test_weights_that_cannot_be_fetched_are_told_of(monkeypatch):
    def create(name, **args):
        raise FileNotFoundError("no network")

    monkeypatch.setattr("patchmerger.training.finetuning.timm.create_model", create)
    with pytest.raises(FileNotFoundError, match=r"init \(vit_tiny_patch16_224\): its weights cannot be .*no network"):
        start("vit_tiny_patch16_224")


def test_the_identity_of_a_start_follows_its_content(tmp_path):
    upstream(tmp_path / "a")
    upstream(tmp_path / "b")
    upstream(tmp_path / "c", merge=False)
    first, second, third = (content_of(tmp_path / name) for name in "abc")
    assert first == second != third


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    upstream(folder)
    return folder


def finetune(saved, out, **changes):
    settings = {"training": TrainingSettings(epochs=1, warmup_epochs=0, batch_size=256, accelerator="cpu")}
    return fit(Recipe(init=saved, **{**settings, **changes}), out=out, progress=False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"init": "nowhere"}, r"init \(nowhere\) is no folder here, and is no architecture that timm"),
        ({"init": Path("/no/such")}, r"init: folder \(/no/such\) does not exist"),
        ({"init": "patchmerger_tiny_patch4_32"}, r"timm has no weights of that name"),
        ({"image_size": 33}, r"image_size \(33, 33\) does not divide by the patch size \(4, 4\): take \(32, 32\)"),
        ({"image_size": 32, "model": ModelSettings(args={"img_size": 64})}, r"image_size \(32\) and model.args .*two"),
        ({"model": ModelSettings("vit_tiny_patch16_224")}, r"model.name \(vit_tiny.*\) contradicts init"),
        ({"model": ModelSettings(pretrained=True)}, r"model.pretrained \(True\) contradicts init"),
        ({"model": ModelSettings(args={"num_heads": 3})}, r"model.args \(num_heads\) would make another model than"),
        ({"model": ModelSettings(args={"depth": 9})}, r"model.args: depth \(9\) must be one of the \d blocks of init"),
        ({"model": ModelSettings(args={"drop_it": 3})}, r"init .* cannot be loaded with model.args .*drop_it"),
        ({"merge": None}, r"merge \(null\) asks for a plain model"),
        ({"merge": MergeSettings(num_tokens=8)}, r"merge asks for PatchMerger to 8 tokens"),
    ],
)
def test_bad_starts_are_refused_before_training(saved, tmp_path, changes, text):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        finetune(changes.pop("init", saved), tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", ["class token", "registers", "rope"])
def test_weights_alone_are_those_of_the_architecture_that_is_named(tmp_path, host):
    before, (name, args) = upstream(tmp_path / "up", host, merge=False), HOSTS[host]
    settings = ModelSettings(name, {**SMALL, **args})
    file = tmp_path / "weights.safetensors"
    save_file({f"module.{key}": value for key, value in before.state_dict().items()}, file)
    with pytest.warns(UserWarning, match=r"left out 'module\.' before its names"):
        started = start_from(file, settings, "auto", class_names=("up", "down"))
    assert started.new_head
    weights = before.state_dict()
    kept = {key: value for key, value in started.model.state_dict().items() if not key.startswith("head.")}
    assert all(torch.equal(value, weights[key]) for key, value in kept.items())
    settings = ModelSettings(name, {**SMALL, **args, "img_size": 64})
    with pytest.warns(UserWarning, match="left out"):
        larger = start_from(file, settings, "auto", class_names=("up", "down")).model
    resized = start(tmp_path / "up", img_size=64).model
    same = [key for key in resized.state_dict() if not key.startswith("head.")]
    assert all(torch.equal(larger.state_dict()[key], resized.state_dict()[key]) for key in same)
    assert content_of(file).startswith("sha256:")
    with pytest.raises(ValueError, match=r"holds weights alone: name the architecture in model.name"):
        start_from(file, ModelSettings(), "auto", class_names=("up", "down"))


def test_a_weights_file_beside_its_config_is_the_saved_model(tmp_path):
    upstream(tmp_path / "up")
    file = tmp_path / "up" / "model.safetensors"
    assert content_of(file) == content_of(tmp_path / "up")
    assert len(mergers(start(file).model)) == 1


def test_models_of_other_libraries_are_refused(tmp_path):
    from torchvision.models import VisionTransformer

    model = VisionTransformer(image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    patchmerger.save(model, tmp_path)
    with pytest.raises(ValueError, match="is a model of torchvision: only models of timm are fine-tuned"):
        start(tmp_path)


def test_an_unfinished_run_is_refused_as_a_start(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="saved no model: is it finished"):
        start(tmp_path)


def test_a_fine_tuned_run_starts_from_the_weights_and_belongs_to_them(saved, tmp_path):
    still = TrainingSettings(
        epochs=1, warmup_epochs=0, batch_size=256, accelerator="cpu", optimizer="sgd", lr=1e-30, layer_decay=0.7,
        weight_decay=0.0,
    )  # fmt: skip
    results = finetune(saved, tmp_path / "run", image_size=16, training=still)
    assert results["image_size"] == 16
    assert results["new_head"]
    assert results["mergers"] == [{"after": 2, "num_tokens": 4}]
    assert results["settings"]["init"] == content_of(saved)
    assert results["init"] == str(saved)
    before, after = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "run" / "model"))
    for name, tensor in before.items():
        if not name.startswith(("head.", "pos_embed")):
            assert torch.equal(after[name], tensor), name
    model = patchmerger.load(tmp_path / "run" / "model")
    assert counted(model, 16) == results["flops"]
    assert model.head.out_features == 10

    again = finetune(saved, tmp_path / "run", image_size=16, training=still)
    assert again == json.loads((tmp_path / "run" / "results.json").read_text())
    other = tmp_path / "other"
    upstream(other, merge=False)
    with pytest.raises(ValueError, match=r"belongs to a run with other settings \(init: .*sha256.* there"):
        finetune(other, tmp_path / "run", image_size=16, training=still)
    # a run is a start as well, by its own folder, and knows its classes now
    third = finetune(tmp_path / "run", tmp_path / "third", data=DataSettings(validation=0))
    assert not third["new_head"]
    assert third["image_size"] == 16


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("momentum", marks=pytest.mark.slow), "adamw"])
def test_fine_tuning_learns_with_each_usual_optimizer(tmp_path, optimizer):
    upstream(tmp_path / "up")
    training = TrainingSettings(
        epochs=3, warmup_epochs=1, batch_size=128, accelerator="cpu", optimizer=optimizer, layer_decay=0.8,
        lr=3e-3 if optimizer == "adamw" else 0.1,
    )  # fmt: skip
    history = finetune(tmp_path / "up", tmp_path / "run", training=training, image_size=16)["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_models_of_other_channels_than_images_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.args: in_chans \(1\) must be 3, or left out"):
        Recipe(model=ModelSettings("vit_tiny_patch16_224", {"in_chans": 1}))
    args = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1}
    patchmerger.save(timm.create_model("vit_tiny_patch16_224", num_classes=10, **args), tmp_path / "grey")
    with pytest.raises(ValueError, match=r"grey\) takes images of 1 channels; .* 3 \(RGB\).*in_chans=3"):
        fit(Recipe(init=tmp_path / "grey"), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
