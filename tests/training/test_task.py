"""The training task: parameter groups, schedule, losses, averages, and stopping where numbers are not finite."""

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch import nn

from patchmerger import insert
from patchmerger.data import Augmentation, DataSettings, ImageData, Preprocessing, load_images
from patchmerger.training.optimizer import parameter_groups
from patchmerger.training.settings import TrainingSettings
from patchmerger.training.task import TrainingTask, score, seed_step
from patchmerger.training.trainer import quiet

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)
TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 10}


def tiny(**kwargs):
    torch.manual_seed(0)
    return insert(timm.create_model("vit_tiny_patch16_224", **{**TINY, **kwargs}), num_tokens=4)


def task_of(model, steps_per_epoch=5, multi_label=False, **settings):
    settings = {"epochs": 2, "warmup_epochs": 1, **settings}
    return TrainingTask(
        model,
        TrainingSettings(**settings),
        seed=0,
        steps_per_epoch=steps_per_epoch,
        num_classes=10,
        multi_label=multi_label,
        preprocessing=HALF,
    )


def train(task, images=None, epochs=2, **trainer):
    images = images or load_images(DataSettings(validation=0), seed=0)
    data = ImageData(
        images, image_size=8, preprocessing=HALF, batch_size=128, epochs=epochs,
        augmentation=Augmentation("none", flip=False), workers=0,
    )  # fmt: skip
    loop = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=task.steps_per_epoch * epochs,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    with quiet():
        loop.fit(task, datamodule=data)
    return task


def names_with_decay(model, groups):
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in decayed}


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_weight_decay_leaves_norms_biases_positions_and_queries_alone(layer_decay):
    model = tiny()
    decayed = names_with_decay(model, parameter_groups(model, TrainingSettings(layer_decay=layer_decay)))
    assert decayed == {name for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1} - {
        "blocks.0.merger.weight"
    }


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_queries_decay_when_asked(layer_decay):
    model = tiny()
    settings = TrainingSettings(layer_decay=layer_decay, decay_queries=True)
    assert "blocks.0.merger.weight" in names_with_decay(model, parameter_groups(model, settings))


def test_layer_decay_gives_a_merger_the_rate_of_its_block():
    model = tiny()
    groups = parameter_groups(model, TrainingSettings(layer_decay=0.5))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    rate = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert rate["blocks.0.merger.weight"] == rate["blocks.0.attn.qkv.weight"]
    assert rate["blocks.1.attn.qkv.weight"] == 2 * rate["blocks.0.merger.weight"]


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_mergers_have_a_rate_of_their_own_when_asked(layer_decay):
    model = tiny()
    plainly, fast = (
        {id(p): group.get("lr_scale", 1.0) for group in parameter_groups(model, settings) for p in group["params"]}
        for settings in (
            TrainingSettings(layer_decay=layer_decay),
            TrainingSettings(layer_decay=layer_decay, merger_lr=8.0),
        )
    )
    factors = {name: fast[id(p)] / plainly[id(p)] for name, p in model.named_parameters()}
    assert factors == {name: 8.0 if ".merger." in name else 1.0 for name in factors}
    assert len(plainly) == len(factors)  # each parameter in one group


def test_the_rate_of_mergers_keeps_its_factor_throughout():
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            rates.append({group["merger"]: group["lr"] for group in optimizer.param_groups})

    train(task_of(tiny(), lr=1e-3, merger_lr=8.0), callbacks=[Watch()])
    assert [rate[True] for rate in rates] == pytest.approx([8 * rate[False] for rate in rates])


def test_the_learning_rate_rises_then_falls_to_its_end():
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    train(task_of(tiny(), epochs=4, warmup_epochs=1, lr=1e-3), epochs=4, callbacks=[Watch()])
    assert len(rates) == 20
    assert rates[0] == pytest.approx(1e-5)
    assert rates[:6] == sorted(rates[:6])
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] < 3e-5


