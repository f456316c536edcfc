"""Measures speed and memory of this codec and of others.

Example, from the repository's root:

    python benchmarks/speed.py --seconds 2,10 --batch 1,8

Models have random weights (the mini model is trained) and code noise. Each
stage runs once to warm up, then several times; the median counts. Peak memory
on the CPU is that of the process, on CUDA the memory that torch allocated.

For this codec, multiply-accumulates are counted, and the table gives the share
of the machine's float32 matrix rate that they reach: once for all work at that
length, once ("layers alone") for the linear layers and convolutions of a pass
over 10 s, which leaves out longer attention and overlapping windows. A system
that is not available is skipped by name.

With ``--published CLONE`` the published code, `compat` and this package take
turns with the same weights, and the fastest of all turns counts.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import (
    Work,
    count_work,
    describe_machine,
    markdown_table,
    matrix_rate,
    measure_memory,
    parse_names,
    parse_numbers,
    show,
    time_in_turns,
    time_runs,
    title_of,
    write_json,
)
from peers import make_peers
from published import OURS, PUBLISHED, build_both
from speech import compare_tokens, find_clips
from systems import (
    ENCODER,
    MODELS,
    WHOLE,
    CodecSystem,
    Missing,
    System,
    build_full,
    make_noise,
)

from speechbrain_focalcodec.audio import read_audio

STAGES = {
    "encoder": ENCODER,
    "encode": "encode",
    "decode": "decode",
    "whole": WHOLE,
}
REFERENCE_S = 10.0


@dataclass
class Settings:
    """Audio, batch sizes and devices to measure.

    Arguments
    ---------
    seconds : list of float
        Lengths of the audio.
    batches : list of int
        Batch sizes.
    device : torch.device
        Where.
    repeats : int
        Timed runs of each case.
    max_wall : float
        A case that is expected to take longer (s) is skipped.
    """

    seconds: list[float]
    batches: list[int]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    repeats: int = 5
    max_wall: float = 600.0


@dataclass
class Case:
    """One stage of one system at one length and batch size.

    Arguments
    ---------
    system, stage : str
        What was measured.
    seconds : float
        Length of each item.
    batch : int
        Batch size.
    skipped : str, optional
        Why there are no numbers.
    wall : float, optional
        Median time of a run (s).
    times_real_time : float, optional
        Seconds of audio, all items together, coded in a second.
    peak_mib, above_mib : float, optional
        Peak memory, in all and above that before the case.
    gmac : float, optional
        Billion multiply-accumulates a second of audio.
    share, layer_share : float, optional
        Share of the matrix rate, by all work and by the layers alone.
    """

    system: str
    stage: str
    seconds: float
    batch: int
    skipped: str | None = None
    wall: float | None = None
    times_real_time: float | None = None
    peak_mib: float | None = None
    above_mib: float | None = None
    gmac: float | None = None
    share: float | None = None
    layer_share: float | None = None


@dataclass
class Result:
    """All cases of a system.

    Arguments
    ---------
    name : str
        The system.
    skipped : str, optional
        Why it was not measured.
    facts : dict
        Parameters, sample rate and the like.
    matrix_rates : list of float
        Before and after its cases (multiply-accumulates a second).
    cases : list of Case
        The cases.
    """

    name: str
    skipped: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    matrix_rates: list[float] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


def choose_systems(names: list[str], options: list[str]) -> list[System]:
    """List this codec's models with their options, then the others."""
    systems: list[System] = [
        CodecSystem(name, build, option)
        for name, build in MODELS.items()
        for option in (None, *options)
    ]
    systems += make_peers()
    known = {system.base for system in systems}
    if unknown := set(names) - known:
        raise typer.BadParameter(
            f"no system {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sorted(known))}"
        )
    return [x for x in systems if not names or x.base in names]


