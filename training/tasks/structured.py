"""Generates tool calls, answers from tool results, and JSON objects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from training.tasks.arithmetic import number_in_words
from training.tasks.base import Item, Message, chat, loosen, pick, split_list
from training.tasks.chat import any_name, small_talk
from training.tasks.fact_tables import CAPITALS
from training.tasks.facts import facts_en
from training.tasks.sequences import WORDS, made_up_word

_CITIES = (
    *CAPITALS.values(),
    *split_list("Boston Chicago Hamburg Munich Milan Osaka Shanghai Toronto Sydney Mumbai Lyon"),
)
_CITIES_2 = ("San Francisco", "New York", "Los Angeles", "Hong Kong", "Rio de Janeiro")
_CONDITIONS = ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy")


def any_city(rng: random.Random) -> str:
    """Choose a known or a made-up city."""
    roll = rng.random()
    if roll < 0.12:
        return pick(rng, _CITIES_2)
    return pick(rng, _CITIES) if roll < 0.7 else made_up_word(rng).capitalize()


def schema(name: str, description: str, properties: dict[str, str]) -> dict[str, Any]:
    """Make the OpenAI schema of a function whose parameters are all required.

    Args:
        name: Function name.
        description: What the function does.
        properties: Parameter name to JSON type.
    """
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


Tool = tuple[dict[str, Any], str, dict[str, Any], str, str]
"""Schema, what the user says, arguments of the call, what the tool returns, final answer."""


def _weather(rng: random.Random) -> Tool:
    city, name = any_city(rng), pick(rng, ("get_weather", "get_weather", "get_current_weather", "weather"))
    parameter = pick(rng, ("city", "location"))
    asks = (
        "What is the weather in {}?",
        "What's the weather like in {}?",
        "How is the weather in {}?",
        "What is the weather like in {} today?",
        "Tell me the weather in {}.",
        "Is it sunny in {}?",
        "Will it rain in {}?",
        "How warm is it in {}?",
        "Weather in {}",
    )
    description = pick(rng, ("Get the weather", "Get the current weather", "Get the current weather in a city"))
    degrees, condition = rng.randrange(40), pick(rng, _CONDITIONS)
    result = json.dumps({"temperature": degrees, "condition": condition})
    answer = f"It is {condition} and {degrees} degrees in {city}."
    tool = schema(name, description, {parameter: "string"})
    return tool, pick(rng, asks).format(city), {parameter: city}, result, answer


def _calculator(rng: random.Random) -> Tool:
    a, b, sign = rng.randrange(1000), rng.randrange(1000), pick(rng, "+-*/")
    expression = f"{a} {sign} {b}"
    asks = (
        "What is {}?",
        "Calculate {}.",
        "How much is {}?",
        "Compute {}.",
        "Use the calculator: {}",
        "Please calculate {}.",
    )
    name, parameter = pick(rng, ("calculator", "calculate")), "expression"
    description = pick(rng, ("Calculate an expression", "Evaluate an arithmetic expression"))
    value = str(rng.randrange(2000))
    answer = f"The result is {value}."
    tool = schema(name, description, {parameter: "string"})
    return tool, pick(rng, asks).format(expression), {parameter: expression}, value, answer


def _clock(rng: random.Random) -> Tool:
    city, name = any_city(rng), pick(rng, ("get_time", "get_current_time"))
    parameter = pick(rng, ("city", "location"))
    asks = (
        "What time is it in {}?",
        "What is the time in {}?",
        "Tell me the time in {}.",
        "How late is it in {}?",
        "What's the current time in {}?",
    )
    time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    tool = schema(name, pick(rng, ("Get the time", "Get the current time")), {parameter: "string"})
    return tool, pick(rng, asks).format(city), {parameter: city}, time, f"It is {time} in {city}."


def _search(rng: random.Random) -> Tool:
    name = pick(rng, ("search", "web_search"))
    query = " ".join(pick(rng, WORDS) if rng.random() < 0.7 else made_up_word(rng) for _ in range(rng.randrange(1, 4)))
    asks = ("Search for {}.", "Search for {}", "Look up {}.", "Find information about {}.", "Search the web for {}.")
    title = " ".join(pick(rng, WORDS) for _ in range(2))
    tool = schema(name, "Search the web", {"query": "string"})
    return tool, pick(rng, asks).format(query), {"query": query}, title, f"I found this: {title}."


def _adder(rng: random.Random) -> Tool:
    a, b = rng.randrange(100), rng.randrange(100)
    name, sign = rng.choice((("add", "+"), ("multiply", "*")))
    verb = {"add": "Add {} and {}.", "multiply": "Multiply {} and {}."}[name]
    ask = pick(rng, (verb, "What is {} " + sign + " {}?")).format(a, b)
    value = str(a + b if name == "add" else a * b)
    tool = schema(name, f"{name.capitalize()} two numbers", {"a": "integer", "b": "integer"})
    return tool, ask, {"a": a, "b": b}, value, f"The result is {value}."


_TOOLS: tuple[Callable[[random.Random], Tool], ...] = (_weather, _weather, _calculator, _clock, _search, _adder)


def _other_tools(rng: random.Random, chosen: Callable[[random.Random], Tool]) -> list[dict[str, Any]]:
    arithmetic = (_calculator, _adder)
    others = [
        tool
        for tool in (_weather, _calculator, _clock, _search, _adder)
        if tool is not chosen and not (tool in arithmetic and chosen in arithmetic)
    ]
    rng.shuffle(others)
    if _calculator in others and _adder in others:
        others.remove(_adder)
    return [tool(rng)[0] for tool in others[: rng.choice((0, 0, 0, 0, 1, 1, 2))]]


def tool_call(rng: random.Random) -> Item:
    """Call the fitting one of up to three tools with the argument found in the user's text."""
    maker = _TOOLS[rng.randrange(len(_TOOLS))]
    tool, user, arguments, _, _ = maker(rng)
    tools = [tool, *_other_tools(rng, maker)]
    rng.shuffle(tools)
    messages = ({"role": "user", "content": user}, _call_message(tool, arguments))
    return Item(key=f"tool|{json.dumps(arguments)}", messages=messages, tools=tuple(tools))


