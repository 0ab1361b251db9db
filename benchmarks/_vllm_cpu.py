"""What vLLM's build for CPUs needs on a small machine: environment variables and engine arguments."""

import os

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
ENGINE = {
    "enforce_eager": True,
    "block_size": 32,
    "gpu_memory_utilization": 0.1,
    "distributed_executor_backend": "uni",
}


def set_environment() -> None:
    """Set what is not set yet; to be called before torch or vllm is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
