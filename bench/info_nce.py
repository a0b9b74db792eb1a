"""InfoNCE, loss and gradients, fused against plain PyTorch: `python bench/throughput.py --op info_nce`.

Contestants, forward + backward of the "norm" energy in the "forward" form, penalty 0.1:

    fused      deepres.info_nce
    matmul     |x|^2 + |y|^2 - 2 x.y by one matrix product, clamped, square root (also under torch.compile)
    cdist      torch.cdist as it comes (also under torch.compile)
    broadcast  (phi[:, None] - psi[None]).norm(dim=-1), as the published code writes it. Its [B, B, d] tensors
               soon exceed the memory; it then goes through as many rows at a time as fit in 4 GB, gradients
               added up: less work for the memory and the same arithmetic

Each is checked against float64 before it is timed; those that are timed take turns. A form whose memory would
not fit, or that would take too long, is reported as such. Peak memory counts what a call holds above its
inputs, gradients included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the folder above holds `bench`, and `deepres` where it is not installed
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from bench import environment, timing
from deepres.kernels import info_nce

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES = (256, 512, 2048, 8192)
PENALTY = 0.1
BROADCAST_BYTES = 4 * 2**30
SLOW_S = 5.0  # a call that takes longer is timed once
TOLERANCE = 1e-3  # of a wrong formula, not of rounding: the product form loses digits by nature

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def loss_of(logits: Tensor, first: int = 0) -> Tensor:
    """The loss of some rows' logits [R, B], summed; row r's own goal is first + r."""
    lse = logits.logsumexp(dim=1)
    return (lse - logits.diagonal(first)).sum() + PENALTY * (lse + 1e-6).square().sum()


def matmul(phi: Tensor, psi: Tensor) -> Tensor:
    square = phi.square().sum(1)[:, None] + psi.square().sum(1)[None] - 2 * phi @ psi.T
    return loss_of(-square.clamp_min(1e-12).sqrt()) / len(phi)


def cdist(phi: Tensor, psi: Tensor) -> Tensor:
    return loss_of(-torch.cdist(phi, psi)) / len(phi)


def fused(phi: Tensor, psi: Tensor) -> Tensor:
    return info_nce(phi, psi, logsumexp_penalty=PENALTY)[0]


def gradients(loss_function: Callable[[Tensor, Tensor], Tensor]) -> Step:
    def step(phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = loss_function(phi, psi)
        return loss.detach(), *torch.autograd.grad(loss, (phi, psi))

    return step


def broadcast(phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows_at_a_time(*phi.shape)
    if rows >= len(phi):
        return gradients(lambda phi, psi: loss_of(-(phi[:, None] - psi[None]).norm(dim=-1)) / len(phi))(
            phi, psi
        )
    loss, dpsi, dphi = torch.zeros(()), torch.zeros_like(psi), []
    for start in range(0, len(phi), rows):
        some = phi[start : start + rows].detach().requires_grad_()
        part = loss_of(-(some[:, None] - psi[None]).norm(dim=-1), start) / len(phi)
        dsome, more = torch.autograd.grad(part, (some, psi))
        loss = loss + part.detach()
        dphi.append(dsome)
        dpsi += more
    return loss, torch.cat(dphi), dpsi


def rows_at_a_time(batch: int, width: int) -> int:
    """Of the broadcast form, which holds the differences and two tensors of their size in backward."""
    return max(1, min(batch, BROADCAST_BYTES // (3 * 4 * batch * width)))


def contestants(compile_too: bool) -> dict[str, Step]:
    steps = {"fused": gradients(fused), "matmul": gradients(matmul), "cdist": gradients(cdist)}
    if compile_too:
        steps["matmul compiled"] = gradients(torch.compile(matmul, dynamic=False))
        steps["cdist compiled"] = gradients(torch.compile(cdist, dynamic=False))
    return steps | {"broadcast": broadcast}


def inputs(batch: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    phi, noise = (torch.randn(batch, width, generator=generator) for _ in range(2))
    psi = phi + 0.3 * noise  # as in training: a row's own goal is nearer than the others
    return phi.to(device).requires_grad_(), psi.to(device).requires_grad_()


def worst_error(step: Step, phi: Tensor, psi: Tensor) -> float:
    """Of loss, dphi and dpsi, relative to the largest of each, against float64 differences."""
    wide = [t.detach().double().requires_grad_() for t in (phi, psi)]
    logits = -torch.cdist(*wide, compute_mode="donot_use_mm_for_euclid_dist")
    loss = loss_of(logits) / len(phi)
    truth = (loss.detach(), *torch.autograd.grad(loss, wide))
    results = step(phi, psi)
    return max(
        ((r.double() - t).abs().max() / t.abs().max()).item() for r, t in zip(results, truth, strict=True)
    )


def needed_bytes(name: str, batch: int) -> int:
    """Roughly what a form must hold: the materialised ones keep [B, B] tensors, seven of them unless compiled."""
    if name in ("fused", "broadcast"):
        return 0
    return (4 if "compiled" in name else 8) * 4 * batch * batch


def free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return environment.memory_bytes("MemAvailable") or 2**62


def run(
    batches: list[int], width: int, device: str, seconds: float, compile_too: bool, limit: float = 60.0
) -> list[dict[str, Any]]:
    """One row for each contestant and batch: {"name", "batch", "status", "ms", "speedup", "peak_bytes", ...}.

    ms: median, p10, p90, min, runs. speedup: of the fused form over this one, turn by turn.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        rows += run_batch(batch, width, device, seconds, compile_too, limit)
    return rows


