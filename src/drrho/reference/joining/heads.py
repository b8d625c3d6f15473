"""Linear heads that map the features of two models into one space, fitted in float64.

With image features $x$ and text features $y$ of pairs, of unit length and then centred, and their
covariances $C_{xx}$, $C_{yy}$, $C_{xy}$, gathered in chunks:

* ridge regression predicts the texts: $x (C_{xx} + l I)^{-1} C_{xy}$ is compared with $y$;
* canonical correlation analysis (CCA), with $U S V^T$ the singular value decomposition of
  $(C_{xx} + l I)^{-1/2} C_{xy} (C_{yy} + l I)^{-1/2}$, compares $x (C_{xx} + l I)^{-1/2} U S^p$
  with $y (C_{yy} + l I)^{-1/2} V S^p$, in the first k directions;
* a contrastive fit minimises CLIP's loss over both heads, beginning with the heads of the CCA.

`l` is a share of the mean variance of a feature. Sources: A. E. Hoerl and R. W. Kennard,
Technometrics 1970; H. Hotelling, Biometrika 1936, regularised as by H. D. Vinod, J. Econometrics
1976; powers of the correlations, Y. Gong et al., IJCV 2014 (arXiv 1212.4522).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from operator import itemgetter

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from drrho.models.towers.joined import Method

SHARES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # ridge penalties, of the mean variance
POWERS = (0.0, 0.5, 1.0)
DIMENSIONS = (128, 256)  # beside all
TEMPERATURE = 0.05
STEPS, BATCH = 300, 512  # of the contrastive fit
LEARNING_RATE = 3e-4
CHECK_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Two affine maps into one space, whose cosines are similarities.

    Attributes:
        settings: how they were fitted, in words.
        image, text: matrices (features, d).
        image_mean, text_mean: subtracted from the features first.
    """

    method: Method
    settings: str
    image: Float64[Tensor, "image_features dim"]
    text: Float64[Tensor, "text_features dim"]
    image_mean: Float64[Tensor, " image_features"]
    text_mean: Float64[Tensor, " text_features"]

    def project_images(
        self, features: Float[Tensor, "pairs image_features"]
    ) -> Float64[Tensor, "pairs dim"]:
        """Map image features of unit length into the shared space."""
        return (features.double() - self.image_mean) @ self.image

    def project_texts(
        self, features: Float[Tensor, "pairs text_features"]
    ) -> Float64[Tensor, "pairs dim"]:
        """Map text features of unit length into the shared space."""
        return (features.double() - self.text_mean) @ self.text

    def state(self) -> dict[str, Tensor]:
        """Return weights and biases, as `drrho.models.towers.joined` names them."""
        return {
            "image_head.weight": self.image.T.float().contiguous(),
            "image_head.bias": -(self.image_mean @ self.image).float(),
            "text_head.weight": self.text.T.float().contiguous(),
            "text_head.bias": -(self.text_mean @ self.text).float(),
        }


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Means and covariances of the features of pairs."""

    image_mean: Float64[Tensor, " image_features"]
    text_mean: Float64[Tensor, " text_features"]
    image: Float64[Tensor, "image_features image_features"]
    text: Float64[Tensor, "text_features text_features"]
    cross: Float64[Tensor, "image_features text_features"]


def moments_of(chunks: Iterator[tuple[Tensor, Tensor]]) -> Moments:
    """Gather moments of pairs chunk by chunk; only the covariances are kept in memory.

    Sums are about the mean of the first chunk, so that large means cost no digits.

    Args:
        chunks: image features and text features of the same pairs.

    Raises:
        ValueError: all images, or all texts, have the same features, as far as float32 tells.
    """
    first: tuple[Tensor, Tensor] | None = None
    sums: list[Tensor] = []
    count = 0
    for chunk in chunks:
        x, y = (side.double() for side in chunk)
        first = (x.mean(dim=0), y.mean(dim=0)) if first is None else first
        x, y = x - first[0], y - first[1]
        parts = [x.sum(dim=0), y.sum(dim=0), x.T @ x, y.T @ y, x.T @ y]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
        count += len(x)
    assert first is not None
    dx, dy, xx, yy, xy = (part / count for part in sums)
    for side, squares, offset, origin in (("image", xx, dx, first[0]), ("text", yy, dy, first[1])):
        variance = float((squares.diagonal() - offset.square()).sum())
        if not variance > 1e-12 * float((origin + offset).square().sum()):
            raise ValueError(
                f"the {side} model gives all pairs the same features, so that nothing can be told "
                f"apart by it; take another {side} model, or look at what it is given"
            )
    return Moments(
        image_mean=first[0] + dx,
        text_mean=first[1] + dy,
        image=xx - dx[:, None] * dx,
        text=yy - dy[:, None] * dy,
        cross=xy - dx[:, None] * dy,
    )


def ridge_heads(moments: Moments) -> Iterator[Heads]:
    """Fit the ridge regression of texts on images, one for each penalty."""
    values, vectors = torch.linalg.eigh(moments.image)
    rotated = vectors.T @ moments.cross
    identity = torch.eye(len(moments.text), dtype=torch.float64)
    for share in SHARES:
        penalty = share * moments.image.diagonal().mean()
        yield Heads(
            method="ridge",
            settings=f"penalty {share:g} of the mean variance",
            image=vectors @ (rotated / (values + penalty)[:, None]),
            text=identity,
            image_mean=moments.image_mean,
            text_mean=moments.text_mean,
        )


def cca_heads(moments: Moments, *, only: int | None = None) -> Iterator[Heads]:
    """Fit a regularised CCA, one for each penalty, number of directions and power.

    Args:
        only: place of the one to fit; None fits all.
    """
    full = min(moments.cross.shape)
    directions = sorted({min(k, full) for k in (*DIMENSIONS, full)})
    settings = list(product(SHARES, directions, POWERS))
    settings = settings if only is None else [settings[only]]
    sides = [torch.linalg.eigh(side) for side in (moments.image, moments.text)]
    for share, group in groupby(settings, key=itemgetter(0)):
        roots = []
        for side, (values, vectors) in zip((moments.image, moments.text), sides, strict=True):
            penalty = share * side.diagonal().mean()
            roots.append((vectors * (values.clamp_min(0) + penalty).rsqrt()) @ vectors.T)
        left, correlations, right = torch.linalg.svd(
            roots[0] @ moments.cross @ roots[1], full_matrices=False
        )
        for _, k, power in group:
            scale = correlations[:k].pow(power)
            yield Heads(
                method="cca",
                settings=f"penalty {share:g} of the mean variance, {k} directions, "
                f"correlations to the power {power:g}",
                image=roots[0] @ left[:, :k] * scale,
                text=roots[1] @ right[:k].T * scale,
                image_mean=moments.image_mean,
                text_mean=moments.text_mean,
            )


def num_heads(method: Method, moments: Moments) -> int:
    """Count the heads that a method fits."""
    full = min(moments.cross.shape)
    directions = len({min(k, full) for k in (*DIMENSIONS, full)})
    return {
        "ridge": len(SHARES),
        "cca": len(SHARES) * directions * len(POWERS),
        "contrastive": STEPS // CHECK_EVERY,
    }[method]


def contrastive_heads(
    start: Heads,
    images: Float[Tensor, "pairs image_features"],
    texts: Float[Tensor, "pairs text_features"],
    *,
    generator: torch.Generator,
) -> Iterator[Heads]:
    """Minimise CLIP's loss over both heads, from others on; heads after every 50 steps.

    Weights are in whitened coordinates of the start: `A W`, where `W` begins as the identity, so
    that a step means the same whatever the scale of the features.

    Args:
        images, texts: features of the pairs to fit on, at any length.
        generator: generator of the batches.
    """
    x, y = start.project_images(images).float(), start.project_texts(texts).float()
    scale = x.std(), y.std()
    x, y = x / scale[0], y / scale[1]
    eye = torch.eye(x.shape[1])
    maps = [eye.clone().requires_grad_(), eye.clone().requires_grad_()]
    optimizer = torch.optim.AdamW(maps, lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).unique()
        a, b = normalize(x[rows] @ maps[0], dim=-1), normalize(y[rows] @ maps[1], dim=-1)
        logits = a @ b.T / TEMPERATURE
        target = torch.arange(len(rows))
        loss = cross_entropy(logits, target) + cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0:
            found = [weight.detach().double() for weight in maps]
            yield replace(
                start,
                method="contrastive",
                settings=f"{step} steps from the CCA with {start.settings}",
                image=start.image / scale[0].double() @ found[0],
                text=start.text / scale[1].double() @ found[1],
            )
