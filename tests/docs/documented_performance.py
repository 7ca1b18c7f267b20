"""The commands and the layout that the project's contract documents for the performance tester, as printed there."""

BASIC = """\
# Test with default prompts
python -m vllm_mxext.tools.performance_tester --model your_model_name

# Test with custom prompts file
python -m vllm_mxext.tools.performance_tester --model your_model_name --prompts-file prompts.txt

# Test with concurrent requests
python -m vllm_mxext.tools.performance_tester --model your_model_name --concurrent-requests 4

# Test with custom parameters
python -m vllm_mxext.tools.performance_tester \\
  --model your_model_name \\
  --max-tokens 200 \\
  --temperature 0.8 \\
  --concurrent-requests 8 \\
  --stream
"""

RUN_CONFIG = """\
python -m vllm_mxext.tools.performance_config_runner performance_config.yaml
"""

HELP = """\
python -m vllm_mxext.tools.performance_tester --help

Required Arguments:
  --model MODEL            Model name to test

Optional Arguments:
  --server-url URL         Server URL (default: http://0.0.0.0:8000)
  --prompts-file FILE      File containing prompts (one per line)
  --num-prompts N          Number of default prompts to use (default: 10)
  --max-tokens N           Maximum tokens per response (default: 100)
  --temperature FLOAT      Temperature for generation (default: 0.7)
  --concurrent-requests N  Number of concurrent requests (default: 1)
  --stream                 Use streaming responses (default: True)
  --no-stream             Disable streaming responses
  --log-dir DIR           Directory to save log files (default: /opt/mim/log)
  --no-save               Don't save results to file
  --save-individual       Save individual request metrics
"""

HIGH_CONCURRENCY = """\
python -m vllm_mxext.tools.performance_tester \\
  --model llama-2-7b-chat \\
  --concurrent-requests 16 \\
  --num-prompts 50 \\
  --max-tokens 200 \\
  --save-individual
"""

CUSTOM_PROMPTS = """\
# Create prompts file
echo "Explain quantum computing" > test_prompts.txt
echo "Write a Python function" >> test_prompts.txt
echo "Describe machine learning" >> test_prompts.txt

# Run test
python -m vllm_mxext.tools.performance_tester \\
  --model llama-2-7b-chat \\
  --prompts-file test_prompts.txt \\
  --concurrent-requests 4
"""

NO_STREAM = """\
python -m vllm_mxext.tools.performance_tester \\
  --model llama-2-7b-chat \\
  --no-stream \\
  --concurrent-requests 8 \\
  --max-tokens 150
"""

SCRIPT = """\
# Direct script execution
python scripts/performance_test.py --model your_model_name --concurrent-requests 4
"""

CONFIG = """\
# performance_config.yaml
server:
  url: "http://0.0.0.0:8000"
  model: "llama-2-7b-chat"

test_params:
  max_tokens: 150
  temperature: 0.7
  concurrent_requests: 4
  stream: true

prompts:
  - "What is artificial intelligence?"
  - "Explain machine learning concepts."
  - "Write a story about robots."

output:
  log_dir: "/opt/mim/log"
  save_individual_metrics: true
  console_output: true
"""

BLOCK = """\
================================================================================
PERFORMANCE TEST RESULTS
================================================================================

Test Summary:
  Total Requests: 10
  Total Tokens: 1,250
  Prompt Tokens: 150
  Completion Tokens: 1,100
  Test Duration: 15.45s
  Overall Throughput: 80.91 tokens/s

Time to First Token (TTFT):
  Mean: 0.245s
  Median: 0.230s
  P95: 0.380s
  P99: 0.420s
  Min: 0.180s
  Max: 0.450s

Time Per Output Token (TPOT):
  Mean: 0.012s
  Median: 0.011s
  P95: 0.018s
  P99: 0.020s
  Min: 0.008s
  Max: 0.025s

End-to-End Latency:
  Mean: 1.545s
  Median: 1.520s
  P95: 2.100s
  P99: 2.250s
  Min: 1.200s
  Max: 2.300s

Throughput (tokens/s):
  Mean: 80.91
  Median: 82.15
  P95: 95.20
  P99: 98.50
  Min: 65.30
  Max: 105.80
================================================================================

Results saved to: /opt/mim/log/mim_profile_20241201_143022.log
"""

CHINESE_BLOCK = """\
================================================================================
性能测试结果
================================================================================

测试摘要:
  总请求数: 10
  总Token数: 1,250
  提示Token数: 150
  完成Token数: 1,100
  测试持续时间: 15.45s
  总体吞吐量: 80.91 tokens/s

首个Token时间 (TTFT):
  均值: 0.245s
  中位数: 0.230s
  P95: 0.380s
  P99: 0.420s
  最小值: 0.180s
  最大值: 0.450s

每个输出Token时间 (TPOT):
  均值: 0.012s
  中位数: 0.011s
  P95: 0.018s
  P99: 0.020s
  最小值: 0.008s
  最大值: 0.025s

端到端延迟:
  均值: 1.545s
  中位数: 1.520s
  P95: 2.100s
  P99: 2.250s
  最小值: 1.200s
  最大值: 2.300s

吞吐量 (tokens/s):
  均值: 80.91
  中位数: 82.15
  P95: 95.20
  P99: 98.50
  最小值: 65.30
  最大值: 105.80
================================================================================

结果已保存到: /opt/mim/log/mim_profile_20241201_143022.log
"""

CHINESE_PROMPTS = """\
# 创建提示词文件
echo "解释量子计算" > test_prompts.txt
echo "写一个Python函数" >> test_prompts.txt
echo "描述机器学习" >> test_prompts.txt

# 运行测试
python -m vllm_mxext.tools.performance_tester \\
  --model llama-2-7b-chat \\
  --prompts-file test_prompts.txt \\
  --concurrent-requests 4
"""
