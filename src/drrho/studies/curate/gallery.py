"""The pairs that curation would leave out, by reason, on a page to look through before doing so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from drrho import __version__
from drrho.data.manifest import Manifest
from drrho.encoding.thumbnails import thumbnails
from drrho.runtime.files import write_atomically
from drrho.studies.curate.labels import Label
from drrho.studies.curate.scores import Quality

GALLERY_FILE = "gallery.html"
MEANINGS: Mapping[Label, str] = {
    "mismatched": "The reference finds captions of other images closer than their own.",
    "redundant": "Image and caption repeat an earlier pair, which stands beside them.",
    "learned": "The target does them at least as well as the reference.",
}


class Shown(NamedTuple):
    """Number of pairs shown of each label, and the labels that the manifest leaves out."""

    number: int
    dropped: Sequence[Label]


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """A pair of the gallery.

    Attributes:
        key: name of the sample in its data set.
        image: picture as a data: URL; None where it cannot be read.
        why: number that its label rests on, in words.
        repeats: earlier pair that it repeats.
    """

    sample_id: int
    key: str
    caption: str
    image: str | None
    why: str
    repeats: "ShownPair | None" = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """Pairs of one label: the clearest, and the most doubtful, nearest to the limit.

    Attributes:
        count: number of all pairs with the label.
        dropped: whether they are left out of the manifest that was written.
    """

    label: Label
    meaning: str
    count: int
    dropped: bool
    clearest: tuple[ShownPair, ...]
    doubtful: tuple[ShownPair, ...]


def write_gallery(
    path: Path,
    manifest: Manifest,
    quality: Quality,
    labels: Sequence[Label],
    repeats: Int64[Tensor, " pairs"],
    *,
    shown: Shown,
) -> None:
    """Writes a page that needs no other file and fetches nothing.

    Args:
        path: HTML file to write.
        labels, repeats: label of each pair, and id of the earlier pair that it repeats, or -1.
        shown: how many pairs, and which labels are dropped.
    """
    orders: dict[Label, list[int]] = {label: _order(label, quality, labels) for label in MEANINGS}
    chosen: dict[Label, tuple[Sequence[int], Sequence[int]]] = {
        label: _ends(order, shown.number) for label, order in orders.items()
    }
    places = {place for ends in chosen.values() for part in ends for place in part}
    ids = {int(quality.sample_ids[place]) for place in places}
    ids |= {int(repeats[place]) for place in places if repeats[place] >= 0}
    pictures = {} if manifest.has_texts else thumbnails(manifest, sorted(ids))
    by_id = {int(sample_id): place for place, sample_id in enumerate(quality.sample_ids.tolist())}

    def pair(place: int, label: Label) -> ShownPair:
        sample_id, (key, caption) = int(quality.sample_ids[place]), quality.texts[place]
        earlier = by_id.get(int(repeats[place])) if label == "redundant" else None
        return ShownPair(
            sample_id=sample_id,
            key=key,
            caption=caption,
            image=pictures.get(sample_id),
            why=_why(label, quality, place),
            repeats=None if earlier is None else pair(earlier, "learned"),
        )

    sections = [
        Section(
            label=label,
            meaning=MEANINGS[label],
            count=len(orders[label]),
            dropped=label in shown.dropped,
            clearest=tuple(pair(place, label) for place in first),
            doubtful=tuple(pair(place, label) for place in last),
        )
        for label, (first, last) in chosen.items()
    ]
    environment = Environment(
        loader=PackageLoader("drrho.studies.curate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("gallery.html").render(
        title=path.resolve().parent.name,
        sections=sections,
        pairs=len(labels),
        version=__version__,
    )
    write_atomically(path, page.encode())


def _order(label: Label, quality: Quality, labels: Sequence[Label]) -> list[int]:
    """The pairs of a label, the clearest first."""
    scores = quality.scores
    clear = {"mismatched": scores.rank, "learned": -quality.excess_loss}.get(label)
    places = torch.tensor([place for place, found in enumerate(labels) if found == label])
    if clear is None or not len(places):
        return places.tolist()
    return places[clear[places].argsort(descending=True, stable=True)].tolist()


def _ends(order: Sequence[int], shown: int) -> tuple[Sequence[int], Sequence[int]]:
    """The first and the last of an order, all of a short one as the first."""
    if len(order) <= shown:
        return order, ()
    half = shown // 2
    return order[: shown - half], order[len(order) - half :]


def _why(label: Label, quality: Quality, place: int) -> str:
    target, reference = quality.scores.similarity[place].tolist()
    cosines = f"cosine by the reference {reference:.2f}, by the target {target:.2f}"
    if label == "mismatched":
        closer = float(quality.scores.rank[place].exp())
        return f"the reference finds {closer:.0%} of the others closer; {cosines}"
    return f"excess loss {float(quality.excess_loss[place]):+.2f}; {cosines}"
