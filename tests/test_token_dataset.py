"""Training from token datasets: items, order, ranks, exact resume."""

import json
import os
import pickle
import socket
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tokens import FINGERPRINT, make_tokens
from speechbrain.core import Brain
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.data.batching import TokenBatchSampler
from speechbrain_focalcodec.data.token_loader import TokenLoader
from speechbrain_focalcodec.data.token_order import rank_rows
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.modules.token_embedding import TokenEmbedding
from speechbrain_focalcodec.utils.files import sha256_of

BATCHES = ({"batch_size": 4}, {"max_batch_tokens": 90})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="module")
def dataset(folder):
    return TokenDataset(folder)


@pytest.fixture(scope="module")
def lines(folder):
    """Return the rows as pyarrow reads them."""
    paths = sorted(folder.glob("data/*.parquet"))
    return [line for p in paths for line in pq.read_table(p).to_pylist()]


@pytest.fixture
def copy(tmp_path):
    """Return a dataset that a test may damage."""
    return make_tokens(tmp_path / "copy")


def ids_of(loader):
    return [batch.id for batch in loader]


def rewrite(folder, number, change):
    """Change a shard's table, and dataset.json with it."""
    path = sorted(folder.glob("data/*.parquet"))[number]
    pq.write_table(change(pq.read_table(path)), path)
    info = json.loads((folder / "dataset.json").read_text())
    shard = info["shards"][number]
    shard["bytes"], shard["sha256"] = path.stat().st_size, sha256_of(path)
    (folder / "dataset.json").write_text(json.dumps(info))


# Items


def test_items_are_those_of_the_files(dataset, lines):
    whole = dataset.filtered_sorted()
    whole.set_output_keys(list(lines[0]))
    assert len(whole) == len(lines) == 29
    for item, line in zip(whole, lines, strict=True):
        toks = item.pop("tokens")
        assert toks.dtype == torch.int64
        assert toks.tolist() == line["tokens"]
        assert item["num_tokens"] == len(toks)
        assert item == {k: v for k, v in line.items() if k != "tokens"}
    assert whole[-1]["id"] == lines[-1]["id"]
    several = whole.__getitems__([20, 3, 20])
    assert [item["id"] for item in several] == [
        "utt-0020",
        "utt-0003",
        "utt-0020",
    ]
    with pytest.raises(IndexError):
        whole[29]


def test_lookup_by_id(dataset, lines):
    assert list(dataset.data_ids) == [line["id"] for line in lines]
    assert dataset.data_ids[2:4] == ["utt-0002", "utt-0003"]
    for line in lines:
        found = dataset.data[line["id"]]
        assert found.pop("tokens").tolist() == line["tokens"]
        assert found == {k: v for k, v in line.items() if k != "tokens"}
    assert "utt-9999" not in dataset.data
    assert list(dataset.data) == list(dataset.data_ids)


@pytest.mark.parametrize("size", [2, 2048, 2**16, 2**18])
def test_any_codebook(tmp_path, size):
    folder = make_tokens(tmp_path / "t", (3,), codebook_size=size)
    dataset = TokenDataset(folder, ["id", "tokens", "codes"])
    assert dataset.codebook_size == size
    for item in dataset:
        d = size.bit_length() - 1
        assert item["codes"].shape == (len(item["tokens"]), d)
        bits = (item["codes"] > 0).long()
        weights = 2 ** torch.arange(d - 1, -1, -1)
        assert torch.equal((bits * weights).sum(1), item["tokens"])


def test_features_of_the_codec(tmp_path, parity):
    codec = FocalCodec.from_pretrained(parity / "offline_25hz")
    folder = make_tokens(
        tmp_path / "t",
        (5,),
        codebook_size=codec.codebook_size,
        fingerprint=codec.fingerprint,
    )
    dataset = TokenDataset(folder, ["tokens", "feats"], codec=codec)
    loader = TokenLoader(dataset.filtered_sorted(), batch_size=5)
    (batch,) = loader
    toks, lengths = batch.tokens
    lengths = (lengths * toks.shape[1]).round().long()
    codes = codec.toks_to_codes(toks, lengths)[0]
    with torch.no_grad():
        expected, frames = codec.codes_to_qfeats(codes, lengths)
    for feats, line, count in zip(
        batch.feats.data, expected, frames, strict=True
    ):
        torch.testing.assert_close(
            feats[:count], line[:count], atol=1e-4, rtol=1e-4
        )


