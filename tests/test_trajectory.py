"""The picture of recorded curves: what is drawn is what was recorded."""

import pytest
import torch

import pybilevel as pb

pytest.importorskip("matplotlib")
from pybilevel.experiments import trajectory


def recorded(lr=0.1, backward=True):
    recorder, w0 = pb.Recorder(), torch.ones(3, requires_grad=True)
    w = pb.unroll(lambda w: w.square().sum(), w0, steps=6, optimizer=pb.SGD(lr), callback=recorder)
    if backward:
        w.sum().backward()
    return recorder


def test_one_recorder_becomes_a_png(tmp_path):
    recorder = recorded()
    figure = trajectory.plot(recorder, tmp_path / "curves.png", title="descent")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for axes, panel in zip(figure.axes, trajectory.PANELS, strict=True):
        curve = getattr(recorder, panel)
        (line,) = axes.lines
        assert list(line.get_xdata()) == list(curve) and list(line.get_ydata()) == list(curve.values())
        assert axes.get_yscale() == "log" and axes.get_legend() is None


def test_several_have_a_legend_and_an_empty_panel_is_no_error():
    figure = trajectory.plot({"slow": recorded(backward=False), "fast": recorded(0.3, backward=False)})
    losses, _, cotangents = figure.axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["slow", "fast"]
    assert all(not len(line.get_xdata()) for line in cotangents.lines)


def test_zeros_are_drawn_on_a_linear_axis():
    recorder = recorded(0.5)  # in one step to the minimum
    assert trajectory.plot(recorder).axes[0].get_yscale() == "linear"


def test_nothing_recorded_is_an_error():
    with pytest.raises(ValueError, match=r"no recorder has a step: pass it to pb\.unroll as callback"):
        trajectory.plot(pb.Recorder())
