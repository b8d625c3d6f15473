"""Probing references of contrastive training: pilots, embeddings of held-out pairs, moments."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from drrho.data.manifest import Manifest
from drrho.data.subset import disjoint_halves, restricted
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.pairs import embed_pairs
from drrho.evaluation.metrics.ranks import ranks_of_similarities
from drrho.models.build import build_model, named_model
from drrho.models.seen import training_data_of
from drrho.recipe.plain import without_reference
from drrho.recipe.recipe import Evaluation, Recipe
from drrho.recipe.train import train_recipe
from drrho.reference.joining.features import read_captions
from drrho.reference.store import FILE_NAME as STORE_FILE
from drrho.reference.store import ReferenceStore
from drrho.runtime.launch import resolve_device
from drrho.studies.probe.contamination import LEAST_EFFECT, Contamination, contamination
from drrho.studies.probe.familiarity import Matched, familiarity, matched
from drrho.studies.probe.negatives import NegativeWeights, anchor_losses, gap_moments
from drrho.studies.probe.steerability import (
    Steerability,
    bootstrap_weights,
    loss_moments,
    rank_references,
)

Cosines = Float64[Tensor, "pairs pairs"]
# Ids of training pairs and of held-out ones -> weights; None if too few are alike.
Matching = Callable[[Tensor, Tensor], Matched | None]
MOST_CAPTIONS = 20_000  # of the training data, that others are compared with


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Embedded pairs, in float64 on the CPU.

    Attributes:
        ids: of the samples, ascending.
        cosines: of images (rows) and texts.
        rate: pairs encoded in a second; None if they were stored.
        trained_on: `content_sha256` of the shards that the model was trained on; None if unknown.
    """

    ids: Int64[Tensor, " pairs"]
    cosines: Cosines
    rate: float | None
    trained_on: tuple[str, ...] | None = None


class Trained(NamedTuple):
    """Temperature of the target's training, and the factor of the reference's cosines."""

    temperature: float
    reference_scale: float = 1.0


class Seen(NamedTuple):
    """Training pairs, to compare with the held-out ones.

    Attributes:
        pairs: name of a reference -> embeddings of as many pairs; None where there are none.
        matching: weights of training and held-out pairs, by their ids; None for held-out pairs
            that were drawn from the training data.
    """

    pairs: Mapping[str, Pairs | None]
    matching: Matching | None = None


@dataclass(frozen=True, kw_only=True)
class PairsProbe:
    """Results of probing references by pairs; mappings are from the names of references.

    Attributes:
        ranked: steerability over the negatives of an anchor, best first.
        by_anchor: steerability of the anchors' losses.
        weights: the adversary's weights at the pilots.
        contamination: whether it has seen the training pairs; None if not measured.
        held_out_losses: mean of the anchors' losses, in units of cosine similarity.
        reciprocal_ranks: mean over both directions, for each held-out pair.
    """

    ranked: dict[str, Steerability]
    by_anchor: dict[str, Steerability]
    weights: dict[str, NegativeWeights]
    contamination: dict[str, Contamination | None]
    held_out_losses: dict[str, float]
    reciprocal_ranks: dict[str, Float64[Tensor, " pairs"]]


