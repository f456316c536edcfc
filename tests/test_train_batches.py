"""What a Brain is given to train on: data, or batches of it by duration."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from make_tokens import make_tokens
from own_script import fit_and_test, load_yaml

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.data.manifest import write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset
from speechbrain_focalcodec.data.tokens import TokenDataset
from speechbrain_focalcodec.downstream.classification import (
    ClassificationBrain,
)
from speechbrain_focalcodec.errors import DataError
from speechbrain_focalcodec.training.checkpointing import AtomicCheckpointer
from speechbrain_focalcodec.training.entry import train_batches

OPTIONS = {"batch_size": 3, "num_workers": 0, "shuffle": True}
RATE = 16000
YAML = Path(__file__).parents[1] / "hparams/downstream/speaker_id.yaml"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Items of 0.2 to 0.8 s: waveforms, and tokens at 50 Hz."""
    folder = tmp_path_factory.mktemp("data")
    entries = {}
    for i in range(12):
        samples = 3200 + 800 * i
        soundfile.write(folder / f"{i}.wav", np.full(samples, 0.1), RATE)
        entries[f"utt{i}"] = {
            "wav": f"{{data_root}}/{i}.wav",
            "num_samples": samples,
            "sample_rate": RATE,
        }
    write_manifest(folder / "train.json", entries)
    return {
        "waveforms": make_dataset(folder / "train.json", folder, RATE),
        "tokens": TokenDataset(make_tokens(folder / "tokens")),
    }


each_kind = pytest.mark.parametrize("kind", ["waveforms", "tokens"])


def batches_of(dataset, folder, seconds=1.5, seed=3):
    """Brain and loader of a new run, resumed where there are checkpoints."""
    checkpointer = AtomicCheckpointer(folder, {})
    brain = SimpleNamespace(
        checkpointer=checkpointer, loader_generator=torch.Generator()
    )
    hparams = {"seed": seed, "train_loader": OPTIONS}
    loader = train_batches(
        brain, dataset, {**hparams, "max_batch_seconds": seconds}
    )
    checkpointer.recover_if_possible()
    return brain, loader


@each_kind
def test_no_limit_returns_the_dataset(kind, datasets):
    brain = SimpleNamespace()
    for hparams in ({}, {"max_batch_seconds": None}):
        assert train_batches(brain, datasets[kind], hparams) is datasets[kind]


@each_kind
def test_batches_by_duration(kind, datasets, tmp_path):
    dataset = datasets[kind]
    brain, loader = batches_of(dataset, tmp_path)
    assert brain.checkpointer.recoverables["dataloader-TRAIN"] is loader
    assert loader.generator is brain.loader_generator
    epochs, sizes = [], set()
    for _ in range(2):
        epochs.append([])
        for batch in loader:
            x = batch.sig if kind == "waveforms" else batch.tokens
            per_second = RATE if kind == "waveforms" else 50
            assert x.data.shape[:2].numel() <= 1.5 * per_second
            sizes.add(len(batch.id))
            epochs[-1].append(tuple(batch.id))
        ids = [utt_id for batch in epochs[-1] for utt_id in batch]
        assert sorted(ids) == sorted(dataset.data_ids)
    # Not batch_size items, and anew in each epoch.
    assert len(sizes) > 1 and max(sizes) > OPTIONS["batch_size"]
    assert epochs[0] != epochs[1]
    _, other = batches_of(dataset, tmp_path / "other", seed=4)
    assert [tuple(batch.id) for batch in other] != epochs[0]


@each_kind
def test_the_position_is_kept(kind, datasets, tmp_path):
    brain, loader = batches_of(datasets[kind], tmp_path)
    batches = iter(loader)
    taken = [next(batches).id for _ in range(2)]
    brain.checkpointer.save_checkpoint(end_of_epoch=False)
    left = [batch.id for batch in batches]
    assert left and not set(sum(taken, [])) & set(sum(left, []))
    _, again = batches_of(datasets[kind], tmp_path)
    assert [batch.id for batch in again] == left
    _, longer = batches_of(datasets[kind], tmp_path, seconds=2.0)
    with pytest.raises(DataError, match="as these have changed: max_batch_"):
        next(iter(longer))


@each_kind
def test_an_item_longer_than_a_batch(kind, datasets, tmp_path):
    with pytest.raises(DataError, match="does not fit in a batch of"):
        batches_of(datasets[kind], tmp_path, seconds=0.5)


def test_a_task_on_tokens_resumes_within_an_epoch(tmp_path, parity):
    """Stopped after two batches of the second epoch."""
    codec = FocalCodec.from_pretrained(parity / "offline_50hz")
    train, other = (
        make_tokens(
            tmp_path / name,
            codebook_size=codec.codebook_size,
            fingerprint=codec.fingerprint,
            prefix=name,
        )
        for name in ("train", "other")
    )
    tokens = {"train": str(train), "valid": str(other), "test": str(other)}
    seen = []

    class Brain(ClassificationBrain):
        stop_at = None

        def fit_batch(self, batch):
            if len(seen) == self.stop_at:
                raise KeyboardInterrupt
            seen.append(tuple(batch.id))
            return super().fit_batch(batch)

    def run(name, stop_at=None):
        Brain.stop_at = stop_at
        hparams = load_yaml(
            YAML,
            {
                "data_folder": "none",
                "output_folder": str(tmp_path / name),
                "codec_source": str(parity / "offline_50hz"),
                "tokens": tokens,
                "number_of_epochs": 2,
                "max_batch_seconds": 2.0,
                "network": {"hidden_dim": 4, "dropout": 0.5},
                "embedding": {"dim": 4},
            },
        )
        hparams["brain"] = Brain
        options = {"device": "cpu", "noprogressbar": True}
        fit_and_test(hparams, {**options, "ckpt_interval_steps": 1})

    run("whole")
    whole = seen.copy()
    assert len(whole) > 8
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop_at=len(whole) // 2 + 2)
    run("parts")
    assert seen == whole
    logs = [tmp_path / name / "train_log.txt" for name in ("whole", "parts")]
    assert logs[0].read_text() == logs[1].read_text()
