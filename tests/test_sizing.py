"""What `benchmarks/sizing.py` states of files, operations and messages is what there is."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from drrho.contrastive.objectives.global_risk import AnchorAverages
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.data.indexing import index_shards
from drrho.reference.precompute import stored_bytes
from drrho.reference.shard_files import entries_of
from drrho.reference.store import REFERENCE_CARDS, ReferenceCard, ShardEmbeddings, save_shard
from tests.contrastive import test_collectives
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


class Products(TorchDispatchMode):
    """Count the operations of matrix products; torch's own counter leaves those in place out."""

    flop = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name in {"mm", "addmm", "addmm_"}:
            left, right = arguments[-2:]
            self.flop += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("dim_ref", [5, 0], ids=["with a reference", "without"])
def test_operations_of_the_loss(dim_ref):
    """Of a strip whose tiles are kept: four products, three without a reference."""
    pairs = [
        PairEmbeddings(*torch.nn.functional.normalize(torch.randn(2, 12, dim), dim=2))
        for dim in (7, dim_ref)
        if dim
    ]
    target = PairEmbeddings(*(e.requires_grad_() for e in pairs[0]))
    with Products() as products:
        tiled_log_gap_means(target, *pairs[1:], temperature=0.05).sum().backward()
    assert products.flop == SIZING["loss_flop"](12, 12, 7, dim_ref)


def test_collectives_are_those_of_the_guide():
    """`tests/contrastive/test_collectives.py` compares the guide's table with what is sent."""
    values = test_collectives.VALUES
    sent = SIZING["loss_collectives"](*(values[name] for name in ("B", "K", "d", "d'")))
    expected = test_collectives.table()["DRRho-CLIP"]
    assert (len(sent), sum(num_bytes for _, num_bytes, _ in sent)) == expected


def test_the_towers_take_what_was_measured():
    """ViT-B/16 on 344 A100, 256 pairs on each: 134,240 pairs a second."""
    step = SIZING["step_of"](256, 344, SIZING["A100"], SIZING["AS_IT_IS"], dim=512, dim_ref=0)
    assert 344 * 256 / step.towers == pytest.approx(134_240, rel=0.01)
    assert 344 * 256 / step.seconds == pytest.approx(134_240, rel=0.1)


def test_the_last_scheme_keeps_its_efficiency():
    for machine in SIZING["MACHINES"]:
        few, many = (
            SIZING["step_of"](64, k, machine, SIZING["SCHEMES"][-1], dim=512, dim_ref=512).seconds
            for k in (8, 1024)
        )
        assert few / many >= 0.95
