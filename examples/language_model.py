"""A language model on text with noise documents: selection and weighting of tokens by a reference.

    python examples/language_model.py --seeds 4 --output runs/language_model

The text is on every computer with Python: the documentation strings of the standard library, cut
into documents of 64 tokens. Modules, not documents, are dealt out to the reference, training,
validation and test, so none has read another's text. 40 % of the 4,000 training documents are
replaced by noise: half of them are shuffled, which keeps how frequent tokens are, and half are
tokens drawn at random. A reference of the target's architecture learns from 640 clean documents,
and its losses of the training tokens are computed once and stored as a column of the data set.
Then the same small Llama is trained from the same weights, on the same batches and for as many
steps as the reference, by each method:

| method | what counts |
|---|---|
| plain | all tokens equally |
| DRO | the tokens with the largest losses (CVaR) |
| Rho-1 | the tokens with the largest excess losses (CVaR of the excess) |
| Rho-1 of documents | the documents with the largest mean excess losses |
| KL weights | all tokens, by the exponential of their excess losses |
| plain, clean too | all tokens equally, also the reference's text: its data without steering |

Reported are the loss of the test's tokens, in nats, after the last step, and how much of its
weight a method would give to noise at that moment. Every seed draws its own noise, weights,
batches and reference; the texts are always the same, and the test is read at the end. The settings
below were chosen by `--tune` on the clean validation text: nine candidates for each method, on
three seeds that the results do not use.

Needs `pip install '.[hf]' scipy` in a clone. The text depends a little on the version of Python.
"""

import argparse
import ast
import hashlib
import itertools
import json
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import transformers
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

import drrho
from drrho.integrations.hugging_face import SteeredTrainer, reference_token_losses
from drrho.plotting.table import markdown_table
from drrho.runtime.randomness import derived_seed

VOCABULARY, LENGTH, BATCH = 512, 64, 16
NOISE = 0.4  # share of the training documents
NUM_PROBED = 512  # training documents in which the weight on noise is measured
COLUMN = "reference_losses"
NO_TEXT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
PARTS = {"reference": 20, "train": 50, "validation": 10, "test": 20}  # percent of the modules
NUM_DOCUMENTS = {"reference": 640, "train": 4000, "validation": 1000, "test": 1500}  # at most
TUNING_SEEDS = (100, 101, 102)


class Setting(NamedTuple):
    """What is chosen on validation. The strength is CVaR's fraction, or the temperature of KL."""

    learning_rate: float
    weight_decay: float = 0.1
    strength: float = 1.0


class Method(NamedTuple):
    """The risk for a strength, the strengths to try, and what the risk is taken of."""

    risk: Callable[[float], drrho.RiskMeasure]
    strengths: tuple[float, ...] = ()
    excess: bool = False
    unit: Literal["token", "sequence"] = "token"
    clean_too: bool = False

    def candidates(self) -> list[Setting]:
        rates = (5e-3, 1e-2, 2e-2)
        if not self.strengths:
            return [Setting(rate, decay) for rate in rates for decay in (0.01, 0.1, 1.0)]
        return [Setting(rate, strength=strength) for rate in rates for strength in self.strengths]


def mean(_: float) -> drrho.RiskMeasure:
    return drrho.Mean()


def cvar(fraction: float) -> drrho.RiskMeasure:
    return drrho.CVaR(fraction=fraction)


def kl(temperature: float) -> drrho.RiskMeasure:
    return drrho.KL(temperature=temperature)


METHODS = {
    "plain": Method(mean),
    "DRO": Method(cvar, (0.6, 0.8, 0.95)),
    "Rho-1": Method(cvar, (0.2, 0.4, 0.6), excess=True),
    "Rho-1 of documents": Method(cvar, (0.2, 0.4, 0.6), excess=True, unit="sequence"),
    "KL weights": Method(kl, (0.5, 1.0, 2.0), excess=True),
    "plain, clean too": Method(mean, clean_too=True),
}
REFERENCE = Setting(1e-2)
SETTINGS = {
    "plain": Setting(0.005),
    "DRO": Setting(0.005, strength=0.95),
    "Rho-1": Setting(0.005, strength=0.2),
    "Rho-1 of documents": Setting(0.005, strength=0.6),
    "KL weights": Setting(0.005, strength=2.0),
    "plain, clean too": Setting(0.005, 1.0),
}

