"""Computes the gallery of a run: similarities and weights of pairs, by stage of training."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data.manifest import Manifest
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.pairs import embed_pairs
from drrho.encoding.thumbnails import thumbnails
from drrho.recipe.folder import RunFolder, Stage, stages_of
from drrho.reference.pairs import drawn_ids
from drrho.reference.reader import Reference
from drrho.runtime.checks import require_at_least
from drrho.runtime.errors import CheckpointError
from drrho.studies.report.gallery import (
    Gallery,
    ShownNegative,
    ShownPair,
    ShownSample,
    ShownStage,
    Side,
)
from drrho.studies.report.pair_weights import (
    HISTOGRAM_EDGES,
    AnchorWeights,
    Negatives,
    exchanged,
    image_anchor_weights,
)
from drrho.studies.report.training_pairs import choose_training_pairs

MOST_STAGES = 6


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """Number of pairs that the report examines and shows.

    Attributes:
        pairs: pairs drawn from the data set; each is a negative of the others.
        shown: negatives shown of each kind at each stage, and twice as many as training pairs are.
        anchors: anchors whose hardest negatives are shown.
        negatives: hardest negatives shown for each anchor.
        batch_size: pairs encoded at once.
        seed: random seed of the choice of pairs.
    """

    pairs: int = 1024
    shown: int = 12
    anchors: int = 8
    negatives: int = 4
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            require_at_least(0 if name == "seed" else 1, **{f"gallery.{name}": value})


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The same pairs at a stage: both directions' weights, and what they were computed from."""

    stage: Stage
    target: PairEmbeddings
    reference: PairEmbeddings | None
    directions: dict[Side, AnchorWeights]

    @property
    def log_gap_mean(self) -> Tensor:
        """Mean of a pair's two anchors: its excess loss over tau."""
        return torch.stack([d.log_gap_mean for d in self.directions.values()]).mean(dim=0)


