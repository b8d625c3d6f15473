"""Data that the folder of a run names: local ones are read, others if the folder is trusted."""

from dataclasses import replace

import fsspec
import pytest
from tests.data.tar_files import pair, write_shard

from drrho import CLIP, Model, Recipe
from drrho.data.indexing import index_shards
from drrho.models.program import trusting
from drrho.recipe.folder import RunFolder
from drrho.recipe.recipe import Evaluation


def run_on(data, folder):
    recipe = Recipe(data=str(data), output=str(folder), model=Model(name="small"), objective=CLIP())
    return RunFolder(path=folder, recipe=recipe, rows=[], results=None)


@pytest.mark.parametrize("by_manifest", [False, True])
def test_a_received_run_fetches_no_data_without_trust(tmp_path, by_manifest):
    shard = write_shard(tmp_path / "a.tar", [pair(0)])
    url = "memory://key:secret@set/a.tar"
    fsspec.filesystem("memory").pipe("/key:secret@set/a.tar", shard.read_bytes())
    manifest = index_shards(url)
    named = tmp_path / "m.json" if by_manifest else url
    manifest.save(tmp_path / "m.json")
    with pytest.raises(ValueError, match=r"run asks for data at memory://set/a\.tar.*--trust"):
        run_on(named, tmp_path / "run").open_data()
    with trusting(everything=True):
        assert run_on(named, tmp_path / "run").open_data() == manifest
    with trusting(f"run:{tmp_path / 'run'}"):
        assert run_on(named, tmp_path / "run").open_data() == manifest
    with trusting(f"run:{tmp_path / 'other'}"), pytest.raises(ValueError, match="say --trust"):
        run_on(named, tmp_path / "run").open_data()
    with pytest.raises(ValueError, match="say --trust"):
        run_on(shard, tmp_path / "run").open_data(named=str(named))
    assert run_on(named, tmp_path / "run").open_data(url) == manifest
    assert run_on(shard, tmp_path / "run").open_data() == index_shards(shard)


@pytest.mark.parametrize("field", ["data", "evaluation"])
def test_a_recipe_that_would_fetch_is_handed_out_with_trust_only(tmp_path, field):
    url = "https://user:secret@host/set"
    run = run_on(url if field == "data" else tmp_path, tmp_path / "run")
    if field == "evaluation":
        run = replace(run, recipe=replace(run.recipe, evaluation=Evaluation(data=url)))
    with pytest.raises(ValueError, match=r"asks for data at https://host/set") as refused:
        run.require_trusted_recipe()
    assert "secret" not in str(refused.value)
    with trusting(everything=True):
        run.require_trusted_recipe()
    run_on(tmp_path, tmp_path / "run").require_trusted_recipe()
