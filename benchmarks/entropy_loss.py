"""Memory and time of the entropy loss, against its definition.

    python benchmarks/entropy_loss.py

The naive form is the definition: a softmax over all codes for every frame,
[frames, codes] numbers in several tensors. It is measured for few frames, and
a straight line through these gives what more frames would take. Each
measurement is a process of its own, and counts forward and backward. Memory on
the CPU is the highest resident set above what the process held before.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from measuring import (
    describe_machine,
    measure_memory,
    run_apart,
    time_runs,
)
from reporting import markdown_table, parse_numbers, show, write_json
from torch.nn import functional as F

from speechbrain_focalcodec.modules.bsq import BinarySphericalQuantizer

app = typer.Typer(add_completion=False)

INVERSE_TEMPERATURE = 100.0


@dataclass(frozen=True)
class Cost:
    """What one forward and backward pass takes.

    Arguments
    ---------
    form : str
        ``"factorised"`` (the package's) or ``"naive"``.
    codes, frames : int
        Sizes.
    memory_mib : float, optional
        Peak above what was held before; None where the system does not tell.
    seconds : float
        The fastest of the repetitions.
    loss : float, optional
        Its value; None when extrapolated.
    """

    form: str
    codes: int
    frames: int
    memory_mib: float | None
    seconds: float
    loss: float | None = None

    @property
    def extrapolated(self) -> bool:
        """Whether nothing was run."""
        return self.loss is None


def naive_entropy_loss(
    quantizer: BinarySphericalQuantizer, lats: torch.Tensor
) -> torch.Tensor:
    """Compute the loss by its definition.

    Arguments
    ---------
    quantizer : BinarySphericalQuantizer
        Tells the codes.
    lats : torch.Tensor
        Latents [B, N, d] on the unit sphere.

    Returns
    -------
    torch.Tensor
        The loss, a scalar, in nats.
    """
    toks = torch.arange(quantizer.codebook_size, device=lats.device)
    codes = quantizer.toks_to_codes(toks)
    logits = 2 * INVERSE_TEMPERATURE * lats.flatten(0, 1) @ codes.T
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    frame = -(probs * log_probs).sum(-1).mean()
    mean = probs.mean(0)
    return frame + (mean * mean.clamp(min=1e-12).log()).sum()


def measure(
    form: str, codes: int, frames: int, repeats: int, device: str
) -> Cost:
    """Run one form, in this process.

    Arguments
    ---------
    form : str
        ``"factorised"`` or ``"naive"``.
    codes, frames : int
        Sizes.
    repeats : int
        Timed runs; the memory is that of a run before them.
    device : str
        Where.

    Returns
    -------
    Cost
        Of one pass.
    """
    torch.manual_seed(0)
    quantizer = BinarySphericalQuantizer(codes).to(device)
    lats = torch.randn(1, frames, quantizer.dim)
    lats = F.normalize(lats, dim=-1).to(device).requires_grad_()

    def run(num_frames: int = frames) -> float:
        lats.grad = None
        some = lats[:, :num_frames]
        if form == "naive":
            loss = naive_entropy_loss(quantizer, some)
        else:
            loss = quantizer.entropy_loss(
                some, inverse_temperature=INVERSE_TEMPERATURE
            )
        loss.backward()
        return loss.item()

    run(2)  # what is loaded at the first use does not count
    loss, memory = measure_memory(run, torch.device(device))
    seconds = min(time_runs(run, repeats, torch.device(device)))
    return Cost(form, codes, frames, memory.above, seconds, loss)


def measure_apart(*arguments) -> Cost:
    """Run one form in a new process, with the same number of threads.

    Arguments
    ---------
    *arguments : tuple
        Those of :func:`measure`.

    Returns
    -------
    Cost
        Of one pass.
    """
    return run_apart(measure, *arguments)


def extrapolate(costs: list[Cost], frames: int) -> Cost:
    """Estimate what more frames would take.

    Arguments
    ---------
    costs : list of Cost
        Of one form and codebook; two sizes at least.
    frames : int
        How many.

    Returns
    -------
    Cost
        On the straight line that fits best.
    """
    sizes = [cost.frames for cost in costs]

    def at(values: list[float]) -> float:
        return float(np.polyval(np.polyfit(sizes, values, 1), frames))

    memory = [cost.memory_mib for cost in costs if cost.memory_mib is not None]
    return Cost(
        costs[0].form,
        costs[0].codes,
        frames,
        at(memory) if len(memory) == len(costs) else None,
        at([cost.seconds for cost in costs]),
    )


def compare(
    codes: int,
    frames: int,
    naive_frames: list[int],
    repeats: int,
    device: str,
) -> list[Cost]:
    """Measure both forms with one codebook.

    Arguments
    ---------
    codes, frames : int
        Sizes of the factorised form.
    naive_frames : list of int
        Frames of both forms, whose losses must agree.
    repeats : int
        Timed runs of each.
    device : str
        Where.

    Returns
    -------
    list of Cost
        The factorised form, then the naive one; the last is extrapolated to
        `frames`, unless the naive form has run with them.

    Raises
    ------
    AssertionError
        If the forms disagree.
    """
    naive, factorised = [], []
    for size in naive_frames:
        naive.append(measure_apart("naive", codes, size, repeats, device))
        factorised.append(
            measure_apart("factorised", codes, size, repeats, device)
        )
        losses = [naive[-1].loss, factorised[-1].loss]
        if not np.isclose(*losses, rtol=1e-3, atol=1e-3):
            raise AssertionError(f"{codes} codes: the losses are {losses}")
    costs = [*factorised, *naive]
    if frames not in naive_frames:
        ours = measure_apart("factorised", codes, frames, repeats, device)
        costs = [*factorised, ours, *naive, extrapolate(naive, frames)]
    return costs


def make_table(costs: list[Cost]) -> str:
    """Write the costs as a Markdown table.

    Arguments
    ---------
    costs : list of Cost
        The rows.

    Returns
    -------
    str
        The table.
    """
    head = ["form", "codes", "frames", "peak memory (MiB)", "time (s)"]
    rows = [
        [
            cost.form + (" (extrapolated)" if cost.extrapolated else ""),
            f"2^{cost.codes.bit_length() - 1}",
            f"{cost.frames:,}",
            show(cost.memory_mib, ",.0f"),
            show(cost.seconds, ".3f"),
        ]
        for cost in costs
    ]
    return markdown_table(head, rows)


@app.command()
def entropy_loss(
    bits: Annotated[
        str, typer.Option(help="Logarithms of the codebooks' sizes.")
    ] = "13,16",
    frames: Annotated[
        int, typer.Option(min=2, help="Frames of a batch.")
    ] = 28000,
    naive_frames: Annotated[
        str, typer.Option(help="Frames that the naive form gets.")
    ] = "500,1000,2000",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Write the results as JSON.")
    ] = None,
):
    """Compare memory and time of the entropy loss with the naive form."""
    sizes = [int(size) for size in parse_numbers(naive_frames, minimum=2)]
    if len(sizes) < 2:
        raise typer.BadParameter("--naive-frames: give two sizes or more")
    costs = []
    for dim in parse_numbers(bits, minimum=1):
        costs += compare(2 ** int(dim), frames, sizes, repeats, device)
    typer.echo(make_table(costs))
    if out is not None:
        result = {
            "environment": describe_machine(torch.device(device)),
            "results": [
                asdict(cost) | {"extrapolated": cost.extrapolated}
                for cost in costs
            ],
        }
        write_json(out, result)


if __name__ == "__main__":
    app()
