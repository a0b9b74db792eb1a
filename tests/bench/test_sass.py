"""bench/gpu/sass.py: what the compiler wrote into the machine code is read right, and what a layer costs by it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton", reason="the disassembler comes with Triton, which is Linux only")

from bench import layer_cycles
from bench.gpu import sass
from bench.harness.results import KEPT


def word(stall: int, *, sets: int = 7, read: int = 7, waits: int = 0) -> str:
    """The upper word of an instruction: its timing alone."""
    return f"{stall << 41 | sets << 46 | read << 49 | waits << 52:016x}"


def listing(*lines: tuple[str, str] | str) -> str:
    """What `nvdisasm -hex` prints: (instruction, upper word), or a label."""
    text = [".text.kernel:"]
    for line in lines:
        if isinstance(line, str):
            text.append(f"{line}:")
        else:
            text.append(f"        /*0000*/    {line[0]} ;    /* 0x{0:016x} */")
            text.append(f"                   /* 0x{line[1]} */")
    return "\n".join(text)


LAYER = [
    ".L_x_1",
    ("LDS.128 R4, [R2]", word(1, sets=0)),
    ("HMMA.16816.F32.BF16 R8, R4, R6, RZ", word(10, waits=1)),
    ("STAS.64 [R2.64], R8", word(2)),
    ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3", word(1, sets=1)),
    ("@P0 CCTL.IVALL", word(2, waits=2)),
    ("@P1 BRA `(.L_x_2)", word(5)),
    ("FADD R8, R8, R8", word(4)),
    ("FADD R8, R8, R8", word(4)),
    ".L_x_2",
    ("STAS.64 [R2.64], R8", word(2)),
    ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3", word(1, sets=1)),
    ("@P0 CCTL.IVALL", word(2, waits=2)),
    ("@P2 BRA `(.L_x_1)", word(5)),
    ("EXIT", word(5)),
]


def test_timing_is_decoded() -> None:
    code = sass.parse(listing(("@!P3 LDG.E.64 R2, [R4.64]", word(13, sets=2, read=5, waits=0b100001)), "x"))
    (load,) = code["kernel"].instructions
    assert (load.name, load.guarded, load.stall) == ("LDG.E.64", True, 13)
    assert load.sets == (2, 5) and load.waits == 0b100001


def test_a_layer_is_counted_along_its_longest_way() -> None:
    code = sass.parse(listing(*LAYER))["kernel"]
    layer = sass.layer_cycles(code, 4, exchange=100)
    # HMMA 10; each store until the wait is over 100, then 2; the jump not taken 5 + 8; 5 back; the load 1 and its 33
    # cycles less the one, once four warps have shared the memory's 4 wavefronts each
    load = 33 + 4 * 4 - 4
    assert layer.cycles == 10 + 100 + 2 + 5 + 8 + 100 + 2 + 5 + load
    assert layer.issued == 13 - 1 and sum(layer.parts.values()) == layer.cycles
    assert sass.layer_cycles(code, 4, exchange=300).cycles == layer.cycles + 400
    assert sass.layer_cycles(code, 4 * 100, exchange=100).cycles >= 100 * layer.issued


@pytest.mark.parametrize("rows", [16, 32])
def test_warpgroup_products_last_as_long_as_shared_memory_gives_their_operands(rows) -> None:
    one = (f"HGMMA.64x{rows}x16.F32.BF16 R8, gdesc[UR4], RZ", word(1, waits=1))
    wait = ("WARPGROUP.DEPBAR.LE gsb0, 0x0", word(2))
    plain, *swapped = (
        sass.layer_cycles(sass.parse(listing(*LAYER[:2], *products, *LAYER[3:]))["kernel"], 4).cycles
        for products in ([LAYER[2]], [one, wait], [one, one, wait])
    )
    reads = 16 + rows // 4  # of 64 x 16 and 16 x rows elements of two bytes, at 128 bytes a cycle
    assert swapped == [plain - 10 + n * reads + sass.WARPGROUP + 2 for n in (1, 2)]


def test_code_without_exchanges_is_refused() -> None:
    plain = [line for line in LAYER if not str(line[0]).startswith("SYNCS")]
    with pytest.raises(RuntimeError, match="two exchanges, the code has 0"):
        sass.layer_cycles(sass.parse(listing(*plain))["kernel"], 4)
    with pytest.raises(RuntimeError, match="no loop with matrix products"):
        sass.layer_cycles(sass.parse(listing(("EXIT", word(5))))["kernel"], 4)


def test_a_layer_stays_within_its_cycles() -> None:
    """The chains of clusters of 4, width 256, bf16: an estimate, held so that a change that costs cycles is seen."""
    forward, dgrad = layer_cycles.rows(256, "bf16", 4)
    assert forward["cycles_250"] <= 2000 and dgrad["cycles_250"] <= 2500
    kept = {
        (row["kernel"], row["width"], row["precision"], row["cluster"]): row
        for row in json.loads((KEPT / "layer_cycles.json").read_text())["rows"]
    }
    for row in (forward, dgrad):  # made by another version of the compiler perhaps
        assert row["cycles_150"] == pytest.approx(kept[row["kernel"], 256, "bf16", 4]["cycles_150"], rel=0.2)
    assert any(f"**{forward['cycles_150']} to" in line for line in sass.table([forward, dgrad]))
