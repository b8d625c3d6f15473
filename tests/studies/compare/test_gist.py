"""GIST's masking as a method of the table, of images and texts and of pairs of texts."""

import json
from pathlib import Path

import drrho.integrations

# isort: split
import pytest
from tests.integrations.test_sentence_transformers import pairs, sentence_transformer
from tests.small_runs import TINY, draw_no_pictures

import drrho
from drrho.studies.compare.compare import CompareConfig, run_comparison
from drrho.training.log import read_metrics

METHODS = ["openclip", "gist", "drrho_clip"]


@pytest.fixture(params=["images and texts", "pairs of texts"])
def made(request, tmp_path):
    """Model, training data, test data and the reference's model, of either kind of pairs."""
    if request.param == "images and texts":
        scenes, reference = map(request.getfixturevalue, ("scenes", "reference"))
        data, test = (str(scenes / name / "manifest.json") for name in ("train", "test"))
        return TINY, data, test, str(reference)
    pytest.importorskip("sentence_transformers")
    model = f"sentence-transformers:{tmp_path / 'model'}"
    sentence_transformer(tmp_path).save(str(tmp_path / "model"), create_model_card=False)
    rows = [json.dumps(row) for row in pairs()]
    half = len(rows) // 2
    for name, part in (("train", rows[:half]), ("test", rows[half:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
        drrho.index(str(tmp_path / f"{name}.jsonl"), output=str(tmp_path / f"{name}.json"))
    data, test, stored = (str(tmp_path / name) for name in ("train.json", "test.json", "stored"))
    drrho.precompute_reference(data=data, model=model, output=stored)
    return drrho.Model(model), data, test, stored


def test_gist_is_a_method_of_the_table(made, tmp_path, monkeypatch, few_resamples):
    model, data, test, reference = made
    draw_no_pictures(monkeypatch)
    recipe = drrho.Recipe(
        output="",
        data=data,
        model=model,
        objective=drrho.DRRhoCLIP(),
        reference=reference,
        loading=drrho.Loading(batch_size=4),
        training=drrho.Training(
            steps=3, log_every=1, optimizer=drrho.Optimizer(learning_rate=0.01, warmup_steps=1)
        ),
        device="cpu",
    )
    output = tmp_path / "compared"
    comparison = drrho.Comparison(
        output=str(output), methods=METHODS, recipe=recipe, test=test, seeds=(0, 1)
    )
    text, status = run_comparison(comparison, CompareConfig())
    assert status == 0
    assert "GIST" in text
    found = json.loads((output / "results.json").read_text())["methods"]
    assert list(found) == METHODS
    assert all(0 < method["tests"]["test"]["mrr"] <= 1 for method in found.values())
    losses = {
        name: [row["loss"] for row in read_metrics(Path(output) / f"{name}-seed0")]
        for name in METHODS
    }
    assert losses["gist"] != losses["openclip"]
    assert losses["gist"] != losses["drrho_clip"]
