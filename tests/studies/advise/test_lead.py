"""The lead of a reference: its formula, what it chooses among, and advice that rests on it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import drrho
from drrho.contrastive.memory.temperature import Learned
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.global_risk import FastCLIP
from drrho.evaluation.metrics.interval import Interval
from drrho.models.build import Model
from drrho.recipe.recipe import Evaluation, Recipe, load_recipe
from drrho.recipe.train import train_recipe
from drrho.runtime.records import read_record
from drrho.studies.advise import running
from drrho.studies.advise.advise import advise
from drrho.studies.advise.arms import PLAIN, Arm
from drrho.studies.advise.config import AdviseConfig
from drrho.studies.advise.lead import LEVELS, Lead, choose_by_lead, expected_lead, level_of
from drrho.studies.advise.pilot import why_doubtful
from drrho.studies.advise.results import AdviceResults
from drrho.studies.advise.running import steps_taken
from drrho.studies.advise.sentences import recommendation_by_lead

SHARES = st.floats(0.01, 0.99)
RECIPE = Recipe(
    output="run",
    data="train.json",
    model=Model(name="small"),
    objective=FastCLIP(temperature=0.07),
)


@given(SHARES, SHARES, SHARES)
def test_the_lead_is_a_ratio_of_odds_at_the_end(reference, plain, share):
    lead = expected_lead(reference=reference, plain=plain, share=share)
    end = plain / (1 - plain) / share ** (1 / 3)
    assert lead == pytest.approx(reference / (1 - reference) / end)
    assert expected_lead(reference=plain, plain=plain, share=1) == pytest.approx(1)
    assert lead <= expected_lead(reference=reference, plain=plain, share=1), "plain still grows"


def test_ends_of_the_lead():
    assert expected_lead(reference=0.5, plain=1.0, share=0.5) == 0, "nothing is left to gain"
    assert expected_lead(reference=1.0, plain=0.5, share=0.5) == float("inf")
    assert expected_lead(reference=1.0, plain=1.0, share=0.5) == 0
    for wrong in ({"reference": 0.0}, {"plain": 1.2}, {"share": 0.0}):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            expected_lead(**({"reference": 0.5, "plain": 0.5, "share": 0.5} | wrong))


def test_levels_rise_with_the_lead():
    leads = [0.0, 0.2499, 0.25, 0.6499, 0.65, 1.4999, 1.5, float("inf")]
    assert [level_of(lead) for lead in leads] == [
        *["none"] * 2,
        *["a little"] * 2,
        *["half"] * 2,
        *["all"] * 2,
    ]
    assert [least for least, _ in LEVELS] == sorted(least for least, _ in LEVELS)


def arm(name, use, amount, *, reference="a", possible=True):
    return Arm(
        name=name,
        title=name,
        use=use,
        reference=None if use == "plain" else reference,
        recipe=RECIPE if possible else None,
        amount=amount,
    )


def lead(value, *, low=0.1):
    return Lead(
        reference=Interval(mean=0.2, low=low, high=0.3),
        held_out=True,
        guessing=0.04,
        plain=0.1,
        share=0.25,
        lead=value,
        seen=False,
    )


def test_a_lead_chooses_what_is_there():
    steered = [arm(f"steer-{s:g}", "steer", s) for s in (0.2, 0.5, 1.0)]
    distilled = [arm(f"distil-{w:g}", "distil", w) for w in (0.3, 1.0)]
    both = arm("both", "both", 0.5)
    arms = [arm(PLAIN, "plain", None), arm("filter-0.5", "filter", 0.5), *steered, *distilled, both]

    def chosen(value, arms):
        return choose_by_lead(arms, {"a": lead(value)}, plain=PLAIN)[0]

    every = (0.1, 0.4, 1.0, 3.0)
    assert [chosen(v, arms) for v in every] == [PLAIN, "steer-0.2", "steer-0.5", "both"]
    impossible = [replace(it, recipe=None) for it in (*steered, both)]
    left = [arms[0], *distilled, *impossible]
    assert [chosen(v, left) for v in every] == [PLAIN, "distil-0.3", "distil-0.3", "distil-1"]
    nearest = [arms[0], arm("steer-0.1", "steer", 0.1), arm("steer-2", "steer", 2.0)]
    assert [chosen(v, nearest) for v in every] == [PLAIN, "steer-0.1", "steer-0.1", "steer-0.1"]


def test_the_reference_with_the_largest_lead_is_taken():
    arms = [
        arm(PLAIN, "plain", None),
        *(arm(f"steer-0.5-{name}", "steer", 0.5, reference=name) for name in ("a", "b")),
    ]
    leads = {"a": lead(0.7), "b": lead(1.2)}
    assert choose_by_lead(arms, leads, plain=PLAIN) == ("steer-0.5-b", "b")


def test_a_reference_near_guessing_is_left_alone():
    arms = [arm(PLAIN, "plain", None), arm("steer-0.5", "steer", 0.5)]
    near, clear = lead(3.0, low=0.08), lead(0.7, low=0.081)
    assert choose_by_lead(arms, {"a": near}, plain=PLAIN) == (PLAIN, "a")
    words = recommendation_by_lead("plain training", "a", near, step=(10, 40))
    assert words.endswith("near guessing (0.040), and it is left alone.")
    assert choose_by_lead(arms, {"b": near, "a": clear}, plain=PLAIN) == ("steer-0.5", "a")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.1, "of 0 to 0.25"), (0.65, "of 0.65 to 1.5"), (1.5, "from 1.5 on"), (9.0, "from 1.5 on")],
)
def test_the_sentence_says_which_level_it_is(value, words):
    said = recommendation_by_lead("steer", "a", lead(value), step=(10, 40))
    assert said.startswith("Recommended: steer. The MRR of a on the held-out pairs is 0.200")
    assert f"{value:.2f} times those" in said
    assert f"a lead {words} recommends this." in said


def test_what_makes_a_lead_doubtful_is_said():
    fine = lead(1.0)
    assert why_doubtful({"a": fine}, plain_low=0.1, guessing=0.05) == []
    doubts = why_doubtful(
        {"b": replace(fine, held_out=False), "c": replace(fine, seen=True)},
        plain_low=0.04,
        guessing=0.05,
    )
    for doubt, words in zip(doubts, ("b was", "c was", "(0.050)"), strict=True):
        assert words in doubt


@pytest.fixture(scope="module")
def planned(plain_recipe):
    """Twelve steps of FastCLIP, as a user would plan them."""
    training = replace(plain_recipe.training, steps=12, log_every=4, evaluate_every=None)
    objective = FastCLIP(temperature=0.07, gamma_min=0.5)
    return replace(plain_recipe, training=training, objective=objective, output="runs/planned")


def config(folder, reference, **options):
    given = {"reference": (str(reference),), "output": str(folder), "budget": 0.25}
    return AdviseConfig(**(given | options))


@pytest.fixture(scope="module")
def wider(plain_recipe, tmp_path_factory):
    """Folder of the run of a reference that has more dimensions than the recipe's model."""
    folder = tmp_path_factory.mktemp("wider") / "run"
    small = replace(plain_recipe.model.small, embed_dim=16)
    model = replace(plain_recipe.model, small=small)
    train_recipe(replace(plain_recipe, model=model, output=str(folder), seed=9))
    return folder


