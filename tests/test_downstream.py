"""Front ends, networks, text, data and the Brains of tasks on tokens."""

import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_tokens import make_tokens

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.audio import read_audio
from speechbrain_focalcodec.data.manifest import read_manifest, write_manifest
from speechbrain_focalcodec.data.splits import split_within
from speechbrain_focalcodec.downstream.asr import (
    CTCDecoder,
    check_alignable,
    frames_needed,
)
from speechbrain_focalcodec.downstream.data import prepare_inputs, task_dataset
from speechbrain_focalcodec.downstream.entry import check_inputs
from speechbrain_focalcodec.downstream.front_ends import (
    FRONT_ENDS,
    FrameNorm,
    TokenFrontEnd,
    make_front_end,
)
from speechbrain_focalcodec.downstream.learnt import learn_pieces
from speechbrain_focalcodec.downstream.networks import (
    BiLSTM,
    Conformer,
    PooledBiLSTM,
)
from speechbrain_focalcodec.downstream.text import TextTokenizer, normalise
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)


@pytest.fixture(scope="module")
def codec():
    return FocalCodec.from_pretrained("focalcodec_mini_50hz")


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_front_end_is_independent_of_the_batch(codec, kind):
    front_end = make_front_end(
        kind, codec, {"dim": 24} if kind == "tokens" else {}
    )
    front_end.eval()
    sig = torch.randn(3, 12000) * 0.1
    # 75, 44 and 43 frames of 10 ms, of which log_mel stacks two.
    lengths = torch.tensor([12000, 7000, 6800])
    prepared, frames = front_end.prepare(sig, lengths)
    x = front_end(prepared, frames)
    assert x.shape[-1] == front_end.dim
    for i, n in enumerate(lengths):
        alone, m = front_end.prepare(sig[i : i + 1, :n], n[None])
        assert m.item() == frames[i] == math.ceil(n / 16000 * front_end.rate)
        expected = front_end(alone, m)[0]
        torch.testing.assert_close(x[i, : frames[i]], expected)


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_prepare_is_not_affected_by_autocast(codec, kind):
    front_end = make_front_end(kind, codec)
    sig, rate = read_audio("speechbrain_focalcodec/assets/demo.flac")
    assert rate == front_end.sample_rate
    lengths = torch.tensor([len(sig)])
    expected, _ = front_end.prepare(sig[None], lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = front_end.prepare(sig[None], lengths)
    assert found.dtype == expected.dtype and found.equal(expected)


def test_frame_norm_equals_batch_norm():
    x, lengths = torch.randn(3, 9, 5) * 3 + 1, torch.tensor([9, 4, 1])
    # Applied to modules by distributed training.
    norm = torch.nn.SyncBatchNorm.convert_sync_batchnorm(FrameNorm(5))
    expected = torch.nn.BatchNorm1d(5)
    frames = torch.cat([x[i, :n] for i, n in enumerate(lengths)])
    for _ in range(2):
        y = norm(x, lengths)
        found = torch.cat([y[i, :n] for i, n in enumerate(lengths)])
        torch.testing.assert_close(found, expected(frames))
        assert y[1, 4:].abs().max() == 0
        for other in (norm, expected):
            other.eval()
    kept = expected.state_dict()
    kept.pop("num_batches_tracked")
    torch.testing.assert_close(dict(norm.state_dict()), dict(kept))


def test_codec_is_neither_trained_nor_saved(codec):
    front_end = make_front_end("tokens", codec)
    assert {n for n, _ in front_end.named_parameters()} == {"embedding.table"}
    assert list(front_end.state_dict()) == ["embedding.table"]


def test_vectors_are_initialised_with_codes(codec):
    front_end = make_front_end("tokens", codec, {"freeze": True})
    toks = torch.arange(8192)[None]
    codes = codec.toks_to_codes(toks)
    vectors = front_end(toks, torch.tensor([8192]))
    torch.testing.assert_close(vectors, codes * 13**0.5)


def test_invalid_front_ends(codec):
    with pytest.raises(ConfigError, match="'mfcc' is none of tokens"):
        make_front_end("mfcc", codec)
    with pytest.raises(ConfigError, match="give a codec"):
        make_front_end("features")
    with pytest.raises(ConfigError, match="codebook_size and token_rate"):
        make_front_end("tokens")
    with pytest.raises(ConfigError, match="codebook_size is 4096, but"):
        make_front_end("tokens", codec, {"codebook_size": 4096})
    front_end = TokenFrontEnd(codebook_size=2**16, token_rate=12.5)
    with pytest.raises(ConfigError, match="without a codec"):
        front_end.prepare(torch.zeros(1, 16000), torch.tensor([16000]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BiLSTM(5, 8),
        lambda: PooledBiLSTM(5, 8),
        lambda: PooledBiLSTM(5, num_layers=0),
    ],
)
def test_networks_ignore_padding(make):
    torch.manual_seed(0)
    network = make().eval()
    x = torch.randn(3, 9, 5)
    lengths = torch.tensor([9, 4, 1])
    y = network(x, lengths)
    assert y.shape[-1] == network.output_dim
    for i, n in enumerate(lengths):
        alone = network(x[i : i + 1, :n], n[None])[0]
        mine = y[i] if y.dim() == 2 else y[i, :n]
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)
        assert mine.isfinite().all()


