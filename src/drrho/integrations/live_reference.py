"""Live references: models and functions that give a reference's logits beside the training."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WITHOUT = "none"  # a reference's name for training without one


class AdaptersOff:
    """The model in training with its adapters off, as a live reference: the base of a LoRA target.

        target = peft.get_peft_model(base, config)
        trainer = SteeredTrainer(target, args, reference=AdaptersOff(target), ...)

    It takes no memory, as the weights are the target's own, which adapters leave as they are.

    Args:
        model: one with the context manager `disable_adapter`, as PEFT's models have it.

    Raises:
        TypeError: the model has no `disable_adapter`.
    """

    def __init__(self, model: nn.Module) -> None:
        if not callable(getattr(model, "disable_adapter", None)):
            raise TypeError(
                f"AdaptersOff needs a model with `disable_adapter`, such as PEFT's, got "
                f"{type(model).__name__}; write a function that gives the logits of its base"
            )
        self.model: Any = model

    @property
    def config(self) -> Any:
        return self.model.config

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        """Compute the output of the base, in evaluation mode and without a graph."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with self.model.disable_adapter():
                return self.model(**inputs)
        finally:
            for module, mode in modes:
                module.training = mode


def check_live_reference(reference: object, model: nn.Module) -> None:
    """Check that a live reference can be called, and is no part of the model in training.

    Raises:
        TypeError: it cannot be called.
        ValueError: it shares trained parameters with the model.
    """
    if isinstance(reference, type) or not callable(reference):
        shown = reference.__name__ if isinstance(reference, type) else type(reference).__name__
        raise TypeError(
            "reference must be a model, a function that gives logits, or the name of a column with "
            f'stored losses ("{WITHOUT}" for none), got {shown}'
        )
    if not isinstance(reference, nn.Module):
        return
    trained = {_memory(p): name for name, p in model.named_parameters() if p.requires_grad}
    shared = [trained[_memory(p)] for p in reference.parameters() if _memory(p) in trained]
    if shared:
        raise ValueError(
            f"reference shares {len(shared)} trained parameters with the model ({shared[0]} and "
            "others), and to hold it still would stop the training; pass a copy "
            "(copy.deepcopy) of it as it is now, or, of a model with adapters, "
            "drrho.integrations.live_reference.AdaptersOff(model)"
        )


def hold_still(reference: Callable[..., Any]) -> None:
    """Freeze a reference that is a module, in evaluation mode."""
    if isinstance(reference, nn.Module):
        reference.requires_grad_(False).eval()


def call_live(reference: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Compute a reference's output, without the cache that a causal model makes for generation."""
    if hasattr(getattr(reference, "config", None), "use_cache"):
        inputs = {**inputs, "use_cache": False}
    return reference(**inputs)


def takes(reference: Callable[..., Any], column: str) -> bool:
    """Whether a reference has an argument for a column of the data."""
    if isinstance(reference, AdaptersOff):
        reference = reference.model
    called = reference.forward if isinstance(reference, nn.Module) else reference
    arguments = inspect.signature(called).parameters
    # What takes anything and names nothing passes it on.
    passes_on = any(it.kind is inspect.Parameter.VAR_KEYWORD for it in arguments.values())
    return column in arguments or (passes_on and "input_ids" not in arguments)


@contextmanager
def evaluating(reference: Callable[..., Any]) -> Iterator[torch.device]:
    """Put a reference that is a module into evaluation mode for a while; gives its device."""
    if not isinstance(reference, nn.Module):
        model = reference.model if isinstance(reference, AdaptersOff) else nn.Module()
        yield _device(model)
        return
    was_training = reference.training
    reference.eval()
    try:
        yield _device(reference)
    finally:
        reference.train(was_training)


def _device(module: nn.Module) -> torch.device:
    return next((it.device for it in module.parameters()), torch.device("cpu"))


def _memory(parameter: Tensor) -> int:
    return parameter.untyped_storage().data_ptr()
