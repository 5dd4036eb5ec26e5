"""Options that several commands have, as dataclasses that they inherit beside their settings; the last are kw_only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchmerger.runs.files import check_out


@dataclass(frozen=True)
class ModelOptions:
    """The model that a command takes.

    Args:
        model: A timm architecture, such as vit_base_patch16_224, the folder of a saved model or of a run, a
            safetensors file, or "user/name" on the Hugging Face Hub.
        architecture: For a safetensors file, timm's name of the architecture.
    """

    model: str
    architecture: str | None = None


@dataclass(frozen=True)
class TrainedModelOptions:
    """The trained model that a command takes.

    Args:
        model: A trained model: a folder (of a run, of patchmerger, of transformers), a timm architecture with weights,
            or "user/name" on the Hugging Face Hub.
    """

    model: str


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a command keeps what it does, step by step.

    Args:
        out: The folder of the results; if not given one in runs/, named by the settings.
        progress: Show what is being done, with progress bars on a terminal.
    """

    out: Path | None = None
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class StudyOptions(RunOptions):
    """Where a study keeps what it does, and what it need not do again.

    Args:
        reuse: The folder of an earlier study: what is finished there under the same settings is copied, not made
            again, so that a study can grow (seeds, variants, methods).
    """

    reuse: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """The one file that a command writes.

    Args:
        out: JSON file to write the result to.
        overwrite: Replace it if it exists.
    """

    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PictureOptions(FileOptions):
    """Where the result is drawn, in one file.

    Args:
        picture: PNG file to draw.
    """

    picture: Path | None = None

    def check_picture(self) -> None:
        """Refuse a picture that cannot be written, or would replace the result, before long work."""
        if self.picture is not None and self.out is not None and self.picture.absolute() == self.out.absolute():
            raise ValueError(f"picture ({self.picture}) is the file of the result (out) too: name another one")
        check_out(self.picture, overwrite=self.overwrite, name="picture")