@pytest.mark.parametrize(("accumulate", "updates"), [(3, 7), (7, 3), (20, 1), (32, 1)])
def test_the_learning_rate_falls_to_its_end_over_the_updates_that_are_made(accumulate, updates):
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    task = task_of(tiny(), epochs=4, warmup_epochs=1, lr=1e-3, accumulate=accumulate)
    train(task, epochs=4, callbacks=[Watch()], accumulate_grad_batches=accumulate)
    assert len(rates) == updates
    assert updates < 3 or max(rates) > 0.7e-3
    assert min(rates) > 0  # none is lost behind the end
    assert updates < 3 or rates[-1] < 0.6e-3


def test_training_lowers_the_loss_and_averages_weights():
    task = task_of(tiny(), epochs=8, lr=1e-2, ema=0.9)
    before = [p.clone() for p in task.final_model.parameters()]
    losses = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    train(task, epochs=8, callbacks=[Watch()])
    assert losses[-1] < losses[0] - 0.2
    assert task.final_model is not task.model
    moved = [not torch.equal(a, b) for a, b in zip(before, task.final_model.parameters(), strict=True)]
    averaged = task.ema.module.parameters()
    differs = [not torch.equal(a, b) for a, b in zip(task.model.parameters(), averaged, strict=True)]
    assert all(moved)
    assert any(differs)


@pytest.mark.parametrize(
    ("settings", "batch"),
    [({"mixup": 0.8, "cutmix": 1.0}, "one"), ({"loss": "sigmoid"}, "one"), ({"loss": "sigmoid"}, "many")],
)
def test_losses_take_their_targets(settings, batch):
    task = task_of(tiny(), multi_label=batch == "many", **settings)
    targets = torch.randint(0, 10, (6,)) if batch == "one" else torch.randint(0, 2, (6, 10)).float()
    seed_step(0, 0)
    task.log = lambda *args, **kwargs: None
    loss = task.training_step((torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), targets), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in task.model.parameters())


def binary_cross_entropies(scores, targets):
    """Summed over classes, averaged over images."""
    p = torch.sigmoid(scores.double())
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / len(scores)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_loss_sums_over_classes_and_averages_over_images(smoothing):
    torch.manual_seed(0)
    scores, many, one = torch.randn(4, 10), torch.randint(0, 2, (4, 10)), torch.randint(0, 10, (4,))
    task = task_of(nn.Identity(), multi_label=True, loss="sigmoid", label_smoothing=smoothing)
    expected = binary_cross_entropies(scores, many * (1 - smoothing) + smoothing / 2)
    assert task.loss(scores, many.float()).item() == pytest.approx(expected.item(), rel=1e-6)
    assert task.loss(scores, torch.zeros(4, 10)).isfinite()  # images without any label
    task = task_of(nn.Identity(), loss="sigmoid", label_smoothing=smoothing)
    hot = nn.functional.one_hot(one, 10)
    expected = binary_cross_entropies(scores, hot * (1 - smoothing) + smoothing / 10)
    assert task.loss(scores, one).item() == pytest.approx(expected.item(), rel=1e-6)


def test_sigmoid_loss_takes_mixed_images_as_mixup_smoothed_them():
    task = task_of(nn.Identity(), loss="sigmoid", mixup=0.8, label_smoothing=0.2)
    torch.manual_seed(0)
    scores, mixed = torch.randn(4, 10), torch.rand(4, 10)
    assert task.loss(scores, mixed).item() == pytest.approx(binary_cross_entropies(scores, mixed).item(), rel=1e-6)


