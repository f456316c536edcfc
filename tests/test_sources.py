"""Sources of a corpus: items, ids and errors."""

import json
import os

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from make_corpus import make_corpus

from speechbrain_focalcodec.audio import find_audio_files
from speechbrain_focalcodec.corpus.sources import Item, json_stream, open_source
from speechbrain_focalcodec.corpus.sources.item import problem_of
from speechbrain_focalcodec.data.corpora import prepare_librispeech
from speechbrain_focalcodec.errors import DataError


def items_of(path, data_root=None):
    return {item.id: item for item in open_source(path, data_root)}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def assert_refused(path, *parts, data_root=None):
    """Iterating names all of this."""
    with pytest.raises(DataError) as caught:
        list(open_source(path, data_root))
    for part in parts:
        assert str(part) in str(caught.value)


# Folders


def test_a_folder_has_the_files_of_find_audio_files(tmp_path):
    for name in ("b/c.d.WAV", "a.flac", "b/.hidden.wav", ".git/x.wav"):
        touch(tmp_path / name)
    touch(tmp_path / "b" / "notes.txt")
    touch(tmp_path / "folder.wav" / "e.mp3")
    (tmp_path / "linked.wav").symlink_to(tmp_path / "a.flac")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "loop.wav").symlink_to(tmp_path)
    source = open_source(tmp_path)
    assert source.kind == "folder"
    found = {item.id: item.path for item in source}
    assert set(found) == {"b/c.d", "a", "folder.wav/e", "linked"}
    assert sorted(found.values()) == [
        str(path) for path in find_audio_files(tmp_path) if not path.is_dir()
    ]


def test_folder_leaves_out_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    touch(tmp_path / "a.wav")
    assert set(items_of(tmp_path)) == {"a"}


def test_paths_do_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    touch(tmp_path / "corpus" / "a.wav")
    monkeypatch.chdir(tmp_path)
    assert items_of("corpus")["a"].path == str(tmp_path / "corpus/a.wav")
    monkeypatch.chdir(tmp_path / "corpus")
    assert items_of(".")["a"].path == str(tmp_path / "corpus/a.wav")


@pytest.mark.parametrize("name", ["LibriSpeech", "LibriTTS"])
@pytest.mark.parametrize("below", [".", "dev", "dev/100", "dev/100/7"])
def test_corpora_are_recognised_at_each_level(tmp_path, name, below):
    make_corpus(name, tmp_path, ["dev", "test"], 2, 1, duration=0.05)
    source = open_source(tmp_path / below)
    assert source.kind == name.lower()
    items = {item.id: item for item in source}
    if name == "LibriSpeech":
        first, text = "100-7-0000", "UTTERANCE 1"
    else:
        first, text = "100_7_000000_000000", "Utterance 1."
    assert items[first].speaker == "100"
    assert items[first].text == text
    assert len(items) == {".": 4, "dev": 2}.get(below, 1)


def test_transcripts_may_be_missing_or_of_some(tmp_path):
    chapter = tmp_path / "84" / "121"
    for number in range(2):
        touch(chapter / f"84-121-000{number}.flac")
    assert {item.text for item in open_source(tmp_path)} == {None}
    write(chapter / "84-121.trans.txt", "84-121-0001 HELLO YOU\n")
    items = items_of(tmp_path)
    assert items["84-121-0001"].text == "HELLO YOU"
    assert items["84-121-0000"].text is None


def test_files_that_do_not_fit_a_corpus_are_ordinary(tmp_path):
    touch(tmp_path / "a" / "84" / "121" / "84-121-0000.flac")
    touch(tmp_path / "b" / "84" / "121" / "85-121-0001.flac")
    touch(tmp_path / "b" / "85-121-0002.flac")
    source = open_source(tmp_path)
    assert source.kind == "librispeech"
    assert {(item.id, item.speaker) for item in source} == {
        ("84-121-0000", "84"),
        ("b/84/121/85-121-0001", None),
        ("b/85-121-0002", None),
    }


@pytest.mark.parametrize(
    "names",
    [
        ["84-121-0000.flac"],  # no folders
        ["84/84-121-0000.flac"],
        ["121/84/84-121-0000.flac"],
        ["84/121/84-121-0000.flac", "84/121/take 2.flac"],
        ["84/121/84-121.flac"],
        ["84/121/84-121-12.flac"],
        ["84/121/84_121_000000.flac"],  # MLS
        ["84/121/84_121-000000_000000.flac"],
        ["mary/2020/mary-2020-0001.wav"],
        ["\u0668/1/\u0668-1-0001.wav"],
        ["aa/first.wav", "zz/84/121/84-121-0000.flac"],
    ],
)
def test_ordinary_folders_stay_ordinary(tmp_path, names):
    for name in names:
        touch(tmp_path / name)
    source = open_source(tmp_path)
    assert source.kind == "folder"
    assert {item.id for item in source} == {
        name.rsplit(".", 1)[0] for name in names
    }
    assert all(item.speaker is None for item in source)


