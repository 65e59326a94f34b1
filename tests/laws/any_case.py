"""Cases drawn by hypothesis: the part of the grid that no table spells out."""

from hypothesis import strategies as st
from linear_cases import FORMS, OBJECTIVES, PAIRS, STRIDES, Case


@st.composite
def any_case(draw: st.DrawFn) -> tuple[str, Case]:
    """A way to run, and a case of awkward sizes in it."""

    def pick(*values):
        return draw(st.sampled_from(values))

    loss, targets, way, optimizer, variant = pick(*PAIRS)
    objective = pick(*OBJECTIVES)
    return way, Case(
        loss,
        targets,
        optimizer,
        variant,
        tasks=pick((), (1,), (4,), (2, 2), (0,)),
        n=pick(1, 2, 5, 8, 13, 70, 257),
        m=pick(1, 3, 8, 11, 65, 257),
        d=pick(1, 2, 7, 8, 11, 33),
        c=pick(1, 2, 3, 5, 8, 11),
        steps=pick(1, 2, 4, 6),
        bias=pick(True, False),
        reduction="mean" if objective == "ml" else pick("mean", "sum"),
        forms=tuple(pick(*FORMS) for _ in range(3)),
        l2=pick("number", "scalar", "task"),
        weights=pick("none", "random", "zeros"),
        w0=pick(True, False),
        strides=pick(*STRIDES),
        objective=objective,
        seed=draw(st.integers(0, 99)),
    )
