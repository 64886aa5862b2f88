"""What glibc does with freed memory, counted in page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(("kept", "faults"), [("", range(100_000, 400_000)), ("all_of_it=True", range(30_000))])
def test_arrays_of_any_size_are_used_again_where_all_is_kept(kept: str, faults: range) -> None:
    """Twelve blocks of 64 MiB one after the other: 16 384 page faults each, or for the first one only."""
    code = (
        "import resource; from slice3d.allocator import keep_freed_memory\n"
        f"keep_freed_memory({kept})\n"
        "def seen(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "start = seen()\n"
        "for _ in range(12): block = b'x' * (64 << 20); del block\n"
        "print(seen() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) in faults
