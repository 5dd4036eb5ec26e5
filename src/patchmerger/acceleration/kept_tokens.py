"""Tokens that a frozen front half computed once, with the teacher's outputs, kept on disk for a recovery."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.serialisation import to_json

INDEX_FILE = "kept.json"
HELD_OUT_SHARE = 0.25
"""Of ``cache_gib``: for the held-out images that a training is watched by, and as much for those of the evaluation."""

_GIB = 2**30
_CHECKED: set[Any] = set()  # files that this process found undamaged, and has not seen change since
_SYNC_EVERY = 2**25  # bytes between two entries of the index: what is computed again after an interruption


@dataclass(frozen=True)
class KeptShape:
    """What is kept of each image: P + N tokens of ``dim`` features in a dtype, scores and features in float32."""

    tokens: int
    dim: int
    classes: int
    features: int
    dtype: str = "bfloat16"

    @property
    def parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each part, for one image."""
        return {
            "tokens": ((self.tokens, self.dim), getattr(torch, self.dtype)),
            "scores": ((self.classes,), torch.float32),
            "features": ((self.features,), torch.float32),
        }

    @property
    def bytes(self) -> int:
        """Bytes of one image."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.parts.values())


class KeptTokens:
    """Tokens (B, P + N, D), teacher's scores (B, C) and pooled features (B, F) of many images, on disk.

    Written in order by :meth:`write`, resumed after an interruption, checked when they are opened, and mapped into
    memory to be read. ``identity`` says what they are of, as anything that JSON can hold.

    Raises:
        ValueError: The folder holds something else than these tokens, or damaged ones.
    """

    def __init__(self, folder: Path, shape: KeptShape, count: int, identity: Any) -> None:
        self.folder, self.shape, self.count = folder, shape, count
        self._index: dict[str, Any] = {
            "of": to_json({"identity": identity, "shape": shape, "count": count}),
            "done": [],
        }
        self._maps: dict[str, Tensor] | None = None
        index = folder / INDEX_FILE
        if index.exists():
            self._open(read_json(index))
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} exists and holds no kept tokens: move it away")

    @property
    def done(self) -> int:
        """Images that are kept already."""
        return sum(chunk["images"] for chunk in self._index["done"])

    def write(self, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Iterator[int]:
        """Write what is missing, in order, from image :attr:`done` on, and yield the number of images after each batch.

        Raises:
            OSError: The disk is full; what was written stays, for the next attempt.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / INDEX_FILE, self._index)
        files = {name: (self.folder / name).open("ab") for name in self.shape.parts}
        try:
            for name, file in files.items():
                file.truncate(self.done * self._bytes(name))
                file.seek(0, 2)
            pending = dict.fromkeys(files, 0), 0
            for parts in batches:
                checks, images = dict(pending[0]), pending[1] + len(parts[0])
                for (name, (_, dtype)), part in zip(self.shape.parts.items(), parts, strict=True):
                    raw = part.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy()
                    files[name].write(raw.data)
                    checks[name] = zlib.crc32(raw.data, checks[name])
                pending = checks, images
                if images * self.shape.bytes >= _SYNC_EVERY:
                    self._note(files, *pending)
                    pending = dict.fromkeys(files, 0), 0
                yield len(parts[0])
            if pending[1]:
                self._note(files, *pending)
        finally:
            for file in files.values():
                file.close()

    def read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, scores and features of some images."""
        chosen = torch.as_tensor(rows)
        tokens, scores, features = (self._map(name)[chosen] for name in self.shape.parts)
        return tokens, scores, features

    def scores(self) -> Tensor:
        """The teacher's scores of all images, (n, C)."""
        return self._map("scores").clone()

    def _map(self, name: str) -> Tensor:
        if self._maps is None:
            self._maps = {
                name: torch.from_file(
                    str(self.folder / name), shared=False, size=self.count * torch.Size(shape).numel(), dtype=dtype
                ).view(self.count, *shape)
                for name, (shape, dtype) in self.shape.parts.items()
            }
        return self._maps[name]

    def remove(self) -> None:
        """Delete the folder."""
        self._maps = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _bytes(self, name: str) -> int:
        shape, dtype = self.shape.parts[name]
        return torch.Size(shape).numel() * dtype.itemsize

    def _note(self, files: dict[str, Any], checks: dict[str, int], images: int) -> None:
        """Enter what was written into the index, once it is on disk."""
        for file in files.values():
            file.flush()
        self._index["done"].append({"images": images, "crc32": checks})
        write_json(self.folder / INDEX_FILE, self._index)

    def _open(self, index: dict[str, Any]) -> None:
        if index.get("of") != self._index["of"]:
            raise ValueError(
                f"{self.folder} holds kept tokens of another model, other images or other settings: delete that "
                "folder, and they are computed again"
            )
        self._index = index
        for name in self.shape.parts:
            path, size = self.folder / name, self._bytes(name)
            good = path.is_file() and path.stat().st_size >= self.done * size
            state = (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns, self.done) if good else None
            if good and state not in _CHECKED:
                with path.open("rb") as file:
                    good = all(
                        zlib.crc32(file.read(chunk["images"] * size)) == chunk["crc32"][name] for chunk in index["done"]
                    )
            if not good:
                raise ValueError(f"{path} is damaged: delete the folder {self.folder}, and it is computed again")
            _CHECKED.add(state)


def is_complete(folder: Path, count: int) -> bool:
    """Whether all ``count`` images are kept there, by its index."""
    index = folder / INDEX_FILE
    return index.exists() and sum(chunk["images"] for chunk in read_json(index)["done"]) == count


def images_that_fit(
    shape: KeptShape, wanted: int, folder: Path, cache_gib: float, *, share: float = 1.0, beside: int = 0
) -> tuple[int, str | None]:
    """How many images can be kept in ``folder``, and what to say where these are fewer than wanted.

    They take no more than a ``share`` of so many GiB, nor the disk space that is for the images ``beside`` them.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / _GIB
    part = "" if share == 1 else f"a share of {share:g} of "
    limit, what = min(
        (share * cache_gib, f"{part}recovery.cache_gib ({cache_gib:g})"),
        (0.9 * free - beside * shape.bytes / _GIB, f"the {free:.1f} GiB free there"),
    )
    fits = max(0, int(limit * _GIB / shape.bytes))
    if fits >= wanted:
        return wanted, None
    needed = wanted * shape.bytes / _GIB
    return fits, (
        f"{wanted:,} images need {needed:.1f} GiB ({shape.tokens} tokens of {shape.dim} features, "
        f"{shape.bytes / 1024:.0f} KiB each): {fits:,} fit into {what}"
    )
