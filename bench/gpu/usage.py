"""What one compiled kernel asks of a GPU, read from its assembly, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

# The shared memory that one block may use, in bytes (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TARGETS = tuple(SHARED_LIMIT)


class Usage(NamedTuple):
    """What one compiled kernel asks of the machine."""

    threads: int  # of a block
    registers: int  # of a thread
    spill_stores: int  # bytes of a thread, anywhere in the kernel
    spill_loads: int
    loop_spills: int  # spill instructions in the stretches of code that multiply matrices
    shared: int  # bytes of a block


def read_usage(log: str, assembly: str, *, shared: int, threads: int) -> Usage:
    """From the log of `ptxas -v` and the listing of `nvdisasm` for one kernel; shared: its dynamic part."""
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if spills is None or registers is None:
        raise RuntimeError(f"ptxas must report registers and spills (-v), got\n{log}")
    static = re.search(r"(\d+) bytes smem", log)
    return Usage(
        threads,
        int(registers[1]),
        int(spills[1]),
        int(spills[2]),
        loop_spills(assembly),
        shared + (int(static[1]) if static else 0),
    )


def loop_spills(assembly: str) -> int:
    """Loads and stores of local memory in the stretches of code, from jump to jump, with matrix products."""
    stretches = re.split(r"^\s*\.L_x_\d+:|\bBRA\b", assembly, flags=re.MULTILINE)
    products = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b")
    return sum(len(re.findall(r"\b(?:LDL|STL)\b", code)) for code in stretches if products.search(code))


def complaints(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for each row whose kernel asks for more than its target has, or spills among the products.

    A row that does not tell where its spills are must have none at all.
    """
    lines = []
    for row in rows:
        wrong = []
        if row.get("loop_spills", row["spill_stores"]):
            wrong.append(f"spills {row['spill_stores']} bytes")
        if row["shared"] > row["shared_limit"]:
            wrong.append(f"takes {row['shared']} bytes of shared memory, {row['shared_limit']} are there")
        if row["registers"] * row.get("threads", 0) > 65536:
            wrong.append(f"takes {row['registers']} registers for each of {row['threads']} threads")
        if wrong:
            usage = {*Usage._fields, "shared_limit", "stack", "stages"}
            name = " ".join(f"{field}={value}" for field, value in row.items() if field not in usage)
            lines.append(f"{name}: {'; '.join(wrong)}")
    return lines