def make_gallery(
    run: RunFolder,
    manifest: Manifest,
    store: Reference | None,
    *,
    config: GalleryConfig,
    device: torch.device,
) -> Gallery:
    """Embeds the same pairs at every stage of a run and picks what to show.

    Args:
        run: folder of the run.
        manifest: training data.
        store: the reference's embeddings of them; None shows what the target sees alone.
        config: numbers of pairs.
        device: device to compute on.

    Raises:
        ValueError: no stage's model can be had, or the data do not have two usable pairs.
        FileNotFoundError: a shard is not there.
    """
    generator = torch.Generator().manual_seed(config.seed)
    ids = drawn_ids(manifest, store, count=config.pairs, generator=generator)
    looks, notes = [], []
    for stage in _spread(stages_of(run)):
        try:
            model = stage.load()
        except (OSError, ValueError, CheckpointError) as error:
            notes.append(f"{stage.title}: the model cannot be had: {error}")
            continue
        encoder = EmbeddingModel.frozen(model, device=device)
        name = f"gallery of {run.path.name}, {stage.title}"
        embedded = embed_pairs(
            encoder, manifest, ids, batch_size=config.batch_size, description=name
        )
        # What one stage could not decode no other can.
        ids, captions = embedded.sample_ids, embedded.captions
        reference = None if store is None else store.gather(ids).pairs
        looks.append(_look(embedded.target, reference, stage, run, config))
    if not looks:
        raise ValueError("; ".join(notes))
    if len(looks) < 3:
        notes.append(
            "Only these stages are left of the run: it kept no checkpoint of others. More of them "
            "are kept with training.checkpoint_every and training.keep_checkpoints."
        )
    order = looks[-1].log_gap_mean.argsort(descending=True)
    places = torch.linspace(0, len(order) - 1, min(config.anchors, len(order))).round().long()
    anchors = order[places.unique()].tolist()
    stages = tuple(_shown(look, anchors, config) for look in looks)
    last = looks[-1]
    kinds = choose_training_pairs(
        last.target,
        last.reference,
        captions,
        temperature=last.stage.temperature,
        shown=-(-config.shown // 2),
    )
    used = _used(stages, anchors, [pair for pairs in kinds.values() for pair in pairs])
    # The partners' captions and images are shown by the anchors themselves.
    pictures = thumbnails(manifest, [int(ids[place]) for place in used])
    return Gallery(
        run=run.path.name,
        num_pairs=len(ids),
        with_reference=store is not None,
        stages=stages,
        pairs=kinds,
        samples={
            place: ShownSample(
                sample_id=int(ids[place]), caption=captions[place], image=pictures[int(ids[place])]
            )
            for place in used
        },
        edges=HISTOGRAM_EDGES,
        notes=tuple(notes),
    )


def _spread(stages: list[Stage]) -> list[Stage]:
    """At most MOST_STAGES, the first and the last among them."""
    if len(stages) <= MOST_STAGES:
        return stages
    return [stages[round(i * (len(stages) - 1) / (MOST_STAGES - 1))] for i in range(MOST_STAGES)]


def _look(
    target: PairEmbeddings,
    reference: PairEmbeddings | None,
    stage: Stage,
    run: RunFolder,
    config: GalleryConfig,
) -> _Look:
    objective = run.recipe.objective
    # The floor of the run's sums; of a method without one, the positive's own term.
    epsilon = 1 / (run.recipe.trained_batch_size - 1)
    if isinstance(objective, FastCLIP | DRRhoCLIP):
        epsilon = objective.epsilon
    if reference is not None and isinstance(objective, DRRhoCLIP):
        reference = PairEmbeddings(objective.reference_scale * reference.image, reference.text)

    def weights(target: PairEmbeddings, reference: PairEmbeddings | None) -> AnchorWeights:
        return image_anchor_weights(
            target,
            reference,
            temperature=stage.temperature,
            epsilon=epsilon,
            num_hardest=config.negatives,
        )

    turned = PairEmbeddings(target.text, target.image)
    directions: dict[Side, AnchorWeights] = {
        "image": weights(target, reference),
        "text": weights(turned, exchanged(reference)),
    }
    return _Look(stage=stage, target=target, reference=reference, directions=directions)


def _shown(look: _Look, anchors: list[int], config: GalleryConfig) -> ShownStage:
    raised, lowered = [], []
    for side, found in look.directions.items():
        raised += _negatives(look, side, found.raised, range(len(found.weight)))
        lowered += _negatives(look, side, found.lowered, range(len(found.weight)))
    if look.reference is None:
        raised.sort(key=lambda pair: -pair.weight)
        lowered = []
    else:
        raised = sorted((p for p in raised if p.gain > 0), key=lambda p: -p.gain)
        lowered = sorted((p for p in lowered if p.gain < 0), key=lambda p: p.gain)
    histogram = torch.stack([d.histogram for d in look.directions.values()]).sum(dim=0)
    return ShownStage(
        title=look.stage.title,
        temperature=look.stage.temperature,
        changed={
            "raised": tuple(_distinct(raised)[: config.shown]),
            "lowered": tuple(_distinct(lowered)[: config.shown]),
        },
        hardest={
            anchor: tuple(
                negative
                for side, found in look.directions.items()
                for negative in _negatives(look, side, found.hardest, [anchor])
            )
            for anchor in anchors
        },
        anchor_weights={
            anchor: tuple(float(found.weight[anchor]) for found in look.directions.values())
            for anchor in anchors
        },
        histogram=tuple((histogram.double() / histogram.sum()).tolist()),
    )


def _negatives(
    look: _Look, side: Side, found: Negatives, anchors: Iterable[int]
) -> list[ShownNegative]:
    """The found negatives of some anchors, with their similarities."""
    shown = []
    for anchor in anchors:
        columns = (column[anchor].tolist() for column in found)
        for other, weight, plain_weight in zip(*columns, strict=True):
            image, text = (anchor, other) if side == "image" else (other, anchor)
            target, gap = _similarity(look.target, image, text, anchor)
            reference = None
            if look.reference is not None:
                reference, other_gap = _similarity(look.reference, image, text, anchor)
                gap -= other_gap
            shown.append(
                ShownNegative(
                    anchor=side,
                    image=image,
                    text=text,
                    target=target,
                    reference=reference,
                    gap=gap,
                    weight=weight,
                    plain_weight=plain_weight,
                )
            )
    return shown


def _similarity(pairs: PairEmbeddings, image: int, text: int, anchor: int) -> tuple[float, float]:
    """Similarity of an image and a text, and its gap to the anchor's own pair."""
    found = float(pairs.image[image] @ pairs.text[text])
    return found, found - float(pairs.image[anchor] @ pairs.text[anchor])


def _distinct(pairs: list[ShownNegative]) -> list[ShownNegative]:
    """The first of those with the same image or text: a few samples would fill the page."""
    images, texts, kept = set(), set(), []
    for pair in pairs:
        if pair.image not in images and pair.text not in texts:
            kept.append(pair)
            images.add(pair.image)
            texts.add(pair.text)
    return kept


def _used(stages: tuple[ShownStage, ...], anchors: list[int], pairs: list[ShownPair]) -> list[int]:
    used = {*anchors, *(pair.place for pair in pairs)}
    used |= {pair.repeats for pair in pairs if pair.repeats is not None}
    for stage in stages:
        for negatives in (*stage.changed.values(), *stage.hardest.values()):
            for negative in negatives:
                used |= {negative.image, negative.text}
    return sorted(used)
