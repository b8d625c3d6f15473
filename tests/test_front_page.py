"""What a user types, from top to bottom, on drawn scenes with a small model."""

from pathlib import Path

import pytest
import torch

import drrho
from drrho.data.scenes import ScenesConfig, write_scenes

FEWER = drrho.Loading(batch_size=32)
# Fewer negatives than its rho was chosen for, of which FastCLIP v3 warns.
pytestmark = pytest.mark.filterwarnings("ignore:rho = 11.0 cannot be reached")
TYPED = """
criterion = drrho.DRRhoLoss(drrho.CVaR(fraction=0.25))
result = criterion(losses, reference_losses); result.loss.backward()

loss = drrho.DRRhoCLIPLoss(num_samples=len(data), temperature=0.01)
loss(image, text, reference=(ref_image, ref_text), sample_ids=ids).backward()

recipe = drrho.Recipe(data="train.json", reference="reference", model=MODEL, loading=FEWER,
                      objective=drrho.DRRhoCLIP(temperature=0.01), output="runs/mine")
run = drrho.train(recipe)
model = drrho.load("runs/mine"); found = model.encode_text(["a lemon"])

print(drrho.probe("train.json", references=["reference", "other"], pilot_steps=2))
comparison = drrho.Comparison(
    methods=["openclip", "fastclip_v3", "drrho_clip"], seeds=2, recipe=recipe
)
results = drrho.compare(comparison)
page = drrho.report([run, results], output="report.html", galleries=False)
"""


def embeddings(number, dim):
    drawn = torch.randn(2, number, dim, generator=torch.Generator().manual_seed(dim))
    return drawn[0].requires_grad_(), drawn[1].requires_grad_()


@pytest.fixture(scope="module")
def typed(tmp_path_factory, few_resamples):
    """The names that the program leaves behind, run in a folder with 60 pairs."""
    from tests.small_runs import TINY  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("typed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_scenes(Path("scenes"), ScenesConfig(num_samples=60, seed=0))
        drrho.index("scenes", output="train.json")
        for name, seed in (("reference", 3), ("other", 1)):
            first = drrho.Recipe(
                data="train.json",
                model=TINY,
                loading=FEWER,
                objective=drrho.CLIP(),
                training=drrho.Training(steps=1),
                output=f"runs/{name}",
                seed=seed,
            )
            drrho.train(first)
            drrho.precompute_reference(data="train.json", model=f"run:runs/{name}", output=name)
        image, text = embeddings(7, 5)
        names = {
            "drrho": drrho,
            "MODEL": TINY,
            "FEWER": FEWER,
            "losses": torch.rand(8, requires_grad=True),
            "reference_losses": torch.rand(8),
            "data": range(7),
            "ids": torch.arange(7),
            "image": image,
            "text": text,
            "ref_image": embeddings(7, 3)[0],
            "ref_text": embeddings(7, 3)[1],
        }
        exec(TYPED, names)
        names["page"] = names["page"].read_text()
        names["written"] = Path("runs/mine-comparison/results.json").read_text()
        yield names


def test_losses_have_gradients(typed):
    assert typed["losses"].grad.abs().sum() > 0
    assert typed["image"].grad.isfinite().all()


def test_a_recipe_trains_with_the_defaults(typed):
    run = typed["run"]
    assert run.recipe.training.epochs == 10
    assert run.results.samples_seen == 10 * 32
    assert torch.equal(run.model.encode_text(["a lemon"]), typed["found"])


def test_methods_are_compared_by_name(typed):
    results = typed["results"]
    assert list(results.methods) == ["openclip", "fastclip_v3", "drrho_clip"]
    assert all([run.seed for run in m.runs] == [0, 1] for m in results.methods.values())
    assert results.setup.test_pairs == {"test": 60}
    assert results.folder == "runs/mine-comparison"
    assert '"folder"' not in typed["written"]


def test_the_page_is_about_the_run_and_the_comparison(typed):
    assert all(title in typed["page"] for title in ("OpenCLIP", "FastCLIP v3", "DRRho-CLIP"))


def test_methods_by_name_need_a_recipe_and_what_they_read():
    with pytest.raises(
        ValueError, match="give methods as name -> recipe, or their names and the recipe"
    ):
        drrho.Comparison(methods=["openclip"], output="out")
    recipe = drrho.Recipe(
        data="d", model=drrho.Model("small"), objective=drrho.CLIP(), output="runs/plain"
    )
    with pytest.raises(ValueError, match="method 'drrho_clip' needs a reference"):
        drrho.Comparison(methods=["openclip", "drrho_clip"], recipe=recipe)
    with pytest.raises(ValueError, match="no recipe is called 'opencip'"):
        drrho.Comparison(methods=["opencip"], recipe=recipe)
    assert (recipe.loading.batch_size, recipe.training.epochs) == (256, 10)
    compared = drrho.Comparison(methods=["openclip", "sogclr"], recipe=recipe, seeds=2)
    assert compared.output == "runs/plain-comparison"
    assert compared.all_seeds == (0, 1)
