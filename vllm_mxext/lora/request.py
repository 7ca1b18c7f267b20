"""`LoRARequest` where programs written for vLLM look for it."""

from vllm_mxext.requests import LoRARequest

__all__ = ["LoRARequest"]
