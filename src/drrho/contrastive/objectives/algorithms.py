"""Algorithms by name: the objective of each, its title in print and where it was published."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from drrho.contrastive.memory.temperature import Learned, PerSample
from drrho.contrastive.objectives.clip import CLIP
from drrho.contrastive.objectives.distillation import Distillation, DistillationTerm
from drrho.contrastive.objectives.gist import GIST
from drrho.contrastive.objectives.global_risk import DRRhoCLIP, FastCLIP
from drrho.contrastive.objectives.objective import Objective
from drrho.contrastive.objectives.siglip import SigLIP

OPENAI_TEMPERATURE = 0.01  # 1 / logit_scale of the published reference, OpenAI's ViT-B/32


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of the literature.

    Attributes:
        objective: objective with the numbers of the published run, if there is one.
        title: its name in print.
        citation: where it was published.
        summary: what it does, in a line.
    """

    objective: Objective
    title: str
    citation: str
    summary: str


_INFO_NCE = CLIP(temperature=Learned())
_DRRHO = DRRhoCLIP(temperature=OPENAI_TEMPERATURE)
_TEACHER = DistillationTerm(teacher_temperatures=(OPENAI_TEMPERATURE,))

ALGORITHMS: Mapping[str, Algorithm] = {
    "openclip": Algorithm(
        _INFO_NCE, "OpenCLIP", "arXiv 2103.00020", "InfoNCE of the batch, learned temperature"
    ),
    "siglip": Algorithm(
        SigLIP(temperature=Learned(initial=0.1)),
        "SigLIP",
        "arXiv 2303.15343",
        "sigmoid loss, learned temperature and bias",
    ),
    "sogclr": Algorithm(
        FastCLIP(temperature=0.03, gamma_min=0.8, gamma_schedule="constant"),
        "SogCLR",
        "arXiv 2202.12387",
        "global contrastive loss, constant temperature and gamma",
    ),
    "isogclr": Algorithm(
        FastCLIP(
            temperature=PerSample(initial=0.03), rho=8.0, gamma_min=0.8, gamma_schedule="constant"
        ),
        "iSogCLR",
        "arXiv 2305.11965",
        "global contrastive loss, a temperature for each sample",
    ),
    "fastclip_v0": Algorithm(
        FastCLIP(temperature=Learned(), times_temperature=False, gamma_min=0.2),
        "FastCLIP v0",
        "arXiv 2407.01445",
        "global contrastive loss without its factor tau, learned temperature, gamma by cosine",
    ),
    "fastclip_v1": Algorithm(
        FastCLIP(times_temperature=False, gamma_min=0.2),
        "FastCLIP v1",
        "arXiv 2407.01445",
        "global contrastive loss, constant temperature, gamma by cosine",
    ),
    "fastclip_v2": Algorithm(
        FastCLIP(
            temperature=PerSample(initial=0.03, maximum=1.0, learning_rate=0.0133, rule="adam"),
            rho=7.0,
            times_temperature=False,
            gamma_min=0.2,
        ),
        "FastCLIP v2",
        "arXiv 2407.01445",
        "global contrastive loss, a temperature for each sample moved as by Adam, gamma by cosine",
    ),
    "fastclip_v3": Algorithm(
        FastCLIP(temperature=Learned(), rho=11.0),
        "FastCLIP v3",
        "arXiv 2407.01445",
        "the published FastCLIP run: learned temperature, rho 11, gamma by cosine",
    ),
    "drrho_clip": Algorithm(
        _DRRHO,
        "DRRho-CLIP",
        "arXiv 2505.06699",
        "the published DRRho-CLIP run: excess over a reference, temperature 0.01",
    ),
    "jest": Algorithm(
        _INFO_NCE, "JEST", "arXiv 2406.17711", "OpenCLIP on a fifth of a super-batch, drawn by JEST"
    ),
    "jest_top_k": Algorithm(
        _INFO_NCE,
        "JEST top-k",
        "arXiv 2406.17711",
        "the same with the largest scores of each chunk",
    ),
    "rho_top_k": Algorithm(
        _INFO_NCE,
        "RHO top-k",
        "arXiv 2206.07137",
        "OpenCLIP on the fifth of a super-batch with the largest excess loss",
    ),
    "gist": Algorithm(
        GIST(temperature=0.01),
        "GIST",
        "arXiv 2402.16829",
        "cross-entropy without the negatives that a guide finds more alike than the pair",
    ),
    "distillation": Algorithm(
        Distillation(teacher_temperatures=(OPENAI_TEMPERATURE,), temperature=Learned()),
        "distillation",
        "arXiv 2311.17049",
        "a reference's matching probabilities alone (MobileCLIP)",
    ),
    "drrho_clip_distillation": Algorithm(
        replace(_DRRHO, distillation=_TEACHER),
        "DRRho-CLIP + distillation",
        "arXiv 2505.06699",
        "DRRho-CLIP, and the reference as a teacher",
    ),
    "openclip_filtered": Algorithm(
        _INFO_NCE,
        "OpenCLIP, filtered",
        "arXiv 2304.14108",
        "OpenCLIP on the 30 % of the pairs that a reference finds most alike",
    ),
}
# Names that are no algorithm's own: of an objective, and of what comparisons make of them.
OTHER_TITLES: Mapping[str, str] = {
    "clip": "CLIP",
    "fastclip": "FastCLIP",
    "filter": "filter by similarity",
    "jest_published": "JEST, published score",
    "jest_top_k_published": "JEST top-k, published score",
    "fastclip_distillation": "FastCLIP + distillation",
    "drrho_clip_equal": "DRRho-CLIP, equal reference",
    "drrho_clip_weaker": "DRRho-CLIP, weaker reference",
    "openclip_right_captions": "OpenCLIP, right captions only",
    "fastclip_both_halves": "FastCLIP on both halves",
    "fastclip_union": "FastCLIP on both data sets",
    "fastclip_both_halves_840": "FastCLIP on both halves, 840 steps",
}


def method_title(method: str) -> str:
    """A method's name in print."""
    if method in ALGORITHMS:
        return ALGORITHMS[method].title
    return OTHER_TITLES.get(method, method)
