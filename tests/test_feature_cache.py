"""The cache of a frozen encoder's features: making, reading, training."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from make_corpus import make_corpus
from own_script import fit_and_evaluate, load_yaml
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.data import feature_cache, feature_reader
from speechbrain_focalcodec.data.feature_cache import make_feature_cache
from speechbrain_focalcodec.data.feature_plan import CachePlan
from speechbrain_focalcodec.data.feature_reader import (
    FeatureCache,
    add_features,
)
from speechbrain_focalcodec.data.feature_shards import (
    FeatureShard,
    write_shard,
)
from speechbrain_focalcodec.data.libritts import prepare_libritts
from speechbrain_focalcodec.data.manifest import read_manifest, write_manifest
from speechbrain_focalcodec.data.pipeline import make_dataset, set_epoch
from speechbrain_focalcodec.data.reader import SignalReader
from speechbrain_focalcodec.data.splits import merge_manifests
from speechbrain_focalcodec.errors import ConfigError, DataError
from speechbrain_focalcodec.training.caching import use_feature_cache
from speechbrain_focalcodec.training.codec_brain import CodecBrain

ROOT = Path(__file__).parent.parent
CONFIG = json.loads(
    (ROOT / "tests" / "parity" / "offline_50hz" / "config.json").read_text()
)
# Three shards of the six utterances, by the size of two in bfloat16.
SHARD_BYTES = 2 * 40 * 80 * 2
FILES = [
    "features-00000-of-00003.safetensors",
    "features-00001-of-00003.safetensors",
    "features-00002-of-00003.safetensors",
    "features.json",
    "plan.json",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """24 kHz, six utterances of about 0.7 s each way; manifests in save/."""
    folder = tmp_path_factory.mktemp("corpus")
    splits = ["train-tiny", "dev-tiny"]
    make_corpus("LibriTTS", folder / "data", splits, duration=0.7)
    prepare_libritts(folder / "data", folder / "save", splits)
    merge_manifests(folder / "save", splits[:1], splits[1:])
    return folder


@pytest.fixture(scope="module")
def mini() -> FocalCodec:
    return FocalCodec.from_pretrained("focalcodec_mini_50hz")


@pytest.fixture
def entries(corpus):
    return dataset_of(corpus).data


@pytest.fixture
def encoded(mini, monkeypatch):
    """Numbers of utterances of the batches that were encoded."""
    sizes = []
    original = mini.sig_to_feats

    def encode(sig, lengths):
        sizes.append(len(sig))
        return original(sig, lengths)

    monkeypatch.setattr(mini, "sig_to_feats", encode)
    return sizes


def dataset_of(corpus, split="train", **options):
    manifest = corpus / "save" / f"{split}.json"
    return make_dataset(manifest, corpus / "data", 16000, **options)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(cache):
    return {name: cache.read(name) for name in cache._places}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["wavlm", "log-mel"])
def test_it_holds_what_the_encoder_gives_each_alone(
    corpus, entries, tmp_path, kind, mini
):
    codec = FocalCodec.from_config(CONFIG).eval() if kind == "wavlm" else mini
    cache = make_feature_cache(tmp_path, codec, entries)
    assert len(cache) == len(entries) == 6
    read = SignalReader(16000)
    for name, entry in entries.items():
        sig = read(name, *(entry[k] for k in ENTRY_KEYS))
        with torch.no_grad():
            alone = codec.sig_to_feats(sig[None])[0]
        feats = cache.read(name)
        assert feats.dtype == torch.bfloat16
        assert feats.shape == alone.shape
        assert cache.num_frames(name) == len(alone)
        torch.testing.assert_close(feats.float(), alone, rtol=2**-7, atol=1e-4)
        assert torch.equal(cache.read(name, 3, 9), feats[3:9])


ENTRY_KEYS = ("wav", "num_samples", "sample_rate")


def test_the_folder(mini, entries, tmp_path, encoded):
    cache = make_feature_cache(
        tmp_path / "a", mini, entries, shard_bytes=SHARD_BYTES
    )
    assert names_in(tmp_path / "a") == FILES
    assert sum(encoded) == 6
    size = sum(p.stat().st_size for p in (tmp_path / "a").glob("*.safetensors"))
    plan = CachePlan.make(mini, entries, SHARD_BYTES)
    frames = sum(cache.num_frames(name) for name in entries)
    assert plan.identity.num_frames == frames
    assert frames * 80 * 2 < size <= plan.num_bytes()
    # A complete one is opened, whatever the shards' size is now.
    again = make_feature_cache(tmp_path / "a", mini, entries)
    assert sum(encoded) == 6
    # What an utterance gives depends on neither batch nor shard.
    whole = make_feature_cache(tmp_path / "b", mini, entries)
    assert names_in(tmp_path / "b")[0] == "features-00000-of-00001.safetensors"
    for name, feats in contents(whole).items():
        torch.testing.assert_close(again.read(name), feats, rtol=2**-7, atol=0)
    with pytest.raises(DataError, match="no utterance nobody"):
        cache.read("nobody")


def test_a_loaders_workers_read_for_themselves(mini, entries, tmp_path):
    cache = make_feature_cache(tmp_path, mini, entries, num_workers=1)
    before = contents(cache)
    after = contents(pickle.loads(pickle.dumps(cache)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# Killed before the plan, a shard or the index is published: what was encoded
# until then stays.
@pytest.mark.parametrize("killed_at, left", [(0, 6), (1, 6), (3, 2), (4, 0)])
def test_a_killed_run_goes_on(
    mini, entries, tmp_path, monkeypatch, encoded, killed_at, left
):
    replace, count = os.replace, 0

    def killed(*paths):
        nonlocal count
        if count == killed_at:
            raise KeyboardInterrupt
        count += 1
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make_feature_cache(tmp_path, mini, entries, shard_bytes=SHARD_BYTES)
    if killed_at:
        with pytest.raises(DataError, match="no complete feature cache"):
            FeatureCache(tmp_path)
    encoded.clear()
    # A cache that was begun keeps its shards' size.
    shard_bytes = SHARD_BYTES if killed_at == 0 else 10**9
    cache = make_feature_cache(tmp_path, mini, entries, shard_bytes=shard_bytes)
    assert sum(encoded) == left
    assert names_in(tmp_path) == FILES
    assert len(contents(cache)) == 6


@pytest.mark.parametrize("lost", ["cut", "empty", "removed", "of another"])
def test_a_lost_shard_is_made_again(mini, entries, tmp_path, encoded, lost):
    cache = make_feature_cache(tmp_path, mini, entries, shard_bytes=SHARD_BYTES)
    before = contents(cache)
    encoded.clear()
    path = tmp_path / FILES[1]
    if lost == "removed":
        path.unlink()
    elif lost == "of another":
        write_shard(path, {"utt": torch.zeros(2, 80)}, "tag")
    else:
        os.truncate(path, 0 if lost == "empty" else path.stat().st_size - 1)
    with pytest.raises(DataError, match=FILES[1]):
        FeatureCache(tmp_path)
    after = contents(make_feature_cache(tmp_path, mini, entries))
    assert sum(encoded) == 2
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_flipped_bit_is_found_when_it_is_read(mini, entries, tmp_path):
    cache = make_feature_cache(tmp_path, mini, entries)
    [path] = tmp_path.glob("*.safetensors")
    flip(path, -1)
    message = f"{path.name} of the feature cache .* remove the file"
    with pytest.raises(DataError, match=message):
        contents(cache)
    # Frames elsewhere in the utterance are whole, and are given.
    assert [cache.read(name, 0, 2).shape for name in entries] == [(2, 80)] * 6
    path.unlink()
    assert len(contents(make_feature_cache(tmp_path, mini, entries))) == 6


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "a.safetensors"
    feats = {"a": torch.randn(3, 2), "b": torch.randn(1, 2)}
    write_shard(path, feats, "tag")
    copy = path.with_name("copy.safetensors")
    whole = FeatureShard(path)
    return path.read_bytes(), {n: whole.read(n) for n in feats}, copy


@given(data=st.data())
@settings(max_examples=60)
def test_damage_never_goes_unnoticed(shard, data):
    whole, feats, path = shard
    # A file that is mapped must not change: write another one.
    path.unlink(missing_ok=True)
    path.write_bytes(data.draw(damaged(whole)))
    for name, values in feats.items():
        try:
            found = FeatureShard(path).read(name)
        except DataError:
            continue
        assert torch.equal(found.view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize("file", ["features.json", "plan.json"])
def test_a_damaged_table(mini, entries, tmp_path, encoded, file):
    make_feature_cache(tmp_path, mini, entries)
    (tmp_path / file).write_text('{"identity"')
    encoded.clear()
    if file == "plan.json":
        with pytest.raises(DataError, match="plan.json .* is damaged"):
            make_feature_cache(tmp_path, mini, entries)
        (tmp_path / file).unlink()
    else:
        with pytest.raises(DataError, match="features.json .* is damaged"):
            FeatureCache(tmp_path)
    make_feature_cache(tmp_path, mini, entries)
    assert len(contents(FeatureCache(tmp_path))) == 6
    assert encoded == []


def test_another_encoder_rate_or_manifest_refuses(entries, tmp_path, mini):
    make_feature_cache(tmp_path / "mel", mini, entries)
    before = (tmp_path / "mel" / "features.json").read_bytes()

    def refuses(match, codec, entries, folder="mel"):
        with pytest.raises(DataError, match=match):
            make_feature_cache(tmp_path / folder, codec, entries)

    def with_option(**options):
        config = mini.config.model_dump(mode="json")
        config["encoder_config"] |= options
        return FocalCodec.from_config(config)

    fewer = dict(list(entries.items())[1:])
    refuses("other utterances", mini, fewer)
    first = next(iter(entries))
    longer = entries[first] | {"num_samples": 9}
    refuses("other utterances", mini, entries | {first: longer})
    refuses("another encoder", with_option(floor=0.5), entries)
    refuses("another sample rate", with_option(sample_rate=24000), entries)
    wavlm = FocalCodec.from_config(CONFIG).eval()
    refuses("another encoder", wavlm, entries)
    make_feature_cache(tmp_path / "wavlm", wavlm, entries)
    with torch.no_grad():
        next(wavlm.compressor.parameters()).add_(1)
    make_feature_cache(tmp_path / "wavlm", wavlm, entries)
    with torch.no_grad():
        next(wavlm.encoder.parameters()).add_(1)
    refuses("another encoder", wavlm, entries, "wavlm")
    assert (tmp_path / "mel" / "features.json").read_bytes() == before


def test_the_size_is_checked_first(
    mini, entries, tmp_path, monkeypatch, encoded, caplog
):
    usage = namedtuple("usage", "total used free")
    plan = CachePlan.make(mini, entries, SHARD_BYTES)

    def free(size):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: usage(10**9, 0, size)
        )

    def make():
        make_feature_cache(
            tmp_path / "a" / "b", mini, entries, shard_bytes=SHARD_BYTES
        )

    free(plan.num_bytes() - 1)
    with caplog.at_level("INFO"), pytest.raises(DataError) as caught:
        make()
    gigabytes = f"{plan.num_bytes() / 1e9:.3f} GB"
    assert f"takes {gigabytes} (6 utterances" in str(caught.value)
    assert gigabytes in caplog.text and "3 of 3 shards" in caplog.text
    assert names_in(tmp_path) == [] and encoded == []
    free(plan.num_bytes())
    make()
    # Only what is missing must fit.
    (tmp_path / "a" / "b" / FILES[0]).unlink()
    free(plan.num_bytes([0]))
    make()
    (tmp_path / "a" / "b" / FILES[0]).unlink()
    free(plan.num_bytes([0]) - 1)
    with pytest.raises(DataError, match="larger disk"):
        make()


def test_features_that_are_not_finite_refuse(
    mini, entries, tmp_path, monkeypatch
):
    monkeypatch.setattr(mini.encoder, "std", 0.0)
    with pytest.raises(DataError, match="not finite"):
        make_feature_cache(tmp_path, mini, entries)
    assert names_in(tmp_path) == ["plan.json"]


def _one_of_two(rank, folder, corpus):
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)  # threads do not live on in a fork
    torch.distributed.init_process_group(
        "gloo", f"file://{folder / 'meet'}", rank=rank, world_size=2
    )
    made = []
    write = feature_cache.write_shard
    feature_cache.write_shard = lambda path, *arguments: (
        made.append(path.name),
        write(path, *arguments),
    )
    codec = FocalCodec.from_pretrained("focalcodec_mini_50hz")
    cache = make_feature_cache(
        folder / "cache",
        codec,
        dataset_of(corpus).data,
        shard_bytes=SHARD_BYTES,
    )
    (folder / f"{rank}.json").write_text(json.dumps([made, len(cache)]))
    torch.distributed.destroy_process_group()


def test_processes_share_the_shards(mini, corpus, entries, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_one_of_two, args=(rank, tmp_path, corpus))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    reports = [
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert reports == [[[FILES[0], FILES[2]], 6], [[FILES[1]], 6]]
    shared = contents(FeatureCache(tmp_path / "cache"))
    alone = contents(
        make_feature_cache(
            tmp_path / "alone", mini, entries, shard_bytes=SHARD_BYTES
        )
    )
    assert all(torch.equal(shared[name], alone[name]) for name in alone)


def test_random_segments_of_features(mini, corpus, entries, tmp_path):
    cache = make_feature_cache(tmp_path, mini, entries)
    dataset = dataset_of(corpus)
    add_features(dataset, cache, segment_frames=20, seed=3)
    starts = set()
    for epoch in range(1, 6):
        set_epoch(dataset, epoch)
        item = dataset[0]
        assert item.keys() == {"id", "feats"}
        again = dataset[0]["feats"]
        assert torch.equal(item["feats"], again)
        whole = cache.read(item["id"])
        [start] = [
            i
            for i in range(len(whole) - 19)
            if torch.equal(whole[i : i + 20], item["feats"])
        ]
        starts.add(start)
    assert len(starts) > 1
    # What is shorter than a segment is not padded.
    short = dataset_of(corpus)
    add_features(short, cache, segment_frames=1000, with_sig=True)
    assert short[0].keys() == {"id", "feats", "sig"}
    assert torch.equal(short[0]["feats"], cache.read(short[0]["id"]))
    with pytest.raises(DataError, match="lacks 2"):
        add_features(dataset_of(corpus, "valid"), cache)


def small() -> FocalCodec:
    """The mini model's encoder, and little behind it."""
    torch.manual_seed(0)
    compressor = {"input_dim": 80, "output_dim": 6, "hidden_dims": [16]}
    decompressor = {"input_dim": 6, "output_dim": 80, "hidden_dims": [16]}
    backbone = {"num_layers": 1, "dim": 16, "ffn_dim": 32}
    return FocalCodec.from_config(
        {
            "encoder_name": "LogMel",
            "encoder_config": {},
            "compressor_config": compressor | {"downscale_factors": [1]},
            "quantizer_config": {"codebook_size": 64},
            "decompressor_config": decompressor | {"upscale_factors": [1]},
            "decoder_config": {"input_dim": 80} | backbone,
        }
    )


