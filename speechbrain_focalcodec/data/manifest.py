"""The engine behind data preparation: from folders to JSON manifests.

Both supported corpora are laid out as ``split/speaker/chapter/files``; what
differs between them is a :class:`Corpus`. Preparation reads audio headers
only, in threads, and never writes into the data folder. Each header read is
appended to ``<split>.headers.jsonl`` beside the manifest, together with the
file's size and modification time: a preparation that was interrupted goes on
from there, and one that is run again reads only what has changed.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

from speechbrain_focalcodec.atomic import atomic_write_text
from speechbrain_focalcodec.errors import DataError

__all__ = ["Corpus", "prepare_splits", "read_manifest", "write_manifest"]

# Bounds of a believable header; outside them the file is taken as damaged.
MAX_SAMPLE_RATE = 384_000
MAX_DURATION = 24 * 3600.0
# How many bad files an error message names.
MAX_NAMED = 10


@dataclass(frozen=True)
class Corpus:
    """What sets one corpus of the speaker/chapter layout apart.

    Arguments
    ---------
    name : str
        Name for messages.
    folder_names : tuple of str
        Names of the folder that holds the splits; the data folder may be
        that folder or its parent.
    suffix : str
        Suffix of the audio files, for example ".flac".
    read_text : Callable
        Takes a chapter folder and returns a dict from utterance id to
        transcript, of those utterances that have one.

    Example
    -------
    >>> corpus = Corpus("Mine", ("Mine",), ".wav", lambda folder: {})
    >>> corpus.suffix
    '.wav'
    """

    name: str
    folder_names: tuple[str, ...]
    suffix: str
    read_text: Callable[[Path], dict[str, str]]


def prepare_splits(
    corpus: Corpus,
    data_folder: str | Path,
    save_folder: str | Path,
    splits: Sequence[str],
    num_workers: int | None = None,
    skip_prep: bool = False,
) -> dict[str, Path]:
    """Write one manifest for each split of a corpus.

    Arguments
    ---------
    corpus : Corpus
        What to look for.
    data_folder : str or Path
        The folder that holds the splits, or its parent. Only read from.
    save_folder : str or Path
        Where the manifests go; it must lie outside the data folder.
    splits : sequence of str
        Names of the splits' folders.
    num_workers : int, optional
        Number of threads; by default a few more than the machine has cores.
    skip_prep : bool
        Do nothing but return the paths (the manifests exist already).

    Returns
    -------
    dict
        Path of the manifest for each split.

    Raises
    ------
    DataError
        When the data folder or a split is missing, a split is empty, a file
        is unreadable, or the save folder lies in the data folder.

    Example
    -------
    >>> import numpy, soundfile
    >>> tmp = getfixture("tmp_path")
    >>> chapter = tmp / "data" / "dev" / "spk1" / "chap1"
    >>> chapter.mkdir(parents=True)
    >>> soundfile.write(chapter / "utt1.wav", numpy.zeros(800), 16000)
    >>> corpus = Corpus("Mine", (), ".wav", lambda folder: {"utt1": "HI"})
    >>> paths = prepare_splits(corpus, tmp / "data", tmp / "save", ["dev"])
    >>> read_manifest(paths["dev"])["utt1"]["wav"]
    '{data_root}/dev/spk1/chap1/utt1.wav'
    """
    save_folder = Path(save_folder)
    splits = [splits] if isinstance(splits, str) else list(splits)
    paths = {split: save_folder / f"{split}.json" for split in splits}
    if skip_prep:
        return paths
    data_folder = Path(data_folder)
    if not data_folder.is_dir():
        raise DataError(
            f"the data folder {data_folder} does not exist: give the folder "
            f"that holds the splits of {corpus.name}"
        )
    if save_folder.resolve().is_relative_to(data_folder.resolve()):
        raise DataError(
            f"the save folder {save_folder} lies in the data folder "
            f"{data_folder}, which is never written to: choose another one"
        )
    root = _find_root(corpus, data_folder, splits)
    for split in splits:
        entries = _scan_split(
            corpus,
            data_folder,
            root / split,
            save_folder / f"{split}.headers.jsonl",
            num_workers,
        )
        write_manifest(paths[split], entries)
    return paths


def write_manifest(path: str | Path, entries: dict[str, dict]) -> None:
    """Write a manifest, sorted by id; an equal one is left as it is.

    Arguments
    ---------
    path : str or Path
        The file to write.
    entries : dict
        The utterances by their id.

    Example
    -------
    >>> path = getfixture("tmp_path") / "dev.json"
    >>> write_manifest(path, {"b": {"duration": 1.0}, "a": {"duration": 2.0}})
    >>> list(read_manifest(path))
    ['a', 'b']
    """
    path = Path(path)
    entries = {utt_id: entries[utt_id] for utt_id in sorted(entries)}
    text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, UnicodeDecodeError):
        pass  # missing or damaged: written anew
    atomic_write_text(path, text)


def read_manifest(path: str | Path) -> dict[str, dict]:
    """Read a manifest.

    Arguments
    ---------
    path : str or Path
        A file that preparation has written.

    Returns
    -------
    dict
        The utterances by their id.

    Raises
    ------
    DataError
        When the file is missing or is not a manifest.

    Example
    -------
    >>> read_manifest("nowhere/dev.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    speechbrain_focalcodec.errors.DataError: cannot read the manifest ...
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read the manifest {path} ({error.strerror}): run the "
            "data preparation first"
        ) from error
    except ValueError as error:
        raise DataError(
            f"the manifest {path} is damaged ({error}): remove it and run "
            "the data preparation again"
        ) from error
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) for entry in entries.values()
    ):
        raise DataError(
            f"the manifest {path} does not map utterance ids to utterances"
        )
    return entries