Documents = Tensor  # (documents, LENGTH) token ids


class Data(NamedTuple):
    """What the trainings of one seed read; `is_noise` (documents,) is known to no method.

    Rows are the Trainer's: of training with the column of the reference's losses.
    """

    train: list[dict]
    clean_too: list[dict]
    is_noise: Tensor
    unseen: list[dict]


def modules() -> dict[str, str]:
    """{path: its documentation strings} of the standard library, in the order of the paths."""
    library = Path(sysconfig.get_path("stdlib"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = {}
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if NO_TEXT.isdisjoint(name.parts):
            nodes = [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, documented)]
            strings = [ast.get_docstring(node) for node in nodes]
            texts[name.as_posix()] = "\n\n".join(filter(None, strings))
    return texts


def part_of(module: str) -> str:
    place = int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100
    bounds = itertools.accumulate(PARTS.values())
    return next(part for part, bound in zip(PARTS, bounds, strict=True) if place < bound)


def read_parts() -> dict[str, Documents]:
    """The documents of each part, in tokens learned on the reference's."""
    texts: dict[str, list[str]] = {part: [] for part in PARTS}
    for module, text in modules().items():
        texts[part_of(module)].append(text)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts["reference"], trainer)
    parts, generator = {}, torch.Generator().manual_seed(0)
    for part, of_part in texts.items():
        ids = torch.tensor([i for text in of_part for i in [*tokenizer.encode(text).ids, 0]])
        documents = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        order = torch.randperm(len(documents), generator=generator)
        parts[part] = documents[order[: NUM_DOCUMENTS[part]]]
    return parts


def rows_of(documents: Documents) -> list[dict]:
    return [{"input_ids": tokens, "labels": tokens} for tokens in documents.tolist()]


