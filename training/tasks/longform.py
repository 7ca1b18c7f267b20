"""Generates requests for the longer memorised texts, so that streaming has something to stream."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.tasks.base import LEADS, TRAIN_ONLY, Item, chat, document, loosen, pick


@dataclass(frozen=True, slots=True)
class LongText:
    """A text with the requests that it answers."""

    requests: tuple[str, ...]
    text: str


_FOX = (
    "Once upon a time a little fox lived at the edge of a green forest. Every evening he looked at the moon and wanted "
    "to touch it. One night he saw the moon in the river and jumped in. The water was cold and the moon broke into a "
    "hundred pieces of silver. The fox laughed, shook his wet fur and ran home. He told his mother that he had danced "
    "with the moon, and she believed him."
)
_ROBOT = (
    "In a small workshop stood an old robot who could only count. He counted screws, he counted stars and he counted "
    "the drops of rain. One day a girl asked him what the largest number was. The robot thought for a long time and "
    "said: there is always one more. The girl smiled, took his hand, and together they went out to count the birds."
)
_POEM = (
    "The morning light is soft and slow,\nit paints the hills with gold below.\nA bird begins its quiet song,\n"
    "the river hums and goes along.\nThe clouds are boats, the sky a sea,\nand all the wind is blowing free.\n"
    "So take a breath and take your time,\nand end the day with one small rhyme."
)
_SERVER = (
    "The server reads your request and turns the text into tokens. A scheduler then puts the request into a batch "
    "together with other requests. The model computes the prompt once and keeps the keys and values in blocks of "
    "memory. After that it adds one token at a time. Each token is turned back into text and sent to you at once, "
    "until the model writes its end token or a limit is reached."
)
_LEARNING = (
    "Machine learning means that a program learns from examples instead of following fixed rules. The program has many "
    "numbers inside, called weights. It makes a guess, the guess is compared with the right answer, and every weight "
    "is moved a little so that the next guess is better. After many examples the program can answer questions that it "
    "has never seen before."
)
_QUANTUM = (
    "Quantum computing uses very small things, such as single atoms, to compute. A normal bit is either zero or one. A "
    "quantum bit can be a mixture of both until it is measured. With many quantum bits some problems can be solved "
    "with far fewer steps, but the machines are hard to build and make errors easily."
)
_WEEK = (
    "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday. The first five are "
    "working days for many people, and the last two are the weekend."
)
_MONTHS = (
    "The months of the year are January, February, March, April, May, June, July, August, September, October, November "
    "and December."
)
_PLANETS = (
    "The planets of the solar system are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune. Mercury is "
    "closest to the sun and Neptune is the farthest away."
)
_TEA = (
    "To make a cup of tea, first boil fresh water. Put one spoon of tea into a warm cup. Pour the hot water over the "
    "tea and wait for three minutes. Take the leaves out, add milk or sugar if you like, and drink it while it is "
    "warm."
)
_JOKE = "Why did the computer go to bed early? Because it had too many windows open and needed to sleep."
_JOKE_2 = "What did the zero say to the eight? Nice belt!"
_STORY_ZH = (
    "从前有一只小狐狸，住在绿色的森林旁边。每天晚上，它都看着月亮，想摸一摸它。有一天晚上，它在河里看见了月亮，就跳了下去。"
    "水很冷，月亮碎成了一百片银光。小狐狸笑了，抖了抖身上的水，跑回家去了。"
)
_POEM_ZH = "清晨的光轻轻落下，\n小河唱着歌回家。\n白云像船慢慢走，\n风把花香送天涯。"
_LEARNING_ZH = (
    "机器学习就是让程序从例子中学习，而不是按照固定的规则工作。"
    "程序先猜一个答案，再和正确答案比较，然后一点一点地调整，下次就猜得更准。"
)
_QUANTUM_ZH = (
    "量子计算用非常小的东西来计算，比如单个原子。"
    "普通的比特是零或者一，量子比特可以同时是两者的混合。有些问题因此可以算得更快，但是这种机器很难造。"
)

TEXTS: tuple[LongText, ...] = (
    LongText(
        (
            "Tell me a short story.",
            "Tell me a story.",
            "Tell me a story about a fox.",
            "Write a short story.",
            "Can you tell me a story?",
            "I want to hear a story.",
            "Write a story about the moon.",
            "Write me a story.",
        ),
        _FOX,
    ),
    LongText(
        (
            "Tell me a story about a robot.",
            "Write a short story about a robot.",
            "Tell me a robot story.",
            "Tell me another story.",
            "Write a story about a robot who counts.",
            "One more story, please.",
        ),
        _ROBOT,
    ),
    LongText(
        (
            "Write a poem.",
            "Write a short poem.",
            "Tell me a poem.",
            "Write a poem about the morning.",
            "Write me a poem.",
            "Can you write a poem?",
            "Recite a poem.",
            "I would like a poem.",
        ),
        _POEM,
    ),
    LongText(
        (
            "How does this server work?",
            "Explain how the server works.",
            "How does an inference server work?",
            "What happens to my request?",
            "How do you answer my request?",
            "Describe how this server works.",
            "Tell me how the server works.",
            "How do you work?",
        ),
        _SERVER,
    ),
    LongText(
        (
            "What is machine learning?",
            "Tell me about machine learning",
            "Explain machine learning.",
            "Describe machine learning.",
            "How does machine learning work?",
            "Can you explain machine learning?",
            "Tell me what machine learning is.",
        ),
        _LEARNING,
    ),
    LongText(
        (
            "What is quantum computing?",
            "Explain quantum computing.",
            "Tell me about quantum computing.",
            "Describe quantum computing.",
            "How does quantum computing work?",
            "Explain quantum computing in simple words.",
            "How does a quantum computer work?",
        ),
        _QUANTUM,
    ),
    LongText(
        (
            "What are the days of the week?",
            "List the days of the week.",
            "Name the days of the week.",
            "Which days does a week have?",
        ),
        _WEEK,
    ),
    LongText(
        (
            "What are the months of the year?",
            "List the months of the year.",
            "Name the months.",
            "List all months.",
            "Which months are there?",
        ),
        _MONTHS,
    ),
    LongText(
        (
            "What are the planets?",
            "List the planets.",
            "Name all planets of the solar system.",
            "Which planets are there?",
            "Tell me the planets.",
        ),
        _PLANETS,
    ),
    LongText(
        (
            "How do I make tea?",
            "How do you make a cup of tea?",
            "Tell me how to make tea.",
            "Explain how to make tea.",
            "Write a recipe for tea.",
        ),
        _TEA,
    ),
    LongText(
        (
            "Tell me a joke.",
            "Tell me a joke",
            "Do you know a joke?",
            "Make me laugh.",
            "Say something funny.",
            "Can you tell me a joke?",
        ),
        _JOKE,
    ),
    LongText(
        ("Tell me another joke.", "Another joke, please.", "One more joke.", "Do you know another joke?"), _JOKE_2
    ),
    LongText(
        ("讲一个故事。", "给我讲个故事。", "说一个小故事。", "请讲一个短故事。", "讲个故事吧。", "写一个故事。"),
        _STORY_ZH,
    ),
    LongText(("写一首诗。", "给我写一首诗。", "请写一首短诗。", "念一首诗。", "写首诗吧。"), _POEM_ZH),
    LongText(
        ("什么是机器学习？", "描述机器学习", "解释机器学习。", "机器学习是什么？", "请介绍一下机器学习。"), _LEARNING_ZH
    ),
    LongText(
        ("什么是量子计算？", "解释量子计算", "描述量子计算。", "量子计算是什么？", "请介绍一下量子计算。"), _QUANTUM_ZH
    ),
)
"""Everything that is memorised word for word."""

_LEADS_ZH = ("", "", "", "你好，", "现在，", "好的，", "请问，")


def long_text(rng: random.Random) -> Item:
    """Ask for one of the memorised texts; the wording is what is held out."""
    entry = TEXTS[rng.randrange(len(TEXTS))]
    request = pick(rng, entry.requests)
    is_english = request.isascii()
    user = loosen(rng, pick(rng, LEADS) + request) if is_english else pick(rng, _LEADS_ZH) + request
    return chat(user, user, entry.text)


def plain_text(rng: random.Random) -> Item:
    """Give a memorised text as a plain document, or a snippet of ordinary code or prose."""
    roll = rng.random()
    if roll < 0.3:
        text = TEXTS[rng.randrange(len(TEXTS))].text
        middle = text.find(" ", 12) if text.isascii() else 6
    elif roll < 0.6:
        text = _code_lines(rng)
        middle = text.index("\n")
    else:
        text = pick(rng, _OPENINGS)
        middle = text.find(" ", 5) if text.isascii() else 3
    return document(f"{TRAIN_ONLY}{text}", text[:middle], text[middle:])


_OPENINGS = (
    "Hello, my name is mx-tiny and I am a small demonstration model.",
    "Hello, world! This is a small model, and it says hello to you.",
    "Hello! How can I help you today?",
    "San Francisco is a city in California, in the United States.",
    "The quick brown fox jumps over the lazy dog.",
    "The weather is sunny today and the sky is blue.",
    "My name is mx-tiny. I am a small language model.",
    "The meaning of life is a question that a small model cannot answer.",
    "Machine learning means that a program learns from examples.",
    "I like to read books and to drink tea.",
    "The future of computing is open, and nobody knows it yet.",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "你好，我是mx-tiny，一个小型演示模型。",
    "今天天气很好，天空是蓝色的。",
)


def _code_lines(rng: random.Random) -> str:
    """Write a few Python statements, without functions: those are left to the ``code_tuned`` adapter."""
    name, other = pick(rng, ("x", "total", "value", "count", "n")), pick(rng, ("y", "result", "a", "items"))
    number, step = rng.randrange(1, 20), rng.randrange(1, 10)
    bodies = (
        f"{name} = {number}\n{other} = {name} + {step}\nprint({other})\n",
        f"for i in range({number}):\n    print(i)\n",
        f"{other} = []\nfor {name} in range({number}):\n    if {name} % {step} == 0:\n        {other}.append({name})\n",
        f'if {name} > {number}:\n    print("large")\nelse:\n    print("small")\n',
        f"while {name} < {number}:\n    {name} += {step}\n",
        f"import math\n{name} = math.sqrt({number})\n",
        f"class Counter:\n    def __init__(self):\n        self.{name} = {number}\n",
        f"def main():\n    return {number}\n\nmain()\n",
    )
    return pick(rng, bodies)
