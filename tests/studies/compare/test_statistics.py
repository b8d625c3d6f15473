"""Paired tests agree with the textbook's, and tables say which differences they tell from zero."""

from dataclasses import replace

import pytest
from scipy.stats import ttest_rel

from drrho.studies.compare.results import (
    Choice,
    MethodResults,
    ReferenceCost,
    ReferenceResults,
    Results,
    SeedResults,
    Setup,
    read_results,
    write_results,
)
from drrho.studies.compare.statistics import (
    holm,
    mean_interval,
    method_differences,
    paired_test,
    with_tests,
)
from drrho.studies.compare.tables import edges_of, explain, score_table

CLIP, STEERED = (0.10, 0.12, 0.11, 0.14), (0.19, 0.24, 0.21, 0.22)


def method(scores, *, references=()):
    runs = tuple(
        SeedResults(seed=seed, tests={"test": {"mrr": mrr}}) for seed, mrr in enumerate(scores)
    )
    return MethodResults(
        runs=runs,
        tests={"test": {"mrr": sum(scores) / len(scores)}},
        reference_cost=dict.fromkeys(references, ReferenceCost()),
    )


def comparison(primaries=(), **methods):
    both = {"clip": method(CLIP), "drrho_clip": method(STEERED, references=["weak"])}
    found = Results(
        setup=Setup(seeds=(0, 1, 2, 3), test={"test": "test.json"}, primaries=primaries),
        methods=methods or both,
        references={"weak": ReferenceResults(tests={"test": {"mrr": 0.15}})},
    )
    return with_tests(replace(found, differences=method_differences(found)))


def test_the_paired_test_is_that_of_scipy():
    expected = ttest_rel(STEERED, CLIP)
    found = paired_test([one - other for one, other in zip(STEERED, CLIP, strict=True)])
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((ends.low, ends.high))
    assert paired_test([0.1]) is None


def test_equal_differences_have_no_width():
    certain, none = paired_test([0.5, 0.5]), paired_test([0.0, 0.0])
    assert certain is not None
    assert none is not None
    assert (certain.p, none.p) == (0, 1)
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0])


def test_holm_steps_down_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_target_is_compared_with_its_reference():
    (row,) = comparison().from_references
    assert (row.method, row.minus, row.won) == ("drrho_clip", "weak", 4)
    assert row.mrr == pytest.approx(sum(STEERED) / 4 - 0.15)
    assert "DRRho-CLIP is ahead of the reference weak by" in explain(comparison())


def test_the_family_is_the_primaries_where_they_are_named():
    methods = {"clip": method(CLIP), "a": method(STEERED), "b": method(CLIP[::-1])}
    found = comparison((("a", "clip"),), **methods)
    paired = {(row.method, row.minus): row.paired for row in found.differences if row.paired}
    assert paired["a", "clip"].holm == paired["a", "clip"].p
    assert paired["b", "clip"].holm is paired["b", "a"].holm is None
    assert "not adjusted: no primary" in explain(found)
    rows = [row.paired for row in comparison(**methods).differences if row.paired]
    smallest = min(rows, key=lambda row: row.p)
    assert smallest.holm == pytest.approx(3 * smallest.p)


def test_an_unfinished_study_in_replicates_has_no_verdict():
    """Its primaries that are not there yet count in the correction."""
    found = comparison((("drrho_clip", "clip"), ("other", "clip"), ("more", "clip")))
    (row,) = found.differences
    assert row.paired is not None
    assert row.paired.holm == pytest.approx(3 * row.paired.p)
    begun = replace(found.setup, replicated=True, seeds=(0, 1, 2, 3, 4))
    assert "DRRho-CLIP is ahead of CLIP" in explain(found)
    text = explain(replace(found, setup=begun))
    assert "No verdict yet, DRRho-CLIP less CLIP: +0.0" in text
    assert "higher in 4 of 4 replicates" in text
    assert "ahead of CLIP" not in text


def test_what_does_not_survive_the_correction_is_no_lead():
    """p = 0.046 alone; beside it the same twice more, and the differences between the three."""
    scores, other = (0.10, 0.13, 0.11, 0.16), (0.09, 0.109, 0.105, 0.135)
    many = {"clip": method(other), **{name: method(scores) for name in "abc"}}
    assert "a is ahead of CLIP" in explain(comparison(clip=method(other), a=method(scores)))
    assert "a seems ahead of CLIP, but not after Holm's correction" in explain(comparison(**many))


def test_the_intervals_of_the_table_are_over_seeds_and_say_so():
    table = score_table("test", comparison())
    assert "95 % over seeds" in table.header({})
    assert table.rows["CLIP"][1] == pytest.approx(mean_interval(CLIP))
    one = comparison(clip=method(CLIP[:1]))
    alone = replace(one, setup=replace(one.setup, seeds=(0,)))
    assert "95 % over test images" in score_table("test", alone).header({})


def test_tests_are_kept_in_the_file(tmp_path):
    found = comparison((("drrho_clip", "weak"),))
    write_results(tmp_path / "results.json", found)
    assert read_results(tmp_path / "results.json") == found


RATE, SCALE = ("training.rate: 0.001 before, {} now", "objective.scale: 0.5 before, {} now")


@pytest.mark.parametrize(
    ("chosen", "edges"), [(0, ["rate"]), (1, []), (2, ["rate"]), (3, ["scale"]), (None, [])]
)
def test_a_choice_at_the_edge_of_its_grid_is_flagged(chosen, edges):
    """Rates 0.001, 0.002, 0.004, 0.002; scales 0.5, 0.5, 0.5, 0.7, of which 0.4 is the smallest."""
    settings = (
        (),
        (RATE.format(0.002), "name: 'a' before, 'b' now"),
        (RATE.format(0.004),),
        (RATE.format(0.002), SCALE.format(0.7)),
        (RATE.format(0.003), SCALE.format(0.4)),
    )
    assert edges_of(Choice(settings=settings, chosen=chosen, scores=(1,) * 5)) == edges