def test_bilstm_equals_torch():
    network = BiLSTM(5, 6, num_layers=2, dropout=0.3).eval()
    expected = torch.nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True)
    for suffix, ones in (
        ("", network.forwards),
        ("_reverse", network.backwards),
    ):
        for layer, lstm in enumerate(ones):
            for name, weight in lstm.named_parameters():
                name = name.replace("_l0", f"_l{layer}{suffix}")
                expected.get_parameter(name).data.copy_(weight)
    x, lengths = torch.randn(3, 9, 5), torch.tensor([4, 9, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x, lengths, batch_first=True, enforce_sorted=False
    )
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(
        expected(packed)[0], batch_first=True
    )
    found = network(x, lengths)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(found[i, :n], y[i, :n])


def test_conformer_attention_ignores_padding():
    network = Conformer(5, 16, 2, 2, 32, kernel_size=3).eval()
    x = torch.randn(1, 40, 5)
    y = network(x, torch.tensor([20]))
    x[:, 30:] += 1.0
    # SpeechBrain's convolutions extend into the padding.
    torch.testing.assert_close(
        network(x, torch.tensor([20]))[:, :20], y[:, :20]
    )


def test_pooling_of_known_values():
    network = PooledBiLSTM(1, num_layers=0)
    x = torch.tensor([[[1.0], [3.0], [99.0]]])
    mean, deviation = network(x, torch.tensor([2]))[0].tolist()
    assert (mean, round(deviation, 4)) == (2.0, 1.0)


TEXTS = ["GO ON", "STOP", "GO GO GO", "NO", "STOP IT NOW", "ON AND ON"] * 4


@pytest.mark.parametrize(
    "kind, size", [("char", None), ("bpe", 20), ("unigram", 15)]
)
def test_tokenizer_round_trip(kind, size, tmp_path):
    tokenizer = TextTokenizer.train(TEXTS, kind, size)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text.lower())) == text
    assert max(map(max, map(tokenizer.encode, TEXTS))) < tokenizer.size
    if size is not None:
        assert tokenizer.size == size
    tokenizer.save(tmp_path / "a" / "tokenizer.model")
    loaded = TextTokenizer.load(tmp_path / "a" / "tokenizer.model")
    assert loaded.pieces == tokenizer.pieces


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_fewer_pieces_than_requested(tmp_path, kind, caplog):
    """A YAML may request more pieces than the data contains."""
    entries = {str(i): {"text": text} for i, text in enumerate(TEXTS)}
    for entry in entries.values():
        entry |= {"num_samples": 16000, "sample_rate": 16000}
    write_manifest(tmp_path / "train.json", entries)
    hparams = {"tokenizer_kind": kind, "tokenizer_size": 5000}
    tokenizer = learn_pieces({**hparams, "save_folder": str(tmp_path)})
    assert 12 <= tokenizer.size < 5000
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    told = (
        f"tokenizer_size is 5000, but the training texts have {tokenizer.size}"
    )
    assert told in caplog.text


