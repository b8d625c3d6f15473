"""Several references are one whose similarities are the weighted sum of theirs."""

import pytest
import torch
from tests.data.tar_files import pair, write_shard
from tests.reference.small_reference import small_encoder
from tests.reference.test_store import rewrite
from torch.testing import assert_close

from drrho.data.indexing import index_shards
from drrho.reference.precompute import precompute
from drrho.reference.reader import open_reference
from drrho.reference.store import ReferenceStore


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A manifest and two references of it, the second with other embeddings and a gap."""
    folder = tmp_path_factory.mktemp("ensemble")
    for name, first, last in (("a", 0, 4), ("b", 4, 6)):
        write_shard(folder / "data" / f"{name}.tar", [pair(n) for n in range(first, last)])
    manifest = index_shards(folder / "data")
    for name in ("one", "two"):
        precompute(small_encoder(), manifest, folder / name, batch_size=3)
    generator = torch.Generator().manual_seed(0)
    for path in (folder / "two").glob("*.safetensors"):
        rows = 4 if "a" in path.name.split(".")[0] else 2
        found = ReferenceStore.open(folder / "one", manifest)
        drawn = torch.randn(2, rows, found.embedding_dim, generator=generator)
        image, text = torch.nn.functional.normalize(drawn, dim=-1).half()
        present = torch.arange(rows) != 1
        rewrite(path, image=image, text=text, present=present)
    return manifest, folder / "one", folder / "two"


@pytest.mark.parametrize("weights", [None, (0.2, 1.7)])
def test_similarities_are_the_weighted_sum(stores, weights):
    manifest, *folders = stores
    ensemble = open_reference(folders, manifest, weights=weights)
    ids = torch.tensor([5, 0, 3, 2, 1])
    together = ensemble.gather(ids)
    expected = torch.zeros(5, 5)
    for folder, weight in zip(folders, weights or (0.5, 0.5), strict=True):
        found = ReferenceStore.open(folder, manifest).gather(ids)
        expected += weight * found.image @ found.text.T
    present = together.present
    assert present.tolist() == [False, True, True, True, False]  # rows 1 of both shards
    found = together.image @ together.text.T
    assert_close(found[present][:, present], expected[present][:, present])
    assert found[~present].count_nonzero() == 0
    own = ensemble.similarities_in(0)
    assert own.isnan().tolist() == [False, True, False, False]
    assert_close(own[[0, 3, 2]], expected.diagonal()[1:4])
    assert together.image.shape[1] == ensemble.embedding_dim
    assert ensemble.num_absent == 2


def test_weights_fit_the_members(stores):
    manifest, *folders = stores
    with pytest.raises(ValueError, match="as many as references, 2"):
        open_reference(folders, manifest, weights=(1.0,))
    with pytest.raises(ValueError, match="positive and finite"):
        open_reference(folders, manifest, weights=(1.0, 0.0))
