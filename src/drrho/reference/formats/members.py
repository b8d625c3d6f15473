"""Embeddings inside tar files, a member for each sample, as in DataCompDR.

Source: apple/DataCompDR-1B and -12M on Hugging Face; datasetio.py of
github.com/apple/ml-mobileclip-dr and hf_dataset_example.py of github.com/apple/ml-mobileclip. A
member `KEY.npz` (in the bfloat16 sets `KEY.pth.gz`, a gzip'd torch.save of a dictionary) has
image_emb (augmentations, d), one row for each augmentation that `KEY.paug.json` describes, and
text_emb (captions, d): the real caption first, then the captions of `KEY.syn.json`, which some
writers keep as syn_text_emb.

DataCompDR has embeddings of augmented images alone. Each is the concatenation of two teachers', to
unit norm, so that its cosine is the mean of the teachers' cosines. Distillation from both takes
each teacher as a store of its own, by its part of the dimensions.
"""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor
from tyro.conf import Positional

from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.indexing import resolve_shards
from drrho.data.manifest import Manifest, Shard
from drrho.data.reading.shards import RawSample
from drrho.data.reading.tar import tar_files
from drrho.reference.arrays import (
    MAX_EXPANSION,
    MAX_SMALL,
    open_npz,
    plain_tensor,
    read_npz,
    require_expansion,
)
from drrho.reference.formats.source import Source, json_field
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import require_regular

SUFFIXES = (".npz", ".pth.gz")


