"""Where long utterances are cut."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speechbrain_focalcodec.long_audio.windows import plan_windows


@given(
    st.integers(1, 5000),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(1, 7),
    st.integers(0, 200),
)
@example(1, 0, 0, 1, 0)
@example(101, 0, 0, 1, 100)
def test_kept_parts_tile_the_utterance(num_steps, left, right, unit, extra):
    size = left + right + unit + extra
    plan = plan_windows(num_steps, size, left, right, unit, row=3)
    assert plan[0].keep_start == 0
    assert plan[-1].keep_stop == plan[-1].stop == num_steps
    for i, window in enumerate(plan):
        assert window.row == 3
        assert window.start % unit == 0
        assert window.start <= window.keep_start < window.keep_stop
        assert window.keep_stop <= window.stop <= num_steps
        assert window.stop - window.start <= size
        if i:
            assert window.keep_start == plan[i - 1].keep_stop
            assert window.keep_start - window.start >= left
            assert window.start > plan[i - 1].start
        if i < len(plan) - 1:
            assert window.stop - window.keep_stop == right
        elif i:
            # The others are equally long; the last has the rest.
            rest = (plan[0].stop - plan[0].start) - (window.stop - window.start)
            assert 0 <= rest < unit * len(plan)
    assert (len(plan) == 1) == (num_steps <= size)
    room = (size - left - right) // unit * unit
    fewest = max(1, -(-(num_steps - left - right) // room))
    assert len(plan) in (1, fewest)


def test_a_window_without_room_is_refused():
    with pytest.raises(ValueError, match="size must be at least 22 steps"):
        plan_windows(100, 21, 10, 10, 2)
