"""Every example runs, shortened, and shows what it is there to show."""

import importlib.util
import io
import json
import re
import statistics
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
EUROSAT = ROOT.parent / "shared" / "data" / "classification" / "eurosat"


def load(name):
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


classification, regression, your_own_loop = map(
    load, ("classification", "regression", "your_own_loop")
)


def test_the_readme_gives_the_command_of_every_example():
    commands = re.findall(r"python examples/(\w+)\.py", (EXAMPLES / "README.md").read_text())
    assert set(commands) == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("example", [classification, regression, your_own_loop])
def test_one_seed_has_no_interval(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--seeds", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_on_digits_the_reference_turns_the_weight_away_from_wrong_labels(tmp_path, capsys):
    arguments = ["--seeds", "2", "--steps", "40", "--output", str(tmp_path)]
    results = classification.main(arguments)
    assert results.keys() == {"reference", *classification.METHODS}
    assert all(len(result) == 2 for result in results.values())
    assert_weight_turns_away(results)
    assert mean_of(results, "DRRho, KL", "accuracy") > 0.5
    assert json.loads((tmp_path / "results.json").read_text()) == results
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "results.md").read_text(encoding="utf-8")
    # Again: everything is there, and nothing is trained.
    assert classification.main(arguments) == results
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not EUROSAT.exists(), reason=f"no images in {EUROSAT}")
def test_on_photographs_the_reference_turns_the_weight_away_from_wrong_labels(monkeypatch):
    names = ("plain", "DRO, KL", "RHO-LOSS", "DRRho, KL", "union")
    few = {name: classification.METHODS[name] for name in names}
    monkeypatch.setattr(classification, "METHODS", few)
    results = classification.main(["--seeds", "2", "--steps", "60", "--data", str(EUROSAT)])
    assert_weight_turns_away(results)


def mean_of(results, name, number):
    return statistics.fmean(result[number] for result in results[name])


def assert_weight_turns_away(results):
    names = [name for name in results if name != "reference"]
    on_wrong = {name: mean_of(results, name, "weight on wrong") for name in names}
    # 40 % are replaced, a tenth of which by the true label.
    assert on_wrong["plain"] == pytest.approx(0.36, abs=0.03)
    assert on_wrong["union"] < on_wrong["plain"]
    steered = max(on_wrong[name] for name in names if name.startswith(("RHO", "DRRho")))
    raw = min(on_wrong[name] for name in names if name.startswith("DRO"))
    assert steered + 0.03 < on_wrong["plain"] < raw


def test_the_samples_of_reference_validation_and_target_are_different():
    n = 900
    numbered = classification.Samples(
        torch.arange(n)[:, None, None, None].expand(n, 1, 8, 8) / n, torch.arange(n) % 10
    )
    noisy, both = classification.prepare(numbered, seed=0, steps=20)

    def numbers(samples):
        return set((samples.inputs[:, 0, 0, 0] * n).round().int().tolist())

    clean = numbers(both.train) - numbers(noisy.train)
    assert len(clean) == len(numbers(noisy.validation)) == 200
    assert not numbers(both.train) & numbers(noisy.validation)
    assert numbers(both.train) | numbers(noisy.validation) == set(range(n))
    true = (noisy.train.inputs[:, 0, 0, 0] * n).round().int() % 10
    assert torch.equal(noisy.train.labels != true, noisy.wrong)


def test_the_reference_s_predictions_are_of_its_own_samples_too():
    samples, _ = classification.digits()
    noisy, both = classification.prepare(samples, seed=0, steps=40)
    n = len(noisy.wrong)
    with torch.no_grad():
        assert_close(both.reference(both.train.inputs), both.predictions)
    assert torch.equal(both.predictions[:n], noisy.predictions)
    every = torch.arange(len(both.wrong))
    losses = classification.losses_of(both.reference, both.train)
    assert_close(both.reference_losses(every), losses)
    # Labels that are all the reference's are distillation without labels.
    with torch.no_grad():
        alone = classification.taught_losses(both.reference, both, every, share=1.0)
    p = both.predictions.softmax(dim=1)
    assert_close(alone, -(p * p.log()).sum(dim=1))


def test_starting_from_the_reference_begins_with_its_weights():
    samples, _ = classification.digits()
    noisy, _ = classification.prepare(samples, seed=0, steps=40)
    still = classification.Setting(0.0)
    for name, same in (("start from reference", True), ("plain", False)):
        method = classification.METHODS[name]
        model, _ = classification.train(noisy, method, still, seed=1, steps=20)
        weights, reference = model.state_dict(), noisy.reference.state_dict()
        assert same == all(torch.equal(weights[name], reference[name]) for name in weights)


