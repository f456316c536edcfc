"""Measures speed and memory of this codec and of others, side by side.

Example, from the repository's root:

    python benchmarks/speed.py --seconds 2,10 --batch 1,8

Each system is loaded alone, with random weights (the mini model is trained),
and takes noise; a stage runs once to warm up, then several times. Peak memory
on the CPU is the whole process's resident set, and above what it held before
the case; on CUDA it is what torch allocated. The physical limit is the
machine's float32 matrix rate, measured around each system. This codec's
multiply-accumulates are counted, so that the share of that rate can be given:
once for all that is done at that length, and once ("layers alone") for the
linear layers and convolutions as in a pass over 10 s, which neither longer
attention nor overlapping windows raise. What is missing is skipped by name.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from agreement import token_agreement
from cases import Counts, Settings, SystemResult, measure_system
from measuring import describe_machine
from peers import make_peers
from published import compare_speed, speed_table
from reporting import parse_names, parse_numbers, write_json
from speed_report import (
    agreement_table,
    best_batches,
    draw_speed,
    long_table,
    wide_table,
)
from systems import ENCODER, MODELS, WHOLE, CodecSystem, System, build_full

STAGES = {"encoder": ENCODER, "encode": "encode", "decode": "decode"}
STAGES["whole"] = WHOLE


def make_systems(names: list[str], options: list[str]) -> list[System]:
    """List what to measure.

    Arguments
    ---------
    names : list of str
        Systems wanted; all when empty.
    options : list of str
        Options of this codec to measure besides float32.

    Returns
    -------
    list of System
        This codec first.

    Raises
    ------
    typer.BadParameter
        If there is no such system.
    """
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


def measure(
    systems: list[System],
    settings: Settings,
    stages: list[str],
    save: Callable[[list[SystemResult]], Any] = lambda results: None,
) -> list[SystemResult]:
    """Measure systems one after the other.

    Arguments
    ---------
    systems : list of System
        What to measure.
    settings : Settings
        Lengths, batches, device.
    stages : list of str
        Which stages.
    save : callable
        Is given the results after each system, so that none is lost.

    Returns
    -------
    list of SystemResult
        Of each system.
    """
    results: list[SystemResult] = []
    counts: Counts = {}
    for system in systems:
        if not set(stages) & set(system.stages):
            continue
        results.append(
            measure_system(system, stages, settings, counts, typer.echo)
        )
        save(results)
    return results


def main(
    seconds: Annotated[
        str, typer.Option(help="Lengths of the audio.")
    ] = "2,10,30,60",
    batch: Annotated[str, typer.Option(help="Items at once.")] = "1,8",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; torch's choice.")
    ] = None,
    systems: Annotated[str, typer.Option(help="Only these.")] = "",
    stages: Annotated[
        str, typer.Option(help="Of encoder, encode, decode, whole.")
    ] = "encoder,encode,decode,whole",
    options: Annotated[
        str, typer.Option(help="Of bf16, int8, compile; bf16+compile.")
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 5,
    max_wall: Annotated[
        float, typer.Option(help="Skip what would take longer (s).")
    ] = 600.0,
    best_batch: Annotated[
        bool, typer.Option("--best-batch", help="Search the fastest batch.")
    ] = False,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Where that search ends.")
    ] = 1024,
    data: Annotated[
        Path | None,
        typer.Option(help="Real speech, for the options' token agreement."),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Files of it.")] = 20,
    published: Annotated[
        Path | None,
        typer.Option(
            help="A clone of lucadellalib/focalcodec: measure it beside the "
            "full-size model, in turns, and nothing else."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture: png, pdf or svg.")
    ] = None,
) -> None:
    """Measure speed and memory, of this codec and of others."""
    chosen = make_systems(parse_names(systems), parse_names(options))
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
        best_batch=best_batch,
        max_batch=max_batch,
    )
    machine = describe_machine(settings.device)
    if published is not None:
        rows = compare_speed(
            *(build_full(), published, settings.seconds, repeats),
            settings.device,
        )
        typer.echo(f"{describe([], machine)}\n\n{speed_table(rows)}")
        if out is not None:
            write_json(out, {"machine": machine, "published": rows})
        return

    def save(results, agreement=()):
        if out is not None:
            write_json(out, to_json(results, agreement, settings, machine))

    results = measure(
        chosen, settings, [STAGES[x] for x in parse_names(stages)], save
    )
    agreement = []
    if data is not None:
        agreement = token_agreement(chosen, data, clips, settings.device)
    save(results, agreement)
    title = describe(results, machine)
    typer.echo(f"\n{title}\n\n{long_table(results)}\n\n{wide_table(results)}")
    if best_batch:
        best = SystemResult("best", cases=best_batches(results))
        typer.echo(f"\nFastest batches:\n\n{long_table([best])}")
    if agreement:
        typer.echo(f"\n{agreement_table(agreement)}")
    if picture is not None:
        draw_speed(results, picture, title)


def matrix_rates(results: list[SystemResult]) -> dict[str, float | None]:
    """Give the machine's limit around all cases of this codec.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.

    Returns
    -------
    dict
        Before, after and the mean, in 10^9 multiply-accumulates a second.
    """
    rates = [
        rate / 1e9
        for result in results
        if "option" in result.facts
        for rate in result.matrix_rates
    ] or [rate / 1e9 for result in results for rate in result.matrix_rates]
    if not rates:
        return {"before": None, "after": None, "mean": None}
    mean = statistics.mean(rates)
    return {"before": rates[0], "after": rates[-1], "mean": mean}


def describe(results: list[SystemResult], machine: dict[str, Any]) -> str:
    """Write where and with what something was measured in a line.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.
    machine : dict
        From `describe_machine`.

    Returns
    -------
    str
        The line.
    """
    rates = matrix_rates(results)
    where = machine["gpu"] or (
        f"{machine['cpu']} ({machine['cpu_capability']}), "
        f"threads: {machine['threads']}"
    )
    line = f"{where}, torch {machine['torch']}"
    if machine["transformers"]:
        line += f", transformers {machine['transformers']}"
    if rates["mean"] is not None:
        line += (
            f"; float32 matrix rate {rates['before']:.1f} GMAC/s before, "
            f"{rates['after']:.1f} after"
        )
    return line


def to_json(
    results: list[SystemResult],
    agreement: Any,
    settings: Settings,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Turn all results into what JSON can hold.

    Arguments
    ---------
    results : list of SystemResult
        Of all systems.
    agreement : sequence of dict
        From :func:`token_agreement`.
    settings : Settings
        What was asked.
    machine : dict
        From `describe_machine`.

    Returns
    -------
    dict
        Ready for JSON.
    """
    return {
        "machine": machine,
        "settings": asdict(settings) | {"device": str(settings.device)},
        "matrix_rate_gmac_per_second": matrix_rates(results),
        "systems": [asdict(result) for result in results],
        "best_batches": [
            asdict(case)
            for case in (best_batches(results) if settings.best_batch else [])
        ],
        "token_agreement": list(agreement),
    }


if __name__ == "__main__":
    typer.run(main)
