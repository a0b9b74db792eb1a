"""The microbenchmarks of bench/gpu/micro.cu: how each is launched, and what its cycles come to."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.harness.results import Row
from deepres.kernels import cuda_program

SOURCE = str(Path(__file__).resolve().parent / "micro.cu")
KB = 1024
ALWAYS = ("micro_copy", "micro_products_1", "micro_products_2", "micro_products_4")
IN_CLUSTERS = ("micro_exchange", "micro_barrier")
WARPGROUP = ("micro_warpgroup_16", "micro_warpgroup_32")
CLUSTERS = (2, 4, 8)
CHAIN_BYTES = (78_336, 111_616)  # shared memory of a chain kernel's block: 76.5 and 109 KB


def program(
    cluster: int = 1, words: int = 2, acquire: bool = True, warpgroup: bool = False
) -> cuda_program.Program:
    macros = {"MICRO_CLUSTER": cluster, "MICRO_WORDS": words, "MICRO_ACQUIRE": int(acquire)}
    macros["MICRO_WARPGROUP"] = int(warpgroup)
    kernels = ALWAYS + (IN_CLUSTERS if cluster > 1 else ()) + (WARPGROUP if warpgroup else ())
    return cuda_program.Program(SOURCE, tuple(macros.items()), kernels)


def spent(
    program: cuda_program.Program, kernel: str, blocks: int, shared: int, *arguments: Any
) -> tuple[float, float]:
    """(cycles, nanoseconds) of the median block, the second time that it runs."""
    device = torch.device("cuda", 0)
    out = torch.zeros(blocks, 2, dtype=torch.int64, device=device)
    loaded = cuda_program.load_program(program, device)
    for _ in range(2):
        loaded.launch(kernel, (blocks, 1), 128, shared, out, *arguments)
    torch.cuda.synchronize()
    cycles, nanoseconds = (statistics.median(column) for column in out.T.tolist())
    return cycles, nanoseconds


def copies() -> list[Row]:
    """GB/s into one SM's shared memory by bulk copies, four in flight: alone, all over the same bytes, each its own."""
    processors = cuda_program.device_facts(torch.device("cuda", 0)).processors
    source = torch.zeros(processors * 64 * KB + 128 * KB, dtype=torch.uint8, device="cuda")
    rows, repeats = [], 4000
    for size in (2 * KB, 4 * KB, 8 * KB):
        for where, blocks, stride, span in (
            ("one SM, 128 KB", 1, 0, 128 * KB),
            ("all SMs, the same 128 KB", processors, 0, 128 * KB),
            ("all SMs, 64 KB each", processors, 64 * KB, 64 * KB),
        ):
            asked = (source, stride, span, size, repeats)
            cycles, ns = spent(program(), "micro_copy", blocks, 4 * size + 64, *asked)
            rate = {"gb_s": size * repeats / ns, "bytes_per_cycle": size * repeats / cycles}
            rows.append({"what": f"bulk copies, {where}", "bytes": size, "blocks": blocks, **rate})
    return rows


def exchanges() -> list[Row]:
    """Microseconds from a store to every block of the cluster until all their stores have come, by words and waits."""
    rows, repeats = [], 2000
    for cluster in CLUSTERS[:2]:
        for words in (2, 4):
            for acquire in (True, False):
                for posts in (1, 8):
                    for blocks in (cluster, 128 // cluster * cluster):
                        asked = (
                            program(cluster, words, acquire),
                            "micro_exchange",
                            blocks,
                            0,
                            posts,
                            repeats,
                        )
                        rows.append(
                            {
                                "what": "st.async to all of a cluster, and back",
                                "cluster": cluster,
                                "words": words,
                            }
                            | {"acquire_cluster": acquire, "posts": posts, "blocks": blocks}
                            | _each(spent(*asked), repeats)
                        )
    return rows


def barriers() -> list[Row]:
    """Of a barrier of all of a cluster's threads."""
    repeats = 2000
    return [
        {"what": "barrier of a cluster", "cluster": cluster, "blocks": blocks}
        | _each(spent(program(cluster), "micro_barrier", blocks, 0, repeats), repeats)
        for cluster in CLUSTERS
        for blocks in (cluster, 128 // cluster * cluster)
    ]


def products() -> list[Row]:
    """Of mma.sync m16n8k16 in bf16, four warps to a block, a warp's products in 1, 2 or 4 chains; on sm_90 of a layer
    where operands are swapped (16 warpgroup products and their wait), too."""
    repeats = 10_000
    rows = [
        {"what": "mma.sync, dependent", "chains": chains}
        | _each(spent(program(), f"micro_products_{chains}", 1, 0, repeats), chains * repeats)
        for chains in (1, 2, 4)
    ]
    if cuda_program.device_facts(torch.device("cuda", 0)).capability == (9, 0):
        own = program(warpgroup=True)
        rows += [
            {"what": "wgmma, a layer of width 256, operands swapped", "rows": count}
            | _each(spent(own, f"micro_warpgroup_{count}", 1, 56 * KB, repeats), repeats)
            for count in (16, 32)
        ]
    return rows


def clusters() -> list[Row]:
    """How many clusters the device holds at once, by the shared memory of a block (the driver's own count)."""
    from cuda.bindings import driver

    rows = []
    for cluster in CLUSTERS:
        loaded = cuda_program.load_program(program(cluster), torch.device("cuda", 0))
        for shared in CHAIN_BYTES:
            function = driver.CUfunction(loaded.address("micro_barrier"))
            status, count = driver.cuOccupancyMaxActiveClusters(function, launch_of(cluster, shared))
            held = {"clusters": int(count)} if int(status) == 0 else {"failed": str(status)}
            rows.append({"what": "clusters at once", "cluster": cluster, "shared_bytes": shared, **held})
    return rows


def launch_of(cluster: int, shared: int) -> Any:
    """A launch of clusters of 128-thread blocks, as the driver is asked about it."""
    from cuda.bindings import driver

    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = cluster, 1, 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 128, 1, 1
    config.sharedMemBytes = shared
    config.attrs, config.numAttrs = [attribute], 1
    return config


def _each(spent: tuple[float, float], repeats: int) -> Row:
    cycles, nanoseconds = spent
    return {"cycles": cycles / repeats, "us": nanoseconds / repeats * 1e-3}


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "copies": copies,
    "products": products,
    "barriers": barriers,
    "exchanges": exchanges,
    "clusters": clusters,
}


class Desk:
    """What a child can be asked."""

    def __init__(self, threads: int | None):
        pass

    def measure(self, name: str) -> list[Row]:
        return BENCHMARKS[name]()
