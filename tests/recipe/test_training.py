"""A recipe trains, resumes bitwise, and refuses what does not fit before the first step."""

import gc
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.processes import Process, until
from torch.nn.functional import normalize
from torch.testing import assert_close

from drrho.contrastive.memory.temperature import Constant, Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation, DistillationTerm
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import ContrastiveObjective
from drrho.contrastive.objectives.siglip import SigLIP
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.data.batch import Batch
from drrho.data.index import IndexConfig, write_manifest
from drrho.data.scenes import ScenesConfig, write_scenes
from drrho.data.views import Views
from drrho.recipe.batches import SteeredBatch
from drrho.recipe.document import read_run_results
from drrho.recipe.recipe import Evaluation
from drrho.recipe.selection import Selection
from drrho.recipe.step import ContrastiveStep, Towers
from drrho.recipe.train import train_recipe
from drrho.reference.build import PrecomputeConfig, precompute_reference
from drrho.reference.store import ReferenceStore
from drrho.runtime.errors import CheckpointError
from drrho.runtime.files import write_atomically
from drrho.runtime.locks import exclusive
from drrho.training.checkpoint import list_checkpoints
from drrho.training.log import read_metrics
from drrho.training.schedules import constant
from drrho.training.tensor_files import read_tensors


def files_of(run):
    """What a run leaves behind that must not depend on interruptions."""
    rows = [
        {k: v for k, v in row.items() if k != "seconds" and not k.startswith("time/")}
        for row in read_metrics(run)
    ]
    return rows, (run / "model" / "open_clip_model.safetensors").read_bytes()


def test_a_steered_run_reports_what_was_asked_for(steered_recipe, tmp_path):
    results = train_recipe(replace(steered_recipe, output=str(tmp_path)))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    wanted = {
        *("loss", "loss_mean", "loss_variance", "excess_loss_mean", "excess_loss_variance"),
        *("effective_sample_size", "weights_kl", "saturated_anchors", "gamma", "learning_rate"),
    }
    assert all(wanted <= row.keys() for row in rows)
    assert [("evaluation/mrr" in row) for row in rows] == [False, False, True, False, False, True]
    assert rows[0]["gamma"] == 1.0
    assert rows[-1]["gamma"] == 0.5
    assert results.samples_seen == 48
    assert results.metrics["evaluation/zero_shot/shape/top1"] >= 0
    assert results.reference["architecture"].startswith("small")
    assert read_run_results(tmp_path) == results
    assert list((tmp_path / "tensorboard").iterdir())


def test_killed_and_continued_is_uninterrupted(steered_recipe, tmp_path):
    """SIGKILL after the first checkpoint; the second call of the same recipe finishes."""
    whole, killed = (
        replace(
            steered_recipe,
            output=str(tmp_path / name),
            training=replace(
                steered_recipe.training,
                steps=60,
                log_every=10,
                checkpoint_every=10,
                evaluate_every=30,
            ),
        )
        for name in ("whole", "killed")
    )
    train_recipe(whole)
    process = Process(train_recipe, killed)
    until(lambda: list_checkpoints(tmp_path / "killed" / "checkpoints"), [process])
    process.kill()
    assert not (tmp_path / "killed" / "results.json").exists()
    train_recipe(killed)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def go_back(run, *, before):
    """As if the run had been killed between its last two checkpoints."""
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{before:08d}")