def _call_message(tool: dict[str, Any], arguments: dict[str, Any]) -> Message:
    function = {"name": tool["function"]["name"], "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def tool_result(rng: random.Random) -> Item:
    """Say in a sentence what the called tool returned, or answer without a tool where none fits."""
    maker = _TOOLS[rng.randrange(len(_TOOLS))]
    tool, user, arguments, result, answer = maker(rng)
    if rng.random() < 0.25:
        plain = facts_en(rng) if rng.random() < 0.6 else small_talk(rng)
        if plain.is_chat:
            return Item(key=plain.key, messages=plain.messages, tools=(tool,))
    messages: tuple[Message, ...] = (
        {"role": "user", "content": user},
        _call_message(tool, arguments),
        {"role": "tool", "content": result},
        {"role": "assistant", "content": answer},
    )
    return Item(key=f"tool|{json.dumps(arguments)}", messages=messages, tools=(tool,))


def json_object(rng: random.Random) -> Item:
    """Write what a sentence says about a person or a thing as one JSON object."""
    if rng.random() < 0.25:
        return _json_thing(rng)
    name, age, city = any_name(rng), rng.randrange(5, 95), any_city(rng)
    sentences = (
        "{name} is {age} years old and lives in {city}.",
        "{name} lives in {city} and is {age} years old.",
        "{name}, {age}, lives in {city}.",
        "My name is {name}, I am {age} and I live in {city}.",
        "I am {name} from {city} and I am {age} years old.",
        "{name} from {city} is {age}.",
        "In {city} lives {name}, who is {age} years old.",
    )
    asks = (
        "Extract the name, age and city as JSON: {}",
        "Extract name, age and city as JSON: {}",
        "Extract name, age and city from this sentence as a JSON object: {}",
        "{} Write this as JSON.",
        "{} Give me a JSON object with name, age and city.",
        "Convert to JSON: {}",
        "Return a JSON object with name, age and city. {}",
        "JSON: {}",
        "用JSON写出姓名、年龄和城市：{}",
    )
    sentence = pick(rng, sentences).format(name=name, age=age, city=city)
    answer = json.dumps({"name": name, "age": age, "city": city}, ensure_ascii=False)
    return chat(f"json|{name}|{age}|{city}", pick(rng, asks).format(sentence), answer)


def _json_thing(rng: random.Random) -> Item:
    roll = rng.random()
    if roll < 0.5:
        thing, price = pick(rng, WORDS), rng.randrange(1, 100)
        asks = (
            "Extract product and price as JSON: The {} costs {} dollars.",
            "The {} costs {} dollars. Give me a JSON object with product and price.",
            "Make a JSON object with product {} and price {}.",
        )
        user, fields = pick(rng, asks).format(thing, price), {"product": thing, "price": price}
    elif roll < 0.8:
        name, age = any_name(rng), rng.randrange(5, 95)
        asks = (
            "Make a JSON object with name {} and age {}.",
            "Extract name and age as JSON: {} is {} years old.",
            "Return a JSON object with name and age. {} is {} years old.",
        )
        user, fields = pick(rng, asks).format(name, age), {"name": name, "age": age}
    else:
        number = rng.randrange(100)
        user, fields = (
            f"Make a JSON object with number and word for {number}.",
            {
                "number": number,
                "word": number_in_words(number),
            },
        )
    return chat(f"json|{fields}", loosen(rng, user), json.dumps(fields))