def train_pilots(recipe: Recipe, manifest: Manifest, *, output: Path, steps: int) -> list[str]:
    """Trains two pilots, `run:PATH`, on disjoint halves; finished ones found there are kept.

    They have the recipe's model, batches and temperature, no reference, and different seeds:
    initial weights in common would be a noise that both share, and would count against every
    reference.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    names = []
    for k, half in enumerate(disjoint_halves(manifest, generator=generator), start=1):
        folder = output / f"pilot-{k}"
        half.save(folder / "half.json")
        train_recipe(pilot_recipe(recipe, folder, steps=steps, seed=recipe.seed + k))
        names.append(f"run:{folder}")
    return names


def pilot_recipe(recipe: Recipe, folder: Path, *, steps: int, seed: int) -> Recipe:
    """The recipe without reference, teachers, selection, filter and evaluation, for some steps."""
    warmup = min(recipe.training.optimizer.warmup_steps, steps // 4)
    return replace(
        without_reference(recipe),
        output=str(folder),
        data=str(folder / "half.json"),
        training=replace(
            recipe.training,
            steps=steps,
            epochs=None,
            optimizer=replace(recipe.training.optimizer, warmup_steps=warmup),
            evaluate_every=None,
            keep_best=None,
        ),
        evaluation=Evaluation(),
        seed=seed,
    )


def embed(name: str, manifest: Manifest, *, device: torch.device, batch_size: int = 256) -> Pairs:
    """The usable pairs of a data set under a model, or out of its stored embeddings.

    Args:
        name: a folder of stored embeddings, a model as `drrho reference precompute` takes it, its
            folder, or ARCHITECTURE@PRETRAINED.

    Raises:
        FileNotFoundError, ValueError: no such model, or its embeddings are of other data.
    """
    if (Path(name) / STORE_FILE).is_file():
        stored = ReferenceStore.open(name, manifest)
        ids = manifest.usable_ids()
        rows = stored.gather(ids)
        kept = rows.keep(rows.present)
        return Pairs(
            ids=ids[rows.present],
            cosines=_cosines(kept.image, kept.text),
            rate=None,
            trained_on=stored.trained_on,
        )
    config = named_model(name)
    config.require_trained()
    encoder = EmbeddingModel.frozen(build_model(config, seed=0), device=device)
    began = time.monotonic()
    found = embed_pairs(
        encoder,
        manifest,
        manifest.usable_ids(),
        batch_size=batch_size,
        description=f"pairs by {name}",
    )
    rate = len(found.sample_ids) / (time.monotonic() - began)
    return Pairs(
        ids=found.sample_ids,
        cosines=_cosines(*found.target),
        rate=rate,
        trained_on=training_data_of(config),
    )


def common_pairs(models: Mapping[str, Pairs]) -> dict[str, Pairs]:
    """The pairs that all models have embeddings of, in the same order.

    Of pairs with the same caption, as the first model sees it, the first stays: another image of
    a caption is no negative.
    """
    ids = [set(pairs.ids.tolist()) for pairs in models.values()]
    ids.append(set(with_distinct_texts(next(iter(models.values()))).ids.tolist()))
    common = torch.tensor(sorted(set.intersection(*ids)), dtype=torch.int64)
    return {name: _only(pairs, common) for name, pairs in models.items()}


def with_distinct_texts(pairs: Pairs) -> Pairs:
    """Without the pairs whose text has the embedding of an earlier pair's."""
    # The same caption in another batch is padded differently: equal up to rounding.
    columns = (pairs.cosines.T * 1e5).round().to(torch.int64)
    _, group = columns.unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(group))
    first.scatter_reduce_(0, group, torch.arange(len(group)), reduce="amin")
    return _only(pairs, pairs.ids[first.sort().values])


def probe_pairs(
    pilots: list[Pairs],
    references: Mapping[str, Pairs],
    *,
    trained: Trained,
    seen: Seen,
    generator: torch.Generator,
    resamples: int = 400,
) -> PairsProbe:
    """Ranks references by embeddings of the same held-out pairs.

    Args:
        pilots: embeddings of the two pilots.
        references: name -> embeddings of the same pairs.
        trained: temperature and scale.
        seen: training pairs, to look for contamination.
        generator: generator of the bootstrap.
    """
    names, temperature = list(references), trained.temperature
    targets = (pilots[0].cosines, pilots[1].cosines)
    cosines = [trained.reference_scale * references[name].cosines for name in names]
    weights = bootstrap_weights(len(targets[0]), resamples=resamples, generator=generator)
    losses = [anchor_losses(x, temperature) for x in (*targets, *cosines)]
    losses_of = dict(zip(names, losses[2:], strict=True))
    anchors = loss_moments(torch.stack(losses[:2]), torch.stack(losses[2:]), weights=weights)
    middle = (targets[0] + targets[1]) / 2
    return PairsProbe(
        ranked=rank_references(gap_moments(targets, cosines, weights=weights), names),
        by_anchor=rank_references(anchors, names),
        weights={
            name: NegativeWeights(middle - x, temperature)
            for name, x in zip(names, cosines, strict=True)
        },
        contamination={
            name: None
            if (training := seen.pairs.get(name)) is None
            else _contamination(
                (training.ids, references[name].ids),
                anchor_losses(trained.reference_scale * training.cosines, temperature),
                losses_of[name],
                matching=seen.matching,
                generator=generator,
            )
            for name in names
        },
        held_out_losses={name: float(losses_of[name].mean()) for name in names},
        reciprocal_ranks={name: reciprocal_ranks(references[name].cosines) for name in names},
    )


