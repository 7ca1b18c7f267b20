"""The LoRA commands that the project's contract documents, as printed there; paths and addresses are open."""

START_WITH_CONFIG = "python scripts/start_with_lora.py --model /path/to/base/model --lora-config lora_config.yaml"

LORA_CONFIG = """\
# LoRA Configuration
base_model:
  model_path: "/path/to/base/model"
  model_name: "llama-2-7b-chat"

lora_adapters:
  - name: "math_tuned"
    path: "/path/to/lora/math_adapter"
    format: "huggingface"
    description: "LoRA adapter for mathematical reasoning"

  - name: "code_tuned"
    path: "/path/to/lora/code_adapter"
    format: "huggingface"
    description: "LoRA adapter for code generation"

lora_settings:
  max_lora_rank: 64
  max_loras: 8
  enable_dynamic_loading: true
  cache_size: 4

auto_load:
  - "math_tuned"
"""

WRITE_CUSTOM_CONFIG = """\
# Create custom LoRA config
cat > my_lora_config.yaml << EOF
base_model:
  model_path: "/models/llama-2-7b"
  model_name: "llama-2-7b"

lora_adapters:
  - name: "custom_adapter"
    path: "/lora_adapters/my_custom_adapter"
    format: "huggingface"

lora_settings:
  max_lora_rank: 128
  max_loras: 16
  enable_dynamic_loading: true
EOF
"""

STARTS = (
    "python scripts/start_with_lora.py --model /path/to/base/model --host 0.0.0.0 --port 8000",
    "python scripts/start_with_lora.py --model /path/to/base/model --lora-config examples/lora_config_example.yaml",
    "python scripts/start_with_lora.py --model /models/llama-2-7b --lora-config my_lora_config.yaml",
)

LIMITS = """\
# Set LoRA environment variables
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=true
export VLLM_MAX_LORA_RANK=128
export VLLM_MAX_LORAS=16
export MIM_MAX_GPU_LORAS=16
"""
START_WITH_LIMITS = "python -m vllm_mxext.entrypoints.openai.api_server --model /models/llama-2-7b"

LOAD = """\
curl -X POST http://0.0.0.0:8000/v1/load_lora_adapter \\
  -H "Content-Type: application/json" \\
  -d '{
    "lora_name": "math_tuned",
    "lora_path": "/path/to/math_lora_adapter"
  }'
"""
LIST = "curl http://0.0.0.0:8000/v1/lora_adapters"
UNLOAD = """\
curl -X POST http://0.0.0.0:8000/v1/unload_lora_adapter \\
  -H "Content-Type: application/json" \\
  -d '{
    "lora_name": "math_tuned"
  }'
"""
CHAT = """\
curl -X POST http://0.0.0.0:8000/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "base_model:math_tuned",
    "messages": [
      {"role": "user", "content": "Solve this equation: 2x + 5 = 13"}
    ],
    "max_tokens": 150,
    "temperature": 0.7
  }'
"""
COMPLETE = """\
curl -X POST http://0.0.0.0:8000/v1/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "base_model:code_tuned",
    "prompt": "def fibonacci(n):",
    "max_tokens": 200
  }'
"""

MANAGER = "python -m vllm_mxext.tools.lora_manager"
MANAGER_LOAD = f"{MANAGER} load math_tuned /path/to/math_lora_adapter"
MANAGER_LIST = f"{MANAGER} list"
MANAGER_TEST = f'{MANAGER} test math_tuned "What is the derivative of x^2?"'
MANAGER_UNLOAD = f"{MANAGER} unload math_tuned"
MANAGER_OF_ANOTHER = f"{MANAGER} --server-url http://your-server:8000 list"

SDK = '''\
#!/usr/bin/env python3
import requests
import json

class VllmMxextClient:
    def __init__(self, base_url="http://0.0.0.0:8000"):
        self.base_url = base_url.rstrip('/')

    def load_lora(self, lora_name: str, lora_path: str):
        """Load a LoRA adapter"""
        response = requests.post(
            f"{self.base_url}/v1/load_lora_adapter",
            json={"lora_name": lora_name, "lora_path": lora_path}
        )
        return response.json()

    def chat_with_lora(self, lora_name: str, messages: list):
        """Chat using LoRA adapter"""
        response = requests.post(
            f"{self.base_url}/v1/chat/completions",
            json={
                "model": f"base_model:{lora_name}",
                "messages": messages,
                "max_tokens": 150
            }
        )
        return response.json()

# Usage
client = VllmMxextClient()
client.load_lora("math_tuned", "/path/to/math_adapter")
result = client.chat_with_lora("math_tuned", [
    {"role": "user", "content": "Solve: 2x + 5 = 13"}
])
print(json.dumps(result, indent=2))
'''

# --- as vLLM documents it; `vllm` is `mxext` here, and `from vllm` is `from vllm_mxext` ---

ALLOW = "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
SNAPSHOT = "models--yard1--llama-2-7b-sql-lora-test/snapshots/0dfa347e8877a4d4ed19ee56c140fa518470028c/"
SERVE_LORA_MODULES = f"""\
mxext serve meta-llama/Llama-2-7b-hf \\
    --enable-lora \\
    --lora-modules sql-lora=$HOME/.cache/huggingface/hub/{SNAPSHOT}"""
MODULE_AS_JSON = (
    """--lora-modules '{"name": "sql-lora", "path": "/path/to/lora", "base_model_name": "meta-llama/Llama-2-7b"}'"""
)

ASK_SQL = """\
curl http://localhost:8000/v1/completions \\
    -H "Content-Type: application/json" \\
    -d '{
        "model": "sql-lora",
        "prompt": "San Francisco is a",
        "max_tokens": 7,
        "temperature": 0
    }' | jq
"""
LOAD_SQL = """\
curl -X POST http://localhost:8000/v1/load_lora_adapter \\
-H "Content-Type: application/json" \\
-d '{
    "lora_name": "sql_adapter",
    "lora_path": "/path/to/sql-lora-adapter"
}'
"""
UNLOAD_SQL = """\
curl -X POST http://localhost:8000/v1/unload_lora_adapter \\
-H "Content-Type: application/json" \\
-d '{
    "lora_name": "sql_adapter"
}'
"""
MODELS = "curl http://localhost:8000/v1/models"

_ASK = "[user] Write a SQL query to answer the question based on the table schema.\\n\\n context: CREATE TABLE"
_NAME = "question: Name the ICAO for lilongwe international airport [/user] [assistant]"
_WHAT = "question: When Anchero Pantaleone was the elector what is under nationality? [/user] [assistant]"
OFFLINE = f"""\
from vllm_mxext import LLM, SamplingParams
from vllm_mxext.lora.request import LoRARequest

llm = LLM(model="meta-llama/Llama-2-7b-hf", enable_lora=True)

sql_lora_path = "/path/to/sql-lora-adapter"

sampling_params = SamplingParams(
    temperature=0,
    max_tokens=256,
    stop=["[/assistant]"]
)

prompts = [
     "{_ASK} table_name_74 (icao VARCHAR, airport VARCHAR)\\n\\n {_NAME}",
     "{_ASK} table_name_11 (nationality VARCHAR, elector VARCHAR)\\n\\n {_WHAT}",
]

outputs = llm.generate(
    prompts,
    sampling_params,
    lora_request=LoRARequest("sql_adapter", 1, sql_lora_path)
)
"""
