"""Long utterances in pieces, and random segments of long files."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_focalcodec.data import reader
from speechbrain_focalcodec.data.chunks import cut_entries
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset, set_epoch
from speechbrain_focalcodec.errors import DataError

LENGTHS = {"a": 30001, "b": 9000, "c": 9001, "d": 500}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a folder of noise at two sample rates, with a manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    entries = {}
    for name, length in LENGTHS.items():
        rate = 24000 if name in "ad" else 16000
        sig = generator.uniform(-0.5, 0.5, length)
        soundfile.write(folder / f"{name}.wav", sig, rate)
        entries[name] = {
            "wav": f"{{data_root}}/{name}.wav",
            "num_samples": length,
            "sample_rate": rate,
            "duration": length / rate,
        }
    entries["b"]["text"] = "of the whole"
    write_manifest(folder / "all.json", entries)
    return folder


@given(
    lengths=st.lists(st.integers(1, 10**7), min_size=1, max_size=5),
    chunk=st.integers(1000, 10**6),
)
def test_pieces_are_the_utterance(lengths, chunk):
    entries = {
        f"utt{i}": {"num_samples": length, "sample_rate": 16000}
        for i, length in enumerate(lengths)
    }
    pieces = cut_entries(entries, 16000, chunk)
    for utt_id, entry in entries.items():
        own = [
            piece["chunk"]
            for name, piece in pieces.items()
            if name.split("@")[0] == utt_id
        ]
        starts, stops = zip(*own, strict=True)
        assert starts == (0, *stops[:-1])
        assert stops[-1] == entry["num_samples"]
        sizes = [stop - start for start, stop in own]
        assert max(sizes) <= chunk
        assert max(sizes) - min(sizes) <= 1
        assert (len(own) == 1) == (utt_id in pieces)


@pytest.mark.parametrize("preload", [False, True])
def test_pieces_hold_the_same_audio(corpus, preload):
    whole = make_dataset(corpus / "all.json", corpus, 16000)
    pieces = make_dataset(
        corpus / "all.json", corpus, 16000, preload=preload, chunk_samples=9000
    )
    joined: dict[str, list] = {}
    for item in pieces:
        assert len(item["sig"]) <= 9000
        joined.setdefault(item["id"].split("@")[0], []).append(item["sig"])
    assert {name: len(sigs) for name, sigs in joined.items()} == {
        "a": 3,
        "b": 1,
        "c": 2,
        "d": 1,
    }
    for item in whole:
        sig = torch.cat(joined[item["id"]])
        assert torch.allclose(sig, item["sig"], atol=1e-6)
    assert "text" not in pieces.data["b"]
    seconds = sum(entry["duration"] for entry in pieces.data.values())
    total = sum(len(item["sig"]) for item in whole) / 16000
    assert seconds == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("preload", [False, True])
def test_segments_lie_within_pieces(corpus, preload):
    def make(segment):
        return make_dataset(
            corpus / "all.json",
            corpus,
            16000,
            segment,
            preload=preload,
            chunk_samples=9000,
        )

    for epoch in (1, 2):
        dataset = make(3000)
        set_epoch(dataset, epoch)
        for long, short in zip(make(None), dataset, strict=True):
            assert long["id"] == short["id"]
            assert len(short["sig"]) == min(3000, len(long["sig"]))
            if len(long["sig"]) >= 3000:
                starts = long["sig"].unfold(0, 20, 1)[: len(long["sig"]) - 2999]
                near = (starts - short["sig"][:20]).abs().amax(1).argmin()
                same = long["sig"][near : near + 3000]
                assert torch.allclose(same, short["sig"], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"chunk_samples": 16000 * 30}])
def test_only_the_slice_of_a_long_file_is_read(tmp_path, monkeypatch, options):
    """Ten minutes, of which a segment of a second is wanted."""
    sig = np.zeros(24000 * 600, dtype=np.int16)
    soundfile.write(tmp_path / "long.flac", sig, 24000)
    entry = {
        "wav": "{data_root}/long.flac",
        "num_samples": len(sig),
        "sample_rate": 24000,
    }
    write_manifest(tmp_path / "all.json", {"long": entry})
    read = []
    read_slice = reader.read_slice

    def spy(path, start, stop, **options):
        read.append(stop - start)
        return read_slice(path, start, stop, **options)

    monkeypatch.setattr(reader, "read_slice", spy)
    dataset = make_dataset(
        tmp_path / "all.json", tmp_path, 16000, 16000, **options
    )
    assert len(dataset) == (20 if options else 1)
    assert len(dataset[len(dataset) - 1]["sig"]) == 16000
    assert len(read) == 1 and read[0] < 24200


def test_bounds_are_for_whole_utterances(corpus):
    dataset = make_dataset(
        corpus / "all.json",
        corpus,
        16000,
        min_samples=9000,
        max_samples=9001,
        chunk_samples=5000,
    )
    assert dataset.data_ids == ["b@0", "b@4500", "c@0", "c@4500"]


def test_bad_requests_are_refused(corpus):
    with pytest.raises(DataError, match="chunk_samples must be positive"):
        make_dataset(corpus / "all.json", corpus, 16000, chunk_samples=0)
    entry = {"num_samples": 20, "sample_rate": 16000}
    with pytest.raises(DataError, match="the id a@10: rename"):
        cut_entries({"a": entry, "a@10": entry | {"num_samples": 5}}, 16000, 10)
