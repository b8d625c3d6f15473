"""A live reference in a comparison: steered as by stored embeddings, with its cost in the table."""

import json
from dataclasses import replace

from tests.small_runs import draw_no_pictures

import drrho
from drrho.studies.compare.compare import CompareConfig, run_comparison


def test_a_live_reference_compares_as_a_stored_one_and_its_cost_is_told(
    steered_recipe, reference, scenes, tmp_path, monkeypatch, few_resamples
):
    draw_no_pictures(monkeypatch)
    live = f"live:run:{reference.parent / 'run'}"
    found, texts = {}, {}
    for name, source in (("stored", str(reference)), ("live", live)):
        comparison = drrho.Comparison(
            output=str(tmp_path / name),
            methods=["openclip", "drrho_clip"],
            recipe=replace(
                steered_recipe,
                reference=source,
                evaluation=drrho.Evaluation(),
                training=replace(steered_recipe.training, evaluate_every=None),
            ),
            test=str(scenes / "test" / "manifest.json"),
            seeds=(0,),
        )
        texts[name], _ = run_comparison(comparison, CompareConfig())
        results = json.loads((tmp_path / name / "results.json").read_text())
        found[name] = results["methods"]["drrho_clip"]
        assert results["methods"]["openclip"]["cost"].get("live_pairs") is None
    assert found["live"]["tests"]["test"] == found["stored"]["tests"]["test"]
    assert found["live"]["cost"]["live_pairs"] == found["live"]["cost"]["samples_seen"] == 48
    assert 0 < found["live"]["cost"]["live_seconds"] < found["live"]["cost"]["seconds"]
    assert "48 in a run" in texts["live"]
    assert "in a run" not in texts["stored"]
