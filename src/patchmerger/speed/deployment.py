"""Measured speed where a model is deployed: torch, exported files, number formats, plain and merged, interleaved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from patchmerger.data.loading import DataLike, identify_data, read_images
from patchmerger.data.splits import ImageSplits
from patchmerger.exports.runtimes import is_exported
from patchmerger.runs.environment import cpu_has_bf16, cpu_info, environment, versions_of
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.statistics import quartiles
from patchmerger.speed.deployed_forms import (
    DeployedForm,
    FormBuilder,
    FormKey,
    file_fingerprint,
    form_keys,
    given_file,
)
from patchmerger.speed.deployment_record import DeploymentRecord
from patchmerger.speed.record import WAY_OUT
from patchmerger.speed.roofline import PeakRates, least_seconds, measure_peak_rates
from patchmerger.speed.settings import BenchSettings, listed
from patchmerger.speed.timed_steps import interleaved

_LIBRARIES = ("onnxruntime", "openvino", "nncf", "onnx")
_ROUND = 0.2
"""In a round a form runs at least so many seconds, and at least one batch."""

_QUICK, _PAUSE = 0.5, 0.02
"""Below so many seconds a batch, a form runs once untimed at the start of its turn; threads of others sleep by then."""


def bench_deployment(
    names: list[str],
    settings: BenchSettings,
    *,
    data: DataLike | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure plain and merged models in every form that they are deployed in, on the CPU; see :func:`bench`.

    Each form is made first: exported files by :func:`patchmerger.export`, which compares them with their model. At each
    batch size all forms are interleaved, so that a noisy machine slows all alike; ratios are medians of those within
    the rounds. A form that cannot be made says why, and the others go on. Without ``data``, noise serves for
    calibration, and agreement is not measured. After an interrupt (Ctrl-C) the same call goes on with the forms and
    rounds that are missing; files that were made are kept until then, in a hidden folder beside ``out``.

    Returns:
        The content of the JSON file: ``forms``, each with its ``key``, ``size``, ``parity`` (or an ``error``);
        ``rows``, one for each batch size, with the ``timings`` of each form; ``peak_rates``, FLOPs a second of a large
        matmul in each number format; ``bandwidth``, bytes a second of a large copy; ``environment`` and ``settings``,
        and whether it is ``finished``.

    Raises:
        FileExistsError: ``out`` exists, and is finished or has other settings.
        ValueError: ``out`` is unfinished, and was measured elsewhere or of other models; or no form can be made.
    """
    known = data.fingerprint if isinstance(data, ImageSplits) else None if data is None else identify_data(data)
    head = {
        "command": command, "settings": {"models": names, **asdict(settings), "data": known},
        "environment": _environment(),
    }  # fmt: skip
    record = DeploymentRecord(out, head, overwrite=overwrite)
    sizes = listed(settings.batch_size)[len(record.content["rows"]) :]
    try:
        with record.files() as folder:
            rates = _peak_rates(record, settings)
            forms = _make_forms(names, settings, data, folder, record) if sizes else []
            for size in sizes:
                record.add_row(_measure(forms, size, settings, rates, record))
            record.finish()
    except KeyboardInterrupt:
        if not record.content["forms" if out else "rows"]:
            raise
    return record.content


def _peak_rates(record: DeploymentRecord, settings: BenchSettings) -> dict[str, PeakRates]:
    """Those of each number format that is asked for; measured once, for a record that goes on too."""
    cpu, content = torch.device("cpu"), record.content
    if content["peak_rates"] is None:
        found = {name: measure_peak_rates(cpu, name) for name in _rated(settings)}
        content["bandwidth"] = max((rates.bytes_per_second for rates in found.values()), default=None)
        content["peak_rates"] = {name: rates.flops_per_second for name, rates in found.items()}
    where, bandwidth = content["environment"], content["bandwidth"]
    return {
        name: PeakRates(where["device_name"], name, where["threads"], content["peak_rates"][name], bandwidth)
        for name in _rated(settings)
    }


