"""What is measured on a GPU, in one page: tests, losses, waiting, training steps, runs, precompute.

    python benchmarks/gpu.py > benchmarks/gpu.md
    python benchmarks/gpu.py --rehearse              # the same code, tiny and on the processor
    python benchmarks/gpu.py --only losses waiting   # some parts

It installs nothing and fits in eight minutes: a part that would begin later is left out, and the
page says so; so it does where a part fails, with the error, and the next one goes on. Parts are
printed as they are finished.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import machine
from small_clip import write_small_clip
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import drrho
from drrho.contrastive.exact import log_anchor_losses
from drrho.contrastive.pairs import PairEmbeddings
from drrho.contrastive.tiles.kernels import fused_log_gap_means
from drrho.contrastive.tiles.log_sums import tiled_log_gap_means
from drrho.models.open_clip import import_open_clip

MINUTES = 8
TAU, EPSILON, DIM = 0.05, 1e-4, 512
PLAIN_MATRICES = 6  # B x B, float32
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Device and sizes; those of a rehearsal say nothing but that the code runs.

    Attributes:
        batches: numbers of pairs of the losses.
        models: architectures of open_clip whose training steps are measured.
        largest: batch at which the search for the largest that fits ends.
    """

    device: str
    dtype: torch.dtype
    batches: Sequence[int]
    peak_size: int
    repeats: int
    models: Sequence[str]
    largest: int
    scenes: int
    steps: int

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"


GPU = Setting(
    device="cuda",
    dtype=torch.bfloat16,
    batches=(4096, 8192, 16384, 32768, 65536),
    peak_size=8192,
    repeats=10,
    models=("ViT-B-32", "ViT-B-16"),
    largest=8192,
    scenes=4096,
    steps=200,
)
REHEARSAL = Setting(
    device="cpu",
    dtype=torch.float32,
    batches=(64,),
    peak_size=128,
    repeats=2,
    models=("tiny",),
    largest=16,
    scenes=64,
    steps=8,
)


