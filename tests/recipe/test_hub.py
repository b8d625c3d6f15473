"""Models are pushed whole, only where that is asked for, and a failure loses nothing."""

from dataclasses import replace

import pytest
from tests.recipe.hub_server import serving

from drrho.cli import main
from drrho.models.build import load_model
from drrho.models.open_clip import import_open_clip
from drrho.models.small import register
from drrho.recipe.document import read_run_results
from drrho.recipe.export import ExportConfig, export_model
from drrho.recipe.publishing.card import MARK, card_of

TOKEN = "hf_secretsecretsecretsecret"


@pytest.fixture(scope="module")
def run(reference):
    return reference.parent / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "hub") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def is_private(made):
    """Whether a request was for a private repository, in the words of any version."""
    return made.get("visibility") == "private" or made.get("private") is True


def test_a_pushed_model_is_loaded_as_any_other(run, hub, tmp_path, capsys):
    output = tmp_path / "exported"
    output.mkdir()
    (output / "mine.bin").write_bytes(b"not a part of it")
    command = ["export", str(run), "--format", "open-clip", "--output", str(output)]
    assert main([*command, "--push", "me/model"]) == 0
    printed = capsys.readouterr().out
    assert "hf-hub:me/model" in printed
    assert TOKEN not in printed
    pushed = hub.folder / "me" / "model"
    names = {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
    assert {path.name for path in pushed.iterdir()} == names
    assert is_private(hub.created[0])
    assert f"Bearer {TOKEN}" in hub.tokens
    register()
    module, _, _ = import_open_clip().create_model_and_transforms(f"local-dir:{pushed}")
    theirs = sum(weights.numel() for weights in module.parameters())
    ours = sum(weights.numel() for weights in load_model(run / "model").module.parameters())
    assert theirs == ours + 1  # the logit scale of open_clip


@pytest.mark.parametrize("step", ["repos/create", "preupload", "commit"])
def test_a_push_that_fails_loses_nothing_and_tells_no_token(run, hub, tmp_path, capsys, step):
    hub.refuses = step
    output = tmp_path / "exported"
    command = ["export", str(run), "--format", "open-clip", "--output", str(output)]
    assert main([*command, "--push", "me/model"]) == 1
    said = capsys.readouterr().err
    assert "could not be pushed to me/model" in said
    assert "It is whole; log in" in said
    assert TOKEN not in said
    assert (output / "open_clip_model.safetensors").is_file()
    assert not (hub.folder / "me").exists()  # a commit is whole, or there is none
    hub.refuses = None
    assert main([*command, "--push", "me/model"]) == 0
    assert (hub.folder / "me" / "model" / "open_clip_model.safetensors").is_file()


def test_nothing_is_pushed_unasked(run, hub, tmp_path):
    export_model(ExportConfig(str(run), format="open-clip", output=str(tmp_path / "exported")))
    assert hub.tokens == set()


def test_a_repository_is_public_where_that_is_said(run, hub, tmp_path):
    export_model(
        ExportConfig(
            str(run),
            format="open-clip",
            output=str(tmp_path / "exported"),
            push="me/model",
            public=True,
        )
    )
    assert not is_private(hub.created[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"push": "model"}, "must be OWNER/NAME"),
        ({"push": "https://hub/me/model"}, "must be OWNER/NAME"),
        ({"push": "me/model", "output": "model.pt"}, "push needs a folder"),
        ({"public": True}, "no effect without push"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_written(changed, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**{"run": "runs/mine", "format": "open-clip", "output": "exported"} | changed)


def test_the_card_says_what_the_model_is_and_nothing_of_the_machine(steered_recipe, run):
    results = read_run_results(run)
    recipe = replace(
        steered_recipe,
        data="s3://key:word@bucket/home/somebody/pairs/manifest.json",
        reference="/home/somebody/references/large",
    )
    card = card_of(recipe, results, program="open-clip", place="hf-hub:me/model")
    assert card.startswith("---\nlibrary_name: open_clip\n")
    assert MARK in card
    assert 'create_model_and_transforms("hf-hub:me/model")' in card
    assert "| large |" in " ".join(card.split())
    assert "pairs/manifest.json" in card
    assert "somebody" not in card
    assert "word" not in card
    assert "| mrr " in card
    assert "DRRho-CLIP" in card
    assert "| mrr " not in card_of(recipe, None, program="hugging-face", place="me/model")


def test_a_card_that_somebody_wrote_stays(run, tmp_path):
    output = tmp_path / "exported"
    config = ExportConfig(str(run), format="open-clip", output=str(output))
    export_model(config)
    card = (output / "README.md").read_text()
    assert MARK in card
    export_model(config)
    assert (output / "README.md").read_text() == card
    (output / "README.md").write_text("my own words")
    export_model(config)
    assert (output / "README.md").read_text() == "my own words"
