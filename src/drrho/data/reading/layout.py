"""Mapping from the rows of a table, folder or dataset to samples."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Mapping from the rows of a source to samples.

    Attributes:
        kind: "tar" is a tar file with names of its own, "table" a csv, tsv, jsonl or parquet file,
            "folder" one of images with captions beside them, "dataset" what Hugging Face's
            `save_to_disk` wrote. "text_table" and "text_dataset" have pairs of texts.
        image: column of the image, a path or (in a parquet file or dataset) its bytes; of a
            dataset's list of images each is a sample. Of a tar file the extension of the image. Of
            pairs of texts the column of the anchor.
        caption: column of the caption, or of a list of several. Of a tar file or of images without
            a txt the field of the json files.
        root: folder that paths of images are relative to; None is the table's own, or the one near
            it that has the images.
    """

    kind: Literal["tar", "table", "folder", "dataset", "text_table", "text_dataset"]
    image: str | None = None
    caption: str | None = None
    root: str | None = None

    @property
    def has_texts(self) -> bool:
        """Whether a sample is a pair of texts."""
        return self.kind in ("text_table", "text_dataset")
