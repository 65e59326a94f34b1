"""Least-squares cases of `linear_cases` with constant settings, solved by the spectral method."""

import torch
from linear_cases import Built, Case, total

import pybilevel as pb

SPECTRAL = {"method": pb.Spectral(), "backend": "auto"}
FORMS = ("task", "scalar", "number")


def case_of(variant="plain", **options):
    given = {"tasks": (2,), "steps": 5, "objective": "state", "forms": FORMS} | options
    return Case("squared", "soft", "sgd", variant, **given)


def gradients(case, values, leaves):
    """Results and gradients of `total`, by name."""
    found = torch.autograd.grad(total(values), list(leaves.values()), allow_unused=False)
    return {k: v.detach() for k, v in values.items()}, dict(zip(leaves, found, strict=True))


def spectral(case):
    leaves = case.inputs()
    return gradients(case, Built(case, leaves).fused(**SPECTRAL), leaves)
