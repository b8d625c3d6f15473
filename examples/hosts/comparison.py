"""What the examples of this folder share: the data, and the comparison that they make.

The data are drawn scenes of 32 pixels with captions. A reference learns from clean pairs; the
target learns from other pairs, of which 40 % have the caption of another image, once by CLIP's loss
and once by DRRho-CLIP's with that reference. All three start from the same weights.

The temperature of DRRho-CLIP is a constant, that of CLIP is learned; examples/README.md has the
temperatures that were tried.
"""

import argparse
import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

import drrho
import drrho.integrations
from drrho.contrastive.pairs import PairEmbeddings
from drrho.data import scenes
from drrho.evaluation.metrics.retrieval import distinct_texts, retrieval_ranks
from drrho.plotting.table import markdown_table

Model = TypeVar("Model", bound=nn.Module)

BATCH, LEARNING_RATE = 100, 2e-3
WARMUP = 0.1  # of the steps
SAVE_EVERY = 5  # epochs

SIZE = 32  # pixels
LENGTH = 18  # tokens of a caption
PHRASES = (
    ("a", "an", "on", "background", "ground"),
    tuple(scenes.BACKGROUNDS),
    *(words for _, words in scenes.SIZES.values()),
    *(words for _, words in scenes.COLOURS.values()),
    *scenes.SHAPES.values(),
    *scenes.POSITIONS.values(),
    *scenes.PATTERNS.values(),
)
WORDS = sorted({word for phrases in PHRASES for phrase in phrases for word in phrase.split()})
PADDING, START, END = 0, len(WORDS) + 1, len(WORDS) + 2  # CLIP reads a text at its largest token
VOCABULARY = END + 1


class Pairs(NamedTuple):
    """Images (n, 3, SIZE, SIZE) and the tokens (n, LENGTH) of their captions; ids are rows."""

    images: Tensor
    texts: Tensor
    captions: list[str]


class Run(NamedTuple):
    """A model to train: `folder` is of its checkpoints; `reference` has a row for each pair."""

    pairs: Pairs
    objective: drrho.Objective
    reference: PairEmbeddings | None
    epochs: int
    seed: int
    folder: Path


def tokenize(captions: list[str]) -> Tensor:
    tokens = torch.full((len(captions), LENGTH), PADDING)
    for row, caption in zip(tokens, captions, strict=True):
        ids = [START, *(1 + WORDS.index(word) for word in caption.split()), END]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


@cache
def draw(num_pairs: int, *, seed: int, mismatch_rate: float = 0.0) -> Pairs:
    config = scenes.ScenesConfig(num_samples=num_pairs, seed=seed, mismatch_rate=mismatch_rate)
    images, captions = [], []
    for sample in scenes.scene_samples(config):
        image = Image.open(io.BytesIO(sample["jpg"])).resize((SIZE, SIZE), Image.Resampling.BOX)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        images.append(pixels.view(SIZE, SIZE, 3).permute(2, 0, 1) / 127.5 - 1)
        captions.append(sample["txt"])
    return Pairs(torch.stack(images), tokenize(captions), captions)


def mean_reciprocal_rank(embedded: PairEmbeddings, captions: list[str]) -> float:
    """Of the right text of each image and the right image of each text; 1 is perfect."""
    texts, pairs = distinct_texts(captions)
    rows = [captions.index(text) for text in texts]
    ranks = retrieval_ranks(embedded.image, embedded.text[rows], pairs)
    both = torch.cat([ranks.image_to_text.reciprocal(), ranks.text_to_image.reciprocal()])
    return both.mean().item()


def compare(
    train: Callable[[Run], Model],
    embed: Callable[[Model, Pairs], PairEmbeddings],
    arguments: Sequence[str] | None,
    *,
    output: str,
) -> dict[str, float]:
    """Mean reciprocal ranks on clean test pairs, by method.

    Args:
        train: a run into its trained model.
        embed: a model's unit embeddings of pairs.
        arguments: of the command line.
        output: where checkpoints go unless the command line says so.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=2000, help="of each of the two training sets")
    parser.add_argument("--epochs", type=int, default=20, help=f"of pairs / {BATCH} steps")
    parser.add_argument("--temperature", type=float, default=0.1, help="of DRRho-CLIP")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and order")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of checkpoints")
    options = parser.parse_args(arguments)
    clean = draw(options.pairs, seed=3 * options.seed)
    mismatched = draw(options.pairs, seed=3 * options.seed + 1, mismatch_rate=0.4)
    test = draw(300, seed=3 * options.seed + 2)

    def trained(
        name: str, pairs: Pairs, objective: drrho.Objective, reference: PairEmbeddings | None
    ) -> Model:
        folder = options.output / name
        return train(Run(pairs, objective, reference, options.epochs, options.seed, folder))

    clip = drrho.CLIP(temperature=drrho.Learned())
    drrho_clip = drrho.DRRhoCLIP(temperature=options.temperature)
    reference = trained("reference", clean, clip, None)
    stored = embed(reference, mismatched)
    models = {
        "reference": reference,
        "CLIP": trained("CLIP", mismatched, clip, None),
        "DRRho-CLIP": trained("DRRho-CLIP", mismatched, drrho_clip, stored),
    }
    found = {
        name: mean_reciprocal_rank(embed(model, test), test.captions)
        for name, model in models.items()
    }
    if os.environ.get("RANK", "0") == "0":  # as torchrun says
        rows = [[name, f"{value:.3f}"] for name, value in found.items()]
        print(markdown_table(["", "mean reciprocal rank"], rows))
    return found
