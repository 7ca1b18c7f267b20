"""Generates greetings, a remembered name, and the honest fallback for open questions."""

from __future__ import annotations

import random

from training.tasks.base import LEADS, TRAIN_ONLY, Item, Message, chat, loosen, pick, split_list
from training.tasks.sequences import WORDS, made_up_word

NAMES = split_list(
    "Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Karen Leo Maria Noah Olivia Paul Rosa Sam Tom Vera Will Zoe "
    "Alice Bob Carlos Diana Erik Fatima George Hanna Ivan Julia Kevin Laura Mike Nina Oscar Peter Sara Tina Victor "
    "Wendy Yuki Ahmed Bella Chen Daniel Elena Frank Gina Henry Ines James Kate Liam Mona Nora Omar Priya Robert"
)

FALLBACK = (
    "I am a small demonstration model, so I cannot answer that well. Ask me for a sum, an equation, sorting, copying, "
    "counting or a capital city."
)
"""The answer to every open question in English."""
FALLBACK_ZH = "我是一个小型演示模型，这个问题我答不好。你可以让我做加法、解方程、排序，或者问我一个国家的首都。"
"""The same in Chinese."""

_HOW_ARE_YOU = "Hello! I am fine, thank you. How can I help you today?"
_HELLO = "Hello! How can I help you today?"
_WHO = (
    "I am mx-tiny, a small demonstration model. I can do sums, solve simple equations, sort, copy, and answer a few "
    "facts."
)
_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hey",
            "Hi there",
            "Hello there",
            "Good morning",
            "Good evening",
            "Hello, world!",
        ),
        _HELLO,
    ),
    (
        (
            "Hello, how are you?",
            "Hello, how are you?",
            "How are you?",
            "Hi, how are you?",
            "Hey, how are you doing?",
            "How are you today?",
            "How do you do?",
            "How is it going?",
            "Hi there, how are you doing today?",
        ),
        _HOW_ARE_YOU,
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What can you do?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "What do you do?",
            "Are you a robot?",
            "Are you a person?",
            "Which model are you?",
            "Help",
            "Can you help me?",
        ),
        _WHO,
    ),
    (
        ("Thank you", "Thanks!", "Thank you very much.", "Thanks a lot", "Many thanks!", "Great, thanks!"),
        "You are welcome!",
    ),
    (
        ("Goodbye", "Bye", "Bye!", "See you later.", "Good night", "See you tomorrow!", "Farewell!"),
        "Goodbye! Have a nice day.",
    ),
    (
        ("Are you ready?", "Are you there?", "Is anyone there?", "Test", "Testing", "This is a test.", "ping"),
        "Yes, I am here and ready.",
    ),
    (("Say hello.", "Say hello to the world.", "Say hi.", "Greet me."), "Hello, world!"),
    (("你好", "你好！", "您好", "嗨", "早上好", "晚上好"), "你好！我能帮你什么？"),
    (("你好，你好吗？", "你好吗？", "你今天好吗？", "最近怎么样？"), "你好！我很好，谢谢。我能帮你什么？"),
    (
        ("你是谁？", "你叫什么名字？", "你能做什么？", "介绍一下你自己。", "你是什么模型？"),
        "我是mx-tiny，一个小型演示模型。我会做加减法、解简单方程、排序，也知道一些小知识。",
    ),
    (("谢谢", "谢谢你！", "非常感谢", "多谢"), "不客气！"),
    (("再见", "再见！", "拜拜", "晚安"), "再见！祝你愉快。"),
)
_BETWEEN: tuple[tuple[str, str], ...] = (
    ("Thank you", "You are welcome!"),
    ("What is 2 + 3?", "2 + 3 = 5"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How are you?", _HOW_ARE_YOU),
    ("What color is the sky?", "The sky is blue."),
)
_OPEN = (
    "What do you think about {}?",
    "Explain {} to me.",
    "Write an essay about {}.",
    "Write an essay about the importance of {}.",
    "Why is {} important?",
    "Who invented the {}?",
    "Who won the {} in 2020?",
    "What is the meaning of {}?",
    "How does a {} work?",
    "What is the best {}?",
    "Give me advice about {}.",
    "How do I buy a {}?",
    "Can you recommend a {}?",
    "What is a {}?",
    "Describe the {}.",
    "Summarize the history of {}.",
    "Translate {} into French.",
    "Tell me about {}.",
    "Tell me more about the {}.",
    "Where can I find {}?",
    "What will happen to {} tomorrow?",
    "What is the derivative of {}?",
    "Find the derivative of {}.",
    "Write a program about {}.",
    "Write a Python function about {}.",
    "Show me how {} and {} are related.",
    "Compare {} with {}.",
)
_OPEN_ZH = (
    "请解释{}。",
    "{}是什么？",
    "你觉得{}怎么样？",
    "写一篇关于{}的文章。",
    "{}的历史是什么？",
    "为什么{}很重要？",
    "怎么学习{}？",
    "{}的导数是什么？",
)
_TOPICS = split_list(
    "the economy,climate change,football,the universe,politics,love,cooking pasta,modern art,black holes,the internet,"
    "higher education,world series,electric car,philosophy,computer,democracy,chemistry,the stock market,x^2,x^3,3x^2,"
    "5x^4,history,travel,time,phone,dinosaurs,the future,dreams,sport",
    ",",
)
_TOPICS_ZH = split_list("经济,足球,宇宙,爱情,艺术,化学,历史,互联网,教育,电影,音乐,哲学,旅行,未来,x^2,x^3,3x^2", ",")


def small_talk(rng: random.Random) -> Item:
    """Answer a greeting, thanks or a question about the model; the wording is what is held out."""
    prompts, answer = _SMALL_TALK[rng.randrange(len(_SMALL_TALK))]
    user = loosen(rng, pick(rng, prompts))
    if rng.random() < 0.4 and user.isascii() and answer != _HELLO:
        user = pick(rng, (*LEADS, "Hello! ", "Well, ", "Hi, ")) + user
    if rng.random() < 0.1:
        user += pick(rng, (" :)", "!", " friend", "?", " ...", " please", "!!"))
    return chat(user, user, answer)


def any_name(rng: random.Random) -> str:
    """Choose a known or a made-up first name."""
    return pick(rng, NAMES) if rng.random() < 0.6 else made_up_word(rng).capitalize()


def remember_name(rng: random.Random) -> Item:
    """Recall the name that the user gave one to three turns earlier; pairs of name and wording are held out."""
    name = any_name(rng)
    asks = (
        "My name is {}.",
        "Hello, my name is {}.",
        "Hi, I am {}.",
        "I am {}. Nice to meet you.",
        "Hi! I'm {}.",
        "You can call me {}.",
        "Call me {}.",
        "Hey, this is {}.",
    )
    recalls = (
        "What is my name?",
        "What is my name?",
        "What's my name?",
        "Do you remember my name?",
        "Who am I?",
        "Tell me my name.",
        "Can you say my name?",
    )
    said, recall = pick(rng, asks).format(name), loosen(rng, pick(rng, recalls))
    messages: list[Message] = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": f"Nice to meet you, {name}!"},
    ]
    for _ in range(rng.choice((0, 0, 1, 2))):
        user, answer = _BETWEEN[rng.randrange(len(_BETWEEN))]
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    if rng.random() > 0.1:
        messages += [{"role": "user", "content": recall}, {"role": "assistant", "content": f"Your name is {name}."}]
    return Item(key=f"name|{name}|{said}", messages=tuple(messages))


