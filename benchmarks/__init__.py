"""The benchmark suite: cases are data, one command runs them all (`python -m benchmarks`, or `make bench`).

Floors, each importing only those above it:

    cases.py       the table: every workload, its shapes (full, tiny, CUDA) and its contenders
    workloads.py   what a workload is: inputs, leaves, the bilevel problem, the arithmetic and traffic it needs
    sinusoid.py    the workload whose model is a network, not linear
    peers/         one file per contender: pybilevel itself, and everything people use today
    contenders.py  the registry of contenders by name
    machine.py     who ran it, and the limits of that machine, measured in the same run
    measure.py     equality first, then interleaved timing
    growth.py      time against the number of steps, tasks, features and rows: curves are data too
    memory.py      peak memory against the number of steps, in subprocesses
    charts.py      bars and curves
    report.py      a result record as tables, JSON, Markdown and charts
    against.py     two result records: who is slower, the drift of the machine taken out
    networks.py    inner problems without a fused kernel, built of architectures.py
    spectral.py, coordinates.py, methods.py    tables of their own: the figures of docs/spectral.md, of
                   engine/select.py and of docs/methods.md (meter.py: its peaks)
"""
