"""Trained tasks as folders, and the interfaces that load them."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from trained_tasks import (
    CODEC,
    save,
    token_front_end,
    trained_asr,
    trained_classifier,
    trained_tts,
)

from speechbrain_focalcodec.audio import read_audio, write_audio
from speechbrain_focalcodec.codec import FocalCodec
from speechbrain_focalcodec.downstream.entry import describe_task
from speechbrain_focalcodec.downstream.interfaces import (
    TokenASR,
    TokenClassifier,
)
from speechbrain_focalcodec.downstream.synthesis import TokenTTS
from speechbrain_focalcodec.downstream.task import load_task, save_task
from speechbrain_focalcodec.downstream.task_config import options_of
from speechbrain_focalcodec.downstream.text import TextTokenizer
from speechbrain_focalcodec.errors import (
    CheckpointError,
    ConfigError,
    StreamError,
    TokenError,
    VoiceError,
)

CPU = {"device": "cpu"}
DEMO = "speechbrain_focalcodec/assets/demo.flac"
CAUSAL = CODEC.parent / "causal_50hz"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each task."""
    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("tasks")
    return {
        "asr": trained_asr(base / "asr"),
        "classification": trained_classifier(base / "classification"),
        "tts": trained_tts(base / "tts"),
        "voices": trained_tts(base / "voices", speaker_dim=256),
    }


@pytest.fixture(scope="module")
def asr(folders):
    """The recogniser."""
    return TokenASR.from_pretrained(folders["asr"], run_opts=CPU)


@pytest.fixture(scope="module")
def tts(folders):
    """The synthesiser without voices."""
    return TokenTTS.from_pretrained(folders["tts"], run_opts=CPU)


def test_file_waveform_and_tokens_have_the_same_text(asr):
    codec = FocalCodec.from_pretrained(CODEC)
    sig, rate = read_audio(DEMO)
    assert rate == codec.sample_rate_input
    toks, _ = codec.encode(sig[None])
    text = asr.transcribe_file(DEMO)
    assert text
    assert asr.transcribe_batch(sig[None]) == [text]
    assert asr.transcribe_tokens(toks) == [text]
    assert asr.transcribe_tokens(toks[0]) == [text]
    assert asr(sig[None]) == [text]


def test_text_is_independent_of_padding(asr):
    torch.manual_seed(1)
    toks = torch.randint(0, 32, (2, 40))
    together = asr.transcribe_tokens(toks, torch.tensor([1.0, 0.5]))
    assert together == [
        *asr.transcribe_tokens(toks[0]),
        *asr.transcribe_tokens(toks[1, :20]),
    ]


def test_from_hparams_loads_the_same(folders, asr, tmp_path):
    loaded = TokenASR.from_hparams(
        source=str(folders["asr"]),
        savedir=str(tmp_path / "save"),
        run_opts=CPU,
    )
    toks = torch.arange(50) % 32
    assert loaded.transcribe_tokens(toks) == asr.transcribe_tokens(toks)
    for name, value in asr.task.state_dict().items():
        assert torch.equal(loaded.task.state_dict()[name], value)


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        (torch.zeros(3), ValueError, "int64"),
        (torch.zeros(1, 2, 3).long(), ValueError, r"\[B, N\]"),
        (torch.zeros(0).long(), TokenError, "empty"),
        (torch.tensor([1 << 20]), TokenError, "within 0"),
        (torch.tensor([-1]), TokenError, "within 0"),
    ],
)
def test_wrong_tokens_are_refused(asr, tokens, error, says):
    with pytest.raises(error, match=says):
        asr.transcribe_tokens(tokens)


def test_model_of_audio_features_takes_no_tokens(tmp_path):
    folder = trained_asr(tmp_path, front_end={"input": "log_mel"})
    asr = TokenASR.from_pretrained(folder, run_opts=CPU)
    assert isinstance(asr.transcribe_file(DEMO), str)
    with pytest.raises(ConfigError, match="trained on log_mel"):
        asr.transcribe_tokens(torch.zeros(5).long())


def test_features_need_the_codec(tmp_path):
    codec = FocalCodec.from_pretrained(CODEC)
    front_end = {"input": "features", "codec": str(CODEC)}
    folder = trained_asr(tmp_path, front_end=front_end)
    asr = TokenASR.from_pretrained(folder, run_opts=CPU, codec=codec)
    assert isinstance(asr.transcribe_file(DEMO), str)


