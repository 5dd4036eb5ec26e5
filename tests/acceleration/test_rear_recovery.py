"""Recovery on kept tokens: as with a frozen front that runs each time; resumed; refused before long work."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from acceleration.test_distillation import AS_THEY_ARE, accuracy, merged
from conftest import make_vit
from patchmerger import distill, insert
from patchmerger.acceleration import rear_recovery
from patchmerger.acceleration.distillation_task import DistillationTask
from patchmerger.acceleration.recovery_data import choose_views
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data import Augmentation, DataSettings, load_images
from patchmerger.insertion.inserted import mergers
from trained_on_digits import trained_vit

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def digits():
    return load_images(DataSettings(), seed=0)


def run(student, digits, *, out=None, augmentation=None, **settings):
    recovery = {"scope": "rear", "batch_size": 64, "accelerator": "cpu", "steps": 20, **settings}
    options = {**AS_THEY_ARE, **({} if augmentation is None else {"augmentation": augmentation})}
    teacher = trained_vit()
    return distill(student, teacher, digits, recovery=RecoverySettings(**recovery), out=out, progress=False, **options)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("frozen", "mixup"), [(None, 0.0), (0, 0.0), (0, 0.8)])
def test_it_is_training_with_a_frozen_front(frozen, mixup, digits):
    kept, whole = merged(), merged()
    before = weights(kept)
    run(kept, digits, precision="32-true", cache_dtype="float32", steps=24, frozen_blocks=frozen, mixup=mixup)
    trained = ("blocks.2", "blocks.3", "norm", "head") if frozen is None else ("blocks", "norm", "head")
    front = [name for name, _ in whole.named_parameters() if not name.startswith(trained)]
    for name in front:
        whole.get_parameter(name).requires_grad_(".merger." in name)
    run(whole, digits, precision="32-true", scope="all", steps=24, mixup=mixup)
    for name, tensor in kept.state_dict().items():
        if mixup and name.endswith(("qkv.bias", "merger.norm.bias")):
            continue  # softmax passes over parts of these, so that their gradient is rounding errors alone
        assert torch.allclose(tensor, whole.state_dict()[name], rtol=0, atol=1e-5), name
        assert torch.equal(tensor, before[name]) == (name in front and ".merger." not in name), name
    assert all(parameter.requires_grad for parameter in kept.parameters())


def test_a_mixture_shows_both_models_the_same_and_weighs_the_labels_of_both():
    task = DistillationTask(
        merged(), trained_vit(), RecoverySettings(mixup=0.5), precision="32-true", labels=True, total_steps=1, seed=0,
        steps_per_epoch=1, preprocessing=AS_THEY_ARE["preprocessing"],
    )  # fmt: skip
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    targets = torch.arange(6)
    scores, _, wanted, _, given = task.outputs((images, targets), 0.7)
    pixels = task.normalize(images)
    mixture = torch.stack([0.7 * pixels[i] + 0.3 * pixels[5 - i] for i in range(6)])
    torch.testing.assert_close(scores, task.model(mixture))
    torch.testing.assert_close(wanted, task.teacher(mixture))
    assert torch.equal(given, targets)
    only_labels = replace(task.recovery, teacher_weight=0.0, feature_weight=0.0, label_weight=1.0)
    task.recovery = only_labels
    task.drawn_share = lambda: 0.7
    rows = torch.log_softmax(task.model(mixture).float(), dim=1)
    by_hand = -(0.7 * rows[range(6), targets] + 0.3 * rows[range(6), targets.flip(0)]).mean()
    torch.testing.assert_close(task.distillation_loss((images, targets)), by_hand)


def test_a_mixture_needs_tokens_that_are_also_the_teachers(digits):
    student = merged()
    with torch.no_grad():
        student.blocks[0].mlp.fc1.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"recovery.mixup \(0.8\): the kept tokens are not the teacher's"):
        run(student, digits, steps=2, mixup=0.8)


def test_it_recovers_and_cleans_up(digits, tmp_path):
    student = merged()
    at_first = accuracy(student, digits)
    result = run(student, digits, out=tmp_path, steps=60)
    assert accuracy(student, digits) > at_first + 0.1
    rear = result["phases"]["rear"]
    assert (rear["steps"], rear["result"], rear["kept"]["views"]) == (60, "recovered", len(digits.train))
    assert rear["watched"]["after"] > rear["watched"]["before"]
    assert not (tmp_path / "rear" / "kept").exists()
    assert not (tmp_path / "rear" / "watched").exists()


def test_interrupted_it_goes_on_to_the_same_weights(digits, tmp_path, monkeypatch):
    whole, parts = merged(), merged()
    run(whole, digits, checkpoint_every=4)

    def cut(*_, **__):
        raise RuntimeError("the power is cut")

    with monkeypatch.context() as patch:  # while tokens are kept
        patch.setattr(rear_recovery, "train_phase", cut)
        with pytest.raises(RuntimeError, match="the power is cut"):
            run(parts, digits, out=tmp_path, checkpoint_every=4)
    original = DistillationTask.training_step
    with monkeypatch.context() as patch:  # while training
        patch.setattr(DistillationTask, "training_step", lambda *args: cut() if args[2] == 6 else original(*args))
        with pytest.raises(RuntimeError, match="the power is cut"):
            run(merged(), digits, out=tmp_path, checkpoint_every=4)
    with monkeypatch.context() as patch:
        patch.setattr(rear_recovery._Halves, "compute", cut)  # no token is computed again
        patch.setattr(rear_recovery, "_length", cut)
        again = merged()
        result = run(again, digits, out=tmp_path, checkpoint_every=4)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    finished = merged()
    assert run(finished, digits, out=tmp_path, checkpoint_every=4) == result
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in finished.state_dict().items())


def test_damaged_tokens_are_named_before_training(digits, tmp_path):
    run(merged(), digits, out=tmp_path, keep_cache=True)
    (tmp_path / "rear" / "results.json").unlink()
    file = tmp_path / "rear" / "kept" / "tokens"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"tokens is damaged: delete the folder"):
        run(merged(), digits, out=tmp_path, keep_cache=True)


def test_views_are_varied_and_fit_into_the_limit(digits, tmp_path, capsys):
    gib = 2000 * (17 * 32 * 2 + 4 * 10 + 4 * 32) / 2**30
    result = run(
        merged(), digits, out=tmp_path, steps=2, views=3, cache_gib=gib, keep_cache=True,
        augmentation=Augmentation("pad", flip=True),
    )  # fmt: skip
    assert result["phases"]["rear"]["kept"]["views"] == 2000
    remark = json.loads((tmp_path / "rear-length.json").read_text())["remark"]
    assert "3,879 images need" in remark
    assert "2,000 fit into recovery.cache_gib" in remark
    with pytest.raises(ValueError, match=r"too little space for kept tokens: .* fit into recovery.cache_gib"):
        run(merged(), digits, steps=2, cache_gib=1e-6)


def test_tokens_to_watch_the_training_by_take_a_quarter_of_the_limit_at_most(digits, tmp_path):
    image = 17 * 32 * 2 + 4 * 10 + 4 * 32
    result = run(merged(), digits, out=tmp_path, steps=2, cache_gib=200 * image / 2**30, keep_cache=True)
    assert result["phases"]["rear"]["watched"]["images"] == 50
    assert (tmp_path / "rear" / "watched" / "tokens").stat().st_size == 50 * 17 * 32 * 2
    with pytest.raises(ValueError, match=r"too little space for kept tokens: .* fit into a share of 0.25 of recovery"):
        run(merged(), digits, steps=2, batch_size=1, cache_gib=3 * image / 2**30)


def test_one_view_of_each_image_comes_before_a_second_of_any():
    chosen = choose_views(10, 14, seed=0)
    assert chosen[:10] == [(0, index) for index in range(10)]
    assert {view for view, _ in chosen[10:]} == {1}
    assert len(set(chosen)) == 14
    assert len({index for _, index in choose_views(10, 4, seed=0)}) == 4


def test_a_budget_bounds_keeping_and_training(digits):
    result = run(merged(), digits, steps=None, budget="1s")
    assert 0 < result["phases"]["rear"]["kept"]["seconds"] + result["seconds"] < 9


def test_a_worse_end_keeps_the_beginning(digits, capsys):
    student = merged()
    before = weights(student)
    recovery = RecoverySettings(scope="rear", batch_size=64, accelerator="cpu", steps=8, lr=5.0, merger_first=0.0)
    result = distill(student, trained_vit(), digits, recovery=recovery, **AS_THEY_ARE)
    rear = result["phases"]["rear"]
    assert rear["result"] == "initial"
    assert rear["watched"]["after"] < rear["watched"]["before"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert "below the" in capsys.readouterr().err


def test_rear_then_all(digits):
    student = merged()
    front = student.blocks[0].mlp.fc1.weight.detach().clone()
    result = run(student, digits, scope="rear-then-all", steps=20, merger_first=0.0)
    assert [result["phases"][name]["steps"] for name in ("rear", "all")] == [16, 4]
    assert result["steps"] == 20
    assert result["phases"]["all"]["result"] == "recovered"
    assert not torch.equal(student.blocks[0].mlp.fc1.weight, front)


def test_a_plain_student_can_be_cut_anywhere(digits):
    student = trained_vit()
    del student.blocks[3]
    result = run(student, digits, frozen_blocks=2, steps=5)
    assert result["steps"] == 5


def test_other_fronts_than_the_teachers_are_kept_apart(digits):
    student = merged()
    with torch.no_grad():
        student.blocks[0].mlp.fc1.weight.add_(0.01)
    run(student, digits, steps=2)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (trained_vit, {}, r"student has no merger: give recovery.frozen_blocks"),
        (merged, {"frozen_blocks": 3}, r"recovery.frozen_blocks \(3\) must be at most 2"),
        (trained_vit, {"frozen_blocks": 4}, r"after \(4\) must be a block from 1 to 3"),
        (merged, {"batch_size": 5000}, r"recovery.batch_size \(5000\) is more than the 1293 training images"),
    ],
)
def test_what_cannot_be_is_refused_before_long_work(make, settings, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(make(), digits, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_unlabelled_registers_and_two_merges(digits):
    teacher = make_vit("registers, LayerScale", num_classes=10)
    student = insert(copy.deepcopy(teacher), num_tokens=[8, 4], after=[1, 3])
    recovery = RecoverySettings(scope="rear", batch_size=64, accelerator="cpu", steps=2)
    result = distill(student, teacher, digits, recovery=recovery, labels=False, progress=False, **AS_THEY_ARE)
    assert result["steps"] == 2
    assert len(mergers(student)) == 2
