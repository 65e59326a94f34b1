"""Operations whose backward is computed in the same way whether or not it gets a graph of its own."""

SAME = frozenset(
    f"{name}Backward0"
    for name in (
        *(
            "Abs",
            "Add",
            "Addmm",
            "Bmm",
            "Cat",
            "Clone",
            "Convolution",
            "Cos",
            "Div",
            "Dot",
            "Exp",
            "Expand",
            "Gelu",
            "Log",
        ),
        *(
            "LogSoftmax",
            "Mean",
            "Mm",
            "Mul",
            "Mv",
            "Neg",
            "NllLoss",
            "Permute",
            "Pow",
            "Relu",
            "Select",
            "Sigmoid",
        ),
        *(
            "Sin",
            "Slice",
            "Softmax",
            "Split",
            "Sqrt",
            "Squeeze",
            "Stack",
            "Sub",
            "Sum",
            "T",
            "Tanh",
            "Transpose",
            "Unbind",
            "UnsafeView",
            "Unsqueeze",
        ),
        "View",
    )
) | {"MeanBackward1", "RsubBackward1", "SqueezeBackward1", "SumBackward1"}
"""Their names in autograd's graphs. torch has two formulas for a few others (silu, group_norm); `tests/test_graphs.py`
compares the bits of each of these."""
