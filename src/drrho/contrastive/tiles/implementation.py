"""The choice between implementations of the sums over negatives: plain, in tiles, in Triton."""

from importlib.util import find_spec
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from drrho.contrastive import exact
from drrho.contrastive.memory.temperature import Tau
from drrho.contrastive.pairs import PairEmbeddings, pair_partition
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.contrastive.tiles.tiling import DEFAULT_TILING, Tiling
from drrho.runtime.checks import require_choice
from drrho.runtime.distributed import Partition

Name = Literal["auto", "exact", "tiles", "triton"]
Implementation = Name | Tiling


def check_implementation(impl: Implementation) -> None:
    """Raise ValueError for an unknown name, and RuntimeError for "triton" without Triton."""
    if isinstance(impl, Tiling):
        return
    require_choice("impl", impl, Name)
    if impl == "triton" and find_spec("triton") is None:
        raise RuntimeError(
            "impl='triton' needs Triton, which comes with PyTorch for CUDA; elsewhere `pip install "
            "triton`, or take impl='tiles'"
        )


def check_processes(impl: Implementation, pairs: Partition) -> None:
    """Raise ValueError where the plain code is asked to work over several processes."""
    if impl == "exact" and pairs.num_processes > 1:
        raise ValueError(
            f"impl='exact' works in one process, and there are {pairs.num_processes}; take "
            "impl='tiles'"
        )


def log_gap_means(
    target: PairEmbeddings,
    reference: PairEmbeddings | None = None,
    *,
    temperature: Tau,
    pairs: Partition | None = None,
    impl: Implementation = "auto",
) -> Float[Tensor, "2 batch"]:
    """`log g` of image and text anchors, by an implementation of choice.

    Arguments are as in `tiled_log_gap_means`; `ContrastiveObjective` describes `impl`.

    Raises:
        ValueError: as `tiled_log_gap_means`; or "exact" with several processes, or "triton" with
            embeddings that are not on a GPU.
        TypeError: "triton" with embeddings other than float32, bfloat16 or float16.
        RuntimeError: "triton", and Triton is not installed.
    """
    check_implementation(impl)
    match impl:
        case "exact":
            check_processes(impl, pair_partition(target) if pairs is None else pairs)
            return exact.log_gap_means(target, reference, temperature=temperature)
        case "triton":
            # Its import compiles nothing, but takes its time.
            from drrho.contrastive.tiles.kernels import fused_log_gap_means  # noqa: PLC0415

            return fused_log_gap_means(target, reference, temperature=temperature, pairs=pairs)
        case _:
            return tiled_log_gap_means(
                target, reference, temperature=temperature, pairs=pairs, tiling=as_tiling(impl)
            )


def as_tiling(impl: Implementation) -> Tiling:
    """Return the choices of an implementation that walks over tiles."""
    return impl if isinstance(impl, Tiling) else DEFAULT_TILING
