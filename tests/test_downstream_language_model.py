"""The language model of tokens, its packing and its training."""

import functools
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.downstream.front_ends import TokenFrontEnd
from speechbrain_focalcodec.downstream.generation import Generation, Sampling
from speechbrain_focalcodec.downstream.language_model import TokenLanguageModel
from speechbrain_focalcodec.downstream.packing import Packing, pack, spans
from speechbrain_focalcodec.downstream.speakers import SpeakerEmbeddings
from speechbrain_focalcodec.downstream.text import TextTokenizer
from speechbrain_focalcodec.downstream.tts import TTSBrain
from speechbrain_focalcodec.training.run_log import read_metrics

PIECES = 11
LARGE = {"codebook_size": 2**16, "tied_to_codes": True, "mixture": 3}
KINDS = {
    "small": {"codebook_size": 16, "speaker_dim": 5},
    "mixed": {"codebook_size": 16, "mixture": 3},
    "frozen": {"codebook_size": 16, "freeze": True, "speaker_dim": 5},
    "large": {**LARGE, "speaker_dim": 5},
}


@functools.cache
def made(kind):
    torch.manual_seed(1)
    options = {"num_layers": 2, "num_heads": 4, "ffn_dim": 64}
    model = TokenLanguageModel(PIECES, dim=32, **KINDS[kind], **options)
    # An untrained model hardly attends to the past and would hide errors.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model.eval()


def batch_of(model, sizes):
    """Text, lengths, tokens, lengths and voices; padding is not zero."""
    text_lengths, tok_lengths = torch.tensor(sizes).T
    count = len(sizes)
    generator = torch.Generator().manual_seed(2)
    draw = functools.partial(torch.randint, generator=generator)
    text = draw(PIECES, (count, int(text_lengths.max())))
    toks = draw(model.codebook_size, (count, int(tok_lengths.max())))
    speaker = None
    if model.speaker_dim is not None:
        shape = (count, model.speaker_dim)
        speaker = torch.randn(shape, generator=generator)
    return text, text_lengths, toks, tok_lengths, speaker


def scored(model, *batch):
    """Log-probabilities of all classes, and targets."""
    scores, targets = model(*batch)
    return scores.log_probs(), targets


def one_of(batch, i):
    """An utterance alone, without padding."""
    text, text_lengths, toks, tok_lengths, speaker = batch
    return (
        text[i : i + 1, : text_lengths[i]],
        text_lengths[i : i + 1],
        toks[i : i + 1, : tok_lengths[i]],
        tok_lengths[i : i + 1],
        None if speaker is None else speaker[i : i + 1],
    )


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    more=st.none() | st.integers(0, 40),
)
def test_rows_hold_all_items_once(lengths, more):
    limit = max(lengths) + (more or 0)
    rows = pack(lengths, None if more is None else limit)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= limit for row in rows)
    # First fit: no two rows would fit into one.
    fills = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(fills) == 1 or fills[0] + fills[1] > limit


def test_items_longer_than_a_row_are_refused():
    with pytest.raises(ValueError, match="an item of 7 .* max_length=6"):
        pack([3, 7], 6)
    for lengths in ([], [3, 0]):
        with pytest.raises(ValueError, match="lengths must be positive"):
            pack(lengths)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 6)), max_size=6))
def test_spans(pairs):
    starts, lengths = torch.tensor([*pairs, (0, 0)]).T
    wanted = [a + k for a, n in pairs for k in range(n)]
    assert spans(starts, lengths).tolist() == wanted


def test_mask_is_causal_within_sequences():
    packing = Packing.of(torch.tensor([2, 3, 1, 2]), 4)
    seen = packing.mask(torch.float32)[:, 0] == 0
    for row, items in enumerate(packing.items.tolist()):
        for query, key in torch.cartesian_prod(*[torch.arange(4)] * 2):
            right = items[query] == items[key] and key <= query
            assert seen[row, query, key] == right


