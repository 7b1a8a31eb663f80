from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    cxx_standard: int
    flags: str
    machine: str
    cuda_archs: str
    cxx11_abi: bool

def build_info() -> BuildInfo: ...
