"""The commands of `mxext hub`: each asks `vllm_mxext.hub` one question and prints the answer."""