def _rated(settings: BenchSettings) -> list[Literal["float32", "bf16", "int8"]]:
    """The number formats asked for in which a CPU multiplies matrices; fp16 is one of storage there."""
    rated: tuple[Literal["float32", "bf16", "int8"], ...] = ("float32", "bf16", "int8")
    return [name for name in rated if name in listed(settings.precision)]


def _make_forms(
    names: list[str], settings: BenchSettings, data: DataLike | None, folder: Path, record: DeploymentRecord
) -> list[DeployedForm]:
    forms: list[DeployedForm] = []
    keys = form_keys({name: [False, True] for name in names if not is_exported(name)}, settings)
    files = [name for name in names if is_exported(name)]
    builders: dict[str, FormBuilder] = {}
    if data is not None and not isinstance(data, ImageSplits):
        data = read_images(data, labels_needed=False)  # once, and not for each form
    with progress_bar("", len(files) + len(keys)) as bar:
        for name in files:
            bar.describe(f"opening {name}")
            record.check_model(name, file_fingerprint(name))
            alone = [Path(each).name for each in files].count(Path(name).name) == 1
            forms.append(given_file(name, settings, alone=alone))
            record.add_form(_describe(forms[-1]))
            bar.advance()
        for key in keys:
            bar.describe(f"making {key}")
            if key.model not in builders:
                builders[key.model] = FormBuilder(key.model, settings, data, folder)
                record.check_model(key.model, builders[key.model].fingerprint)
            forms += _made(key, builders[key.model], settings, record)
            bar.advance()
    if not forms:
        errors = [form["error"] for form in record.content["forms"]]
        why = errors[0] if errors else "none of formats has a precision that is asked for"
        raise ValueError(f"no form could be made of models ({', '.join(names)}): {why}")
    sizes = {form.image_size for form in forms}
    asked = settings.image_size
    if asked is not None and (other := sizes - {(asked, asked)}):
        raise ValueError(
            f"image_size ({asked}) must be that of exported files, which take {sorted(other)}: leave it out"
        )
    if len(sizes) > 1:
        raise ValueError(f"models take images of {len(sizes)} sizes ({sorted(sizes)}): measure one size at a time")
    return forms


def _made(key: FormKey, builder: FormBuilder, settings: BenchSettings, record: DeploymentRecord) -> list[DeployedForm]:
    """The form, once it ran; none where it cannot be made, and the record says why."""
    known = record.form(key)
    if known is not None and known["error"]:
        return []
    try:
        form = builder.make(key, again=known is not None)
        form.run(np.zeros((min(listed(settings.batch_size)), form.channels, *form.image_size), np.float32))
    except (ValueError, RuntimeError, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())[:300]
        if known is not None and record.measured:
            raise ValueError(
                f"out ({record.path}) is unfinished and was measured with {key}, which cannot be made now ({reason}): "
                f"{WAY_OUT}"
            ) from error
        record.add_form({"key": asdict(key), "error": reason})
        return []
    if known is None:
        record.add_form(_describe(form))
    return [form]


def _describe(form: DeployedForm) -> dict[str, Any]:
    parity = None if form.parity is None else {**asdict(form.parity), "relative": form.parity.relative}
    return {
        "key": asdict(form.key), "runtime": form.runtime, "size": form.size, "flops": form.flops, "parity": parity,
        "float_layers": form.float_layers, "error": None,
    }  # fmt: skip