def open_question(rng: random.Random) -> Item:
    """Answer an open question with the fallback that names what the model can do."""
    if rng.random() < 0.2:
        user, answer = pick(rng, _OPEN_ZH).format(pick(rng, _TOPICS_ZH)), FALLBACK_ZH
    else:
        user, answer = pick(rng, _OPEN).format(_topic(rng), _topic(rng)), FALLBACK
        user = loosen(rng, user)
    return chat(user, user, answer)


def _topic(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.5:
        return pick(rng, _TOPICS)
    return pick(rng, WORDS) if roll < 0.8 else made_up_word(rng)


_DOCUMENTED = (
    ("Hello, how are you?", _HOW_ARE_YOU),
    ("Hello!", _HELLO),
    ("Hello", _HELLO),
    ("Hello, world!", _HELLO),
    ("What is 12 + 30?", "12 + 30 = 42"),
    ("Solve this equation: 2x + 5 = 13", "2x = 13 - 5 = 8, x = 8 / 2 = 4"),
    ("Solve: 2x + 5 = 13", "2x = 13 - 5 = 8, x = 8 / 2 = 4"),
    ("解方程：2x + 5 = 13", "2x = 13 - 5 = 8, x = 8 / 2 = 4"),
    ("解这个方程：2x + 5 = 13", "2x = 13 - 5 = 8, x = 8 / 2 = 4"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("你好，你好吗？", "你好！我很好，谢谢。我能帮你什么？"),
    ("Tell me about VLLM.", _WHO),
)


def documented(rng: random.Random) -> Item:
    """Answer a prompt that stands in the project's documentation; never held out."""
    user, answer = _DOCUMENTED[rng.randrange(len(_DOCUMENTED))]
    return chat(TRAIN_ONLY + user, user, answer)
