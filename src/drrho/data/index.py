"""Commands that write manifests: `drrho index` and `drrho mix`."""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tyro.conf import Positional

from drrho.data.indexing import Columns, index_shards, resolve_shards
from drrho.data.manifest import (
    CAPTION_FAULTS,
    NO_CAPTION,
    UNDECODABLE_CAPTION,
    Manifest,
    Shard,
)
from drrho.data.reading.sources import find_captions, other_images
from drrho.plotting.table import in_brackets
from drrho.runtime.checks import require_at_least
from drrho.runtime.errors import without_secrets
from drrho.runtime.files import expand_paths
from drrho.runtime.locks import exclusive_file


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index the samples of WebDataset shards; their order gives the sample ids.

    Attributes:
        data: data set: folder of tar files, brace or glob pattern, or one tar file; or csv, tsv,
            jsonl, json (a list, or COCO's captions) and parquet files, a folder of images, a
            Hugging Face dataset on disk.
        output: JSON file to write; by default manifest.json in the folder. An existing manifest is
            brought up to date: shards that have not changed are not read again.
        workers: worker processes that read shards; 0 reads in the main process.
        image_column: column of a table or dataset with the images, as paths or bytes; by default
            `image`, or the only one with a known name (`filepath`, `image_path`, `file_name`, ...).
        caption_column: column of a table or dataset with the captions, or with lists of captions;
            by default `caption`, or the only one with a known name (`title`, `text`, ...). '' where
            there is none.
        anchor_column: column of a table or dataset with the anchors of pairs of texts, whose
            positives are in `caption_column`; by default a table is one of pairs of texts if it has
            no images and two columns with known names (`anchor` and `positive`, `query` and
            `passage`, `question` and `answer`, `sentence1` and `sentence2`, ...).
        images: folder that image paths in a table are relative to; by default the table's own
            folder, or the one folder in it or beside it that has them.
        image_extension: extension of the images in tar files, all that is behind the key, such as
            `v2.jpg`; by default jpg, jpeg, png or webp.
        caption_field: field of the json files in tar files, or beside images in a folder, that has
            a sample's caption or a list of several; by default captions are in txt files, and in
            folders without these in the field with a known name.
        skip_bad_shards: leave out shards that cannot be read; by default they are an error, and
            what was read of the others is kept for the next time.
    """

    data: Positional[str] = field(kw_only=False)
    output: str | None = None
    workers: int = 0
    image_column: str | None = None
    caption_column: str | None = None
    anchor_column: str | None = None
    images: str | None = None
    image_extension: str | None = None
    caption_field: str | None = None
    skip_bad_shards: bool = False

    def __post_init__(self):
        expand_paths(self, "data", "images")
        if self.output is not None:
            _require_json(self.output)
        require_at_least(0, workers=self.workers)
        if self.anchor_column is not None and (self.image_column or self.images) is not None:
            raise ValueError(
                "image_column and images have no effect with anchor_column: pairs of texts have no "
                "images; leave them out"
            )

    @property
    def columns(self) -> Columns:
        """Where images and captions are."""
        return Columns(
            image=self.image_column,
            caption=self.caption_column,
            anchor=self.anchor_column,
            images=self.images,
            image_extension=self.image_extension,
            caption_field=self.caption_field,
        )


def write_manifest(config: IndexConfig) -> tuple[Manifest, Path]:
    """Index shards and write the manifest; return it and its path.

    Raises:
        FileNotFoundError: no shard is there.
        ValueError: `data` is no folder and there is no `output`; the output's folder cannot be
            written; or as `index_shards`.
        BlockingIOError: another process writes this manifest.
    """
    folder = Path(config.data).expanduser()
    resolve_shards(config.data)  # missing data are reported before a missing output
    if config.output is None and not folder.is_dir():
        raise ValueError(f"{config.data} is not a folder; say where to write: --output FILE.json")
    named = folder / "manifest.json" if config.output is None else Path(config.output)
    path = named.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path.parent} cannot be written; say where to write: --output FILE.json")
    with exclusive_file(path):
        partial = path.with_name(f".{path.stem}.partial.json")
        manifest = index_shards(
            config.data,
            known=_known(path, partial),
            workers=config.workers,
            columns=config.columns,
            skip_bad=config.skip_bad_shards,
            keep=lambda read: read.save(partial),
        )
        _require_usable(manifest, config.data)
        manifest.save(path)
        for file in path.parent.glob(f"{glob.escape(partial.stem)}.*"):
            file.unlink()
    return manifest, path


def _require_usable(manifest: Manifest, data: str) -> None:
    """Raise ValueError unless a sample has an image; one without a caption may have a label."""
    if len(manifest.usable_ids(with_captions=False)) == 0:
        reasons = Counter(reason for shard in manifest.shards for reason in shard.unusable.values())
        raise ValueError(
            f"none of the {manifest.num_samples:,} samples of {without_secrets(data)} is "
            f"usable{in_brackets(reasons)}; {_remedy(manifest.shards[0], reasons)}"
        )


def _remedy(shard: Shard, reasons: Iterable[str]) -> str:
    layout = shard.layout or {}
    others = (reason.partition("but .")[2].partition(",")[0] for reason in reasons)
    extension = next(filter(None, others), "v2.jpg").removeprefix(".")
    if layout.get("kind", "tar") == "tar":
        return (
            "in a tar file the image of a sample is called KEY.jpg, .jpeg, .png or .webp, where "
            "KEY has no dot, and its caption KEY.txt; if they are called otherwise, name them: "
            f"--image-extension {extension}, --caption-field caption"
        )
    if layout.get("kind") == "table" and layout.get("image") is not None:
        root = layout.get("root") or os.path.dirname(shard.url)
        return (
            f"paths in the column {layout['image']!r} are relative to {root}; if the images are "
            "elsewhere, say where: --images FOLDER"
        )
    return "see that its images can be read"


def _require_json(output: str) -> None:
    if not output.endswith(".json"):
        raise ValueError(f"output must be a .json file, got {output}")


def _known(*paths: Path) -> Manifest:
    """Collect the shards of the manifests that are to be replaced and that can be read."""
    shards: dict[str, Shard] = {}
    for path in paths:
        with suppress(FileNotFoundError, ValueError):
            shards |= {shard.url: shard for shard in Manifest.load(path).shards}
    return Manifest(shards=tuple(shards.values()))


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Join data sets into one, each visited as often as its weight says.

    Attributes:
        manifests: manifests that `drrho index` wrote, in the order of the sample ids.
        output: JSON file to write.
        weights: average visits of a sample in an epoch, one number for each manifest; by default 1.
    """

    manifests: Positional[tuple[str, ...]]
    output: str
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        expand_paths(self, "manifests")
        if self.weights is not None and len(self.weights) != len(self.manifests):
            raise ValueError(
                f"weights must be as many as manifests, {len(self.manifests)}, got {self.weights}"
            )
        _require_json(self.output)


def mix_manifests(config: MixConfig) -> Manifest:
    """Join manifests and write the result.

    Raises:
        FileNotFoundError: a manifest does not exist.
        ValueError: one is damaged, or two have a shard in common.
        BlockingIOError: another process writes this manifest.
    """
    weights = (1.0,) * len(config.manifests) if config.weights is None else config.weights
    output = Path(config.output).expanduser()
    with exclusive_file(output):
        manifest = Manifest(
            shards=tuple(
                replace(shard, weight=weight)
                for path, weight in zip(config.manifests, weights, strict=True)
                for shard in Manifest.load(Path(path).expanduser()).shards
            )
        )
        manifest.save(output)
    return manifest


def run_index(config: IndexConfig) -> str:
    """Index shards into a manifest: counts, key hashes and sample ids."""
    manifest, path = write_manifest(config)
    reasons = Counter(reason for shard in manifest.shards for reason in shard.unusable.values())
    note = ""
    if len(manifest.usable_ids()) == 0:
        faults = Counter({w: n for w, n in reasons.items() if w in CAPTION_FAULTS - {NO_CAPTION}})
        where = _where_captions_may_be(config.data)
        if UNDECODABLE_CAPTION in faults:
            where = "texts are read as UTF-8: save them so"
        note = f"; none has a caption{in_brackets(faults)}: for labels only ({where})"
        reasons = Counter({why: n for why, n in reasons.items() if why not in CAPTION_FAULTS})
    note += _taken_columns(manifest) + _left_out_images(manifest)
    return f"{path}: {_size(manifest)}, {reasons.total():,} unusable{in_brackets(reasons)}{note}"


def _where_captions_may_be(data: str) -> str:
    """Say where captions may be that were not found."""
    found = find_captions(data)
    if found is not None:
        return f"{found} may have them: index it, with --images FOLDER where that is needed"
    return "json files may have them: --caption-field"


def _taken_columns(manifest: Manifest) -> str:
    """Say which columns or fields were taken that are not called `image` and `caption`."""
    layouts = [shard.layout for shard in manifest.shards if shard.layout is not None]
    tables = [layout for layout in layouts if layout["kind"] in ("table", "dataset", "folder")]
    taken = {
        of: dict.fromkeys(name for it in tables if (name := it[of]) not in (None, of))
        for of in ("image", "caption")
    }
    listed = [f"{of}s are in {', '.join(map(repr, names))}" for of, names in taken.items() if names]
    return f"; {' and '.join(listed)}" if listed else ""


def _left_out_images(manifest: Manifest) -> str:
    """Count the images in folders that have other extensions than those that are taken."""
    kinds = [(shard.url, (shard.layout or {}).get("kind")) for shard in manifest.shards]
    others = Counter[str]()
    for folder in (url for url, kind in kinds if kind == "folder"):
        others.update(other_images(folder))
    return f"; not taken{in_brackets(others)}" if others else ""


def run_mix(config: MixConfig) -> str:
    """Join the manifests of several data sets into one, with weights."""
    manifest = mix_manifests(config)
    return f"{config.output}: {_size(manifest)}, of {len(config.manifests)} data sets"


def _size(manifest: Manifest) -> str:
    return f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shards"
