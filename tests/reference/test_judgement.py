"""A reference is judged before it steers: guessing, overlap, memory; by one function everywhere."""

import pytest
import torch

from drrho.cli import main
from drrho.data.indexing import index_shards
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.models.build import Model
from drrho.models.seen import note_training_data, training_data_of
from drrho.reference.judgement import guessed_mrr, judge_cosines, seen_shards, texts_of


def judge(cosines, texts=None, *, seen=None, shards=3):
    return judge_cosines(
        cosines,
        torch.arange(len(cosines)) if texts is None else texts,
        seen=seen,
        shards=shards,
        generator=torch.Generator().manual_seed(0),
    )


def random_cosines(pairs, *, signal):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pairs, pairs, generator=generator, dtype=torch.float64)
    return noise + signal * torch.eye(pairs, dtype=torch.float64)


@pytest.mark.parametrize(
    ("signal", "seen", "warning"),
    [
        (0.0, None, "near guessing"),
        (2.0, None, None),
        (2.0, 0, None),
        (2.0, 1, "trained on 1 of the 3 shards"),
        (20.0, None, "memorised"),
        (20.0, 3, "trained on 3 of the 3 shards"),
    ],
)
def test_each_fault_has_its_sentence(signal, seen, warning):
    found = judge(random_cosines(300, signal=signal), seen=seen)
    assert (found.warning is None) == (warning is None)
    assert warning is None or warning in str(found)
    assert ("WARNING" in str(found)) == (warning is not None)


def test_few_pairs_are_no_proof_of_memory():
    assert judge(random_cosines(30, signal=20.0)).warning is None


def test_a_collapsed_reference_is_at_the_rank_of_guessing_or_below():
    found = judge(torch.zeros(200, 200, dtype=torch.float64))
    assert found.mrr.value <= found.mrr.guessing
    assert "near guessing" in (found.warning or "")


def test_pairs_with_the_same_text_share_it():
    cosines = torch.eye(4, dtype=torch.float64)
    cosines[:2, :2] = 1.0
    found = judge(cosines, torch.tensor([0, 0, 1, 2]))
    assert found.mrr.value == pytest.approx(1.0)
    assert found.mrr.high == 1.0
    assert found.first == 1.0
    assert found.mrr.guessing == guessed_mrr([2, 1, 1])


def test_texts_are_told_apart_by_their_embeddings_up_to_the_rounding_of_float16():
    generator = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(6, 64, generator=generator), dim=1)
    texts = texts[[0, 1, 0, 2, 3, 1]]
    stored = torch.nn.functional.normalize(texts, dim=1).half().float()
    stored = torch.nn.functional.normalize(stored, dim=1)
    assert texts_of(stored @ stored.T).tolist() == [0, 1, 0, 2, 3, 1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "one", ScenesConfig(num_samples=120, seed=0))
    write_scenes(folder / "two", ScenesConfig(num_samples=120, seed=1))
    return folder


def test_the_contents_of_shards_tell_what_was_seen_wherever_they_lie(data, tmp_path):
    one, two = (index_shards(data / name) for name in ("one", "two"))
    model = Model(f"run:{tmp_path}")
    assert training_data_of(model) is None
    assert training_data_of(Model("ViT-B-32", pretrained="x")) is None
    note_training_data(tmp_path, [shard.content_sha256 for shard in one.shards], model=model)
    assert seen_shards(training_data_of(model), one) == len(one.shards)
    assert seen_shards(training_data_of(model), two) == 0
    # A run that began with it has seen those shards too.
    later = tmp_path / "later"
    note_training_data(later, [shard.content_sha256 for shard in two.shards], model=model)
    for name in ("later", "later/model", "later/best"):
        seen = training_data_of(Model(f"run:{tmp_path / name}"))
        assert seen_shards(seen, one) == len(one.shards)
        assert seen_shards(seen, two) == len(two.shards)


RECIPE = """
from drrho import DRRhoCLIP, Loading, Model, Optimizer, OpenCLIP, Recipe, Training
recipe = Recipe(
    data={data!r}, output={output!r}, model=Model("small"), objective={objective},
    reference={reference!r}, loading=Loading(batch_size=16), device="cpu",
    training=Training(steps=2, optimizer=Optimizer(learning_rate=1e-3, warmup_steps=0)),
)
"""


def test_every_command_says_that_the_reference_has_seen_the_pairs(data, tmp_path, capsys):
    def recipe(name, *, reference, objective):
        file = tmp_path / f"{name}.py"
        text = RECIPE.format(
            data=str(data / "one"),
            output=str(tmp_path / name),
            reference=reference and str(tmp_path / reference),
            objective=objective,
        )
        file.write_text(text.replace("OpenCLIP, ", "CLIP, "))
        return str(file)

    clip = recipe("plain", reference=None, objective="CLIP()")
    assert main(["train", clip]) == 0
    stored = ["--data", str(data / "one"), "--output", str(tmp_path / "stored"), "--device", "cpu"]
    capsys.readouterr()
    assert main(["reference", "precompute", "--model", str(tmp_path / "plain"), *stored]) == 0
    sentence = "it was trained on 1 of the 1 shards"
    assert sentence in capsys.readouterr().out
    steered = recipe("steered", reference="stored", objective="DRRhoCLIP()")
    assert main(["train", steered, "--dry-run"]) == 0
    assert sentence in capsys.readouterr().out
    assert main(["train", steered]) == 0
    assert sentence in capsys.readouterr().err
    probe = ["probe", clip, "--reference", str(tmp_path / "plain"), "--pilot-steps", "2"]
    assert main([*probe, "--output", str(tmp_path / "probe")]) == 0
    assert sentence in capsys.readouterr().out