SIZES = [(3, 5), (6, 12), (1, 1), (4, 2), (2, 7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_length", [None, 64])
@torch.no_grad()
def test_packing_does_not_change_scores(kind, max_length):
    model = made(kind)
    batch = batch_of(model, SIZES)
    logits, targets = scored(model, *batch, max_length)
    single = [scored(model, *one_of(batch, i)) for i in range(len(SIZES))]
    assert targets.equal(torch.cat([x for _, x in single]))
    alone = torch.cat([x for x, _ in single])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    losses = [F.cross_entropy(x, y, reduction="sum") for x, y in single]
    torch.testing.assert_close(
        F.cross_entropy(logits, targets), sum(losses) / len(targets)
    )
    # The losses differ among utterances.
    assert len({round(float(loss), 3) for loss in losses}) == len(SIZES)


def test_targets_are_tokens_and_end():
    model = made("small")
    batch = batch_of(model, [(2, 3), (4, 1)])
    toks = batch[2]
    _, targets = model(*batch)
    wanted = [*toks[0].tolist(), model.end, int(toks[1, 0]), model.end]
    assert targets.tolist() == wanted


@pytest.mark.parametrize("changed", ["text", "token", "speaker"])
def test_dependencies_of_scores(changed):
    model = made("small")
    text, text_lengths, toks, tok_lengths, speaker = batch_of(model, [(3, 6)])
    before, _ = scored(model, text, text_lengths, toks, tok_lengths, speaker)
    first = 0
    if changed == "text":
        text = (text + 1) % PIECES
    elif changed == "token":
        toks[0, 3] = (toks[0, 3] + 1) % model.codebook_size
        first = 4  # BEGIN and the tokens before it do not see it
    else:
        speaker = -speaker
    after, _ = scored(model, text, text_lengths, toks, tok_lengths, speaker)
    differs = (before - after).abs().amax(1) > 1e-3
    assert differs.tolist() == [False] * first + [True] * (7 - first)


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_are_trained_and_few_where_tied(kind):
    model = made(kind)
    model.zero_grad()
    scores, targets = model(*batch_of(model, SIZES))
    scores.log_prob(targets).mean().neg().backward()
    weights = dict(model.named_parameters())
    missing = [
        name
        for name, weight in weights.items()
        if weight.requires_grad
        and (weight.grad is None or not weight.grad.any())
    ]
    assert missing == []
    if kind == "large":
        assert sum(weight.numel() for weight in weights.values()) < 2**16


def test_initial_loss_is_that_of_chance():
    torch.manual_seed(0)
    for kind in ("small", "mixed"):
        model = TokenLanguageModel(
            PIECES, dim=64, num_layers=2, ffn_dim=64, **KINDS[kind]
        )
        scores, targets = model(*batch_of(model, SIZES))
        chance = torch.tensor(17.0).log()
        torch.testing.assert_close(
            -scores.log_prob(targets).mean(), chance, rtol=0.1, atol=0
        )


def test_missing_and_unexpected_voices_are_refused():
    for kind, speaker, message in (
        ("small", None, "speaker is missing: .* speaker_dim=5"),
        ("mixed", torch.zeros(1, 5), "made without speaker_dim"),
    ):
        model = made(kind)
        batch = batch_of(model, [(2, 3)])
        with pytest.raises(ValueError, match=message):
            model(*batch[:4], speaker)


def test_invalid_sizes():
    for sizes in ({"dim": 36, "num_heads": 8}, {"num_kv_heads": 3}):
        with pytest.raises(ValueError, match="multiple of twice num_heads"):
            TokenLanguageModel(PIECES, 16, **sizes)


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"speechbrain_focalcodec\[tts\]"):
        TokenLanguageModel(PIECES, 16, dim=32)


def make_brain(folder, front_end, **hparams):
    """A small Brain for the characters of two words."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train(["GO", "ON"], "char")
    model = TokenLanguageModel(
        tokenizer.size,
        front_end.codebook_size,
        3,
        dim=32,
        num_layers=2,
        ffn_dim=64,
    )
    log = sb.utils.train_logger.FileTrainLogger(folder / "train_log.txt")
    voices = SpeakerEmbeddings(["a", "b"], ["x", "x"], torch.eye(2, 3))
    return TTSBrain(
        {"front_end": front_end, "model": model},
        lambda weights: torch.optim.Adam(weights, 3e-3),
        {
            "output_folder": str(folder),
            "tokenizer": tokenizer,
            "speakers": voices,
            "epoch_counter": sb.utils.epoch_loop.EpochCounter(8),
            "train_logger": log,
            "sampling": Sampling(temperature=0),
            "max_seconds": 1.0,
            **hparams,
        },
        checkpointer=sb.utils.checkpoints.Checkpointer(folder / "save"),
    )


def make_items(brain, **column):
    """Two utterances, each a word."""
    data = {"a": {"text": "GO"}, "b": {"text": "ON"}}
    dataset = sb.dataio.dataset.DynamicItemDataset(data)
    for key, (source, function) in brain.items().items():
        dataset.add_dynamic_item(function, source, key)
    ((name, values),) = column.items()
    dataset.add_dynamic_item(values.__getitem__, "id", name)
    dataset.set_output_keys(["id", "labels", name])
    return dataset


def test_brain_learns(tmp_path):
    brain = make_brain(tmp_path, TokenFrontEnd(None, 16, 12.5, freeze=True))
    toks = {"a": torch.tensor([3, 3, 9, 1]), "b": torch.tensor([7, 2])}
    dataset = make_items(brain, prepared=toks)
    counter = brain.hparams.epoch_counter
    repeated = dataset.overfit_test(2, 20)
    brain.fit(
        counter,
        repeated,
        dataset,
        progressbar=False,
        train_loader_kwargs={"batch_size": 2},
        valid_loader_kwargs={"batch_size": 2},
    )
    valid = [x for x in read_metrics(tmp_path) if x["split"] == "valid"]
    losses = [line["loss"] for line in valid]
    assert len(losses) == counter.limit and losses[-1] < losses[0] / 5
    assert valid[-1]["token_accuracy"] == 100
    (kept,) = brain.checkpointer.list_checkpoints()
    assert kept.meta["rank"] == pytest.approx(min(losses))
    # Generates the learnt tokens in eval mode.
    brain.modules.eval()
    batch = sb.dataio.batch.PaddedBatch([dataset[0], dataset[1]])
    text, lens = batch.labels
    lengths = (lens * text.shape[1]).long()
    said = brain.generate(text, lengths, brain.voices(batch, sb.Stage.VALID))
    assert all(x.toks.equal(toks[i]) for i, x in zip("ab", said, strict=True))
    assert all(x.ended for x in said)


def test_brain_trains_on_waveforms_and_writes_samples(tmp_path, parity):
    codec = FocalCodec.from_pretrained(parity / "causal_50hz")
    brain = make_brain(
        tmp_path,
        TokenFrontEnd(codec, freeze=True),
        num_samples=1,
        row_length=64,
    )
    sigs = {"a": torch.randn(8000), "b": torch.randn(4000)}
    dataset = make_items(brain, sig=sigs)
    batch = sb.dataio.batch.PaddedBatch([dataset[0], dataset[1]])
    brain.modules.eval()
    toks, lengths = brain.prepared(batch)
    assert toks.dtype == torch.int64 and lengths.tolist() == [25, 13]
    brain.on_stage_start(sb.Stage.TEST)
    predicted = brain.compute_forward(batch, sb.Stage.TEST)
    assert len(predicted["targets"]) == 25 + 13 + 2
    brain.write_samples("test")
    names = {path.name for path in (tmp_path / "samples/test").iterdir()}
    assert names == {"a.png", "a_generated.wav", "a_resynthesis.wav"}


def test_empty_samples_do_not_stop_training(tmp_path, parity):
    codec = FocalCodec.from_pretrained(parity / "causal_50hz")
    brain = make_brain(tmp_path, TokenFrontEnd(codec), num_samples=1)
    brain.generate = lambda *_: [Generation(torch.zeros(0).long(), True)]
    toks = dict.fromkeys("ab", torch.ones(4).long())
    dataset = make_items(brain, prepared=toks)
    batch = sb.dataio.batch.PaddedBatch([dataset[0], dataset[1]])
    brain.modules.eval()
    brain.on_stage_start(sb.Stage.VALID, 1)
    brain.compute_forward(batch, sb.Stage.VALID)
    brain.write_samples("epoch_0001")
    assert not (tmp_path / "samples").exists()


def test_voices_change_with_training_epochs_only(tmp_path):
    brain = make_brain(tmp_path, TokenFrontEnd(None, 16, 12.5, freeze=True))
    ids = [f"{i}" for i in range(9)]
    brain.hparams.speakers = SpeakerEmbeddings(ids, ["x"] * 9, torch.eye(9))
    batch = SimpleNamespace(id=ids)
    found = {}
    for epoch in (1, 2):
        brain.hparams.epoch_counter.current = epoch
        for stage in (sb.Stage.TRAIN, sb.Stage.VALID):
            found[stage, epoch] = brain.voices(batch, stage)
    train, valid = sb.Stage.TRAIN, sb.Stage.VALID
    assert not found[train, 1].equal(found[train, 2])
    assert found[valid, 1].equal(found[valid, 2])
    # No reference is the utterance itself.
    assert not any(x.diagonal().any() for x in found.values())


def test_token_dropout_in_training_only():
    torch.manual_seed(0)
    model = TokenLanguageModel(
        9, 16, dim=16, num_layers=1, num_heads=2, ffn_dim=16, token_dropout=0.9
    )
    text, text_lengths = torch.zeros(1, 2).long(), torch.tensor([2])
    toks, tok_lengths = torch.arange(12)[None], torch.tensor([12])
    given = (text, text_lengths, toks, tok_lengths)
    model.eval()
    first, targets = scored(model, *given)
    assert torch.equal(first, scored(model, *given)[0])
    model.train()
    hidden, same = scored(model, *given)
    assert torch.equal(targets, same)  # they are learnt all the same
    torch.testing.assert_close(hidden[0], first[0])  # before any token
    assert not torch.allclose(hidden[1:], first[1:])
    assert model.hidden not in targets


def test_positions_of_an_aligned_model():
    torch.manual_seed(0)
    model = TokenLanguageModel(
        9, 16, 5, dim=16, num_layers=2, num_heads=2, ffn_dim=16, aligned=True
    ).eval()
    text, text_lengths = torch.randint(0, 9, (2, 4)), torch.tensor([4, 3])
    toks, tok_lengths = torch.randint(0, 16, (2, 12)), torch.tensor([12, 9])
    voices = torch.randn(2, 5)
    logits, _ = scored(model, text, text_lengths, toks, tok_lengths, voices)
    # Steps equal one pass if the predicted lengths are correct.
    model.pace.copy_(torch.tensor([0.0, 3.0]))
    first, state = model.start(text, text_lengths, voices)
    found = [first]
    for n in range(12):
        found.append(model.step(toks[:, n], state))
    rows = torch.stack(found, 1)
    expected = torch.cat([rows[0, :13], rows[1, :10]])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    # Another pace changes the scores.
    model.pace.copy_(torch.tensor([0.0, 6.0]))
    slower, _ = model.start(text, text_lengths, voices)
    assert not torch.allclose(slower, first)
