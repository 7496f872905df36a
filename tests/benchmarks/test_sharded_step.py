"""The demonstration of sharded Muon runs under torchrun and prints what the optimizer sends."""

import os
import re
import subprocess
import sys
from pathlib import Path

from lichen.machine.precision import matmul_dtype

ROOT = Path(__file__).parents[2]


def test_two_processes_print_the_bytes_of_a_step() -> None:
    torchrun = "torch.distributed.run --standalone --local-addr=127.0.0.1 --nproc-per-node=2"
    done = subprocess.run(
        [sys.executable, "-m", *torchrun.split(), "-m", "benchmarks.sharded_step", "--steps=1"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    sent = {
        recipe: float(megabytes)
        for recipe, megabytes in re.findall(r"^(\w+).* optimizer ([\d.]+) MB", done.stdout, re.MULTILINE)
    }
    # By rows over two ranks a matrix of n entries costs (4 + 2) n / 2, without bf16 products (4 + 4) n / 2;
    # experts and AdamW's parameters nothing.
    # A layer has q_a, q_b, kv_a, kv_b and o in its attention,
    # then three dense, or three shared, matrices and a router.
    attention = 64 * 128 + 192 * 64 + 48 * 128 + 256 * 32 + 128 * 128
    entries = 4 * attention + 3 * 352 * 128 + 3 * (3 * 64 * 128 + 8 * 128)
    assert sent["adamw"] == 0.0
    assert sent["moonlight"] == round((4 + matmul_dtype("cpu").itemsize) / 2 * entries / 1e6, 2)
