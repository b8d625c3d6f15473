"""What a step sends between processes is what the guide's table says, message by message."""

import re
from pathlib import Path

import pytest

from tests import processes
from tests.contrastive import collectives

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "contrastive.md"
VALUES = {
    "K": collectives.WORLD,
    "B": collectives.NUM_PAIRS,
    "d": collectives.DIM,
    "d'": collectives.REFERENCE_DIM,
}


def evaluated(formula: str) -> int:
    """A sum of products like `8Bd + 4Bd' + 12B + 8K + 4`."""
    total = 0
    for term in formula.split(" + "):
        number, letters = re.fullmatch(r"(\d+)((?:[BK]|d'?)*)", term).groups()
        product = int(number)
        for letter in re.findall(r"[BK]|d'?", letters):
            product *= VALUES[letter]
        total += product
    return total


def table() -> dict[str, tuple[int, int]]:
    """Collectives and bytes of each objective in the guide."""
    text = GUIDE.read_text().split("| objective | collectives | bytes |\n|---|---|---|\n")[1]
    rows = [line.strip("|").split("|") for line in text.split("\n\n")[0].splitlines()]
    return {name.strip(): (int(count), evaluated(size.strip())) for name, count, size in rows}


@pytest.fixture(scope="module")
def counted():
    return processes.run(collectives.steps, world=collectives.WORLD)


def test_the_guide_lists_every_objective():
    assert list(table()) == list(collectives.CONFIGS)


@pytest.mark.parametrize("name", collectives.CONFIGS)
def test_a_step_has_the_collectives_and_bytes_of_the_guide(name, counted):
    for sizes in counted:
        assert (len(sizes[name]), sum(sizes[name])) == table()[name], sizes[name]


@pytest.mark.parametrize("name", collectives.CONFIGS)
def test_the_numbers_of_pairs_are_gathered_once_a_step(name, counted):
    sizes_of_shares = 8 * collectives.WORLD  # as many bytes as nothing else has here
    assert all(sizes[name].count(sizes_of_shares) == 1 for sizes in counted)