@pytest.fixture(scope="module")
def advised(planned, wider, tmp_path_factory):
    """Advice on a reference of another architecture."""
    folder = tmp_path_factory.mktemp("advised") / "advice"
    return folder, advise(planned, config(folder, wider))


def test_plain_training_alone_is_begun(advised):
    folder, results = advised
    assert results.decided_by == "lead", "the default, where nothing has a head start"
    assert {name: arm.steps for name, arm in results.arms.items() if arm.steps} == {PLAIN: 3}
    assert results.spent.steps == results.budget_steps == 3
    assert not (folder / "steer-1").exists()
    assert results == read_record(folder / "advice.json", AdviceResults)
    ((name, found),) = results.references.items()
    ranks = results.rungs[0].mrr[PLAIN]
    assert found.lead.held_out
    assert found.lead.plain == ranks.mean
    assert found.lead.lead == pytest.approx(
        expected_lead(reference=found.lead.reference.mean, plain=ranks.mean, share=0.25)
    )
    text = str(results)
    assert "Not possible: start from the reference: the reference has another archit" in text
    assert f"The MRR of {name} on the held-out pairs is {found.lead.reference}" in text
    assert found.lead.guessing == results.guessing
    assert "The pilot took 3 steps, 25% of the 12" in text
    assert (folder / "advice.png").stat().st_size > 1000


