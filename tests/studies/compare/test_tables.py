"""Tables and words say what the numbers say."""

from dataclasses import replace

import pytest

from drrho.studies.compare.plots import draw_differences
from drrho.studies.compare.results import (
    Cost,
    Difference,
    Gflop,
    MethodResults,
    PrecomputeCost,
    ReferenceCost,
    ReferenceResults,
    Results,
    SeedResults,
    Setup,
)
from drrho.studies.compare.statistics import shown_differences
from drrho.studies.compare.tables import comparison_table, explain


def scores(mrr):
    return {
        "mrr": mrr,
        "image_to_text/R@1": mrr / 2,
        "zero_shot/shape/top1": 0.5,
        "zero_shot/shape/mean_per_class_recall": 0.4,
        "images": 100.0,
    }


def method(mrr, *, seeds=(0,), references=()):
    cost = Cost(samples_seen=5000, forward_only=700, seconds=12.3, training_gflop=9.0)
    steered = ReferenceCost(precompute=PrecomputeCost(samples=40, seconds=1.0))
    return MethodResults(
        tests={"test": scores(mrr)},
        intervals={"test": (mrr - 0.05, mrr + 0.05)},
        cost=cost,
        gflop=Gflop(image=0.5, text=0.25),
        reference_cost=dict.fromkeys(references, steered),
        runs=tuple(
            SeedResults(seed=seed, tests={"test": scores(mrr)}, cost=cost) for seed in seeds
        ),
    )


SETUP = Setup(
    seeds=(0,),
    train={"clip": "noisy.json", "drrho_clip": "noisy.json"},
    test={"test": "test.json"},
    test_pairs={"test": 100},
)
RESULTS = Results(
    setup=SETUP,
    references={"reference": ReferenceResults(tests={"test": scores(0.7)}, data="clean.json")},
    methods={"clip": method(0.2), "drrho_clip": method(0.6, references=("reference",))},
)


def difference(low, high):
    return Difference(
        test="test",
        method="drrho_clip",
        minus="clip",
        won=1,
        seeds=(0,),
        mrr=(low + high) / 2,
        interval=(low, high),
    )


def test_the_table_has_a_row_for_each_model_and_aligned_columns():
    lines = comparison_table(RESULTS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "reference",
        "CLIP",
        "DRRho-CLIP",
    ]
    assert [cell.strip() for cell in lines[-1].split("|")[2:4]] == ["0.600", "0.550-0.650"]
    assert "i>t R@1" in lines[0]
    assert "mean_per_class" not in lines[0]


def test_what_guessing_reaches_stands_below_the_models():
    chance = {"test": {"mrr": 0.05, "image_to_text/R@1": 0.01, "zero_shot/shape/top1": 0.25}}
    results = replace(RESULTS, setup=replace(SETUP, chance=chance))
    last = comparison_table(results).splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells == ["guessing", "0.050", "", "0.010", "0.250"]
    assert "Guessing is the mean" in explain(results)
    assert "Guessing" not in explain(RESULTS)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "DRRho-CLIP is ahead of CLIP by 0.200"),
        (-0.3, -0.1, "DRRho-CLIP is behind CLIP by 0.200"),
        (-0.1, 0.2, "cannot be told apart"),
    ],
)
def test_words_follow_the_interval(low, high, verdict):
    text = explain(replace(RESULTS, differences=(difference(low, high),)))
    assert verdict in text
    assert f"{low:+.3f} to {high:+.3f}" in text
    assert "not how far another seed could" in text


def test_costs_are_told_beside_those_of_the_reference():
    header, _, plain, steered = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in explain(RESULTS).splitlines()
        if line.startswith("|")
    ]
    assert dict(zip(header, plain, strict=True))["reference: passes"] == ""
    assert dict(zip(header, steered, strict=True))["reference: passes"] == "40"
    assert dict(zip(header, steered, strict=True))["forward only"] == "700"
    assert dict(zip(header, steered, strict=True))["GFLOP a sample"] == "0.7500"


def test_a_live_reference_costs_in_every_run():
    live = replace(RESULTS.methods["drrho_clip"].cost, live_pairs=5000, live_seconds=2.0)
    methods = RESULTS.methods | {"drrho_clip": replace(method(0.6), cost=live)}
    header, _, _, steered = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in explain(replace(RESULTS, methods=methods)).splitlines()
        if line.startswith("|")
    ]
    cells = dict(zip(header, steered, strict=True))
    assert cells["reference: passes"] == "5,000 in a run"
    assert cells["seconds of them"] == "2.0 in a run"


def test_what_failed_and_what_is_missing_is_said():
    damaged = replace(method(0.2), failed={1: "loss = nan"}, missing=(2,))
    setup = replace(SETUP, seeds=(0, 1, 2))
    results = replace(RESULTS, methods={"clip": damaged}, setup=setup)
    assert "CLIP, seed 1, failed: loss = nan" in explain(results)
    assert "Not finished: CLIP seed 2." in explain(results)
    assert "CLIP (1 of 3 seeds)" in comparison_table(results)


def test_of_many_methods_the_first_finished_one_is_what_others_are_compared_with(tmp_path):
    """A comparison may be interrupted before its first method has a run."""
    names = ["absent", "drrho_clip", *"abcde"]
    methods = {name: method(0.2, seeds=() if name == "absent" else (0,)) for name in names}
    told = replace(difference(0.1, 0.2), method="a", minus="drrho_clip")
    other = replace(difference(0.1, 0.2), method="b", minus="a")
    results = replace(RESULTS, methods=methods, differences=(told, other))
    assert shown_differences(results, "test") == [told]
    draw_differences(replace(results, differences=(other,)), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    draw_differences(results, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1_000


def test_words_list_the_seeds_where_there_are_several():
    methods = {"clip": method(0.1, seeds=(0, 1))}
    text = explain(replace(RESULTS, methods=methods, setup=replace(SETUP, seeds=(0, 1))))
    assert "MRR by seed: CLIP 0.100, 0.100." in text
    assert "Student's t over the seeds" in text


def test_a_set_without_captions_has_its_accuracies_by_seed():
    accuracies = {"zero_shot/sky/top1": 0.25, "zero_shot/sky/top5": 0.75}
    measured = method(0.1, seeds=(0, 1))
    runs = tuple(replace(run, tests={**run.tests, "sky": accuracies}) for run in measured.runs)
    measured = replace(measured, tests={**measured.tests, "sky": accuracies}, runs=runs)
    setup = replace(SETUP, seeds=(0, 1), test={"test": "test", "sky": "sky"})
    results = Results(methods={"clip": measured}, setup=setup)
    _, of_sky = comparison_table(results).split("**sky**")
    header, _, row = of_sky.strip().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["", "sky"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["CLIP", "0.250"]
    text = explain(results)
    assert "MRR by seed on test: CLIP 0.100, 0.100." in text
    assert "Accuracy (sky) by seed on sky: CLIP 0.250, 0.250." in text