def test_folder_errors(tmp_path):
    assert_refused(tmp_path, tmp_path, "no audio files", "check the path")
    assert_refused(tmp_path / "no", tmp_path / "no", "no such file or folder")
    audio = touch(tmp_path / "a.wav")
    assert_refused(audio, audio, "one audio file", "give the folder")
    other = touch(tmp_path / "a.doc")
    assert_refused(other, other, "not a known kind", ".scp")
    assert_refused(tmp_path, "leave it out", data_root=tmp_path)
    listed = write(tmp_path / "a.txt", "a.wav")
    missing = tmp_path / "missing"
    assert_refused(listed, missing, "--data-root", data_root=missing)


@pytest.mark.parametrize("name", [b"a\nb.wav", b"a\xff.wav"])
def test_folder_refuses_names_that_are_no_ids(tmp_path, name):
    open(os.fsencode(tmp_path) + b"/" + name, "w").close()
    assert_refused(tmp_path, tmp_path, "rename", "the id 'a\\")


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "b.wav")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert_refused(tmp_path, tmp_path / "a", "check its permissions")


def test_damaged_transcripts_are_named(tmp_path):
    touch(tmp_path / "84" / "121" / "84-121-0000.flac")
    path = write(tmp_path / "84" / "121" / "84-121.trans.txt", b"84 \xff")
    assert_refused(tmp_path, path)


# Lists


def test_list(tmp_path):
    path = write(
        tmp_path / "files.txt",
        "\ufeff# mine\r\na/one.wav\r\n\r\n/data/two.x.flac\nid 3\tb c.wav \n",
    )
    source = open_source(path)
    assert source.kind == "list"
    assert {item.id: item.path for item in source} == {
        "a/one": str(tmp_path / "a/one.wav"),
        "/data/two.x": "/data/two.x.flac",
        "id 3": str(tmp_path / "b c.wav"),
    }
    other = tmp_path / "other"
    other.mkdir()
    assert items_of(path, other)["a/one"].path == str(other / "a/one.wav")


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["names no files", "write one path"]),
        ("# only this\n", ["names no files"]),
        (b"a.wav\nb\xff.wav\n", ["line 2", "UTF-8", "convert"]),
        ("a.wav\n\tb.wav", ["line 2", "the id is empty"]),
        ("a.wav\nb\t\n", ["line 2", "no path after the tab"]),
        ("a.wav\nb\x07.wav", ["line 2", "control characters"]),
        ("b\ta\x00.wav", ["line 1", "NUL"]),
    ],
)
def test_list_errors(tmp_path, text, parts):
    path = write(tmp_path / "files.txt", text)
    assert_refused(path, path, *parts)


# Kaldi


def kaldi(folder, **files):
    for name, text in files.items():
        write(folder / name.replace("wav_scp", "wav.scp"), text)
    return folder


@pytest.mark.parametrize("given", ["folder", "file"])
def test_kaldi(tmp_path, given):
    kaldi(
        tmp_path,
        wav_scp="u1 /data/a b.wav\nu2\tc.flac\nu3 d.wav\n",
        text="u1 hello  you\nu2\n",
        utt2spk="u3 otto\nu2 anna\nu1 eva\n",  # not sorted: still right
    )
    source = open_source(
        tmp_path if given == "folder" else tmp_path / "wav.scp"
    )
    assert source.kind == "kaldi"
    assert list(source) == [
        Item("u1", "/data/a b.wav", "eva", "hello  you"),
        Item("u2", str(tmp_path / "c.flac"), "anna"),
        Item("u3", str(tmp_path / "d.wav"), "otto"),
    ]
    assert list(source) == list(source)


def test_kaldi_segments(tmp_path):
    kaldi(
        tmp_path,
        wav_scp="r1 a.wav\nr2 b.wav\n",
        segments="u1 r1 0.5 1.25\nu2 r1 1.25 -1\nu3 r2 0 2 -1\n",
        text="u1 one\nu3 three\n",
        utt2spk="u1 anna\nu2 anna\nu3 otto\n",
    )
    a, b = str(tmp_path / "a.wav"), str(tmp_path / "b.wav")
    assert list(open_source(tmp_path)) == [
        Item("u1", a, "anna", "one", 0.5, 1.25),
        Item("u2", a, "anna", None, 1.25, None),
        Item("u3", b, "otto", "three", 0.0, 2.0),
    ]


