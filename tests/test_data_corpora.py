"""Several corpora below one data folder."""

from importlib import import_module

import pytest
from make_corpus import make_corpus

from speechbrain_focalcodec.data import corpora
from speechbrain_focalcodec.data.corpora import prepare_an4, prepare_corpora
from speechbrain_focalcodec.data.manifest import read_manifest
from speechbrain_focalcodec.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, splits in {"AN4": ["small"], "LibriSpeech": ["dev"]}.items():
        make_corpus(name, folder / name, splits, 2, 1)
    return folder


def test_each_split_is_prepared_as_its_corpus(data, tmp_path):
    owners = {"AN4": ["small", "other"], "LibriSpeech": ["dev"], "LibriTTS": []}
    paths = prepare_corpora(data, tmp_path, ["dev", "small"], owners)
    found = {split: read_manifest(path) for split, path in paths.items()}
    assert list(found["small"]) == ["an0-100-b", "an0-101-b"]
    assert list(found["dev"]) == ["100-7-0000", "101-7-0000"]
    entry = found["small"]["an0-101-b"]
    assert (entry["text"], entry["spk_id"]) == ("UTTERANCE 2", "101")
    # Relative to the folder that holds both.
    assert entry["wav"].startswith("{data_root}/AN4/wav/small/")
    assert found["dev"]["100-7-0000"]["wav"].startswith("{data_root}/Libri")


def test_options_reach_each_preparation(data, tmp_path):
    owners = {"AN4": ["small"], "LibriSpeech": ["dev"]}
    splits = ["small", "dev"]
    paths = prepare_corpora(data, tmp_path, splits, owners, skip_prep=True)
    assert [path.name for path in paths.values()] == ["small.json", "dev.json"]
    assert not any(path.exists() for path in paths.values())


@pytest.mark.parametrize(
    "splits, owners, message",
    [
        (["dev"], {"AN4": ["small"]}, "the split dev is of none; name one"),
        (
            ["dev"],
            {"AN4": ["dev"], "LibriSpeech": ["dev"]},
            "the split dev is of AN4 and LibriSpeech",
        ),
        (["dev"], {"TIMIT": ["dev"]}, "TIMIT is none of AN4, Folder, Libri"),
    ],
)
def test_refuses_unclear_owners(data, tmp_path, splits, owners, message):
    with pytest.raises(ConfigError, match=f"corpora: {message}"):
        prepare_corpora(data, tmp_path / "save", splits, owners)
    assert not (tmp_path / "save").exists()


def test_a_split_that_is_missing(data, tmp_path):
    with pytest.raises(DataError, match="lacks test; found: dev"):
        prepare_corpora(data, tmp_path, ["test"], {"LibriSpeech": ["test"]})


def test_missing_transcripts_of_an4_are_refused(tmp_path):
    folder = make_corpus("AN4", tmp_path / "data", ["small"], 1, 1)
    (folder / "etc" / "small.transcription").unlink()
    with pytest.raises(DataError, match="transcripts of AN4 are missing"):
        prepare_an4(folder, tmp_path / "save", ["small"])


def test_a_corpus_without_default_splits_needs_some(tmp_path):
    with pytest.raises(ValueError, match="name the splits of LibriTTS"):
        corpora.prepare_libritts(tmp_path, tmp_path / "save")


@pytest.mark.parametrize(
    "name", ["an4", "folder", "librilight", "librispeech", "libritts"]
)
def test_import_paths_of_earlier_recipes(name):
    module = import_module(f"speechbrain_focalcodec.data.{name}")
    prepare = getattr(module, f"prepare_{name}")
    assert prepare is getattr(corpora, f"prepare_{name}")