def train(corpus, output, cache, epochs=2, **replaced):
    """Run the quantizer stage as a recipe does; losses in their order."""
    for split in ("train", "valid"):
        entries = read_manifest(corpus / "save" / f"{split}.json")
        write_manifest(output / "save" / f"{split}.json", entries)
    path = ROOT / "hparams" / "train" / "mini_quantizer.yaml"
    overrides = {
        "data_folder": str(corpus / "data"),
        "output_folder": str(output),
        "number_of_epochs": epochs,
        "batch_size": 2,
        "num_samples": 0,
        "train_data_options": {"segment_samples": None},
        "feature_cache": str(cache) if cache else None,
        "lr_schedule": None,
        "lr": 0.003,
        # At a hundred times the inverse temperature it tells apart latents
        # that rounding has moved.
        "entropy_weight": 0.0,
    }
    hparams = load_yaml(path, overrides)
    log = output / "train_log.txt"
    hparams |= {
        "codec": small(),
        "train_logger": FileTrainLogger(log, precision=6),
        **replaced,
    }
    options = {"device": "cpu", "noprogressbar": True, "precision": "fp32"}
    fit_and_evaluate(hparams, options)
    found = re.findall(r"(?:train|valid|test) loss: (\S+?),", log.read_text())
    return [float(value) for value in found]


