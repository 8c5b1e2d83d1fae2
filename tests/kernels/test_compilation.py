"""The kernels compile to machine code of an H200, on any machine."""

from typing import Any

import pytest

ALIGNED = [["tt.divisibility", 16]]
"""What Triton notes of a pointer that torch allocated, and of a number that 16 divides."""


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compiles a kernel for sm_90 with arguments of these types; a value in place of a type is a constant."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_(kernel: Any, arguments: dict[str, Any], **options: int) -> dict[str, Any]:
        constants = {name: value for name, value in arguments.items() if not isinstance(value, str)}
        types = {name: "constexpr" if name in constants else value for name, value in arguments.items()}
        attributes = {(i,): ALIGNED for i, value in enumerate(types.values()) if value.startswith("*")}
        assert list(types) == kernel.arg_names
        source = ASTSource(kernel, types, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm

    return compile_


@pytest.mark.slow
@pytest.mark.parametrize("rate_stride", [0, 1])
@pytest.mark.parametrize("precision_stride", [0, 1])
def test_the_step_compiles_and_rounds_as_torch_does(rate_stride, precision_stride, compiled):
    from bora_sweep.kernels.adam import BLOCK, proximal_adam

    pointers = dict.fromkeys(("bank", "gradient", "moment", "square", "rate", "precision"), "*fp32")
    counts = dict.fromkeys(("rows", "columns"), "i32")
    names = ("lr", "one_minus_beta1", "beta2", "one_minus_beta2", "correction1", "correction2", "eps")
    constants = {"RATE_STRIDE": rate_stride, "PRECISION_STRIDE": precision_stride, "BLOCK": BLOCK}
    asm = compiled(proximal_adam, pointers | counts | dict.fromkeys(names, "fp32") | constants)
    assert asm["cubin"]
    assert "sqrt.rn.f32" in asm["ptx"]
    assert "approx" not in asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("with_error", [False, True])
@pytest.mark.parametrize(("dtype", "rounding"), [("fp32", None), ("bf16", "cvt.rn.bf16"), ("fp16", "cvt.rn.f16")])
@pytest.mark.parametrize("block", [16, 4096])
def test_the_loss_compiles_and_rounds_its_error(block, dtype, rounding, with_error, compiled):
    from bora_sweep.kernels.cross_entropy import cross_entropy

    arguments: dict[str, Any] = {
        "logits": "*fp32", "target": "*i64", "nats": "*fp32", "error": f"*{dtype}", "columns": "i32",
        "logits_stride": "i32", "error_stride": "i32", "WITH_ERROR": with_error, "BLOCK": block,
    }  # fmt: skip
    asm = compiled(cross_entropy, arguments, num_warps=8)
    assert asm["cubin"]
    assert rounding is None or (rounding in asm["ptx"]) == with_error