def test_the_reference_is_scored_as_arms_are(advised, planned, wider):
    """The reference's run, evaluated by the command for it on the same pairs."""
    ((_, found),) = advised[1].references.items()
    data = planned.evaluation.data
    (scores,) = drrho.evaluate(str(wider), data=(data,)).values()
    assert found.lead.reference.mean == pytest.approx(scores["mrr"], abs=1e-5)


def test_the_recommended_run_is_an_ordinary_one(advised, tmp_path):
    folder, results = advised
    recipe = load_recipe(folder / "recipe.py", Recipe)
    assert recipe.output == results.arms[results.recommended].run
    train_recipe(replace(recipe, output=str(tmp_path / "run")))
    assert steps_taken(replace(recipe, output=str(tmp_path / "run"))) == 12


def test_a_pilot_that_is_done_is_read(advised, planned, wider, monkeypatch):
    folder, results = advised
    monkeypatch.setattr(running, "train_beginning", None)
    again = advise(planned, config(folder, wider))
    assert again is not None
    assert (again.rungs, again.recommended) == (results.rungs, results.recommended)
    with pytest.raises(ValueError, match="decide_by: auto before, lead now"):
        advise(planned, config(folder, wider, decide_by="lead"))


def test_the_page_shows_the_pilot(advised, tmp_path):
    folder, results = advised
    page = drrho.report(str(folder), output=str(tmp_path / "page.html"), galleries=False)
    assert results.sentence in page.read_text("utf-8")


def test_stored_embeddings_are_judged_on_training_pairs(planned, reference, tmp_path):
    recipe = replace(planned, evaluation=Evaluation())
    results = advise(recipe, config(tmp_path / "advice", reference))
    assert results is not None
    assert results.decided_by == "lead", "nothing has a head start, and steering is possible"
    ((name, found),) = results.references.items()
    assert found.lead is not None
    assert not found.lead.held_out
    assert any(note.startswith(f"{name} was judged on training pairs") for note in results.notes)


@pytest.mark.parametrize(
    ("options", "by_lead"),
    [
        ({}, False),
        ({"uses": ("filter",)}, False),
        ({"uses": ("steer", "filter")}, True),
        ({"uses": ("start", "steer")}, False),
        ({"uses": ("steer",), "decide_by": "race"}, False),
        ({"uses": ("start", "steer"), "decide_by": "lead"}, True),
    ],
)
def test_what_decides(planned, reference, tmp_path, capsys, options, by_lead):
    model = reference.parent / "run"
    asked = config(tmp_path / "advice", model, dry_run=True, **({"budget": 4.0} | options))
    assert advise(planned, asked) is None
    said = capsys.readouterr().err
    assert ("plain training is begun, 12 steps, 100% of a whole run" in said) is by_lead
    assert (" arms are raced:" in said) is not by_lead


def test_a_lead_that_can_recommend_nothing_is_refused(planned, reference, tmp_path):
    recipe = replace(planned, objective=CLIP(temperature=Learned()))
    asked = {"decide_by": "lead", "uses": ("steer", "filter")}
    with pytest.raises(ValueError, match="none of these uses can be trained; race the others"):
        advise(recipe, config(tmp_path / "advice", reference.parent / "run", **asked))
