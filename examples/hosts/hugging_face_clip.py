"""A CLIPModel in Hugging Face's Trainer, steered, with negatives of all processes.

    python examples/hosts/hugging_face_clip.py --output runs/hugging_face_clip
    torchrun --nproc-per-node 2 examples/hosts/hugging_face_clip.py

A reference learns from clean pairs; the target then learns from pairs of which 40 % have a wrong
caption, once by CLIP's loss and once steered. Checkpoints have the averages of the loss:
`trainer.train(resume_from_checkpoint=True)` goes on with them.

Needs `pip install 'drrho[hf]'`.
"""

import argparse
from pathlib import Path

import torch
import transformers
from concepts import END, LENGTH, SIZE, Pairs, accuracy, captions, draw

from drrho.contrastive.config import ObjectiveConfig, named_objective
from drrho.contrastive.risk import PairEmbeddings
from drrho.integrations.hugging_face_clip import ContrastiveTrainer


def new_model(seed: int) -> transformers.CLIPModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "projection_dim": 16}
    text = {"vocab_size": END + 1, "max_position_embeddings": LENGTH, "eos_token_id": END}
    text |= {"bos_token_id": 1, "pad_token_id": 0}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=shape | text,
            vision_config=shape | {"image_size": SIZE, "patch_size": 4},
            projection_dim=16,
        )
    )


def train(
    pairs: Pairs,
    objective: ObjectiveConfig,
    reference: PairEmbeddings | None,
    *,
    epochs: int,
    folder: Path,
) -> transformers.CLIPModel:
    rows = [
        {"pixel_values": image, "input_ids": text, "sample_id": row}
        for row, (image, text) in enumerate(zip(pairs.images, pairs.texts, strict=True))
    ]
    args = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        dataloader_drop_last=True,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = ContrastiveTrainer(
        new_model(1), args, objective=objective, reference=reference, train_dataset=rows
    )
    trainer.train()
    return trainer.model.eval()


def embed(
    model: transformers.CLIPModel, images: torch.Tensor, texts: torch.Tensor
) -> PairEmbeddings:
    with torch.no_grad():
        out = model(pixel_values=images, input_ids=texts)
    return PairEmbeddings(out.image_embeds, out.text_embeds)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/hugging_face_clip"))
    options = parser.parse_args(argv)

    test = draw(512, seed=2)
    clean = draw(options.samples, seed=0)
    noisy = draw(options.samples, seed=1, wrong=0.4)
    clip = named_objective("openclip")
    teacher = train(clean, clip, None, epochs=options.epochs, folder=options.output / "reference")
    models = {"reference": teacher}
    reference = embed(teacher, noisy.images, noisy.texts)
    steered = named_objective("drrho_clip", temperature=0.07)
    for name, objective, stored in (("CLIP", clip, None), ("DRRho-CLIP", steered, reference)):
        models[name] = train(
            noisy, objective, stored, epochs=options.epochs, folder=options.output / name
        )
    found = {}
    for name, model in models.items():
        embedded = embed(model, test.images, captions())
        found[name] = accuracy(embedded.image, embedded.text, test.concepts)
        print(f"{name}: {found[name]:.3f}")
    return found


if __name__ == "__main__":
    main()
