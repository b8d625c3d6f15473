"""`drrho steer` by references that were made of two models, and on pairs of texts."""

import json
import shutil
import tarfile

import drrho.integrations

# isort: split
import pytest
from tests.integrations.test_sentence_transformers import pairs, sentence_transformer
from tests.small_runs import TINY

import drrho
from drrho.cli import main
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.studies.steer.config import SteerConfig

pytest.importorskip("sentence_transformers")
OPTIONS = ("--epochs", "1", "--batch-size", "4", "--device", "cpu", "--output")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A text model of sentence-transformers."""
    folder = tmp_path_factory.mktemp("sentences")
    sentence_transformer(folder).save(str(folder / "model"), create_model_card=False)
    return f"sentence-transformers:{folder / 'model'}"


def test_by_a_vision_and_a_text_model_that_were_joined(
    reference, sentences, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(SteerConfig, "target_model", TINY)
    write_scenes(tmp_path / "tars", ScenesConfig(num_samples=50, seed=5))
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "photos", filter="data")
    write_scenes(tmp_path / "others", ScenesConfig(num_samples=120, seed=6))
    joined = tmp_path / "joined"
    drrho.join_reference(
        image=f"run:{reference.parent / 'run'}",
        text=sentences,
        data=str(tmp_path / "others"),
        output=str(joined),
    )
    shutil.move(joined, tmp_path / "moved")  # it holds all that it needs
    arguments = ["steer", str(tmp_path / "photos"), "--reference", str(tmp_path / "moved")]
    assert main([*arguments, *OPTIONS, str(tmp_path / "out")]) == 0
    assert "reference" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "steer.json").read_text())
    assert results["held_out"] == 20
    assert (tmp_path / "out" / "report.html").is_file()
    assert drrho.open_reference(tmp_path / "out" / "reference", tmp_path / "out" / "train.json")


def test_on_pairs_of_texts_by_a_text_model(sentences, tmp_path):
    rows = [{**row, "anchor": f"{row['anchor']} {n}"} for n in range(5) for row in pairs()]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["steer", str(tmp_path / "pairs.jsonl"), "--reference", sentences]
    options = [*OPTIONS, str(tmp_path / "out"), "--model", sentences]
    assert main([*arguments, *options]) == 0
    assert (tmp_path / "out" / "run" / "model" / "modules.json").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
