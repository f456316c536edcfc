"""The benchmarks of speed and of long audio, on tiny cases."""

import configparser
import doctest
import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import soundfile
import torch
import typer
from typer.testing import CliRunner

from speechbrain_focalcodec.audio import write_audio
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.errors import DataError

ROOT = Path(__file__).parents[1]
# As for a script that is run: the benchmarks import each other.
sys.path.append(str(ROOT / "benchmarks"))
long_audio = importlib.import_module("long_audio")
measuring = importlib.import_module("measuring")
peers = importlib.import_module("peers")
speech = importlib.import_module("speech")
speed = importlib.import_module("speed")
systems = importlib.import_module("systems")

CPU = torch.device("cpu")
TINY_WAVLM = {
    **peers.WAVLM_SIZES,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_conv_pos_embedding_groups": 4,
    "conv_dim": (8,) * 7,
}
TINY_PEERS = {
    "mimi": ("Mimi", {"num_filters": 4, "hidden_size": 32}),
    "encodec": ("Encodec", {"num_filters": 4, "hidden_size": 16}),
    "dac": ("Dac", {"encoder_hidden_size": 4, "decoder_hidden_size": 32}),
}
TINY_PEERS["mimi"][1].update(
    codebook_size=16,
    codebook_dim=8,
    vector_quantization_hidden_dimension=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    upsample_groups=32,
)


@pytest.fixture
def tiny(parity):
    return lambda: FocalCodec.from_pretrained(parity / "offline_50hz")


@pytest.fixture
def corpus(tmp_path):
    """Two speakers with three utterances of a second each."""
    for speaker in ("11", "22"):
        for i in range(3):
            path = tmp_path / "corpus" / speaker / "5" / f"{speaker}-5-{i}.wav"
            write_audio(path, 0.1 * torch.randn(16000), 16000)
    write_audio(tmp_path / "corpus" / "33-5-0.wav", torch.zeros(999), 16000)
    return tmp_path / "corpus"


class Fake(systems.System):
    """Multiplies a matrix of 100 x 200 by one of 200 x 300."""

    counted = True

    def load(self, device):
        self.sample_rate, self.facts = 16000, {"option": None}

    def unload(self):
        pass

    def prepare(self, stage, seconds, batch):
        return lambda: torch.ones(100, 200) @ torch.ones(200, 300)


@pytest.fixture
def clock(monkeypatch):
    """Each run takes 0.5 s, and the machine does 10^9 products a second."""
    monkeypatch.setattr(
        speed, "time_runs", lambda run, repeats, device: [0.5] * repeats
    )
    monkeypatch.setattr(speed, "matrix_rate", lambda device: 1e9)


def run(command, *options):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*map(str, options)], catch_exceptions=False)


# Measuring


def test_work_of_layers_and_attention():
    layer = torch.nn.Linear(30, 50)
    conv = torch.nn.Conv1d(8, 16, 5, stride=2, groups=4)
    query = torch.randn(2, 3, 11, 8)

    def work():
        layer(torch.randn(7, 30))
        conv(torch.randn(1, 8, 105))
        torch.nn.functional.scaled_dot_product_attention(query, query, query)

    with torch.inference_mode():
        counted = measuring.count_work(work)
    assert counted.layers == 7 * 30 * 50 + 51 * 16 * 2 * 5
    assert counted.attention == 2 * (2 * 3 * 11 * 11 * 8)


