"""`drrho reference join`: a dual encoder made of two separately trained models."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import normalize

from drrho.data.indexing import open_manifest
from drrho.data.manifest import Manifest
from drrho.models.build import LOADERS, find_model, save_model
from drrho.models.program import trusting
from drrho.models.seen import training_data_of
from drrho.models.towers.joined import (
    JOINED_FILE,
    FittedHead,
    JoinedCard,
    Method,
    join_towers,
    with_heads,
)
from drrho.models.towers.sources import build_tower
from drrho.models.towers.tower import ImageTower, TextTower
from drrho.reference.joining.features import BLOCK, Features, features_of_pairs, read_captions
from drrho.reference.joining.heads import (
    Heads,
    Moments,
    cca_heads,
    contrastive_heads,
    moments_of,
    num_heads,
    ridge_heads,
)
from drrho.reference.joining.judging import mrr_of_pairs, reciprocal_ranks_of_pairs
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import expand_paths
from drrho.runtime.launch import Device, require_one_process, resolve_device
from drrho.runtime.locks import exclusive
from drrho.runtime.progress import Progress

SHARE_HELD_OUT = 10  # one in so many pairs chooses, and as many judge
MOST_HELD_OUT = 2000  # pairs that choose, or judge
FEWEST_HELD_OUT = 20


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """Build a reference from a vision and a text model trained separately.

    Both are frozen; linear heads map their features into one space. They are chosen on held-out
    pairs of the data, and judged on further pairs.

    Attributes:
        image: vision model: timm:NAME or torchvision:NAME (whose weights are among the downloads
            on this machine, or in a file: timm:NAME@FILE), transformers:PATH, python:FILE.py, or
            the image tower of a dual encoder, such as ViT-B-32@TAG_OR_FILE or run:PATH.
        text: text model: sentence-transformers:PATH, transformers:PATH, python:FILE.py, or the
            text tower of a dual encoder.
        data: pairs to fit on: a manifest, or what `drrho index` takes.
        output: folder to write; the joined model, and the features of both towers.
        held_out: pairs to judge the result on: a manifest, or what `drrho index` takes; None holds
            out a tenth of the data.
        pairs: largest number of pairs of the data to use, drawn at random; None uses all.
        methods: kinds of heads to try.
        image_size: pixels of each side for models of timm and torchvision; None takes the
            size that the weights were trained with.
        batch_size: images or texts encoded at once.
        seed: random seed of what is held out, and of the contrastive fit.
        device: device to encode on; "auto" takes the GPU if there is one.
        trust: run the programs that the folders of models name.
    """

    image: str
    text: str
    data: str
    output: str
    held_out: str | None = None
    pairs: int | None = None
    methods: tuple[Method, ...] = ("ridge", "cca", "contrastive")
    image_size: int | None = None
    batch_size: int = 64
    seed: int = 0
    device: Device = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        expand_paths(self, "data", "held_out")
        require_at_least(1, batch_size=self.batch_size)
        if self.pairs is not None:
            require_at_least(5 * FEWEST_HELD_OUT, pairs=self.pairs)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must be one or several, each once, got {self.methods}")


class _Part(NamedTuple):
    """Some pairs: rows of the features, and captions."""

    rows: Int64[Tensor, " pairs"]
    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Features and captions of some data; NaN and None where a pair cannot be read."""

    images: Features
    texts: Features
    captions: Sequence[str | None]

    def part(self, rows: Int64[Tensor, " wanted"]) -> _Part:
        """Select pairs that could be read."""
        readable = self.images.are_finite() & self.texts.are_finite()
        kept = rows[readable[rows]]
        return _Part(kept, [caption for row in kept.tolist() if (caption := self.captions[row])])

    def features(self, rows: Int64[Tensor, " wanted"]) -> tuple[Tensor, Tensor]:
        """Read the features of both towers, at unit length."""
        return normalize(self.images.rows(rows), dim=-1), normalize(self.texts.rows(rows), dim=-1)

    def chunks(self, rows: Int64[Tensor, " wanted"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the features of both towers, some thousand pairs at once."""
        return map(self.features, rows.sort().values.split(BLOCK))


def join_reference(config: JoinConfig) -> JoinedCard:
    """Compute features, fit and choose heads, judge them, and write the joined model.

    Raises:
        FileNotFoundError: a model, its weights or data are not there.
        ValueError: a tower cannot be built, there are too few pairs, or the folder holds another
            model.
    """
    require_one_process("drrho reference join")
    output = Path(config.output)
    if found := [name for name in LOADERS if name != JOINED_FILE and (output / name).is_file()]:
        raise ValueError(f"{output} holds another model ({found[0]}); choose another folder")
    with exclusive(output), trusting(everything=config.trust):
        image = build_tower(config.image, "image", image_size=config.image_size)
        text = build_tower(config.text, "text")
        assert isinstance(image, ImageTower)
        assert isinstance(text, TextTower)
        generator = torch.Generator().manual_seed(config.seed)
        manifest = open_manifest(config.data)
        ids = manifest.usable_ids()
        if config.pairs is not None and config.pairs < len(ids):
            drawn = torch.randperm(len(ids), generator=generator)[: config.pairs]
            ids = ids[drawn].sort().values
        pairs = _encoded(config, (image, text), manifest, ids)
        fit, choose, judge = _split(pairs, config, generator)
        judged = pairs
        if config.held_out is not None:
            apart = open_manifest(config.held_out)
            ids = apart.usable_ids()
            drawn = torch.randperm(len(ids), generator=generator)[:MOST_HELD_OUT]
            judged = _encoded(config, (image, text), apart, ids[drawn].sort().values)
            judge = judged.part(torch.arange(len(judged.captions)))
        heads, chosen, tried = _fitted(pairs, fit, choose, config)
        found = _project(heads, judged, judge)
        card = JoinedCard(
            image=config.image,
            text=config.text,
            image_features=pairs.images.dim,
            text_features=pairs.texts.dim,
            embed_dim=heads.image.shape[1],
            head=chosen,
            tried=tried,
            fitted_on=len(fit.rows) + len(choose.rows),
            chosen_on=len(choose.rows),
            judged_on=len(judge.rows),
            held_out=mrr_of_pairs(*found, judge.captions, generator=generator),
            data=_seen(config, manifest),
        )
        model = with_heads(join_towers(image, text, card), heads.state())
        with suppress(FileNotFoundError):
            (output / JOINED_FILE).unlink()  # its presence says that all is there
        save_model(model, output)
        return card


def run_join(config: JoinConfig) -> str:
    """Build a reference from a vision and a text model trained separately."""
    card = join_reference(config)
    found, head = card.held_out, card.head
    others = "; ".join(f"{it.method} {it.mrr:.3f}" for it in card.tried)
    return (
        f"{config.output}: {card.embed_dim} dimensions, {head.method} ({head.settings}), fitted on "
        f"{card.fitted_on:,} pairs.\nBest of each method on {card.chosen_on:,} held-out pairs: "
        f"{others}.\nMRR {found.value:.3f} (95 % {found.low:.3f}-{found.high:.3f}) on "
        f"{card.judged_on:,} pairs that neither fit nor choice has seen; guessing "
        f"{found.guessing:.3f}.\nUse it as the model {config.output} of `drrho reference "
        "precompute`, `drrho probe` and `drrho evaluate`."
    )


def _seen(config: JoinConfig, manifest: Manifest) -> tuple[str, ...]:
    """List the contents of the shards that the heads, or a tower, were trained on."""
    of_towers = [
        training_data_of(find_model(source)) or ()
        for source in (config.image, config.text)
        if source.startswith("run:") or Path(source).expanduser().is_dir()
    ]
    shards = [shard.content_sha256 for shard in manifest.shards]
    return tuple(dict.fromkeys([*shards, *(it for seen in of_towers for it in seen)]))


def _encoded(
    config: JoinConfig,
    towers: tuple[ImageTower, TextTower],
    manifest: Manifest,
    ids: Int64[Tensor, " pairs"],
) -> _Pairs:
    """Compute the features of both towers, or read them where they are cached."""
    images, texts = (
        features_of_pairs(
            tower,
            manifest,
            ids,
            cache=Path(config.output) / "features",
            batch_size=config.batch_size,
            device=resolve_device(config.device),
        )
        for tower in towers
    )
    return _Pairs(images=images, texts=texts, captions=read_captions(manifest, ids))


def _split(
    pairs: _Pairs, config: JoinConfig, generator: torch.Generator
) -> tuple[_Part, _Part, _Part]:
    """Divide pairs into those to fit on, to choose by and to judge by.

    Pairs with the same caption stay together, else a held-out pair would have been fitted on.
    """
    readable = pairs.part(torch.arange(len(pairs.captions)))
    groups: dict[str, list[int]] = {}
    for row, caption in zip(readable.rows.tolist(), readable.captions, strict=True):
        groups.setdefault(caption, []).append(row)
    names = list(groups)
    order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
    share = max(FEWEST_HELD_OUT, len(readable.rows) // SHARE_HELD_OUT)
    size = min(MOST_HELD_OUT, share)
    wanted = [size, 0 if config.held_out is not None else size]
    parts: list[list[int]] = [[], [], []]  # choose, judge, fit
    for caption in order:
        place = next((i for i, number in enumerate(wanted) if len(parts[i]) < number), 2)
        parts[place] += groups[caption]
    choose, judge, fit = (pairs.part(torch.tensor(part, dtype=torch.int64)) for part in parts)
    for part, number in ((choose, FEWEST_HELD_OUT), (fit, 2 * FEWEST_HELD_OUT)):
        if len(set(part.captions)) < number:
            raise ValueError(
                f"{len(readable.rows)} pairs with {len(groups)} distinct captions are too few to "
                f"fit on and to choose by; {5 * FEWEST_HELD_OUT} and more are needed"
            )
    return fit, choose, judge


class _Best(NamedTuple):
    """The best heads of a method by held-out pairs: their MRR, their place among all, in words."""

    score: float
    place: int
    settings: str


def _fitted(
    pairs: _Pairs, fit: _Part, choose: _Part, config: JoinConfig
) -> tuple[Heads, FittedHead, tuple[FittedHead, ...]]:
    """Fit every kind of heads, choose, and fit the choice again on what it was chosen by too."""
    moments = moments_of(pairs.chunks(fit.rows))
    held_out = pairs.features(choose.rows)
    best: dict[Method, _Best] = {}

    def heads_of(
        method: Method, moments: Moments, part: _Part, only: int | None = None
    ) -> Iterator[Heads]:
        if method == "cca":
            return cca_heads(moments, only=only)
        if method == "ridge":
            found = ridge_heads(moments)
        else:
            start = next(cca_heads(moments, only=best["cca"].place))
            generator = torch.Generator().manual_seed(config.seed)
            found = contrastive_heads(start, *pairs.features(part.rows), generator=generator)
        return found if only is None else islice(found, only, only + 1)

    wanted = {*config.methods} | ({"cca"} if "contrastive" in config.methods else set())
    order: list[Method] = [it for it in ("ridge", "cca", "contrastive") if it in wanted]
    total = sum(num_heads(method, moments) for method in order)
    with Progress("fit heads", total=total, unit="heads") as progress:
        for method in order:
            for place, heads in enumerate(heads_of(method, moments, fit)):
                projected = heads.project_images(held_out[0]), heads.project_texts(held_out[1])
                found = reciprocal_ranks_of_pairs(*projected, choose.captions)[0]
                score = float(found.mean())
                if method not in best or score > best[method].score:
                    best[method] = _Best(score, place, heads.settings)
                progress.advance(1)
    tried = tuple(
        FittedHead(method=method, settings=best[method].settings, mrr=best[method].score)
        for method in order
        if method in config.methods
    )
    chosen = max(tried, key=lambda it: it.mrr)
    rows = torch.cat([fit.rows, choose.rows])
    whole = _Part(rows, [*fit.captions, *choose.captions])
    moments = moments_of(pairs.chunks(rows))
    return next(heads_of(chosen.method, moments, whole, best[chosen.method].place)), chosen, tried


def _project(heads: Heads, pairs: _Pairs, part: _Part) -> tuple[Tensor, Tensor]:
    """Embed the pairs of a part."""
    images, texts = pairs.features(part.rows)
    return heads.project_images(images), heads.project_texts(texts)
