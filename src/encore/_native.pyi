from typing import Literal, TypedDict

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    cxx_standard: int
    flags: str
    machine: str
    cuda_archs: str

def build_info() -> BuildInfo: ...
def cpu_isa(t: int = ..., i: int = ..., o: int = ..., /) -> Literal["amx", "avx512", "avx2", "portable"]: ...
