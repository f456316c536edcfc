"""Maps the keys of a manifest's entries to fields of items."""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import soundfile

from speechbrain_focalcodec.corpus.sources.item import (
    Item,
    Value,
    strip_suffix,
)

__all__ = ["Entries"]

# The first existing key of each role is used; lower case.
PATH_KEYS = (
    *("wav", "audio_filepath", "audio_path", "file", "path", "audio"),
    *("file_name", "filename"),
)
ID_KEYS = ("id", "utt_id", "utterance_id", "utt", "key")
SPEAKER_KEYS = ("speaker", "spk_id", "speaker_id", "spk", "client_id")
TEXT_KEYS = (
    *("text", "wrd", "words", "transcript", "transcription"),
    *("normalized_text", "sentence"),
)
# Measured from the audio; a manifest's values are not used.
MEASURED = ("num_samples", "sample_rate", "duration")

_ROOT = re.compile(r"(\{data_root\}|\$data_root|\$\{data_root\})/*")
_BAD_IN_NAME = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class _Roles(NamedTuple):
    """Keys of an entry by role."""

    path: str | None
    id: str | None
    speaker: str | None
    text: str | None
    start: str | None
    stop: str | None
    offset: str | None
    duration: str | None
    rate: str | None
    extra: tuple[str, ...]


class Entries:
    """Makes items of the entries of a manifest.

    Arguments
    ---------
    absolute : Callable
        Joins a relative path to the manifest's base.
    fill_path : Callable
        Replaces the data root in a path; ValueError if it is not known.
    fill : Callable
        Replaces the data root in other strings.

    Example
    -------
    >>> entries = Entries("/data/".__add__, str, str)
    >>> entries.item({"wav": "a.wav", "spk_id": 84, "age": 5}, "utt1")
    Item(id='utt1', path='/data/a.wav', speaker='84', text=None, start=None, \
stop=None, extra={'age': 5})
    """

    def __init__(
        self,
        absolute: Callable[[str], str],
        fill_path: Callable[[str], str],
        fill: Callable[[str], str],
    ) -> None:
        self.absolute = absolute
        self.fill_path = fill_path
        self.fill = fill
        self._roles: dict[tuple[str, ...], _Roles] = {}

    def roles(self, keys: tuple[str, ...]) -> _Roles:
        """Keys by role."""
        found = self._roles.get(keys)
        if found is None:
            if len(self._roles) > 1000:
                self._roles.clear()  # every entry has keys of its own
            found = self._roles[keys] = _find_roles(keys)
        return found

    def item(self, entry: Mapping[str, Any], item_id: str | None) -> Item:
        """Make an item of an entry, with an id that is not in the entry.

        A ValueError if the file or the segment is not valid, or a key cannot
        be a column's name.
        """
        roles = self.roles(tuple(entry))
        if roles.path is None:
            raise ValueError(
                "names no audio file; give it one of the keys "
                f"{', '.join(PATH_KEYS)}"
            )
        written, part = _file_of(entry[roles.path], roles.path)
        path = self.fill_path(written)
        if _REMOTE.match(path):
            raise ValueError(
                f"{path} is not on this machine; download it and name the file"
            )
        path = self.absolute(path)
        extra = roles.extra
        if item_id is None:
            if roles.id is None:
                found = strip_suffix(_ROOT.sub("", written))
            else:
                found = entry[roles.id]
            item_id = "" if found is None else str(found)
        elif roles.id is not None:
            extra = (*extra, roles.id)
        start, stop = self._part(entry, roles, part, path)
        return Item(
            item_id,
            path,
            self._text(entry[roles.speaker]) if roles.speaker else None,
            self._text(entry[roles.text]) if roles.text else None,
            start,
            stop,
            {name: self._value(entry[name]) for name in extra},
        )

    def _value(self, value: Any) -> Value:
        if isinstance(value, str):
            return self.fill(value)
        if value is None or isinstance(value, int | float):
            return value
        return json.dumps(self._filled(value), ensure_ascii=False)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.fill(value)
        if isinstance(value, list):
            return [self._filled(part) for part in value]
        if isinstance(value, dict):
            return {key: self._filled(part) for key, part in value.items()}
        return value

    def _text(self, value: Any) -> str | None:
        if isinstance(value, list) and all(
            isinstance(word, str) for word in value
        ):
            value = " ".join(value)
        value = self._value(value)
        return None if value is None or value == "" else str(value)

    def _part(
        self, entry: Mapping[str, Any], roles: _Roles, part: dict, path: str
    ) -> tuple[float | None, float | None]:
        """Start and stop in seconds; None for the file's own."""
        start = _samples(part.get("start"), "start")
        stop = _samples(part.get("stop"), "stop")
        if start is None and roles.start:
            start = _samples(entry[roles.start], "start")
        if stop is None and roles.stop:
            stop = _samples(entry[roles.stop], "stop")
        if start is not None or stop is not None:
            if stop is None and start == 0:
                return None, None
            rate = _rate_of(entry[roles.rate] if roles.rate else None, path)
            if rate is None:
                return None, None  # it cannot be read: a failure later
            return (
                None if start is None else start / rate,
                None if stop is None else stop / rate,
            )
        offset = entry[roles.offset] if roles.offset else None
        if offset is None or offset == "":
            return None, None
        try:
            seconds = float(offset)
            duration = entry[roles.duration] if roles.duration else None
            if duration is None or duration == "":
                return seconds, None
            return seconds, seconds + float(duration)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "offset and duration must be numbers of seconds"
            ) from error