def test_kaldi_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    kaldi(tmp_path, wav_scp=f"u1 a.wav\nu2 touch {marker} |\n")
    assert_refused(tmp_path, "wav.scp, line 2", "not executed", "name an audio")
    assert not marker.exists()


@pytest.mark.parametrize(
    "files, parts",
    [
        ({"wav_scp": "\n"}, ["has no lines"]),
        ({"wav_scp": "u1 a.wav\nu2\n"}, ["line 2", "nothing after 'u2'"]),
        ({"wav_scp": "u1 a.ark:123"}, ["wav.scp, line 1", "archive"]),
        ({"wav_scp": "u1 -"}, ["wav.scp, line 1", "standard input"]),
        ({"wav_scp": b"u1 \xff"}, ["wav.scp, line 1", "UTF-8"]),
        ({"text": b"u1 \xff"}, ["text, line 1", "UTF-8"]),
        ({"segments": "u1 u1 0\n"}, ["segments, line 1", "seconds"]),
        ({"segments": "u1 u1 0 x\n"}, ["segments, line 1", "seconds"]),
        ({"segments": "u1 u1 0 1 2\n"}, ["segments, line 1", "channel"]),
        ({"segments": "u1 r9 0 1\n"}, ["segments, line 1", "'r9'", "add it"]),
        ({"segments": "u1 u1 2 1\n"}, ["segments, line 1", "empty"]),
        ({"segments": "u1 u1 nan 1\n"}, ["segments, line 1", "empty"]),
        (
            {"segments": "x u1 0 1\n", "wav_scp": "u1 a.wav\nu1 b.wav\n"},
            ["wav.scp, line 2", "twice", "a.wav", "b.wav"],
        ),
    ],
)
def test_kaldi_errors(tmp_path, files, parts):
    kaldi(tmp_path, **{"wav_scp": "u1 a.wav\n"} | files)
    assert_refused(tmp_path, *parts)


# JSON


def test_speechbrain_json(tmp_path):
    entries = {
        "u1": {
            "wav": "{data_root}/a.flac",
            "spk_id": 84,
            "words": "one {{two}}",
            "duration": 1.5,
            "num_samples": 24000,
            "sample_rate": 16000,
            "age": 5,
            "tags": {"a": {"b": ["{{x}}"]}},
        },
        "u2": {"wav": "sub/b.flac", "wrd": "", "note": None, "ok": True},
        "u3": {"file": {"path": "/data/c{{1}}.wav"}, "text": ["a", "b"]},
    }
    path = write(tmp_path / "train.json", json.dumps(entries, indent=2))
    source = open_source(path, tmp_path)
    assert source.kind == "json"
    assert list(source) == [
        Item(
            "u1",
            str(tmp_path / "a.flac"),
            "84",
            "one {two}",
            extra={"age": 5, "tags": '{"a": {"b": ["{x}"]}}'},
        ),
        Item(
            "u2",
            str(tmp_path / "sub/b.flac"),
            extra={"note": None, "ok": True},
        ),
        Item("u3", "/data/c{1}.wav", text="a b"),
    ]


def test_own_manifests_are_read_back(tmp_path):
    folder = tmp_path / "{corpus}" / "LibriSpeech"
    make_corpus("LibriSpeech", folder, ["dev"], 1, 2, duration=0.05)
    trans = folder / "dev" / "100" / "7" / "100-7.trans.txt"
    write(trans, "100-7-0000 {A} }B{\n")
    paths = prepare_librispeech(tmp_path / "{corpus}", tmp_path / "m", ["dev"])
    by_manifest = items_of(paths["dev"], tmp_path / "{corpus}")
    # A folder's name is the split, which a manifest does not say.
    by_folder = items_of(folder).items()
    assert {item.extra["split"] for _, item in by_folder} == {"dev"}
    assert by_manifest == {k: x._replace(extra={}) for k, x in by_folder}
    assert by_manifest["100-7-0000"].text == "{A} }B{"
    assert_refused(paths["dev"], "id '100-7-0000'", "--data-root")


