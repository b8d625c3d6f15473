"""What the checks of `tests/type_checks.py` refuse, so that no other test has to ask."""

import sys

import pytest
import torch

from tests import type_checks

CODE = """
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "n d"]


def half(number: float) -> float:
    return number / 2


def name(number: int) -> str:
    return number


def product(left: Rows, right: Float[Tensor, "d k"]) -> Float[Tensor, "n k"]:
    return left @ right if len(left) < 5 else left


def nested(rows: list[Rows] | None) -> int:
    return 0


@dataclass(frozen=True)
class Point:
    x: float
    rows: Rows | None = None

    @property
    def double(self) -> float:
        return [self.x]

    @classmethod
    def make(cls, x: float) -> "Point":
        return cls(x)


@dataclass(frozen=True)
class Labelled:
    label: str
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked_by_a_test.py").write_text(CODE)
    finders = list(sys.meta_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        type_checks.check("checked_by_a_test")
        import checked_by_a_test  # noqa: PLC0415

        yield checked_by_a_test
    sys.meta_path[:] = finders
    del sys.modules["checked_by_a_test"]


def test_what_is_right_passes(checked):
    assert checked.half(3) == 1.5
    assert checked.product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert checked.nested([torch.ones(2, 3)]) == checked.nested(None) == 0
    assert checked.Point.make(1).x == 1
    assert checked.Point(0.5, torch.ones(2, 3)).rows is not None
    assert checked.Labelled("a").label == "a"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda it: it.half("3"), id="an argument"),
        pytest.param(lambda it: it.name(3), id="a result"),
        pytest.param(lambda it: it.product(torch.ones(2), torch.ones(2)), id="a rank"),
        pytest.param(lambda it: it.product(torch.ones(2, 3), torch.ones(2, 3)), id="two shapes"),
        pytest.param(lambda it: it.product(torch.ones(6, 3), torch.ones(3, 4)), id="its shape"),
        pytest.param(lambda it: it.product(torch.ones(2, 3).int(), torch.ones(3, 4)), id="a dtype"),
        pytest.param(lambda it: it.nested([torch.ones(2)]), id="a shape in a list"),
        pytest.param(lambda it: it.Point("1"), id="a field"),
        pytest.param(lambda it: it.Point(1.0, torch.ones(2)), id="the shape of a field"),
        pytest.param(lambda it: it.Point(1.0).double, id="a property"),
        pytest.param(lambda it: it.Point.make("1"), id="a class method"),
        pytest.param(lambda it: it.Labelled(1), id="a field without shapes beside it"),
    ],
)
def test_what_is_wrong_is_refused(checked, call):
    with pytest.raises(TypeError):
        call(checked)


def test_only_shapes_pay_for_shapes(checked):
    """beartype's wrapper is one function with a code object of its own, without jaxtyping's."""
    assert checked.half.__code__.co_name == "half"
    assert checked.product.__code__.co_name == "wrapped_fn"
