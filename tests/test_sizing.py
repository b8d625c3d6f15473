"""The sizes that `benchmarks/sizing.py` states are those of the files that are written."""

import runpy
from pathlib import Path

import pytest
import torch

from drrho.contrastive.objectives.global_risk import AnchorAverages
from drrho.data.indexing import index_shards
from drrho.reference.precompute import stored_bytes
from drrho.reference.shard_files import entries_of
from drrho.reference.store import REFERENCE_CARDS, ReferenceCard, ShardEmbeddings, save_shard
from tests.data.tar_files import pair, write_shard

SIZING = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "sizing.py"))
ROWS, DIM = 3_000, 64


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    sample = pair(1)
    return index_shards(write_shard(folder / "a.tar", [sample] * ROWS))


def test_index(manifest, tmp_path):
    manifest.save(tmp_path / "train.json")
    (rows,) = tmp_path.glob("train.rows-*")
    assert rows.stat().st_size == pytest.approx(SIZING["ROWS"] * ROWS, abs=500)
    size = (tmp_path / "train.json").stat().st_size
    assert size <= 1.1 * SIZING["JSON"] * 10_000, "of one shard"


def test_reference(manifest, tmp_path):
    card = ReferenceCard(model={}, embedding_dim=DIM, shards=entries_of(manifest.shards))
    block = torch.zeros(ROWS, DIM, dtype=torch.float16)
    embeddings = ShardEmbeddings(
        image=block, text=block.clone(), present=torch.ones(ROWS, dtype=torch.bool), absent={}
    )
    save_shard(REFERENCE_CARDS.files(card, tmp_path), card.shards[0], embeddings)
    (file,) = tmp_path.glob("*.safetensors")
    assert file.stat().st_size == pytest.approx(stored_bytes(ROWS, DIM), abs=1_500)


def test_averages():
    state = AnchorAverages(ROWS).state_dict()
    assert sum(value.nbytes for value in state.values()) == SIZING["STATE"] * ROWS
