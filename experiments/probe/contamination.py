r"""How often does the alarm of contamination fire on clean references, and on those that have seen?

Real pairs, and references that take milliseconds: heads by canonical correlation over the frozen
features of two models (`drrho reference join`), of three penalties, from memorising to smooth. The
training pairs are halved at random, again for each seed. A reference that was fitted on the one
half is clean when the other is the training data of a target, one that was fitted on the other has
seen it, and one that was fitted on both has seen it among as many others. The held-out pairs are
the data set's own, which may be harder.

    python experiments/probe/contamination.py --train DATA --held-out DATA \
        --image SOURCE --text SOURCE

The features are computed once, into `--features`. The rest takes some seconds for each seed.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from drrho.data.indexing import open_manifest
from drrho.models.towers.sources import build_tower
from drrho.plotting.table import markdown_table
from drrho.reference.joining.features import features_of_pairs, read_captions
from drrho.reference.joining.heads import Heads, cca_heads, moments_of
from drrho.studies.probe.contamination import LEAST_EFFECT, contamination
from drrho.studies.probe.familiarity import familiarity, matched
from drrho.studies.probe.negatives import anchor_losses

PENALTIES = (0.01, 0.1, 1.0)
IMAGE_DIMENSIONS = 256  # of the image features, by their principal components: for speed
TEMPERATURE = 0.05


class Side(NamedTuple):
    """Features of pairs, and their captions."""

    images: Tensor
    texts: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Found:
    """One reference, probed by both rules."""

    kind: str
    penalty: float
    plain: bool
    matched: bool
    effect: float


def read(arguments: argparse.Namespace) -> tuple[Side, Side]:
    """Compute the features of the training and the held-out pairs, or read them again."""
    towers = [
        build_tower(arguments.image, "image", image_size=arguments.image_size),
        build_tower(arguments.text, "text"),
    ]
    sides = []
    for data, most in ((arguments.train, arguments.pairs), (arguments.held_out, arguments.pairs)):
        manifest = open_manifest(data)
        ids = manifest.usable_ids()
        drawn = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[:most]
        ids = ids[drawn].sort().values
        images, texts = (
            features_of_pairs(
                tower,
                manifest,
                ids,
                cache=Path(arguments.features),
                batch_size=64,
                device=torch.device("cpu"),
            )
            for tower in towers
        )
        rows = (images.are_finite() & texts.are_finite()).nonzero().squeeze(1)
        captions = read_captions(manifest, ids)
        found = [normalize(side.rows(rows).double(), dim=1) for side in (images, texts)]
        sides.append(Side(*found, [captions[row] or "" for row in rows.tolist()]))
    train, held_out = sides
    middle = train.images.mean(dim=0)
    axes = torch.linalg.svd(train.images - middle, full_matrices=False)[2][:IMAGE_DIMENSIONS].T
    train, held_out = (it._replace(images=(it.images - middle) @ axes) for it in sides)
    return train, held_out


def fitted(train: Side, rows: Tensor, penalty: float) -> Heads:
    """Fit a reference on some pairs: all directions, roots of the correlations."""
    moments = moments_of(iter([(train.images[rows], train.texts[rows])]))
    return list(cca_heads(moments, shares=(penalty,), powers=(0.5,)))[-1]


def losses(heads: Heads, pairs: Side, rows: Tensor) -> Tensor:
    """Compute the loss of each pair among some."""
    images = normalize(heads.project_images(pairs.images[rows]), dim=1)
    texts = normalize(heads.project_texts(pairs.texts[rows]), dim=1)
    return anchor_losses(images @ texts.T, TEMPERATURE)


def with_distinct_captions(rows: Tensor, captions: list[str]) -> Tensor:
    """Keep the first row of each caption."""
    first = {captions[row]: row for row in reversed(rows.tolist())}
    return torch.tensor([row for row in rows.tolist() if first[captions[row]] == row])


def one_seed(train: Side, held_out: Side, seed: int) -> list[Found]:
    """Halve the training pairs, and probe references of each kind."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train.captions), generator=generator)
    elsewhere, own = order[: len(order) // 2], order[len(order) // 2 :]
    apart = with_distinct_captions(torch.arange(len(held_out.captions)), held_out.captions)
    looked_at = with_distinct_captions(own, train.captions)[: len(apart)]
    captions = [train.captions[row] for row in own.tolist()]
    place = {row: number for number, row in enumerate(own.tolist())}
    weights = matched(
        familiarity(
            [train.captions[row] for row in looked_at.tolist()],
            captions,
            own=torch.tensor([place[row] for row in looked_at.tolist()]),
        ),
        familiarity([held_out.captions[row] for row in apart.tolist()], captions),
    )
    found = []
    for penalty in PENALTIES:
        for kind, rows in (("clean", elsewhere), ("seen", own), ("seen among others", order)):
            heads = fitted(train, rows, penalty)
            both = losses(heads, train, looked_at), losses(heads, held_out, apart)
            plain = contamination(*both, resamples=1000, generator=generator)
            now = contamination(
                *both,
                resamples=1000,
                generator=generator,
                weights=weights,
                least_effect=LEAST_EFFECT,
            )
            spread = float(torch.cat([side - side.mean() for side in both]).std())
            found.append(Found(kind, penalty, plain.alarm, now.alarm, now.gap / spread))
    return found


def table(found: list[Found]) -> str:
    """Count the alarms of both rules, by kind and penalty."""
    rows = []
    for kind in dict.fromkeys(it.kind for it in found):
        for penalty in PENALTIES:
            some = [it for it in found if (it.kind, it.penalty) == (kind, penalty)]
            effects = [it.effect for it in some]
            rows.append(
                [
                    kind,
                    f"{penalty:g}",
                    f"{sum(it.plain for it in some)} of {len(some)}",
                    f"{sum(it.matched for it in some)} of {len(some)}",
                    f"{sum(effects) / len(some):.2f} ({min(effects):.2f} to {max(effects):.2f})",
                ]
            )
    header = ["reference", "penalty", "alarms without matching", "alarms", "gap in std. deviations"]
    return markdown_table(header, rows)


def main() -> None:
    """Read the arguments, probe, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("train", "held-out", "image", "text"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--pairs", type=int, default=3200)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--features", default="runs/contamination")
    parser.add_argument("--output", default="docs/results/probe/contamination/results.md")
    arguments = parser.parse_args()
    train, held_out = read(arguments)
    found = [it for seed in range(arguments.seeds) for it in one_seed(train, held_out, seed)]
    text = table(found)
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
