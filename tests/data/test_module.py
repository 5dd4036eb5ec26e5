import dataclasses
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from patchmerger.data import Augmentation, DataSettings, ImageData, ImageSet, ImageSplits, Preprocessing, load_images
from patchmerger.data.batches import TrainImages
from patchmerger.data.images import InMemory
from patchmerger.data.transforms import TrainTransform
from patchmerger.runs.random_state import random_state_kept

pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"  # in Lightning
)
HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)
BATCHES = 6  # an epoch


def splits_of(train: int = 26, test: int = 7) -> ImageSplits:
    def some(count: int, seed: int) -> ImageSet:
        pixels = torch.randint(
            0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        return ImageSet(InMemory(list(pixels)), torch.arange(count))

    return ImageSplits(some(train, 0), some(test, 1), some(test, 2), ("a", "b"), False, (), "noise")


def module(**options: Any) -> ImageData:
    options = {"image_size": 8, "preprocessing": HALF, "batch_size": 4, "epochs": 3, "seed": 5, "workers": 0, **options}
    return ImageData(splits_of(), **options)


class Recorder(lightning.LightningModule):
    """Notes the batches that it is given, and draws random numbers as a model would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int], int]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        self.seen.append((batch_idx, targets.tolist(), int(images.long().sum())))
        torch.rand(3)
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        assert batch[0].dtype == torch.uint8

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(lightning.Callback):
    """Writes a checkpoint at a batch's end or after validation, and may stop the run there."""

    def __init__(self, path: Path, step: int, *, after_validation: bool, stop: bool = True) -> None:
        self.path, self.step, self.after_validation, self.stop = path, step, after_validation, stop

    def save(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            if self.stop:
                raise RuntimeError("pulled the plug")

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if not self.after_validation:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.after_validation:
            self.save(trainer)


def fit(
    data: ImageData, folder: Path, *callbacks: lightning.Callback, resume: Path | None = None, **more: Any
) -> Recorder:
    model = Recorder()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=data.steps_per_epoch,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **more,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="GPU available but not used")
        try:
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        except RuntimeError as error:
            if "pulled the plug" not in str(error):
                raise
    return model


@pytest.mark.parametrize(
    ("step", "after_validation", "workers"),
    [
        (1, False, 0),
        (6, False, 0),  # the end of an epoch
        (6, True, 0),
        (7, False, 0),
        (7, False, 1),
        (12, True, 0),
        (17, False, 0),
        (18, False, 0),  # the end of the run
        (18, True, 0),
    ],
)
def test_a_run_goes_on_where_it_was_interrupted(
    tmp_path: Path, step: int, after_validation: bool, workers: int
) -> None:
    whole = fit(module(), tmp_path).seen
    assert len(whole) == 3 * BATCHES
    assert len({(tuple(targets), total) for _, targets, total in whole}) == 3 * BATCHES

    path = tmp_path / "last.ckpt"
    before = fit(module(workers=workers), tmp_path, SaveAt(path, step, after_validation=after_validation)).seen
    assert before == whole[:step]
    resumed = module(workers=workers)
    after = fit(resumed, tmp_path, resume=path).seen
    assert resumed.first_batch == step
    assert after == whole[step:]


def test_a_run_interrupted_twice(tmp_path: Path) -> None:
    whole = fit(module(), tmp_path).seen
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    fit(module(), tmp_path, SaveAt(first, 4, after_validation=False))
    middle = fit(module(), tmp_path, SaveAt(second, 11, after_validation=False), resume=first).seen
    assert middle + fit(module(), tmp_path, resume=second).seen == whole[4:]


def test_accumulation_counts_batches_not_steps(tmp_path: Path) -> None:
    whole = fit(module(), tmp_path, accumulate_grad_batches=2).seen
    path = tmp_path / "last.ckpt"
    fit(module(), tmp_path, SaveAt(path, 4, after_validation=False, stop=False), accumulate_grad_batches=2)
    # written at every batch that leaves the count of steps at 4: the last time at batch 9, one into the fifth step
    assert torch.load(path, weights_only=True)["ImageData"]["batches"] == 9
    assert fit(module(), tmp_path, resume=path, accumulate_grad_batches=2).seen == whole[9:]


def test_a_checkpoint_of_another_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    fit(module(), tmp_path, SaveAt(path, 4, after_validation=False))
    with pytest.raises(ValueError, match=r"the checkpoint is of a run with .*'seed': 5.*, this one has .*'seed': 6"):
        fit(module(seed=6), tmp_path, resume=path)


def test_more_than_one_lightning_epoch_is_refused(tmp_path: Path) -> None:
    data = module()
    data.trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    with pytest.raises(ValueError, match="gives all 3 epochs as one: the trainer needs max_epochs=1, not 2"):
        data.train_dataloader()


def test_evaluation_gives_each_image_once() -> None:
    data = module()
    for loader, images in ((data.val_dataloader(), data.splits.validation), (data.test_dataloader(), data.splits.test)):
        assert images is not None
        batches = list(loader)
        assert [len(targets) for _, targets in batches] == [4, 3]
        assert torch.cat([targets for _, targets in batches]).tolist() == list(range(7))
        assert torch.equal(torch.cat([pixels for pixels, _ in batches]), images.gather(range(7)))
    resized = module(image_size=16)
    assert [tuple(pixels.shape) for pixels, _ in resized.test_dataloader()] == [(4, 3, 16, 16), (3, 3, 16, 16)]


def test_without_validation_set(tmp_path: Path) -> None:
    data = module()
    data.splits = dataclasses.replace(data.splits, validation=None)
    assert len(fit(data, tmp_path).seen) == 3 * BATCHES


def test_ranks_share_what_one_device_would_see() -> None:
    alone = module(batch_size=8)
    shares = [module(batch_size=4) for _ in range(2)]
    for rank, share in enumerate(shares):
        cpu = SimpleNamespace(root_device=torch.device("cpu"))
        share.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=2, num_devices=2, max_epochs=1, strategy=cpu
        )
    assert [len(share.train_dataloader()) for share in shares] == [len(alone.train_dataloader())] * 2
    for (whole, _), (first, _), (second, _) in zip(
        alone.train_dataloader(), *(share.train_dataloader() for share in shares), strict=True
    ):
        assert torch.equal(whole, torch.cat([first, second]))
    tested = [torch.cat([targets for _, targets in share.test_dataloader()]).tolist() for share in shares]
    assert sorted(tested[0] + tested[1]) == list(range(7))