def test_images_are_normalised_as_torch_would():
    task = task_of(tiny())
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.allclose(task.normalize(images), images.double().float() / 127.5 - 1, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where():
    task = task_of(tiny())
    with torch.no_grad():
        task.model.head.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1 \(epoch 1\): lower training.lr"):
        train(task)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_parameter():
    task = task_of(tiny())
    task.model.blocks[1].mlp.fc1.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(
        FloatingPointError, match=r"gradient of blocks.1.mlp.fc1.weight is not finite at step 1 \(epoch 1\)"
    ):
        train(task)


def test_gradients_are_clipped_to_the_norm_asked_for():
    norms = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer, task, optimizer):
            grads = [p.grad.norm() for p in task.model.parameters() if p.grad is not None]
            norms.append(torch.stack(grads).norm().item() if grads else 0.0)

    train(task_of(tiny(), clip_grad=0.01), callbacks=[Watch()])
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_bf16_and_accumulation_train():
    task = train(
        task_of(tiny(), accumulate=2, precision="bf16-mixed"), precision="bf16-mixed", accumulate_grad_batches=2
    )
    assert task.global_step == 5
    assert all(torch.isfinite(p).all() for p in task.model.parameters())


@pytest.mark.parametrize("changes", [{"precision": "16-mixed"}, {"accumulate": 2}])
def test_a_loss_that_would_not_be_scaled_with_the_others_is_refused(changes):
    model = insert(
        timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_classes=2), reducer="dynamicvit"
    )
    with pytest.raises(ValueError, match=r"accumulate \(\d\) multiply the loss, but not that of DynamicViT"):
        TrainingTask(
            model, TrainingSettings(**changes), seed=0, steps_per_epoch=1, num_classes=2,
            preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3),
        )  # fmt: skip


def test_random_state_is_a_function_of_seed_step_and_rank():
    def draw(*key):
        seed_step(*key)
        return torch.rand(1).item()

    assert draw(0, 5, 0) == draw(0, 5, 0)
    assert len({draw(0, 5, 0), draw(1, 5, 0), draw(0, 6, 0), draw(0, 5, 1)}) == 4


def test_score_is_accuracy_or_mean_average_precision():
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert score(scores, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    # class 0 ranks its one positive first (AP 1), class 1 its one positive last of three (AP 1/3)
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.6], [0.1, 0.7]])
    assert score(scores, torch.tensor([[1.0, 1.0], [0, 0], [0, 0]])) == pytest.approx((1 + 1 / 3) / 2)
    assert score(scores, torch.tensor([[1.0, 0], [0, 0], [0, 0]])) == 1  # no image has the second class
    large = torch.tensor([[30.0], [28.0], [29.0], [25.0], [20.0], [-90.0]])  # a sigmoid in float32 is 1 for the first
    assert score(large, torch.tensor([[1.0], [1], [1], [0], [0], [0]])) == 1
    assert score(large, torch.tensor([[0.0], [0], [0], [1], [0], [0]])) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("settings", "multi_label", "text"),
    [
        ({"epochs": 0}, False, r"training.epochs \(0\) must be at least 1"),
        (
            {"epochs": 2, "warmup_epochs": 2},
            False,
            r"training.warmup_epochs \(2\) .*training.epochs \(2\)",
        ),
        ({"lr": 0.0}, False, r"training.lr \(0.0\) must be above 0"),
        ({"merger_lr": 0.0}, False, r"training.merger_lr \(0.0\) must be above 0"),
        ({"clip_grad": -1.0}, False, r"training.clip_grad \(-1.0\) must be 0 or more"),
        ({"layer_decay": 1.5}, False, r"training.layer_decay \(1.5\) must be above 0 and at most 1"),
        ({"loss": "bce"}, False, r"training.loss \('bce'\) must be one of 'softmax', 'sigmoid'"),
        ({"ema": 1.0}, False, r"training.ema \(1.0\) must be from 0"),
        ({"accumulate": 0}, False, r"training.accumulate \(0\)"),
        ({"optimizer": "adam_w"}, False, r"training.optimizer \('adam_w'\) is not one of timm's"),
        ({"batch_size": 33, "mixup": 0.2}, False, r"training.batch_size \(33\) must be even"),
        ({}, True, r"training.loss \('softmax'\) takes one label an image"),
        ({"loss": "sigmoid", "cutmix": 1.0}, True, r"training.mixup and training.cutmix take one label"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings, multi_label, text):
    with pytest.raises(ValueError, match=text):
        TrainingSettings(**settings).check(multi_label=multi_label)
