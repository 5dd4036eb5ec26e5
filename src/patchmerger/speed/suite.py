"""Measured speed over models, batch sizes, number formats and devices: what ``patchmerger bench`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from patchmerger.costs.model_cost import cost
from patchmerger.data.loading import DataLike
from patchmerger.exports.runtimes import is_exported
from patchmerger.models.finding import weights_fingerprint
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.progress import Progress, progress_bar
from patchmerger.speed.candidates import Candidates, build_candidates
from patchmerger.speed.deployment import bench_deployment
from patchmerger.speed.forward_parts import measure_forward_parts
from patchmerger.speed.measurement import measure
from patchmerger.speed.memory import is_out_of_memory, limited_to_free_memory, out_of_memory_text, release
from patchmerger.speed.record import Record, RowKey
from patchmerger.speed.roofline import Matmul, PeakRates, least_seconds, matmuls_of, measure_peak_rates
from patchmerger.speed.settings import BenchSettings, TimingSettings, listed


def bench(
    models: str | Path | Sequence[str | Path],
    settings: BenchSettings = BenchSettings(),
    *,
    data: DataLike | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure how much faster Vision Transformers are with a merger than without.

    Timm's models have random weights and all run on random images, for speed does not depend on them. In each row
    the models are interleaved, so that a noisy machine slows all alike; the result is the median of the paired ratios
    within the rounds. Beside it stand the speed-up that FLOPs predict and the one that a roofline allows, with the
    peak rates of the device measured at the start. A row that runs out of memory says so, and the others go on.

    Args:
        models: Names in timm, such as vit_small_patch16_224, folders of saved models or runs, safetensors files. A
            saved model that merges or places its tokens is measured against the plain one.
        settings: What is measured.
        data: With ``settings.formats``, images to calibrate int8 on, and to compare exported files with their models
            on, as in :func:`patchmerger.data.load_images`.
        out: JSON file for the result, written after each row. After an interrupt (Ctrl-C) the same call goes on with
            the rows that are missing.
        overwrite: Replace the file if it exists.
        command: The command line that asked for it, kept in the results.

    With ``settings.formats``, or where exported files are given, models are measured as they are deployed instead;
    see :func:`patchmerger.speed.deployment.bench_deployment`.

    Returns:
        The content of the JSON file: ``rows``, each with its ``key``, ``peak_rates`` and a ``measurement`` (or an
        ``error``), ``profiles``, ``environment``, ``settings``, and whether it is ``finished``.

    Raises:
        ValueError: An argument that cannot work, before anything is measured.
        FileExistsError: ``out`` exists and ``overwrite`` is false.
    """
    names = [str(name) for name in ([models] if isinstance(models, str | Path) else models)]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models ({names}) must be different ones, and at least one: names of timm, folders")
    files = [name for name in names if is_exported(name)]
    others = [name for name in names if name not in files]
    if files and others and not settings.formats:
        raise ValueError(
            f"formats is missing: beside the exported file {files[0]}, models ({', '.join(others)}) are measured in "
            "forms, such as [eager, onnx]"
        )
    if settings.formats or files:
        settings.check_deployed(files_alone=not others)
        if data is not None and not others:
            raise ValueError("data means nothing to exported files, which are measured as they are: leave it out")
        return bench_deployment(names, settings, data=data, out=out, overwrite=overwrite, command=command)
    if data is not None:
        raise ValueError("data is for formats, such as [eager, onnx]: otherwise speed is measured on random images")
    devices = [str(find_device(name)) for name in listed(settings.device)]
    for name in names:  # what cannot work is refused before anything is measured
        candidates = build_candidates(name, settings)
        if settings.image_size is not None:
            cost(candidates.models["merged"], settings.image_size)
    head = {
        "command": command,
        "settings": {"models": names, **asdict(settings)},
        "environment": environment(devices[0]),
    }
    record = Record(out, head, overwrite=overwrite)
    grid = product(
        names, devices, *map(listed, (settings.precision, settings.compile, settings.batch_size)),
        (False, True) if settings.mode == "both" else (settings.mode == "training",),
    )  # fmt: skip
    keys = [RowKey(n, d, p, c, train, size) for n, d, p, c, size, train in grid if not (train and c == "frozen")]
    try:
        _Rows(record, keys, settings).measure()
    except KeyboardInterrupt:
        if not record.content["rows"]:
            raise
        record.save()
    return record.content


