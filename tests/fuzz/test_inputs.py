"""Bad inputs of every kind: each is a result or an error that names what is wrong; none runs code or takes the machine.

``make fuzz`` runs them; ``FUZZ_SEED`` and ``FUZZ_ROUNDS`` say which and how many.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
import yaml
from PIL import Image

import patchmerger
from fuzz.mutations import image_bytes, mutate, mutate_value
from patchmerger.cli import SUBCOMMANDS, read_command
from patchmerger.data import DataSettings, load_images
from patchmerger.hub.conversion import convert

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.timeout(3000),
    # Readers of other libraries that fail leave their file to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

SEED, ROUNDS = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_ROUNDS", "1"))
NAMED = (ValueError, TypeError, OSError)
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


class Trap:
    """What a pickle must never do."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch CODE_WAS_RUN",))


def outcomes(count: int, attempt: Callable[[random.Random, int], str], names: str | None = None) -> Counter[str]:
    """Try ``count`` inputs; anything but a result or a named error fails with its seed."""
    found: Counter[str] = Counter()
    for number in range(count * ROUNDS):
        rng = random.Random(f"{SEED}/{number}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[attempt(rng, number)] += 1
        except NAMED as raised:
            if not raised.args or len(str(raised)) > 4000 or (names or "") not in str(raised):
                raise AssertionError(
                    f"seed {SEED}, input {number}: says nothing of {names}: {raised!s:.400}"
                ) from raised
            found["named error"] += 1
        except Exception as raised:
            raise AssertionError(f"seed {SEED}, input {number}: {type(raised).__name__}: {raised}") from raised
    print(f"\n{sum(found.values())} inputs, seed {SEED}: {dict(found)}")
    return found


def good_images(folder: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for image in range(20):
            Image.new("RGB", (16, 16), (10 * image, 90 * number, 9)).save(folder / name / f"good{image}.png")


def test_images(tmp_path: Path) -> None:
    def attempt(rng: random.Random, number: int) -> str:
        folder = tmp_path / str(number)
        good_images(folder)
        content, ending = image_bytes(rng)
        damaged = rng.random() < 0.8
        bad = folder / rng.choice(("cat", "dog")) / f"fuzz.{rng.choice((ending, 'png', 'jpg'))}"
        bad.write_bytes(mutate(content, rng) if damaged else content)
        try:
            splits = load_images(DataSettings(str(folder), bad_files=rng.choice(("error", "skip"))), seed=0)
            for images in (splits.train, splits.validation, splits.test):
                for index in range(len(images)):
                    assert images[index].shape[0] == 3
            return "skipped" if splits.skipped else "read"
        finally:
            shutil.rmtree(folder)

    outcomes(400, attempt, names="fuzz")


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    good_images(tmp_path)
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    (tmp_path / "cat" / "bomb.png").write_bytes(file.getvalue())
    with pytest.raises(ValueError, match=r"bomb\.png"):
        load_images(DataSettings(str(tmp_path)), seed=0)


def test_tables(tmp_path: Path) -> None:
    cells = []
    for number in range(24):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (number, 90, 9)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    labels = [
        lambda rng: [n % 2 for n in range(24)], lambda rng: [bool(n % 2) for n in range(24)],
        lambda rng: [n / 3 for n in range(24)], lambda rng: ["ab"[n % 2] for n in range(24)],
        lambda rng: [None if n == 5 else n % 2 for n in range(24)], lambda rng: [[n % 2] for n in range(24)],
        lambda rng: [rng.choice(("x", "", "é", "y")) for _ in range(24)], lambda rng: [n * 10**12 for n in range(24)],
        lambda rng: [pd.Timestamp("2020-01-01")] * 24, lambda rng: [-(n % 3) for n in range(24)],
    ]  # fmt: skip

    def attempt(rng: random.Random, number: int) -> str:
        folder = tmp_path / f"table{number}"
        folder.mkdir()
        images = [
            cell if rng.random() < 0.97 else rng.choice((None, {"bytes": mutate(cell["bytes"], rng), "path": None}))
            for cell in cells
        ]
        name, label = rng.choice(("image", "img", "picture")), rng.choice(("label", "y", "class"))
        pd.DataFrame({name: images, label: rng.choice(labels)(rng)}).to_parquet(folder / "train.parquet")
        if rng.random() < 0.3:
            (folder / "train.parquet").write_bytes(mutate((folder / "train.parquet").read_bytes(), rng))
        try:
            load_images(DataSettings(str(folder), bad_files=rng.choice(("error", "skip"))), seed=0)
            return "read"
        finally:
            shutil.rmtree(folder)

    outcomes(150, attempt)


def test_metadata_beside_images(tmp_path: Path) -> None:
    def attempt(rng: random.Random, number: int) -> str:
        folder = tmp_path / f"metadata{number}"
        folder.mkdir()
        rows = [{"file_name": f"{n}.png", "label": "ab"[n % 2]} for n in range(20)]
        for row in rows:
            Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / row["file_name"])
        kind = rng.choice(("metadata.csv", "metadata.jsonl"))
        text = (
            pd.DataFrame(rows).to_csv(index=False)
            if kind.endswith("csv")
            else "".join(f"{json.dumps(r)}\n" for r in rows)
        )
        (folder / kind).write_bytes(mutate(text.encode(), rng))
        try:
            splits = load_images(DataSettings(str(folder)), seed=0)
            assert len(splits.class_names) > 1, "labels were left out without a word"
            return "read"
        finally:
            shutil.rmtree(folder)

    outcomes(100, attempt)


def test_configs(tmp_path: Path) -> None:
    base = {
        "data": {"source": "digits", "validation": 0.1, "memory_gib": 2.0},
        "model": {"name": "vit_tiny_patch16_224", "args": {"img_size": 32, "depth": 4}},
        "merge": {"num_tokens": 8, "after": 2, "preset": "default"},
        "training": {"epochs": 3, "batch_size": 64, "lr": 2e-3, "warmup_epochs": 1, "precision": "32-true"},
        "seed": 0,
    }  # fmt: skip
    names = [name for name in ("fit", "compare", "sweep", "transfer", "accelerate") if name in SUBCOMMANDS]

    def attempt(rng: random.Random, number: int) -> str:
        content = mutate_value(base, rng)
        text = yaml.safe_dump(content, allow_unicode=True).encode()
        if rng.random() < 0.3:
            text = mutate(text, rng)
        if rng.random() < 0.1:
            text = b"data: !!python/object/apply:os.system ['touch CODE_WAS_RUN']\n"
        file = tmp_path / "config.yaml"
        file.write_bytes(text)
        try:
            read_command(rng.choice(names), ["--config", str(file)])
        except SystemExit as stop:
            return "refused" if stop.code == 2 else f"left with {stop.code}"
        return "read"

    os.chdir(tmp_path)
    assert outcomes(250, attempt).keys() <= {"refused", "read", "named error"}
    assert not Path("CODE_WAS_RUN").exists()


def test_model_folders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = patchmerger.insert(
        timm.create_model("vit_tiny_patch16_224", **TINY), 2, **patchmerger.preset("located", 16)
    )
    good = patchmerger.save(model, tmp_path / "good")

    def attempt(rng: random.Random, number: int) -> str:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        action = rng.random()
        if action < 0.45:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(mutate_value(config, rng)))
        elif action < 0.6:
            (folder / "config.json").write_bytes(mutate((folder / "config.json").read_bytes(), rng))
        elif action < 0.95:
            (folder / "model.safetensors").write_bytes(mutate((folder / "model.safetensors").read_bytes(), rng))
        else:
            (folder / rng.choice(("config.json", "model.safetensors"))).unlink()
        patchmerger.load(folder)
        return "loaded"

    outcomes(200, attempt)


