"""Measured speed over models, batch sizes, number formats and devices: what ``patchmerger bench`` runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

from patchmerger.costs.model_cost import cost
from patchmerger.reports.speed_picture import draw_speed
from patchmerger.runs.environment import environment, find_device
from patchmerger.speed.candidates import build_candidates
from patchmerger.speed.compiling import check_compile
from patchmerger.speed.options import Against, Compile, Mode, Precision
from patchmerger.speed.record import Record, RowKey
from patchmerger.speed.rows import Rows
from patchmerger.speed.timed_steps import DTYPES


def bench(
    models: str | Sequence[str],
    *,
    num_tokens: int | list[int] = 8,
    after: int | list[int] | None = None,
    batch_size: int | list[int] = 16,
    image_size: int | None = None,
    precision: Precision | list[Precision] = "bf16",
    mode: Mode = "both",
    compile: Compile | list[Compile] = False,
    against: Against | None = None,
    profile: bool = False,
    rounds: int = 20,
    warmup: int = 3,
    device: list[str] | str | None = None,
    seed: int = 0,
    out: Path | None = None,
    picture: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure how much faster Vision Transformers are with a merger than without.

    Timm's models have random weights and all run on random images, for speed does not depend on them. In each row
    the models take turns, so that a noisy machine slows all alike; the result is the median of the ratios within the
    rounds. Beside it stand the speed-up that FLOPs predict and the one that a roofline allows, with the two ceilings
    of the device measured at the start. A row that runs out of memory says so, and the others go on.

    Args:
        models: Names in timm, such as vit_small_patch16_224, and folders of saved models. A saved model that merges
            is measured against itself without its mergers.
        num_tokens: Tokens that go on after the merge; a list for several mergers.
        after: Block to merge after, counted from 1; half the depth by default; a list for several mergers.
        batch_size: Images in a batch; a list for several rows.
        image_size: Height and width in pixels; the model's own by default.
        precision: Number format: float32, bf16 or fp16, or a list. Inference casts the weights, training uses
            autocast.
        mode: What to measure: inference, training or both.
        compile: Compile all models with torch.compile: true, or "frozen" for inference with constant weights, laid
            out for the device; "[false, true, frozen]" for rows of each. Training steps have no rows of "frozen".
        against: Measure another library's merged ViT of the same shape too: vit-pytorch.
        profile: Also measure where the time of a forward pass goes, stage by stage, not compiled.
        rounds: How often each model is timed in a row.
        warmup: Untimed steps of each model before the first round.
        device: Device, such as cpu or cuda, or a list; the accelerator by default where there is one.
        seed: Seed of the random weights, images and labels.
        out: JSON file for the result, written after each row. After an interrupt (Ctrl-C) the same command goes on
            with the rows that are missing.
        picture: PNG file to draw: speed-up against batch size, with the predicted ceiling.
        overwrite: Replace these files if they exist.

    Returns:
        The content of the JSON file: ``rows``, each with its ``key``, ``ceilings`` and a ``measurement`` (or an
        ``error``), ``profiles``, ``environment``, ``settings``, and whether it is ``finished``.

    Raises:
        ValueError: Any argument that cannot work, before anything is measured.
        FileExistsError: A file exists and ``overwrite`` is false.
    """
    names = [models] if isinstance(models, str) else list(models)
    arguments = {**locals(), "models": names}
    settings = {name: arguments[name] for name in _SETTINGS}
    _check(names, _listed(batch_size), _listed(precision), mode, rounds, warmup)
    for each in _listed(compile):
        check_compile(each, training=mode == "training")
    devices = [find_device(name) for name in _listed(device)]
    build: dict[str, Any] = {"image_size": image_size, "num_tokens": num_tokens, "after": after, "against": against}
    for name in names:  # what cannot work is refused before anything is measured
        candidates = build_candidates(name, **build)
        if image_size is not None:
            cost(candidates.models["merged"], image_size)
    command = _command({**settings, "out": out, "picture": picture})
    head = {"command": command, "settings": settings, "environment": environment(devices[0])}
    record = Record(out, head, overwrite=overwrite)
    if picture is not None and picture.exists() and not overwrite:
        raise FileExistsError(f"picture ({picture}) exists already: take another name, or --overwrite true")
    phases = (False, True) if mode == "both" else (mode == "training",)
    grid = product(names, devices, _listed(precision), _listed(compile), _listed(batch_size), phases)
    keys = [RowKey(n, str(d), p, c, train, size) for n, d, p, c, size, train in grid if not (train and c == "frozen")]
    options = {"image_size": image_size, "rounds": rounds, "warmup": warmup, "seed": seed}
    try:
        Rows(record, keys, {**build, "seed": seed}, options, profile).measure()
    except KeyboardInterrupt:
        if not record.content["rows"]:
            raise
        record.save()
        return record.content
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_speed(record.content, picture)
    return record.content


_SETTINGS = (
    "models", "num_tokens", "after", "batch_size", "image_size", "precision", "mode", "compile", "against", "profile",
    "rounds", "warmup", "device", "seed",
)  # fmt: skip


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check(
    names: Sequence[str],
    batch_sizes: Sequence[int],
    precisions: Sequence[Precision],
    mode: Mode,
    rounds: int,
    warmup: int,
) -> None:
    if not names:
        raise ValueError("models is empty: give at least one timm architecture, or the folder of a saved model")
    for name, values in (("models", names), ("batch_size", batch_sizes), ("precision", precisions)):
        if len(set(values)) < len(values) or not values:
            raise ValueError(f"{name} ({list(values)}) must be different ones, and at least one")
    for name, number in (*(("batch_size", size) for size in batch_sizes), ("rounds", rounds), ("warmup", warmup)):
        if number < 1:
            raise ValueError(f"{name} ({number}) must be at least 1")
    if mode not in get_args(Mode):
        raise ValueError(f"mode ({mode!r}) must be one of {', '.join(map(repr, get_args(Mode)))}")
    for precision in precisions:
        if precision not in DTYPES:
            raise ValueError(f"precision ({precision!r}) must be one of {', '.join(map(repr, DTYPES))}")


def _command(arguments: Mapping[str, Any]) -> str:
    """The command line that these arguments come from."""
    words = ["patchmerger", "bench", *arguments["models"]]
    for name, value in arguments.items():
        if value is None or name == "models":
            continue
        text = str(value).replace("'", "") if isinstance(value, list) else str(value)
        words += [f"--{name}", text.lower() if "True" in text or "False" in text else text]
    return shlex.join(words)