def run_batch(
    batch: int, width: int, device: str, seconds: float, compile_too: bool, limit: float
) -> list[dict[str, Any]]:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    phi, psi = inputs(batch, width, device)
    few = inputs(min(batch, 1024), width, device)
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    first_call: dict[str, float] = {}
    for name, step in contestants(compile_too).items():
        row: dict[str, Any] = {
            "op": "info_nce",
            "name": name,
            "batch": batch,
            "width": width,
            "device": device,
        }
        rows[name] = row
        if needed_bytes(name, batch) > free_bytes(device):
            needed = needed_bytes(name, batch) / 2**30
            row |= {"status": "does not fit", "why": f"it would hold {needed:.0f} GB or more"}
            continue
        row["worst_error"] = worst_error(step, *few)
        start = time.perf_counter()
        step(*few)
        wait()
        estimate = (time.perf_counter() - start) * (batch / len(few[0])) ** 2
        if not row["worst_error"] < TOLERANCE:
            row |= {"status": "refused", "why": f"worst error {row['worst_error']:.3g} against float64"}
            continue
        if name == "broadcast" and estimate > limit:
            row |= {"status": "not run", "why": f"one call takes an estimated {estimate:.0f} s; see --limit"}
            continue
        if name == "broadcast" and rows_at_a_time(batch, width) < batch:
            row["rows_at_a_time"] = rows_at_a_time(batch, width)
        row["status"] = "measured"
        for _ in range(2 if name.endswith("compiled") else 1):  # the first builds
            start = time.perf_counter()
            step(phi, psi)
            wait()
            first_call[name] = time.perf_counter() - start
        steps[name] = step
    turns = {
        name: (lambda step=step, name=name: timing.turn(lambda: step(phi, psi), wait, first_call[name]))
        for name, step in steps.items()
        if first_call[name] < SLOW_S
    }
    seen: dict[str, list[list[float]]] = {n: [[t]] for n, t in first_call.items() if n not in turns}
    rounds = timing.rounds_for([first_call[name] for name in turns], seconds)
    for name, _, turn in timing.interleave(turns, rounds, seconds):
        seen.setdefault(name, []).append(turn)
    for name, own in seen.items():
        values = timing.spread([1000 * s for turn in own for s in turn])
        turn_by_turn = own if len(own) == len(seen["fused"]) else own * len(seen["fused"])
        rows[name] |= {"ms": values, "speedup": timing.ratio(turn_by_turn, seen["fused"])}
        if name in turns:
            rows[name]["peak_bytes"] = timing.peak_bytes(lambda name=name: steps[name](phi, psi), device)
    return list(rows.values())


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'batch':>6}  {'form':16} {'ms':>10} {'p10-p90':>17}  {'fused is':>9}  {'peak MB':>8}  worst error"
    )
    for row in rows:
        line = f"{row['batch']:6}  {row['name']:16} "
        if row["status"] != "measured":
            print(line + f"{row['status']}: {row['why']}")
            continue
        ms, peak = row["ms"], row.get("peak_bytes")
        between = f"{ms['p10']:.2f}-{ms['p90']:.2f}" if ms["runs"] > 1 else "one call"
        memory = "" if peak is None else f"{peak / 2**20:.0f}"
        note = f"  ({row['rows_at_a_time']} rows at a time)" if "rows_at_a_time" in row else ""
        print(
            line + f"{ms['median']:10.2f} {between:>17}  {row['speedup']['median']:8.2f}x  {memory:>8}"
            f"  {row['worst_error']:.1e}{note}"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="info_nce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batch", nargs="+", type=int, default=list(BATCHES), help="default: %(default)s")
    add("--width", type=int, default=64, help="features (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads (default: PyTorch's own choice)")
    add("--seconds", type=float, default=5.0, help="timed seconds for a batch (default: %(default)s)")
    add("--limit", type=float, default=60.0, help="longest call, in s (default: %(default)s)")
    add("--compile", action="store_true", help="torch.compile as well")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes")
    arguments = parser.parse_args(argv)
    if min([*arguments.batch, arguments.width]) < 1 or not arguments.seconds > 0:
        parser.error("--batch, --width and --seconds must be greater than 0")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    head = {
        "kind": "deepres info_nce",
        "command": command(argv),
        "environment": environment.describe(arguments.device),
    }
    rows = run(
        arguments.batch,
        arguments.width,
        arguments.device,
        arguments.seconds,
        arguments.compile,
        arguments.limit,
    )
    show(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"info_nce_{arguments.device}.json"
    path.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}")
    return 1 if any(row["status"] == "refused" for row in rows) else 0


def command(argv: list[str] | None) -> str:
    given = sys.argv[1:] if argv is None else argv
    return " ".join(["python bench/throughput.py --op info_nce", *given])


if __name__ == "__main__":
    sys.exit(main())