def test_invalid_tokenizers(tmp_path):
    with pytest.raises(ConfigError, match="'words' is none of"):
        TextTokenizer.train(TEXTS, "words")
    with pytest.raises(ConfigError, match="needs a number of pieces"):
        TextTokenizer.train(TEXTS, "bpe")
    with pytest.raises(ConfigError, match="do not make 5000 pieces"):
        TextTokenizer.train(TEXTS, "unigram", 5000)
    with pytest.raises(ConfigError, match="ask for 12 at least"):
        TextTokenizer.train(TEXTS, "unigram", 11)
    with pytest.raises(DataError, match="no transcripts"):
        TextTokenizer.train(["", " "], "char")
    with pytest.raises(CheckpointError, match="cannot read .*no.model"):
        TextTokenizer.load(tmp_path / "no.model")
    (tmp_path / "bad.model").write_bytes(b"this is none")
    with pytest.raises(CheckpointError, match="bad.model"):
        TextTokenizer.load(tmp_path / "bad.model")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_frames_needed_by_ctc(labels):
    """One frame fewer has no alignment; PyTorch's loss is infinite then."""
    wanted = frames_needed(labels)
    for frames, possible in ((wanted, True), (wanted - 1, False)):
        if frames == 0:
            continue
        loss = torch.nn.functional.ctc_loss(
            torch.full((frames, 1, 5), math.log(0.2)),
            torch.tensor([labels]),
            torch.tensor([frames]),
            torch.tensor([len(labels)]),
            blank=4,
        )
        assert loss.isfinite().item() == possible


def test_characters_at_low_token_rates_are_refused():
    labels = TextTokenizer.train(TEXTS, "char").encode("STOP IT NOW")
    check_alignable([(0.5, labels)], 50.0, "char")
    with pytest.raises(DataError, match="unigram"):
        check_alignable([(0.5, labels)], 12.5, "char")


@pytest.mark.parametrize("beam_size", [1, 8])
def test_decoding(beam_size):
    tokenizer = TextTokenizer.train(TEXTS, "char")
    decode = CTCDecoder(tokenizer, beam_size)
    texts = ["GO ON", "STOP IT NOW"]
    rows = []
    for text in texts:
        row = []
        for piece in tokenizer.encode(text):
            row += [piece, piece, tokenizer.size]
        rows.append(row)
    lengths = torch.tensor([len(row) for row in rows])
    log_probs = torch.full((2, int(lengths.max()), tokenizer.size + 1), -12.0)
    for i, row in enumerate(rows):
        log_probs[i, range(len(row)), row] = 0.0
        # Frames after the end must be ignored.
        log_probs[i, len(row) :, 1] = 0.0
    assert decode(log_probs.log_softmax(-1), lengths) == texts


@pytest.mark.parametrize("beam_size", [1, 8])
def test_decoding_includes_the_last_frame(beam_size):
    tokenizer = TextTokenizer.train(TEXTS, "char")
    decode = CTCDecoder(tokenizer, beam_size)
    # 13 / 22 * 22 is less than 13.
    log_probs = torch.full((1, 22, tokenizer.size + 1), -12.0)
    log_probs[0, :, tokenizer.size] = 0.0
    for frame, piece in enumerate(tokenizer.encode("GO"), start=10):
        log_probs[0, frame] = -12.0
        log_probs[0, frame, piece] = 0.0
    log_probs = log_probs.log_softmax(-1)
    assert decode(log_probs, torch.tensor([13])) == ["GO"]
    assert decode(log_probs, torch.tensor([12])) == ["G"]


@pytest.fixture
def manifest(tmp_path):
    entries = {}
    for i in range(6):
        generator = np.random.default_rng(i)
        samples = 4000 + 2500 * i
        sig = 0.1 * generator.standard_normal(samples)
        soundfile.write(tmp_path / f"u{i}.wav", sig, 16000)
        entries[f"u{i}"] = {
            "wav": f"{{data_root}}/u{i}.wav",
            "num_samples": samples,
            "sample_rate": 16000,
            "duration": samples / 16000,
            "spk_id": "ab"[i % 2],
        }
        # A missing and an empty text are left out.
        if i != 3:
            entries[f"u{i}"]["text"] = f"go {i}" if i != 2 else ""
    write_manifest(tmp_path / "train.json", entries)
    return tmp_path / "train.json"


def test_pieces_are_learnt_once_per_kind(manifest):
    hparams = {"save_folder": manifest.parent, "tokenizer_kind": "char"}
    hparams["tokenizer_size"] = None
    # "GO" and digits.
    assert learn_pieces(hparams).size == 8
    other = {**hparams, "tokenizer_kind": "bpe", "tokenizer_size": 10}
    assert learn_pieces(other).size == 10
    manifest.unlink()
    assert [learn_pieces(h).size for h in (hparams, other)] == [8, 10]


