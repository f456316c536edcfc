"""Finds the audio files of a corpus and reads their headers.

Threads read the headers (or, on request, all audio). Each header is appended
to a journal beside the manifest, with the file's size and modification time:
a preparation that was interrupted resumes, and one that is run again reads
only files that have changed. Nothing is written into the data folder.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from speechbrain_focalcodec.audio.gate import CheckedFile
from speechbrain_focalcodec.audio.tree import audio_folders
from speechbrain_focalcodec.corpus.sources.corpora import WHOLE, Corpus
from speechbrain_focalcodec.errors import DataError, abridge
from speechbrain_focalcodec.utils.files import atomic_write_text

__all__ = ["find_root", "read_header", "scan_split"]

logger = logging.getLogger(__name__)

MAX_DURATION = 24 * 3600.0  # longer files are taken as damaged
MAX_NAMED = 10  # bad files that an error message names
PART_FILES = 256  # files read between writes to the journal
DECODE_SAMPLES = 2**20  # decoded at once


def find_root(corpus: Corpus, data_folder: Path, splits: Sequence[str]) -> Path:
    """The folder that holds all splits: the data folder or one in it.

    Raises DataError if a split is missing.
    """
    nested = [data_folder / name for name in corpus.folder_names]
    roots = [root for root in (data_folder, *nested) if root.is_dir()]
    for root in roots:
        if all(_split_folder(corpus, root, split).is_dir() for split in splits):
            return root
    root = roots[-1]  # the innermost is most likely the one meant
    found = sorted(
        item.name
        for item in os.scandir(root)
        if item.is_dir() and not item.name.startswith(".")
    )
    missing = [
        split
        for split in splits
        if not _split_folder(corpus, root, split).is_dir()
    ]
    raise DataError(
        f"{corpus.name} in {root} lacks {', '.join(missing)}; found: "
        f"{', '.join(found) or 'no folders'}"
    )


def _split_folder(corpus: Corpus, root: Path, split: str) -> Path:
    folder = root / split
    if split == WHOLE and not corpus.chapters and not folder.is_dir():
        return root
    return folder


def _parts(corpus: Corpus, folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders below a split's with up to PART_FILES of their files."""
    depth = 2 if corpus.chapters else None
    suffixes = [suffix.lower() for suffix in corpus.suffixes]
    for inner, files in audio_folders(str(folder), suffixes, depth):
        names = sorted(files)
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
    """Return the manifest entries of one split by utterance id.

    Only headers that are not in `journal` (``.headers.jsonl``) are read. Bad
    files are listed, with the reason, in ``.skipped.tsv`` beside the journal.

    Arguments
    ---------
    corpus : Corpus
        The corpus.
    data_folder : Path
        The folder that paths in the entries are relative to.
    root : Path
        The folder in it that holds the splits.
    split : str
        Name of the split.
    journal : Path
        The file of headers that were read.
    num_workers : int, optional
        Number of threads.
    max_failures : float
        Share of bad files that is skipped.
    decode : bool
        Decode each file to its end, to find damage that headers hide.

    Raises
    ------
    DataError
        If there are too many bad files or no good ones.
    """
    if not 0 <= max_failures <= 1:
        raise DataError(f"max_failures must be in 0..1, not {max_failures}")
    folder = _split_folder(corpus, root, split)
    scan = _Scan(
        corpus,
        data_folder,
        root,
        folder,
        dict(_read_journal(journal)),
        decode,
    )
    parts = list(_parts(corpus, folder))
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
            for job in jobs:  # in order: the first of two equal ids is kept
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
                # The newline ends a line that an interrupted run left torn.
                for header in read.headers:
                    stream.write("\n" + json.dumps(header))
                stream.flush()
                progress.update(read.num_files)
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
    """Results of reading some files."""

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
        if self.corpus.needs_text and not texts:
            raise DataError(
                f"{folder}: the transcripts of {self.corpus.name} are missing"
            )
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
        """Length, sample rate and other numbers of an entry."""
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
    """Read and check a file's header; return samples and sample rate in Hz.

    With `decode` the file is decoded to its end. Raises AudioError if the file
    is unreadable, empty, cut short or longer than a day.
    """
    with CheckedFile(path, MAX_DURATION) as file:
        while decode and file.position < file.num_frames:
            left = file.num_frames - file.position
            file.read(min(DECODE_SAMPLES, left))
        return file.num_frames, file.sample_rate


def _read_journal(
    journal: Path,
) -> Iterator[tuple[tuple[str, int, int], tuple[int, int, bool]]]:
    """Yield (path, size, mtime_ns), (num_samples, sample_rate, decoded)."""
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in lines.splitlines():
        try:
            path, size, mtime, *header = json.loads(line)
            num_samples, sample_rate, *decoded = header
        except (ValueError, TypeError):
            continue  # torn line
        yield (path, size, mtime), (num_samples, sample_rate, any(decoded))


def _report_bad(bad: list[tuple[str, str]], report: Path) -> None:
    """Write the list of bad files; remove it if there are none."""
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


def _escape(text: str) -> str:
    """Double the braces: SpeechBrain formats each string of a manifest."""
    return text.replace("{", "{{").replace("}", "}}")
