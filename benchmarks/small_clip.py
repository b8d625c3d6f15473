"""A CLIP of any size for measurements, as a folder that open_clip loads."""

import json
from pathlib import Path
from typing import Any

import torch

from drrho.models.open_clip import import_open_clip


def write_small_clip(folder: Path, architecture: dict[str, Any]) -> None:
    """Random weights and the configuration, as "local-dir:FOLDER"."""
    torch.manual_seed(0)
    module = import_open_clip().CLIP(**architecture)
    folder.mkdir()
    torch.save(module.state_dict(), folder / "open_clip_pytorch_model.bin")
    size = architecture["vision_cfg"]["image_size"]
    config = {"model_cfg": architecture, "preprocess_cfg": {"size": size}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
