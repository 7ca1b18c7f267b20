"""llama.cpp's samplers as plain loops over (id, logit) pairs, written after its `src/llama-sampling.cpp`."""

from __future__ import annotations

import math
from collections.abc import Sequence

Candidates = list[tuple[int, float]]
"""(token id, logit), most likely first."""


def candidates(logits: Sequence[float]) -> Candidates:
    """All tokens, most likely first."""
    return sorted(((i, x) for i, x in enumerate(logits) if x != -math.inf), key=lambda pair: (-pair[1], pair[0]))


def softmax(current: Candidates) -> list[float]:
    """Probabilities of the candidates."""
    largest = max(logit for _, logit in current)
    weights = [math.exp(logit - largest) for _, logit in current]
    return [weight / sum(weights) for weight in weights]


def temperature(current: Candidates, value: float) -> Candidates:
    """Divides every logit."""
    return [(token, logit / value) for token, logit in current]


def temperature_ext(current: Candidates, value: float, delta: float, exponent: float) -> Candidates:
    """Dynamic temperature."""
    if len(current) <= 1:
        return current
    coldest, hottest = max(0.0, value - delta), value + delta
    entropy = -sum(p * math.log(p) for p in softmax(current) if p > 0)
    share = entropy / -math.log(1 / len(current))
    return temperature(current, coldest + (hottest - coldest) * share**exponent)


def top_n_sigma(current: Candidates, n: float) -> Candidates:
    """Tokens within n standard deviations of the largest logit."""
    logits = [logit for _, logit in current]
    mean = sum(logits) / len(logits)
    sigma = math.sqrt(sum((logit - mean) ** 2 for logit in logits) / len(logits))
    return [pair for pair in current if pair[1] >= max(logits) - n * sigma]


def typical(current: Candidates, mass: float) -> Candidates:
    """Locally typical tokens."""
    shares = softmax(current)
    entropy = -sum(p * math.log(p) for p in shares)
    order = sorted(range(len(current)), key=lambda i: abs(-math.log(shares[i]) - entropy))
    kept, total = [], 0.0
    for i in order:
        kept.append(current[i])
        total += shares[i]
        if total > mass:
            break
    return sorted(kept, key=lambda pair: (-pair[1], pair[0]))


def xtc(current: Candidates, threshold: float) -> Candidates:
    """What is left when the top choices are excluded, but for the last of them."""
    last = 0
    for i, share in enumerate(softmax(current)):
        if share < threshold:
            break
        last = i
    return current[last:]


def mirostat_1(current: Candidates, mu: float, vocab_size: int, m: int = 100) -> Candidates:
    """The k likeliest tokens, k from the estimated exponent and mu."""
    shares = softmax(current)
    sum_tb = sum_tt = 0.0
    for i in range(min(m - 1, len(current) - 1)):
        t, b = math.log((i + 2) / (i + 1)), math.log(shares[i] / shares[i + 1])
        sum_tb += t * b
        sum_tt += t * t
    s_hat = sum_tb / sum_tt
    epsilon = s_hat - 1
    k = ((epsilon * 2**mu) / (1 - vocab_size**-epsilon)) ** (1 / s_hat)
    return current[: max(int(k), 1)]


def mirostat_2(current: Candidates, mu: float) -> Candidates:
    """Tokens whose surprise does not exceed mu; at least one."""
    kept = []
    for pair, share in zip(current, softmax(current), strict=True):
        if -math.log2(share) > mu:
            break
        kept.append(pair)
    return kept or current[:1]


def mirostat_next(current: Candidates, token: int, mu: float, tau: float, eta: float) -> float:
    """mu after a token has been drawn from what was left."""
    share = softmax(current)[[one for one, _ in current].index(token)]
    return mu - eta * (-math.log2(share) - tau)


def dry(
    tokens: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    last_n: int,
    breakers: Sequence[Sequence[int]],
) -> dict[int, float]:
    """Token -> its penalty; the lengths of repetitions are counted one by one instead of with the Z-algorithm."""
    window = list(tokens if last_n < 0 else tokens[-last_n:])
    if last_n == 0 or len(window) <= allowed_length:
        return {}
    newest_first = window[::-1]
    limit = len(window)
    for i, token in enumerate(newest_first):
        longest = -1
        for head, *tail in breakers:
            matches = all(j < i and newest_first[i - j - 1] == one for j, one in enumerate(tail))
            if head == token and matches:
                longest = max(longest, len(tail))
        if longest >= 0:
            limit = i - longest
            break
    if limit < allowed_length:
        return {}
    repeats: dict[int, int] = {}
    for k in range(1, len(window)):
        n = 0
        while n + k < len(window) and newest_first[n] == newest_first[n + k]:
            n += 1
        n = min(n, limit)
        if n >= allowed_length:
            token = newest_first[k - 1]
            repeats[token] = max(repeats.get(token, 0), n)
    single = {breaker[0] for breaker in breakers if len(breaker) == 1}
    return {t: multiplier * base ** (n - allowed_length) for t, n in repeats.items() if t not in single}