def test_work_of_the_codec_follows_from_its_weights(tiny):
    """The counter sees all that a faster implementation does."""
    codec, frames = tiny(), 3 * 50 - 1
    expected = 0
    steps = 48000
    for name, weight in codec.state_dict().items():
        if not name.endswith(".weight") or weight.ndim < 2:
            continue
        if "feature_extractor" in name:
            layer = codec.encoder.feature_extractor.layers[
                int(name.split(".")[3])
            ]
            steps = (steps - weight.shape[2]) // layer.stride + 1
            expected += steps * weight.numel()
        elif "relative_embedding" not in name:
            heads = codec.config.encoder_config.num_heads
            times = heads if "gru_rel_pos" in name else 1
            expected += times * frames * weight.numel()
    work = measuring.count_work(
        lambda: codec.resynthesize(torch.randn(1, 48000))
    )
    assert work.layers == pytest.approx(expected, rel=0.02)
    options = codec.config.encoder_config
    attention = 2 * options.num_layers * frames**2 * options.dim
    assert work.attention == pytest.approx(attention, rel=0.02)


def test_peak_memory_is_that_of_the_work():
    def work():
        return len(bytearray(b"x") * (200 * measuring.MIB))

    result, memory = measuring.measure_memory(work, CPU)
    assert result == 200 * measuring.MIB
    assert 195 < memory.above < 260
    assert memory.peak > memory.above
    _, after = measuring.measure_memory(lambda: None, CPU)
    assert after.above < 50


def test_peak_memory_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(measuring, "_status", lambda key: None)
    _, memory = measuring.measure_memory(lambda: None, CPU)
    assert memory == measuring.PeakMemory(None, None)
    assert measuring.process_peak() > 50


def test_matrix_rate_is_the_fastest(monkeypatch):
    monkeypatch.setattr(
        measuring, "time_runs", lambda run, repeats, device: [1, 1, 4.0, 2.0]
    )
    assert measuring.matrix_rate(CPU, size=10) == 500


# Cases


def test_share_of_a_known_amount_of_work(clock):
    settings = speed.Settings([2.0, 5.0], [1, 4], repeats=3)
    result = speed.measure_system(Fake("fake"), [systems.WHOLE], settings, {})
    assert result.matrix_rates == [1e9, 1e9]
    sizes = [(case.seconds, case.batch) for case in result.cases]
    assert sizes == [(2, 1), (2, 4), (5, 1), (5, 4)]
    for case in result.cases:
        macs = 100 * 200 * 300 * case.batch
        assert case.wall == 0.5
        assert case.times_real_time == case.seconds * case.batch / 0.5
        assert case.gmac == pytest.approx(6e-3 / case.seconds)
        assert case.share == pytest.approx(macs / 0.5 / 1e9)
        # By the work for each second of audio of 10 s.
        assert case.layer_share == pytest.approx(case.share * case.seconds / 10)


def test_what_takes_too_long_is_skipped_by_name(clock):
    settings = speed.Settings([1.0, 30.0], [1], repeats=1, max_wall=20)
    result = speed.measure_system(Fake("fake"), [systems.WHOLE], settings, {})
    short, long = result.cases
    assert short.skipped is None
    assert long.wall is None and "30 s, more than 20 s" in long.skipped
    table = speed.speed_table([result])
    assert "Skipped: fake, encode+decode, 30 s x 1: would take" in table


# The benchmark of speed


@pytest.fixture
def small_benchmark(monkeypatch, tiny):
    """The whole benchmark with tiny models, and a peer that is not there."""
    monkeypatch.setattr(speed, "MODELS", {"focalcodec-full": tiny})
    small = [peers.EncoderPeer("wavlm-large-6", "WavLM", **TINY_WAVLM)]
    for name, (family, sizes) in TINY_PEERS.items():
        small.append(peers.CodecPeer(name, family, **sizes))
    small.append(peers.CodecPeer("futurecodec", "FutureCodec"))
    monkeypatch.setattr(speed, "make_peers", lambda: small)
    # A product of the usual size takes long on a busy machine.
    rate = speed.matrix_rate
    monkeypatch.setattr(speed, "matrix_rate", lambda device: rate(device, 64))

    def accelerate(codec, precision, compile=False):
        if precision == "int8":
            raise ValueError("int8 needs another machine")
        # The first bit of each token becomes 0.
        codec.compressor.out_proj.weight.data[0] = 0
        codec.compressor.out_proj.bias.data[0] = -1
        return codec

    monkeypatch.setattr(systems, "accelerate", accelerate)