def measure_system(
    system: System,
    stages: Sequence[str],
    settings: Settings,
    counts: dict[tuple[str, str, float], Work],
) -> Result:
    """Load a system, measure its cases, and unload it.

    `counts` holds the work of a stage by system, stage and seconds. Work that
    is missing is counted and added.
    """
    try:
        system.load(settings.device)
    except Missing as error:
        typer.echo(f"{system.name}: skipped, {error}")
        return Result(system.name, skipped=str(error))
    result = Result(system.name, facts=system.facts)
    result.matrix_rates.append(matrix_rate(settings.device))
    with torch.inference_mode():
        for stage in (stage for stage in system.stages if stage in stages):
            speed = None
            for seconds in settings.seconds:
                for batch in settings.batches:
                    case = Case(system.name, stage, seconds, batch)
                    _measure(case, system, settings, speed)
                    speed = case.times_real_time or speed
                    result.cases.append(case)
                    typer.echo(
                        f"{case.system}, {stage}, {seconds:g} s x {batch}: "
                        + (case.skipped or f"{case.wall:.3f} s")
                    )
    result.matrix_rates.append(matrix_rate(settings.device))
    rate = statistics.mean(result.matrix_rates)
    for case in result.cases:
        _add_shares(case, system, counts, rate)
    system.unload()
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def _measure(
    case: Case, system: System, settings: Settings, speed: float | None
) -> None:
    """Fill in a case; `speed` is that of the case before."""
    audio = case.seconds * case.batch
    if speed is not None:
        expected = audio / speed * (settings.repeats + 1)
        if expected > settings.max_wall:
            case.skipped = (
                f"would take about {expected:.0f} s, more than "
                f"{settings.max_wall:g} s (--max-wall)"
            )
            return

    def work():
        run = system.prepare(case.stage, case.seconds, case.batch)
        run()
        return time_runs(run, settings.repeats, settings.device)

    try:
        walls, memory = measure_memory(work, settings.device)
    except RuntimeError as error:  # on a GPU, not always OutOfMemoryError
        case.skipped = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return
    case.peak_mib, case.above_mib = memory.peak, memory.above
    case.wall = statistics.median(walls)
    case.times_real_time = audio / case.wall


def _add_shares(
    case: Case,
    system: System,
    counts: dict[tuple[str, str, float], Work],
    rate: float,
) -> None:
    """Compare the speed with the matrix rate."""
    if case.times_real_time is None:
        return
    for seconds in (case.seconds, REFERENCE_S):
        key = system.base, case.stage, seconds
        if system.counted and key not in counts:
            # Not in the timed runs: counting turns fast paths off.
            counts[key] = count_work(system.prepare(case.stage, seconds, 1))
    # An option does the work of its base.
    work = counts.get((system.base, case.stage, case.seconds))
    reference = counts.get((system.base, case.stage, REFERENCE_S))
    if work is None or reference is None:
        return
    total = (work.layers + work.attention) / case.seconds
    case.gmac = total / 1e9
    case.share = total * case.times_real_time / rate
    case.layer_share = (
        reference.layers / REFERENCE_S * case.times_real_time / rate
    )


@torch.inference_mode()
def measure_agreement(
    systems: Sequence[System], data: Path, clips: int, device: torch.device
) -> list[dict[str, Any]]:
    """Compare tokens of this codec's options with those of float32.

    Each clip is encoded alone. The result has a row for each option that is
    available.
    """

    def encode(system: CodecSystem) -> tuple[list[torch.Tensor], int]:
        system.load(device)
        codec = system.codec
        rate = codec.sample_rate_input
        sigs = [read_audio(x, rate)[0] for x in find_clips(data, clips)]
        toks = [codec.encode(x[None].to(device))[0] for x in sigs]
        dim = codec.quantizer.dim
        system.unload()
        return toks, dim

    rows = []
    exact: dict[str, list[torch.Tensor]] = {}
    for system in systems:
        if not isinstance(system, CodecSystem) or not system.option:
            continue
        try:
            toks, dim = encode(system)
        except Missing:  # its cases say why
            continue
        if system.base not in exact:
            plain = CodecSystem(system.base, system.build)
            exact[system.base] = encode(plain)[0]
        pairs = zip(exact[system.base], toks, strict=True)
        rows.append(
            {"system": system.name, **asdict(compare_tokens(pairs, dim))}
        )
    return rows


@torch.no_grad()
def compare_published(clone: Path, settings: Settings) -> list[dict[str, Any]]:
    """Time the published code, `compat` and this package in turns.

    Gives stage, seconds of audio, and the seconds of each run by name.
    """
    codec = build_full().eval().requires_grad_(False)
    models = {**build_both(codec, clone), OURS: codec}
    for model in models.values():
        model.to(settings.device)
    rows = []
    for seconds in settings.seconds:
        sig = make_noise(seconds, 1, codec.sample_rate_input, settings.device)
        toks = codec.sig_to_toks(sig)
        for stage, method, x in (
            ("encode", "sig_to_toks", sig),
            ("decode", "toks_to_sig", toks),
        ):
            runs = {
                n: partial(getattr(m, method), x) for n, m in models.items()
            }
            # As users call it, with windows and checks.
            runs[OURS] = partial(getattr(codec, stage), x)
            walls = time_in_turns(runs, settings.repeats, settings.device)
            rows.append({"stage": stage, "seconds": seconds, "walls": walls})
            typer.echo(f"{stage}, {seconds:g} s: measured", err=True)
    return rows