def test_checkpoints(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    weights = timm.create_model("vit_tiny_patch16_224", **TINY).state_dict()
    wrap: list[Callable[[], Any]] = [
        lambda: weights, lambda: {"state_dict": weights, "args": argparse.Namespace(lr=1)},
        lambda: {"model": {f"module.{k}": v for k, v in weights.items()}}, lambda: {"model_ema": weights, "epoch": 3},
        lambda: {k: v for k, v in weights.items() if "blocks.1" not in k}, lambda: [weights], lambda: {"a": Trap()},
        lambda: {**weights, "extra": torch.zeros(2)}, lambda: {k: v.half() for k, v in weights.items()},
        lambda: {k: v.numpy().tolist() for k, v in weights.items() if "bias" in k}, lambda: Trap(),
    ]  # fmt: skip

    def attempt(rng: random.Random, number: int) -> str:
        file = Path("checkpoint.pth")
        content = rng.choice(wrap)()
        if rng.random() < 0.8:
            torch.save(content, file)
        else:
            file.write_bytes(pickle.dumps(content))
        if rng.random() < 0.4:
            file.write_bytes(mutate(file.read_bytes(), rng))
        shutil.rmtree("converted", ignore_errors=True)
        convert(file, "converted", architecture="vit_tiny_patch16_224", model_args=TINY)
        return "converted"

    outcomes(120, attempt)
    assert not Path("CODE_WAS_RUN").exists()
