"""Pairs of texts from a table to a trained model that sentence-transformers loads."""

import json

import drrho.integrations

# isort: split
import datasets
import pytest
import torch
from tests.integrations.test_sentence_transformers import N, pairs, sentence_transformer
from torch.testing import assert_close

import drrho
from drrho.cli import main
from drrho.data.manifest import Manifest
from drrho.reference.reader import open_reference
from drrho.training.log import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of pairs, its index, and a small model."""
    place = tmp_path_factory.mktemp("pairs")
    sentence_transformer(place).save(str(place / "model"), create_model_card=False)
    with (place / "pairs.jsonl").open("w") as file:
        for row in pairs():
            file.write(json.dumps({"query": row["anchor"], "passage": row["positive"]}) + "\n")
    drrho.index(str(place / "pairs.jsonl"), output=str(place / "pairs.json"))
    return place


@pytest.fixture(scope="module")
def reference(folder):
    drrho.precompute_reference(
        data=str(folder / "pairs.json"),
        model=f"sentence-transformers:{folder / 'model'}",
        output=str(folder / "reference"),
    )
    return folder / "reference"


def recipe(folder, output, **options):
    defaults = {
        "model": drrho.Model(f"sentence-transformers:{folder / 'model'}"),
        "objective": drrho.CLIP(temperature=0.05),
        "training": drrho.Training(steps=3, optimizer=drrho.Optimizer(learning_rate=0.01)),
        "evaluation": drrho.Evaluation(data=str(folder / "pairs.json")),
    }
    return drrho.Recipe(
        data=str(folder / "pairs.json"),
        loading=drrho.Loading(batch_size=6),
        output=str(output),
        device="cpu",
        **(defaults | options),
    )


def test_a_run_ends_in_a_folder_that_sentence_transformers_loads(folder, tmp_path):
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    run = drrho.train(recipe(folder, tmp_path / "run"))
    texts = list(pairs()["positive"])
    theirs = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    expected = theirs.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    model = drrho.load(str(tmp_path / "run"))
    assert_close(model.encode_text(texts), expected, rtol=1e-5, atol=1e-6)
    before = sentence_transformer(folder).encode(texts, convert_to_tensor=True)
    assert not torch.allclose(before / before.norm(dim=1, keepdim=True), expected, atol=1e-3)
    metrics = run.results.metrics
    for name in ("mrr", "anchor_to_positive/ndcg@10", "positive_to_anchor/recall@1"):
        assert 0 <= metrics[f"evaluation/{name}"] <= 1
    main(["export", str(tmp_path / "run"), "--format", "hugging-face", "--output",
          str(tmp_path / "exported")])  # fmt: skip
    again = SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    assert_close(again.encode(texts, convert_to_tensor=True, normalize_embeddings=True), expected)


@pytest.mark.parametrize("method", ["drrho_clip", "gist"])
def test_a_reference_steers(folder, reference, tmp_path, method):
    objective = {"drrho_clip": drrho.DRRhoCLIP, "gist": drrho.GIST}[method](temperature=0.05)
    drrho.train(recipe(folder, tmp_path / "run", objective=objective, reference=str(reference)))
    assert (tmp_path / "run" / "model" / "modules.json").is_file()


def test_a_live_reference_steers_as_a_stored_one(folder, reference, tmp_path):
    live = f"live:sentence-transformers:{folder / 'model'}"
    losses = []
    for name, source in (("stored", str(reference)), ("live", live)):
        training = drrho.Training(steps=3, log_every=1, optimizer=drrho.Optimizer(warmup_steps=1))
        options = {"objective": drrho.DRRhoCLIP(), "training": training, "reference": source}
        drrho.train(recipe(folder, tmp_path / name, **options))
        losses.append([row["loss"] for row in read_metrics(tmp_path / name)])
    assert losses[0] == losses[1]
    crops = recipe(folder, tmp_path / "x", **options, live=drrho.Live(images="target"))
    with pytest.raises(ValueError, match="live.images = 'target': .* use 'own'"):
        drrho.train(crops)


def test_stored_embeddings_are_those_of_the_model(folder, reference):
    stored = open_reference(reference, folder / "pairs.json").gather(torch.arange(N))
    model = sentence_transformer(folder)
    for found, side in ((stored.image, "anchor"), (stored.text, "positive")):
        expected = model.encode(
            list(pairs()[side]), convert_to_tensor=True, normalize_embeddings=True
        )
        assert_close(found.float(), expected, rtol=0, atol=1e-3)


def written(folder, kind, names):
    """The pairs as a table of a kind, with columns of these names."""
    rows = datasets.Dataset.from_dict(dict(zip(names, pairs().to_dict().values(), strict=True)))
    path = folder / f"data.{kind}"
    match kind:
        case "csv":
            rows.to_csv(path)
        case "tsv":
            rows.to_csv(path, sep="\t")
        case "jsonl":
            rows.to_json(path)
        case "parquet":
            rows.to_parquet(path)
        case "disk":
            rows.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "disk"])
def test_every_kind_of_table_gives_the_same_samples(tmp_path, kind):
    path = written(tmp_path, kind, ("anchor", "positive"))
    manifest = drrho.index(str(path), output=str(tmp_path / "index.json"))
    manifest = Manifest.load(tmp_path / "index.json")
    assert manifest.has_texts and manifest.num_samples == N
    (shard,) = manifest.shards
    first = written(tmp_path, "jsonl", ("anchor", "positive"))
    drrho.index(str(first), output=str(tmp_path / "first.json"))
    assert shard.contents == Manifest.load(tmp_path / "first.json").shards[0].contents


@pytest.mark.parametrize(
    "names",
    [
        ("query", "passage"),
        ("Question", "Answer"),
        ("sentence1", "sentence2"),
        ("text_1", "text_2"),
        ("query", "positive"),
    ],
)
def test_names_that_people_use_are_recognised(tmp_path, names):
    path = written(tmp_path, "jsonl", names)
    drrho.index(str(path), output=str(tmp_path / "index.json"))
    layout = Manifest.load(tmp_path / "index.json").shards[0].layout
    assert (layout["image"], layout["caption"]) == names


def test_other_names_are_asked_for_and_can_be_given(tmp_path):
    path = written(tmp_path, "jsonl", ("heading", "paragraph"))
    with pytest.raises(ValueError, match="of pairs of texts: --anchor-column NAME"):
        drrho.index(str(path), output=str(tmp_path / "index.json"))
    drrho.index(
        str(path),
        output=str(tmp_path / "index.json"),
        anchor_column="heading",
        caption_column="paragraph",
    )
    assert Manifest.load(tmp_path / "index.json").has_texts
    with pytest.raises(ValueError, match="need two columns, got 'paragraph' as anchors"):
        drrho.index(
            str(path),
            output=str(tmp_path / "index.json"),
            anchor_column="paragraph",
            caption_column="paragraph",
        )
    with pytest.raises(ValueError, match="have no effect with anchor_column"):
        drrho.index(str(path), anchor_column="heading", image_column="paragraph")


def test_a_pair_without_a_text_is_counted(tmp_path):
    rows = [{"query": "a", "passage": "b"}, {"query": " ", "passage": "c"}, {"passage": "d"}]
    rows += [{"query": "e", "passage": ""}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drrho.index(str(path), output=str(tmp_path / "index.json"))
    unusable = Manifest.load(tmp_path / "index.json").shards[0].unusable
    assert unusable == {1: "empty anchor", 2: "no anchor", 3: "empty caption"}


def test_models_of_images_do_not_take_texts(folder, tmp_path):
    small = drrho.Model("small", small=drrho.SmallConfig(embed_dim=8, image_width=2))
    with pytest.raises(ValueError, match="the data have texts where the model takes images"):
        drrho.train(recipe(folder, tmp_path / "run", model=small))