def test_tuning_looks_at_validation_alone_and_says_what_is_at_an_edge(monkeypatch, capsys):
    few = {
        "plain": classification.METHODS["plain"],
        "DRO, CVaR": classification.METHODS["DRO, CVaR"]._replace(rates=(2e-3,)),
    }
    monkeypatch.setattr(classification, "METHODS", few)
    monkeypatch.setattr(classification, "MORE_RATES", (1e-3, 2e-3))
    monkeypatch.setattr(classification, "TUNING_SEEDS", (100, 101))
    samples, test = classification.digits()
    monkeypatch.setattr(classification, "digits", lambda: (samples, test._replace(labels=None)))
    results = classification.main(["--tune", "--steps", "20"])
    assert len(results) == 1 + 2 + 3
    for found in results.values():
        hits = 200 * torch.tensor([one["accuracy"] for one in found], dtype=torch.float64)
        assert_close(hits, hits.round())
    plain = next(line for line in capsys.readouterr().out.splitlines() if "plain" in line)
    assert "rate" in plain  # with two rates either is at an edge
    # Nine candidates for every method.
    assert {len(method.candidates()) for method in load("classification").METHODS.values()} == {9}


def test_images_and_labels_of_tar_files_keep_together(tmp_path):
    for shard, members in enumerate([("jpg", 3), ("png", 7)]):
        suffix, label = members
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            image = io.BytesIO()
            Image.new("RGB", (40, 30), (10 * label, 0, 0)).save(
                image, {"jpg": "jpeg"}.get(suffix, suffix)
            )
            for name, content in {
                f"0000.{suffix}": image.getvalue(),
                "0000.cls": b"%d" % label,
            }.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    samples = classification.read_images(tmp_path)
    assert samples.labels.tolist() == [3, 7]
    assert samples.inputs.shape == (2, 3, 16, 16)
    red = samples.inputs[:, 0].mean(dim=(1, 2)) * 255
    assert_close(red, torch.tensor([30.0, 70.0]), atol=2, rtol=0)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .tar files"):
        classification.read_images(tmp_path)


def test_regression_finds_what_theory_predicts(tmp_path):
    found = regression.main(["--seeds", "60", "--output", str(tmp_path)])
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == {name: [list(one) for one in row] for name, row in found.items()}
    best = regression.STRENGTHS.index(1.0)
    for family in ("KL", "chi-square"):
        steered, predicted, raw = (
            found[name][best].value
            for name in (f"DRRho, {family}", f"DRRho, {family}, predicted", f"DRO, {family}")
        )
        assert steered == pytest.approx(predicted, rel=0.15)
        assert steered < 0.85 < 1 < raw
        everywhere = [estimate.value for estimate in found[f"DRRho, {family}"]]
        assert steered == min(everywhere)
    assert predicted == pytest.approx(379 / 179 / (1 + 379 / 179))


def test_regression_refuses_too_few_samples(capsys):
    with pytest.raises(SystemExit):
        regression.main(["--samples", "20"])
    assert "needs 22 samples" in capsys.readouterr().err


def test_your_own_loop_compares_its_methods(tmp_path, monkeypatch):
    monkeypatch.setattr(your_own_loop, "MICRO_BATCH", 32)  # still more than one for a batch
    found = your_own_loop.main(["--seeds", "2", "--epochs", "8", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text()) == found
    mean = {name: statistics.fmean(accuracies) for name, accuracies in found.items()}
    assert mean["DRRho"] > mean["DRO"]
    assert mean["DRRho"] > mean["reference"]


def test_your_own_loop_continues_as_if_never_interrupted(tmp_path):
    data = your_own_loop.draw_task(0).train
    reference_losses = torch.rand(len(data), generator=torch.Generator().manual_seed(1))

    def trained(*epochs, checkpoint=None):
        for until in epochs:
            torch.manual_seed(2)
            model = nn.Linear(your_own_loop.DIMENSIONS, your_own_loop.CLASSES)
            loss = your_own_loop.averaged_kl(temperature=1.0)
            batches = your_own_loop.batches_of(data, 64, seed=3)
            your_own_loop.train(
                model, batches, loss, reference_losses, epochs=until, checkpoint=checkpoint
            )
        return model.state_dict() | loss.state_dict()

    at_once = trained(3)
    assert_close(trained(1, 3, checkpoint=tmp_path / "model.pt"), at_once, atol=0, rtol=0)
    different = trained(1)
    assert any(not torch.equal(different[name], value) for name, value in at_once.items())