def main(
    seconds: Annotated[
        str, typer.Option(help="Lengths of the audio.")
    ] = "2,10,30,60",
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; torch's choice.")
    ] = None,
    systems: Annotated[str, typer.Option(help="Only these.")] = "",
    stages: Annotated[
        str, typer.Option(help="Of encoder, encode, decode, whole.")
    ] = "encoder,encode,decode,whole",
    options: Annotated[
        str, typer.Option(help="Of bf16, int8, compile, bf16+compile, onnx.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 5,
    max_wall: Annotated[
        float, typer.Option(help="Skip what would take longer (s).")
    ] = 600.0,
    data: Annotated[
        Path | None,
        typer.Option(help="Real speech, to compare the options' tokens."),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Files of it.")] = 20,
    published: Annotated[
        Path | None,
        typer.Option(
            help="A clone of lucadellalib/focalcodec: measure it beside the "
            "full-size model, and nothing else."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measure speed and memory of this codec and of others."""
    chosen = choose_systems(parse_names(systems), parse_names(options))
    if unknown := set(parse_names(stages)) - set(STAGES):
        raise typer.BadParameter(
            f"no stage {', '.join(sorted(unknown))}; there are "
            f"{', '.join(STAGES)}"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(
        seconds=parse_numbers(seconds, 0.001),
        batches=[int(number) for number in parse_numbers(batch, 1)],
        device=torch.device(device),
        repeats=repeats,
        max_wall=max_wall,
    )
    machine = describe_machine(settings.device)
    title = title_of(machine)
    if published is not None:
        rows = compare_published(published, settings)
        typer.echo(f"{title}\n\n{published_table(rows)}")
        write_json(out, {"machine": machine, "published": rows})
        return
    report = {
        "machine": machine,
        "settings": asdict(settings) | {"device": device},
    }
    wanted = {STAGES[stage] for stage in parse_names(stages)}
    counts: dict[tuple[str, str, float], Work] = {}
    results: list[Result] = []
    for system in chosen:
        if wanted & set(system.stages):
            results.append(
                measure_system(system, list(wanted), settings, counts)
            )
            report["systems"] = [asdict(result) for result in results]
            write_json(out, report)
    if rates := [x / 1e9 for result in results for x in result.matrix_rates]:
        title += (
            f"; float32 matrix rate {min(rates):.1f} to {max(rates):.1f} GMAC/s"
        )
    typer.echo(f"\n{title}\n\n{speed_table(results)}")
    if data is not None:
        agreement = measure_agreement(chosen, data, clips, settings.device)
        write_json(out, report | {"token_agreement": agreement})
        typer.echo(f"\n{agreement_table(agreement)}")


def speed_table(results: Sequence[Result]) -> str:
    """Write a row for each case, and a line for each that was skipped."""
    head = [
        *("system", "stage", "audio (s)", "batch", "wall (s)"),
        *("x real time", "peak (MiB)", "above start (MiB)"),
        *("GMAC a second of audio", "share of rate", "layers alone"),
    ]
    rows, skipped = [], []
    for result in results:
        if result.skipped:
            skipped.append(f"\nSkipped: {result.name}: {result.skipped}")
        for case in result.cases:
            if case.skipped:
                size = f"{case.seconds:g} s x {case.batch}"
                name = f"{case.system}, {case.stage}, {size}"
                skipped.append(f"\nSkipped: {name}: {case.skipped}")
                continue
            rows.append(
                [
                    *(case.system, case.stage),
                    *(f"{case.seconds:g}", str(case.batch)),
                    show(case.wall, ".3f"),
                    show(case.times_real_time, ".2f"),
                    show(case.peak_mib, ".0f"),
                    show(case.above_mib, ".0f"),
                    show(case.gmac, ".2f"),
                    show(case.share, ".0%"),
                    show(case.layer_share, ".0%"),
                ]
            )
    return "\n".join([markdown_table(head, rows), *skipped])


def agreement_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the shares of tokens and bits that equal those of float32."""
    return markdown_table(
        ["system", "tokens", "equal tokens", "equal bits"],
        [
            [
                row["system"],
                str(row["num_tokens"]),
                show(1 - row["token_share"], ".2%"),
                show(1 - row["bit_share"], ".3%"),
            ]
            for row in rows
        ],
    )


def published_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the fastest turns."""
    names = list(rows[0]["walls"])
    lines = []
    for row in rows:
        best = {name: min(walls) for name, walls in row["walls"].items()}
        lines.append(
            [f"{row['stage']}, {row['seconds']:g} s"]
            + [f"{wall:.3f}" for wall in best.values()]
            + [f"{best[PUBLISHED] / best[name]:.2f}" for name in names[1:]]
        )
    head = ["", *(f"{name} (s)" for name in names)]
    head += [f"{name}: times as fast" for name in names[1:]]
    return markdown_table(head, lines)


if __name__ == "__main__":
    typer.run(main)