def test_training_gives_the_same_losses(corpus, tmp_path, monkeypatch):
    plain = train(corpus, tmp_path / "plain", None)
    cached = train(corpus, tmp_path / "cached", tmp_path / "cache")
    assert len(plain) == 5
    assert plain != cached
    assert cached == pytest.approx(plain, rel=2**-8)
    # It learns: else equal losses would mean little.
    assert plain[2] < 0.95 * plain[0]

    # A second run encodes nothing, also where validation is heard.
    class Audible(CodecBrain):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.audible = True

    monkeypatch.setattr(FocalCodec, "sig_to_feats", None)
    again = train(
        corpus,
        tmp_path / "again",
        tmp_path / "cache",
        epochs=1,
        brain=Audible,
        num_samples=1,
    )
    assert again[:2] == cached[:2]
    kinds = ["original", "reconstruction", "unquantized"]
    found = names_in(tmp_path / "again" / "samples" / "test")
    assert [name.rsplit("_")[-1] for name in found if "wav" in name] == [
        f"{kind}.wav" for kind in kinds
    ]


def test_stages_that_need_waveforms_refuse(mini, corpus, tmp_path):
    def brain(codec=mini, takes_features=True):
        return SimpleNamespace(
            codec=codec,
            decodes=False,
            audible=False,
            takes_features=takes_features,
        )

    hparams = {
        "feature_cache": str(tmp_path),
        "num_workers": 0,
        "seed": 1,
        "train_data_options": {"segment_samples": 3200, "augment": True},
    }
    datasets = {"train": dataset_of(corpus)}
    with pytest.raises(ConfigError, match="the stage needs whole wave"):
        use_feature_cache(brain(takes_features=False), datasets, hparams)
    trained = FocalCodec.from_config(CONFIG)
    with pytest.raises(ConfigError, match="trains the encoder"):
        use_feature_cache(brain(trained), datasets, hparams)
    with pytest.raises(ConfigError, match="train_data_options has augment"):
        use_feature_cache(brain(), datasets, hparams)
    assert names_in(tmp_path) == []
    hparams["train_data_options"]["augment"] = None
    with pytest.raises(ConfigError, match="augmentation changes the wave"):
        use_feature_cache(brain(), datasets, {**hparams, "augmentation": 1})
    use_feature_cache(brain(), datasets, hparams)
    assert datasets["train"][0]["feats"].shape == (10, 80)
    assert names_in(tmp_path) == ["train"]
    assert feature_reader.INDEX_FILE in names_in(tmp_path / "train")