def test_prepared_once_equals_on_the_fly(manifest, codec):
    front_end = make_front_end("tokens", codec)
    items = {"text": ("text", normalise), "who": ("spk_id", None)}
    dataset = task_dataset(manifest, manifest.parent, front_end, items)
    assert [item["id"] for item in dataset] == ["u0", "u1", "u4", "u5"]
    expected = {}
    for item in dataset:
        sig = item["sig"][None]
        toks, _ = front_end.prepare(sig, torch.tensor([sig.shape[1]]))
        expected[item["id"]] = toks[0]
    prepare_inputs(dataset, front_end, batch_seconds=1.0)
    for item in dataset:
        assert set(item) == {"id", "prepared", "text", "who"}
        assert item["prepared"].equal(expected[item["id"]])
        assert item["text"] == f"GO {item['id'][1]}"


@pytest.mark.parametrize(
    "tokens, prepare_once, says",
    [
        ({}, True, "set prepare_once: False"),
        ({"train": "tokens"}, False, "tokens.train holds none"),
        ({"train": "tokens", "dev": "tokens"}, False, "dev is none of train"),
    ],
)
def test_options_without_effect_are_refused(tokens, prepare_once, says):
    hparams = {"prepare_once": prepare_once, "tokens": tokens}
    with pytest.raises(ConfigError, match=says):
        check_inputs({**hparams, "augmentation": print})
    within = {"prepare_once": True, "within": "spk_id", "valid_splits": []}
    check_inputs(within)
    with pytest.raises(ConfigError, match="test_splits is not used"):
        check_inputs({**within, "test_splits": ["dev-clean"]})
    check_inputs({"prepare_once": False, "augmentation": print})
    tokens = {"prepare_once": True, "tokens": {"train": "tokens"}}
    check_inputs({**tokens, "speeds": []})
    with pytest.raises(ConfigError, match="speeds makes copies of audio"):
        check_inputs({**tokens, "speeds": [0.9]})
    check_inputs({**tokens, "tokens": {"test": "tokens"}, "speeds": [0.9]})


def test_data_without_required_columns(manifest, codec, tmp_path):
    front_end = make_front_end("tokens", codec)
    with pytest.raises(DataError, match="no utterance has emotion"):
        task_dataset(
            manifest, manifest.parent, front_end, {"x": ("emotion", None)}
        )
    folder = make_tokens(tmp_path / "tokens")
    with pytest.raises(ConfigError, match="set input: tokens"):
        task_dataset(folder, None, make_front_end("log_mel"), {})
    other = TokenFrontEnd(codebook_size=2**16, token_rate=12.5)
    with pytest.raises(DataError, match="codebook_size of 8192"):
        task_dataset(folder, None, other, {})
    with pytest.raises(DataError, match="no column emotion"):
        mine = TokenFrontEnd(codebook_size=8192, token_rate=50.0)
        task_dataset(folder, None, mine, {"x": ("emotion", None)})


def test_splits_within_speakers(tmp_path):
    entries = {f"{s}{i}": {"spk_id": s} for s in "abc" for i in range(10)}
    entries |= {"d0": {"spk_id": "d"}, "d1": {"spk_id": "d"}, "e": {}}
    entries |= {f"f{i}": {"spk_id": "f"} for i in range(3)}
    write_manifest(tmp_path / "all.json", entries)
    paths = split_within(tmp_path, ["all"], "spk_id", 0.2, 0.3)
    parts = {name: read_manifest(path) for name, path in paths.items()}
    for name, share in (("train", 5), ("valid", 2), ("test", 3)):
        counts = [x["spk_id"] for x in parts[name].values()]
        assert {s: counts.count(s) for s in "abcdf"} == {
            **dict.fromkeys("abc", share),
            "d": 0,
            "f": 1,
        }
    assert len(set().union(*parts.values())) == 33
    with pytest.raises(DataError, match="less than 1 in all"):
        split_within(tmp_path, ["all"], "spk_id", 0.5, 0.5)
    with pytest.raises(DataError, match="no value of accent"):
        split_within(tmp_path, ["all"], "accent", 0.2, 0.2)
