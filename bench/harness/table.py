"""Lines and cells of the tables that are made from a result file of bench/throughput.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import results as files
from bench.harness.contestants import BASELINE, CEILING
from bench.harness.results import Row


def load(path: str | Path) -> dict[str, Any]:
    """A result file's contents; ValueError in one sentence when it is none."""
    return files.load(path, "throughput")


def axis(results: dict[str, Any], op: str) -> str:
    """The size that is varied for an op: "depth" or "batch"."""
    return results.get("axes", {}).get(op, "depth")  # older files have depths alone


def groups(results: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """(heading, rows) for each op, mode and precision, in the order measured, without the machine's rates."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in results["rows"]:
        if row["op"] != "matrix_product":
            found.setdefault((row["op"], row["precision"], row["mode"]), []).append(row)
    return [
        (f"{op}, {results['modes'][op][mode]}, {precision}", rows)
        for (op, precision, mode), rows in found.items()
    ]


def rates(results: dict[str, Any]) -> list[str]:
    """One line for each precision: the machine's own matrix-product rate."""
    lines: dict[str, list[str]] = {}
    for row in results["rows"]:
        if row["op"] == "matrix_product" and row["status"] == "measured":
            shape = results["modes"]["matrix_product"][row["mode"]]
            shape = shape.replace("B", str(row["batch"])).replace("W", str(row["width"]))
            lines.setdefault(row["precision"], []).append(f"{shape} {row['gflops_per_s']:.0f}")
    return [
        f"This machine's own matrix products, {p}, GFLOP/s: {'; '.join(parts)}." for p, parts in lines.items()
    ]


def full_header(results: dict[str, Any], rows: list[Row]) -> list[str]:
    """On a CPU, which has neighbours, ratios with their spread; on a GPU the time leads."""
    leading = ["ms (p10-p90)", "x eager"] if _absolute(results) else ["x eager (p10-p90)", "x eager fp32"]
    return [axis(results, rows[0]["op"]), "", *leading, "GFLOP/s", "of products", "peak MB", "less gradients"]


def full_cells(results: dict[str, Any], row: Row) -> list[str]:
    """One contestant's line of the full table."""
    size = str(row[axis(results, row["op"])])
    if row["status"] != "measured":
        return [size, row["label"], row["status"], *["-"] * 5]
    absolute, share, peak = _absolute(results), row["share_of_products"], row["peak_bytes"]
    ratio = _with_spread(row["speed_up"], "{:.2f}".format, not absolute) if row["speed_up"] else "-"
    single = row.get("speed_up_fp32")  # older files have none
    if absolute:
        leading = [_with_spread(row["ms"], _digits, True), ratio]
    else:
        leading = [ratio, _with_spread(single, "{:.2f}".format, True) if single else "-"]
    return [
        size,
        row["label"] + (f" ({row['served_by']})" if row["served_by"] not in ("", "reference") else ""),
        *leading,
        f"{row['gflops_per_s']:.0f}",
        f"{share:.0%}" if share else "-",
        f"{peak / 1e6:.0f}" if peak is not None else "-",
        f"{(peak - row.get('gradient_bytes', 0)) / 1e6:.0f}" if peak is not None else "-",
    ]


def _absolute(results: dict[str, Any]) -> bool:
    return results["environment"]["device"]["kind"] != "cpu"


def _with_spread(value: dict[str, float], write: Callable[[float], str], spread: bool) -> str:
    return write(value["median"]) + (f" ({write(value['p10'])}-{write(value['p90'])})" if spread else "")


def _digits(ms: float) -> str:
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def compact(results: dict[str, Any], rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, lines): a line for each size, a column for each contestant: how many times as fast as eager, and
    on a GPU its time."""
    varied = axis(results, rows[0]["op"])
    labels = list(dict.fromkeys(row["label"] for row in rows))
    absolute = _absolute(results)
    lines = []
    for size in dict.fromkeys(row[varied] for row in rows):
        cells = {row["label"]: _compact_cell(row, absolute) for row in rows if row[varied] == size}
        lines.append([str(size), *(cells.get(label, "-") for label in labels)])
    return [varied, *labels], lines


def _compact_cell(row: Row, absolute: bool) -> str:
    if row["status"] != "measured":
        return row["status"]
    ratio = f"{row['speed_up']['median']:.2f}x" if row["speed_up"] else ""
    if ratio and row["implementation"].startswith("deepres"):
        ratio = f"**{ratio}**"
    if not absolute:
        return ratio or "-"
    ms = _digits(row["ms"]["median"]) + " ms"
    return f"{ms} ({ratio})" if ratio and row["implementation"] not in (BASELINE, CEILING) else ms


def notes(results: dict[str, Any], rows: list[Row]) -> list[str]:
    """Why a contestant has no figure, each reason once."""
    varied = axis(results, rows[0]["op"])
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            found.setdefault(f"{row['label']} {row['status']}: {row['reason']}", []).append(str(row[varied]))
    return [
        f"{varied.capitalize()} {', '.join(dict.fromkeys(sizes))}, {reason}."
        for reason, sizes in found.items()
    ]


def machine(results: dict[str, Any]) -> str:
    """The line under a table: where and when."""
    e = results["environment"]
    load, busy = e["load_average_at_start"], e.get("cores_busy_at_start")  # older files have no such count
    facts = [e["device"]["name"]]
    if e["device"]["kind"] == "cpu":
        facts.append(f"{e['threads']} of {e['cpu']['cores']} threads")
    facts += [f"torch {e['versions'].get('torch', '?')}", f"commit {e['commit']}", e["date"][:10]]
    if e["uncommitted_changes"]:
        facts[-2] += " with uncommitted changes"
    if busy is None and load and load[0] > e["cpu"]["cores"] / 4:
        facts.append(f"on a busy machine (load average {load[0]}): not to be quoted")
    if busy is not None and busy > e["cpu"]["cores"] / 16:
        facts.append(f"on a busy machine (others keep {busy} cores): not to be quoted")
    if not results["complete"]:
        facts.append("stopped early")
    return ", ".join(facts)


def markdown(path: str, results: dict[str, Any], *, full: bool, op: str | None = None) -> str:
    """All tables of one file, the line that says where, and the command that prints them."""
    parts: list[str] = []
    for heading, rows in groups(results):
        if op is not None and rows[0]["op"] != op:
            continue
        header, lines = (
            (full_header(results, rows), [full_cells(results, row) for row in rows])
            if full
            else compact(results, rows)
        )
        fixed = {"depth": f"batch {rows[0]['batch']}, ", "batch": ""}[axis(results, rows[0]["op"])]
        parts += [f"**{heading}**, {fixed}width {rows[0]['width']}", ""]
        parts += [*markdown_lines(header, lines, numbers_first=True), ""]
        parts += [note + "\n" for note in notes(results, rows)]
    options = (" --full" if full else "") + (f" --op {op}" if op else "")
    parts += [line + "\n" for line in rates(results)]
    parts += [f"{machine(results)}. Table: `python bench/table.py {path}{options}`", ""]
    return "\n".join(parts)


def markdown_lines(header: list[str], lines: list[list[str]], *, numbers_first: bool = False) -> list[str]:
    """A Markdown table: the first column's numbers to the right and words elsewhere, or the other way round."""
    first, rest = ("---:", "---") if numbers_first else ("---", "---:")
    rule = [first] + [rest] * (len(header) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]
