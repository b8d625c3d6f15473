"""The example with a language model runs, shortened, and shows what it is there to show."""

import gc
import importlib.util
import json
import statistics
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "language_model.py"
    spec = importlib.util.spec_from_file_location("examples.language_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.small_llama(0)
    gc.freeze()  # every training collects garbage, of all that transformers has loaded as well
    return module


@pytest.fixture(scope="module")
def texts(example):
    """Of a few large modules, so that the library is parsed once and the tokens learned fast."""
    every = example.modules()
    large = sorted(every, key=lambda name: len(every[name]))[-80:]
    return {name: every[name] for name in sorted(large)}


def test_the_parts_are_of_different_modules(example, texts, monkeypatch):
    monkeypatch.setattr(example, "modules", lambda: texts)
    parts = {name: example.part_of(name) for name in texts}
    assert set(parts.values()) == set(example.PARTS)
    documents = example.read_parts()
    for part, rows in documents.items():
        assert 0 < len(rows) <= example.NUM_DOCUMENTS[part]
        assert rows.shape[1] == example.LENGTH
        assert rows.max() < example.VOCABULARY


def test_selection_and_weights_turn_away_from_noise(example, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "modules", lambda: texts)
    few = {"reference": 400, "train": 400, "validation": 64, "test": 64}
    monkeypatch.setattr(example, "NUM_DOCUMENTS", few)
    monkeypatch.setattr(example, "NUM_PROBED", 200)
    monkeypatch.setattr(example, "LENGTH", 32)
    short = ["--steps", "30", "--processes", "1", "--output", str(tmp_path)]
    results = example.main(["--seeds", "2", *short])

    assert results.keys() == {"reference", *example.METHODS}
    assert all(len(of_name) == 2 for of_name in results.values())
    noise = {
        name: statistics.fmean(result["noise"] for result in of_name)
        for name, of_name in results.items()
        if name != "reference"
    }
    assert abs(noise["plain"] - example.NOISE) < 0.02
    for name, method in example.METHODS.items():
        if method.excess:
            assert noise[name] < noise["plain"] - 0.03, name
    losses = [result["loss"] for of_name in results.values() for result in of_name]
    assert all(loss < torch.tensor(float(example.VOCABULARY)).log() for loss in losses)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert capsys.readouterr().out == (tmp_path / "results.md").read_text(encoding="utf-8")


def test_one_seed_has_no_interval(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--seeds", "1"])
    assert "at least 2" in capsys.readouterr().err
