"""What `explain` returns."""

from dataclasses import dataclass

from pybilevel.schedules import format_bytes


@dataclass(frozen=True)
class Explanation:
    """How one call of `unroll` would run, and what it would cost.

    Attributes:
        backend: "fused" or "generic".
        coordinates: "primal", "dual" or "normal" for linear problems in the fused kernels, "spectral" for
            `pb.Spectral`, else None.
        regime: how the work is laid out, in words.
        reasons: why each faster path is not taken, one sentence each.
        schedule: what is stored and recomputed, in words.
        steps: T.
        slots: states stored beside the working one.
        recomputation: steps run forward over T; 1.0 means nothing is run twice.
        flops: floating point operations of both halves, None if unknown. In the generic engine those of products,
            convolutions and attention, as torch counts them; 0 if there are none, though other operations take time.
        bytes_moved: bytes read and written by both halves, None if unknown.
        peak_memory: extra bytes at the peak of both halves, the workspace of one step included.
        tangents: how many tangents travel with the iterate, for `pb.Forward`.
        precision: what the fused kernels of linear problems multiply in, and the rounding to expect, in words.
    """

    backend: str
    coordinates: str | None
    regime: str
    reasons: tuple[str, ...]
    schedule: str
    steps: int
    slots: int
    recomputation: float
    flops: int | None
    bytes_moved: int | None
    peak_memory: int
    tangents: int | None = None
    precision: str | None = None

    def __str__(self) -> str:
        """One line a field; unknown ones are left out."""
        rows = [
            ("backend", self.backend),
            ("coordinates", self.coordinates),
            ("regime", self.regime),
            ("precision", self.precision),
            ("schedule", self.schedule),
            ("steps", f"{self.steps}, {self.slots} slots, recomputation factor {self.recomputation:.3g}"),
            ("tangents", self.tangents),
            ("flops", self._counted()),
            ("bytes moved", None if self.bytes_moved is None else format_bytes(self.bytes_moved)),
            ("peak memory", format_bytes(self.peak_memory)),
        ]
        lines = [f"{name:<12} {value}" for name, value in rows if value is not None]
        return "\n".join(lines + [f"{'not faster':<12} {reason}" for reason in self.reasons])

    def _counted(self) -> str | None:
        if self.flops == 0 and self.backend == "generic" and self.steps:
            return "not counted: no products, convolutions or attention"
        return None if self.flops is None else f"{self.flops:.3g}"
