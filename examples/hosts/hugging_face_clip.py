"""DRRho-CLIP in Hugging Face's Trainer, with the pairs of all processes as negatives.

    python examples/hosts/hugging_face_clip.py --output runs/hugging_face_clip
    torchrun --nproc-per-node 2 examples/hosts/hugging_face_clip.py --output runs/two_processes

What differs from any other use of the Trainer: an objective and a reference are arguments, and
each row has a `sample_id`. The batch is the same for any number of processes, and every pair in it
is a negative of every other. The averages of the loss are in the Trainer's checkpoints: run again
with the same --output it goes on at the last one.

Needs `pip install '.[clip,hf]'` in a clone; the scenes are what needs `clip`.
"""

import os
from collections.abc import Sequence

import torch
import transformers
from comparison import (
    BATCH,
    END,
    LEARNING_RATE,
    LENGTH,
    PADDING,
    SAVE_EVERY,
    SIZE,
    START,
    VOCABULARY,
    WARMUP,
    Pairs,
    Run,
    compare,
)
from transformers.trainer_utils import get_last_checkpoint

from drrho.contrastive.pairs import PairEmbeddings
from drrho.integrations.hugging_face_clip import ContrastiveTrainer

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun says


def new_model(seed: int) -> transformers.CLIPModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}
    text = {"num_hidden_layers": 1, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
    text |= {"pad_token_id": PADDING, "bos_token_id": START, "eos_token_id": END}
    vision = {"num_hidden_layers": 2, "image_size": SIZE, "patch_size": 8}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=shape | text, vision_config=shape | vision, projection_dim=64
        )
    )


def train(run: Run) -> transformers.CLIPModel:
    rows = [
        {"pixel_values": image, "input_ids": text, "sample_id": row}
        for row, (image, text) in enumerate(zip(run.pairs.images, run.pairs.texts, strict=True))
    ]
    steps_per_epoch = len(rows) // BATCH
    args = transformers.TrainingArguments(
        str(run.folder),
        num_train_epochs=run.epochs,
        per_device_train_batch_size=BATCH // PROCESSES,
        dataloader_drop_last=True,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP * run.epochs * steps_per_epoch),
        weight_decay=0.1,
        seed=run.seed,
        save_strategy="steps",
        save_steps=SAVE_EVERY * steps_per_epoch,
        logging_steps=steps_per_epoch,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = ContrastiveTrainer(
        new_model(run.seed),
        args,
        objective=run.objective,
        reference=run.reference,
        train_dataset=rows,
    )
    last = get_last_checkpoint(run.folder) if run.folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return trainer.model.eval()


@torch.no_grad()
def embed(model: transformers.CLIPModel, pairs: Pairs) -> PairEmbeddings:
    out = model(pixel_values=pairs.images, input_ids=pairs.texts)
    return PairEmbeddings(out.image_embeds, out.text_embeds)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    return compare(train, embed, arguments, output="runs/hugging_face_clip")


if __name__ == "__main__":
    torch.set_num_threads(1)  # models this small are not worth dividing
    main()
