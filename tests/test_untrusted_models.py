"""Untrusted models and tasks of any content raise only our errors."""

import copy
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from trained_tasks import trained_asr, trained_classifier, trained_tts

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.config import CodecConfig
from speechbrain_focalcodec.downstream.task import load_task
from speechbrain_focalcodec.downstream.task_config import parse_task_config
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    FocalCodecError,
)
from speechbrain_focalcodec.model_files import CONFIG_FILE, WEIGHTS_FILE
from speechbrain_focalcodec.onnx.files import (
    OnnxFacts,
    check_files,
    read_facts,
)

PARITY = Path(__file__).parent / "parity"
MODELS = sorted(path.parent for path in PARITY.glob("*/config.json"))
SOME = "encoder.encoder.layers.0.attention.q_proj.weight"  # of v001

# By type, and other JSON values.
VALUES = [
    *(None, True, False, "", "a", "x" * 5000, "\x00", "../a", "WavLM"),
    *(-1, 0, 1, 2, 3, 7, 64, 255, 256, 1000, 65535, 65536, 1 << 24, 1 << 64),
    *(0.0, 1e-300, 1e-45, 0.5, 1e6, 1e308, -1e308, math.nan, math.inf),
    *([], [0], [1], [2, 2], [1, 1, 1], [65536] * 3, {}, {"a": 1}),
]


def codec_config(folder):
    """A configuration with all its options."""
    data = json.loads((folder / CONFIG_FILE).read_text())
    return CodecConfig.parse(data).model_dump(mode="json")


def places(data, before=()):
    for key, value in data.items() if isinstance(data, dict) else ():
        yield (*before, key)
        yield from places(value, (*before, key))


def mutate(data, generator):
    """Another value somewhere, most often one of the same type."""
    data = copy.deepcopy(data)
    for _ in range(generator.choice([1, 1, 2])):
        *outer, key = generator.choice(list(places(data)))
        part = data
        for name in outer:
            part = part[name]
        alike = [v for v in VALUES if type(v) is type(part[key])]
        others = generator.random() < 0.2 or not alike
        part[key] = copy.deepcopy(generator.choice(VALUES if others else alike))
    return data


