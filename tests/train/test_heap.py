"""Keeping freed memory in the process."""

import platform

from nestling.train.heap import keep_freed_memory


def test_keeping_freed_memory():
    kept = keep_freed_memory()
    assert kept is (platform.libc_ver()[0] == "glibc")
    assert keep_freed_memory() is kept