def test_filters_and_splits(dataset, lines):
    part = dataset.filtered_sorted(
        key_min_value={"num_tokens": 5},
        key_max_value={"num_tokens": 30, "duration": 0.5},
        key_test={"speaker": {"speaker0", "speaker2"}.__contains__},
        sort_key="num_tokens",
        reverse=True,
    )
    expected = [
        line
        for line in lines
        if 5 <= len(line["tokens"]) <= 25 and line["speaker"] != "speaker1"
    ]
    assert sorted(part.data_ids) == [line["id"] for line in expected]
    assert list(part.lengths) == sorted(part.lengths, reverse=True)
    assert len(set(part.lengths)) > 1
    again = part.filtered_sorted(key_test={"id": part.data_ids[0].__eq__})
    assert list(again.data_ids) == part.data_ids[:1]
    assert len(dataset.filtered_sorted(select_n=3)) == 3
    nothing = dataset.filtered_sorted(key_max_value={"duration": 0.0})
    assert len(nothing) == 0
    with pytest.raises(DataError, match="filter it less"):
        TokenLoader(nothing, batch_size=2)


def test_dynamic_items_filter_too(dataset):
    part = dataset.filtered_sorted()
    part.add_dynamic_item(lambda toks: int(toks[0]), "tokens", "first")
    part = part.filtered_sorted(
        key_test={"first": lambda x: x % 2}, sort_key="first"
    )
    part.set_output_keys({"start": "first"})
    starts = [item["start"] for item in part]
    assert starts == sorted(starts) and all(x % 2 for x in starts)
    assert "first" not in dataset.pipeline.key_to_node


def test_other_orders_of_speechbrain(dataset):
    few = dataset.overfit_test(3, 8)
    assert list(few.data_ids) == [f"utt-{i % 3:04d}" for i in range(8)]
    mixed = dataset.batch_shuffle(5)
    assert sorted(mixed.data_ids) == list(dataset.data_ids)


def test_speechbrain_loads_it_as_any_dataset(dataset, lines):
    loader = make_dataloader(dataset, batch_size=5, shuffle=True)
    found = sorted(i for batch in loader for i in batch.id)
    assert found == [line["id"] for line in lines]


def test_memory_is_bounded(folder, lines):
    small = TokenDataset(folder, ["id", "tokens", "text"], cache_bytes=1)
    for i in np.random.default_rng(0).permutation(len(lines)):
        assert small[i]["tokens"].tolist() == lines[i]["tokens"]
    assert len(small.rows._cache) <= 4


def test_spawned_workers_get_no_cache(dataset):
    dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert not again.rows._cache
    assert torch.equal(again[5]["tokens"], dataset[5]["tokens"])


# Opening


def test_other_models_are_refused(folder, parity):
    TokenDataset(folder, fingerprint=FINGERPRINT)
    with pytest.raises(DataError, match="made by a_model"):
        TokenDataset(folder, fingerprint="0" * 64)
    codec = FocalCodec.from_pretrained(parity / "offline_25hz")
    with pytest.raises(DataError, match="tokenise the audio again"):
        TokenDataset(folder, codec=codec)


def test_a_shard_is_missing_or_short(copy):
    path = sorted(copy.glob("data/*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=path.name):
        TokenDataset(copy)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        TokenDataset(copy)


def test_changed_bytes_are_found_by_their_hash(copy):
    path = sorted(copy.glob("data/*.parquet"))[1]
    data = bytearray(path.read_bytes())
    data[8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=path.name):
        TokenDataset(copy, verify=True)


def test_no_parquet(copy):
    path = sorted(copy.glob("data/*.parquet"))[1]
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
        TokenDataset(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.slice(1), "rows"),
        (lambda table: table.drop_columns(["chapter"]), "columns"),
    ],
)
def test_a_shard_that_does_not_fit(copy, change, message):
    rewrite(copy, 1, change)
    with pytest.raises(DataError, match=message):
        TokenDataset(copy)