def _find_roles(keys: tuple[str, ...]) -> _Roles:
    by_name: dict[str, str] = {}
    for key in keys:
        if _BAD_IN_NAME.search(key):
            raise ValueError(
                f"the column's name {key!r} has control characters or is not "
                "valid Unicode; rename it"
            )
        by_name.setdefault(key.strip().lower(), key)

    def first(*names: str) -> str | None:
        return next((by_name[n] for n in names if n in by_name), None)

    path = first(*PATH_KEYS)
    roles = {
        "path": path,
        "id": first(*ID_KEYS),
        "speaker": first(*SPEAKER_KEYS),
        "text": first(*TEXT_KEYS),
        "start": first("start"),
        "stop": first("stop"),
        "offset": first("offset"),
        "duration": first("duration"),
        "rate": first("sample_rate"),
    }
    used = set(roles.values()) | {by_name.get(name) for name in MEASURED}
    extra = tuple(
        key
        for key in keys
        if key not in used and not _describes_another(key, keys)
    )
    return _Roles(extra=extra, **roles)


def _describes_another(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key is SpeechBrain's wav_format or wav_opts of a wav."""
    for suffix in ("_format", "_opts"):
        if key.endswith(suffix) and key.removesuffix(suffix) in keys:
            return True
    return False


def _file_of(value: Any, key: str) -> tuple[str, dict]:
    """The path of an entry's value, and the segment of the file."""
    part: dict = {}
    if isinstance(value, dict):
        part = value
        if "files" in part:
            raise ValueError(
                f"{key!r} names several files; make an entry of each"
            )
        value = part.get("file", part.get("path"))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is not a path; name the audio file")
    return value, part


def _samples(value: Any, name: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError(value)
        return int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} must be a whole number of samples, not {value!r}"
        ) from error


def _rate_of(value: Any, path: str) -> float | None:
    """The sample rate of the entry, or of the file."""
    if value is None or value == "":
        return _rate_in_header(path)
    try:
        rate = float(value)
        if not 0 < rate < 2**31:
            raise ValueError(value)
        return rate
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"sample_rate must be positive, in Hz, not {value!r}"
        ) from error


@lru_cache(maxsize=1024)  # the parts of a file follow each other
def _rate_in_header(path: str) -> int | None:
    if not os.path.isfile(path):  # a pipe could block
        return None
    try:
        return soundfile.info(path).samplerate or None
    except (RuntimeError, OSError):
        return None
