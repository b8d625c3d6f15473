"""Replicates draw anew what their function draws; settings are chosen on another replicate."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.small_runs import draw_no_pictures

from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.models.build import Model
from drrho.recipe.document import read_run_results
from drrho.runtime.files import write_json
from drrho.runtime.records import read_json_object
from drrho.studies.compare.compare import CompareConfig, compare, run_comparison
from drrho.studies.compare.replicates import Replicates, replicated_results
from drrho.studies.compare.results import read_results
from drrho.studies.compare.runs import FAILURE_FILE, chosen_setting, finished
from drrho.studies.compare.spec import Comparison, TuningConfig, model_of_run
from drrho.training.config import Training
from drrho.training.optimizer import Optimizer

pytestmark = pytest.mark.usefixtures("few_resamples")

PRIMARIES = (("steered", "plain"), ("steered", "weak"))


@pytest.fixture
def study(plain_recipe, scenes, tmp_path):
    """Two replicates; `prepared` in the folder lists those whose data were drawn."""
    log = tmp_path / "prepared"

    def prepare(number):
        with log.open("a") as file:
            file.write(f"{number} ")

    def comparison(number):
        def at(rate, **changes):
            training = Training(
                steps=2,
                optimizer=Optimizer(learning_rate=rate),
                keep_best="evaluation/mrr",
            )
            plain = replace(plain_recipe, training=training, objective=FastCLIP())
            data = replace(plain.evaluation, data=str(scenes / "train"))
            return replace(plain, evaluation=data, **changes)

        def both(**changes):
            return at(1e-3, **changes), at(2e-3, **changes)

        return Comparison(
            output="unused",
            references={"weak": at(1e-3, seed=70 + number)},
            methods={
                "plain": both(),
                "steered": both(
                    objective=DRRhoCLIP(), reference="weak", model=Model(name="reference:weak")
                ),
            },
            test=str(scenes / "test"),
            tuning=TuningConfig(seed=8, runs=2),
            threads=1,
        )

    return Replicates(
        output=str(tmp_path / "out"),
        comparison=comparison,
        replicates=2,
        primaries=PRIMARIES,
        prepare=prepare,
    )


def test_a_study_in_replicates(study, tmp_path, monkeypatch):
    """Each replicate has its reference, none chooses its settings; a part of it runs first."""
    out = Path(study.output)
    with monkeypatch.context() as patch:
        draw_no_pictures(patch)
        run_comparison(study, CompareConfig(only=("steered:1",)))
    assert "steered (1 of 2 replicates)" in (out / "results.md").read_text()
    assert set(read_results(out / "results.json").methods["plain"].missing) == {0, 1}
    compare(study)
    assert sorted((tmp_path / "prepared").read_text().split()) == ["0", "1", "8", "9"]
    assert not list(out.glob("replicate-[01]/tuning"))
    runs = [
        read_run_results(out / f"replicate-{number}" / "references" / "weak" / "run")
        for number in (0, 1)
    ]
    assert [run.recipe.seed for run in runs if run] == [70, 71]

    results = read_results(out / "results.json")
    assert results.setup.replicated
    assert results.setup.seeds == (0, 1)
    assert [run.seed for run in results.references["weak"].runs] == [0, 1]
    (over_plain,), (over_weak,) = results.differences, results.from_references
    for row, pair in zip((over_plain, over_weak), PRIMARIES, strict=True):
        assert (row.method, row.minus) == pair
        assert row.paired is not None
        assert row.paired.holm is not None
    choices = [method.choice for method in results.methods.values()]
    assert all(choice and choice.chosen is not None for choice in choices)
    text = (out / "results.md").read_text()
    assert "95 % over replicates" in text
    assert "the 2 primaries" in text
    assert (out / "differences.png").is_file()

    # The folder was moved: an arm that starts from its reference is still finished.
    moved = replace(study, output=str(out.rename(tmp_path / "elsewhere")))
    assert all(replicated_results(moved).methods[name].missing == () for name in results.methods)
    part = moved.parts[1]
    other = replace(moved.of(0).run_recipe(part), model=Model(name=f"run:{tmp_path}/other"))
    assert finished(moved.of(0).run_recipe(part)) is not None
    assert finished(other) is None

    # Settings are judged by the best model of a run that keeps it, which is what is scored; by its
    # mean over the replicates that choose.
    for number, value in ((8, 2.0), (9, 5.0)):
        folder = Path(moved.output) / f"replicate-{number}" / "tuning" / "plain-setting0"
        best = folder / "best" / "best.json"
        write_json(best, read_json_object(best) | {"value": value})
    chosen = chosen_setting(moved.of(0), "plain")
    assert chosen is not None
    assert (chosen.setting, chosen.scores[0]) == (0, 3.5)

    # One of its runs failed: it is not taken, however good the other is.
    (folder / "results.json").unlink()
    assert chosen_setting(moved.of(0), "plain") is None  # it may still come
    write_json(folder / FAILURE_FILE, {"reason": "loss is not finite", "diverged": True})
    chosen = chosen_setting(moved.of(0), "plain")
    assert chosen is not None
    assert (chosen.setting, chosen.scores[0]) == (1, None)


def test_a_method_starts_from_its_reference(study):
    started = study.of(0).run_recipe(study.parts[1])
    assert started.model.name == f"run:{study.output}/replicate-0/references/weak/run/best"


def test_the_last_model_is_judged_where_none_is_kept_as_the_best(study):
    recipe = study.of(0).run_recipe(study.parts[0])
    assert model_of_run(recipe).name == f"run:{recipe.output}/best"
    last = replace(recipe, training=replace(recipe.training, keep_best=None))
    assert model_of_run(last).name == f"run:{recipe.output}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicates": (0, 0)}, "differ from each other"),
        ({"replicates": 0}, "differ from each other"),
        ({"replicates": (9,)}, "replicate 9 would choose settings and be reported"),
        ({"output": ""}, "need output"),
        ({"primaries": (("plain", "other"),)}, "the primary 'plain' over 'other'"),
        ({"primaries": (("plain", "plain"),)}, "different pairs"),
    ],
)
def test_what_makes_no_study_is_refused(study, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(study, **changes)
