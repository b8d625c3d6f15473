"""Training pairs to look at: what can be learned, what does not fit, what is repeated."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import normalize as to_unit_length

from drrho.contrastive.pairs import PairEmbeddings
from drrho.studies.report.gallery import Kind, ShownPair
from drrho.studies.report.pair_weights import STRIP_ENTRIES

REPEATED = 0.99  # cosine of images and of captions, by the reference, from which a pair is a repeat
LEARNED = 3  # largest rank of the own partner, in both directions and by both models


class _Partner(NamedTuple):
    """The own partners of some pairs, by a model.

    Attributes:
        loss: mean over both directions of the contrastive loss, in units of the temperature.
        caption_rank, image_rank: place of the own caption among all, and of the own image; those
            of equal captions do not count.
    """

    loss: Float[Tensor, " pairs"]
    caption_rank: Int64[Tensor, " pairs"]
    image_rank: Int64[Tensor, " pairs"]


@torch.no_grad()
def choose_training_pairs(
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    captions: Sequence[str],
    *,
    temperature: float,
    shown: int,
) -> dict[Kind, tuple[ShownPair, ...]]:
    """Pick pairs of each kind, the clearest first; a pair is of one kind.

    With a reference: "learnable" ones have the largest excess loss among those that the reference
    finds easier than half of all; "mismatched" ones the largest loss of the reference; "redundant"
    ones repeat an earlier pair, or are known to both models. Without one: "hardest" ones have the
    largest loss, "redundant" ones are known to the target.

    Args:
        target, reference: embeddings of the pairs by either model.
        captions: captions of the pairs.
        temperature: unit of the losses.
        shown: largest number of pairs of a kind.
    """
    groups = _groups(captions, target.image.device)
    by_target = _partners(target, groups, temperature)
    if reference is None:
        known = _known(by_target)
        orders: dict[Kind, list[int]] = {
            "hardest": by_target.loss.argsort(descending=True).tolist(),
            "redundant": _first(-by_target.loss, known),
        }
        return _shown(orders, by_target, None, {}, captions, shown)
    by_reference = _partners(reference, groups, temperature)
    excess = by_target.loss - by_reference.loss
    repeats = dict(_repeats(reference))
    known = _known(by_target) & _known(by_reference)
    easier = by_reference.loss <= by_reference.loss.median()
    orders = {
        "learnable": _first(excess, easier & (excess > 0)),
        "mismatched": by_reference.loss.argsort(descending=True).tolist(),
        "redundant": [*repeats, *_first(-by_target.loss, known)],
    }
    return _shown(orders, by_target, by_reference, repeats, captions, shown)


def _groups(captions: Sequence[str], device: torch.device) -> Int64[Tensor, " pairs"]:
    """A number for each different caption."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(c, len(numbers)) for c in captions], device=device)


def _partners(
    pairs: PairEmbeddings, groups: Int64[Tensor, " pairs"], temperature: float
) -> _Partner:
    turned = PairEmbeddings(image=pairs.text, text=pairs.image)
    caption_loss, caption_rank = _direction(pairs, groups, temperature)
    image_loss, image_rank = _direction(turned, groups, temperature)
    return _Partner((caption_loss + image_loss) / 2, caption_rank, image_rank)


def _direction(
    pairs: PairEmbeddings, groups: Int64[Tensor, " pairs"], temperature: float
) -> tuple[Float[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    losses, ranks = [], []
    texts = pairs.text.float().T
    for rows in _strips(len(groups)):
        cosines = pairs.image[rows].float() @ texts
        own = (pairs.image[rows].float() * pairs.text[rows].float()).sum(dim=1, keepdim=True)
        same = groups[rows, None] == groups
        gaps = ((cosines - own) / temperature).masked_fill(same, -torch.inf)
        losses.append(torch.nn.functional.softplus(gaps.logsumexp(dim=1)))
        ranks.append(1 + ((cosines > own) & ~same).sum(dim=1))
    return torch.cat(losses), torch.cat(ranks)


def _repeats(reference: PairEmbeddings) -> Iterator[tuple[int, tuple[int, float]]]:
    """Pairs that repeat an earlier one: pair -> the earlier one and the smaller of both cosines."""
    image, text = (to_unit_length(x.float(), dim=-1) for x in (reference.image, reference.text))
    found = []
    for rows in _strips(len(image)):
        alike = torch.minimum(image[rows] @ image.T, text[rows] @ text.T)
        alike = alike.tril(diagonal=rows.start - 1)  # earlier pairs alone
        best = alike.max(dim=1)
        found += [
            (rows.start + row, (int(best.indices[row]), float(best.values[row])))
            for row in (best.values >= REPEATED).nonzero().squeeze(1).tolist()
        ]
    yield from sorted(found, key=lambda entry: -entry[1][1])


def _strips(num_pairs: int) -> Iterator[slice]:
    rows = max(1, STRIP_ENTRIES // num_pairs)
    for start in range(0, num_pairs, rows):
        yield slice(start, min(start + rows, num_pairs))


def _known(by: _Partner) -> Bool[Tensor, " pairs"]:
    return (by.caption_rank <= LEARNED) & (by.image_rank <= LEARNED)


def _first(values: Float[Tensor, " pairs"], among: Bool[Tensor, " pairs"]) -> list[int]:
    """Those of some pairs, in descending order of a value."""
    order = values.masked_fill(~among, -torch.inf).argsort(descending=True)
    return order[: int(among.sum())].tolist()


def _shown(
    orders: dict[Kind, list[int]],
    by_target: _Partner,
    by_reference: _Partner | None,
    repeats: dict[int, tuple[int, float]],
    captions: Sequence[str],
    shown: int,
) -> dict[Kind, tuple[ShownPair, ...]]:
    counts, taken = Counter(captions), set()
    found: dict[Kind, tuple[ShownPair, ...]] = {}
    for kind, order in orders.items():
        chosen = [place for place in order if place not in taken][:shown]
        taken |= set(chosen)
        found[kind] = tuple(
            ShownPair(
                place=place,
                target_ranks=_ranks(by_target, place),
                reference_ranks=None if by_reference is None else _ranks(by_reference, place),
                excess=None
                if by_reference is None
                else float(by_target.loss[place] - by_reference.loss[place]),
                equal_captions=counts[captions[place]] - 1,
                repeats=repeats.get(place, (None, 0.0))[0] if kind == "redundant" else None,
            )
            for place in chosen
        )
    return found


def _ranks(by: _Partner, place: int) -> tuple[int, int]:
    return int(by.caption_rank[place]), int(by.image_rank[place])
