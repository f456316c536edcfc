"""Datasets and batches of waveforms."""

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_corpus import make_corpus
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from torchaudio.functional import resample

from speechbrain_focalcodec.data.corpora import (
    prepare_librispeech,
    prepare_libritts,
)
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset, set_epoch
from speechbrain_focalcodec.data.reader import (
    RandomSegment,
    SignalReader,
    resampled_length,
)
from speechbrain_focalcodec.errors import AudioError, DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return the data folder and the manifest of a 16 kHz corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    root = make_corpus("LibriSpeech", folder / "data", ["a"], duration=0.5)
    return root, prepare_librispeech(root, folder / "save", ["a"])["a"]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Return a folder of noise at several sample rates."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    for sample_rate in [8000, 16000, 22050, 24000, 44100]:
        sig = generator.uniform(-0.5, 0.5, sample_rate // 4 + 7)
        soundfile.write(folder / f"{sample_rate}.wav", sig, sample_rate)
    return folder


def write_one(folder, **changes):
    """Write a manifest with one utterance, of folder/utt1.wav."""
    entry = {"wav": "{data_root}/utt1.wav", "sample_rate": 16000}
    write_manifest(folder / "one.json", {"utt1": entry | changes})
    return folder / "one.json"


def load_epoch(dataset, epoch, num_workers=0, **options):
    """Return an epoch's waveforms by id."""
    loader = SaveableDataLoader(
        dataset,
        batch_size=2,
        collate_fn=PaddedBatch,
        num_workers=num_workers,
        **options,
    )
    set_epoch(loader, epoch)
    return {
        utt_id: sig
        for batch in loader
        for utt_id, sig in zip(batch.id, batch.sig.data, strict=True)
    }


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("preload", [False, True])
def test_whole_utterances(corpus, preload):
    root, manifest = corpus
    dataset = make_dataset(manifest, root, 16000, preload=preload)
    for item in dataset:
        speaker = item["id"].split("-")[0]
        path = root / "a" / speaker / "7" / f"{item['id']}.flac"
        expected, _ = soundfile.read(path, dtype="float32")
        assert item["sig"].dtype == torch.float32
        assert torch.equal(item["sig"], torch.from_numpy(expected))
    batch = PaddedBatch([dataset[i] for i in range(3)])
    lengths = torch.tensor([len(dataset[i]["sig"]) for i in range(3)])
    assert batch.sig.data.shape == (3, lengths.max())
    assert torch.equal(batch.sig.lengths, lengths / lengths.max())


@pytest.mark.parametrize("preload", [False, True])
def test_segments_are_slices_of_the_utterance(corpus, preload):
    root, manifest = corpus
    whole = make_dataset(manifest, root, 16000)
    dataset = make_dataset(manifest, root, 16000, 1000, preload=preload)
    for epoch in [1, 2]:
        set_epoch(dataset, epoch)
        for long, short in zip(whole, dataset, strict=True):
            assert short["sig"].shape == (1000,)
            windows = long["sig"].unfold(0, 1000, 1)
            assert (windows == short["sig"]).all(1).any()


def test_utterances_shorter_than_a_segment_are_whole(corpus):
    """A batch pads them, and knows their lengths."""
    root, manifest = corpus
    whole = list(make_dataset(manifest, root, 16000))
    lengths = sorted(len(item["sig"]) for item in whole)
    dataset = make_dataset(manifest, root, 16000, segment_samples=lengths[-1])
    assert lengths[0] < lengths[-1]
    for long, short in zip(whole, dataset, strict=True):
        assert torch.equal(short["sig"], long["sig"])
    message = f"segment_samples is 20000, but .* has {lengths[-1]} samples"
    with pytest.raises(DataError, match=message):
        make_dataset(manifest, root, 16000, segment_samples=20000)


@pytest.mark.parametrize("preload", [False, True])
def test_segments_depend_on_seed_and_epoch_alone(corpus, preload):
    root, manifest = corpus

    def make(seed=0):
        return make_dataset(
            manifest, root, 16000, 1000, seed=seed, preload=preload
        )

    dataset = make()
    first = load_epoch(dataset, 1)
    second = load_epoch(dataset, 2)
    assert not any(torch.equal(first[key], second[key]) for key in first)
    assert not equal(first, load_epoch(make(seed=1), 1))
    # A new process that starts at epoch 2, with any number of workers.
    for num_workers in [0, 1, 2]:
        assert equal(second, load_epoch(make(), 2, num_workers, shuffle=True))
    # Going back gives the same again; a copy is moved alike.
    assert equal(first, load_epoch(dataset, 1, 2))
    by_id = dataset.filtered_sorted(sort_key="id", reverse=True)
    assert equal(second, load_epoch(by_id, 2))


def test_workers_that_live_on_see_the_new_epoch(corpus):
    root, manifest = corpus
    dataset = make_dataset(manifest, root, 16000, 1000)
    loader = SaveableDataLoader(
        dataset,
        batch_size=6,
        collate_fn=PaddedBatch,
        num_workers=1,
        persistent_workers=True,
    )
    for epoch in [1, 2]:
        set_epoch(dataset, epoch)
        (batch,) = loader
        expected = torch.stack([item["sig"] for item in dataset])
        assert torch.equal(batch.sig.data, expected)


def test_starts_reach_the_whole_utterance():
    segment = RandomSegment(10, seed=1)
    starts = {segment.start(f"utt{i}", 15) for i in range(200)}
    assert starts == {0, 1, 2, 3, 4, 5}


@given(
    rate_from=st.sampled_from([8000, 16000, 22050, 24000, 44100]),
    rate_to=st.sampled_from([8000, 16000, 24000]),
    segment=st.integers(1, 6000),
    epoch=st.integers(0, 1000),
)
@settings(derandomize=True, max_examples=60, deadline=None)
def test_resampled_segments_are_slices_of_the_resampled_utterance(
    noise, rate_from, rate_to, segment, epoch
):
    path = noise / f"{rate_from}.wav"
    sig, _ = soundfile.read(path, dtype="float32")
    expected = resample(torch.from_numpy(sig), rate_from, rate_to)
    total = resampled_length(len(sig), rate_from, rate_to)
    assert len(expected) == total
    chooser = RandomSegment(segment)
    chooser.set_epoch(epoch)
    reader = SignalReader(rate_to, chooser)
    item = ("utt1", str(path), len(sig), rate_from)
    start = chooser.start("utt1", total)
    expected = expected[start : start + segment]
    assert torch.allclose(reader(*item), expected, atol=1e-6)
    entry = {"wav": item[1], "num_samples": len(sig), "sample_rate": rate_from}
    reader.preload({"utt1": entry})
    assert torch.allclose(reader(*item), expected, atol=1e-6)


def test_libritts_is_resampled_on_the_fly(tmp_path):
    root = make_corpus("LibriTTS", tmp_path / "data", ["a"], 1, 1)
    path = prepare_libritts(root, tmp_path / "save", ["a"])["a"]
    (item,) = make_dataset(path, root, 16000)
    assert item["sig"].shape == (24000,)
    spectrum = torch.fft.rfft(item["sig"]).abs()
    # The speaker's tone stays where it was: 120 Hz, in bins of 2/3 Hz.
    assert spectrum.argmax() == 180


def test_channels_are_averaged(tmp_path):
    sig = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "utt1.wav", sig, 16000)
    path = write_one(tmp_path, num_samples=100)
    for preload in [False, True]:
        (item,) = make_dataset(path, tmp_path, 16000, preload=preload)
        assert torch.allclose(item["sig"], torch.full((100,), 0.125))


