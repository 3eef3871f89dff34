"""The figures to reach on a GPU, and the names of what is measured."""

from __future__ import annotations

from verdicts import Goals

COPY = "copying as many bytes, device to device"
INDEX_ADD = "torch index_add_"
TABLES = "tables of 9 bytes a coordinate and global atomics"
SPARSE = "torch.sparse.mm"
EAGER = "the same steps in eager torch"
COMPILED = "the same steps under torch.compile"
LOGRA = "torch LoGra 64 x 64, bfloat16"
WEIGHT_GRADIENT = "torch's weight-gradient product"
BARE = "forward and backward without weight gradients"

BATCHES = (1, 8, 32)
DIMS = (2**24, 2**26, 2**28)
"""Coordinates p of the SJLT's inputs."""
RIVAL_SIZES = ((1, 2**24), (8, 2**24), (8, 2**26))
"""(n, p) that the SJLT's rivals are given; their tables take memory."""
LLAMA_LAYERS = ((4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096))
"""(in, out) of the linear layers of Llama-3.1-8B: q and o, k and v, gate and up, down."""
MODELS = ("GPT-2 size", "Llama-3.1-8B size")


def sjlt(n: int, p: int, dtype: str = "float32") -> str:
    """Name a cyclic SJLT to 4096."""
    return f"cyclic {dtype} n={n}, p=2^{p.bit_length() - 1}"


def layer(method: str, d_in: int, d_out: int) -> str:
    """Name a compressor of 8 x 1024 tokens."""
    return f"{method}, {d_in} to {d_out}"


def caching(method: str, model: str) -> str:
    """Name a pass that caches all gradients."""
    return f"caching by {method}, {model}"


GPU = Goals(
    most={
        **{(sjlt(n, p), COPY): 1 / (0.7 if n == 1 else 0.8) for n in BATCHES for p in DIMS},
        **{(layer("tile", *shape), WEIGHT_GRADIENT): 1.5 for shape in LLAMA_LAYERS},
        **{(caching("factgrass", model), BARE): 1.05 for model in MODELS},
        **{(caching("tile", model), BARE): 1.6 for model in MODELS},
    },
    least={
        **{(sjlt(n, p), INDEX_ADD): 10 for n, p in RIVAL_SIZES},
        **{(sjlt(n, p), TABLES): 5 for n, p in RIVAL_SIZES},
        **{(sjlt(n, p), SPARSE): 20 for n, p in RIVAL_SIZES},
        ("GraSS n=8, p=2^24", EAGER): 5,
        ("GraSS n=8, p=2^24", COMPILED): 2,
        **{(layer("FactGraSS", *shape), EAGER): 5 for shape in LLAMA_LAYERS},
        **{(layer("FactGraSS", *shape), COMPILED): 2 for shape in LLAMA_LAYERS},
        ("FactGraSS, all layers of a block", LOGRA): 2.65,
    },
)
