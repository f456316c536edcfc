"""Applies a command to a file or a folder of files, and reports errors."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import typer.core
from tqdm import tqdm

from speechbrain_focalcodec.cli.notes import QUIET, note
from speechbrain_focalcodec.cli.piping import PIPE, reading, writing
from speechbrain_focalcodec.errors import FocalCodecError

__all__ = ["Jobs", "OneLineErrors", "plan", "run"]


@dataclass
class Jobs:
    """The files of one command.

    Arguments
    ---------
    pairs : list of (Path, Path)
        Each input file and its output file.
    folder : bool
        Whether the input is a folder: a failure does not end the run then.
    skipped : int
        Number of files that are left out because their output exists.
    failures : list of str
        Error lines so far.
    suffix : str
        Format of standard output.
    """

    pairs: list[tuple[Path, Path]]
    folder: bool
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    suffix: str = ""


class OneLineErrors(typer.core.TyperGroup):
    """Commands that report errors of the user in one line on stderr.

    The exit code is 1, or 2 for a bad option and 130 after Ctrl-C. Other
    exceptions are defects and keep their traceback.
    """

    def invoke(self, ctx: Any) -> object:
        quiet = QUIET.set(bool(ctx.params.get("quiet")))
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            typer.echo(f"error: {_one_line(error.format_message())}", err=True)
            raise typer.Exit(2) from error
        except (FocalCodecError, OSError) as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            message = str(error) or "stopped: no unfinished file is left"
            typer.echo(message, err=True)
            raise typer.Exit(130) from error
        finally:
            QUIET.reset(quiet)


def plan(
    source: Path,
    target: Path,
    source_suffixes: tuple[str, ...],
    target_suffixes: tuple[str, ...],
    overwrite: bool,
) -> Jobs:
    """Pair each input file with its output file.

    Arguments
    ---------
    source : Path
        A file, ``-`` for standard input, or a folder to search for
        `source_suffixes`.
    target : Path
        A file of one of `target_suffixes`, ``-`` for standard output, or a
        folder; the files of a folder, and standard output, get the first
        suffix.
    source_suffixes : tuple of str
        Suffixes of the files that a folder is searched for.
    target_suffixes : tuple of str
        Suffixes that can be written.
    overwrite : bool
        Whether to replace files that exist.

    Returns
    -------
    Jobs
        The pairs, in the sources' order.

    Raises
    ------
    FocalCodecError
        If there is nothing to read, or the output cannot be `target`.
    """
    if source == PIPE or not source.is_dir():
        return _plan_file(source, target, target_suffixes, overwrite)
    if target == PIPE:
        raise FocalCodecError(
            f"{source}: is a folder, which standard output cannot take; give "
            "the name of a folder"
        )
    # Imports torch.
    from speechbrain_focalcodec.audio.files import find_audio_files

    if target.suffix.lower() in target_suffixes and not target.is_dir():
        raise FocalCodecError(
            f"{target}: is a file's name, but {source} is a folder; give the "
            "name of a folder"
        )
    if target.exists() and not target.is_dir():
        raise FocalCodecError(
            f"{target}: is a file, but {source} is a folder; give a folder"
        )
    files = find_audio_files(source, source_suffixes)
    if not files:
        raise FocalCodecError(
            f"{source}: has no files of {', '.join(source_suffixes)}; "
            "check the path"
        )
    inside = _real(target)
    if inside != _real(source):
        # Files that an earlier run wrote below the source are no input.
        files = [f for f in files if inside not in _real(f).parents]
    sources = {_real(file) for file in files}
    jobs = Jobs([], folder=True)
    written: dict[Path, Path] = {}
    for file in files:
        out = target / file.relative_to(source)
        out = out.with_suffix(target_suffixes[0])
        first = written.setdefault(out, file)
        if first != file:
            jobs.failures.append(
                f"{file}: its output {out} is that of {first} too; rename one"
            )
        elif _real(out) in sources:
            jobs.failures.append(
                f"{file}: its output {out} is an input; give another output"
            )
        elif os.path.exists(out) and not overwrite:  # or its name is too long
            jobs.skipped += 1
        else:
            jobs.pairs.append((file, out))
    return jobs


def _plan_file(
    source: Path, target: Path, suffixes: tuple[str, ...], overwrite: bool
) -> Jobs:
    if source != PIPE and not source.exists():
        raise FocalCodecError(
            f"{source}: no such file or folder; check the path"
        )
    if target == PIPE:
        return Jobs([(source, target)], folder=False, suffix=suffixes[0])
    if source == PIPE and (target.is_dir() or not target.suffix):
        raise FocalCodecError(
            f"{target}: standard input has no name to give to a file in a "
            "folder; name the file"
        )
    # A name without a suffix is that of a folder, there or not.
    if target.is_dir() or not target.suffix:
        target = target / (source.stem + suffixes[0])
    if target.suffix.lower() not in suffixes:
        raise FocalCodecError(
            f"{target}: the output's name must end in {' or '.join(suffixes)}"
        )
    if _is_same(source, target):
        raise FocalCodecError(f"{source}: {_SAME}")
    if target.exists() and not overwrite:
        raise FocalCodecError(
            f"{target}: exists; give --overwrite to replace it"
        )
    return Jobs([(source, target)], folder=False)


_SAME = "would be overwritten by its own output; give another output"


def _is_same(source: Path, target: Path) -> bool:
    return source != PIPE and target.exists() and source.samefile(target)


def _real(path: Path) -> Path:
    """Follow links; unlike `Path.resolve`, also one that leads to itself."""
    return Path(os.path.realpath(path))


def run(jobs: Jobs, convert: Callable[[Path, Path], object], verb: str) -> None:
    """Convert each file; in a folder, continue after a failure.

    Arguments
    ---------
    jobs : Jobs
        From :func:`plan`.
    convert : callable
        Reads the first path and writes the second.
    verb : str
        The command's name, for the progress bar and the summary.

    Raises
    ------
    FocalCodecError, OSError
        If the only file fails.
    KeyboardInterrupt
        If Ctrl-C ends a folder; its text says which files are done.
    typer.Exit
        With code 1, if files of a folder failed; they are listed on stderr.
    """
    if not jobs.folder:
        for pair in jobs.pairs:
            with (
                reading(pair[0]) as source,
                writing(pair[1], jobs.suffix) as target,
                _naming(source),
            ):
                convert(source, target)
        return
    done = 0
    # disable=None: no bar if stderr is not a terminal.
    disable = True if QUIET.get() else None
    for source, target in tqdm(
        jobs.pairs, desc=verb, unit="file", disable=disable, file=sys.stderr
    ):
        try:
            with _naming(source):
                convert(source, target)
            done += 1
        except (FocalCodecError, OSError) as error:
            jobs.failures.append(_one_line(error))
            tqdm.write(f"error: {jobs.failures[-1]}", file=sys.stderr)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(
                f"{verb}: stopped; {done} of {len(jobs.pairs)} files are done "
                "and kept; the same command, without --overwrite, goes on with "
                "the others"
            ) from error
    note(
        f"{verb}: {done} done, {jobs.skipped} skipped (output exists), "
        f"{len(jobs.failures)} failed"
    )
    if jobs.failures:
        typer.echo("failed:", err=True)
        for line in jobs.failures:
            typer.echo(f"  {line}", err=True)
        raise typer.Exit(1)


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Add the file's name to errors of the codec."""
    try:
        yield
    except FocalCodecError as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error


def _one_line(error: Exception | str) -> str:
    """The message in one line of valid Unicode."""
    text = " ".join(str(error).split())
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
