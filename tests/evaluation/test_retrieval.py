"""Retrieval on distinct texts, in both directions."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from drrho.evaluation.metrics.ranks import positive_ranks
from drrho.evaluation.metrics.retrieval import (
    clip_benchmark_recalls,
    distinct_texts,
    reciprocal_rank_of_images,
    retrieval_ranks,
    separate_texts,
    summarise_ranks,
)

examples = settings(max_examples=30)
seeds = st.integers(0, 2**31)


def retrieval(images, texts, pairs, *, chunk_size=None, recall_at=(1, 5, 10)):
    rank = partial(positive_ranks, chunk_size=chunk_size)
    return summarise_ranks(retrieval_ranks(images, texts, pairs, rank=rank), recall_at=recall_at)


def random_data(seed, *, images=12, texts=7, dim=4):
    """Every text belongs to an image; some belong to several."""
    generator = torch.Generator().manual_seed(seed)
    extra = torch.randint(0, texts, (images - texts,), generator=generator)
    text_of_image = torch.cat([torch.arange(texts), extra])
    text_of_image = text_of_image[torch.randperm(images, generator=generator)]
    # Random directions with a common part, so that ranks are neither all 1 nor all random.
    text_embeddings = torch.randn(texts, dim, generator=generator)
    noise = torch.randn(images, dim, generator=generator)
    pairs = torch.stack([torch.arange(images), text_of_image])
    return text_embeddings[text_of_image] + noise, text_embeddings, pairs


def one_each(texts):
    """Image i has text i."""
    return torch.arange(texts).expand(2, -1)


def brute_force(image_embeddings, text_embeddings, pairs, *, recall_at):
    """By loops over single pairs, from the definition; for data without ties."""
    similarity = [
        [torch.cosine_similarity(image, text, dim=0).item() for text in text_embeddings]
        for image in image_embeddings
    ]
    owner = pairs[1].tolist()
    of_image = [
        1 + sum(other > row[text] for other in row)
        for row, text in zip(similarity, owner, strict=True)
    ]
    of_text = []
    for text in range(len(text_embeddings)):
        column = [row[text] for row in similarity]
        best = max(value for value, own in zip(column, owner, strict=True) if own == text)
        of_text.append(1 + sum(value > best for value in column))
    metrics = {}
    for name, ranks in (("image_to_text", of_image), ("text_to_image", of_text)):
        for k in recall_at:
            metrics[f"{name}/R@{k}"] = sum(rank <= k for rank in ranks) / len(ranks)
        metrics[f"mrr_{name}"] = sum(1 / rank for rank in ranks) / len(ranks)
    metrics["mrr"] = (metrics["mrr_image_to_text"] + metrics["mrr_text_to_image"]) / 2
    return metrics


@examples
@given(seeds)
def test_metrics_are_those_of_the_definition(seed):
    data = random_data(seed)
    expected = brute_force(*data, recall_at=(1, 3))
    assert retrieval(*data, recall_at=(1, 3), chunk_size=5) == pytest.approx(expected)


@examples
@given(seeds, st.integers(1, 20))
def test_chunk_size_does_not_matter(seed, chunk_size):
    data = random_data(seed)
    assert retrieval(*data, chunk_size=chunk_size) == pytest.approx(retrieval(*data))


@examples
@given(seeds)
def test_order_of_images_and_texts_does_not_matter(seed):
    images, texts, pairs = random_data(seed)
    generator = torch.Generator().manual_seed(seed)
    image_order = torch.randperm(len(images), generator=generator)
    text_order = torch.randperm(len(texts), generator=generator)
    place = text_order.argsort()  # where each text went
    moved = torch.stack([image_order.argsort()[pairs[0]], place[pairs[1]]])
    moved = moved[:, torch.randperm(len(images), generator=generator)]
    permuted = retrieval(images[image_order], texts[text_order], moved)
    assert permuted == pytest.approx(retrieval(images, texts, pairs))


def test_perfect_embeddings_score_one():
    eye = torch.eye(11)
    assert set(retrieval(eye, eye, one_each(11)).values()) == {1.0}


@pytest.mark.parametrize("images_per_text", [1, 3])
def test_collapsed_model_scores_like_chance(images_per_text):
    texts = 40
    count = texts * images_per_text
    pairs = torch.stack([torch.arange(count), torch.arange(texts).repeat(images_per_text)])
    images = torch.ones(count, 8)
    metrics = retrieval(images, torch.ones(texts, 8), pairs, recall_at=(1, 10))
    assert metrics["image_to_text/R@1"] == pytest.approx(1 / texts)
    assert metrics["image_to_text/R@10"] == pytest.approx(10 / texts)
    assert metrics["text_to_image/R@1"] == pytest.approx(1 / texts)

    generator = torch.Generator().manual_seed(0)
    guesses = [
        retrieval(
            torch.randn(len(images), 8, generator=generator),
            torch.randn(texts, 8, generator=generator),
            pairs,
        )
        for _ in range(20)
    ]
    for name in ("mrr_image_to_text", "mrr_text_to_image"):
        chance = sum(guess[name] for guess in guesses) / len(guesses)
        assert 0 < metrics[name] <= chance
    ranks = retrieval_ranks(images, torch.ones(texts, 8), pairs)
    assert ranks.image_to_text.expected().mean() == pytest.approx((texts + 1) / 2)


def test_any_image_with_the_caption_answers_the_text():
    """Text 0 has two images, one of them badly embedded; copies of an image do not compete."""
    texts = torch.eye(3)
    images = torch.stack([texts[0], texts[0], texts[2], texts[1], texts[2]])
    pairs = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    metrics = retrieval(images, texts, pairs, recall_at=(1,))
    # Text 2 is tied between its image and the badly embedded one: expected rank 1.5, R@1 a half.
    assert metrics["text_to_image/R@1"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert metrics["mrr_text_to_image"] == pytest.approx((1 + 1 + 1 / 1.5) / 3)
    assert metrics["image_to_text/R@1"] == pytest.approx(4 / 5)


@examples
@given(seeds)
def test_values_of_images_have_the_mean_reciprocal_rank_as_mean(seed):
    data = random_data(seed)
    values = reciprocal_rank_of_images(retrieval_ranks(*data), data[2])
    assert values.mean().item() == pytest.approx(retrieval(*data)["mrr"])
    carriers = (data[2][1] == data[2][1, 0]).nonzero()[:, 0]
    queries = retrieval_ranks(*data).image_to_text.reciprocal() / 2
    shared = (values - queries)[carriers]
    torch.testing.assert_close(shared, shared[:1].expand(len(carriers)))


def test_distinct_texts_keep_the_order_and_find_their_images():
    captions = ["b", "a", "b", "c", "a"]
    texts, (images, index) = distinct_texts(captions)
    assert texts == ["b", "a", "c"]
    assert [texts[i] for i in index] == captions
    assert images.tolist() == list(range(5))
    assert distinct_texts([])[0] == []


def test_images_may_have_several_captions():
    captions = [["b", "a", "b"], ["a"], ["c", "d"]]
    texts, pairs = distinct_texts(captions)
    assert texts == ["b", "a", "c", "d"]
    assert pairs.T.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2], [2, 3]]
    texts, pairs = separate_texts(captions)
    assert texts == ["b", "a", "b", "a", "c", "d"]
    assert pairs.tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]


@examples
@given(seeds)
def test_best_of_several_captions_answers_the_image(seed):
    """Against loops; every text has one image, images have one to three."""
    generator = torch.Generator().manual_seed(seed)
    several = [["x"] * int(n) for n in torch.randint(1, 4, (8,), generator=generator)]
    _, pairs = separate_texts(several)
    images, texts = (torch.randn(n, 5, generator=generator) for n in (8, pairs.shape[1]))
    ranks = retrieval_ranks(images, texts, pairs, rank=partial(positive_ranks, chunk_size=3))
    similarity = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    order = similarity.argsort(dim=1, descending=True)
    for k in (1, 5):
        found = [bool((pairs[0][order[i, :k]] == i).any()) for i in range(8)]
        recalls = clip_benchmark_recalls(ranks, recall_at=(k,))
        assert recalls[f"text_retrieval_recall@{k}"] == pytest.approx(sum(found) / 8)
    values = reciprocal_rank_of_images(ranks, pairs)
    assert values.mean().item() == pytest.approx(summarise_ranks(ranks)["mrr"])


def test_text_without_an_image_is_an_error():
    with pytest.raises(ValueError, match="1 queries have no positive.*query 2"):
        retrieval(torch.eye(3), torch.eye(3), torch.tensor([[0, 1, 2], [0, 1, 1]]))
    with pytest.raises(ValueError, match="rows of the 3 candidates, got 3"):
        retrieval(torch.eye(3), torch.eye(3), torch.tensor([[0, 1, 2], [0, 1, 3]]))


def largest_allocation(chunk_size, *, count=400):
    embeddings = torch.eye(count, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        retrieval(embeddings, embeddings, one_each(count), chunk_size=chunk_size)
    return max(event.self_cpu_memory_usage for event in profiler.events() or [])


def test_memory_is_that_of_a_chunk():
    whole = largest_allocation(400)
    assert whole >= 400 * 400 * 4
    assert largest_allocation(16) <= whole / 20
