"""How long a dependent layer should take on a GPU: a model of the machine, for sizes no GPU here can run.

Every figure is a prediction. What a layer of the chain kernels (csrc/cuda) costs, in one block:

    max(stream, shared, code)

- stream: the block's weights over one SM's rate from L2, or its share of the whole L2's;
- shared: all that passes shared memory, weights in and out, and the left rows once for each warp;
- code: what the machine code takes by its own stall counts and by latencies that others measured, with two exchanges
  between blocks (`python bench/layer_cycles.py`, gpu/sass.py; kept in bench/results/layer_cycles.json, for sm_90a,
  and taken for every machine).

The ring keeps weights coming meanwhile. Design A gives a block 16 rows; B and C let 2 or 4 blocks split the columns,
and pay two exchanges through each other's shared memory. `bench/gpu_check.sh` measures what is assumed here, and writes
measurement beside prediction. Caches that miss and clusters that must share an SM are in none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from bench.gpu.sass import EXCHANGES
from bench.harness.results import KEPT


@dataclass(frozen=True)
class Machine:
    """A GPU's figures. Those of the data sheet are marked S, the others are assumptions until measured.

    clock: GHz under load. stream: GB/s from L2 to one SM. l2: GB/s of the whole L2. hbm: GB/s.
    tensor: dense 16-bit operations (2 to a multiply-add) of an SM in a cycle, S. reach: the share of it that
    mma.sync reaches. exchange: cycles from a store to a neighbour's shared memory until a warp there goes on.
    boundary: microseconds between kernels of a graph.
    """

    name: str
    sms: int
    clock: float
    stream: float
    l2: float
    hbm: float
    tensor: int
    reach: float
    exchange: float = 200.0
    boundary: float = 1.3
    shared: int = 128  # bytes of shared memory that an SM moves in a cycle
    clusters: bool = True  # blocks that read each other's shared memory: from sm_90 on


MACHINES = {
    "a100": Machine("A100 SXM", 108, 1.41, 90.0, 4700.0, 1900.0, 2048, 0.9, clusters=False),
    "h100": Machine("H100 SXM", 132, 1.75, 137.0, 5500.0, 3000.0, 4096, 0.63),
    "h200": Machine("H200 SXM", 132, 1.75, 137.0, 5500.0, 4300.0, 4096, 0.63),
    "b200": Machine("B200", 148, 1.85, 137.0, 9000.0, 7000.0, 8192, 0.32),
    "rtx5090": Machine("RTX 5090", 170, 2.40, 150.0, 7000.0, 1700.0, 1024, 0.9),
}

# Operand bytes, and how many times the 16-bit tensor time a product takes (fp32 is three tf32 products).
PRECISIONS = {"bf16": (2, 1.0), "fp16": (2, 1.0), "tf32": (4, 2.0), "fp32": (4, 6.0)}
CLUSTERS = {"A": 1, "B": 2, "C": 4}


@dataclass(frozen=True)
class Size:
    depth: int
    batch: int
    width: int
    precision: str

    @property
    def operand(self) -> int:
        return PRECISIONS[self.precision][0]

    @property
    def weight_bytes(self) -> int:
        """Of a layer, packed."""
        return self.width**2 * self.operand


@cache
def _kept_cycles() -> dict[tuple[str, int, str, int], tuple[float, ...]]:
    """By kernel, width, precision and cluster: cycles of a layer at each of EXCHANGES."""
    rows = json.loads((KEPT / "layer_cycles.json").read_text())["rows"]
    return {
        (row["kernel"], row["width"], row["precision"], row["cluster"]): tuple(
            row[f"cycles_{exchange}"] for exchange in EXCHANGES
        )
        for row in rows
    }


def code_cycles(machine: Machine, size: Size, cluster: int, kernel: str) -> float:
    """Cycles of a layer of `kernel`, "forward" or "dgrad", along the line through those at EXCHANGES."""
    kept = _kept_cycles().get((kernel, size.width, size.precision, cluster))
    if kept is None:
        raise ValueError(
            f"layer_cycles.json has no {kernel} of width {size.width} in {size.precision} on {cluster} blocks; "
            "python bench/layer_cycles.py --keep counts them"
        )
    (near, far), (low, high) = EXCHANGES, kept
    return low + (high - low) / (far - near) * (machine.exchange - near)


def layer_parts(machine: Machine, size: Size, cluster: int, kernel: str = "forward") -> dict[str, float]:
    """Microseconds of the parts of one layer in one block."""
    cycle = 1e-3 / machine.clock  # microseconds
    warps = 4 if size.width // cluster <= 64 else 8
    blocks = -(-size.batch // 16) * cluster
    rate = min(machine.stream, machine.l2 / min(blocks, machine.sms))
    weights, left = size.weight_bytes / cluster, 16 * size.width * size.operand
    return {
        "stream": weights / rate * 1e-3,
        "shared": (2 * weights + (warps + 1) * left) / machine.shared * cycle,
        "code": code_cycles(machine, size, cluster, kernel) * cycle,
    }


def layer(machine: Machine, size: Size, cluster: int = 1, kernel: str = "forward") -> float:
    """Microseconds of one dependent layer. Blocks past one to an SM run in waves."""
    once = max(layer_parts(machine, size, cluster, kernel).values())
    return once * -(-(-(-size.batch // 16) * cluster) // machine.sms)


def packing(machine: Machine, size: Size) -> float:
    """Microseconds of reading all weights in fp32 once, and writing them packed."""
    return size.depth * size.width**2 * (4 + size.operand) / machine.hbm * 1e-3


def stretches(size: Size, bytes_per_layer: int) -> int:
    """Of a walk over all layers whose scratch is at most 26 MiB at a time."""
    return -(-size.depth * bytes_per_layer // (26 * 2**20))


def forward(machine: Machine, size: Size, cluster: int = 1) -> float:
    boundaries = 2 * stretches(size, size.weight_bytes) * machine.boundary
    return packing(machine, size) + size.depth * layer(machine, size, cluster) + boundaries


def backward(machine: Machine, size: Size, cluster: int = 1) -> float:
    """Packing again and the chain. The grouped product, at the mma's rate or at memory's, the slower one, runs beside
    the chain; that of the last stretch comes after it. Two stretches have scratch at a time."""
    operations = 2 * size.depth * size.batch * size.width**2 * PRECISIONS[size.precision][1]
    product = operations / (machine.sms * machine.tensor * machine.reach * machine.clock) * 1e-3
    moved = size.depth * (2 * size.batch * size.width * size.operand + 4 * size.width**2) / machine.hbm * 1e-3
    rows = size.batch * size.width
    parts = stretches(size, size.weight_bytes + 2 * (2 * rows * size.operand + rows * 3 * 4 // 16))
    chain, summing = size.depth * layer(machine, size, cluster, "dgrad"), max(product, moved)
    boundaries = (2 * parts + 2) * machine.boundary
    return packing(machine, size) + max(chain, summing) + summing / parts + boundaries


def rivals(machine: Machine, size: Size) -> dict[str, float]:
    """Microseconds forward of what others launch: so many kernels a layer, from a graph or one by one."""
    arithmetic = 2 * size.batch * size.width**2 * PRECISIONS[size.precision][1]
    least = arithmetic / (machine.sms * machine.tensor * machine.reach * machine.clock) * 1e-3
    return {
        "eager, 3 kernels a layer at 5 us": size.depth * max(15.0, least),
        "graph, 3 kernels a layer": size.depth * 3 * (machine.boundary + 0.5) + size.depth * least,
        "graph, 1 kernel a layer": size.depth * (machine.boundary + 1.2) + size.depth * least,
        "arithmetic alone": size.depth * least,
    }


def designs(machine: Machine) -> dict[str, int]:
    """Blocks of a cluster, by the designs that this machine can run."""
    return {design: cluster for design, cluster in CLUSTERS.items() if cluster == 1 or machine.clusters}


def predictions(machine: Machine, size: Size) -> dict[str, float]:
    """Microseconds by "design/mode", and of the rivals."""
    found: dict[str, float] = {}
    for design, cluster in designs(machine).items():
        found[f"{design}/layer"] = layer(machine, size, cluster)
        found[f"{design}/forward"] = forward(machine, size, cluster)
        found[f"{design}/forward_backward"] = forward(machine, size, cluster) + backward(
            machine, size, cluster
        )
    return found | rivals(machine, size)


def measured(machine: Machine, **figures: float) -> Machine:
    """The machine with figures that a run has measured in place of the assumed ones."""
    return replace(machine, name=machine.name + ", measured", **figures)


def every(widths: tuple[int, ...] = (256,), depths: tuple[int, ...] = (64, 1024, 4096)) -> Iterator[dict]:
    """A row for each GPU, width and depth at batch 512 in bf16: microseconds by design and mode."""
    for key, machine in MACHINES.items():
        for width in widths:
            for depth in depths:
                found = predictions(machine, Size(depth, 512, width, "bf16"))
                us = {name: round(value, 2) for name, value in found.items()}
                yield {
                    "gpu": key,
                    "depth": depth,
                    "batch": 512,
                    "width": width,
                    "precision": "bf16",
                    "us": us,
                }


def write(path: Path) -> None:
    """All of `every`, one row to a line, and what is assumed of each GPU."""
    machines = {key: json.dumps(asdict(machine)) for key, machine in MACHINES.items()}
    assumed = ",\n".join(f'  "{key}": {line}' for key, line in machines.items())
    rows = ",\n".join("  " + json.dumps(row) for row in every())
    command = f"python bench/model.py --all {path}"
    path.write_text(
        f'{{\n "kind": "deepres predictions, not measurements",\n "command": "{command}",\n'
        f' "assumed": {{\n{assumed}\n }},\n "rows": [\n{rows}\n ]\n}}\n'
    )


def words(machine: Machine, size: Size) -> list[str]:
    """A line for each part of a layer and each prediction."""
    lines = []
    for design, cluster in designs(machine).items():
        parts = layer_parts(machine, size, cluster)
        listed = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        lines.append(f"  depth {size.depth} design {design} a layer: {listed} us")
    found = predictions(machine, size)
    return lines + [f"  depth {size.depth:5} {name:36} {value:10.2f} us" for name, value in found.items()]