class _Rows:
    """Measures the rows that a record lacks, those of one model together."""

    def __init__(self, record: Record, keys: Sequence[RowKey], settings: BenchSettings) -> None:
        self.record, self.settings = record, settings
        self.missing = [(key, "rows") for key in keys if record.find(key) is None]
        if settings.profile:
            plain = dict.fromkeys(replace(key, compile=False, training=False) for key in keys)
            self.missing += [(key, "profiles") for key in plain if record.find(key, "profiles") is None]
        names = list(dict.fromkeys(key.model for key in keys))
        self.missing.sort(key=lambda each: names.index(each[0].model))
        self.peak_rates: dict[tuple[str, str], PeakRates] = {}
        self.matmuls: dict[tuple[str, str, int, str], list[Matmul]] = {}

    def measure(self) -> None:
        """Measure them, each saved when it is done.

        Raises:
            KeyboardInterrupt: Interrupted; what was measured of the row is saved if it was three rounds or more.
        """
        name, candidates = "", None
        with progress_bar("", max(1, len(self.missing))) as bar:
            for done, (key, kind) in enumerate(self.missing):
                if candidates is None or key.model != name:
                    name, candidates = key.model, None  # those of another model go first
                    candidates = build_candidates(name, self.settings, seed=self.settings.seed)
                    self.record.check_model(name, weights_fingerprint(candidates.models["merged"]))
                    counted = cost(candidates.models["merged"], self.settings.image_size)
                rates = self._peak_rates(key, bar)
                bar.describe(str(key) + (", part by part" if kind == "profiles" else ""), completed=done)
                row = self._attempt(key, kind, candidates, rates, bar)
                found = {
                    "num_tokens": candidates.num_tokens, "after": candidates.after, "placed": candidates.placed,
                    "block_tokens": counted.block_tokens, "tokens_out": counted.tokens_out,
                    "peak_rates": asdict(rates),
                }  # fmt: skip
                interrupted = bool((row.get("measurement") or {}).get("interrupted"))
                self.record.add(key, {**found, **row}, kind, interrupted=interrupted)
                if interrupted:
                    raise KeyboardInterrupt
        self.record.finish()

    def _attempt(
        self, key: RowKey, kind: str, candidates: Candidates, rates: PeakRates, bar: Progress
    ) -> dict[str, Any]:
        """The row, or the error that it ended with."""
        device = torch.device(key.device)
        timing = TimingSettings(
            batch_size=key.batch_size, training=key.training, precision=key.precision, compile=key.compile,
            rounds=self.settings.rounds, warmup=self.settings.warmup, device=key.device, seed=self.settings.seed,
        )  # fmt: skip
        try:
            with limited_to_free_memory(device):
                if kind == "profiles":
                    return self._profile(candidates, timing, bar)
                measurement = measure(
                    candidates.models,
                    timing,
                    image_size=self.settings.image_size,
                    least_seconds=self._least_seconds(key, candidates, rates),
                    progress=lambda _, rounds: bar.advance(1 / rounds),
                )
                others = [name for name in candidates.models if name not in ("plain", "merged")]
                against = {name: measurement.speedup_over("merged", name) for name in others}
                return {"measurement": measurement.as_dict(), "merged_against": against, "error": None}
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            text = out_of_memory_text(error) if is_out_of_memory(error) else reason
        release(device)
        return {"measurement": None, "error": text}

    def _profile(self, candidates: Candidates, timing: TimingSettings, bar: Progress) -> dict[str, Any]:
        found = measure_forward_parts(
            {name: candidates.models[name] for name in ("plain", "merged")},
            timing,
            image_size=self.settings.image_size,
            progress=lambda _, rounds: bar.advance(1 / rounds),
        )
        parts = {
            name: [{**asdict(part), "flops_per_second": part.flops_per_second} for part in parts]
            for name, parts in found.items()
        }
        where = environment(timing.device or "cpu")
        return {"models": parts, "rounds": timing.rounds, "warmup": timing.warmup, "environment": where, "error": None}

    def _least_seconds(self, key: RowKey, candidates: Candidates, rates: PeakRates) -> dict[str, float]:
        least = {}
        for name, model in candidates.models.items():
            place = key.model, key.precision, key.batch_size, name
            if place not in self.matmuls:
                size = self.settings.image_size
                self.matmuls[place] = matmuls_of(model, size, batch_size=key.batch_size, precision=key.precision)
            params = sum(p.numel() for p in model.parameters())
            least[name] = least_seconds(self.matmuls[place], rates, training=key.training, params=params)
        return least

    def _peak_rates(self, key: RowKey, bar: Progress) -> PeakRates:
        """Those of the device of a row, measured once a run."""
        place = key.device, key.precision
        if place not in self.peak_rates:
            bar.describe(f"the peak rates of {key.device} in {key.precision}")
            self.peak_rates[place] = measure_peak_rates(torch.device(key.device), key.precision)
        return self.peak_rates[place]
