"""The example of text pairs trains every method, on a small model and drawn texts."""

import json

import pytest
from tests.examples.test_examples import load
from tests.integrations.test_sentence_transformers import WORDS, sentence_transformer

N = 24


@pytest.fixture(scope="module")
def example():
    return load("text_pairs")


@pytest.fixture
def model(tmp_path):
    sentence_transformer(tmp_path).save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def functions():
    """Descriptions of three words, of modules of which some are held out."""
    words = list(WORDS)
    return {
        f"{words[n % len(words)]} {words[n // len(words)]} number {n}": (
            f"module{n % 8}",
            words[n % 3],
        )
        for n in range(N)
    }


def test_every_method_trains_and_is_scored(example, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "functions", functions)
    output = tmp_path / "out"
    found = example.main(
        [
            "--model",
            model,
            "--seeds",
            "2",
            "--steps",
            "2",
            "--batch-size",
            "4",
            "--output",
            str(output),
        ]
    )
    assert set(found) == {"reference", "untrained", *example.METHODS}
    assert all(len(found[method]) == 2 for method in example.METHODS)
    assert all(0 < run["ndcg@10"] <= 1 for runs in found.values() for run in runs)
    assert json.loads((output / "results.json").read_text()) == found
    table = (output / "results.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith(table)
    assert table.count("±") == 4 * len(example.METHODS)


def test_one_seed_has_no_interval(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--seeds", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_no_module_is_on_both_sides(example):
    pairs = functions()
    train, held_out = example.split(pairs, number=None)
    assert len(train) + len(held_out) == N and len(held_out) > 0
    module = {description: name for description, (name, _) in pairs.items()}
    sides = [{module[row] for row in part["anchor"]} for part in (train, held_out)]
    assert not sides[0] & sides[1]
