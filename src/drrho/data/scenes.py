"""Captioned scenes: a procedural image-text data set whose truth is known.

Each image shows one coloured shape in one of nine places on a patterned background, with
sensor noise; its caption comes from a small grammar with synonyms, and leaves some
attributes out. A chosen share of the captions is given to the wrong image. Everything is
a function of the seed, so the data need no download, and one knows which pairs mislead.
"""

import io
import itertools
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tyro.conf import Positional

from drrho.data.reading.shards import write_sample
from drrho.runtime.checks import require_at_least
from drrho.runtime.files import expand_paths, opened_atomically, write_json
from drrho.runtime.progress import Progress

IMAGE_SIZE = 64  # pixels
OVERSAMPLING = 2  # shapes are drawn this much larger and averaged down: smooth edges

SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "round dot"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "diamond": ("diamond", "rhombus"),
    "star": ("star", "five-pointed star"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "crescent": ("crescent", "moon"),
}
COLOURS: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {
    "red": ((205, 40, 40), ("red", "crimson")),
    "green": ((40, 160, 60), ("green", "emerald")),
    "blue": ((45, 70, 210), ("blue", "cobalt")),
    "yellow": ((230, 205, 40), ("yellow", "golden")),
    "purple": ((140, 50, 170), ("purple", "violet")),
    "orange": ((240, 130, 30), ("orange", "tangerine")),
    "white": ((245, 245, 245), ("white", "snowy")),
    "black": ((20, 20, 20), ("black", "jet")),
}  # RGB, and words
POSITIONS: dict[str, tuple[str, ...]] = {
    "top left": ("at the top left", "in the upper left corner"),
    "top": ("at the top", "along the upper edge"),
    "top right": ("at the top right", "in the upper right corner"),
    "left": ("on the left", "at the left side"),
    "centre": ("in the centre", "in the middle"),
    "right": ("on the right", "at the right side"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "along the lower edge"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
}
SIZES: dict[str, tuple[float, tuple[str, ...]]] = {
    "small": (10.0, ("small", "little", "tiny")),
    "large": (15.0, ("large", "big", "huge")),
}  # half the extent in pixels, and words
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (128, 128, 128),
    "pink": (235, 170, 185),
    "brown": (120, 80, 50),
    "sky": (150, 200, 235),
    "olive": (120, 125, 60),
    "cream": (235, 225, 195),
}
PATTERNS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "even"),
    "striped": ("striped", "banded"),
    "dotted": ("dotted", "speckled"),
    "checked": ("checked", "tiled"),
}


@dataclass(frozen=True)
class Scene:
    """What an image shows: a key of each of the tables above, in their order."""

    shape: str
    colour: str
    position: str
    size: str
    background: str
    pattern: str


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """A set of captioned scenes.

    Attributes:
        num_samples: number of image-caption pairs.
        seed: random seed; sets with different seeds are independent.
        mismatch_rate: share of pairs, in [0, 1), whose caption belongs to another image of
            the set. No pair in that share keeps its own caption.
        omission_rate: probability that a caption leaves out an attribute; the shape is
            always named.
        noise: standard deviation of the sensor noise, in grey levels of 0 to 255.
        samples_per_shard: pairs in each tar file.
    """

    num_samples: int
    seed: int
    mismatch_rate: float = 0.0
    omission_rate: float = 0.15
    noise: float = 20.0
    samples_per_shard: int = 1000

    def __post_init__(self):
        require_at_least(1, num_samples=self.num_samples, samples_per_shard=self.samples_per_shard)
        require_at_least(0, seed=self.seed, noise=self.noise)
        if not 0 <= self.mismatch_rate < 1:
            raise ValueError(f"mismatch_rate must be in [0, 1), got {self.mismatch_rate}")
        if not 0 <= self.omission_rate <= 1:
            raise ValueError(f"omission_rate must be in [0, 1], got {self.omission_rate}")