def linked(source, folder):
    """A folder with the same files, whose config.json is another."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != CONFIG_FILE:
            (folder / path.name).symlink_to(path.resolve())
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    conformer = {"name": "Conformer", "dim": 16, "num_layers": 1}
    conformer |= {"num_heads": 2, "ffn_dim": 8, "kernel_size": 3}
    return [
        trained_asr(folder / "asr"),
        trained_asr(folder / "conformer", network=conformer, beam_size=2),
        trained_classifier(folder / "classifier"),
        trained_tts(folder / "tts"),
    ]


# Configurations


def test_mutated_configurations_of_codecs(tmp_path):
    generator = random.Random(0)
    models = [(source, codec_config(source)) for source in MODELS]
    loaded = 0
    for number in range(60):
        source, data = generator.choice(models)
        folder = linked(source, tmp_path / str(number))
        data = mutate(data, generator)
        (folder / CONFIG_FILE).write_text(json.dumps(data))
        try:
            codec = FocalCodec.from_pretrained(folder)
        except FocalCodecError:
            continue
        toks, lengths = codec.encode(torch.zeros(1, 2000))
        codec.decode(toks, lengths)
        loaded += 1
    assert 0 < loaded < 60


def test_mutated_configurations_of_tasks(tmp_path, tasks):
    generator = random.Random(0)
    loaded = 0
    for number in range(100):
        source = generator.choice(tasks)
        folder = linked(source, tmp_path / str(number))
        data = json.loads((source / CONFIG_FILE).read_text())
        data = mutate(data, generator)
        (folder / CONFIG_FILE).write_text(json.dumps(data))
        try:
            load_task(folder)
            loaded += 1
        except FocalCodecError:
            pass
    assert 0 < loaded < 100


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_config": {"layerscale_init": 1e308}},
        {"compressor_config": {"layerscale_init": -1e308}},
        {"encoder_name": "LogMel", "encoder_config": {"floor": 1e-300}},
        {"encoder_name": "LogMel", "encoder_config": {"std": 1e-300}},
        {"encoder_name": "LogMel", "encoder_config": {"mean": 1e300}},
    ],
)
def test_values_beyond_float32_are_refused(changes):
    with pytest.raises(ConfigError, match="than or equal"):
        CodecConfig.parse(changes)


def task_changes(**changes):
    """A task's configuration that is right, but for the changes."""
    name = changes.get("task", "asr")
    kind = {"classification": {"classes": ["a", "b"]}}
    return {"task": name} | kind.get(name, {"num_pieces": 9}) | changes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"network": {"name": "Conformer", "dim": 10}}, "of num_heads"),
        ({"network": {"name": "Conformer", "kernel_size": 4}}, "odd"),
        ({"beam_size": 1000}, "beam_size"),
        ({"num_pieces": 65536}, "num_pieces"),
        ({"front_end": {"codebook_size": 1000}}, "power of two"),
        ({"front_end": {"token_rate": 1e-9}}, "token_rate"),
        (
            {"task": "classification", "classes": ["a"] * 70000},
            "classes: List should have at most 65536",
        ),
        ({"task": "tts", "language_model": {"num_heads": 3}}, "twice"),
        ({"task": "tts", "language_model": {"num_kv_heads": 3}}, "num_kv"),
        ({"task": "tts", "max_seconds": 1e5}, "max_seconds"),
    ],
)
def test_tasks_out_of_bounds(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_task_config(task_changes(**changes))


def test_the_codec_gives_the_codebook_size(tmp_path, tasks):
    """A synthesiser need not say it twice."""
    folder = linked(tasks[3], tmp_path / "tts")
    data = json.loads((tasks[3] / CONFIG_FILE).read_text())
    data["front_end"]["codebook_size"] = None
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    codec = FocalCodec.from_pretrained(PARITY / "offline_50hz")
    assert load_task(folder).model.codebook_size == codec.codebook_size


def test_tables_of_tokens_are_bounded(tmp_path, tasks):
    """They are computed before the weights can be compared."""
    folder = linked(tasks[0], tmp_path / "asr")
    data = json.loads((tasks[0] / CONFIG_FILE).read_text())
    front_end = {"codebook_size": 1 << 24, "token_rate": 50.0, "dim": 65536}
    (folder / CONFIG_FILE).write_text(
        json.dumps(data | {"front_end": front_end})
    )
    start = time.process_time()
    with pytest.raises(ConfigError, match="use tied_to_codes"):
        load_task(folder)
    assert time.process_time() - start < 2


# Small models that ask for much

MEL = {"encoder_name": "LogMel"}
WAVLM = {"hidden_dims": [512], "kernel_sizes": [1]}


@pytest.mark.parametrize(
    "changes",
    [
        MEL | {"encoder_config": {"hop_length": 1}},
        MEL | {"encoder_config": {"hop_length": 8, "sample_rate": 16000}},
        MEL | {"encoder_config": {"hop_length": 17, "n_fft": 8192}},
        {"encoder_config": WAVLM | {"strides": [1], "num_heads": 64}},
        {"encoder_config": WAVLM | {"strides": [40]}},
        {"encoder_config": {"num_layers": 256, "num_heads": 64}},
        {"encoder_config": {"hidden_dims": [65536] * 7}},
        {
            "encoder_config": {
                **{"causal": True, "window_size": 65536},
                **{"num_layers": 100},
            }
        },
        {
            "encoder_config": WAVLM | {"strides": [160]},
            "decoder_config": {"ffn_dim": 65536, "hop_length": 160},
        },
        {
            "encoder_config": WAVLM | {"strides": [160]},
            "decoder_name": "Vocos",
            "decoder_config": {"n_fft": 65536, "hop_length": 160},
        },
        {
            "compressor_config": {"hidden_dims": [65536] * 3},
            "decompressor_config": {"hidden_dims": [65536] * 3},
        },
    ],
)
def test_models_that_need_too_much_are_refused(changes):
    data = copy.deepcopy(changes)
    features = 80 if "encoder_name" in data else 1024
    for part, key in (
        *(("compressor", "input_dim"), ("decompressor", "output_dim")),
        ("decoder", "input_dim"),
    ):
        data.setdefault(f"{part}_config", {})[key] = features
    hop = data.get("encoder_config", {}).get("hop_length")
    hop = hop or math.prod(data.get("encoder_config", {}).get("strides", [320]))
    data["decoder_config"].setdefault("hop_length", hop)
    with pytest.raises(ConfigError, match="per second, more|a stream keeps"):
        CodecConfig.parse(data)


RELEASES = {
    "focalcodec_50hz": {},
    "focalcodec_50hz_4k_causal": {
        "encoder_config": {"causal": True},
        "compressor_config": {"causal": True, "output_dim": 12},
        "quantizer_config": {"codebook_size": 4096},
        "decompressor_config": {
            **{"causal": True, "input_dim": 12},
            "hidden_dims": [1024] * 3,
        },
        "decoder_name": "WaveNeXt",
    },
}


@pytest.mark.parametrize("name", RELEASES)
def test_much_larger_models_than_the_releases_are_accepted(name):
    data = copy.deepcopy(RELEASES[name])
    CodecConfig.parse(data)
    encoder = data.setdefault("encoder_config", {})
    encoder |= {"hidden_dims": [1024] * 7, "num_layers": 24}
    data.setdefault("decoder_config", {})["ffn_dim"] = 16384
    for part in ("compressor_config", "decompressor_config"):
        data.setdefault(part, {})["hidden_dims"] = [4096] * 3
    CodecConfig.parse(data)


# Weights


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_projection_of_another_type_than_its_siblings(tmp_path, dtype):
    folder = linked(PARITY / "v001_50hz", tmp_path / "model")
    shutil.copy(PARITY / "v001_50hz" / CONFIG_FILE, folder)
    weights = load_file(folder / WEIGHTS_FILE)
    weights[SOME] = weights[SOME].to(dtype)
    (folder / WEIGHTS_FILE).unlink()
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=f"wrong type: {SOME}"):
        FocalCodec.from_pretrained(folder)


