"""The registry's commands that the project's contract documents, as printed there; models and ports are open."""

ADD_GPT2 = """\
python main.py server add vllm-gpt2 \\
  --endpoint-url "self-hosted" \\
  --model-path "gpt2" \\
  --backend vllm \\
  --tensor-parallel 1
"""
START_GPT2 = "python main.py server start vllm-gpt2"

ADD_LLAMA = """\
python main.py server add vllm-llama \\
  --endpoint-url "self-hosted" \\
  --model-path "meta-llama/Llama-2-7b-chat-hf" \\
  --backend vllm \\
  --tensor-parallel 2 \\
  --max-model-len 4096
"""
START_LLAMA = "python main.py server start vllm-llama"

LESS_MEMORY = """\
python main.py server add model \\
  --backend vllm \\
  --gpu-memory-utilization 0.7
"""
LIST = "python main.py server list"
HEALTH = "curl http://localhost:8000/health"

TESTS = (
    "./examples/test_vllm.py",
    "./examples/test_vllm.py --model vllm-gpt2",
    "./examples/test_vllm.py --port 8080",
    "./examples/test_vllm.py --model my-vllm-model --port 8080",
    "./examples/test_vllm_streaming.py",
    "./examples/test_vllm_streaming.py --model vllm-llama",
    "./examples/test_vllm_streaming.py --port 8080",
    "./examples/test_vllm.py --port 8001",
)

_CHAT = """\
curl -X POST http://localhost:8000/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "gpt2",
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": %s
  }'"""
CHAT = _CHAT % "false"
CHAT_STREAM = _CHAT % "true" + " \\\n  --no-buffer"

REQUESTS = """\
import requests

def chat_with_vllm(prompt: str, stream: bool = True):
    response = requests.post(
        "http://localhost:8000/v1/chat/completions",
        json={
            "model": "gpt2",
            "messages": [{"role": "user", "content": prompt}],
            "stream": stream
        },
        stream=stream
    )

    if stream:
        for line in response.iter_lines():
            if line:
                print(line.decode('utf-8'))
    else:
        print(response.json())
"""

NON_STREAMING_OUTPUT = r"""
={70}
Test: Non-Streaming Chat Completion
Model: \S+
Backend: \S+
Prompt: Write a haiku about artificial intelligence
={70}

Response: (.+\n)+
Metadata:
  Finish Reason: (stop|length)
  Tokens: \d+ prompt \+ \d+ completion = \d+ total
  Time: \d+\.\d\ds
  Tokens/sec: \d+\.\d\d
"""

STREAMING_OUTPUT = r"""
={70}
Model: \S+
Backend: \S+ \(streaming\)
Max Tokens: 150
={70}
User: Tell me a short story about a robot learning to paint
Assistant: (.+\n)+
={70}
Streaming Metrics:
  Total chunks: \d+
  Time to first token \(TTFT\): \d+\.\d{3}s
  Total time: \d+\.\d{3}s
  Generation time: \d+\.\d{3}s
  Avg time per chunk: \d+\.\d{3}s
(  Tok.*\n)*  Finish reason: (stop|length)
={70}
"""
