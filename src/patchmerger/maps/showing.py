"""``patchmerger show``: read the merge maps of some images and of a dataset, and keep them in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.data.decoding import BadImageError
from patchmerger.data.images import ImageSet
from patchmerger.data.loading import DataLike, load_images
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.splits import ImageSplits
from patchmerger.insertion.inserted import mergers
from patchmerger.maps.inputs import Inputs, ModelInputs, ShownImage, class_in_turn
from patchmerger.maps.measures import are_sets, effective_patches, shares, unused
from patchmerger.maps.picture_files import remove_pictures
from patchmerger.maps.reading import MergerMaps, read_maps
from patchmerger.maps.settings import ShowSettings
from patchmerger.maps.special_inputs import inputs_for
from patchmerger.maps.statistics import MapStatistics, map_statistics
from patchmerger.models.finding import FoundModel, find_model
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.files import read_json, refuse_broken_link, write_json
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.tensors import read_tensors, write_tensors

RESULTS_FILE = "results.json"
MAPS_FILE = "maps.safetensors"
STUDY = "show"


def show(
    model: str | Path | nn.Module,
    images: Sequence[str | Path] = (),
    data: DataLike | None = None,
    settings: ShowSettings = ShowSettings(),
    *,
    out: str | Path = "merge-maps",
    overwrite: bool = False,
    preprocessing: Preprocessing | None = None,
    device: str | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Read the merge maps of images, and statistics of those of a dataset, into a folder.

    Args:
        model: As in :func:`~patchmerger.models.find_model`: the folder of a saved model or of a run, a model, ….
        images: Image files; for AST ``.wav`` files of sound, or spectrograms, ``.npy`` files of floats (time,
            frequency). One that cannot be read is named in the results, and the others are shown.
        data: A dataset, of which some images are shown too and statistics are taken over more.
        settings: Which of its images.
        out: The folder: ``results.json`` for the numbers, ``maps.safetensors`` for the maps and pixels.
        overwrite: Replace what an earlier call wrote there.
        preprocessing: How images are prepared, in place of what is known of the model.
        device: Such as "cpu" or "cuda"; the accelerator by default where there is one.
        progress: Show a progress bar, on a terminal.
        command: The command line that asked for it, kept in the results.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: The model has no merger, there is nothing to show, the device is not there, or no image could be
            read.
        FileNotFoundError: There is no such model or data.
        FileExistsError: ``out`` holds results, or something else.
    """
    folder = Path(out)
    _check_folder(folder, overwrite)
    if not images and data is None:
        raise ValueError("images is empty and data is None: give at least one image file, or a dataset")
    on = find_device(device)
    found = find_model(model)
    _check_merged(found)
    inputs = inputs_for(found.model.to(on), preprocessing or found.preprocessing, found.name)
    if data is not None and not isinstance(inputs, ModelInputs):
        raise ValueError(f"data is for models that take images of one size, and model ({found.name}) takes files alone")
    shown, unread = _read_files(images, inputs)
    splits = None if data is None else load_images(data, seed=settings.seed, labels_needed=False)
    chosen = None if splits is None else _chosen_set(splits, settings)
    if splits is not None and chosen is not None and isinstance(inputs, ModelInputs):
        shown += _examples(chosen, splits.class_names, settings, inputs)
    if not shown and not (chosen and settings.limit):
        raise ValueError("none of the images can be read: " + "; ".join(f"{e['name']}: {e['reason']}" for e in unread))
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    records = []
    for number, image in enumerate(shown):
        maps = read_maps(found.model, image.inputs)
        described = described or [_merger(each) for each in maps]
        records.append(_record(image, maps))
        tensors[f"images.{number}.view"] = image.view
        for each in maps:
            tensors[f"images.{number}.{each.after}.maps"] = each.maps[0].float()
            tensors[f"images.{number}.{each.after}.is_patch"] = each.is_patch[0]
    statistics: list[MapStatistics] = []
    if chosen is not None and settings.limit and isinstance(inputs, ModelInputs):
        statistics = map_statistics(found.model, _batches(chosen, settings, inputs, progress))
    for mean in statistics:
        tensors[f"statistics.{mean.after}.mean_maps"] = mean.mean_maps
        tensors[f"statistics.{mean.after}.mean_taken"] = mean.mean_taken
    results: dict[str, Any] = to_json({
        "study": STUDY,
        "command": command,
        "model": found.name,
        "image_size": inputs.size,
        "mergers": described or [_merger(each) for each in read_maps(found.model, _one(chosen, inputs))],
        "images": records,
        "unread": unread,
        "data": None if splits is None else splits.description,
        "settings": asdict(settings),
        "statistics": [mean.as_dict() for mean in statistics] or None,
        "environment": environment(on),
        "folder": str(folder),
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RESULTS_FILE).is_file():
        remove_pictures(folder, read_json(folder / RESULTS_FILE))
    write_tensors(folder / MAPS_FILE, tensors)
    write_json(folder / RESULTS_FILE, results)
    return results


def read_shown(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`show` wrote into a folder: its results, and its maps and pixels by name.

    Raises:
        ValueError: The folder holds other results, or files that are damaged.
        FileNotFoundError: There are none.
    """
    results = read_json(folder / RESULTS_FILE)
    if not isinstance(results, dict) or results.get("study") != STUDY:
        raise ValueError(f"{folder} holds no results of patchmerger show")
    return results, read_tensors(folder / MAPS_FILE)


def _check_folder(folder: Path, overwrite: bool) -> None:
    refuse_broken_link(folder, "out")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = (folder / RESULTS_FILE).is_file() and read_json(folder / RESULTS_FILE).get("study") == STUDY
    if not ours:
        raise FileExistsError(f"out ({folder}) exists and holds something else: name another folder, or move it away")
    if not overwrite:
        raise FileExistsError(f"out ({folder}) holds merge maps already: name another folder, or --overwrite true")


def _check_merged(found: FoundModel) -> None:
    if not mergers(found.model):
        raise ValueError(
            f"model ({found.name}) has no merger, so there is nothing to show; this puts one in and trains it: "
            f"patchmerger accelerate --model {found.name} --data FOLDER --speedup 1.8"
        )


def _read_files(images: Sequence[str | Path], inputs: Inputs) -> tuple[list[ShownImage], list[dict[str, str]]]:
    shown, unread = [], []
    for image in images:
        try:
            shown.append(inputs.read(Path(image).expanduser(), str(image)))
        except BadImageError as error:
            unread.append({"name": str(image), "reason": str(error)})
    return shown, unread


def _chosen_set(splits: ImageSplits, settings: ShowSettings) -> ImageSet:
    chosen = getattr(splits, settings.split)
    if chosen is None:
        raise ValueError(f"split ({settings.split!r}): {splits.description} has no such images; take another one")
    if not isinstance(chosen, ImageSet):
        raise ValueError("data is streamed: merge maps need images that can be chosen")
    return chosen


def _examples(
    chosen: ImageSet, class_names: Sequence[str], settings: ShowSettings, inputs: ModelInputs
) -> list[ShownImage]:
    targets = chosen.targets
    one_label = targets.ndim == 1 and bool(class_names)
    return [
        inputs.prepare(
            chosen[index], f"{settings.split}-{index}", class_names[int(targets[index])] if one_label else None
        )
        for index in class_in_turn(targets, settings.examples, seed=settings.seed)
    ]


def _batches(chosen: ImageSet, settings: ShowSettings, inputs: ModelInputs, progress: bool) -> Iterator[Tensor]:
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    indices = sorted(order[: settings.limit])
    shapes: set[torch.Size] = set()
    with progress_bar("merge maps", len(indices), shown=progress) as bar:
        for start in range(0, len(indices), settings.batch_size):
            some = indices[start : start + settings.batch_size]
            fitted = [inputs.fit(chosen[index]) for index in some]
            if len(shapes := shapes | {image.shape for image in fitted}) > 1:
                seen = " and ".join(f"{rows} × {columns}" for _, rows, columns in sorted(shapes)[:2])
                raise ValueError(
                    f"limit ({settings.limit}): statistics are of images of one shape, and the model sees each in its "
                    f"own, such as {seen} pixels: take limit 0, and examples alone are shown"
                )
            yield inputs.batch(torch.stack(fitted))
            bar.advance(len(some))


def _one(chosen: ImageSet | None, inputs: Inputs) -> Tensor:
    if chosen is None or not isinstance(inputs, ModelInputs):
        raise ValueError("images is empty: there is nothing to show")
    return inputs.batch(inputs.fit(chosen[0])[None])


def _merger(maps: MergerMaps) -> dict[str, Any]:
    return {
        "name": maps.name,
        "after": maps.after,
        "reducer": maps.reducer,
        "num_tokens": maps.maps.shape[1],
        "centers": None if maps.centers is None else maps.centers.tolist(),
        "widths": None if maps.widths is None else maps.widths.tolist(),
    }


def _record(image: ShownImage, found: list[MergerMaps]) -> dict[str, Any]:
    return {
        "name": image.name,
        "label": image.label,
        "grid": list(found[0].maps.shape[2:]),
        "places": None if found[0].places is None else found[0].places[0].tolist(),
        "mergers": [
            {
                "after": each.after,
                "shares": shares(each.maps, each.is_patch)[0].tolist(),
                "effective_patches": effective_patches(each.maps)[0].tolist(),
                "unused": float(unused(each.maps, each.is_patch).sum() / each.is_patch.sum()),
                "sets": are_sets(each.maps),
                "prefix_share": float(each.prefix_weights.sum(dim=2).mean()),
            }
            for each in found
        ],
    }
