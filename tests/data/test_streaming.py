"""Streamed images: every one once in an epoch, whoever reads; the same order again; gone on with after a stop."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from patchmerger.data import BadImageError, DataSettings, ImageData, Preprocessing, RunOrder, decode, load_images
from patchmerger.data.streamed_batches import StreamLoader
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.training.evaluation import evaluate
from patchmerger.training.fitting import fit
from patchmerger.training.settings import Recipe, TrainingSettings
from patchmerger.training.trainer import AtomicCheckpointIO

HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*os.fork.*:DeprecationWarning"),
]


def png(number: int) -> bytes:
    """An image that bears its number; the even ones are dark, the odd ones bright."""
    pixels = np.full((8, 8, 3), 200 * (number % 2), np.uint8)
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, numbers: range, label=lambda n: ("cls", str(n % 2)), bad: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            ending, text = label(number)
            image = b"no image" if number in bad else png(number)
            for name, content in ((f"{number:05d}.png", image), (f"{number:05d}.{ending}", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_shards(folder: Path, sizes: list[int], **options) -> Path:
    first = 0
    for shard, size in enumerate(sizes):
        write_shard(folder / f"train-{shard:04d}.tar", range(first, first + size), **options)
        first += size
    write_shard(folder / "test-0000.tar", range(200, 220), **{**options, "bad": ()})
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), [13, 7, 20, 20])  # 60 images


def stream(folder: Path, samples: int | None = 60, **settings):
    settings = {"shuffle_buffer": 8, **settings}
    return load_images(DataSettings(str(folder), streaming=True, samples=samples, **settings), seed=0, may_stream=True)


def loader(images, *, batch_size=5, steps=12, workers=0, **options) -> StreamLoader:
    order = RunOrder(batch_size * steps, batch_size, **{"seed": 3, "epochs": 2, **options})
    return StreamLoader(images.train, lambda image: image, order, workers=workers)


def numbers(batches) -> list[list[int]]:
    return [images[:, 0, 0, 0].tolist() for images, _ in batches]


def flat(batches) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_image_comes_once_an_epoch_with_its_label(shards, workers):
    batches = list(loader(stream(shards), workers=workers, epochs=1))
    seen = flat(numbers(batches))
    # The images that workers have left at the end make whole batches: none is lost here.
    assert sorted(seen) == list(range(60))
    assert torch.equal(torch.cat([targets for _, targets in batches]), torch.tensor(seen) % 2)
    assert all(images.shape == (5, 3, 8, 8) and images.dtype == torch.uint8 for images, _ in batches)


@pytest.mark.parametrize("world_size", [2, 3, 4])  # 3 does not divide the four shards: rows are shared out then
def test_processes_share_the_images_without_loss_or_repetition(shards, world_size):
    images = stream(shards)
    counts: Counter[int] = Counter()
    for rank in range(world_size):
        pictures = [picture for picture, _ in images.train.read(7, rank=rank, world_size=world_size)]
        counts.update(int(decode(picture)[0, 0, 0]) for picture in pictures)
    assert counts == Counter(range(60))


def test_the_order_is_a_function_of_the_seed_and_the_epoch(shards):
    images = stream(shards)
    first = numbers(loader(images, workers=2))
    assert numbers(loader(images, workers=2)) == first
    assert first[:12] != first[12:]
    assert [sorted(flat(epoch)) for epoch in (first[:12], first[12:])] == [list(range(60))] * 2
    assert numbers(loader(images, workers=2, seed=4)) != first
    assert flat(first[:12]) != sorted(flat(first[:12]))


@pytest.mark.parametrize(("workers", "firsts"), [(0, (1, 7, 11, 12, 17, 24)), (2, (1, 7, 12))])
def test_a_stream_goes_on_anywhere_to_the_very_batches_that_were_left(shards, workers, firsts):
    def noisy(image):
        return (image + torch.randint(0, 2, (3, 1, 1))).to(torch.uint8)

    def run(first):
        return list(StreamLoader(stream(shards).train, noisy, RunOrder(60, 5, 2, seed=3, first=first), workers=workers))

    whole = run(0)
    assert len(whole) == 24
    for first in firsts:
        rest = run(first)
        assert len(rest) == 24 - first
        for (images, targets), (expected, expected_targets) in zip(rest, whole[first:], strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(targets, expected_targets)


def test_going_on_reads_what_was_used_but_does_not_decode_it(shards, monkeypatch):
    from patchmerger.data import streamed_batches

    decoded = []
    monkeypatch.setattr(streamed_batches, "decode", lambda picture, **_: decoded.append(1) or torch.zeros(3, 8, 8))
    list(loader(stream(shards), first=10, epochs=1))
    assert len(decoded) == 2 * 5


def test_a_longer_epoch_than_there_are_images_begins_them_again(shards):
    seen = numbers(loader(stream(shards), steps=18, epochs=1))
    assert len(seen) == 18
    counts = Counter(flat(seen))
    assert set(counts) == set(range(60))
    assert max(counts.values()) == 2


def test_a_share_of_less_than_a_batch_is_refused(shards):
    with pytest.raises(ValueError, match=r"fewer than one batch of 64 images: take a smaller training.batch_size"):
        list(loader(stream(shards), batch_size=64, steps=1))


def test_parquet_files_say_how_many_images_and_which_classes_there_are(tmp_path):
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dark", "bright"])})
    for split, parts in (("train", [range(0, 30), range(30, 44)]), ("validation", [range(50, 60)])):
        for part, rows in enumerate(parts):
            table = datasets.Dataset.from_dict(
                {"picture": [{"bytes": png(n), "path": None} for n in rows], "kind": [n % 2 for n in rows]}, features
            )
            table.to_parquet(tmp_path / f"{split}-{part}.parquet")
    images = stream(tmp_path, samples=None)
    assert images.class_names == ("dark", "bright")
    assert (len(images.train), images.validation, len(images.test)) == (44, None, 10)
    assert "44 training, 10 test images of 2 classes; training images streamed from 2 files" in images.description
    assert "the validation split is the test set" in images.description
    assert sorted(flat(numbers(loader(images, batch_size=4, steps=11, epochs=1)))) == list(range(44))


def test_several_labels_come_from_a_field_of_a_json(tmp_path):
    def tags(number):
        return "json", json.dumps({"tags": [name for bit, name in enumerate("abc") if number >> bit & 1]})

    images = stream(write_shards(tmp_path, [20, 20], label=tags), samples=40, label="json.tags")
    assert images.multi_label
    assert images.class_names == ("a", "b", "c")
    batches = list(loader(images, steps=8, epochs=1))
    for (_, targets), batch in zip(batches, numbers(batches), strict=True):
        assert targets.tolist() == [[float(n >> bit & 1) for bit in range(3)] for n in batch]


def test_bad_images_end_the_run_or_are_replaced(tmp_path):
    folder = write_shards(tmp_path, [20, 20], bad=(3, 25))
    with pytest.raises(BadImageError, match=r"streamed image with the label . cannot be decoded \(not an image\)"):
        list(loader(stream(folder), steps=8, epochs=1))
    counts = Counter(flat(numbers(loader(stream(folder, bad_files="skip"), steps=8, epochs=1))))
    assert set(counts) == set(range(40)) - {3, 25}
    assert sum(counts.values()) == 40


def test_labels_that_evaluation_does_not_know_are_named(tmp_path):
    folder = write_shards(tmp_path, [20], label=lambda n: ("cls", str(7 if n == 4 else n % 2)))
    with pytest.raises(ValueError, match=r"split train has the label 7 in column 'cls', which is no class"):
        list(loader(stream(folder, samples=20), steps=4))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source": "digits"}, r"data.source \('digits'\) cannot be streamed: give a folder of .tar"),
        (
            {"samples": None},
            r"data.samples \(None\) must be the number of training images in an epoch, which .* not say",
        ),
        ({"label": "klass"}, r"data.label \('klass'\) is no column; there are png, cls"),
    ],
)
def test_streams_that_cannot_train_are_refused(shards, settings, text):
    with pytest.raises(ValueError, match=text):
        load_images(
            DataSettings(**{"source": str(shards), "streaming": True, "samples": 60, **settings}),
            seed=0,
            may_stream=True,
        )


def test_a_stream_without_anything_to_evaluate_on_is_refused(tmp_path):
    write_shard(tmp_path / "train-0.tar", range(10))
    with pytest.raises(ValueError, match="has the splits train: a stream needs train, and validation or test"):
        stream(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data\.source .* cannot be streamed"):
        stream(tmp_path / "none")


def test_what_needs_images_by_number_refuses_a_stream(shards):
    with pytest.raises(ValueError, match=r"streaming .* is for one training, patchmerger fit"):
        load_images(DataSettings(str(shards), streaming=True), seed=0)
    images = stream(shards)
    with pytest.raises(TypeError, match="streamed images are read in order only"):
        images.train[0]
    with pytest.raises(TypeError, match="streamed images have no targets to look up"):
        _ = images.train.targets


def test_a_checkpoint_fits_the_same_readers_only(shards):
    data = ImageData(stream(shards), image_size=8, preprocessing=HALF, batch_size=5, epochs=1, workers=2)
    state = data.state_dict()
    assert state.pop("content") == stream(shards).content
    assert state == {"batches": 0, "images": 60, "global_batch": 5, "seed": 0, "devices": 1, "data.workers": 2}
    other = ImageData(stream(shards), image_size=8, preprocessing=HALF, batch_size=5, epochs=1, workers=3)
    with pytest.raises(ValueError, match=r"the checkpoint is of a run with .*'data.workers': 2"):
        other.load_state_dict(state)


def test_shards_are_a_source_without_streaming_too(shards):
    images = load_images(DataSettings(str(shards)), seed=0)
    assert (len(images.train), len(images.validation), len(images.test)) == (54, 6, 20)


def run(shards, out, **data):
    recipe = Recipe(
        data=DataSettings(str(shards), streaming=True, samples=60, shuffle_buffer=8, **data),
        model=ModelSettings("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2,
            "num_heads": 2}),
        merge=MergeSettings(num_tokens=4),
        training=TrainingSettings(epochs=6, batch_size=10, warmup_epochs=1, accelerator="cpu", checkpoint_every=4),
    )  # fmt: skip
    return fit(recipe, out=out, progress=False)


@pytest.mark.slow
def test_an_interrupted_run_on_a_stream_ends_in_the_weights_of_one_that_was_not(shards, tmp_path, monkeypatch):
    results = run(shards, tmp_path / "whole", workers=2)
    assert results["test_metric"] > 0.95
    assert results["images"]["train"] == 60
    assert results["settings"]["data"]["samples"] == 60
    save, saves = AtomicCheckpointIO.save_checkpoint, []

    def save_and_stop(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        saves.append(path)
        if len(saves) == 4:  # of steps 4, 8, 12, 16: in the third epoch
            raise RuntimeError("power cut")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_stop)
    with pytest.raises(RuntimeError, match="power cut"):
        run(shards, tmp_path / "run", workers=2)
    monkeypatch.undo()
    assert run(shards, tmp_path / "run", workers=2)["test_metric"] == results["test_metric"]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "run")]
    assert [name for name, tensor in weights[0].items() if not torch.equal(tensor, weights[1][name])] == []
    assert evaluate(
        tmp_path / "run", data=DataSettings(str(shards), streaming=True, samples=60), progress=False, accelerator="cpu"
    )["value"] == pytest.approx(results["test_metric"])
