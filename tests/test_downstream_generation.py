"""Tokens from the language model, and the best of several."""

import functools

import pytest
import torch
from test_downstream_language_model import KINDS, batch_of, made, one_of

from speechbrain_focalcodec import FocalCodec
from speechbrain_focalcodec.downstream.generation import (
    Sampling,
    generate,
    generate_stream,
)
from speechbrain_focalcodec.downstream.selection import best_of
from speechbrain_focalcodec.streaming import StreamingDecoder

SIZES = [(3, 1), (9, 1), (1, 1), (5, 1)]
HOWS = {
    "greedy": Sampling(temperature=0),
    "drawn": Sampling(),
    "guarded": Sampling(0.8, top_p=0.7, max_repeats=2, penalty=1.3, window=4),
}


def prompts_of(model, sizes=SIZES):
    text, text_lengths, _, _, speaker = batch_of(model, sizes)
    return text, text_lengths, speaker


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["small", "large"])
def test_generation_is_independent_of_the_batch(kind, how):
    model = made(kind)
    batch = batch_of(model, SIZES)
    seeds = [5, 6, 7, 8]
    options = {"max_tokens": 12, "sampling": HOWS[how]}
    together = generate(model, *prompts_of(model), seed=seeds, **options)
    for i, found in enumerate(together):
        text, text_lengths, _, _, speaker = one_of(batch, i)
        (alone,) = generate(
            model, text, text_lengths, speaker, seed=seeds[i], **options
        )
        assert found.toks.equal(alone.toks)
        assert found.ended == alone.ended
    assert len({tuple(found.toks.tolist()) for found in together}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_one_pass(kind):
    """The cache, the padding and the positions change nothing."""
    model = made(kind)
    batch = batch_of(model, [(3, 4), (6, 4), (1, 4)])
    text, text_lengths, toks, _, speaker = batch
    whole = model(*batch)[0].log_probs()
    with torch.no_grad():
        logits, state = model.start(text, text_lengths, speaker)
        steps = [logits, *(model.step(step, state) for step in toks.T)]
    found = torch.stack(steps, dim=1).flatten(0, 1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_greedy_takes_the_likeliest_token():
    model = made("small")
    text, text_lengths, speaker = prompts_of(model, [(4, 1)])
    (found,) = generate(
        model,
        *(text, text_lengths, speaker),
        max_tokens=6,
        sampling=Sampling(temperature=0),
    )
    count = torch.tensor([len(found.toks)])
    scores, targets = model(
        text, text_lengths, found.toks[None], count, speaker
    )
    right = scores.likeliest() == targets
    assert right[:-1].all()
    assert bool(right[-1]) == found.ended


def test_seeds():
    model = made("small")
    text, text_lengths, speaker = prompts_of(model, [(4, 1)] * 3)
    same = (text[:1].expand(3, -1), text_lengths, speaker[:1].expand(3, -1))
    options = {"max_tokens": 12}
    one, two, three = generate(model, *same, seed=4, **options)
    assert one.toks.equal(two.toks) and one.toks.equal(three.toks)
    tries = generate(model, *same, seed=[4, 5, 6], **options)
    assert tries[0].toks.equal(one.toks)
    assert len({tuple(found.toks.tolist()) for found in tries}) == 3
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(model, *same, seed=4, **options)
    assert torch.get_rng_state().equal(before)
    with pytest.raises(ValueError, match="seed has 2 numbers for 3"):
        generate(model, *same, seed=[1, 2], **options)


class Scripted(torch.nn.Module):
    """Generates a given sequence, then END."""

    end = 16

    def __init__(self, *lines):
        super().__init__()
        self.lines = [[*line, self.end] for line in lines]
        self.eval()

    def start(self, text, text_lengths, speaker):
        self.count = 0
        return self.scores(), None

    def step(self, toks, state):
        self.count += 1
        return self.scores()

    def scores(self):
        said = [line[min(self.count, len(line) - 1)] for line in self.lines]
        return 50.0 * torch.nn.functional.one_hot(torch.tensor(said), 17)


@pytest.mark.parametrize("how", ["greedy", "drawn"])
@pytest.mark.parametrize("max_tokens", [2, 3, 4])
def test_ends_and_cuts(max_tokens, how):
    lines = [1, 2, 3], [4], [5, 6, 7, 8, 9]
    text = torch.zeros(3, 1).long()
    found = generate(
        Scripted(*lines),
        *(text, torch.ones(3).long()),
        max_tokens=max_tokens,
        sampling=HOWS[how],
    )
    assert [x.toks.tolist() for x in found] == [x[:max_tokens] for x in lines]
    assert [x.ended for x in found] == [len(x) <= max_tokens for x in lines]


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 9])
@pytest.mark.parametrize("max_tokens", [3, 4, 5, 6])
def test_stream_equals_generate(max_tokens, chunk_tokens):
    line = [5, 6, 7, 8, 9]
    stream = generate_stream(
        Scripted(line),
        torch.zeros(1).long(),
        max_tokens=max_tokens,
        chunk_tokens=chunk_tokens,
        sampling=HOWS["greedy"],
    )
    chunks = [chunk.tolist() for chunk in stream]
    assert sum(chunks, []) == line[:max_tokens]
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_tokens}
    assert all(chunks)
    assert stream.ended == (max_tokens >= 5)
    assert list(stream) == []
    assert stream.ended == (max_tokens >= 5)