def test_probabilities_of_all_classes(folders):
    classifier = TokenClassifier.from_pretrained(
        folders["classification"], run_opts=CPU
    )
    found = classifier.classify_file(DEMO)
    assert set(found.probabilities) == {"no", "yes"}
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probability == max(found.probabilities.values())
    assert found.probabilities[found.label] == found.probability
    toks = torch.arange(30)[None]
    (again,) = classifier.classify_tokens(toks)
    assert again.label in classifier.classes
    (noise,) = classifier(torch.randn(1, 16000))
    assert noise.label in classifier.classes


def test_an_interface_refuses_another_task(folders):
    with pytest.raises(ConfigError, match="TokenASR is for asr"):
        TokenASR.from_pretrained(folders["tts"], run_opts=CPU)
    with pytest.raises(ConfigError, match="is a codec's"):
        TokenASR.from_pretrained(CODEC, run_opts=CPU)


def test_another_codec_is_refused(folders):
    with pytest.raises(ConfigError, match="fingerprint differs"):
        load_task(folders["asr"], codec=CODEC.parent / "causal_50hz")


def test_a_moved_codec_can_be_given(folders, tmp_path):
    folder = shutil.copytree(folders["asr"], tmp_path / "asr")
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["front_end"]["codec"] = "/nowhere"
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="codec=.*nowhere"):
        load_task(folder)
    assert load_task(folder, codec=CODEC).tokenizer is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "chess"}, "task"),
        ({"extra": 1}, "extra: unknown key"),
        ({"network": {"name": "Mine"}}, "network"),
        ({"network": {"name": "BiLSTM", "num_layers": 10**9}}, "num_layers"),
        ({"num_pieces": -1}, "num_pieces"),
        ({"front_end": {"input": "eeg"}}, "front_end.input"),
    ],
)
def test_unknown_keys_are_refused(folders, tmp_path, changes, says):
    folder = shutil.copytree(folders["asr"], tmp_path / "asr")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=says):
        load_task(folder)


def test_huge_parts_are_refused_before_allocation(folders, tmp_path):
    folder = shutil.copytree(folders["asr"], tmp_path / "asr")
    path = folder / "config.json"
    data = json.loads(path.read_text())
    # 17 GB per layer if allocated.
    data["network"] |= {"hidden_dim": 65536, "num_layers": 200}
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="wrong shape|missing weight"):
        load_task(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
def test_a_missing_or_damaged_file_is_named(folders, tmp_path, name):
    folder = shutil.copytree(folders["asr"], tmp_path / "asr")
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=name):
        load_task(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_task(folder)


def test_pieces_of_another_tokenizer_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["asr"], tmp_path / "asr")
    TextTokenizer.train(["OTHER LETTERS"]).save(folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match="pieces"):
        load_task(folder)


def test_weights_that_are_not_finite_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["asr"], tmp_path / "asr")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["output.bias"][0] = torch.nan
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="output.bias"):
        load_task(folder)


def test_a_seed_is_independent_of_the_batch(tts):
    both = tts.generate_batch(["GO", "NO NO"], seed=[3, 4], max_seconds=0.4)
    alone = tts.generate("NO NO", seed=4, max_seconds=0.4)
    assert torch.equal(both[1].toks, alone.toks)
    assert len(alone.toks) > 1
    assert torch.equal(both[1].sig, alone.sig)
    other = tts.generate("NO NO", seed=5, max_seconds=0.4)
    assert not torch.equal(other.toks, alone.toks)
    assert tts.generate_batch([]) == []


def test_unknown_characters_are_left_out(tts):
    known, other = tts.generate_batch(["GO NO", "GO7 N?O"], max_seconds=0.4)
    assert torch.equal(other.toks, known.toks)


def test_speech_is_decoded_from_its_tokens(tts, tmp_path):
    path = tmp_path / "a.wav"
    speech = tts.generate_to_file("GO", path, max_seconds=0.3)
    codec = FocalCodec.from_pretrained(CODEC)
    sig, _ = codec.decode(speech.toks[None])
    assert torch.allclose(sig[0], speech.sig, atol=1e-5)
    written, rate = read_audio(path)
    assert rate == speech.sample_rate
    assert torch.allclose(written, speech.sig.clamp(-1, 1), atol=1e-3)


