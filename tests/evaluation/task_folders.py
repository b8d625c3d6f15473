"""Data of the tasks that are neither classification nor retrieval."""

import io

import datasets
import numpy as np
from PIL import Image
from tests.data.tar_files import encoded, write_shard

OBJECTIVES = {
    "race": ["black", "white", "indian"],
    "gender": ["male", "female"],
    "age": ["0-9", "10-19", "20 or more"],
    "toxic": [f"kind {number}" for number in range(21)],
}
TEMPLATES = {
    "age": ["a person {c} years old"],
    "gender": ["a photo of a {c}", "a {c}"],
    "race": ["a {c} person"],
    "toxic": ["a photo of a {c}"],
}


def array(*row):
    buffer = io.BytesIO()
    np.save(buffer, np.array(row))
    return buffer.getvalue()


def scribble(number):
    """A picture unlike those of other numbers."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).resize((32, 32)))


def lines_of(texts):
    return "".join(f"{objective}:{text}\n" for objective in texts for text in texts[objective])


def write_faces(folder, rows):
    """Images with (age, gender, race, race_binary) in DataComp's layout."""
    samples = [{"png": scribble(i), "cls": b"0", "npy": array(*row)} for i, row in enumerate(rows)]
    write_shard(folder / "test" / "0.tar", samples)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text(lines_of(OBJECTIVES))
    (folder / "zeroshot_classification_templates.txt").write_text(lines_of(TEMPLATES))
    return folder


def write_associations(folder, rows, *, broken=(), **columns):
    """(cue, numbers of the pictures, those that belong to the cue) in WinoGAViL's columns.

    Args:
        broken: numbers of the pictures that do not decode.
        columns: to write in place of those of these names; None leaves one out.
    """

    def image(number):
        content = scribble(number)
        return {"bytes": content[:60] if number in broken else content, "path": None}

    content = {
        "candidate_images": [[image(number) for number in numbers] for _, numbers, _ in rows],
        "cue": [cue for cue, _, _ in rows],
        "candidates": [[f"picture {number}" for number in numbers] for _, numbers, _ in rows],
        "associations": [[f"picture {number}" for number in right] for _, _, right in rows],
    } | columns
    kept = {name: column for name, column in content.items() if column is not None}
    texts = datasets.Sequence(datasets.Value("string"))
    features = {
        "candidate_images": datasets.Sequence(datasets.Image()),
        "cue": datasets.Value("string"),
        "candidates": texts,
        "associations": texts,
    }
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(
        kept, features=datasets.Features({name: features[name] for name in kept})
    ).save_to_disk(folder)
    return folder
