"""The verbs of the front door, on data of forty pairs: from shards to a report."""

import inspect
import json
from dataclasses import replace

import pytest

import drrho


@pytest.fixture(scope="module")
def run(steered_recipe, tmp_path_factory):
    return drrho.train(replace(steered_recipe, output=str(tmp_path_factory.mktemp("run"))))


def test_a_run_is_read_from_its_folder(run, steered_recipe):
    assert run.model.encode_text(["a lemon"]).shape == (1, 8)
    assert [row["step"] for row in run.log] == [1, 2, 3, 4, 5, 6]
    assert run.results.samples_seen == 48
    assert drrho.train(replace(steered_recipe, output=str(run.path))).results == run.results


def test_index_and_references(scenes, reference, tmp_path):
    manifest = drrho.index(str(scenes / "test"), output=str(tmp_path / "test.json"))
    assert manifest.num_samples == 12
    report = drrho.precompute_reference(
        data=str(tmp_path / "test.json"),
        model=f"run:{reference.parent / 'run'}",
        output=str(tmp_path / "stored"),
        device="cpu",
    )
    assert report.num_encoded == 12
    opened = drrho.open_reference(tmp_path / "stored", manifest)
    assert opened.gather(manifest.usable_ids()).image.shape == (12, 8)


def test_scores_curation_and_export(run, scenes, tmp_path):
    test = str(scenes / "test" / "manifest.json")
    scores = drrho.evaluate(str(run.path), data=(test,), device="cpu")
    (found,) = scores.values()
    assert found["images"] == 12
    curated = drrho.curate(str(run.path), output=str(tmp_path / "curated"), keep=0.5, device="cpu")
    assert curated.manifest is not None and curated.manifest.is_file()
    with pytest.raises(ValueError, match="none of open_clip's"):
        drrho.export(str(run.path), format="hugging-face", output=str(tmp_path / "hf"))


def test_one_thing_stands_for_a_list_of_one_and_a_run_for_its_folder(run, scenes, tmp_path):
    test = str(scenes / "test" / "manifest.json")
    scores = drrho.evaluate(run, data=test, device="cpu")
    assert scores == drrho.evaluate(str(run.path), data=(test,), device="cpu")
    assert drrho.load(run, device="cpu").encode_text(["a lemon"]).shape == (1, 8)
    options = {"output": str(tmp_path / "report.html"), "galleries": False, "device": "cpu"}
    assert drrho.report(run, **options) == drrho.report(str(run.path), **options)


def test_misspelt_calls_are_told_what_is_wrong(run, tmp_path):
    with pytest.raises(TypeError, match="missing a required argument: 'data'"):
        drrho.evaluate(run)
    with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
        drrho.index("train", out="a")
    with pytest.raises(FileNotFoundError, match="nope is no folder of a run or of a model"):
        drrho.load(tmp_path / "nope")


def test_report_of_a_run(run, tmp_path):
    page = drrho.report([run], output=str(tmp_path / "report.html"), galleries=False, device="cpu")
    assert "drrho" in page.read_text()


def test_probe_ranks_references_of_a_data_set(scenes, reference, tmp_path):
    """As typed: no recipe, and pairs held out of the data."""
    data = str(scenes / "train" / "manifest.json")
    names = [str(reference), f"run:{reference.parent / 'run'}"]
    found = drrho.probe(data, references=names, output=str(tmp_path / "probe"), pilot_steps=2)
    assert sorted(found.references) == sorted(names)
    assert all(name in str(found) for name in names)
    halves = [
        json.loads((tmp_path / "probe" / f"pilot-{k}" / "half.json").read_text()) for k in (1, 2)
    ]
    assert halves[0] != halves[1]
    assert found.held_out <= 20
    with pytest.raises(ValueError, match="only 12 samples are usable, too few to hold 20"):
        drrho.probe(str(scenes / "test"), references=names, output=str(tmp_path / "other"))


def test_an_editor_and_help_show_the_fields_of_a_command():
    fields = inspect.signature(drrho.index).parameters
    assert list(fields)[:2] == ["data", "output"]
    assert "folder of tar files" in drrho.index.__doc__


def test_every_verb_shows_an_example():
    verbs = [name for name in drrho.__all__ if getattr(drrho, name).__module__ == "drrho.verbs"]
    assert len(verbs) == 15
    for name in verbs:
        if name != "Run":
            assert f"drrho.{name}(" in getattr(drrho, name).__doc__, name