def seconds_and_bytes(call: Callable[[], object], setting: Setting) -> tuple[float, int]:
    """Median seconds, and on a GPU the peak of memory above what was there before."""
    for _ in range(2):
        call()
    if not setting.is_gpu:
        seconds = []
        for _ in range(setting.repeats):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)[len(seconds) // 2], 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(setting.repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)[len(seconds) // 2], torch.cuda.max_memory_allocated() - before


def free_bytes(setting: Setting) -> int:
    return torch.cuda.mem_get_info()[0] if setting.is_gpu else 2**30


def embeddings(batch: int, setting: Setting, dtype: torch.dtype) -> list[PairEmbeddings]:
    """Of a target and of a reference, with pairs that resemble each other."""
    generator = torch.Generator(setting.device).manual_seed(0)
    models = []
    for _ in range(2):
        image, noise = (
            torch.randn(batch, DIM, generator=generator, device=setting.device) for _ in range(2)
        )
        models.append(
            PairEmbeddings(*(normalize(it, dim=1).to(dtype) for it in (image, image + noise)))
        )
    return models


# --- tests ----------------------------------------------------------------------------------------


def tests(_: Setting) -> Iterator[str]:
    """Tests that are marked cuda."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/contrastive"]
    done = subprocess.run(
        command, check=False, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    lines = [it for it in done.stdout.splitlines() if it.startswith(("FAILED", "ERROR"))]
    yield f"`pytest -m cuda tests/contrastive`: {'FAILED' if done.returncode else 'passed'}"
    yield from (f"* {line}" for line in lines)


# --- losses ---------------------------------------------------------------------------------------


def steered(function: Callable, models: list[PairEmbeddings]) -> list[Tensor]:
    """DRRho-CLIP's loss and its gradients, with an implementation of the sums over negatives."""
    leaves = [it.detach().requires_grad_() for it in models[0]]
    tau = torch.tensor(TAU, device=leaves[0].device)
    log_means = function(PairEmbeddings(*leaves), models[1], temperature=tau)
    loss = tau * log_anchor_losses(log_means, EPSILON).mean()
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def plain_clip(models: list[PairEmbeddings]) -> None:
    leaves = [it.detach().requires_grad_() for it in models[0]]
    logits = (leaves[0] @ leaves[1].T).float() / TAU
    labels = torch.arange(len(logits), device=logits.device)
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    torch.autograd.grad(loss, leaves)


def plain_siglip(models: list[PairEmbeddings]) -> None:
    """SigLIP's loss with its matrix."""
    leaves = [it.detach().requires_grad_() for it in models[0]]
    logits = (leaves[0] @ leaves[1].T).float() / TAU - 10
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    torch.autograd.grad(-logsigmoid(signs * logits).sum() / len(logits), leaves)


def tiled_siglip(models: list[PairEmbeddings]) -> None:
    loss = drrho.SigLIPLoss(impl="tiles").to(models[0].image.device)
    leaves = [it.detach().requires_grad_() for it in models[0]]
    torch.autograd.grad(loss(*leaves), leaves)


def losses(setting: Setting) -> Iterator[str]:
    """Time, share of the measured peak and memory of losses with their gradients."""
    functions = {"tiles": tiled_log_gap_means}
    if setting.is_gpu:
        functions["Triton kernels"] = fused_log_gap_means
    yield from errors(functions, setting)
    matrix = torch.randn(
        setting.peak_size, setting.peak_size, device=setting.device, dtype=setting.dtype
    )
    seconds, _ = seconds_and_bytes(lambda: matrix @ matrix, setting)
    peak = 2 * setting.peak_size**3 / seconds
    yield f"Peak of products of {setting.peak_size:,}-row matrices: {peak / 1e12:.0f} TFLOP/s.\n"
    yield "| B | loss | ms | share of the peak | memory, MB |\n|---:|---|---:|---:|---:|"
    for batch in setting.batches:
        models = embeddings(batch, setting, setting.dtype)
        # Products of B x d with d x B: similarities of target and reference, again for the
        # gradient, and two with the coefficients.
        calls = {
            f"DRRho-CLIP, {name}": (6, lambda it=it, given=models: steered(it, given))
            for name, it in functions.items()
        }
        calls["SigLIP, tiles"] = (4, lambda given=models: tiled_siglip(given))
        if PLAIN_MATRICES * 4 * batch**2 < free_bytes(setting):
            calls["CLIP, its matrix"] = (3, lambda given=models: plain_clip(given))
            calls["SigLIP, its matrix"] = (3, lambda given=models: plain_siglip(given))
        for name, (products, call) in calls.items():
            seconds, num_bytes = seconds_and_bytes(call, setting)
            share = products * 2 * DIM * batch**2 / seconds / peak
            yield (
                f"| {batch:,} | {name} | {1e3 * seconds:.2f} | {share:.2f} | "
                f"{num_bytes / 1e6:,.0f} |"
            )


def errors(functions: dict[str, Callable], setting: Setting) -> Iterator[str]:
    """The largest error of loss and gradients against float64 on the same numbers."""
    models = embeddings(1000 if setting.is_gpu else 50, setting, setting.dtype)
    wide = [PairEmbeddings(*(it.double() for it in pairs)) for pairs in models]
    truth = steered(tiled_log_gap_means, wide)
    found = {}
    for name, function in functions.items():
        pairs = zip(steered(function, models), truth, strict=True)
        found[name] = max(
            float((ours.double() - exact).abs().max() / exact.abs().max()) for ours, exact in pairs
        )
    told = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
    yield f"Largest relative error against float64, {setting.dtype}: {told}.\n"


# --- waiting --------------------------------------------------------------------------------------


def waiting(setting: Setting) -> Iterator[str]:
    """How often a step of the loss makes the host wait for the device."""
    batch = setting.batches[0]
    target, reference = embeddings(batch, setting, torch.float32)
    ids = torch.arange(batch, device=setting.device)
    cases = {
        "DRRho-CLIP": drrho.DRRhoCLIPLoss(num_samples=batch),
        "DRRho-CLIP, temperature learned": drrho.DRRhoCLIPLoss(
            num_samples=batch, temperature=drrho.Learned(), rho=3.0
        ),
        "FastCLIP": drrho.FastCLIPLoss(num_samples=batch),
        "SigLIP": drrho.SigLIPLoss(),
    }
    yield "| loss, forward and backward | waits of the host in a step |\n|---|---:|"
    for name, case in cases.items():
        loss = case.to(setting.device)

        def step(loss: nn.Module = loss, steered: bool = name.startswith("DRRho")) -> None:
            leaves = [it.detach().requires_grad_() for it in target]
            options = {"reference": tuple(reference)} if steered else {}
            if not isinstance(loss, drrho.SigLIPLoss):
                options["sample_ids"] = ids
            loss(*leaves, **options).backward()

        for _ in range(2):
            step()
        if not setting.is_gpu:
            yield f"| {name} | not on a GPU |"
            continue
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = [it for it in seen if "synchron" in str(it.message)]
        places = sorted({f"{Path(it.filename).name}:{it.lineno}" for it in waits})
        yield f"| {name} | {' '.join([str(len(waits)), *places])} |"


# --- training steps -------------------------------------------------------------------------------


def training(setting: Setting) -> Iterator[str]:
    """A step of a target at the largest batch that fits: open_clip's loop, and with steering."""
    yield (
        "| target | batch | loop | samples/s | of open_clip's | memory, GB |\n"
        "|---|---:|---|---:|---:|---:|"
    )
    for name in setting.models:
        batch = largest_batch(name, setting)
        rates: dict[str, float] = {}
        for loop in ("open_clip", "FastCLIP", "DRRho-CLIP"):
            seconds, num_bytes = training_step(name, loop, batch, setting)
            rates[loop] = batch / seconds
            yield (
                f"| {name} | {batch:,} | {loop} | {rates[loop]:,.0f} | "
                f"{rates[loop] / rates['open_clip']:.3f} | {num_bytes / 1e9:.1f} |"
            )
        share = 1 - rates["DRRho-CLIP"] / rates["FastCLIP"]
        yield f"\n{name}: steering takes {share:.1%} of a step.\n"


def largest_batch(name: str, setting: Setting) -> int:
    """The largest power of two whose step fits."""
    batch = 8 if not setting.is_gpu else 256
    while batch < setting.largest:
        try:
            training_step(name, "DRRho-CLIP", 2 * batch, setting, repeats=1)
        except torch.OutOfMemoryError:
            break
        batch *= 2
    return batch


def training_step(
    name: str, loop: str, batch: int, setting: Setting, *, repeats: int | None = None
) -> tuple[float, int]:
    """Seconds and memory of a step: towers in bfloat16, loss, gradients, fused AdamW."""
    model, size, dim, length = built(name, setting)
    images = torch.randn(batch, 3, size, size, device=setting.device)
    tokens = torch.randint(1, 400, (batch, length), device=setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=setting.is_gpu)
    ids = torch.arange(batch, device=setting.device)
    reference = [normalize(torch.randn(batch, dim, device=setting.device), dim=1) for _ in range(2)]
    if loop == "open_clip":
        theirs = import_open_clip().ClipLoss()
        loss = lambda image, text: theirs(image, text, model.logit_scale.exp())  # noqa: E731
    elif loop == "FastCLIP":
        ours = drrho.FastCLIPLoss(num_samples=batch).to(setting.device)
        loss = lambda image, text: ours(image, text, sample_ids=ids)  # noqa: E731
    else:
        guided = drrho.DRRhoCLIPLoss(num_samples=batch).to(setting.device)
        loss = lambda image, text: guided(  # noqa: E731
            image, text, reference=tuple(reference), sample_ids=ids
        )

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(setting.device, torch.bfloat16):
            image, text = model.encode_image(images), model.encode_text(tokens)
        loss(normalize(image.float(), dim=1), normalize(text.float(), dim=1)).backward()
        optimizer.step()

    if repeats is not None:
        for _ in range(repeats):
            step()
        return 0.0, 0
    return seconds_and_bytes(step, setting)


def built(name: str, setting: Setting) -> tuple[nn.Module, int, int, int]:
    """A target with random weights, its image size, dimensions and context length."""
    open_clip = import_open_clip()
    model = open_clip.CLIP(**TINY) if name == "tiny" else open_clip.create_model(name)
    config = TINY if name == "tiny" else open_clip.get_model_config(name)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    return model.to(setting.device).train(), size, config["embed_dim"], length


# --- runs -----------------------------------------------------------------------------------------

RECIPE = """
import drrho

recipe = drrho.Recipe(
    output="{output}",
    data="{folder}/data/manifest.json",
    loading=drrho.Loading(batch_size={batch}, workers={workers}),
    model=drrho.Model(name="{model}"),
    objective=drrho.DRRhoCLIP(),
    reference="{folder}/reference",
    training=drrho.Training(
        steps={steps},
        log_every={log_every},
        precision="{precision}",
        checkpoint_every={checkpoint_every},
    ),
    compile={compile},
    parallel="{parallel}",
    device="{device}",
)
"""


def runs(setting: Setting) -> Iterator[str]:
    """Waits for data, the stall of a checkpoint, resumption, float16, and FSDP with compile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_clip(folder / "tiny", TINY)
        command = [sys.executable, "-m", "drrho"]
        scenes = ["--scenes.num-samples", str(setting.scenes), "--scenes.seed", "0"]
        _run([*command, "scenes", str(folder / "data"), *scenes], folder)
        _run([*command, "index", str(folder / "data")], folder)
        stored = ["--data", str(folder / "data"), "--device", setting.device]
        of_model = ["--model", f"local-dir:{folder}/tiny", "--output", str(folder / "reference")]
        _run([*command, "reference", "precompute", *of_model, *stored], folder)

        rare, often = setting.steps, max(1, setting.steps // 8)
        whole = Run("whole", checkpoint_every=rare)
        lines = [whole, Run("again", checkpoint_every=rare), Run("often", checkpoint_every=often)]
        rows = [metrics_of(it, folder, setting) for it in lines]
        seconds = [_seconds(it) for it in rows]
        stall = (seconds[2] - seconds[1]) / 7
        wait = sum(row["time/data_wait"] for row in rows[1][1:]) / max(1, len(rows[1]) - 1)
        yield f"* Waits for data, second run: {wait:.1%} of the time."
        yield (
            f"* A checkpoint takes {stall:.2f} s, {stall / seconds[1]:.1%} of {setting.steps} "
            "steps."
        )
        weights = [_weights(folder / it.name) for it in lines]
        yield f"* The same run again: {_bits(weights[0] == weights[1])}."
        half = Run("resumed", checkpoint_every=setting.steps // 2, stop_after=setting.steps // 2)
        metrics_of(half, folder, setting)
        metrics_of(Run("resumed", checkpoint_every=setting.steps // 2), folder, setting)
        same = _weights(folder / "resumed") == weights[0]
        yield f"* Stopped in the middle and resumed: {_bits(same)}."
        for title, other in {
            "float16 with a scaled loss": Run("half", precision="float16"),
            "compiled": Run("compiled", compile=True),
            "FSDP2 on one process, compiled": Run("sharded", parallel="sharded", compile=True),
        }.items():
            if not setting.is_gpu:
                yield f"* {title}: not on a GPU."
                continue
            try:
                last = metrics_of(other, folder, setting)[-1]["loss"]
                yield f"* {title}: loss {last:.4f} at the end; float32 {rows[0][-1]['loss']:.4f}."
            except RuntimeError as error:
                yield f"* {title}: FAILED: {str(error).splitlines()[-1]}"


@dataclass(frozen=True)
class Run:
    """A short run of `drrho train`."""

    name: str
    checkpoint_every: int = 10_000
    precision: str = "float32"
    compile: bool = False
    parallel: str = "replicated"
    stop_after: int | None = None


def metrics_of(run: Run, folder: Path, setting: Setting) -> list[dict[str, float]]:
    """Train, and read the rows of metrics."""
    path = folder / f"{run.name}.py"
    path.write_text(
        RECIPE.format(
            output=folder / run.name,
            folder=folder,
            batch=min(256, setting.scenes // 4),
            workers=4 if setting.is_gpu else 0,
            model="ViT-B-32" if setting.is_gpu else f"local-dir:{folder}/tiny",
            steps=setting.steps,
            log_every=max(1, setting.steps // 8),
            precision=run.precision,
            checkpoint_every=run.checkpoint_every,
            compile=run.compile,
            parallel=run.parallel,
            device=setting.device,
        )
    )
    command = [sys.executable, "-m", "drrho", "train", str(path)]
    if run.stop_after is not None:
        _stopped(command, folder / run.name, run.stop_after)
    else:
        launched = ["torchrun", "--nproc-per-node", "1", "-m", "drrho", "train", str(path)]
        if run.parallel != "replicated":
            command = [str(Path(sys.executable).parent / launched[0]), *launched[1:]]
        _run(command, folder)
    lines = (folder / run.name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _stopped(command: list[str], output: Path, step: int) -> None:
    """Run until the checkpoint of a step is there, and kill it.

    Raises:
        RuntimeError: the run ended by itself before that.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            if any(str(step) in it.name for it in (output / "checkpoints").glob("*[0-9]")):
                running.kill()
            time.sleep(0.02)
    if running.returncode >= 0:
        raise RuntimeError(f"the run ended with {running.returncode} before it was stopped")


def _bits(same: bool) -> str:
    return "the same bits" if same else "other bits"


def _seconds(rows: list[dict[str, float]]) -> float:
    """Seconds of a run from its first logged step, scaled to all steps."""
    share = (rows[-1]["step"] - rows[0]["step"]) / rows[-1]["step"]
    return (rows[-1]["seconds"] - rows[0]["seconds"]) / share


def _weights(folder: Path) -> str:
    files = sorted((folder / "model").rglob("*.safetensors"))
    if not files:
        raise RuntimeError(f"no weights in {folder}/model")
    return hashlib.sha256(b"".join(it.read_bytes() for it in files)).hexdigest()


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


# --- precompute -----------------------------------------------------------------------------------


def precompute(setting: Setting) -> Iterator[str]:
    """Rate of a frozen reference's forward pass: what `reference precompute` is bounded by."""
    yield "| reference | batch | images and texts a second, forward only |\n|---|---:|---:|"
    for name in setting.models:
        model, size, _, length = built(name, setting)
        model.eval()
        batch = 512 if setting.is_gpu else 8
        images = torch.randn(batch, 3, size, size, device=setting.device)
        tokens = torch.randint(1, 400, (batch, length), device=setting.device)

        def forward(model: nn.Module = model, given: tuple = (images, tokens)) -> None:
            with torch.inference_mode(), torch.autocast(setting.device, torch.bfloat16):
                model.encode_image(given[0]), model.encode_text(given[1])

        seconds, _ = seconds_and_bytes(forward, setting)
        yield f"| {name} | {batch} | {batch / seconds:,.0f} |"


PARTS: dict[str, Callable[[Setting], Iterator[str]]] = {
    "tests": tests,
    "losses": losses,
    "waiting": waiting,
    "training": training,
    "runs": runs,
    "precompute": precompute,
}


def page(setting: Setting, names: Sequence[str], *, minutes: float) -> Iterator[str]:
    """Every part, as it is finished."""
    where = torch.cuda.get_device_name() if setting.is_gpu else "a processor: a rehearsal"
    yield f"# Measured on {where}\n"
    yield f"`python benchmarks/gpu.py`. {machine()}\n"
    end = time.monotonic() + 60 * minutes
    for name in names:
        yield f"## {PARTS[name].__doc__.rstrip('.')}\n"
        if time.monotonic() > end:
            yield f"Left out: {minutes:g} minutes were over.\n"
            continue
        try:
            yield from PARTS[name](setting)
        except Exception as error:
            traceback.print_exc()
            yield f"FAILED: {type(error).__name__}: {error}"
        yield ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the processor")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("gpu.py measures a GPU, and torch finds none; --rehearse runs it on the processor")
    failed = False
    setting = REHEARSAL if options.rehearse else GPU
    for line in page(setting, options.only, minutes=options.minutes):
        print(line, flush=True)
        failed = failed or "FAILED" in line
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
