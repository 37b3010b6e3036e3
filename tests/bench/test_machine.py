"""bench.machine: what a figure was measured on, and what the peer could use there."""

import pytest

from keras_lowbit import ops
from keras_lowbit.bench.machine import litert_instructions, machine


@pytest.mark.parametrize(
    ("cpuinfo", "words"),
    [
        ("processor : 0\nflags\t: fpu avx2 avx512_vnni amx_tile amx_int8", "AMX"),
        ("flags\t: fpu avx2 avx512_vnni", "AVX512-VNNI, no AMX"),
        ("flags\t: avx2 avx_vnni", "AVX-VNNI, no AMX"),
        ("flags\t: sse2", "unknown, no AMX"),
        ("Features\t: fp asimd asimddp i8mm", "i8mm"),
        ("Features\t: fp asimd asimddp", "dot product"),
        ("", "unknown"),
    ],
)
def test_litert_s_instructions_are_the_fastest_of_the_cpu(cpuinfo, words):
    assert litert_instructions(cpuinfo) == words


def test_a_machine_says_them():
    assert machine()["litert_instructions"]


@pytest.mark.skipif(bool(ops.why_not()), reason=f"no compiled library: {ops.why_not()}")
def test_the_ceiling_is_that_of_a_named_instruction():
    """An int8 product costs less than a float32 one wherever there is a loop for both."""
    found = ops.ceilings()
    assert found.products is None or (found.instruction and found.products > found.floats > 0)
    if "x86_avx512vnni" in ops.available_kernels():
        assert found.instruction in ("AVX512-VNNI vpdpbusd", "AVX-VNNI vpdpbusd", "AMX tdpbssd")
