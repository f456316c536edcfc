"""What data preparation finds in a folder: audio files and their headers.

What differs between corpora is a :class:`Corpus`. Headers alone are read (or
all audio, on request), in threads, and nothing is written into the data
folder. Each header read is appended to a journal beside the manifest,
together with the file's size and modification time: a preparation that was
interrupted goes on from there, and one that is run again reads only what has
changed.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from speechbrain_focalcodec.audio.files import AUDIO_SUFFIXES
from speechbrain_focalcodec.audio.gate import CheckedFile
from speechbrain_focalcodec.audio.tree import audio_tree
from speechbrain_focalcodec.errors import DataError, abridge
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["WHOLE", "Corpus", "scan_split"]

logger = logging.getLogger(__name__)

#: The split that is the whole data folder, where splits are any folders.
WHOLE = "all"

# Longer files are taken as damaged.
MAX_DURATION = 24 * 3600.0
# How many bad files an error message names.
MAX_NAMED = 10
# Files that a thread reads before it writes to the journal.
PART_FILES = 256
# Samples decoded at once.
DECODE_SAMPLES = 2**20


@dataclass(frozen=True)
class Corpus:
    """What sets one corpus apart from the others.

    Arguments
    ---------
    name : str
        Name for messages.
    folder_names : tuple of str
        Names of the folder that holds the splits; the data folder may be
        that folder or its parent.
    suffixes : sequence of str
        Suffixes of the audio files, in lower case.
    chapters : bool
        Whether files lie in ``split/speaker/chapter/``. Otherwise they may
        lie at any depth, and the split "all" is the whole data folder.
    path_ids : bool
        Whether an utterance's id is its path below the folder that holds
        the splits, without suffix, rather than its name alone.
    speakers : bool
        Whether the first folder below a split is the speaker; a file in
        the split's folder itself has none.
    read_text : Callable, optional
        Takes a folder and returns a dict from a file's stem to its
        transcript, of those files that have one.
    read_facts : Callable, optional
        Takes an audio file and returns a dict of numbers to put into its
        manifest entry. ValueError and OSError make it a bad file.

    Example
    -------
    >>> corpus = Corpus("Mine", ("Mine",), (".wav",))
    >>> corpus.split_folder(Path("data"), "dev").as_posix()
    'data/dev'
    """

    name: str
    folder_names: tuple[str, ...] = ()
    suffixes: Sequence[str] = AUDIO_SUFFIXES
    chapters: bool = True
    path_ids: bool = False
    speakers: bool = True
    read_text: Callable[[Path], dict[str, str]] | None = None
    read_facts: Callable[[Path], dict[str, float]] | None = None

    def split_folder(self, root: Path, split: str) -> Path:
        """The folder of a split.

        Arguments
        ---------
        root : Path
            The folder that holds the splits.
        split : str
            Name of the split.

        Returns
        -------
        Path
            The folder, which may be missing.
        """
        folder = root / split
        if split == WHOLE and not self.chapters and not folder.is_dir():
            return root
        return folder

    def find_root(self, data_folder: Path, splits: Sequence[str]) -> Path:
        """The folder that holds all splits.

        Arguments
        ---------
        data_folder : Path
            The folder that the user named.
        splits : sequence of str
            Names of the splits.

        Returns
        -------
        Path
            The data folder or a folder in it.

        Raises
        ------
        DataError
            If a split is missing.
        """
        nested = [data_folder / name for name in self.folder_names]
        roots = [root for root in (data_folder, *nested) if root.is_dir()]
        for root in roots:
            if all(self.split_folder(root, split).is_dir() for split in splits):
                return root
        # The innermost folder is the likely one to look into.
        root = roots[-1]
        found = sorted(item.name for item in _folders(root))
        missing = [
            split
            for split in splits
            if not self.split_folder(root, split).is_dir()
        ]
        raise DataError(
            f"{self.name} in {root} lacks {', '.join(missing)}; found: "
            f"{', '.join(found) or 'no folders'}"
        )

    def parts(self, folder: Path) -> Iterator[tuple[Path, list[str]]]:
        """Yield folders that hold audio, with names of files, some at a time.

        Arguments
        ---------
        folder : Path
            Folder of a split.

        Yields
        ------
        folder : Path
            A folder in it, or itself.
        names : list of str
            Names of some of its files, sorted.
        """
        found: Iterator[tuple[Path | str, Any]]
        if self.chapters:
            found = (
                (chapter, _names(chapter, self.suffixes))
                for speaker in _folders(folder)
                for chapter in _folders(speaker)
            )
        else:
            tree = audio_tree(str(folder), self.suffixes)
            found = (
                (inner, [name for _, name in files])
                for inner, files in groupby(tree, lambda file: file[0])
            )
        for inner, names in found:
            names.sort()
            for start in range(0, len(names), PART_FILES):
                yield Path(inner), names[start : start + PART_FILES]


def scan_split(
    corpus: Corpus,
    data_folder: Path,
    root: Path,
    split: str,
    journal: Path,
    num_workers: int | None = None,
    max_failures: float = 0.0,
    decode: bool = False,
) -> dict[str, dict]:
    """The entries of one split; headers not yet known are read.

    Files that cannot be used are listed in ``.skipped.tsv`` beside the
    journal, with the reason.

    Arguments
    ---------
    corpus : Corpus
        What to look for.
    data_folder : Path
        The folder that paths in the entries are relative to.
    root : Path
        The folder in it that holds the splits.
    split : str
        Name of the split.
    journal : Path
        The file of headers that were read, ``.headers.jsonl``.
    num_workers : int, optional
        Number of threads.
    max_failures : float
        Share of the files that may be unusable and are then skipped.
    decode : bool
        Decode each file to its end, to find damage that headers hide.

    Returns
    -------
    dict
        The utterances by their id.

    Raises
    ------
    DataError
        If too many files are unusable, there are none, or two have one id.
    """
    if not 0 <= max_failures <= 1:
        raise DataError(f"max_failures must be in 0..1, not {max_failures}")
    folder = corpus.split_folder(root, split)
    scan = _Scan(
        corpus,
        data_folder,
        root,
        folder,
        dict(_read_journal(journal)),
        decode,
    )
    parts = list(corpus.parts(folder))
    total = sum(len(names) for _, names in parts)
    allowed = math.ceil(max_failures * total - 1e-6)
    entries: dict[str, dict] = {}
    bad: list[tuple[str, str]] = []
    journal.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(journal, "a", encoding="utf-8") as stream,
        ThreadPoolExecutor(num_workers) as pool,
        tqdm(total=total, desc=split, unit="file") as progress,
    ):
        try:
            jobs = [pool.submit(scan.read, *part) for part in parts]
            for job in jobs:  # in order: of two with one id the first is kept
                read = job.result()
                bad += read.bad
                for utt_id, path, entry in read.entries:
                    first = entries.setdefault(utt_id, entry)
                    if first is not entry:
                        why = (
                            f"two files have the utterance id {utt_id}: "
                            f"{first['wav']} and {entry['wav']}"
                        )
                        bad.append((path, why))
                # The newline comes first: it ends a line that an
                # interrupted run may have left torn.
                for header in read.headers:
                    stream.write("\n" + json.dumps(header))
                stream.flush()
                progress.update(read.num_files)
                # Enough to be named in the message.
                if len(bad) > allowed + MAX_NAMED:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    report = journal.with_name(f"{split}.skipped.tsv")
    _report_bad(bad, report)
    if len(bad) > allowed:
        reasons = abridge([why for _, why in sorted(bad)], "; ", MAX_NAMED)
        raise DataError(
            f"{len(bad)} unusable file(s) in {folder}, of {total}, where "
            f"max_failures={max_failures:g} allows {allowed} (listed in "
            f"{report}): {reasons}. Repair or move them, or raise "
            "max_failures to skip them"
        )
    if not entries:
        layout = "speaker/chapter/" if corpus.chapters else ""
        raise DataError(
            f"the split {folder} is empty: there is no "
            f"{layout}*{'/'.join(corpus.suffixes)} in it"
        )
    return entries


class _Read(NamedTuple):
    """What came of some files."""

    num_files: int
    entries: list[tuple[str, str, dict]]  # id, path in the data folder
    headers: list[list]  # to go into the journal
    bad: list[tuple[str, str]]  # path, reason


@dataclass(frozen=True)
class _Scan:
    """Reads some files of a split; called in threads."""

    corpus: Corpus
    data_folder: Path
    root: Path
    folder: Path
    known: dict
    decode: bool

    def read(self, folder: Path, names: list[str]) -> _Read:
        """Entries, new headers and bad files."""
        result = _Read(len(names), [], [], [])
        read_text = self.corpus.read_text
        texts = read_text(folder) if read_text else {}
        for name in names:
            path = folder / name
            relative = path.relative_to(self.data_folder).as_posix()
            try:
                relative.encode()  # as manifests are written
                facts = self._facts(path, relative, result.headers)
            except UnicodeEncodeError:
                why = f"{relative!r}: is not valid Unicode; rename it"
                result.bad.append((repr(relative), why))
            except (ValueError, OSError) as error:
                result.bad.append((relative, str(error)))
            else:
                entry = {"wav": "{data_root}/" + _escape(relative), **facts}
                inner = path.relative_to(self.folder).parts
                if self.corpus.speakers and len(inner) > 1:
                    entry["spk_id"] = _escape(inner[0])
                if path.stem in texts:
                    entry["text"] = _escape(texts[path.stem])
                result.entries.append((self._id(path), relative, entry))
        return result

    def _id(self, path: Path) -> str:
        if self.corpus.path_ids:
            return path.relative_to(self.root).with_suffix("").as_posix()
        return path.stem

    def _facts(self, path: Path, relative: str, headers: list) -> dict:
        """The numbers of an entry."""
        stat = path.stat()
        key = (relative, stat.st_size, stat.st_mtime_ns)
        num_samples, sample_rate, decoded = self.known.get(key, (0, 0, False))
        if not num_samples or (self.decode and not decoded):
            num_samples, sample_rate = read_header(path, self.decode)
            headers.append([*key, num_samples, sample_rate, self.decode])
        facts = {
            "num_samples": num_samples,
            "sample_rate": sample_rate,
            "duration": num_samples / sample_rate,
        }
        read_facts = self.corpus.read_facts
        return facts | (read_facts(path) if read_facts else {})


def read_header(path: Path, decode: bool = False) -> tuple[int, int]:
    """Read what a file's header says, and check it.

    Arguments
    ---------
    path : Path
        The file.
    decode : bool
        Decode it to its end, to see that it holds what it claims.

    Returns
    -------
    num_samples : int
        Samples of a channel.
    sample_rate : int
        In Hz.

    Raises
    ------
    AudioError
        If the file is unreadable, empty, cut short, or claims what cannot
        be.

    Example
    -------
    >>> import numpy, soundfile
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> soundfile.write(path, numpy.zeros(800), 16000)
    >>> read_header(path)
    (800, 16000)
    """
    with CheckedFile(path, MAX_DURATION) as file:
        while decode and file.position < file.num_frames:
            left = file.num_frames - file.position
            file.read(min(DECODE_SAMPLES, left))
        return file.num_frames, file.sample_rate


def _read_journal(
    journal: Path,
) -> Iterator[tuple[tuple[str, int, int], tuple[int, int, bool]]]:
    """Yield the headers that earlier runs have read.

    The key is the path in the data folder, size and modification time; the
    value is number of samples, sample rate and whether all was decoded.
    """
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in lines.splitlines():
        try:
            path, size, mtime, *header = json.loads(line)
            num_samples, sample_rate, *decoded = header
        except (ValueError, TypeError):
            continue  # torn by an interruption: the header is read again
        yield (path, size, mtime), (num_samples, sample_rate, any(decoded))


def _report_bad(bad: list[tuple[str, str]], report: Path) -> None:
    """List the bad files; without any, an older list goes."""
    if not bad:
        report.unlink(missing_ok=True)
        return
    lines = [
        f"{path if path.isprintable() else repr(path)}\t"
        f"{' '.join(why.split())}\n"
        for path, why in sorted(bad)
    ]
    atomic_write_text(report, "".join(lines))
    logger.warning("%d file(s) skipped: see %s", len(bad), report)


def _folders(folder: Path) -> list[Path]:
    """The visible sub-folders, sorted; linked ones too."""
    with os.scandir(folder) as items:
        return sorted(
            Path(item.path)
            for item in items
            if item.is_dir() and not item.name.startswith(".")
        )


def _names(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """The names of the visible audio files of a folder."""
    with os.scandir(folder) as items:
        return [
            item.name
            for item in items
            if not item.name.startswith(".")
            and os.path.splitext(item.name)[1].lower() in suffixes
            and item.is_file()
        ]


def _escape(text: str) -> str:
    """Double the braces: SpeechBrain formats each string of a manifest."""
    return text.replace("{", "{{").replace("}", "}}")
