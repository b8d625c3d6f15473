"""The numbers of clip_benchmark, from its own code on the same folders."""

import json
import warnings

import numpy as np
import pytest
from tests.data.tar_files import write_shard
from torch.utils.data import DataLoader

from drrho.data.scenes import ScenesConfig, scene_samples, zero_shot_tasks
from drrho.encoding.encoder import EmbeddingModel
from drrho.encoding.shared import Encoder
from drrho.evaluation.sets import open_evaluation_set
from drrho.evaluation.tasks.scores import score_task
from drrho.evaluation.tasks.task import ListedTask
from drrho.models.build import Model, build_model
from drrho.models.small import SmallConfig
from drrho.runtime.torchvision import import_torchvision

for needed in ("clip_benchmark", "webdataset"):
    reason = "pip install --no-deps clip-benchmark webdataset braceexpand"
    pytest.importorskip(needed, reason=reason)
import_torchvision()
builder = pytest.importorskip("clip_benchmark.datasets.builder")
classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
COUNT = 40


@pytest.fixture(scope="module")
def model():
    small = SmallConfig(embed_dim=8, image_width=2, text_width=8, text_layers=1, text_heads=1)
    two_tower = build_model(Model(name="small", small=small), seed=0)
    two_tower.module.eval()
    return two_tower


@pytest.fixture(scope="module")
def scenes():
    return list(scene_samples(ScenesConfig(num_samples=COUNT, seed=0)))


def write(folder, samples, files):
    """Two shards in clip_benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    half = len(samples) // 2
    for number, part in enumerate((samples[:half], samples[half:])):
        write_shard(folder / "test" / f"{number}.tar", part, first_key=number * half)
    for name, text in {"test/nshards.txt": "2\n", **files}.items():
        (folder / name).write_text(text)
    return folder


def ours(model, folder, task):
    encoder = Encoder(model=EmbeddingModel(model, device="cpu"), batch_size=7)
    return score_task(encoder, open_evaluation_set(folder), task)["metrics"]


def loader(model, folder, *, collate=None):
    dataset = builder.build_wds_dataset("", model.eval_transform, data_dir=str(folder))
    return dataset, DataLoader(dataset, batch_size=16, collate_fn=collate)


def test_classification(model, scenes, tmp_path, monkeypatch):
    # It takes arrays of one number for numbers, which NumPy 2.4 refuses.
    monkeypatch.setattr(classification, "float", lambda array: array.item(), raising=False)
    task = zero_shot_tasks()["shape"]
    names = task["class_names"]
    samples = []
    for scene in scenes:
        label = names.index(json.loads(scene["json"])[task["field"]])
        samples.append({"jpg": scene["jpg"], "cls": str(label).encode()})
    templates = "a picture of a {c}.\n{c}\n"
    folder = write(
        tmp_path / "shapes",
        samples,
        {
            "classnames.txt": "\n".join(names) + "\n",
            "zeroshot_classification_templates.txt": templates,
        },
    )
    found = ours(model, folder, ListedTask(key="shapes", name="shapes"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset, batches = loader(model, folder)
        expected = classification.evaluate(
            model.module,
            batches,
            model.tokenizer,
            dataset.classes,
            dataset.templates,
            "cpu",
            amp=False,
        )
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert found["main_metric"] == found["acc1"]


def test_retrieval_with_several_captions(model, scenes, tmp_path):
    generator = np.random.default_rng(0)
    samples = []
    for number, scene in enumerate(scenes):
        lines = [scene["txt"]]
        lines += [f"number {number} {generator.integers(9)}"] * (number % 3 > 0)
        samples.append({"jpg": scene["jpg"], "txt": "\n".join(lines).encode()})
    folder = write(tmp_path / "pairs", samples, {"dataset_type.txt": "retrieval\n"})
    task = ListedTask(key="pairs", name="pairs", main_metric="mean_recall@1")
    found = ours(model, folder, task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, batches = loader(model, folder, collate=builder.image_captions_collate_fn)
        expected = retrieval.evaluate(
            model.module, batches, model.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
        )
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert 0 < found["text_retrieval_recall@10"] < 1
