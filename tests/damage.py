"""Damages bytes as the tests that fuzz files do."""

from hypothesis import strategies as st

__all__ = ["damaged"]


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Copies of `whole` with one to four bytes changed.

    Arguments
    ---------
    whole : bytes
        A file's content.

    Returns
    -------
    SearchStrategy
        Of its damaged copies.
    """
    changes = st.lists(
        st.tuples(
            # Headers decide the most.
            st.integers(0, 99) | st.integers(0, len(whole) - 1),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=4,
    )

    def change(positions: list[tuple[int, int]]) -> bytes:
        data = bytearray(whole)
        for position, byte in positions:
            data[position] = byte
        return bytes(data)

    return changes.map(change)
