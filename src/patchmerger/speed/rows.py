"""The rows of a benchmark, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from patchmerger.speed.bar import Report, progress_bar
from patchmerger.speed.benchmark import measure
from patchmerger.speed.candidates import Candidates, build_candidates
from patchmerger.speed.memory import is_out_of_memory, limited_to_free_memory, out_of_memory_text, release
from patchmerger.speed.record import Record, RowKey
from patchmerger.speed.roofline import Ceilings, Product, least_seconds, measure_ceilings, products_of
from patchmerger.speed.stages import measure_stages, stages_record


class Rows:
    """Measures the rows that a record lacks.

    Args:
        record: Where they go.
        keys: All rows, those of one model together.
        build: Arguments of :func:`~patchmerger.speed.candidates.build_candidates` besides the name.
        options: ``image_size``, ``rounds``, ``warmup`` and ``seed`` of each measurement.
        profile: Measure the stages of forward passes too.
    """

    def __init__(
        self,
        record: Record,
        keys: Sequence[RowKey],
        build: Mapping[str, Any],
        options: Mapping[str, Any],
        profile: bool,
    ) -> None:
        self.record, self.build, self.options = record, build, options
        self.missing = [(key, "rows") for key in keys if record.find(key) is None]
        if profile:
            plain = dict.fromkeys(replace(key, compile=False, training=False) for key in keys)
            self.missing += [(key, "profiles") for key in plain if record.find(key, "profiles") is None]
        names = list(dict.fromkeys(key.model for key in keys))
        self.missing.sort(key=lambda each: names.index(each[0].model))
        self.ceilings: dict[tuple[str, str], Ceilings] = {}
        self.products: dict[tuple[str, str, int, str], list[Product]] = {}

    def measure(self) -> None:
        """Measure them, each saved when it is done.

        Raises:
            KeyboardInterrupt: Interrupted; what was measured of the row is saved if it was three rounds or more.
        """
        name, candidates = "", None
        with progress_bar(len(self.missing)) as report:
            for key, kind in self.missing:
                if candidates is None or key.model != name:
                    name, candidates = key.model, None  # those of another model go first
                    candidates = build_candidates(name, **self.build)
                ceilings = self._ceilings(key, report)
                report.begin(str(key) + (", stage by stage" if kind == "profiles" else ""))
                row = self._attempt(key, kind, candidates, ceilings, report)
                found = {"num_tokens": candidates.num_tokens, "after": candidates.after, "ceilings": asdict(ceilings)}
                interrupted = bool((row.get("measurement") or {}).get("interrupted"))
                self.record.add(key, {**found, **row}, kind, interrupted=interrupted)
                if interrupted:
                    raise KeyboardInterrupt
        self.record.finish()

    def _attempt(
        self, key: RowKey, kind: str, candidates: Candidates, ceilings: Ceilings, report: Report
    ) -> dict[str, Any]:
        """The row, or the error that it ended with."""
        device = torch.device(key.device)
        try:
            with limited_to_free_memory(device):
                if kind == "profiles":
                    return self._profile(key, candidates, device, report)
                measurement = measure(
                    candidates.models,
                    batch_size=key.batch_size,
                    training=key.training,
                    precision=key.precision,
                    compile=key.compile,
                    device=device,
                    least_seconds=self._least_seconds(key, candidates, ceilings),
                    progress=report.step,
                    **self.options,
                )
                others = [name for name in candidates.models if name not in ("plain", "merged")]
                against = {name: measurement.speedup_over("merged", name) for name in others}
                return {"measurement": measurement.as_dict(), "merged_against": against, "error": None}
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            text = out_of_memory_text(error) if is_out_of_memory(error) else reason
        release(device)
        return {"measurement": None, "error": text}

    def _profile(self, key: RowKey, candidates: Candidates, device: torch.device, report: Report) -> dict[str, Any]:
        models = {name: candidates.models[name] for name in ("plain", "merged")}
        stages = measure_stages(
            models,
            batch_size=key.batch_size,
            precision=key.precision,
            device=device,
            progress=report.step,
            **self.options,
        )
        record = stages_record(stages, self.options["rounds"], self.options["warmup"], device)
        return {**record, "error": None}

    def _least_seconds(self, key: RowKey, candidates: Candidates, ceilings: Ceilings) -> dict[str, float]:
        """What the roofline allows for each of the models."""
        least = {}
        for name, model in candidates.models.items():
            place = key.model, key.precision, key.batch_size, name
            if place not in self.products:
                size = self.options["image_size"]
                self.products[place] = products_of(model, size, batch_size=key.batch_size, precision=key.precision)
            params = sum(p.numel() for p in model.parameters())
            least[name] = least_seconds(self.products[place], ceilings, training=key.training, params=params)
        return least

    def _ceilings(self, key: RowKey, report: Report) -> Ceilings:
        """Those of the device of a row, measured once a run."""
        place = key.device, key.precision
        if place not in self.ceilings:
            report.begin(f"the ceilings of {key.device} in {key.precision}", counts=False)
            self.ceilings[place] = measure_ceilings(torch.device(key.device), key.precision)
        return self.ceilings[place]