@dataclass(frozen=True, kw_only=True)
class Member:
    """A byte range of a tar file that holds the embeddings of a sample."""

    key: str
    name: str
    tar: Path
    offset: int
    size: int

    def content(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Taken(NamedTuple):
    """What is taken of a member, as `Members` says."""

    image_row: int
    text_row: int
    text_array: str
    teacher_dims: tuple[int, ...]
    teacher: int | None


@dataclass(frozen=True, kw_only=True)
class MemberTable:
    """Embeddings in members of tar files, a row each.

    Attributes:
        members: in the order that gives the rows their numbers.
        take: what to take of each member.
    """

    members: tuple[Member, ...]
    take: Taken
    embedding_dim: int

    def read(self, rows: Sequence[int]) -> PairEmbeddings:
        found = torch.empty(2, len(rows), self.embedding_dim)
        for place, row in enumerate(rows):
            for into, embedding in zip(found, _decode(self.members[row], self.take), strict=True):
                if len(embedding) != self.embedding_dim:
                    raise ValueError(
                        f"{self.place(row)} has {len(embedding)} dimensions, {self.place(0)} has "
                        f"{self.embedding_dim}: they are of two models"
                    )
                into[place] = embedding
        return PairEmbeddings(*found)

    def place(self, row: int) -> str:
        member = self.members[row]
        return f"{member.name} of {member.tar}"

    def contents(self) -> Iterator[bytes]:
        for member in self.members:
            yield f"{member.tar.name} {member.name} {member.size}\n".encode()
            yield member.content()


@dataclass(frozen=True, kw_only=True)
class Members:
    """Members KEY.npz or KEY.pth.gz of tar files, as in DataCompDR; joined by key, or by a field.

    Where every shard of the data set has a tar file of its name, the key is looked up in that file.

    Attributes:
        source: tar files, as `drrho index` takes them: the training shards or others.
        key_field: field of the samples' json that names the members.
        image_row: augmentation to take.
        text_row: caption to take; in DataCompDR 0 is the real one.
        text_array: array of the captions' embeddings.
        teacher_dims: dimensions of the teachers whose embeddings are concatenated, such as 768 768.
        teacher: index of the teacher to take, from 0.
    """

    source: Positional[str]
    key_field: str | None = None
    image_row: int = 0
    text_row: int = 0
    text_array: Literal["text_emb", "syn_text_emb"] = "text_emb"
    teacher_dims: tuple[int, ...] = ()
    teacher: int | None = None

    def __post_init__(self) -> None:
        if bool(self.teacher_dims) != (self.teacher is not None):
            raise ValueError(
                f"teacher_dims = {self.teacher_dims} and teacher = {self.teacher}: give both to "
                "take one of several teachers, or neither"
            )
        require_at_least(
            1, **{f"teacher_dims[{i}]": dim for i, dim in enumerate(self.teacher_dims)}
        )
        if self.teacher is not None and not 0 <= self.teacher < len(self.teacher_dims):
            raise ValueError(
                f"teacher must be from 0 to {len(self.teacher_dims) - 1}, got {self.teacher}"
            )

    def open(self, manifest: Manifest) -> Source:
        """Read the table of contents of each tar file; errors as `Source` says."""
        tars = [Path(path) for path in resolve_shards(self.source)]
        names = {path.name for path in tars}
        parallel = self.key_field is None and len(names) == len(tars)
        parallel = parallel and all(Path(shard.url).name in names for shard in manifest.shards)
        members = tuple(member for tar in tars for member in _members(tar))
        if not members:
            raise ValueError(
                f"the {len(tars)} tar files of {self.source} have no members KEY.npz or KEY.pth.gz"
            )
        take = Taken(
            self.image_row, self.text_row, self.text_array, self.teacher_dims, self.teacher
        )
        dim = len(_decode(members[0], take)[0])
        teacher = (
            {} if self.teacher is None else {"teacher": f"{self.teacher} of {self.teacher_dims}"}
        )

        def full_key(tar: Path, key: str) -> str:
            return f"{tar.name}/{key}" if parallel else key

        def key_of(shard: Shard, sample: RawSample) -> str | None:
            if self.key_field is not None:
                return json_field(sample, self.key_field)
            return full_key(Path(shard.url), sample.key)

        return Source(
            table=MemberTable(members=members, take=take, embedding_dim=dim),
            settings={
                "format": "members",
                "image_row": str(self.image_row),
                "text_row": str(self.text_row),
                **({} if self.text_array == "text_emb" else {"text_array": self.text_array}),
                **teacher,
            },
            key_noun=self.key_field or "key",
            keys=lambda: (full_key(member.tar, member.key) for member in members),
            key_of=key_of,
        )


def _members(path: Path) -> Iterator[Member]:
    try:
        require_regular(path)
        with path.open("rb") as stream:
            for file in tar_files(stream, wanted=lambda name: name.lower().endswith(SUFFIXES)):
                suffix = next((s for s in SUFFIXES if file.name.lower().endswith(s)), None)
                if suffix is not None:
                    padded = -(-len(file.content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    yield Member(
                        key=file.name[: -len(suffix)],
                        name=file.name,
                        tar=path,
                        offset=file.end - padded,
                        size=len(file.content),
                    )
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); fetch it again") from error


def _decode(member: Member, take: Taken) -> tuple[Float32[Tensor, " dim"], Float32[Tensor, " dim"]]:
    """Decode the chosen embeddings of image and text."""
    where = f"{member.name} of {member.tar}"
    try:
        names = ("image_emb", take.text_array)
        if member.name.lower().endswith(".npz"):
            with open_npz(io.BytesIO(member.content())) as archive:
                arrays = [torch.as_tensor(read_npz(archive, name)) for name in names]
        else:
            found = torch.load(io.BytesIO(_decompressed(member.content())), weights_only=True)
            arrays = [found[name] for name in names]
        image, text = (plain_tensor(array).float() for array in arrays)
    except KeyError:
        raise ValueError(f"{where} lacks image_emb or {take.text_array}") from None
    except (
        *(zipfile.BadZipFile, zlib.error, UnpicklingError),
        *(ValueError, TypeError, OSError, EOFError, RuntimeError, OverflowError),
        *(AttributeError, IndexError),  # of a damaged pickle
    ) as error:
        raise ValueError(f"{where} cannot be read ({error}); fetch its tar file again") from error
    image = _row(image, take.image_row, f"image_emb of {where}")
    text = _row(text, take.text_row, f"{take.text_array} of {where}")
    if take.teacher is None:
        return image, text
    if any(len(row) != sum(take.teacher_dims) for row in (image, text)):
        raise ValueError(
            f"{where} has {len(image)} and {len(text)} dimensions, and teacher_dims = "
            f"{take.teacher_dims} are {sum(take.teacher_dims)} together"
        )
    return image.split(take.teacher_dims)[take.teacher], text.split(take.teacher_dims)[take.teacher]


def _decompressed(content: bytes) -> bytes:
    """Decompress gzip, but not what is a hundred times larger than its file."""
    most = max(MAX_SMALL, MAX_EXPANSION * len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        found = file.read(most + 1)
    require_expansion(len(found), len(content))
    return found


def _row(embeddings: Tensor, row: int, where: str) -> Float32[Tensor, " dim"]:
    """Take one of several embeddings; a single one may lack the leading dimension."""
    table = embeddings[None] if embeddings.ndim == 1 else embeddings
    if table.ndim != 2 or not 0 <= row < len(table):
        raise ValueError(f"{where} has the shape {tuple(embeddings.shape)} and no row {row}")
    return table[row]
