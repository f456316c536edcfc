"""Tasks with other codecs than 8192 codes at 50 Hz, by the recipes' YAMLs."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from own_script import fit_and_test, load_yaml
from test_training import CONFIG

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.data.manifest import (
    read_manifest,
    write_manifest,
)
from speechbrain_focalcodec.downstream.data import split_file
from speechbrain_focalcodec.errors import DataError

YAMLS = Path(__file__).parents[1] / "hparams" / "downstream"
WORDS = "GO ON AND STOP IT NOW".split()
SMALL = {
    "asr_bilstm": {
        "network": {"hidden_dim": 8, "num_layers": 1},
        "embedding": {"dim": 8},
        "beam_size": 2,
    },
    "speaker_id": {"network": {"hidden_dim": 8}, "embedding": {"dim": 8}},
    "tts": {
        "language_model": {
            **{"dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32},
        },
        "total_steps": 2,
        "max_batch_seconds": 4,
        "num_samples": 1,
        "max_seconds": 0.4,
        "voices": False,
    },
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory, parity):
    """A codec with 12.5 tokens per second, and one with 65,536 codes."""
    config = json.loads(json.dumps(CONFIG))
    config["compressor_config"]["output_dim"] = 16
    config["decompressor_config"]["input_dim"] = 16
    config["quantizer_config"]["codebook_size"] = 2**16
    folder = tmp_path_factory.mktemp("codecs") / "tiny_65k"
    FocalCodec.from_config(config, name="tiny_65k").save_pretrained(folder)
    return {"12.5 Hz": parity / "offline_12_5hz", "65k codes": folder}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One-second utterances of two speakers with 17 to 21 characters."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        entries = {}
        for i in range(4):
            name = f"{split}{i}"
            samples = 16000 + 400 * i
            sig = 0.1 * generator.standard_normal(samples)
            soundfile.write(folder / f"{name}.wav", sig, 16000)
            entries[name] = {
                "wav": f"{{data_root}}/{name}.wav",
                "num_samples": samples,
                "sample_rate": 16000,
                "duration": samples / 16000,
                "spk_id": "ab"[i % 2],
                "text": " ".join(WORDS[i:] + WORDS[:i]),
            }
        write_manifest(folder / "save" / split_file(split), entries)
    return folder


def run(task, source, corpus, output, options=None, **overrides):
    """Train two steps and test; the last lines of metrics.jsonl by split."""
    given = {
        "data_folder": str(corpus),
        "save_folder": str(output / "save"),
        "output_folder": str(output),
        "codec_source": str(source),
        "number_of_epochs": 1,
        "batch_size": 2,
    }
    for split in ("train", "valid", "test"):
        path = output / "save" / split_file(split)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((corpus / "save" / path.name).read_bytes())
    hparams = load_yaml(
        YAMLS / f"{task}.yaml", {**given, **SMALL[task], **overrides}
    )
    options = {"device": "cpu", "noprogressbar": True, **(options or {})}
    fit_and_test(hparams, options)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return {line["split"]: line for line in map(json.loads, lines)}


@pytest.mark.parametrize("kind", ["12.5 Hz", "65k codes"])
def test_recognition(kind, sources, corpus, tmp_path):
    pieces = {"tokenizer_kind": "bpe", "tokenizer_size": 24}
    found = run("asr_bilstm", sources[kind], corpus, tmp_path, **pieces)
    assert found["valid"]["step"] == 2
    assert 0 < found["valid"]["loss"] < 1000
    assert {"wer", "cer"} < found["test"].keys()
    alignments = (tmp_path / "wer_test.txt").read_text()
    assert "test3" in alignments and "STOP" in alignments


def test_recognition_of_characters_at_12_5_hz(sources, corpus, tmp_path):
    message = (
        "at 12.5 frames per second, 4 of 4 training .*--tokenizer_kind=unigram "
        "--tokenizer_size=500"
    )
    with pytest.raises(DataError, match=message):
        run("asr_bilstm", sources["12.5 Hz"], corpus, tmp_path)


@pytest.mark.parametrize("kind", ["12.5 Hz", "65k codes"])
def test_identification_of_speakers(kind, sources, corpus, tmp_path):
    found = run("speaker_id", sources[kind], corpus, tmp_path)
    assert found["valid"]["step"] == 2
    assert abs(found["valid"]["loss"] - math.log(2)) < 0.5
    assert 0 <= found["test"]["error_rate"] <= 100
    assert (tmp_path / "model" / "config.json").exists()


def test_debug_run_leaves_no_model(sources, corpus, tmp_path):
    source = sources["12.5 Hz"]
    run("speaker_id", source, corpus, tmp_path, {"debug": True})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_overlapping_splits_are_refused(sources, corpus, tmp_path, split):
    folder = shutil.copytree(corpus, tmp_path / "corpus")
    path = folder / "save" / split_file(split)
    train = read_manifest(folder / "save" / split_file("train"))
    write_manifest(path, read_manifest(path) | {"train1": train["train1"]})
    message = rf"1 utterance\(s\) of {split} are trained on too.* train1"
    with pytest.raises(DataError, match=message):
        run("speaker_id", sources["12.5 Hz"], folder, tmp_path)


@pytest.mark.parametrize("kind", ["12.5 Hz", "65k codes"])
def test_synthesis(kind, sources, corpus, tmp_path):
    found = run("tts", sources[kind], corpus, tmp_path)
    codec = FocalCodec.from_pretrained(sources[kind])
    # After two steps all classes are still equally likely.
    chance = math.log(codec.codebook_size + 1)
    assert abs(found["valid"]["loss"] - chance) < 0.1
    assert found["test"]["loss"] == pytest.approx(found["valid"]["loss"], 0.1)
    seconds = {
        path.stem.partition("_")[2]: soundfile.info(path).duration
        for path in (tmp_path / "samples" / "test").glob("*.wav")
    }
    assert seconds.keys() == {"generated", "resynthesis"}
    most = math.ceil(0.4 * codec.token_rate) / codec.token_rate
    assert 0 < seconds["generated"] <= most
    assert seconds["resynthesis"] == pytest.approx(1.0, abs=0.1)