@contextmanager
def no_tensor_with_gradient_left():
    """What was there before is frozen, and so not among the objects that are looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.collect()
    # type() and not isinstance(), which asks objects that warn when asked
    alive = [it for it in gc.get_objects() if issubclass(type(it), torch.Tensor)]
    assert not any(tensor.requires_grad for tensor in alive)


def test_workers_and_their_number_change_no_number(steered_recipe, tmp_path):
    runs = [tmp_path / "none", tmp_path / "two"]
    for run, workers in zip(runs, (0, 2), strict=True):
        loading = replace(steered_recipe.loading, workers=workers)
        train_recipe(replace(steered_recipe, output=str(run), loading=loading))
    assert files_of(runs[0]) == files_of(runs[1])


def test_a_finished_run_is_returned_and_another_recipe_refused(plain_recipe, tmp_path):
    recipe = replace(plain_recipe, output=str(tmp_path))
    first = train_recipe(recipe)
    changed = (tmp_path / "model" / "open_clip_model.safetensors").stat().st_mtime_ns
    assert train_recipe(recipe) == first
    assert (tmp_path / "model" / "open_clip_model.safetensors").stat().st_mtime_ns == changed
    with pytest.raises(ValueError, match="seed: 0 before, 1 now"):
        train_recipe(replace(recipe, seed=1))


def test_resuming_is_a_choice(plain_recipe, tmp_path):
    recipe = replace(plain_recipe, output=str(tmp_path))
    with pytest.raises(ValueError, match="holds no run to continue, and resume = 'required'"):
        train_recipe(replace(recipe, resume="required"))
    first = train_recipe(replace(recipe, resume="never"))
    with pytest.raises(ValueError, match="holds a run, and resume = 'never'"):
        train_recipe(replace(recipe, resume="never"))
    assert train_recipe(replace(recipe, resume="required")) == first


def test_a_recipe_of_an_earlier_version_is_still_this_run(plain_recipe, tmp_path):
    recipe = replace(plain_recipe, output=str(tmp_path))
    first = train_recipe(recipe)
    results = tmp_path / "results.json"
    older = json.loads(results.read_text())
    del older["recipe"]["resume"], older["recipe"]["filtering"]
    del older["recipe"]["loading"]["views"], older["recipe"]["training"]["not_finite"]
    results.write_text(json.dumps(older))
    assert train_recipe(recipe).metrics == first.metrics
    views = replace(recipe.loading, views=Views(count=1))
    with pytest.raises(ValueError, match=r"loading\.views"):
        train_recipe(replace(recipe, loading=views))


def test_a_reference_of_views_steers_resumes_and_is_held_to_them(
    steered_recipe, reference, tmp_path
):
    config = PrecomputeConfig(
        data=steered_recipe.data,
        model=f"run:{reference.parent / 'run'}",
        output=str(tmp_path / "reference"),
        views=2,
        views_scale=(0.5, 1.0),
        device="cpu",
    )
    report = precompute_reference(config)
    assert report.num_samples == 80
    recipe = replace(
        steered_recipe,
        reference=config.output,
        loading=replace(steered_recipe.loading, views=Views(count=2, scale=(0.5, 1.0))),
    )
    train_recipe(replace(recipe, output=str(tmp_path / "whole")))
    cut = replace(recipe, output=str(tmp_path / "run"))
    train_recipe(replace(cut, training=replace(cut.training, keep_checkpoints=9)))
    (tmp_path / "run" / "results.json").unlink()
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints")[1:]:
        shutil.rmtree(checkpoint)
    train_recipe(cut)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    with pytest.raises(ValueError, match="set loading.views"):
        train_recipe(replace(recipe, loading=steered_recipe.loading, output=str(tmp_path / "x")))
    with pytest.raises(ValueError, match="has no effect without views"):
        replace(config, views=None)


def test_all_methods_start_from_the_same_weights_and_see_the_same_batches(
    plain_recipe, steered_recipe, tmp_path
):
    """At step 1 CLIP and DRRho-CLIP have the same target embeddings, hence loss statistics."""
    rows = []
    for name, recipe in (("plain", plain_recipe), ("steered", steered_recipe)):
        train_recipe(replace(recipe, output=str(tmp_path / name)))
        rows.append(read_metrics(tmp_path / name)[0])
    assert rows[0]["loss_variance"] == rows[1]["loss_variance"]
    assert rows[0]["loss"] != rows[1]["loss"]


@pytest.mark.parametrize("method", ["clip", "fastclip", "drrho_clip"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_option_builds_and_steps_on_the_cpu(
    plain_recipe, reference, tmp_path, *, method, precision, learned
):
    training = replace(
        plain_recipe.training,
        steps=1,
        precision=precision,
        max_grad_norm=1.0,
        evaluate_every=None,
        optimizer=replace(
            plain_recipe.training.optimizer,
            warmup_steps=0,
            temperature_lr_scale=0.25 if learned else None,
        ),
    )
    recipe = replace(
        plain_recipe,
        output=str(tmp_path),
        training=training,
        objective=METHODS[method](
            temperature=Learned() if learned else Constant(),
            **{"rho": 1.0} if learned and method != "clip" else {},
        ),
        reference=str(reference) if method == "drrho_clip" else None,
    )
    assert train_recipe(recipe).samples_seen == 8


METHODS = {objective.method: objective for objective in (CLIP, SigLIP, FastCLIP, DRRhoCLIP)}
TEACHER = DistillationTerm(teacher_temperatures=(0.07,))


@pytest.mark.parametrize(
    "objective",
    [
        SigLIP(temperature=Learned(initial=0.1)),
        FastCLIP(gamma_min=0.8, gamma_schedule="constant"),
        FastCLIP(temperature=PerSample(), rho=1.0, gamma_min=0.8, gamma_schedule="constant"),
        FastCLIP(
            temperature=PerSample(rule="adam"), rho=1.0, times_temperature=False, gamma_min=0.8
        ),
        CLIP(temperature=Learned(per_direction=True)),
        Distillation(teacher_temperatures=TEACHER.teacher_temperatures),
        DRRhoCLIP(reference_scale=0.5, distillation=TEACHER),
    ],
    ids=lambda objective: objective.method,
)
def test_every_kind_of_objective_trains_and_resumes(objective, plain_recipe, reference, tmp_path):
    """Whatever it remembers is in the checkpoint: two halves are one run, bit for bit. And it is
    nowhere else: a run that is over leaves no parameter or embedding behind in memory.
    """
    recipe = replace(
        plain_recipe,
        objective=objective,
        reference=str(reference) if objective.needs_reference else None,
        teachers=(str(reference),) * objective.num_teachers,
        micro_batch_size=3,
        evaluation=Evaluation(),
        training=replace(
            plain_recipe.training, steps=4, log_every=4, checkpoint_every=2, evaluate_every=None
        ),
    )
    whole, halves = (replace(recipe, output=str(tmp_path / name)) for name in ("whole", "halves"))
    with no_tensor_with_gradient_left():
        train_recipe(whole)
    train_recipe(halves)
    go_back(tmp_path / "halves", before=4)
    train_recipe(halves)
    ours, theirs = (
        read_tensors(tmp_path / name / "checkpoints" / "step-00000004")
        for name in ("whole", "halves")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("clip", {"reference_temperature": 0.07}),
        ("clip", {"reference_temperature": 0.07, "selection": "top_k"}),
        ("clip", {"kind": "loss"}),
        ("drrho_clip", {"kind": "irreducible", "reference_temperature": 0.07}),
        ("siglip", {"reference_temperature": 0.1, "reference_bias": -5.0}),
        ("clip", {"reference_temperature": 0.07, "selection": "rho_top_k"}),
    ],
)
def test_joint_selection_trains_on_exactly_its_batch_and_resumes(
    method, options, plain_recipe, reference, tmp_path
):
    num_chunks = None if options.get("selection") == "rho_top_k" else 2
    selection = Selection(batch_size=4, num_chunks=num_chunks, **options)
    recipe = replace(
        plain_recipe,
        objective=METHODS[method](),
        selection=selection,
        reference=str(reference) if selection.needs_reference else None,
        evaluation=Evaluation(),
        training=replace(
            plain_recipe.training, steps=4, log_every=1, checkpoint_every=2, evaluate_every=None
        ),
    )
    whole, halves = (replace(recipe, output=str(tmp_path / name)) for name in ("whole", "halves"))
    assert train_recipe(whole).samples_seen == 4 * 4
    train_recipe(halves)
    go_back(tmp_path / "halves", before=4)
    train_recipe(halves)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "halves")


def test_selections_that_do_not_fit_are_refused(plain_recipe, reference):
    by_loss = Selection(batch_size=4, num_chunks=2, kind="loss")
    excess = replace(by_loss, kind="excess", reference_temperature=0.07)
    with pytest.raises(ValueError, match="selection.kind = 'excess' needs a reference"):
        replace(plain_recipe, selection=excess)
    with pytest.raises(ValueError, match="no effect"):
        replace(plain_recipe, selection=by_loss, reference=str(reference))
    with pytest.raises(ValueError, match="below loading.batch_size"):
        replace(plain_recipe, selection=replace(by_loss, batch_size=8))
    with pytest.raises(ValueError, match="reference_bias = None does not fit"):
        replace(
            plain_recipe,
            selection=excess,
            reference=str(reference),
            objective=SigLIP(),
        )
    with pytest.raises(ValueError, match="per_direction.* does not fit"):
        replace(
            plain_recipe,
            selection=by_loss,
            objective=CLIP(temperature=Learned(per_direction=True)),
        )
    with pytest.raises(ValueError, match="needs selection.reference_temperature"):
        Selection(batch_size=4)
    with pytest.raises(ValueError, match="num_chunks = 2 has no effect on selection 'rho_top_k'"):
        replace(by_loss, selection="rho_top_k")
    with pytest.raises(ValueError, match="no effect on kind 'loss'"):
        Selection(batch_size=4, kind="loss", reference_temperature=0.1)


class LinearTowers(torch.nn.Module):
    """Without batch statistics, which would be a micro-batch's."""

    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(12, 6), torch.nn.Linear(5, 6)

    def encode_image(self, images, *, normalize):
        return self.image(images.flatten(1))

    def encode_text(self, tokens, *, normalize):
        return self.text(tokens.float())