def test_mutated_weights(tmp_path):
    """Types, shapes, names and bytes."""
    generator = random.Random(0)
    types = [torch.int8, torch.bool, torch.float16, torch.float8_e5m2]
    types += [torch.complex64, torch.float64, torch.int64]
    for number in range(40):
        source = generator.choice(MODELS)
        folder = linked(source, tmp_path / str(number))
        shutil.copy(source / CONFIG_FILE, folder)
        weights = load_file(source / WEIGHTS_FILE)
        (folder / WEIGHTS_FILE).unlink()
        name = generator.choice(sorted(weights))
        value = weights.pop(name)
        change = generator.randrange(4)
        if change == 0:
            value = value.to(generator.choice(types))
        elif change == 1:
            value = value[None] if generator.random() < 0.5 else value.flatten()
        elif change == 2:
            name = name.replace("q_proj", "qkv_proj").replace("0", "1")
        weights[name] = value
        save_file(weights, folder / WEIGHTS_FILE)
        if change == 3:
            content = bytearray((folder / WEIGHTS_FILE).read_bytes())
            place = generator.randrange(2000)
            content[place] ^= 1 << generator.randrange(8)
            (folder / WEIGHTS_FILE).write_bytes(content)
        try:
            codec = FocalCodec.from_pretrained(folder)
        except FocalCodecError:
            continue
        codec.encode(torch.zeros(1, 2000))


# Other files


def test_pieces_that_are_not_utf8(tmp_path, tasks):
    folder = linked(tasks[0], tmp_path / "asr")
    shutil.copy(tasks[0] / CONFIG_FILE, folder)
    path = folder / "tokenizer.model"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"G", b"\xff", 1))
    with pytest.raises(CheckpointError, match="tokenizer.model: .*utf-8"):
        load_task(folder)


@pytest.fixture(params=["fifo", "device", "folder"])
def put(request):
    """Replaces a file by a FIFO, a device or a folder."""

    def replace(path):
        path.unlink(missing_ok=True)
        if request.param == "fifo":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    return replace


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_no_regular_file_in_a_model(tmp_path, put, name):
    folder = linked(PARITY / "offline_50hz", tmp_path / "model")
    shutil.copy(PARITY / "offline_50hz" / CONFIG_FILE, folder)
    put(folder / name)
    with pytest.raises(FocalCodecError, match=name):
        FocalCodec.from_pretrained(folder)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.model"])
def test_no_regular_file_in_a_task(tmp_path, tasks, put, name):
    folder = linked(tasks[0], tmp_path / "asr")
    shutil.copy(tasks[0] / CONFIG_FILE, folder)
    put(folder / name)
    with pytest.raises(FocalCodecError, match=name):
        load_task(folder)


def test_no_regular_file_in_an_exported_model(tmp_path, put):
    put(tmp_path / "onnx.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_facts(tmp_path)
    put(tmp_path / "encoder.onnx")
    facts = OnnxFacts.model_construct(files={"encoder.onnx": "0" * 64})
    with pytest.raises(CheckpointError, match="not a regular file"):
        check_files(tmp_path, facts)


def test_a_name_that_is_too_long_for_a_path():
    with pytest.raises(CheckpointError, match="neither a folder"):
        FocalCodec.from_pretrained("a" * 4000)
