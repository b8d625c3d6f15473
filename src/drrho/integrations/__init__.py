"""Steering inside other training loops: open_clip's, Hugging Face's Trainer, Lightning."""

from drrho.runtime.torchvision import import_torchvision

# transformers imports torchvision wherever it is installed.
import_torchvision()
