"""The client's examples that the project's contract documents, as printed there; addresses and names are open."""

from tests.docs.documented_lora import SDK

MODEL = "meta-llama/Llama-2-7b-chat-hf"
IMPORT = "from ipfs_accelerate_py.api_backends.vllm import VllmClient"

CLIENT = """\
from ipfs_accelerate_py.api_backends.vllm import VllmClient

# Initialize client with configuration
client = VllmClient(
    api_key="your_api_key",
    base_url="http://localhost:8000",
    max_retries=3,
    max_concurrent_requests=10,
    failure_threshold=5
)

# Run inference with priority levels
result = client.run_inference(
    model_id="meta-llama/Llama-2-7b-chat-hf",
    inputs="What is machine learning?",
    parameters={"temperature": 0.7, "max_tokens": 100},
    priority=0  # 0=HIGH, 1=NORMAL, 2=LOW
)

# Get metrics
metrics = client.get_metrics()
"""

PRIORITIES = """\
result = client.run_inference(model_id="meta-llama/Llama-2-7b-chat-hf", inputs=prompt, priority=0)
result = client.run_inference(model_id="meta-llama/Llama-2-7b-chat-hf", inputs=prompt, priority=1)
result = client.run_inference(model_id="meta-llama/Llama-2-7b-chat-hf", inputs=prompt, priority=2)
"""

BATCHING = """\
# Enable batching (on by default)
client.batch_enabled = True
client.max_batch_size = 8
client.batch_timeout = 0.1  # 100ms

# Make requests that will be automatically batched
results = []
for i in range(10):
    # These will be batched together for better throughput
    results.append(client.run_inference("meta-llama/Llama-2-7b-chat-hf", input_prompts[i]))
"""

STATE = """\
# Get current metrics
metrics = client.get_metrics()

# Check circuit breaker state
print(f"Circuit state: {client.circuit_state}")
print(f"Failure count: {client.failure_count}")

# Check queue status
print(f"Queue enabled: {client.queue_enabled}")
print(f"Queue length: {len(client.request_queue)}")
print(f"Active requests: {client.current_requests}")

# Access recent request history
print(f"Recent requests: {len(client.recent_requests)}")
client.circuit_state = "CLOSED"
metrics = client.get_metrics(reset=True)
"""

HANDLERS = """\
handler = vllm.create_vllm_endpoint_handler_with_params(
    "http://localhost:8000",
    model="meta-llama/Llama-2-7b-chat-hf",
    parameters={"temperature": 0.7}
)
handler = vllm.create_vllm_endpoint_handler_with_params(
    "http://localhost:8000",
    model="meta-llama/Llama-2-7b-chat-hf",
    parameters={"batch_size": 8}
)
result = vllm.format_request_with_params(
    handler,
    "Tell me about machine learning",
    {"temperature": 0.7, "max_tokens": 100}
)
result = vllm.format_structured_request(
    handler,
    {
        "prompt": "Tell me about machine learning",
        "context": "I'm a beginner in AI",
        "options": {"return_logprobs": True}
    }
)
"""

BATCHES = """\
results = vllm.process_batch(
    "http://localhost:8000",
    ["Tell me about Python", "Explain machine learning", "What is deep learning?"],
    "meta-llama/Llama-2-7b-chat-hf"
)
results = vllm.process_batch_with_params(
    "http://localhost:8000",
    ["Tell me about Python", "Explain machine learning", "What is deep learning?"],
    "meta-llama/Llama-2-7b-chat-hf",
    {"temperature": 0.7, "max_tokens": 100}
)
results, metrics = vllm.process_batch_with_metrics(
    "http://localhost:8000",
    ["Tell me about Python", "Explain machine learning", "What is deep learning?"],
    "meta-llama/Llama-2-7b-chat-hf"
)
"""

MODELS = """\
info = vllm.get_model_info("http://localhost:8000", "meta-llama/Llama-2-7b-chat-hf")
stats = vllm.get_model_statistics("http://localhost:8000", "meta-llama/Llama-2-7b-chat-hf")
result = vllm.optimize_model(
    "http://localhost:8000",
    "meta-llama/Llama-2-7b-chat-hf",
    optimization_type="speed"
)
result = vllm.optimize_model(
    "http://localhost:8000",
    "meta-llama/Llama-2-7b-chat-hf",
    optimization_type="memory"
)
result = vllm.optimize_model(
    "http://localhost:8000",
    "meta-llama/Llama-2-7b-chat-hf",
    optimization_type="balanced"
)
"""

ENDPOINTS = """\
endpoint1 = client.create_endpoint(
    api_key="key1",
    max_concurrent_requests=5,
    max_retries=3
)

endpoint2 = client.create_endpoint(
    api_key="key2",
    max_concurrent_requests=10,
    max_retries=5
)

result = client.make_request_with_endpoint(
    endpoint_id=endpoint1,
    data=input_prompt,
    model="meta-llama/Llama-2-7b-chat-hf"
)

stats = client.get_stats(endpoint_id=endpoint1)
all_stats = client.get_stats()
"""

SDK_USAGE = """\
client = VllmMxextClient()
client.load_lora("math_tuned", "/path/to/math_adapter")
result = client.chat_with_lora("math_tuned", [
    {"role": "user", "content": "Solve: 2x + 5 = 13"}
])
print(json.dumps(result, indent=2))
"""

RUNNER = (
    "python generators/models/test_vllm_unified.py --standard",
    "python generators/models/test_vllm_unified.py --performance",
    "python generators/models/test_vllm_unified.py --real",
    "python generators/models/test_vllm_unified.py --all",
    "python generators/models/test_vllm_unified.py --all --model meta-llama/Llama-2-7b-chat-hf "
    "--api-url http://vllm-server:8000 --timeout 60",
)

HEALTH = "curl http://localhost:8000/health"
MODEL_INFORMATION = "curl http://localhost:8000/model"
GENERATE = """\
curl -X POST http://localhost:8000/generate \\
    -H "Content-Type: application/json" \\
    -d '{"prompt": "Hello, world!", "max_tokens": 20}'"""
CHAT = """\
curl -X POST http://localhost:8000/v1/chat/completions \\
    -H "Content-Type: application/json" \\
    -d '{
      "model": "meta-llama/Llama-2-7b-chat-hf",
      "messages": [{"role": "user", "content": "Hello, world!"}],
      "max_tokens": 20
    }'"""
ADAPTERS = "curl http://0.0.0.0:8000/v1/lora_adapters"

SDK_CLASS = SDK.partition("client = ")[0]