def _contamination(
    ids: tuple[Tensor, Tensor],
    train: Float64[Tensor, " seen"],
    held_out: Float64[Tensor, " unseen"],
    *,
    matching: Matching | None,
    generator: torch.Generator,
) -> Contamination | None:
    """Compare losses of pairs that are equally familiar; None if too few are."""
    test = partial(contamination, train, held_out, resamples=1000, generator=generator)
    if matching is None:
        return test()
    weights = matching(*ids)
    return None if weights is None else test(weights=weights, least_effect=LEAST_EFFECT)


def matching_by_captions(
    train: Manifest, held_out: Manifest, subset: Manifest, *, seed: int
) -> Matching:
    """Read captions, and match pairs by how familiar these are among the training data's.

    Args:
        subset: the training pairs to compare; their own captions do not count.
        seed: random seed of the choice of at most 20,000 training captions.
    """
    generator, ids = torch.Generator().manual_seed(seed), train.usable_ids()
    drawn = ids[torch.randperm(len(ids), generator=generator)[:MOST_CAPTIONS]]
    own, apart = subset.usable_ids(), held_out.usable_ids()
    known = torch.cat([own, drawn]).unique()
    captions, others = (
        [caption or "" for caption in read_captions(manifest, wanted)]
        for manifest, wanted in ((train, known), (held_out, apart))
    )
    places = torch.searchsorted(known, own)
    of_train = familiarity([captions[i] for i in places.tolist()], captions, own=places)
    of_held_out = familiarity(others, captions)

    def weights(seen: Tensor, unseen: Tensor) -> Matched | None:
        return matched(
            of_train[torch.searchsorted(own, seen)],
            of_held_out[torch.searchsorted(apart, unseen)],
        )

    return weights


def reciprocal_ranks(cosines: Cosines) -> Float64[Tensor, " pairs"]:
    """1 / rank of the right text of an image and of the right image of a text, their mean."""
    right = torch.eye(len(cosines), dtype=torch.bool)
    directions = [ranks_of_similarities(x, right).reciprocal() for x in (cosines, cosines.T)]
    return (directions[0] + directions[1]) / 2


def training_subset(manifest: Manifest, size: int, *, generator: torch.Generator) -> Manifest:
    """Some training pairs, to look for contamination."""
    ids = manifest.usable_ids()
    drawn = ids[torch.randperm(len(ids), generator=generator)[:size]]
    return restricted(manifest, drawn, reason="not looked at")


def embed_all(
    names: tuple[str, ...], manifest: Manifest, train: Manifest, *, recipe: Recipe
) -> Iterator[tuple[str, Pairs, Pairs | None]]:
    """Each reference with its held-out pairs and, where it can embed them, training pairs.

    Embeddings that were stored of the held-out data alone say nothing of the training data.
    """
    device = resolve_device(recipe.device)
    for name in names:
        held_out, seen = embed(name, manifest, device=device), None
        is_stored = held_out.rate is None
        with suppress(*((ValueError, FileNotFoundError) if is_stored else ())):
            seen = with_distinct_texts(embed(name, train, device=device))
        yield name, held_out, seen


def _cosines(image: Tensor, text: Tensor) -> Cosines:
    return image.double() @ text.double().T


def _only(pairs: Pairs, ids: Int64[Tensor, " kept"]) -> Pairs:
    rows = torch.searchsorted(pairs.ids, ids)
    return replace(pairs, ids=ids, cosines=pairs.cosines[rows][:, rows])