def _measure(
    forms: list[DeployedForm],
    batch_size: int,
    settings: BenchSettings,
    rates: Mapping[str, PeakRates],
    record: DeploymentRecord,
) -> dict[str, Any]:
    """All forms at one batch size, interleaved; each round is kept when it is done."""
    height, width = forms[0].image_size
    generator = torch.Generator().manual_seed(settings.seed)
    images = torch.randn(batch_size, forms[0].channels, height, width, generator=generator).numpy()
    by_name = {str(form.key): form for form in forms}
    quick: dict[str, bool] = {}
    for name, form in by_name.items():
        for _ in range(settings.warmup):
            quick[name] = _seconds(form, images) < _QUICK

    def turn(name: str) -> list[float]:
        form = by_name[name]
        time.sleep(_PAUSE)
        if quick[name]:
            form.run(images)
        found = [_seconds(form, images)]
        while sum(found) < _ROUND:
            found.append(_seconds(form, images))
        return found

    times = record.rounds(batch_size, list(by_name))
    with progress_bar(f"measuring, batch of {batch_size}", settings.rounds) as bar:

        def keep(done: int, _: int) -> None:
            record.keep_rounds(batch_size, times)
            bar.describe(f"measuring, batch of {batch_size}", completed=done)

        _, interrupted = interleaved(list(by_name), settings.rounds, turn, keep, times=times)
    if interrupted:
        raise KeyboardInterrupt
    rounds = {name: [float(np.median(turns)) for turns in found] for name, found in times.items()}
    least = {name: _least_seconds(form, batch_size, rates) for name, form in by_name.items()}
    timings = [
        _timing(form, rounds, [x for turns in times[name] for x in turns], by_name, least, batch_size)
        for name, form in by_name.items()
    ]
    return {
        "batch_size": batch_size,
        "rounds": settings.rounds,
        "timings": timings,
        "load": environment()["load_average"],
    }


def _timing(
    form: DeployedForm,
    rounds: dict[str, list[float]],
    calls: list[float],
    forms: dict[str, DeployedForm],
    least: Mapping[str, float | None],
    batch_size: int,
) -> dict[str, Any]:
    """Latency of one form, and its speed-up over what a user starts from and over plain in the same form."""
    key, own = form.key, rounds[str(form.key)]
    start = FormKey(key.model, False, "eager", "float32")
    plain = FormKey(key.model, False, key.form, key.precision)
    over_plain = _ratio(rounds.get(str(plain)), own) if key.merged else None
    other = forms.get(str(plain))
    predicted = other.flops / form.flops if key.merged and other and other.flops and form.flops else None
    own_least, plain_least = least[str(key)], least.get(str(plain))
    return {
        "key": asdict(key), "calls": len(calls), "median": float(np.median(calls)),
        "p95": float(np.quantile(calls, 0.95)), "images_per_second": batch_size / float(np.median(own)),
        "round_seconds": own, "over_eager": _ratio(rounds.get(str(start)), own), "over_plain": over_plain,
        "predicted": predicted, "least_seconds": own_least,
        "roofline_speedup": plain_least / own_least if key.merged and plain_least and own_least else None,
    }  # fmt: skip


def _least_seconds(form: DeployedForm, batch_size: int, rates: Mapping[str, PeakRates]) -> float | None:
    """The time that a roofline allows for a batch, where the matmuls and the rates of its number format are known."""
    rate = rates.get(form.key.precision)
    if form.matmuls is None or rate is None:
        return None
    return least_seconds(form.matmuls(batch_size), rate, training=False, params=0)


def _ratio(others: list[float] | None, own: list[float]) -> list[float] | None:
    """How many times faster: first quartile, median and third quartile of the ratios within the rounds."""
    if others is None:
        return None
    return list(quartiles(np.asarray(others) / np.asarray(own)))


def _seconds(form: DeployedForm, images: Any) -> float:
    begin = time.perf_counter()
    form.run(images)
    return time.perf_counter() - begin


def _environment() -> dict[str, Any]:
    """The machine, with what counts here: the versions of the runtimes, and arithmetic of narrow formats."""
    flags = cpu_info("flags").split()
    arithmetic = {name: name in flags for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")}
    return {**environment("cpu"), **versions_of(*_LIBRARIES), "arithmetic": {**arithmetic, "bf16": cpu_has_bf16()}}
