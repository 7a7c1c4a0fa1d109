"""The heap of deadlines, against a plain dictionary, with a simulated clock."""

from hypothesis import given
from hypothesis import strategies as st

from pool_manager.deadlines import Deadlines

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 20), st.integers(0, 100)),
        st.tuples(st.just("discard"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.integers(0, 100)),
    ),
    max_size=200,
)


@given(STEPS)
def test_behaves_like_a_dictionary_that_is_searched(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    for step, key, time in steps:
        if step == "set":
            deadlines.set(key, time)
            model[key] = time
        elif step == "discard":
            deadlines.discard(key)
            model.pop(key, None)
        else:
            due = {key for key, at in model.items() if at <= time}
            popped = deadlines.pop(time)
            assert set(popped) == due and len(popped) == len(due)
            assert [model[key] for key in popped] == sorted(model[key] for key in popped)
            for key in due:
                del model[key]
        assert len(deadlines) == len(model)
        assert deadlines.next_due() == min(model.values(), default=None)


def test_a_key_that_is_set_again_and_again_does_not_grow_the_heap() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for time in range(10_000):
        deadlines.set("session", float(time))
    assert len(deadlines._heap) < 200
    assert deadlines.pop(9_998.0) == []
    assert deadlines.pop(9_999.0) == ["session"]
