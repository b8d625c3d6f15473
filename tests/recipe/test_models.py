"""Models that came from elsewhere are targets like any other: trained, evaluated, exported."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from drrho.cli import main
from drrho.models.build import Model, load_model
from drrho.models.hugging_face import import_transformers
from drrho.recipe.train import train_recipe

PROGRAM = """
import torch
from drrho.models.two_tower import TwoTower, weights_sha256

class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.image = torch.nn.Linear(3 * 8 * 8, 16)
        self.text = torch.nn.Embedding(256, 16)

    def encode_image(self, images, normalize=False):
        found = self.image(images.flatten(1))
        return torch.nn.functional.normalize(found, dim=-1) if normalize else found

    def encode_text(self, tokens, normalize=False):
        found = self.text(tokens).mean(dim=1)
        return torch.nn.functional.normalize(found, dim=-1) if normalize else found

def transform(image):
    pixels = torch.tensor(list(image.resize((8, 8)).tobytes()), dtype=torch.float32)
    return pixels.view(8, 8, 3).permute(2, 0, 1) / 255

def tokenizer(captions):
    return torch.tensor([list(caption.encode().ljust(16)[:16]) for caption in captions])

def build():
    module = Towers()
    return TwoTower(
        module=module,
        train_transform=transform,
        eval_transform=transform,
        tokenizer=tokenizer,
        identity={"architecture": "mine", "weights_sha256": weights_sha256(module)},
    )
"""
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def program(folder):
    path = folder / "encoder.py"
    path.write_text(PROGRAM)
    return f"python:{path}"


def hugging_face(folder):
    transformers = import_transformers()
    torch.manual_seed(0)
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=TOWER
            | {
                "vocab_size": 8,
                "max_position_embeddings": 16,
                "bos_token_id": 1,
                "eos_token_id": 7,
            },
            vision_config=TOWER | {"image_size": 32, "patch_size": 16},
            projection_dim=8,
        )
    ).save_pretrained(folder)
    transformers.CLIPImageProcessor(size=32, crop_size=32).save_pretrained(folder)
    names = ["<pad>", "<s>", "<unk>", "a", "red", "circle", "large", "</s>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 7)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=16,
    ).save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.mark.parametrize("target", [program, hugging_face])
def test_it_is_trained_and_the_run_is_evaluated(target, plain_recipe, tmp_path, capsys):
    recipe = replace(plain_recipe, model=Model(name=target(tmp_path)), output=str(tmp_path / "run"))
    results = train_recipe(recipe)
    arguments = ["evaluate", recipe.output, "--data", str(recipe.evaluation.data)]
    assert main(arguments) == (1 if target is program else 0), "a file names no code to run"
    assert ("say --trust" in capsys.readouterr().err) == (target is program)
    assert main([*arguments, "--trust"]) == 0
    mrr = results.metrics["evaluation/mrr"]
    assert f"{mrr:.4f}" in capsys.readouterr().out


def test_a_checkpoint_of_one_of_hugging_face_is_exported(plain_recipe, tmp_path, capsys):
    source, run, output = tmp_path / "source", tmp_path / "run", tmp_path / "exported"
    source.mkdir()
    name = hugging_face(source)
    train_recipe(replace(plain_recipe, model=Model(name=name), output=str(run)))
    checkpoint = str(run / "checkpoints" / "step-00000004")
    arguments = ["export", str(run), "--format", "hugging-face", "--output", str(output)]
    assert main([*arguments, "--checkpoint", checkpoint]) == 0
    exported, final = load_model(output).module, load_model(run / "model").module
    pairs = list(zip(exported.parameters(), final.parameters(), strict=True))
    assert not all(torch.equal(one, other) for one, other in pairs), "of step 4, not of step 6"
    import_transformers().CLIPModel.from_pretrained(output)
    assert main([*arguments[:3], "open-clip", "--output", str(tmp_path / "x.pt")]) == 1
    assert "can be written for Hugging Face" in capsys.readouterr().err
