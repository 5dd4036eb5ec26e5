"""Recovery with the plain model as teacher: its loss, its schedules, resuming, unlabelled images."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from conftest import make_vit
from patchmerger import distill, insert
from patchmerger.acceleration.distillation_task import DistillationTask
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data import Augmentation, DataSettings, Preprocessing, load_images
from patchmerger.models.classifier import divergence, feature_error
from patchmerger.training.task import seed_step
from trained_on_digits import trained_vit

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]
HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)
AS_THEY_ARE = {"augmentation": Augmentation("none", flip=False), "preprocessing": HALF}
SETTINGS = {"batch_size": 64, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def digits():
    return load_images(DataSettings(), seed=0)


def merged():
    torch.manual_seed(0)
    return insert(trained_vit(), num_tokens=4, after=2)


def task_of(labels=True, total_steps=100, **settings):
    return DistillationTask(
        merged(), trained_vit(), RecoverySettings(**SETTINGS | settings), precision="32-true", labels=labels,
        total_steps=total_steps, seed=0, steps_per_epoch=10, preprocessing=HALF,
    )  # fmt: skip


def run(student, digits, teacher=None, **options):
    length = {name: options.pop(name) for name in ("epochs", "steps", "scope") if name in options}
    length = {"scope": "all", **length}
    settings = RecoverySettings(**SETTINGS | length | options.pop("settings", {}))
    return distill(
        student, teacher or trained_vit(), digits, recovery=settings, progress=False, **AS_THEY_ARE, **options
    )


def accuracy(model, digits):
    images = (digits.test.gather(range(len(digits.test))).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        return (model.eval()(images).argmax(dim=1) == digits.test.targets).float().mean().item()


def test_the_loss_is_the_sum_that_is_documented():
    task = task_of(temperature=3.0, teacher_weight=2.0, feature_weight=0.5, label_weight=0.25)
    task.log = lambda *args, **kwargs: None
    seed_step(0, 0)
    images, targets = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8)
    task.train()
    loss = task.training_step((images, targets), 0)
    x = (images.float() / 255 - 0.5) / 0.5
    student, teacher = task.model.net, trained_vit()
    scores, wanted = student(x), teacher(x)
    features, wanted_features = (
        m.forward_head(m.forward_features(x), pre_logits=True) for m in (student, teacher)
    )  # fmt: skip
    expected = 2 * divergence(scores, wanted, temperature=3.0) + 0.5 * feature_error(features, wanted_features)
    assert loss.item() == pytest.approx((expected + 0.25 * F.cross_entropy(scores, targets)).item(), rel=1e-5)


def test_mergers_learn_first_and_faster_and_never_decay():
    task = task_of(lr=1e-3, merger_lr=5.0, merger_first=0.2, warmup=0.1)
    optimizer = task.configure_optimizers()["optimizer"]
    queries = task.model.net.blocks[1].merger.weight
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(queries)] == pytest.approx(5e-3)
    assert rates[id(task.model.net.head.weight)] == pytest.approx(1e-3)
    assert len(rates) == len(list(task.model.parameters()))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(queries)] == 0
    assert [task.rest_rate(step) for step in range(19)] == [0.0] * 19
    assert task.merger_rate(10) > 0.9
    assert task.rest_rate(35) > 0.9
    assert task.merger_rate(99) < 0.01
    assert task.rest_rate(99) < 0.01


@pytest.mark.parametrize(("merger_first", "steps"), [(0.0, 10), (0.2, 2), (0.5, 5)])
def test_the_mergers_warm_up_over_a_share_of_the_steps_that_they_learn_alone_or_else_of_all(merger_first, steps):
    task = task_of(merger_first=merger_first, warmup=0.1)
    assert [task.merger_rate(step) for step in range(steps)] == pytest.approx(
        [(step + 1) / (steps + 0.1) for step in range(steps)], abs=0.05
    )
    assert task.merger_rate(steps) > 0.99


def test_places_widths_and_gains_have_a_rate_of_their_own():
    student = insert(trained_vit(), 4, 2, prior="grid")
    task = DistillationTask(
        student, trained_vit(), RecoverySettings(lr=1e-3, merger_lr=5.0, prior_lr=0.02), precision="32-true",
        labels=True, total_steps=10, seed=0, steps_per_epoch=10, preprocessing=HALF,
    )  # fmt: skip
    groups = task.configure_optimizers()["optimizer"].param_groups
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    merger = student.blocks[1].merger
    for parameter in (merger.prior.center, merger.prior.log_width, merger.gain):
        assert rates[id(parameter)] == 0.02
    assert rates[id(merger.weight)] == pytest.approx(5e-3)


def test_the_teacher_is_no_part_of_the_training():
    task = task_of()
    assert not any("teacher" in key for key in task.state_dict())
    assert len(list(task.parameters())) == len(list(task.model.parameters()))


def test_it_recovers_accuracy_and_leaves_the_teacher_alone(digits):
    teacher, student = trained_vit().train(), merged()
    before = copy.deepcopy(teacher.state_dict())
    at_first = accuracy(student, digits)
    result = run(student, digits, teacher, epochs=3)
    assert result["steps"] == 3 * (len(digits.train) // 64)
    assert accuracy(student, digits) > at_first + 0.1
    assert len(result["phases"]["all"]["history"]) >= 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert not student.training


def test_interrupted_it_goes_on_to_the_same_weights(digits, tmp_path):
    whole, parts = merged(), merged()
    run(whole, digits, steps=9, out=tmp_path / "whole", settings={"checkpoint_every": 4})

    original = DistillationTask.training_step

    def stopping(task, batch, batch_idx):
        if batch_idx == 6:
            raise RuntimeError("the power is cut")
        return original(task, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTask, "training_step", stopping)
        with pytest.raises(RuntimeError, match="the power is cut"):
            run(parts, digits, steps=9, out=tmp_path / "parts", settings={"checkpoint_every": 4})
    again = merged()
    result = run(again, digits, steps=9, out=tmp_path / "parts", settings={"checkpoint_every": 4})
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert result["steps"] == 9
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        run(merged(), digits, steps=5, out=tmp_path / "parts")


def test_without_labels_targets_are_not_looked_at(digits):
    wrong = copy.copy(digits.train)
    wrong.targets = torch.zeros_like(digits.train.targets)
    mislabelled = type(digits)(**{**vars(digits), "train": wrong})
    students = merged(), merged()
    for student, images in zip(students, (digits, mislabelled), strict=True):
        run(student, images, steps=3, labels=False)
    assert all(map(torch.equal, students[0].state_dict().values(), students[1].state_dict().values()))


def test_the_moving_average_is_what_is_kept(digits):
    student = merged()
    before = student.head.weight.clone()
    run(student, digits, steps=3, settings={"ema": 0.999999})
    assert torch.allclose(student.head.weight, before, atol=1e-4)
    assert not torch.equal(student.head.weight, before)


def test_bf16_runs_on_a_cpu(digits):
    assert run(merged(), digits, steps=2, settings={"precision": "bf16-mixed"})["precision"] == "bf16-mixed"


def test_any_model_of_two_libraries_can_be_a_student(digits):
    teacher = make_vit("registers, LayerScale", num_classes=10)
    assert run(insert(copy.deepcopy(teacher), num_tokens=4), digits, teacher, steps=1)["steps"] == 1


def test_a_loss_that_is_not_finite_stops_the_run(digits):
    student = merged()
    with torch.no_grad():
        student.head.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1 .*: lower recovery.lr"):
        run(student, digits, steps=2)


def test_weights_in_half_precision_are_refused(digits):
    with pytest.raises(ValueError, match=r"student .* has weights in bfloat16.* give student\.float\(\)"):
        run(merged().bfloat16(), digits, steps=1)


@pytest.mark.parametrize("scope", ["all", "rear"])
def test_a_folder_of_another_teacher_or_of_other_images_is_refused(scope, digits, tmp_path):
    run(merged(), digits, out=tmp_path, scope=scope, steps=2)
    other = trained_vit()
    with torch.no_grad():
        other.head.bias[0] += 1
    with pytest.raises(ValueError, match=r"another|other"):
        run(merged(), digits, teacher=other, out=tmp_path, scope=scope, steps=2)
    fewer = dataclasses.replace(digits, train=digits.train.subset(range(256)))
    with pytest.raises(ValueError, match=r"another|other"):
        run(merged(), fewer, out=tmp_path, scope=scope, steps=2)
    student = merged()
    run(student, digits, out=tmp_path, scope=scope, steps=2)  # the same call again gives its weights


def test_frozen_blocks_are_refused_where_all_are_trained():
    with pytest.raises(ValueError, match=r"recovery.frozen_blocks \(1\) is for scope 'rear' and 'rear-then-all'"):
        RecoverySettings(scope="all", frozen_blocks=1)
