"""What a layer of the chain kernels costs, read from their machine code: an estimate that takes no GPU.

The compiler writes into every instruction how many cycles pass before the next one of its warp may issue, and which
scoreboards it sets and waits for. `layer_cycles` walks once around the layer loop of a kernel, the longest way, and
counts: stalls as they are written, scoreboards with the latencies below (as others have measured them of sm_80 and
sm_90; LATENCY), the shared memory of an SM at 128 bytes a cycle for all warps of the block, which is how long warpgroup
products take, and two exchanges between the blocks of a cluster at an assumed latency each. It knows one warp; with two
to a scheduler the layer lasts at least as long as both take to issue. Not in it: caches that miss, and weights that
come too late (model.py has their stream).
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

EXCHANGE = 200
"""Cycles from a store to another block's shared memory until that block's waiting warp goes on: assumed."""

EXCHANGES = (150, 250)
"""Between which it is taken to lie: a load from another block's shared memory was measured to take 180 to 213."""

PARTS = (
    "product",
    "row sums",
    "pairs sent",
    "pairs awaited",
    "joined",
    "rows sent",
    "rows awaited",
    "between",
)
"""Of a layer: from the first tensor-core instruction to the last, or to the end of the wait for it; up to the first
pair that is sent; up to the wait for the others' pairs; that wait; up to the first element of the new rows that is
sent; up to the wait for the others' rows; that wait; up to the next layer's product."""

PRODUCTS = ("HMMA", "HGMMA", "WARPGROUP.DEPBAR")  # the last waits for warpgroup products

# Cycles from issue until the result is there, for what is not of fixed length; the first pattern that fits.
LATENCY = (
    (r"LDS\.128|LDSM", 33),
    (r"LDS", 24),
    (r"SHFL", 24),
    (r"MUFU", 30),
    (r"LDG|LD\.E", 280),  # from L2
    (r"S2R|S2UR|R2UR|CS2R", 20),
    (r"SYNCS", 24),
    (r"ATOM|RED", 300),
    (r"F2F|I2F|F2I|I2I", 24),
)
OTHERWISE = 20
WARPGROUP = (
    64  # cycles until a warpgroup product is there, from when shared memory has given its operands: assumed
)
OPERANDS_READ = 16  # cycles until a store has read its registers
SPECIAL = 8  # cycles that a warp's special function occupies its scheduler's unit
WAVEFRONT = {"LDS.128": 4, "LDSM": 4, "LDS.64": 2, "LDS": 1, "STS.128": 4, "STS.64": 2, "STS": 1, "SHFL": 1}
SCHEDULERS = 4


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing with what the compiler says of its timing.

    sets: scoreboards of its result and of its operands, -1 for none. waits: a bit for each scoreboard it waits for.
    """

    text: str
    stall: int
    sets: tuple[int, int]
    waits: int
    target: str | None = None

    @property
    def name(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split(" ", 1)[0].rstrip(";")

    @property
    def guarded(self) -> bool:
        return self.text.startswith("@")


@dataclass(frozen=True)
class Code:
    """A kernel's instructions, and its labels as indices into them."""

    instructions: list[Instruction]
    labels: dict[str, int]

    def target(self, index: int) -> int | None:
        """Where a jump goes; None for what is not one."""
        label = self.instructions[index].target
        return None if label is None else self.labels[label]


@cache
def nvdisasm() -> Path:
    """The disassembler that comes with Triton."""
    from triton.backends.nvidia.compiler import get_ptxas

    return Path(get_ptxas(90).path).parent / "nvdisasm"


def disassemble(cubin: bytes) -> dict[str, Code]:
    """The kernels of a compiled program, by name."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [nvdisasm(), "-hex", "-c", file.name], capture_output=True, text=True, check=True
        )
    return parse(done.stdout)


def parse(listing: str) -> dict[str, Code]:
    """The kernels of `nvdisasm -hex -c`: an instruction's two 64-bit words stand in comments, on two lines."""
    kernels: dict[str, Code] = {}
    code = Code([], {})
    text: str | None = None
    for line in listing.splitlines():
        if found := re.match(r"\.text\.(\w+):", line):
            code = kernels[found[1]] = Code([], {})
        elif found := re.match(r"(\.L_x_\d+):", line):
            code.labels[found[1]] = len(code.instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;?\s*/\* 0x[0-9a-f]{16} \*/", line):
            text = found[1]
        elif text is not None and (found := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)):
            code.instructions.append(_decoded(text, int(found[1], 16)))
            text = None
    return kernels