def test_tokens_out_of_range(copy):
    toks = pa.array([[8192]] * 7, pa.list_(pa.uint16()))
    rewrite(copy, 1, lambda t: t.set_column(1, t.schema.field(1), toks))
    dataset = TokenDataset(copy)
    assert dataset[0]["tokens"].max() < 8192
    with pytest.raises(DataError, match="not within 0..8191"):
        dataset[12]


def test_a_column_is_missing(copy):
    path = copy / "dataset.json"
    info = json.loads(path.read_text())
    info["columns"].remove("num_tokens")
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="lacks the columns num_tokens"):
        TokenDataset(copy)


# Order

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


class Fake:
    """What a sampler needs of a dataset."""

    def __init__(self, sizes, seed=0):
        self.groups = np.repeat(np.arange(len(sizes)), sizes)
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(1, 50, len(self.groups))
        self.digest = "digest"
        self.info = SimpleNamespace(
            tokens=int(self.lengths.sum()), rows=len(self)
        )

    def __len__(self):
        return len(self.groups)


@given(
    sizes=sizes,
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
    buffer_rows=st.integers(1, 30),
    shuffle=st.booleans(),
)
def test_ranks_share_all_rows(sizes, world_size, epoch, buffer_rows, shuffle):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    count = len(groups)
    for drop_last in (False, True):
        rows = [
            rank_rows(
                groups, r, world_size, 7, epoch, buffer_rows, shuffle, drop_last
            )
            for r in range(world_size)
        ]
        assert len({len(part) for part in rows}) == 1
        seen = np.bincount(np.concatenate(rows), minlength=count)
        assert len(seen) == count
        if drop_last:
            assert seen.max(initial=0) <= 1
            assert (seen == 0).sum() == count % world_size
        else:
            assert seen.min() >= 1
            assert seen.sum() - count == -count % world_size