def test_stream_yields_before_the_end():
    model = Scripted([5, 6, 7, 8])
    stream = generate_stream(
        model, torch.zeros(1).long(), max_tokens=4, chunk_tokens=2
    )
    assert next(stream).tolist() == [5, 6]
    assert model.count == 1


def test_streams_to_a_waveform(parity):
    codec = FocalCodec.from_pretrained(parity / "causal_50hz")
    model = made("small")
    text, _, speaker = prompts_of(model, [(4, 1)])
    options = {"sampling": HOWS["drawn"], "seed": 3, "max_tokens": 11}
    (found,) = generate(model, text, torch.tensor([4]), speaker, **options)
    decoder = StreamingDecoder(codec)
    stream = generate_stream(
        model, text[0], speaker[0], chunk_tokens=4, **options
    )
    sigs = [decoder.push(toks) for toks in stream]
    sig = torch.cat([*sigs, decoder.flush()])
    assert stream.ended == found.ended
    with torch.no_grad():
        whole, _ = codec.decode(found.toks[None])
    torch.testing.assert_close(sig, whole[0], rtol=1e-3, atol=1e-4)


def test_repetition_and_end_limits():
    logits = torch.tensor([[0.0, 9.0, 8.0, 7.0]]).repeat(3, 1)
    past = torch.tensor([[1, 1], [2, 1], [1, 2]])
    draws = torch.zeros(3)
    choose = functools.partial(
        Sampling.choose, logits=logits, past=past, draws=draws
    )
    assert choose(Sampling(0)).tolist() == [1, 1, 1]
    assert choose(Sampling(0, max_repeats=2)).tolist() == [2, 1, 1]
    assert choose(Sampling(0, max_repeats=1)).tolist() == [2, 2, 1]
    # 9 / 2 and 8 / 2 are less than 7, the score of END.
    assert choose(Sampling(0, penalty=2.0)).tolist() == [2, 3, 3]
    assert choose(Sampling(0, penalty=2.0, window=1)).tolist() == [2, 2, 1]
    assert choose(Sampling(0, penalty=2.0, min_tokens=3)).tolist() == [2, 1, 1]


def test_draws_follow_the_scores():
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 4000
    logits = probs.log().repeat(count, 1)
    past = torch.zeros(count, 1).long()
    draws = (torch.arange(count) + 0.5) / count

    def shares(**options):
        chosen = Sampling(**options).choose(logits, past, draws)
        return chosen.bincount(minlength=4) / count

    near = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-3)
    near(shares(), probs)
    near(shares(top_p=0.75), torch.tensor([0.5, 0.3, 0.0, 0.0]) / 0.8)
    sharp = probs.square() / probs.square().sum()
    near(shares(temperature=0.5), sharp)
    # The limits of the range draw possible tokens.
    logits[:, [0, 3]] = -torch.inf
    draws = torch.tensor([0.0, 1 - 2**-24]).repeat(count // 2)
    assert shares()[[0, 3]].tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_repeats": 0},
        {"penalty": 0.0},
        {"window": 0},
        {"min_tokens": -1},
    ],
)
def test_invalid_sampling(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Sampling(**wrong)


def test_invalid_arguments_of_generate():
    model = Scripted([1])
    prompt = torch.zeros(1, 1).long(), torch.ones(1).long()
    with pytest.raises(ValueError, match="max_tokens must be positive"):
        generate(model, *prompt, max_tokens=0)
    with pytest.raises(ValueError, match="chunk_tokens must be positive"):
        generate_stream(model, prompt[0][0], max_tokens=1, chunk_tokens=0)
    with pytest.raises(ValueError, match="model.eval()"):
        generate(model.train(), *prompt, max_tokens=1)


def test_best_has_the_fewest_errors():
    heard = ["GO NO", "go  an", "ON", "go ax"]
    asked = []

    def transcribe(number):
        asked.append(number)
        return heard[number]

    best = best_of(range(4), transcribe, "Go on")
    assert (best.candidate, best.index, best.transcript) == (1, 1, "GO AN")
    assert (best.wer, best.cer) == (50.0, 20.0)
    assert asked == [0, 1, 2, 3]
    # The first of equal candidates.
    assert best_of([3, 1, 1], transcribe, "Go on").index == 1


def test_best_stops_at_a_perfect_candidate():
    made = []

    def tries():
        for heard in ("no", "Go on.", "go on"):
            made.append(heard)
            yield heard

    best = best_of(tries(), str, "go on", lambda text: text.lower().strip("."))
    assert best.index == 1 and best.wer == best.cer == 0
    assert made == ["no", "Go on."]


def test_best_needs_words_and_candidates():
    with pytest.raises(ValueError, match="no candidate"):
        best_of([], str, "go")
    with pytest.raises(ValueError, match="no word"):
        best_of(["go"], str, "  ")