def test_items_do_not_share_memory_with_preloaded_audio(tmp_path):
    sig = np.full(100, 0.5, dtype=np.float32)
    soundfile.write(tmp_path / "utt1.wav", sig, 16000, subtype="FLOAT")
    path = write_one(tmp_path, num_samples=100)
    dataset = make_dataset(path, tmp_path, 16000, preload=True)
    dataset[0]["sig"].zero_()
    assert dataset[0]["sig"].eq(0.5).all()


@pytest.mark.parametrize("sample_rate", [8000, 16000])
def test_bounds_count_samples_at_the_outputs_rate(corpus, sample_rate):
    root, manifest = corpus
    lengths = sorted(
        len(item["sig"]) for item in make_dataset(manifest, root, sample_rate)
    )
    dataset = make_dataset(
        manifest,
        root,
        sample_rate,
        min_samples=lengths[1],
        max_samples=lengths[3],
    )
    assert sorted(len(item["sig"]) for item in dataset) == lengths[1:4]
    with pytest.raises(DataError, match="a.json.*between 0 and 10"):
        make_dataset(manifest, root, sample_rate, max_samples=10)


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("damage", ["gone", "short", "nan", "text"])
def test_damaged_audio_is_named(tmp_path, damage, preload):
    audio = tmp_path / "utt1.wav"
    sig = np.zeros(1000, dtype=np.float32)
    if damage == "nan":
        sig[500] = np.nan
    sig = sig[:900] if damage == "short" else sig
    soundfile.write(audio, sig, 16000, subtype="FLOAT")
    if damage == "gone":
        audio.unlink()
    if damage == "text":
        audio.write_bytes(b"not audio")
    path = write_one(tmp_path, num_samples=1000)
    with pytest.raises(AudioError, match="utt1.wav"):
        _ = make_dataset(path, tmp_path, 16000, preload=preload)[0]


def test_an_incomplete_manifest_is_named(tmp_path):
    path = write_one(tmp_path)
    with pytest.raises(DataError, match="utt1 of .*one.json lacks num_samples"):
        make_dataset(path, tmp_path, 16000)


def test_a_segment_has_samples(corpus):
    root, manifest = corpus
    with pytest.raises(DataError, match="segment_samples"):
        make_dataset(manifest, root, 16000, segment_samples=0)
