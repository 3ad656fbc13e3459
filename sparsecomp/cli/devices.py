"""`sparsecomp devices`"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from sparsecomp.cache import cache_folder
from sparsecomp.cli.answer import answer, at_work, table
from sparsecomp.cli.options import Json, Quiet, Threads
from sparsecomp.host import usable_cores, versions_of

PACKAGES = ("sparsecomp", "torch", "apache-tvm", "transformers", "onnxruntime", "openvino")


def devices(threads: Threads = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Describe this machine, and say for which devices kernels were measured and tuned."""
    with at_work(quiet):
        host, known = this_host(), measured()
    facts = [
        f"processor    {host['processor']} ({host['llvm_name']})",
        f"vectors      {host['lanes']} float32 lanes, {host['registers']} registers",
        f"GPUs         {', '.join(host['gpus']) or 'none that PyTorch sees'}",
        f"threads      {host['threads']} in use, {host['cores']} cores usable",
        f"cache        {host['cache']}",
        "software     " + ", ".join(f"{name} {number}" for name, number in host["versions"].items()),
    ]
    rows = [
        {
            "measured for": entry["device"] + " (this machine)" * entry["here"],
            "threads": entry["threads"],
            "software": "as installed" if entry["current"] else entry["versions"],
            "kernels": entry["kernels"],
            "tuned calls": entry["tuned"],
            "last": entry["last"],
        }
        for entry in known
    ]
    rest = (
        f"\n\n{table(rows, ('threads', 'kernels', 'tuned calls'))}"
        if rows
        else "\n\nnothing was measured yet"
    )
    answer("\n".join(facts) + rest, {"host": host, "measured": known}, as_json)


def this_host() -> dict[str, Any]:
    """What the compiler knows of this machine."""
    from sparsecomp.codegen.machine import cpu_model, machine_of
    from sparsecomp.target import Target

    machine = machine_of(Target())
    return {
        "processor": cpu_model(),
        "llvm_name": machine.cpu,
        "lanes": machine.lanes,
        "registers": machine.registers,
        "gpus": gpus(),
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "cache": str(cache_folder()),
        "versions": versions_of(PACKAGES),
    }


def gpus() -> list[str]:
    """PyTorch's CUDA devices: "NVIDIA H200 (sm_90, 132 multiprocessors)"."""
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{p.name} (sm_{p.major}{p.minor}, {p.multi_processor_count} multiprocessors)" for p in found]


def measured() -> list[dict[str, Any]]:
    """Per device, number of threads and versions of the software: what the database holds."""
    from sparsecomp.cli.database import read_database
    from sparsecomp.codegen.machine import machine_of
    from sparsecomp.codegen.timings import device_of, versions
    from sparsecomp.target import Target

    here, now = device_of(machine_of(Target())), versions()
    kernels: Counter[tuple[str, int, str]] = Counter()
    tuned: Counter[tuple[str, int, str]] = Counter()
    last: dict[tuple[str, int, str], str] = {}
    for record in read_database().latest:
        setting = (record.key.device, record.key.threads, record.key.versions)
        kernels[setting] += record.kind == "best"
        tuned[setting] += record.kind == "search"
        last[setting] = max(last.get(setting, ""), record.date)
    return [
        {
            "device": device,
            "here": device == here,
            "threads": threads,
            "versions": installed,
            "current": installed == now,
            "kernels": kernels[device, threads, installed],
            "tuned": tuned[device, threads, installed],
            "last": last[device, threads, installed],
        }
        for device, threads, installed in sorted(last)
    ]
