"""The formulas of `definitions.py` in Chinese, under the same names."""

from __future__ import annotations

from collections.abc import Mapping

CHINESE_FORMULAS: Mapping[str, Mapping[str, str]] = {
    "own": {
        "TTFT": "第一个含文本的事件到达的时刻 - 起点；没有流式响应时不存在",
        "origin": "请求有时间表时为计划时刻（没有协同遗漏），否则为发送时刻",
        "time of sending": "请求写入连接之前的一刻；建立新连接的时间计入",
        "E2E": "回答结束的时刻 - 起点",
        "TPOT": "(E2E - TTFT) / (输出Token数 - 1)；只有一个Token或没有流式响应时不存在",
        "chunk gap": "含文本的事件到达的时刻 - 前一个到达的时刻；除第一个外每个事件一个值",
        "token gap": "数据块间隔 / 该事件的Token数，每个Token一次；"
        "除非服务器说明每个事件的Token数，或事件数与Token数相同，否则不存在",
        "output tokens": "usage.completion_tokens；否则由分词器对文本计数；绝不使用事件数",
        "request throughput": "请求的输出Token数 / (回答结束 - 发送时刻)",
        "duration": "最后一个被测回答的结束 - 测量的开始（预热之后第一个请求的发送）",
        "output tokens/s": "所有被测回答的输出Token数 / 持续时间；失败的请求不计Token，但计时间",
        "total tokens/s": "(提示Token数 + 所有被测回答的输出Token数) / 持续时间",
        "requests/s": "被测回答数 / 持续时间",
        "send lag": "发送时刻 - 计划时刻",
        "steady window": "从并发达到全部请求数时（有时间表时：从第一个回答结束时）且不早于测量开始，"
        "到最后一个请求发送为止；"
        "延迟取在其中发送的请求，Token按其在其中到达计数，包括此前发送的请求的Token",
        "goodput": "满足所有限值的回答数 / 持续时间，以及它们占所有被测请求的比例；只有一个Token时任何TPOT都满足；"
        "没有流式响应时以 E2E 代替 TTFT",
        "percentile": "最近两个值之间的线性插值",
        "knee": "按并发扫描：输出 tokens/s（有稳定区间时取其中的值）"
        "不低于该级别及所有更高级别的中位数的 90% 的最低级别；"
        "按速率扫描：在稳定区间内，回答结束的速度与请求发送的速度相差不超过 5% 的最高速率（更低的速率也都如此）；"
        "最高级别仍未使服务器饱和时为未达到",
        "comparison": "两侧各块均值之比：两台服务器的各轮次成对比较，或两次测试的连续各段；延迟取每块的中位数；"
        "区间：对块做 bootstrap（块少时按 Hesterberg 放宽百分位），每个指标各自为 95%",
    },
    "vllm": {
        "origin": "总是发送时刻，有时间表时也一样",
        "TTFT": "第一个含 choice 的事件到达的时刻 - 起点，即使它没有文本，例如只有角色",
        "E2E": "最后一个含 choice 的事件到达的时刻 - 起点；usage 和流的结束在其后",
        "chunk gap": "所有含 choice 的事件之间，包括没有文本的事件（vLLM 称为 ITL）",
        "duration": "有时间表且没有预热时，从时间表的开始算起，早于第一个请求的计划时刻",
        "goodput": "只有一个Token时 TPOT 为 0",
    },
    "guidellm": {
        "origin": "总是请求写入连接的时刻，不含建立连接的时间",
        "TPOT": "(最后一个含文本的事件，没有流式响应时为回答的结束 - 起点) / 输出Token数：包括第一个Token；"
        "按输出Token数加权",
        "token gap": "(最后一个 - 第一个含文本的事件) / (输出Token数 - 1)，每个请求一个值，按首个之后的Token数加权"
        "（guidellm 称为 ITL）",
        "percentile": "延迟和间隔：至少有这么多权重不超过它的最低值",
        "goodput": "TPOT 的限值与 Token间隔 比较；没有测得值的请求不计入比例",
    },
}
"""Whose definitions -> name -> formula."""
