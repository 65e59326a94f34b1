"""What rounded products buy and cost: `python -m benchmarks.precision` on a CUDA machine, or by `benchmarks/gpu.sh`.

Hyper-cleaning at the GPU shape of its case, in each precision of `unroll`: the time of a hypergradient, and relative
errors, in the 2-norm, of the outer value and of every hypergradient against float64. No GPU has run it yet.
"""

from __future__ import annotations

import torch

from benchmarks.cases import CASES
from benchmarks.measure import TINY, Effort, in_double, inputs_on, relative_errors, time_interleaved
from benchmarks.peers import ours
from pybilevel.engine.precision import PRECISIONS

CASE = next(case for case in CASES if case.name == "hyper-cleaning")


def table(device: str = "cuda", tiny: bool = False, repeats: int = 20) -> str:
    """A Markdown table: a row for each precision, the reason in words for one that this device does not have."""
    workload, shape = CASE.workload, CASE.at(device, tiny)
    inputs = inputs_on(device, workload, shape)
    exact = ours.build(workload, shape, in_double(inputs))()
    runs, cells = {}, {}
    for precision in PRECISIONS:
        run = ours.build(workload, shape, inputs, precision=precision)
        try:
            errors = relative_errors(run(), exact)
        except ValueError as error:
            cells[precision] = [str(error).replace("\n", " "), *[""] * len(exact)]
            continue
        runs[precision] = run
        cells[precision] = [f"{error:.1e}" for error in errors.values()]
    for precision, timing in time_interleaved(runs, device, TINY if tiny else Effort(repeats)).items():
        cells[precision].insert(0, f"{1e3 * timing['fastest']:.2f} ms")
    rows = [f"| precision | fastest | {' | '.join(exact)} |", "| --- " * (2 + len(exact)) + "|"]
    return "\n".join([*rows, *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())])


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU: the tiny shape on the CPU"
    print(f"{CASE.name}, {CASE.at(device, device == 'cpu')}, {name}\n\n{table(device, device == 'cpu')}")


if __name__ == "__main__":
    main()