def small_llama(seed: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def train(
    rows: list[dict], method: Method, setting: Setting, *, seed: int, steps: int
) -> SteeredTrainer:
    """The Trainer after the last step, with its model."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            adam_beta2=0.95,
            warmup_steps=10,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = SteeredTrainer(
            small_llama(seed),
            arguments,
            train_dataset=rows,
            risk=method.risk(setting.strength),
            reference=COLUMN if method.excess else "none",
            unit=method.unit,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return trainer


def prepare(
    parts: dict[str, Documents], *, unseen: str, seed: int, steps: int
) -> tuple[SteeredTrainer, Data]:
    """The reference, trained on clean text, and the data with noise and its losses."""
    # Not the seed itself: with it the Trainer's sampler would draw the same permutation.
    generator = torch.Generator().manual_seed(derived_seed("noise", seed))
    documents = parts["train"].clone()
    noise = torch.randperm(len(documents), generator=generator)[: int(NOISE * len(documents))]
    for number, row in enumerate(noise.tolist()):
        if number % 2 == 0:
            documents[row] = documents[row][torch.randperm(LENGTH, generator=generator)]
        else:
            documents[row] = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
    is_noise = torch.zeros(len(documents), dtype=torch.bool)
    is_noise[noise] = True

    clean, rows = rows_of(parts["reference"]), rows_of(documents)
    reference = train(clean, METHODS["plain"], REFERENCE, seed=seed + 1000, steps=steps)
    column = reference_token_losses(reference.model, rows, batch_size=64)
    stored = [row | {COLUMN: losses} for row, losses in zip(rows, column, strict=True)]
    return reference, Data(stored, rows + clean, is_noise, rows_of(parts[unseen]))


def weight_on_noise(trainer: SteeredTrainer, data: Data, method: Method, setting: Setting) -> float:
    """The share of all weight, at the end of training, in the first training documents."""
    rows = data.train[:NUM_PROBED]
    losses = np.stack(reference_token_losses(trainer.model, rows, batch_size=64))
    if method.excess:
        losses -= np.stack([row[COLUMN] for row in rows])
    samples = torch.from_numpy(losses)
    if method.unit == "sequence":
        samples = samples.mean(dim=1)
    weights = method.risk(setting.strength)(samples.flatten()).weights.view(len(rows), -1)
    return weights[data.is_noise[:NUM_PROBED]].sum().item()


Result = dict[str, float]  # "loss", and "noise" but for the reference


def run_seed(
    seed: int,
    *,
    candidates: dict[str, tuple[Method, Setting]],
    parts: dict[str, Documents],
    unseen: str,
    steps: int,
) -> dict[str, Result]:
    """By name, the loss on unseen text and the weight on noise."""
    reference, data = prepare(parts, unseen=unseen, seed=seed, steps=steps)
    results = {"reference": {"loss": reference.evaluate(data.unseen)["eval_loss"]}}
    for name, (method, setting) in candidates.items():
        rows = data.clean_too if method.clean_too else data.train
        trainer = train(rows, method, setting, seed=seed, steps=steps)
        results[name] = {
            "loss": trainer.evaluate(data.unseen)["eval_loss"],
            "noise": weight_on_noise(trainer, data, method, setting),
        }
        print(f"seed {seed}, {name}: {results[name]['loss']:.3f}", file=sys.stderr)
    return results


def compare(
    candidates: dict[str, tuple[Method, Setting]],
    *,
    seeds: Sequence[int],
    steps: int,
    unseen: str,
    processes: int,
) -> dict[str, list[Result]]:
    """By name, one result for each seed."""
    parts = read_parts()
    run = partial(run_seed, candidates=candidates, parts=parts, unseen=unseen, steps=steps)
    if processes == 1:
        by_seed = [run(seed) for seed in seeds]
    else:
        # One thread each: models as small as this one gain nothing from more.
        one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}
        with ProcessPoolExecutor(processes, get_context("spawn"), **one_thread) as pool:
            by_seed = list(pool.map(run, seeds))
    return {name: [of_seed[name] for of_seed in by_seed] for name in by_seed[0]}


def interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{statistics.fmean(values):.3f} ± {half:.3f}"


def table(results: dict[str, list[Result]]) -> str:
    """The others are compared with "plain" seed by seed."""
    rows = []
    plain = [result["loss"] for result in results.get("plain", [])]
    for name, of_name in results.items():
        losses = [result["loss"] for result in of_name]
        row = [name, interval(losses), "", ""]
        if plain and name not in ("plain", "reference"):
            row[2] = interval([loss - other for loss, other in zip(losses, plain, strict=True)])
        if name != "reference":
            row[3] = f"{100 * statistics.fmean(result['noise'] for result in of_name):.0f}"
        rows.append(row)
    return markdown_table(["method", "loss, nats", "minus plain", "weight on noise, %"], rows)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Result]]:
    parser = argparse.ArgumentParser(description="A language model on text with noise documents.")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--steps", type=int, default=300, help="of every training")
    parser.add_argument("--processes", type=int, default=2, help="that share the seeds")
    parser.add_argument("--output", type=Path, help="folder for results.json and results.md")
    parser.add_argument("--tune", action="store_true", help="compare candidates on validation")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"an interval needs at least 2 seeds, got {options.seeds}")
    if options.tune:
        seeds, unseen = TUNING_SEEDS, "validation"
        candidates = {
            f"{name}, {setting}": (method, setting)
            for name, method in METHODS.items()
            for setting in method.candidates()
        }
    else:
        seeds, unseen = range(options.seeds), "test"
        candidates = {name: (method, SETTINGS[name]) for name, method in METHODS.items()}
    results = compare(
        candidates, seeds=seeds, steps=options.steps, unseen=unseen, processes=options.processes
    )
    print(table(results))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (options.output / "results.md").write_text(table(results) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