def _decoded(text: str, high: int) -> Instruction:
    """Bits 41 and up of the upper word: 4 of stall, 1 of yield, 3 and 3 of scoreboards (7: none), 6 to wait for."""
    sets = [(high >> 46) & 7, (high >> 49) & 7]
    jump = re.search(r"\bBRA\S*\s.*?\(?(\.L_x_\d+)", text)
    return Instruction(
        text,
        (high >> 41) & 15,
        (-1 if sets[0] == 7 else sets[0], -1 if sets[1] == 7 else sets[1]),
        (high >> 52) & 63,
        jump[1] if jump else None,
    )


def layer_loop(code: Code) -> tuple[int, int]:
    """First and last instruction of the layer loop: the longest that multiplies matrices and ends in a jump back."""
    loops = []
    for last in range(len(code.instructions)):
        first = code.target(last)
        if first is None or first >= last:
            continue
        body = code.instructions[first : last + 1]
        if any(i.name.startswith(PRODUCTS) for i in body) and not any(i.name == "EXIT" for i in body):
            loops.append((last - first, first, last))
    if not loops:
        raise RuntimeError("the kernel has no loop with matrix products; is it a chain kernel?")
    _, first, last = max(loops)
    return first, last


def longest_way(code: Code, first: int, last: int, trips: int) -> list[Instruction]:
    """The instructions of one turn of a loop, every forward jump as it costs most, polls once.

    trips: how often a loop within that multiplies matrices is run.
    """
    cost = [0.0] * (last + 2)
    choice = [0] * (last + 1)
    for index in range(last, first - 1, -1):
        instruction, target = code.instructions[index], code.target(index)
        ahead = [index + 1]
        if target is not None and index < target <= last:
            ahead = [target, index + 1] if instruction.guarded else [target]
        choice[index] = max(ahead, key=lambda n: cost[n])
        cost[index] = max(instruction.stall, 1) + cost[choice[index]]
    way: list[Instruction] = []
    index = first
    places: dict[int, int] = {}
    while index <= last:
        places[index] = len(way)
        way.append(code.instructions[index])
        target = code.target(index)
        if target is not None and target in places and index != last:
            again = way[places[target] :]
            if any(i.name.startswith(PRODUCTS) for i in again):
                way += again * (trips - 1)
        index = choice[index]
    return way


def _latency(name: str) -> int:
    return next((cycles for pattern, cycles in LATENCY if re.match(pattern, name)), OTHERWISE)


def _wavefronts(name: str) -> int:
    return next((n for prefix, n in WAVEFRONT.items() if name.startswith(prefix)), 0)


def _warpgroup_reads(name: str) -> int:
    """Cycles of shared memory that a warpgroup product takes: a [64, 16] and b [16, N] of two bytes; 0 for others."""
    shape = re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", name)
    return (int(shape[1]) + int(shape[2])) * int(shape[3]) * 2 // 128 if shape else 0


def _marks(way: list[Instruction], turn: int) -> list[int]:
    """Where each part begins, and the next layer's first, as indices into several turns of `turn` instructions."""
    start = next(n for n, i in enumerate(way) if i.name.startswith(PRODUCTS))
    first = start + turn  # of the second turn, when the first has left behind what it does
    marks = [first, 1 + max(n for n in range(first, first + turn) if way[n].name.startswith(PRODUCTS))]
    boards = [n for n in range(first, first + turn) if _awaits_board(way, n)]
    if len(boards) != 2:
        raise RuntimeError(f"a layer has two exchanges, the code has {len(boards)}")
    for board in boards:
        sent = (n for n in range(marks[-1], board) if way[n].name.startswith(("STAS", "STS")))
        marks += [next(sent, board), board, board + 1]
    return [*marks, first + turn]