def draw_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene, every attribute uniformly and independently."""
    tables = (SHAPES, COLOURS, POSITIONS, SIZES, BACKGROUNDS, PATTERNS)
    return Scene(*(list(table)[generator.integers(len(table))] for table in tables))


def describe(scene: Scene, generator: np.random.Generator, *, omission_rate: float) -> str:
    """Write a caption such as "a big crimson disc at the top left on a striped pink ground"."""

    def word(choices):
        return choices[generator.integers(len(choices))]

    def said():
        return generator.random() >= omission_rate

    words = []
    if said():
        words.append(word(SIZES[scene.size][1]))
    if said():
        words.append(word(COLOURS[scene.colour][1]))
    words.append(word(SHAPES[scene.shape]))
    if said():
        words.append(word(POSITIONS[scene.position]))
    ground = [word(PATTERNS[scene.pattern])] if said() else []
    ground += [scene.background] if said() else []
    if ground:
        ground.append(word(("background", "ground")))
        words.append(f"on {_article(ground[0])} {' '.join(ground)}")
    return f"{_article(words[0])} {' '.join(words)}"


def render(scene: Scene, generator: np.random.Generator, *, noise: float) -> Image.Image:
    """Render the scene as a 64 px RGB image, with jitter in place, size, colour and light."""
    extent = IMAGE_SIZE * OVERSAMPLING
    image = Image.new("RGB", (extent, extent), _jitter(BACKGROUNDS[scene.background], generator))
    _draw_pattern(ImageDraw.Draw(image), scene.pattern, image.getpixel((0, 0)), generator)
    row, column = divmod(list(POSITIONS).index(scene.position), 3)
    centre = [
        OVERSAMPLING * (IMAGE_SIZE * (2 * cell + 1) / 6 + generator.uniform(-3, 3))
        for cell in (column, row)
    ]
    radius = OVERSAMPLING * SIZES[scene.size][0] * generator.uniform(0.88, 1.12)
    mask = Image.new("1", (extent, extent))
    _draw_shape(ImageDraw.Draw(mask), scene.shape, centre, radius)
    image.paste(_jitter(COLOURS[scene.colour][0], generator), mask=mask)
    pixels = np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32)
    pixels = pixels * generator.uniform(0.75, 1.15)
    pixels += noise * generator.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def mismatched_captions(
    num_samples: int, rate: float, generator: np.random.Generator
) -> np.ndarray:
    """Choose for each sample the sample whose caption it gets, shape (num_samples,).

    `round(rate * num_samples)` samples, chosen at random, pass their captions round a
    random circle, so that none of them keeps its own; all others keep theirs. A single
    chosen sample cannot be mismatched and keeps its caption.
    """
    source = np.arange(num_samples)
    chosen = generator.permutation(num_samples)[: round(rate * num_samples)]
    source[chosen] = np.roll(chosen, 1)
    return source


def scene_samples(config: ScenesConfig) -> Iterator[dict[str, bytes | str]]:
    """Yield the WebDataset samples (`__key__`, `jpg`, `txt`, `json`) of the set, in order.

    Sample i is drawn by a generator of its own, seeded by (seed, i): the images of a set do
    not depend on its mismatch rate or size.
    """
    generators = [np.random.default_rng([config.seed, i]) for i in range(config.num_samples)]
    scenes = [draw_scene(generator) for generator in generators]
    captions = [
        describe(scene, generator, omission_rate=config.omission_rate)
        for scene, generator in zip(scenes, generators, strict=True)
    ]
    order_generator = np.random.default_rng([config.seed, config.num_samples, 1])
    sources = mismatched_captions(config.num_samples, config.mismatch_rate, order_generator)
    for i, (scene, source) in enumerate(zip(scenes, sources, strict=True)):
        buffer = io.BytesIO()
        render(scene, generators[i], noise=config.noise).save(buffer, "JPEG", quality=92)
        metadata = asdict(scene) | {
            "position_phrase": POSITIONS[scene.position][0],
            "caption_of": int(source),
            "true_caption": captions[i],
        }
        yield {
            "__key__": f"{i:08d}",
            "jpg": buffer.getvalue(),
            "txt": captions[source],
            "json": json.dumps(metadata).encode(),
        }


def zero_shot_tasks() -> dict[str, dict[str, object]]:
    """Return the tasks of `zero_shot.json`: classification of shape, colour and position.

    Prompts are whole captions of the grammar, with the class in its place and all values of two
    other attributes: averaged over those, what remains is the class.
    """
    places = [phrases[0] for phrases in POSITIONS.values()]
    ground = "on a plain grey background"
    return {
        "shape": {
            "class_names": list(SHAPES),
            "templates": [f"a large {c} {{}} {p} {ground}" for c in COLOURS for p in places],
            "field": "shape",
        },
        "colour": {
            "class_names": list(COLOURS),
            "templates": [f"a large {{}} {s} {p} {ground}" for s in SHAPES for p in places],
            "field": "colour",
        },
        "position": {
            "class_names": places,
            "templates": [f"a large {c} {s} {{}} {ground}" for c in COLOURS for s in SHAPES],
            "field": "position_phrase",
        },
    }


def write_scenes(folder: Path, config: ScenesConfig) -> list[Path]:
    """Write the set as WebDataset shards `scenes-0000.tar`, ... and `zero_shot.json`; return the
    paths of the shards.

    The same configuration gives the same bytes. A complete set of this configuration is left
    alone; what an interrupted call left behind is written again.

    Raises:
        FileExistsError: the folder holds other shards, which would mix two data sets.
    """
    num_shards = math.ceil(config.num_samples / config.samples_per_shard)
    paths = [folder / f"scenes-{shard:04d}.tar" for shard in range(num_shards)]
    marker = folder / "scenes.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == asdict(config):
        return paths
    others = set(folder.glob("*.tar")) - set(paths)
    if marker.is_file() or others:
        what = "scenes of another configuration" if marker.is_file() else min(others).name
        raise FileExistsError(
            f"{folder} already holds {what}; choose another folder, or remove this one"
        )
    samples = scene_samples(config)
    with Progress(f"draw {folder.name}", total=config.num_samples, unit="scenes") as progress:
        for path in paths:
            with opened_atomically(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
                for sample in itertools.islice(samples, config.samples_per_shard):
                    write_sample(tar, sample)
                    progress.advance(1)
    write_json(folder / "zero_shot.json", zero_shot_tasks())
    write_json(marker, asdict(config))  # last: its presence says that the set is complete
    return paths


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _jitter(colour: tuple[int, int, int], generator: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(np.clip(c + generator.integers(-18, 19), 0, 255)) for c in colour)


def _draw_pattern(draw, pattern: str, colour, generator: np.random.Generator) -> None:
    """Draw stripes, dots or checks a shade darker than the ground, at a random offset."""
    shade = tuple(int(0.8 * channel) for channel in colour)
    extent, period = IMAGE_SIZE * OVERSAMPLING, 8 * OVERSAMPLING
    start = -int(generator.integers(period))
    steps = range(start, extent, period)
    match pattern:
        case "striped":
            for y in steps:
                draw.rectangle((0, y, extent, y + period // 2 - 1), fill=shade)
        case "dotted":
            for x in steps:
                for y in steps:
                    draw.ellipse((x, y, x + period // 2, y + period // 2), fill=shade)
        case "checked":
            half = period // 2
            for x in steps:
                for y in steps:
                    draw.rectangle((x, y, x + half - 1, y + half - 1), fill=shade)
                    draw.rectangle((x + half, y + half, x + period - 1, y + period - 1), fill=shade)


def _draw_shape(draw, shape: str, centre: list[float], radius: float) -> None:
    """Fill the shape with 1 on a mask."""
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            draw.ellipse(box, fill=1)
        case "square":
            side = 0.85 * radius
            draw.rectangle((x - side, y - side, x + side, y + side), fill=1)
        case "triangle":
            draw.polygon(_corners(x, y, [radius], 3), fill=1)
        case "diamond":
            draw.polygon(_corners(x, y, [radius, 0.7 * radius], 4), fill=1)
        case "star":
            draw.polygon(_corners(x, y, [radius, 0.42 * radius], 10), fill=1)
        case "cross":
            arm = 0.36 * radius
            draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=1)
            draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=1)
        case "ring":
            draw.ellipse(box, fill=1)
            hole = 0.55 * radius
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        case "crescent":
            draw.ellipse(box, fill=1)
            bite = 0.85 * radius
            x += 0.55 * radius
            draw.ellipse((x - bite, y - bite, x + bite, y + bite), fill=0)


def _corners(x: float, y: float, radii: list[float], corners: int) -> list[tuple[float, float]]:
    """Return the corners at equal angles, the first on top, with the radii in turn."""
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return [
        (x + radius * math.sin(angle), y - radius * math.cos(angle))
        for angle, radius in zip(angles, itertools.cycle(radii), strict=False)
    ]


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Draw captioned scenes as WebDataset shards.

    Attributes:
        folder: folder to write.
        scenes: size, noise and random seed of the set.
    """

    folder: Positional[str]
    scenes: ScenesConfig

    def __post_init__(self) -> None:
        expand_paths(self, outputs=("folder",))


def run_scenes(config: DrawConfig) -> str:
    """Draw captioned scenes as WebDataset shards."""
    paths = write_scenes(Path(config.folder), config.scenes)
    return f"{config.folder}: {config.scenes.num_samples:,} scenes in {len(paths):,} shards"
