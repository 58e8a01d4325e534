"""What ptxas makes of the kernels, for cards that need not be here."""

MACHINE_CODE = """
import importlib, json, os, re, subprocess, sys, tempfile
from pathlib import Path
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
INTEGERS = {"row_stride", "grad_row_stride", "rows", "columns", "tile_rows", "ignore_index", "first_column",
            "weight_row_stride", "weight_column_stride", "hidden_row_stride", "hidden_column_stride", "vocabulary"}
HALF = {"weight", "bias", "unit", "coefficients"}
ALIGNED = {"row_stride", "weight_row_stride"}

def kind(name, half):
    if name in INTEGERS: return "i32"
    if name in ("scale", "softcap"): return "fp32"
    if name == "targets": return "*i64"
    return "*bf16" if name in half else "*fp32"

def machine_code(module, name, constants, half, aligned, capability, **options):
    # The assembly, and the bytes of shared memory that a program takes.
    kernel = getattr(importlib.import_module("mdpo_kernels." + module), name)
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else kind(n, half) for n in names}
    fixed = {(names.index(n),): value for n, value in constants.items()}
    hints = {(names.index(n),): [["tt.divisibility", 16]] for n in names if signature[n][0] == "*" or n in aligned}
    compiled = triton.compile(ASTSource(kernel, signature, fixed, hints), target=GPUTarget("cuda", capability, 32),
                              options={"num_warps": 8, **options})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True)
    return done.stdout, compiled.metadata.shared
"""
