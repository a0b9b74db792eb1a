"""How long a dependent layer should take on a GPU: a model of the machine, for sizes no GPU here can run.

Every figure is a prediction. What a layer of the chain kernels (csrc/cuda) costs, in one block:

    max(stream, shared, product + epilogue)

- stream: the block's weights over one SM's rate from L2, or its share of the whole L2's;
- shared: all that passes shared memory, weights in and out, and the left rows once for each warp;
- product: the tensor cores' time, or that of what they read from shared memory;
- epilogue: two barriers with their shuffles, and the special functions of the activation.

The ring keeps weights coming during the epilogue: so stream and shared stand beside the sum. Design A gives a
block 16 rows; B and C let 2 or 4 blocks split the columns, and pay two exchanges through each other's
shared memory. `bench/gpu_check.sh` measures what is assumed here, and writes measurement beside prediction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """A GPU's figures. Those of the data sheet are marked S, the others are assumptions until measured.

    clock: GHz under load. stream: GB/s from L2 to one SM. l2: GB/s of the whole L2. hbm: GB/s.
    tensor: dense 16-bit operations (2 to a multiply-add) of an SM in a cycle, S. reach: the share of it that
    mma.sync reaches. barrier, exchange: microseconds of a block's barrier with its shuffles, of a store to a
    neighbour's shared memory until it is seen there. boundary: microseconds between kernels of a graph.
    """

    name: str
    sms: int
    clock: float
    stream: float
    l2: float
    hbm: float
    tensor: int
    reach: float
    barrier: float = 0.06
    exchange: float = 0.25
    boundary: float = 1.3
    shared: int = 128  # bytes of shared memory that an SM moves in a cycle
    special: int = 16  # special functions that an SM starts in a cycle
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
SPECIALS = 2  # special functions of swish: exp and reciprocal


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


def layer_parts(machine: Machine, size: Size, cluster: int) -> dict[str, float]:
    """Microseconds of the parts of one layer in one block."""
    cycle = 1e-3 / machine.clock  # microseconds
    rows, columns = 16, size.width // cluster
    warps = 4 if columns <= 64 else 8
    blocks = -(-size.batch // rows) * cluster
    rate = min(machine.stream, machine.l2 / min(blocks, machine.sms))
    weights, left = size.weight_bytes / cluster, rows * size.width * size.operand
    reads = weights + warps * left
    operations = 2 * rows * size.width * columns * PRECISIONS[size.precision][1]
    meeting = machine.barrier if cluster == 1 else machine.exchange
    return {
        "stream": weights / rate * 1e-3,
        "shared": (weights + reads + left) / machine.shared * cycle,
        "product": max(operations / (machine.tensor * machine.reach), reads / machine.shared) * cycle,
        "epilogue": 2 * meeting + rows * columns * SPECIALS / machine.special * cycle,
    }


def layer(machine: Machine, size: Size, cluster: int = 1) -> float:
    """Microseconds of one dependent layer, either way. Blocks past one to an SM run in waves."""
    parts = layer_parts(machine, size, cluster)
    once = max(parts["stream"], parts["shared"], parts["product"] + parts["epilogue"])
    return once * -(-(-(-size.batch // 16) * cluster) // machine.sms)


def packing(machine: Machine, size: Size) -> float:
    """Microseconds of reading all weights in fp32 once, and writing them packed."""
    return size.depth * size.width**2 * (4 + size.operand) / machine.hbm * 1e-3


def launches(size: Size, bytes_per_layer: int, kernels: int) -> int:
    """Kernels of a walk over all layers: `kernels` to a stretch whose scratch is at most 26 MiB."""
    return kernels * -(-size.depth * bytes_per_layer // (26 * 2**20))


def forward(machine: Machine, size: Size, cluster: int = 1) -> float:
    boundaries = launches(size, size.weight_bytes, 2) * machine.boundary
    return packing(machine, size) + size.depth * layer(machine, size, cluster) + boundaries


def backward(machine: Machine, size: Size, cluster: int = 1) -> float:
    """Packing again, the chain, and the grouped product at the mma's rate or at memory's, the slower one."""
    operations = 2 * size.depth * size.batch * size.width**2 * PRECISIONS[size.precision][1]
    product = operations / (machine.sms * machine.tensor * machine.reach * machine.clock) * 1e-3
    moved = size.depth * (2 * size.batch * size.width * size.operand + 4 * size.width**2) / machine.hbm * 1e-3
    rows = size.batch * size.width
    scratch = size.weight_bytes + 2 * rows * size.operand + rows * 3 * 4 // 16
    boundaries = launches(size, scratch, 4) * machine.boundary
    chain = size.depth * layer(machine, size, cluster)
    return packing(machine, size) + chain + max(product, moved) + boundaries


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