@pytest.mark.parametrize("size", [1, 3, 7])
def test_micro_batches_step_as_the_batch_does(size):
    generator = torch.Generator().manual_seed(0)
    batch = SteeredBatch(
        pairs=Batch(
            sample_ids=torch.arange(8),
            images=torch.randn(8, 3, 2, 2, generator=generator),
            tokens=torch.randint(9, (8, 5), generator=generator),
            skipped=(),
        ),
        reference=None,
    )
    towers = LinearTowers()
    loss = ContrastiveObjective(FastCLIP(), num_samples=8)
    found = []
    for micro_batch_size in (None, size):
        step = ContrastiveStep(
            towers=Towers(towers), loss=loss, gamma=constant(1.0), micro_batch_size=micro_batch_size
        )
        result = step(batch, step=0, diagnose=True)
        gradients = torch.autograd.grad(result.loss, list(towers.parameters()))
        found.append([result.loss.detach(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


def test_pairs_without_reference_embeddings_are_dropped_and_counted(
    steered_recipe, tmp_path, monkeypatch
):
    gather = ReferenceStore.gather

    def without_the_first(store, sample_ids):
        embeddings = gather(store, sample_ids)
        return embeddings._replace(present=embeddings.present & (sample_ids != 0))

    monkeypatch.setattr(ReferenceStore, "gather", without_the_first)
    steps = replace(steered_recipe.training, steps=5)  # one epoch
    with pytest.warns(UserWarning, match="no reference embedding"):
        results = train_recipe(replace(steered_recipe, output=str(tmp_path), training=steps))
    assert results.samples_seen == 39
    assert results.skipped == {"no reference embedding": 1}


def test_pairs_without_reference_embeddings_may_keep_their_plain_loss(
    steered_recipe, tmp_path, monkeypatch
):
    gather = ReferenceStore.gather
    seen = []

    def without_the_first(store, sample_ids):
        found = gather(store, sample_ids)
        present = found.present & (sample_ids != 0)
        seen.extend((~present).nonzero().tolist())
        zeroed = [e.where(present[:, None], 0.0) for e in (found.image, found.text)]
        return found._replace(image=zeroed[0], text=zeroed[1], present=present)

    monkeypatch.setattr(ReferenceStore, "gather", without_the_first)
    steps = replace(steered_recipe.training, steps=5)  # one epoch
    recipe = replace(
        steered_recipe, output=str(tmp_path), training=steps, missing_reference="plain"
    )
    results = train_recipe(recipe)
    assert results.samples_seen == 40
    assert results.skipped == {}
    assert len(seen) == 2  # by the judgement of the reference, and in training


def test_an_anchor_with_a_reference_of_zero_has_its_plain_loss():
    generator = torch.Generator().manual_seed(0)
    target, reference = (
        PairEmbeddings(*normalize(torch.randn(2, 6, 5, generator=generator), dim=-1))
        for _ in range(2)
    )
    for embeddings in reference:
        embeddings[2] = 0
    temperature = torch.tensor(0.1)
    steered = tiled_log_gap_means(target, reference, temperature=temperature)
    plain = tiled_log_gap_means(target, temperature=temperature)
    assert_close(steered[:, 2], plain[:, 2])
    assert not torch.isclose(steered[:, 0], plain[:, 0]).any()


def test_a_policy_for_missing_embeddings_needs_a_reference(plain_recipe):
    with pytest.raises(ValueError, match="missing_reference = 'plain' has no effect"):
        replace(plain_recipe, missing_reference="plain")


def test_a_batch_that_the_reference_does_not_know_ends_the_run(
    steered_recipe, tmp_path, monkeypatch
):
    gather = ReferenceStore.gather

    def without_any(store, sample_ids):
        embeddings = gather(store, sample_ids)
        return embeddings._replace(present=torch.zeros_like(embeddings.present))

    monkeypatch.setattr(ReferenceStore, "gather", without_any)
    with pytest.raises(ValueError, match="embeddings of none of 8 pairs of a batch"):
        train_recipe(replace(steered_recipe, output=str(tmp_path)))


def test_a_reference_of_other_data_is_refused_before_the_first_step(steered_recipe, tmp_path):
    other = tmp_path / "other"
    write_scenes(other, ScenesConfig(num_samples=40, seed=5, samples_per_shard=20))
    write_manifest(IndexConfig(data=str(other)))
    recipe = replace(
        steered_recipe, output=str(tmp_path / "run"), data=str(other / "manifest.json")
    )
    with pytest.raises(ValueError, match=r"scenes-0000.tar.*drrho reference precompute"):
        train_recipe(recipe)
    assert not (tmp_path / "run").exists()


def test_a_changed_shard_is_refused(plain_recipe, scenes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(scenes / "train", data)
    shutil.copy(scenes / "test" / "scenes-0000.tar", data / "scenes-0001.tar")
    recipe = replace(plain_recipe, output=str(tmp_path / "run"), data=str(data / "manifest.json"))
    with pytest.raises(ValueError, match=r"scenes-0001.tar.*drrho index"):
        train_recipe(recipe)


def test_changed_contents_at_the_same_paths_are_another_run(steered_recipe, scenes, tmp_path):
    """Neither a finished nor an unfinished run continues with other data or another reference."""
    data, embeddings = tmp_path / "data", tmp_path / "embeddings"
    shutil.copytree(scenes / "train", data)
    shutil.copytree(steered_recipe.reference, embeddings)
    recipe = replace(
        steered_recipe,
        output=str(tmp_path / "run"),
        data=str(data / "manifest.json"),
        reference=str(embeddings),
    )
    train_recipe(recipe)
    moved = replace(recipe, data=steered_recipe.data, reference=steered_recipe.reference)
    assert train_recipe(moved).samples_seen == 48  # the same contents elsewhere: the same run
    card = json.loads((embeddings / "reference.json").read_text())
    shutil.rmtree(embeddings)
    precompute_reference(
        PrecomputeConfig(
            data=recipe.data,
            model=f"run:{tmp_path / 'run'}",
            output=str(embeddings),
            device="cpu",
        )
    )
    assert json.loads((embeddings / "reference.json").read_text()) != card
    with pytest.raises(ValueError, match="contents.reference.weights_sha256"):
        train_recipe(recipe)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(CheckpointError, match="contents.reference.weights_sha256"):
        train_recipe(recipe)


def test_embeddings_have_unit_length_under_bfloat16(plain_recipe, tmp_path, monkeypatch):
    seen = []
    forward = ContrastiveObjective.forward

    def watched(objective, target, *args, **kwargs):
        seen.extend(embeddings.norm(dim=-1) for embeddings in target)
        return forward(objective, target, *args, **kwargs)

    monkeypatch.setattr(ContrastiveObjective, "forward", watched)
    training = replace(plain_recipe.training, steps=2, precision="bfloat16", evaluate_every=None)
    train_recipe(replace(plain_recipe, output=str(tmp_path), training=training))
    torch.testing.assert_close(torch.cat(seen), torch.ones(32), atol=1e-6, rtol=0)


def test_another_evaluation_set_of_a_finished_run_is_not_ignored(plain_recipe, scenes, tmp_path):
    recipe = replace(plain_recipe, output=str(tmp_path))
    train_recipe(recipe)
    other = replace(recipe.evaluation, data=str(scenes / "train" / "manifest.json"))
    with pytest.raises(ValueError, match="drrho evaluate"):
        train_recipe(replace(recipe, evaluation=other))


def test_two_processes_do_not_share_a_folder(plain_recipe, tmp_path):
    with exclusive(tmp_path), pytest.raises(BlockingIOError, match="another process"):
        train_recipe(replace(plain_recipe, output=str(tmp_path)))


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, not a file to write"):
        write_atomically(tmp_path, b"")
    assert not [*tmp_path.iterdir()]


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(NotADirectoryError, match="is to be a folder"), exclusive(folder):
            pass


def test_recipes_refuse_options_without_effect(plain_recipe, steered_recipe):
    with pytest.raises(ValueError, match="needs a reference"):
        replace(steered_recipe, reference=None)
    with pytest.raises(ValueError, match="no effect"):
        replace(plain_recipe, reference="somewhere")
    with pytest.raises(ValueError, match="without evaluation"):
        replace(plain_recipe, evaluation=replace(plain_recipe.evaluation, data=None))
    with pytest.raises(ValueError, match="0 teachers, but teachers names 1 folders"):
        replace(plain_recipe, teachers=("somewhere",))
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1 and below"):
        replace(plain_recipe, micro_batch_size=plain_recipe.loading.batch_size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(plain_recipe, tmp_path):
    with pytest.raises(ValueError, match="finds no GPU"):
        train_recipe(replace(plain_recipe, output=str(tmp_path / "run"), device="cuda"))
    assert not Path(tmp_path / "run").exists()


def test_a_run_that_lost_its_checkpoints_says_so_and_begins_anew_when_it_is_moved(
    plain_recipe, tmp_path
):
    training = replace(plain_recipe.training, evaluate_every=None)
    recipe = replace(plain_recipe, training=training, evaluation=Evaluation())
    recipe = replace(recipe, output=str(tmp_path / "run"))
    train_recipe(recipe)
    (tmp_path / "run" / "results.json").unlink()
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="has no checkpoint any more.*move the folder"):
        train_recipe(recipe)
    (tmp_path / "run" / "checkpoints").rmdir()
    with pytest.raises(CheckpointError, match="has no checkpoint any more.*move the folder"):
        train_recipe(recipe)
    with pytest.raises(ValueError, match="resume = 'never'"):
        train_recipe(replace(recipe, resume="never"))
    shutil.move(tmp_path / "run", tmp_path / "before")
    assert train_recipe(recipe).samples_seen == 48


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(plain_recipe, tmp_path):
    training = replace(plain_recipe.training, evaluate_every=None, checkpoint_every=6)
    recipe = replace(plain_recipe, training=training, evaluation=Evaluation())
    recipe = replace(recipe, output=str(tmp_path))
    train_recipe(recipe)
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    assert train_recipe(recipe).samples_seen == 48