@given(
    sizes=sizes,
    world_size=st.integers(1, 4),
    batch_size=st.none() | st.integers(1, 7),
    max_batch_tokens=st.none() | st.integers(50, 200),
    bucketing=st.booleans(),
    buffer_rows=st.integers(1, 30),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_batches(
    sizes, world_size, batch_size, max_batch_tokens, bucketing, **options
):
    if batch_size is None and max_batch_tokens is None:
        return
    dataset = Fake(sizes)
    samplers = [
        TokenBatchSampler(
            dataset,
            batch_size,
            max_batch_tokens,
            bucketing=bucketing or max_batch_tokens is not None,
            rank=rank,
            world_size=world_size,
            **options,
        )
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert len({len(part) for part in batches}) == 1
    assert {len(sampler) for sampler in samplers} == {len(batches[0])}
    for batch in sum(batches, []):
        assert 1 <= len(batch) <= (batch_size or len(dataset))
        if max_batch_tokens is not None:
            padded = len(batch) * dataset.lengths[batch].max()
            assert padded <= max_batch_tokens
    rows = [i for part in batches for batch in part for i in batch]
    if options["drop_last"]:
        assert len(set(rows)) == len(rows)
        if max_batch_tokens is None:
            assert {len(b) for b in sum(batches, [])} <= {batch_size}
    else:
        assert set(rows) == set(range(len(dataset)))
        if max_batch_tokens is None:
            assert len(rows) - len(dataset) == -len(dataset) % world_size
    if world_size == 1 and not options["drop_last"]:
        assert len(rows) == len(dataset)


def test_reading_is_sequential():
    # 200 row groups of 10 rows: a buffer of 50 rows spans 5 of them.
    groups = np.repeat(np.arange(200), 10)
    rows = rank_rows(groups, 0, 1, 0, 1, buffer_rows=50)
    for start in range(0, 2000, 50):
        assert len(set(groups[rows[start : start + 50]])) == 5
    # and yet rows, and row groups, are mixed.
    assert len(set(groups[rows[:8]])) > 1
    assert abs(np.corrcoef(rows, np.arange(2000))[0, 1]) < 0.2
    # A rank visits its own part: a quarter and no more than two cut groups.
    part = rank_rows(groups, 1, 4, 0, 1, buffer_rows=50)
    assert len(set(groups[part])) <= 52


def test_order_depends_on_seed_and_epoch_alone(dataset):
    def order(seed, epoch, **options):
        sampler = TokenBatchSampler(dataset, 4, seed=seed, **options)
        sampler.set_epoch(epoch)
        return list(sampler)

    orders = [order(s, e) for s in (0, 1) for e in (1, 2, 3)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(1, 2) == orders[4]
    assert sum(order(0, 1, shuffle=False), []) == list(range(29))


def test_the_order_is_that_of_earlier_versions():
    """A checkpoint counts batches: another order would be a wrong resume."""
    dataset = Fake([3, 4, 5])
    dataset.lengths = np.array([9, 2, 5, 4, 8, 8, 1, 7, 3, 6, 5, 2])
    assert list(TokenBatchSampler(dataset, 5, seed=1)) == [
        [1, 8, 2, 4, 10],
        [5, 3, 9, 7, 11],
        [6, 0],
    ]
    buckets = TokenBatchSampler(dataset, None, 20, buffer_rows=6, seed=1)
    assert list(buckets) == [[9, 7], [0], [1, 8, 2], [5, 4], [6, 11, 3, 10]]


def test_buckets_save_padding(tmp_path):
    dataset = Fake([100] * 20)

    def padding(**options):
        batches = list(TokenBatchSampler(dataset, **options))
        lengths = [dataset.lengths[b] for b in batches]
        padded = sum(len(x) * x.max() for x in lengths)
        return 1 - dataset.lengths.sum() / padded

    assert padding(batch_size=16) > 0.3
    assert padding(batch_size=16, bucketing=True) < 0.05
    assert padding(max_batch_tokens=400) < 0.05


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "batch_size or max_batch_tokens"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_batch_tokens": 90, "bucketing": False}, "needs bucketing"),
        ({"batch_size": 2, "rank": 1}, "go together"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "within 0..1"),
        ({"batch_size": 2, "seed": -1}, "seed"),
        ({"max_batch_tokens": 20}, "max_batch_tokens=20: raise it"),
    ],
)
def test_wrong_arguments(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        TokenLoader(dataset, **options)


def test_rank_of_torchrun(dataset, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = TokenBatchSampler(dataset, 4)
    assert sampler.rank == 1
    assert sampler.settings["world_size"] == 3


# Batches


def test_padding(dataset, lines):
    lengths = [len(line["tokens"]) for line in lines]
    for pad_token in (None, 8193):
        loader = TokenLoader(
            dataset, batch_size=29, shuffle=False, pad_token=pad_token
        )
        (batch,) = loader
        toks, relative = batch.tokens
        assert toks.shape == (29, max(lengths)) and toks.dtype == torch.int64
        assert (relative * toks.shape[1]).round().long().tolist() == lengths
        for row, line in zip(toks, lines, strict=True):
            size = len(line["tokens"])
            assert row[:size].tolist() == line["tokens"]
            assert set(row[size:].tolist()) <= {pad_token or 0}


def test_each_iteration_is_the_next_epoch(dataset):
    loader = TokenLoader(dataset, **BATCHES[0])
    epochs = [ids_of(loader) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert loader.epoch == 3
    loader.set_epoch(2)
    assert ids_of(loader) == epochs[1]
    assert ids_of(loader) == epochs[2]


# Resume


def interrupted(dataset, folder, taken, options, workers=0, epochs=0):
    """Ids before and after a checkpoint, and the loader that went on."""
    first = TokenLoader(dataset, num_workers=workers, **options)
    saver = Checkpointer(folder, {"loader": first})
    for _ in range(epochs):
        ids_of(first)
    iterator = iter(first)
    before = [next(iterator).id for _ in range(taken)]
    saver.save_checkpoint(end_of_epoch=False)
    # What workers have fetched and nobody has taken.
    next(iterator, None)
    del iterator
    second = TokenLoader(dataset, num_workers=workers, **options)
    Checkpointer(folder, {"loader": second}).recover_if_possible()
    return before, ids_of(second), second


@settings(max_examples=25)
@given(
    taken=st.integers(0, 8),
    epochs=st.integers(0, 2),
    options=st.sampled_from(BATCHES),
    rank=st.integers(0, 1),
    world_size=st.integers(1, 2),
)
def test_consumed_and_remaining_are_all(
    dataset, tmp_path_factory, taken, epochs, options, rank, world_size
):
    options = options | {
        "rank": rank % world_size,
        "world_size": world_size,
        "seed": 3,
    }
    whole = TokenLoader(dataset, **options)
    whole.set_epoch(epochs + 1)
    expected = ids_of(whole)
    taken = min(taken, len(expected))
    before, after, loader = interrupted(
        dataset,
        tmp_path_factory.mktemp("save"),
        taken,
        options,
        epochs=epochs,
    )
    assert before + after == expected
    assert len(before) == taken
    if world_size == 1:
        assert sorted(sum(before + after, [])) == list(dataset.data_ids)
    # and the epoch after that is the next one.
    assert ids_of(loader) == ids_of(whole)


@pytest.mark.parametrize("options", BATCHES)
def test_resume_with_workers(dataset, tmp_path, options):
    expected = ids_of(TokenLoader(dataset, **options))
    before, after, _ = interrupted(dataset, tmp_path, 3, options, workers=2)
    assert before + after == expected and len(before) == 3


def test_resume_twice_in_an_epoch(dataset, tmp_path):
    expected = ids_of(TokenLoader(dataset, **BATCHES[0]))
    seen = []
    while len(seen) < len(expected):
        loader = TokenLoader(dataset, **BATCHES[0])
        saver = Checkpointer(tmp_path, {"loader": loader})
        saver.recover_if_possible()
        saver.save_checkpoint(end_of_epoch=False)  # before a batch is taken
        iterator = iter(loader)
        seen += [batch.id for _, batch in zip(range(2), iterator, strict=False)]
        saver.save_checkpoint(end_of_epoch=False)
    assert seen == expected


def test_persistent_workers(dataset, tmp_path):
    options = {"num_workers": 1, "persistent_workers": True, "batch_size": 4}
    loader = TokenLoader(dataset, **options)
    saver = Checkpointer(tmp_path, {"loader": loader})
    first, second = ids_of(loader), iter(loader)
    before = [next(second).id for _ in range(2)]
    saver.save_checkpoint(end_of_epoch=False)
    rest = [batch.id for batch in second]
    saver.recover_if_possible()
    assert ids_of(loader) == rest
    loader.set_epoch(1)
    assert ids_of(loader) == first
    assert ids_of(loader) == before + rest


def test_end_of_epoch_leads_to_the_next(dataset, tmp_path):
    first = TokenLoader(dataset, **BATCHES[0])
    saver = Checkpointer(tmp_path, {"loader": first})
    saver.save_checkpoint()  # before any epoch
    Checkpointer(tmp_path, {"loader": first}).recover_if_possible()
    assert first.epoch == 1
    ids_of(first)
    saver.save_checkpoint()
    # Another number of ranks is welcome then.
    other = TokenLoader(dataset, **BATCHES[1], rank=1, world_size=2)
    Checkpointer(tmp_path, {"loader": other}).recover_if_possible()
    assert other.epoch == 2
    expected = TokenLoader(dataset, **BATCHES[1], rank=1, world_size=2)
    expected.set_epoch(2)
    assert ids_of(other) == ids_of(expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"world_size": 2, "rank": 0}, "world_size was 1, is 2"),
        ({"batch_size": 5}, "batch_size was 4, is 5"),
        ({"seed": 9}, "seed was 0, is 9"),
        ({"dataset": 1}, "dataset was"),
    ],
)
def test_changed_settings_are_refused(dataset, tmp_path, changes, message):
    first = TokenLoader(dataset, batch_size=4)
    next(iter(first))
    Checkpointer(tmp_path, {"loader": first}).save_checkpoint(
        end_of_epoch=False
    )
    changes = {"batch_size": 4} | changes
    if changes.pop("dataset", None):
        dataset = dataset.filtered_sorted(key_min_value={"num_tokens": 2})
    second = TokenLoader(dataset, **changes)
    # An evaluation recovers as well and never iterates.
    Checkpointer(tmp_path, {"loader": second}).recover_if_possible()
    with pytest.raises(DataError, match=message):
        iter(second)


def test_another_epoch_than_the_checkpoint(dataset, tmp_path):
    first = TokenLoader(dataset, batch_size=4)
    next(iter(first))
    saver = Checkpointer(tmp_path, {"loader": first})
    saver.save_checkpoint(end_of_epoch=False)
    saver.recover_if_possible()
    with pytest.raises(DataError, match="within epoch 1, set_epoch says 2"):
        first.set_epoch(2)


@pytest.mark.parametrize(
    "text", ["", "7", "[]", '{"format": 2}', '{"format": 1, "epoch": 1}']
)
def test_damaged_state(dataset, tmp_path, text):
    loader = TokenLoader(dataset, batch_size=4)
    saver = Checkpointer(tmp_path, {"loader": loader})
    checkpoint = saver.save_checkpoint()
    checkpoint.paramfiles["loader"].write_text(text)
    with pytest.raises(DataError, match="no state of this loader"):
        saver.recover_if_possible()


class NextToken(Brain):
    """A bigram model that records its batches."""

    stop_after = None

    def on_fit_start(self):
        super().on_fit_start()
        self.seen = []

    def compute_forward(self, batch, stage):
        return self.modules.out(self.modules.embedding(batch.tokens.data))

    def compute_objectives(self, predictions, batch, stage):
        toks, lengths = batch.tokens
        sizes = (lengths * toks.shape[1]).round().long()
        mask = torch.arange(1, toks.shape[1]) < sizes[:, None]
        loss = torch.nn.functional.cross_entropy(
            predictions[:, :-1].transpose(1, 2), toks[:, 1:], reduction="none"
        )
        return (loss * mask).sum() / mask.sum().clamp(min=1)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        assert torch.isfinite(loss)
        self.seen.append(batch.id)
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt

    def on_stage_end(self, stage, stage_loss, epoch):
        self.checkpointer.save_checkpoint()


def make_brain(folder, save, workers=0, **options):
    torch.manual_seed(0)
    dataset = TokenDataset(folder)
    loader = TokenLoader(dataset, batch_size=4, num_workers=workers)
    modules = {
        "embedding": TokenEmbedding(dataset.codebook_size, 8),
        "out": torch.nn.Linear(8, dataset.codebook_size),
    }
    brain = NextToken(
        modules,
        lambda x: torch.optim.SGD(x, 0.1),
        run_opts={"noprogressbar": True, **options},
        checkpointer=Checkpointer(save, {"loader": loader, **modules}),
    )
    counter = EpochCounter(2)
    brain.checkpointer.add_recoverable("counter", counter)
    return brain, counter, loader


@pytest.mark.parametrize("workers", [0, 2])
def test_brain_resumes_within_an_epoch(folder, tmp_path, workers):
    """Steps 1..12 of 16; saved after every third; then 13..16 remain."""
    whole, counter, loader = make_brain(folder, tmp_path / "whole")
    whole.fit(counter, loader)
    assert len(whole.seen) == 16

    options = {"workers": workers, "ckpt_interval_steps": 3}
    brain, counter, loader = make_brain(folder, tmp_path / "cut", **options)
    brain.stop_after = 13  # step 5 of the second epoch; saved after step 3
    with pytest.raises(KeyboardInterrupt):
        brain.fit(counter, loader)
    again, counter, loader = make_brain(folder, tmp_path / "cut", **options)
    again.fit(counter, loader)
    assert brain.seen[:11] + again.seen == whole.seen
    for first, second in zip(
        whole.modules.parameters(), again.modules.parameters(), strict=True
    ):
        assert torch.equal(first, second)


def run_rank(rank, port, folder, save, queue_folder):
    """Take two batches, save, resume and take the rest, as one of two."""
    os.environ["RANK"] = str(rank)  # SpeechBrain asks for it
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    dataset = TokenDataset(folder)

    def make():
        loader = TokenLoader(dataset, max_batch_tokens=90)
        return loader, Checkpointer(save, {"loader": loader})

    loader, saver = make()
    iterator = iter(loader)
    seen = [next(iterator).id for _ in range(2)]
    saver.save_checkpoint(end_of_epoch=False)
    torch.distributed.barrier()
    loader, saver = make()
    saver.recover_if_possible()
    seen += ids_of(loader)
    (queue_folder / f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


def test_two_processes(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(
        run_rank, (port, folder, tmp_path / "save", tmp_path), nprocs=2
    )
    seen = [json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1)]
    dataset = TokenDataset(folder)
    for rank in (0, 1):
        options = {"rank": rank, "world_size": 2}
        loader = TokenLoader(dataset, max_batch_tokens=90, **options)
        assert seen[rank] == ids_of(loader)
    assert {i for r in seen for b in r for i in b} == set(dataset.data_ids)
