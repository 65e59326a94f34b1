"""Optimizers as values: torch.optim's forward values, the grammar of settings, and the text of every error."""

import pytest
import torch

from pybilevel.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from pybilevel.optimizers.settings import is_elementwise, resolve, resolve_elementwise

CPU = torch.device("cpu")


def test_sgd_is_an_optimizer():
    assert isinstance(SGD(0.1), Optimizer)
    assert list(SGD(0.1, 0.9, weight_decay=0.1).settings()) == ["lr", "momentum", "weight_decay"]


def test_only_the_number_zero_is_no_setting():
    zero = torch.tensor(0.0)
    assert list(SGD(0.0).settings()) == ["lr"]
    assert list(SGD(0.1, zero, weight_decay=zero).settings()) == ["lr", "momentum", "weight_decay"]


def test_only_the_number_zero_keeps_no_velocity():
    w = torch.zeros(3)
    assert SGD(0.1).init(w) == ()
    assert len(SGD(0.1, momentum=torch.tensor(0.0)).init(w)) == 1


@pytest.mark.parametrize(
    ("optimizer", "settings", "buffers"),
    [
        (Adam(), ["lr", "beta1", "beta2", "eps"], ["exp_avg", "exp_avg_sq", "step"]),
        (
            Adam(amsgrad=True),
            ["lr", "beta1", "beta2", "eps"],
            ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"],
        ),
        (AdamW(), ["lr", "beta1", "beta2", "eps", "weight_decay"], ["exp_avg", "exp_avg_sq", "step"]),
        (RMSprop(), ["lr", "alpha", "eps"], ["square_avg"]),
        (
            RMSprop(momentum=0.5, weight_decay=0.1, centered=True),
            ["lr", "alpha", "eps", "weight_decay", "momentum"],
            ["square_avg", "grad_avg", "momentum_buffer"],
        ),
        (Adagrad(), ["lr", "eps"], ["sum"]),
        (Adagrad(lr_decay=0.1, weight_decay=0.1), ["lr", "eps", "lr_decay", "weight_decay"], ["sum", "step"]),
    ],
    ids=repr,
)
def test_what_the_number_zero_leaves_out(optimizer, settings, buffers):
    assert isinstance(optimizer, Optimizer)
    assert list(optimizer.settings()) == settings and list(optimizer.buffer_names) == buffers
    assert len(optimizer.init(torch.zeros(3))) == len(buffers)


def test_the_text_of_an_optimizer_has_its_settings():
    assert repr(Adam(torch.ones(5))) == (
        "Adam(lr=tensor[5], beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, amsgrad=False)"
    )
    assert repr(SGD(0.1)) == "SGD(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)"


@pytest.mark.parametrize(
    ("value", "tasks", "shape"),
    [
        (0.1, (), []),
        (0.1, (2, 3), []),
        (torch.tensor(0.1), (3,), []),
        (torch.ones(5), (), [5]),
        (torch.ones(5), (3,), [1, 5]),
        (torch.ones(3, 1), (3,), [3, 1]),
        (torch.ones(3, 5), (3,), [3, 5]),
        (torch.ones(2, 3, 5), (2, 3), [2, 3, 5]),
    ],
)
def test_uniform_settings_expand_to_tasks_and_steps(value, tasks, shape):
    resolved = resolve("lr", value, 5, tasks, torch.float64, CPU)
    assert list(resolved.shape) == shape and resolved.dtype == torch.float64
    assert resolved.expand(*tasks, 5).shape == (*tasks, 5)


@pytest.mark.parametrize(
    ("value", "tasks", "text"),
    [
        (torch.ones(4), (), "lr has length 4 but there are 5 steps"),
        (torch.ones(1), (), "lr has length 1 but there are 5 steps"),
        (
            torch.ones(3),
            (3,),
            r"lr has length 3 but there are 5 steps.*for one a task give it shape \[3, 1\]",
        ),
        (torch.ones(3, 4), (3,), r"lr has shape \[3, 4\].*\[3, 1\] or \[3, 5\]"),
        (torch.ones(1, 5), (3,), r"lr has shape \[1, 5\]"),
        (torch.ones(5, device="meta"), (), "lr is on meta but w0 is on cpu"),
    ],
)
def test_wrong_shapes_give_both(value, tasks, text):
    with pytest.raises(ValueError, match=text):
        resolve("lr", value, 5, tasks, torch.float32, CPU)