def _find_root(corpus: Corpus, data_folder: Path, splits: list[str]) -> Path:
    """Return the folder that holds all splits."""
    nested = [data_folder / name for name in corpus.folder_names]
    roots = [root for root in (data_folder, *nested) if root.is_dir()]
    for root in roots:
        if all((root / split).is_dir() for split in splits):
            return root
    # The innermost folder is the likely one to look into.
    root = roots[-1]
    found = sorted(item.name for item in _folders(root))
    missing = [split for split in splits if split not in found]
    raise DataError(
        f"{corpus.name} in {root} lacks {', '.join(missing)}; found: "
        f"{', '.join(found) or 'no folders'}"
    )


def _folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders, sorted."""
    with os.scandir(folder) as items:
        return sorted(
            Path(item.path)
            for item in items
            if item.is_dir() and not item.name.startswith(".")
        )


def _scan_split(
    corpus: Corpus,
    data_folder: Path,
    split_folder: Path,
    journal: Path,
    num_workers: int | None,
) -> dict[str, dict]:
    """Return the entries of one split, reading headers not yet known."""
    known = dict(_read_journal(journal))
    chapters = [
        chapter
        for speaker in _folders(split_folder)
        for chapter in _folders(speaker)
    ]
    entries: dict[str, dict] = {}
    bad: list[str] = []
    journal.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(journal, "a", encoding="utf-8") as stream,
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(
            total=len(chapters), desc=split_folder.name, unit="chapter"
        ) as progress,
    ):
        try:
            jobs = [
                pool.submit(_scan_chapter, corpus, data_folder, chapter, known)
                for chapter in chapters
            ]
            for job in as_completed(jobs):
                scanned, headers, errors = job.result()
                bad += errors
                for utt_id, entry in scanned:
                    if utt_id in entries:
                        raise DataError(
                            f"two files have the utterance id {utt_id}: "
                            f"{entries[utt_id]['wav']} and {entry['wav']}"
                        )
                    entries[utt_id] = entry
                # The newline comes first: it ends a line that an
                # interrupted run may have left torn.
                for header in headers:
                    stream.write("\n" + json.dumps(header))
                stream.flush()
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if bad:
        named = "; ".join(sorted(bad)[:MAX_NAMED])
        raise DataError(
            f"{len(bad)} unreadable file(s) in {split_folder}: {named}. "
            "Fetch them again, or move them away"
        )
    if not entries:
        raise DataError(
            f"the split {split_folder} is empty: there is no "
            f"speaker/chapter/*{corpus.suffix} in it"
        )
    return entries


def _read_journal(
    journal: Path,
) -> Iterator[tuple[tuple[str, int, int], tuple[int, int]]]:
    """Yield the headers that earlier runs have read.

    The key is the path in the data folder, size and modification time; the
    value is number of samples and sample rate.
    """
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in lines.splitlines():
        try:
            path, size, mtime, num_samples, sample_rate = json.loads(line)
        except (ValueError, TypeError):
            continue  # torn by an interruption: the header is read again
        yield (path, size, mtime), (num_samples, sample_rate)


def _scan_chapter(
    corpus: Corpus, data_folder: Path, chapter: Path, known: dict
) -> tuple[list[tuple[str, dict]], list[list], list[str]]:
    """Return a chapter's entries, its new headers and its bad files."""
    entries, headers, bad = [], [], []
    texts = corpus.read_text(chapter)
    for path, stat in _audio_files(chapter, corpus.suffix):
        relative = path.relative_to(data_folder).as_posix()
        key = (relative, stat.st_size, stat.st_mtime_ns)
        header = known.get(key)
        if header is None:
            try:
                header = _read_header(path)
            except (ValueError, RuntimeError, OSError) as error:
                bad.append(f"{path} ({error})")
                continue
            headers.append([*key, *header])
        num_samples, sample_rate = header
        entry = {
            "wav": "{data_root}/" + _escape(relative),
            "num_samples": num_samples,
            "sample_rate": sample_rate,
            "duration": num_samples / sample_rate,
            "spk_id": _escape(chapter.parent.name),
        }
        if path.stem in texts:
            entry["text"] = _escape(texts[path.stem])
        entries.append((path.stem, entry))
    return entries, headers, bad


def _audio_files(
    chapter: Path, suffix: str
) -> Iterable[tuple[Path, os.stat_result]]:
    """Yield the audio files of a chapter with what stat says of them."""
    with os.scandir(chapter) as items:
        for item in sorted(items, key=lambda item: item.name):
            visible = not item.name.startswith(".")
            if visible and item.name.endswith(suffix) and item.is_file():
                yield Path(item.path), item.stat()


def _read_header(path: Path) -> tuple[int, int]:
    """Return number of samples (a channel) and sample rate (Hz)."""
    info = soundfile.info(str(path))
    if not 0 < info.samplerate <= MAX_SAMPLE_RATE:
        raise ValueError(f"a sample rate of {info.samplerate} Hz")
    if not 0 < info.frames <= MAX_DURATION * info.samplerate:
        raise ValueError(f"{info.frames} samples")
    return info.frames, info.samplerate


def _escape(text: str) -> str:
    """Double the braces: SpeechBrain formats each string of a manifest."""
    return text.replace("{", "{{").replace("}", "}}")
