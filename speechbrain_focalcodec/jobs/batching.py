"""Groups the utterances of a shard into batches of similar length."""

from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Group utterances of similar length.

    Padding costs as much as speech, so neighbours in length share a batch.
    The batches depend on the lengths alone: a shard that is made again has
    the same batches.

    Arguments
    ---------
    lengths : sequence of int
        Samples of each utterance.
    most : int
        Samples of a batch, padding included. A longer utterance is a batch
        of its own.

    Returns
    -------
    list of list of int
        The places of the utterances; each is in one batch. Long batches come
        first, so that memory runs out early or not at all.

    Example
    -------
    >>> plan_batches([10, 90, 12, 50, 11], most=40)
    [[1], [3], [2, 4, 0]]
    """
    batches: list[list[int]] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or longest * (len(batches[-1]) + 1) > most:
            batches.append([])
            longest = lengths[place]
        batches[-1].append(place)
    return batches
