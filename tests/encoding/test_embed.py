"""Embedding a data set keeps the order and what belongs to each sample."""

import pytest
import torch
from tests.data.tar_files import READABLE, pair, write_flawed_set, write_shard
from tests.reference.small_reference import embeddings_of, small_encoder

from drrho.data.indexing import index_shards
from drrho.encoding.shared import Encoder


def test_samples_stay_together_and_in_order(tmp_path):
    manifest = index_shards(write_flawed_set(tmp_path))
    encoder = Encoder(model=small_encoder(), batch_size=2)
    with pytest.warns(UserWarning, match="2 samples could not be evaluated"):
        found = encoder.images(manifest, name="small", parts=("caption", "metadata"))
    assert found.own_ids.tolist() == READABLE
    assert found.own_captions == [[f"picture number {i}"] for i in READABLE]
    assert [entry["number"] for entry in found.own_metadata] == READABLE
    assert found.num_skipped == 2
    assert found.embeddings.dtype == torch.float32
    assert not found.embeddings.requires_grad
    expected = torch.stack([embeddings_of(i)[0] for i in READABLE])
    torch.testing.assert_close(found.embeddings, expected)


def test_batch_size_of_texts_does_not_matter():
    model, sizes = small_encoder(), []
    texts = [f"{letter * n} {n}" for n, letter in enumerate("abcdefg", start=1)]
    tokenizer = model.tokenizer

    def tokenize(batch):
        sizes.append(len(batch))
        return tokenizer(batch)

    model.tokenizer = tokenize
    found = Encoder(model=model, batch_size=3).texts(texts)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(found, torch.cat([model.encode_text(text) for text in texts]))


def test_nothing_to_embed_is_an_error(tmp_path):
    broken = pair(0) | {"jpg": b"no picture"}
    manifest = index_shards(write_shard(tmp_path / "a.tar", [broken]))
    encoder = Encoder(model=small_encoder(), batch_size=3)
    with pytest.raises(ValueError, match="no sample of small could be decoded"):
        encoder.images(manifest, name="small", parts=())
    with pytest.raises(ValueError, match="got 0"):
        encoder.model.encode_text([])
    with pytest.raises(ValueError, match="got 1 and 0"):
        encoder.model.encode_text(["a"], batch_size=0)