def _awaits_board(way: list[Instruction], index: int) -> bool:
    """Waits for other blocks' stores: the only waits after which the first-level cache is dropped; or a barrier."""
    name = way[index].name
    if name.startswith("BAR.SYNC"):
        return True
    return "TRYWAIT" in name and any(i.name == "CCTL.IVALL" for i in way[index : index + 4])


@dataclass(frozen=True)
class Layer:
    """cycles: of one layer. parts: they by PARTS. issued: instructions. issue: cycles of their stalls alone."""

    cycles: int
    parts: dict[str, int]
    issued: int
    issue: int


def layer_cycles(code: Code, warps: int, *, exchange: int = EXCHANGE, trips: int = 1) -> Layer:
    """One layer of a chain kernel whose blocks have `warps` warps; `trips` copies bring a layer's weights."""
    turn = longest_way(code, *layer_loop(code), trips)
    way = 3 * turn
    marks = _marks(way, len(turn))
    times = _issue_times(way, warps, exchange)
    lengths = [times[end] - times[begin] for begin, end in itertools.pairwise(marks)]
    stalls = sum(max(i.stall, 1) for i in turn)
    least = -(-warps // SCHEDULERS) * len(turn)
    if least > (total := sum(lengths)):
        lengths = [n * least // total for n in lengths]
    return Layer(sum(lengths), dict(zip(PARTS, lengths, strict=True)), len(turn), stalls)


def _issue_times(way: list[Instruction], warps: int, exchange: int) -> list[int]:
    """The cycle in which each instruction issues, with all that is waited for done before the first."""
    ready = [0] * 6  # when each scoreboard clears
    clock, pipe, special, sent, multiplied = 0, 0, 0, None, 0
    times = []
    for index, i in enumerate(way):
        clock = max([clock, *(ready[b] for b in range(6) if i.waits >> b & 1)])
        times.append(clock)
        if i.name.startswith(("STAS", "STS")):
            sent = clock
        done = clock + _latency(i.name)
        if waves := _wavefronts(i.name):  # all warps of the block are here at about the same time
            pipe = max(pipe, clock) + waves * warps
            done = max(done, pipe + _latency(i.name) - waves)
        if reads := _warpgroup_reads(i.name):
            pipe = max(pipe, clock) + reads * (warps // SCHEDULERS)
            multiplied = pipe + WARPGROUP
        if i.name.startswith("WARPGROUP.DEPBAR"):
            clock = max(clock, multiplied)
        if i.name.startswith("MUFU"):
            special = max(special, clock) + SPECIAL
            done = max(done, special + _latency("MUFU") - SPECIAL)
        if _awaits_board(way, index) and sent is not None:
            landed = sent + exchange
            if i.name.startswith("BAR"):
                clock = max(clock, landed - exchange + 30)
            done, sent = max(done, landed), None
        if i.sets[0] >= 0:
            ready[i.sets[0]] = max(ready[i.sets[0]], done)
        if i.sets[1] >= 0:
            ready[i.sets[1]] = max(ready[i.sets[1]], clock + OPERANDS_READ)
        clock += max(i.stall, 1)
    return times


def table(rows: list[dict[str, Any]]) -> Iterable[str]:
    """Lines of a Markdown table of the rows of layer_cycles.json: parts down, kernels across."""
    yield "| cycles | " + " | ".join(row["kernel"] for row in rows) + " |"
    yield "|---|" + "---|" * len(rows)
    for part in PARTS:
        yield f"| {part} | " + " | ".join(str(row["parts"][part]) for row in rows) + " |"
    low, high = (f"cycles_{exchange}" for exchange in EXCHANGES)
    sums = (f"**{row[low]} to {row[high]}**" for row in rows)
    yield f"| **sum**, an exchange {EXCHANGES[0]} to {EXCHANGES[1]} | " + " | ".join(sums) + " |"
    yield "| instructions | " + " | ".join(str(row["instructions"]) for row in rows) + " |"
    yield "| their stalls alone | " + " | ".join(str(row["stalls"]) for row in rows) + " |"