def test_an_image_depends_on_seed_epoch_and_index_only() -> None:
    def draw(image: Tensor) -> Tensor:
        return torch.full_like(image, int(torch.randint(0, 256, ())) ^ np.random.randint(256) ^ random.randrange(256))

    images = splits_of().train
    data = TrainImages(images, draw, seed=3)
    torch.manual_seed(0)
    outer = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    batch, targets = data.__getitems__([(0, 1), (0, 2), (1, 1), (0, 1)])
    assert torch.equal(batch[0], batch[3])
    assert len({int(image[0, 0, 0]) for image in batch[:3]}) == 3
    assert targets.tolist() == [1, 2, 1, 1]
    assert torch.equal(data[1, 1][0], batch[2])
    assert torch.equal(torch.get_rng_state(), outer[0])
    assert np.random.get_state()[1].tolist() == outer[1]  # type: ignore[index]
    assert random.getstate() == outer[2]
    with random_state_kept():
        assert not torch.equal(TrainImages(images, draw, seed=4)[0, 1][0], batch[0])


def test_loading_leaves_the_random_state_alone() -> None:
    data = module(augmentation=Augmentation(auto="trivial", erasing=0.5))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert len(list(data.train_dataloader())) == 3 * BATCHES
    list(data.test_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_function_of_ones_own_augments() -> None:
    data = module(augmentation=lambda image: image // 2)
    images, targets = next(iter(data.train_dataloader()))
    assert torch.equal(images, data.splits.train.gather(targets.tolist()) // 2)


def test_digits_by_default() -> None:
    data = ImageData(
        load_images(DataSettings(), seed=0), image_size=8, preprocessing=HALF, batch_size=64, epochs=1, workers=0
    )
    assert (data.steps_per_epoch, len(data.train_dataloader())) == (20, 20)
    images, targets = next(iter(data.train_dataloader()))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (64, 3, 8, 8))
    assert (targets.dtype, tuple(targets.shape)) == (torch.int64, (64,))
    assert isinstance(data.train_transform, TrainTransform)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="26 training images do not fill one batch of 27"):
        module(batch_size=27)
    with pytest.raises(ValueError, match=r"workers \(-1\) must be 0 or more"):
        module(workers=-1)
