"""Batches of waveforms by duration."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_focalcodec.data.batching import (
    DurationBatchSampler,
    duration_loader,
    signal_lengths,
)
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset, set_epoch
from speechbrain_focalcodec.errors import DataError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return a folder of 24 utterances at two sample rates."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    entries = {}
    for i in range(24):
        length, rate = int(generator.integers(200, 2000)), (8000, 16000)[i % 2]
        soundfile.write(folder / f"{i}.wav", np.full(length, i / 100), rate)
        entries[f"utt{i:02d}"] = {
            "wav": f"{{data_root}}/{i}.wav",
            "num_samples": length,
            "sample_rate": rate,
        }
    write_manifest(folder / "train.json", entries)
    return folder


def make(corpus, **options):
    return make_dataset(corpus / "train.json", corpus, 8000, **options)


def loader_of(corpus, seconds=0.5, options=(), **loader):
    dataset = make(corpus, **dict(options))
    return duration_loader(dataset, seconds, 3, shuffle=True, **loader)


def ids(loader):
    return [list(batch.id) for batch in loader]


@given(
    lengths=st.lists(st.integers(1, 100), min_size=4, max_size=60),
    longest=st.integers(100, 400),
    world_size=st.integers(1, 4),
    window=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(1, 3),
)
@settings(max_examples=50)
def test_batches_of_all_ranks(
    lengths, longest, world_size, window, shuffle, drop_last, epoch
):
    ranks = []
    for rank in range(world_size):
        sampler = DurationBatchSampler(
            lengths,
            longest,
            shuffle,
            7,
            drop_last,
            window,
            rank=rank,
            world_size=world_size,
        )
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler) > 0
    # Each rank has as many batches, no item comes twice.
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for batches in ranks for batch in batches]
    given = [item for batch in batches for item in batch]
    assert len(given) == len(set(given))
    if max(map(len, batches)) == 1:
        assert len(given) > len(lengths) - world_size
    elif not drop_last or world_size == 1:
        assert sorted(given) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) * max(lengths[item] for item in batch) <= longest


def test_few_items_of_any_length_are_shared():
    """Also where no batch can be cut any further, no item comes twice."""
    ranks = [
        list(DurationBatchSampler([9] * 5, 9, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert [len(batches) for batches in ranks] == [2, 2]
    assert len({batch[0] for batches in ranks for batch in batches}) == 4


def test_padding_is_small_and_batches_are_full():
    lengths = np.random.default_rng(0).integers(1000, 16000, 5000)
    sampler = DurationBatchSampler(lengths, 160000, seed=1)
    sizes = [len(batch) * max(lengths[batch]) for batch in sampler]
    assert sum(sizes) < 1.03 * lengths.sum()
    assert np.mean(sizes) > 0.93 * 160000


def test_epochs_differ_and_the_seed_decides():
    lengths = list(range(100, 200))

    def batches(seed, epoch):
        sampler = DurationBatchSampler(lengths, 1000, seed=seed, window=20)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 1) == batches(1, 1)
    assert batches(1, 1) != batches(1, 2)
    assert batches(1, 1) != batches(2, 1)
    # Not the same batches in another order.
    one, two = ({tuple(sorted(b)) for b in batches(1, e)} for e in (1, 2))
    assert len(one & two) < 5


@pytest.mark.parametrize(
    "options",
    [{}, {"segment_samples": 300}, {"chunk_samples": 700}, {"preload": True}],
)
def test_lengths_are_known_without_reading(corpus, options):
    dataset = make(corpus, **options)
    for data in (dataset, dataset.filtered_sorted(sort_key="id", reverse=True)):
        lengths, sample_rate = signal_lengths(data)
        assert lengths.tolist() == [len(item["sig"]) for item in data]
        assert sample_rate == 8000


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_yields_all_utterances(corpus, workers):
    loader = loader_of(corpus, num_workers=workers, batch_size=1)
    for epoch in (1, 2):
        set_epoch(loader, epoch)
        names = []
        for batch in loader:
            assert batch.sig.data.numel() <= 4000
            for name, sig in zip(batch.id, batch.sig.data, strict=True):
                assert sig[50] == pytest.approx(int(name[3:]) / 100, abs=3e-3)
            names += batch.id
        assert sorted(names) == [f"utt{i:02d}" for i in range(24)]


@pytest.mark.parametrize("workers", [0, 2])
def test_exact_resume_within_an_epoch(corpus, tmp_path, workers):
    loader = loader_of(corpus, num_workers=workers)
    saver = Checkpointer(tmp_path, {"loader": loader})
    set_epoch(loader, 2)
    iterator = iter(loader)
    taken = [list(next(iterator).id) for _ in range(3)]
    saver.save_checkpoint(end_of_epoch=False)
    rest = ids(iterator)
    assert rest
    set_epoch(loader, 3)
    third = ids(loader)
    # The number of workers may change.
    loader = loader_of(corpus, num_workers=2 - workers)
    Checkpointer(tmp_path, {"loader": loader}).recover_if_possible()
    set_epoch(loader, 2)
    assert ids(loader) == rest
    assert len({name for batch in taken + rest for name in batch}) == 24
    set_epoch(loader, 3)
    assert ids(loader) == third


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seconds": 0.6}, "max_batch_samples was 4000, is 4800"),
        ({"options": {"max_samples": 900}}, "data was"),
        ({"drop_last": True}, "drop_last was False"),
    ],
)
def test_a_run_cannot_resume_with_other_batches(
    corpus, tmp_path, change, message
):
    loader = loader_of(corpus)
    saver = Checkpointer(tmp_path, {"loader": loader})
    next(iter(loader))
    saver.save_checkpoint(end_of_epoch=False)
    loader = loader_of(corpus, **change)
    Checkpointer(tmp_path, {"loader": loader}).recover_if_possible()
    with pytest.raises(DataError, match=message):
        iter(loader)


def test_another_number_of_ranks_cannot_go_on(corpus, tmp_path, monkeypatch):
    loader = loader_of(corpus)
    saver = Checkpointer(tmp_path, {"loader": loader})
    next(iter(loader))
    saver.save_checkpoint(end_of_epoch=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = loader_of(corpus)
    Checkpointer(tmp_path, {"loader": loader}).recover_if_possible()
    with pytest.raises(DataError, match="world_size was 1, is 2"):
        iter(loader)


def test_it_may_follow_batches_of_one_size_after_an_epoch(corpus, tmp_path):
    plain = make_dataloader(make(corpus), batch_size=4)
    saver = Checkpointer(tmp_path, {"loader": plain})
    list(plain)
    saver.save_checkpoint()
    loader = loader_of(corpus)
    saver = Checkpointer(tmp_path, {"loader": loader})
    saver.recover_if_possible()
    set_epoch(loader, 2)
    assert len({name for batch in ids(loader) for name in batch}) == 24
    # Within an epoch there is no such place.
    next(iter(plain))
    saver = Checkpointer(tmp_path / "within", {"loader": plain})
    saver.save_checkpoint(end_of_epoch=False)
    saver = Checkpointer(tmp_path / "within", {"loader": loader})
    with pytest.raises(DataError, match="no state of this loader"):
        saver.recover_if_possible()


def test_errors_of_batches(corpus):
    with pytest.raises(DataError, match="does not fit .* 800: raise max_batch"):
        loader_of(corpus, 0.1)
    lengths, _ = signal_lengths(make(corpus))
    with pytest.raises(DataError, match="24 utterances .* 25 processes"):
        DurationBatchSampler(lengths, 4000, rank=0, world_size=25)
    with pytest.raises(ValueError, match="rank must be within 0..1, got 2"):
        DurationBatchSampler(lengths, 4000, rank=2, world_size=2)
    with pytest.raises(ValueError, match="seed"):
        DurationBatchSampler(lengths, 4000, seed=-1)
