"""Any damage to the files of a run is an error that names the file, or changes nothing else."""

import json
import warnings
from dataclasses import replace

import pytest

from drrho.recipe.document import RunResults, read_recipe, read_recipe_file, read_run_results
from drrho.recipe.recipe import Recipe
from drrho.recipe.train import train_recipe
from drrho.runtime.errors import CheckpointError
from drrho.training.checkpoint import VALUES_FILE, list_checkpoints
from drrho.training.log import read_metrics

NOT_A_NUMBER, INFINITE = float("nan"), float("inf")
WRONG = [None, "x", "\x00", True, -1, 1.5, 10**30, NOT_A_NUMBER, INFINITE, [], [[]], {}, {"": 1}]


@pytest.fixture(scope="module")
def run(plain_recipe, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    train_recipe(replace(plain_recipe, output=str(folder)))
    return folder


def places(content, prefix=()):
    """Every place in nested plain data."""
    yield prefix
    if isinstance(content, dict | list):
        for name, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(part, (*prefix, name))


def changed(content, place, value):
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = changed(content[place[0]], place[1:], value)
    return copy


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("recipe.json", lambda run: read_recipe(read_recipe_file(run))),
        ("results.json", read_run_results),
    ],
)
def test_a_wrong_value_anywhere_is_an_error_with_the_file(run, name, read):
    path = run / name
    whole = path.read_bytes()
    content, messages = json.loads(whole), []
    try:
        for number, place in enumerate(places(content)):
            # Two of the values at each place; in all, every value at every kind of place.
            for value in (WRONG[number % len(WRONG)], WRONG[(number * 5 + 6) % len(WRONG)]):
                path.write_text(json.dumps(changed(content, place, value)))
                try:
                    found = read(run)
                except ValueError as error:
                    messages.append(str(error))
                else:
                    assert isinstance(found, Recipe | RunResults)
    finally:
        path.write_bytes(whole)
    assert len(messages) > 50
    assert [message for message in messages if str(path) not in message] == []


def test_a_wrong_value_of_a_checkpoint_is_an_error_with_its_place(run, plain_recipe, tmp_path):
    """Without a checksum, as an earlier version, or a forger, would have written it."""
    (run / "results.json").rename(tmp_path / "results.json")
    path = list_checkpoints(run / "checkpoints")[-1]
    whole = (path / VALUES_FILE).read_bytes()
    content = json.loads(whole)
    del content["sha256"]
    recipe = read_recipe(json.loads((run / "recipe.json").read_text()))
    try:
        for name in ("step", "samples_seen", "skipped", "seconds", "metrics", "best", "versions"):
            for value in ("x", -1) if name == "step" else ([1],):
                wrong = changed(content, ("values", name), value)
                (path / VALUES_FILE).write_text(json.dumps(wrong))
                with pytest.raises(CheckpointError, match="checkpoint"):
                    train_recipe(recipe)
    finally:
        (path / VALUES_FILE).write_bytes(whole)
        (tmp_path / "results.json").rename(run / "results.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 2 is no row with a step"),
        ('{"loss": 1}', "line 2 is no row with a step"),
        ('{"step": "1"}', r"line 2.step must be a float, got '1'"),
        ('{"step": true}', r"line 2.step must be a float, got True"),
        ('{"step": 1.5}', r"line 2.step must be a number of steps, got 1.5"),
        ('{"step": null}', r"line 2.step must be a number of steps, got None"),
        ('{"step": -1}', r"line 2.step must be a number of steps, got -1"),
        ('{"step": 1, "step": 2}', "line 2 is not JSON .*'step' is there twice"),
        ('{"step": 1, "loss": "x"}', r"line 2.loss must be a float, got 'x'"),
        ('{"step": 1, "loss": [1]}', r"line 2.loss must be a float"),
        ('{"step": 1, "loss": 1' + "0" * 400 + "}", "line 2.loss must be a float"),
        ("{" + '"a":{' * 60, "line 2 is not JSON"),
        ("[" * 10**5, "line 2 is not JSON"),
        ('{"step": ', "line 2 is not JSON"),
        ("\x00\x00", "line 2 is not JSON"),
    ],
)
def test_a_wrong_row_of_the_log_is_named(tmp_path, line, message):
    log = tmp_path / "metrics.jsonl"
    log.write_text(f'{{"step": 1, "loss": null}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=message) as info:
        read_metrics(tmp_path)
    assert str(log) in str(info.value)


@pytest.mark.parametrize("torn", [b"{", b'{"step": 2, "lo', b"\x00\x00\x00", b'{"step": "\xc3'])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + torn)
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_log_without_an_end_of_line_is_not_read_whole(tmp_path):
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(2**32)  # as /dev/zero, on a disk that does not hold it
    with warnings.catch_warnings(), pytest.raises(ValueError, match="line 1 is not JSON"):
        read_metrics(tmp_path)