@pytest.mark.parametrize("rate", [8000, None])
def test_json_parts_of_files(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(400), 8000)
    fixed = {} if rate is None else {"sample_rate": rate}
    parts = {
        "u1": {"start": 80, "stop": 240},
        "u2": {"start": 80},
        "u3": {"stop": 80},
        "u4": {"start": 0},
    }
    entries = {
        name: {"wav": {"file": "a.wav", **part}, **fixed}
        for name, part in parts.items()
    }
    path = write(tmp_path / "a.json", json.dumps(entries))
    found = {
        name: (item.start, item.stop) for name, item in items_of(path).items()
    }
    assert found == {
        "u1": (0.01, 0.03),
        "u2": (0.01, None),
        "u3": (None, 0.01),
        "u4": (None, None),
    }


def test_part_of_a_missing_file_is_left_to_whoever_opens_it(tmp_path):
    entries = {"u1": {"wav": {"file": "no.wav", "start": 1, "stop": 2}}}
    path = write(tmp_path / "a.json", json.dumps(entries))
    assert items_of(path)["u1"] == Item("u1", str(tmp_path / "no.wav"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_lines(tmp_path, suffix):
    lines = [
        {"audio_filepath": "a{1}.wav", "text": "{x}", "duration": 2.5},
        {"audio_filepath": "b.wav", "offset": 1.5, "duration": 2.5},
        {"audio_filepath": "$data_root/c.wav", "offset": 1.5},
        {"audio_filepath": "d.wav", "id": 7, "lang": "en"},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    path = write(tmp_path / f"a{suffix}", text)
    assert list(open_source(path, tmp_path)) == [
        Item("a{1}", str(tmp_path / "a{1}.wav"), None, "{x}"),
        Item("b", str(tmp_path / "b.wav"), None, None, 1.5, 4.0),
        Item("c", str(tmp_path / "c.wav"), None, None, 1.5, None),
        Item("7", str(tmp_path / "d.wav"), extra={"lang": "en"}),
    ]


def entry(**values):
    return json.dumps({"u1": {"wav": "a.wav"} | values})


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["at its start", "'{' was expected"]),
        ("{}", ["has no entries"]),
        ("[]", ["maps ids to entries"]),
        ('{"u1": [1]}', ["at id 'u1'", "an object"]),
        ('{"u1": {"wav": "a.wav"}, "u2": {"wa', ["at id 'u2'"]),
        ('{"u1": {"wav": "a.wav"}', ["after id 'u1'", "'}' was expected"]),
        ('{"u1": {"wav": "a.wav"}} {}', ["goes on after its end"]),
        (b'{"u1": {"wav": "\xff"}}', ["UTF-8"]),
        ('{"u1": ' + '{"a":' * 100_000, ["at id 'u1'"]),
        ('{"u1": {"a": 1}}', ["id 'u1'", "names no audio file", "wav"]),
        (entry(wav=1), ["id 'u1'", "'wav' is not a path"]),
        (entry(wav=""), ["id 'u1'", "'wav' is not a path"]),
        (entry(wav={"files": ["a.wav"]}), ["id 'u1'", "several files"]),
        (entry(wav="https://x.y/a.wav"), ["id 'u1'", "download"]),
        (entry(wav="{data_root}/a.wav"), ["id 'u1'", "--data-root"]),
        (entry(wav="$data_root/a.wav"), ["id 'u1'", "--data-root"]),
        (entry(wav="{folder}/a.wav"), ["id 'u1'", "{folder}"]),
        (entry(start=0.5, stop=1), ["id 'u1'", "start", "samples"]),
        (entry(start=2, stop=1, sample_rate=1), ["id 'u1'", "is empty"]),
        (entry(stop=1, sample_rate=0), ["id 'u1'", "sample_rate"]),
        (entry(offset="x"), ["id 'u1'", "offset"]),
        (entry(offset=float("inf")), ["id 'u1'", "is empty"]),
        (entry(text="\ud800"), ["id 'u1'", "Unicode"]),
        (entry(other="\ud800"), ["id 'u1'", "Unicode"]),
        (entry(**{"\n": 1}), ["id 'u1'", "name", "rename"]),
        ('{"": {"wav": "a.wav"}}', ["id ''", "the id is empty"]),
        ('{"u\\u0000": {"wav": "a.wav"}}', ["control characters"]),
        ('{"wav": "a.wav"}\nno', ["line 2", "is not JSON"]),
        ('{"wav": "a.wav"}\n[]', ["line 2", "is not an object"]),
        ('{"wav": "a.wav"}\n{"id": null, "wav": "b"}', ["line 2", "empty"]),
    ],
)
def test_json_errors(tmp_path, text, parts):
    path = write(tmp_path / "a.json", text)
    assert_refused(path, path, *parts)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(max_size=10),
        st.dictionaries(st.text(max_size=5), json_values, max_size=4),
        max_size=6,
    ),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_json_is_read_in_blocks_of_any_size(
    tmp_path_factory, entries, block, indent, ascii_only
):
    path = tmp_path_factory.getbasetemp() / "blocks.json"
    text = json.dumps(entries, indent=indent, ensure_ascii=ascii_only)
    write(path, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", block)
        assert dict(json_stream.iter_object(path)) == entries


def test_json_keys_that_repeat_are_not_lost(tmp_path):
    path = write(
        tmp_path / "a.json", '{"u": {"wav": "a.wav"}, "u": {"wav": "b.wav"}}'
    )
    assert [item.id for item in open_source(path)] == ["u", "u"]


# CSV


def test_speechbrain_csv(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "ID, duration, wav, wav_format, wav_opts, spk_id, spk_id_format, wrd,"
        " age\n"
        'u1, 1.5, $data_root/a.wav, wav, , 84, string, "one, {{two}}", 05\n'
        "\n"
        "u2, 2.5, /data/b.wav, wav, , , string, , \n",
    )
    source = open_source(path, tmp_path)
    assert source.kind == "csv"
    assert list(source) == [
        Item(
            "u1",
            str(tmp_path / "a.wav"),
            "84",
            "one, {{two}}",
            extra={"age": "05"},
        ),
        Item("u2", "/data/b.wav", extra={"age": None}),
    ]


def test_csv_parts_of_files(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(400), 8000)
    path = write(
        tmp_path / "a.csv", "ID,wav,start,stop\nu1,a.wav,80,240\nu2,a.wav,,\n"
    )
    items = items_of(path)
    assert (items["u1"].start, items["u1"].stop) == (0.01, 0.03)
    assert (items["u2"].start, items["u2"].stop) == (None, None)


def test_tsv(tmp_path):
    path = write(
        tmp_path / "a.tsv",
        'client_id\tpath\tsentence\t\nanna\ta.mp3\t"Oh," he said\tx\n',
    )
    assert list(open_source(path)) == [
        Item(
            "a",
            str(tmp_path / "a.mp3"),
            "anna",
            '"Oh," he said',
            extra={"column_4": "x"},
        )
    ]


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["has no rows"]),
        ("ID,wav\n", ["has no rows"]),
        ("a.wav,anna\nb.wav,otto\n", ["line 1", "wav", "name the columns"]),
        ("ID,wav,x,x\nu,a,b,c\n", ["line 1", "two columns 'x'"]),
        ("ID,wav\nu1,a.wav\nu2,b.wav,x\n", ["line 3", "3 cells"]),
        ('ID,wav\nu1,"a.wav\nu2,b.wav\n', ["line 2", "is not CSV"]),
        ('ID,wav\nu1,a.wav\nu2,"b" c\n', ["line 3", "is not CSV"]),
        (b"ID,wav\nu1,\xff.wav\n", ["line 2", "UTF-8"]),
        ("ID,wav\nu1,\n", ["line 2", "'wav' is not a path"]),
        ("ID,wav\n,a.wav\n", ["line 2", "the id is empty"]),
        ("ID,wav\nu1,$data_root/a\n", ["line 2", "$data_root", "--data-root"]),
        ("ID,wav\nu1,{data_root}/a\n", ["line 2", "--data-root"]),
        ("ID,wav\nu1,$root/a\n", ["line 2", "$root"]),
        ("ID,wav,start\nu1,a.wav,1.5\n", ["line 2", "start", "samples"]),
    ],
)
def test_csv_errors(tmp_path, text, parts):
    path = write(tmp_path / "a.csv", text)
    assert_refused(path, path, *parts)


def test_absurd_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "speechbrain_focalcodec.corpus.sources.file_list.MAX_LINE", 100
    )
    path = write(tmp_path / "a.txt", "a.wav\n" + "b" * 1000)
    assert_refused(path, "line 2", "too long")


# Ids


@given(st.text())
def test_ids_that_pass_are_one_line_of_unicode(text):
    if problem_of(Item(text, "/a.wav")):
        return
    assert text.strip()
    assert text.encode().decode() == text
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


@pytest.mark.parametrize("item_id", ["a b", "ü\u3000x", "日本", "a/b", "🎤"])
def test_ids_of_all_scripts_pass(item_id):
    assert problem_of(Item(item_id, "/a.wav")) == ""