def test_the_best_recognised_try_is_selected(tts):
    tries = tts.generate_batch(["GO"] * 3, seed=[0, 1, 2], max_seconds=0.3)
    wanted = tries[2].toks

    def recognize(speech):
        same = torch.equal(speech.toks, wanted)
        return "GO" if same else "NO"

    best = tts.generate("GO", max_seconds=0.3, tries=3, recognize=recognize)
    assert torch.equal(best.toks, wanted)
    assert best.transcript == "GO"


def test_sampling_arguments_of_a_call(tts):
    greedy = [
        tts.generate("GO", seed=seed, temperature=0.0, max_seconds=0.2).toks
        for seed in (0, 1)
    ]
    assert torch.equal(*greedy)
    with pytest.raises(ValueError, match="top_p"):
        tts.generate("GO", top_p=2.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"text": " "}, "no pieces"),
        ({"text": "62 ?!"}, "no pieces"),
        ({"text": "GO", "max_seconds": 0}, "max_seconds"),
        ({"text": "GO", "tries": 0}, "tries"),
        ({"text": "GO", "tries": 2}, "needs recognize"),
    ],
)
def test_wrong_arguments_of_synthesis_are_refused(tts, arguments, says):
    with pytest.raises(ValueError, match=says):
        tts.generate(**arguments)


def test_a_model_with_voices_needs_one(folders, tts, tmp_path):
    with pytest.raises(VoiceError, match="without voices"):
        tts.generate("GO", DEMO)
    speaking = TokenTTS.from_pretrained(folders["voices"], run_opts=CPU)
    with pytest.raises(VoiceError, match="missing"):
        speaking.generate("GO")
    with pytest.raises(VoiceError, match=r"\[256\]"):
        speaking.generate("GO", torch.zeros(3))
    silence = tmp_path / "silence.wav"
    write_audio(silence, torch.zeros(16000), 16000)
    with pytest.raises(VoiceError, match="too little speech"):
        speaking.generate("GO", silence)
    voice = speaking.embed_voice(DEMO)
    assert voice.norm() == pytest.approx(1, abs=1e-3)
    said = [
        speaking.generate("GO", reference, max_seconds=0.2)
        for reference in (voice, DEMO)
    ]
    assert torch.equal(said[0].toks, said[1].toks)
    with pytest.raises(ValueError, match="1 voices for 2"):
        speaking.generate_batch(["GO", "NO"], [voice])


def test_stream_equals_generate(tmp_path):
    front_end = token_front_end(CAUSAL, freeze=True)
    folder = trained_tts(tmp_path, front_end=front_end)
    tts = TokenTTS.from_pretrained(folder, run_opts=CPU)
    whole = tts.generate("GO ON", max_seconds=0.5)
    chunks = list(
        tts.generate_stream("GO ON", max_seconds=0.5, chunk_seconds=0.1)
    )
    assert len(chunks) > 1
    assert torch.allclose(torch.cat(chunks), whole.sig, atol=1e-4)


def test_an_offline_codec_does_not_stream(tts):
    with pytest.raises(StreamError, match="causal"):
        tts.generate_stream("GO")


def test_synthesis_without_a_codec_is_refused(tmp_path):
    front_end = {"codebook_size": 16, "token_rate": 12.5, "freeze": True}
    folder = save(
        tmp_path,
        {
            "task": "tts",
            "front_end": front_end,
            "language_model": {"dim": 8, "num_layers": 1, "ffn_dim": 8},
        },
    )
    tts = TokenTTS.from_pretrained(folder, run_opts=CPU)
    with pytest.raises(ConfigError, match="has no codec"):
        tts.generate("GO")


class Mine(torch.nn.Linear):
    """A network outside of this package."""


def test_an_unknown_network_has_no_model_folder(caplog):
    def config():
        return {"task": "asr", "network": options_of(Mine), "num_pieces": 3}

    brain = SimpleNamespace(config=config)
    assert describe_task(brain, {}) is None
    assert "Mine is none of BiLSTM" in caplog.text
    assert describe_task(SimpleNamespace(config=lambda: None), {}) is None


def test_other_modules_are_not_saved(folders, tmp_path):
    task = load_task(folders["asr"])
    modules = dict(task.named_children()) | {"more": torch.nn.Linear(2, 2)}
    save_task(tmp_path, task.config, modules, task.tokenizer)
    again = load_task(tmp_path)
    assert again.state_dict().keys() == task.state_dict().keys()