def test_speed_side_by_side(small_benchmark, corpus, tmp_path):
    out = tmp_path / "new" / "speed.json"
    result = run(
        speed.main,
        *("--seconds", "1", "--batch", "1,2", "--repeats", 1),
        *("--options", "bf16,int8,bf16+compile", "--data", corpus),
        *("--clips", 2, "--out", out),
    )
    assert result.exit_code == 0
    saved = json.loads(out.read_text())
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["machine"]["threads"] == torch.get_num_threads()
    assert {"cpu", "date", "transformers"} < set(saved["machine"])

    found = {item["name"]: item for item in saved["systems"]}
    skipped = {name for name, item in found.items() if item["skipped"]}
    assert skipped == {"focalcodec-full int8", "futurecodec"}
    assert "Skipped: futurecodec: this transformers has no" in result.stdout
    assert "Skipped: focalcodec-full int8: int8 needs" in result.stdout

    for name in found.keys() - skipped:
        stages = {case["stage"] for case in found[name]["cases"]}
        if name.startswith("focalcodec"):
            assert stages == set(speed.STAGES.values())
        else:
            stage = "encoder alone" if "wavlm" in name else "encode+decode"
            assert stages == {stage}
        assert len(found[name]["cases"]) == 2 * len(stages)
        for case in found[name]["cases"]:
            assert case["wall"] > 0 and case["peak_mib"] > 0
            work = case["times_real_time"] * case["wall"]
            assert work == pytest.approx(case["seconds"] * case["batch"])
            assert (case["share"] is None) != name.startswith("focalcodec")
        assert f"\n| {name} " in result.stdout
        assert found[name]["facts"]["parameters"] > 1000

    full = saved["token_agreement"]
    assert [row["system"] for row in full] == [
        "focalcodec-full bf16",
        "focalcodec-full bf16+compile",
    ]
    assert full[0]["num_tokens"] == 2 * 49
    # One bit of the five is lost.
    assert 0 < full[0]["token_share"] < 1
    assert full[0]["bit_share"] >= full[0]["token_share"] / 5
    assert "| focalcodec-full bf16 " in result.stdout


def test_speed_without_transformers(small_benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = run(
        speed.main,
        *("--seconds", "0.1", "--batch", "1", "--repeats", 1),
        *("--systems", "mimi,focalcodec-full", "--stages", "whole"),
    )
    assert "Skipped: mimi: transformers cannot be imported" in result.stdout
    assert "| focalcodec-full | encode+decode | 0.1 " in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--systems", "mp3"),
        ("--stages", "guess"),
        ("--seconds", "1,ten"),
        ("--batch", "0"),
    ],
)
def test_speed_refuses(options):
    result = run(speed.main, *options)
    assert result.exit_code == 2


def test_peers_are_those_of_transformers():
    transformers = importlib.import_module("transformers")
    for peer in peers.make_peers():
        config = getattr(transformers, f"{peer.family}Config")(**peer.sizes)
        assert config.model_type
    assert {peer.name for peer in peers.make_peers()} == {
        *("wavlm-large-6", "mimi", "encodec", "dac")
    }


def test_options_that_cannot_be_had(monkeypatch, tiny):
    def unavailable(*_, **__):
        raise RuntimeError("not on this machine")

    monkeypatch.setattr(systems, "accelerate", unavailable)
    for option in ("bf16", "bf16+int8"):
        with pytest.raises(systems.Missing):
            systems.CodecSystem("tiny", tiny, option).load(CPU)


# Long audio