def test_ndim_decides_what_is_elementwise():
    assert not is_elementwise(torch.ones(5), ())
    assert is_elementwise(torch.ones(4, 3), ())
    assert not is_elementwise(torch.ones(2, 5), (2,))
    assert is_elementwise({"a": 0.1}, ())


def test_elementwise_settings_have_a_steps_axis():
    w0 = {"a": torch.zeros(4, 3), "b": torch.zeros(3)}
    for value, shapes in [
        ({"a": 0.1, "b": torch.tensor(0.1)}, [[1, 1, 1], [1, 1]]),
        ({"a": torch.ones(4, 3), "b": torch.ones(3)}, [[1, 4, 3], [1, 3]]),
        ({"a": torch.ones(5, 4, 3), "b": torch.ones(5, 3)}, [[5, 4, 3], [5, 3]]),
    ]:
        assert [list(v.shape) for v in resolve_elementwise("lr", value, 5, w0)] == shapes
    with pytest.raises(ValueError, match=r"lr\[0\] has shape \[4\] but its parameter has \[4, 3\]"):
        resolve_elementwise("lr", {"a": torch.ones(4), "b": 0.1}, 5, w0)
    with pytest.raises(ValueError, match="lr has the structure"):
        resolve_elementwise("lr", {"a": 0.1}, 5, w0)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SGD(-0.1), ValueError, "lr must be finite and >= 0, got -0.1"),
        (lambda: SGD(float("nan")), ValueError, "lr must be finite and >= 0, got nan"),
        (lambda: SGD(torch.tensor([0.1, float("inf")])), ValueError, "lr must be finite and >= 0, got inf"),
        (
            lambda: SGD(torch.tensor(-1.0, requires_grad=True)),
            ValueError,
            "lr must be finite and >= 0, got -1",
        ),
        (lambda: SGD(0.1, momentum=1.0), ValueError, r"momentum must be in \[0, 1\), got 1"),
        (lambda: SGD(0.1, momentum=-0.1), ValueError, r"momentum must be in \[0, 1\), got -0.1"),
        (lambda: SGD(0.1, weight_decay=-1), ValueError, "weight_decay must be finite and >= 0"),
        (lambda: SGD({"a": 0.1, "b": -1.0}), ValueError, "lr must be finite and >= 0, got -1"),
        (lambda: SGD("0.1"), TypeError, "lr must be a number, a floating tensor or a pytree"),
        (lambda: SGD(True), TypeError, "lr must be a number"),
        (lambda: SGD(torch.tensor(1)), TypeError, "lr must be floating point, got torch.int64"),
        (lambda: SGD([]), TypeError, "lr is empty"),
        (lambda: SGD(0.1, nesterov=True), ValueError, "nesterov=True needs a momentum"),
        (lambda: Adam(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be in \[0, 1\), got 1"),
        (lambda: Adam(betas=0.9), TypeError, r"betas must be a pair, such as \(0.9, 0.999\), got 0.9"),
        (lambda: Adam(betas=(0.9,)), TypeError, "betas must be a pair"),
        (lambda: Adam(eps=0.0), ValueError, "eps must be finite and > 0, got 0"),
        (lambda: AdamW(eps=torch.zeros(3)), ValueError, "eps must be finite and > 0, got 0"),
        (lambda: AdamW(weight_decay=-1.0), ValueError, "weight_decay must be finite and >= 0, got -1"),
        (lambda: RMSprop(alpha=1.0), ValueError, r"alpha must be in \[0, 1\), got 1"),
        (lambda: RMSprop(momentum=1.5), ValueError, r"momentum must be in \[0, 1\), got 1.5"),
        (lambda: RMSprop(eps={"a": 1e-8, "b": 0.0}), ValueError, "eps must be finite and > 0, got 0"),
        (lambda: Adagrad(lr_decay=float("inf")), ValueError, "lr_decay must be finite and >= 0, got inf"),
        (
            lambda: Adagrad(initial_accumulator_value=-1),
            ValueError,
            "initial_accumulator_value must be finite",
        ),
        (
            lambda: Adagrad(initial_accumulator_value=torch.ones(2)),
            ValueError,
            r"initial_accumulator_value has shape \[2\]: it must be a number or a tensor \(\)",
        ),
        (lambda: Adagrad(initial_accumulator_value="1"), TypeError, "must be a tensor, got str"),
    ],
)
def test_bad_settings_say_what_and_what_to_do(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.gpu
def test_values_on_cuda_are_not_read():
    SGD(torch.tensor(-1.0, device="cuda"))
