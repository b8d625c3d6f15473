"""Every tutorial runs from top to bottom, in a small size: its commands and its programs in turn.

`make tutorials` runs the pages as a reader does. Here the numbers are smaller, commands run in this
process, and a sentence model of the tests takes the place of a pretrained one.

The tutorials that consist of commands take a minute of processor time, and their commands have
tests of their own: they run where DRRHO_TUTORIALS is set, as in `.ci/run` before a merge.
"""

import os
import re
import shlex
from pathlib import Path

import pytest
from tools.run_page import blocks

from drrho.cli import main
from tests.integrations.test_sentence_transformers import sentence_transformer

ROOT = Path(__file__).parents[1]
TUTORIALS = [
    page for page in sorted((ROOT / "docs" / "tutorials").glob("*.md")) if page.name != "index.md"
]
TINY = "embed_dim=8, image_width=2, text_width=8, text_layers=1, text_heads=1"
TINY_OPTIONS = " ".join(
    f"--model.small.{it.strip().replace('_', '-').replace('=', ' ')}" for it in TINY.split(",")
)
SMALLER = (
    (r"--model.name small\b", f"--model.name small {TINY_OPTIONS}"),
    (r'Model\(name="small"\)', f'Model(name="small", small=drrho.SmallConfig({TINY}))'),
    (r"--scenes.num-samples \d+", "--scenes.num-samples 40"),
    (r"--scale.batch-size \d+", "--scale.batch-size 16"),
    (r"--scale.samples-seen \d+", "--scale.samples-seen 32"),
    (r"(drrho steer .*)$", r"\1 --epochs 0.5 --batch-size 8"),
    (r"batch_size=\d+", "batch_size=8"),
    (r"\bSTEPS = \d+", "STEPS = 4"),
    (r"(drrho advise .*)$", r"\1 --uses steer --strengths 1.0 --budget 1.0"),
    (r"\bPAIRS = \d+", "PAIRS = 40"),
    (r"\bDOCUMENTS = \d+", "DOCUMENTS = 20"),
)


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentence")
    sentence_transformer(folder).save(str(folder / "model"), create_model_card=False)
    return folder


COMMANDS = {"finetune.md", "own_reference.md", "steer.md", "uses_of_a_reference.md"}


def test_every_tutorial_is_in_the_list_and_the_site():
    listed = (ROOT / "docs" / "tutorials" / "index.md").read_text("utf-8")
    site = (ROOT / "zensical.toml").read_text("utf-8")
    assert {page.name for page in TUTORIALS} >= COMMANDS
    for page in TUTORIALS:
        assert f"({page.name})" in listed
        assert f"tutorials/{page.name}" in site


# Few pairs in few steps.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_a_tutorial_runs(page, sentence_model, tmp_path, monkeypatch, capsys):
    if page.name in COMMANDS and "DRRHO_TUTORIALS" not in os.environ:
        pytest.skip("the tutorials of commands run where DRRHO_TUTORIALS is set, as in .ci/run")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    ran = 0
    for language, block in blocks(page):
        text = block.replace("\\\n", " ")
        for large, small in SMALLER:
            text = re.sub(large, small, text, flags=re.MULTILINE)
        if language == "python":
            text = re.sub(r"MODEL = .*", f"MODEL = {str(sentence_model / 'model')!r}", text)
            exec(compile(text, page.name, "exec"), names)
            ran += 1
            continue
        for line in text.splitlines():
            command, *arguments = shlex.split(line, comments=True) or [""]
            if command == "drrho":
                assert main(arguments) in (0, None), capsys.readouterr().err
                ran += 1
    assert ran >= 3