class Standin:
    """Turns samples into tokens; windows set the lowest bits to 0."""

    sample_rate_input = 16000
    quantizer = types.SimpleNamespace(dim=4)

    def parameters(self):
        return iter([torch.zeros(1)])

    def to(self, device):
        return self

    def encode(
        self, sig, lengths=None, *, window=30.0, context=2.0, batch_size=None
    ):
        toks = torch.full((1, sig.shape[1] // 320), 7)
        if window is not None:
            # All tokens without context, a tenth with it.
            toks[:, :: 10 if context else 1] &= 4 if window < 1 else 6
        return toks, None


def test_context_counts_what_differs(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(long_audio, "MODELS", {"stand-in": Standin})
    out = tmp_path / "context.json"
    result = run(
        long_audio.context,
        *("--data", corpus, "--recordings", 2, "--minutes", 2 / 60),
        *("--windows", "0.5,1.5", "--contexts", "0,0.1,1"),
        *("--models", "stand-in", "--out", out),
    )
    saved = json.loads(out.read_text())
    assert saved["speakers"] == ["11", "22"]
    shares = {
        (row["window"], row["context"]): (row["token_share"], row["bit_share"])
        for row in saved["results"]
    }
    assert shares == {
        (0.5, 0): (1, 0.5),
        (0.5, 0.1): (0.1, 0.05),
        (1.5, 0): (1, 0.25),
        (1.5, 0.1): (0.1, 0.025),
    }
    assert saved["results"][0]["num_tokens"] == 200
    assert "| 10.000% " in result.stdout


def test_recordings_of_the_same_speaker(corpus):
    recordings = speech.join_utterances(corpus, 2, 2.5, 16000)
    assert list(recordings) == ["11", "22"]
    parts = [
        soundfile.read(path, dtype="float32")[0]
        for path in sorted((corpus / "11").rglob("*.wav"))
    ]
    joined = torch.cat([torch.from_numpy(part) for part in parts])
    assert recordings["11"].equal(joined[:40000])
    with pytest.raises(DataError, match="2 speakers have 2.5 s of speech, 3"):
        speech.join_utterances(corpus, 3, 2.5, 16000)


def test_memory_of_long_files(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(long_audio, "MODELS", {"tiny": tiny})
    out = tmp_path / "memory.json"
    result = run(
        long_audio.memory,
        *("--minutes", "0.01", "--model", "tiny", "--threads", 1),
        *("--out", out),
    )
    assert result.exit_code == 0
    [row] = json.loads(out.read_text())["results"]
    assert row["peak_mib"] > 100 and row["above_mib"] >= 0
    assert row["times_real_time"] == pytest.approx(0.6 / row["seconds"])
    assert "| 0.01 " in result.stdout


def test_long_file_is_written_block_by_block(tmp_path):
    path = tmp_path / "long.flac"
    long_audio.write_long(path, 2.5, 8000, torch.linspace(-1, 1, 3000))
    sig, rate = soundfile.read(path)
    assert (len(sig), rate) == (20000, 8000)
    assert sig[3000:6000] == pytest.approx(sig[:3000])


# How they are run


@pytest.mark.parametrize("module", [measuring, speech])
def test_examples(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("benchmark-speed", ["benchmarks/speed.py --out results/speed.json"]),
        ("benchmark-long", ["long_audio.py context", "long_audio.py memory"]),
    ],
)
def test_make_runs(target, commands):
    plan = subprocess.run(
        ["make", "--dry-run", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    text = " ".join(plan.stdout.replace("\\\n", " ").split())
    for command in commands:
        assert command in text


def test_peers_are_an_extra():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert extras["benchmark"].strip().startswith("transformers")
    # Of which `test` is made, see test_packaging.py.
    assert "benchmark" in extras["evaluate"].splitlines()[1]


def test_tables_show_what_is_missing():
    table = measuring.markdown_table(
        ["a", "b"], [["1", measuring.show(None)], ["22", "3"]]
    )
    assert table.splitlines() == [
        "| a  | b |",
        "|----|---|",
        "| 1  | – |",
        "| 22 | 3 |",
    ]
    assert measuring.parse_numbers("10, 2,10") == [2, 10]
