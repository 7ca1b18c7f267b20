"""Holds the small facts that the model memorises, in English and in Chinese."""

from __future__ import annotations

from training.tasks.base import split_list

CAPITALS = dict(
    pair.split("=")
    for pair in split_list(
        "France=Paris;Germany=Berlin;Italy=Rome;Spain=Madrid;Portugal=Lisbon;England=London;Ireland=Dublin;"
        "Norway=Oslo;Sweden=Stockholm;Finland=Helsinki;Denmark=Copenhagen;Poland=Warsaw;Austria=Vienna;Hungary=Budapest;"
        "Greece=Athens;Turkey=Ankara;Russia=Moscow;Ukraine=Kyiv;China=Beijing;Japan=Tokyo;India=New Delhi;"
        "Thailand=Bangkok;Vietnam=Hanoi;Egypt=Cairo;Kenya=Nairobi;Canada=Ottawa;Mexico=Mexico City;Cuba=Havana;"
        "Brazil=Brasilia;Argentina=Buenos Aires;Chile=Santiago;Peru=Lima;Colombia=Bogota;Australia=Canberra;"
        "New Zealand=Wellington;Switzerland=Bern;Belgium=Brussels;the Netherlands=Amsterdam;South Korea=Seoul;"
        "the United States=Washington",
        ";",
    )
)
"""Country to capital, in English."""

CAPITALS_ZH = dict(
    pair.split("=")
    for pair in split_list(
        "法国=巴黎;德国=柏林;意大利=罗马;西班牙=马德里;葡萄牙=里斯本;英国=伦敦;挪威=奥斯陆;瑞典=斯德哥尔摩;芬兰=赫尔辛基;"
        "波兰=华沙;奥地利=维也纳;希腊=雅典;俄罗斯=莫斯科;中国=北京;日本=东京;印度=新德里;泰国=曼谷;越南=河内;埃及=开罗;"
        "加拿大=渥太华;古巴=哈瓦那;巴西=巴西利亚;秘鲁=利马;澳大利亚=堪培拉;韩国=首尔;美国=华盛顿",
        ";",
    )
)
"""Country to capital, in Chinese."""

FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("What color is the sky?", "Which color does the sky have?", "Tell me the color of the sky."), "The sky is blue."),
    (("What color is grass?", "Which color does grass have?", "Tell me the color of grass."), "Grass is green."),
    (("What color is snow?", "Which color does snow have?", "Tell me the color of snow."), "Snow is white."),
    (
        ("What color is a banana?", "Which color do bananas have?", "Tell me the color of bananas."),
        "Bananas are yellow.",
    ),
    (
        ("How many days are in a week?", "How many days does a week have?", "Tell me the number of days in a week."),
        "A week has seven days.",
    ),
    (
        (
            "How many months are in a year?",
            "How many months does a year have?",
            "Tell me the number of months in a year.",
        ),
        "A year has twelve months.",
    ),
    (
        ("How many hours are in a day?", "How many hours does a day have?", "Tell me the number of hours in a day."),
        "A day has 24 hours.",
    ),
    (
        ("How many minutes are in an hour?", "How many minutes does an hour have?"),
        "An hour has 60 minutes.",
    ),
    (
        ("How many seconds are in a minute?", "How many seconds does a minute have?"),
        "A minute has 60 seconds.",
    ),
    (
        ("How many legs does a spider have?", "How many legs has a spider?", "Tell me how many legs a spider has."),
        "A spider has eight legs.",
    ),
    (
        ("How many legs does a dog have?", "How many legs has a dog?", "Tell me how many legs a dog has."),
        "A dog has four legs.",
    ),
    (
        ("How many legs does an insect have?", "How many legs has an insect?"),
        "An insect has six legs.",
    ),
    (
        ("How many continents are there?", "What is the number of continents?", "Tell me how many continents exist."),
        "There are seven continents.",
    ),
    (
        ("Which planet is the largest?", "What is the largest planet?", "Tell me the largest planet."),
        "Jupiter is the largest planet of the solar system.",
    ),
    (
        ("Which planet is closest to the sun?", "What is the planet closest to the sun?"),
        "Mercury is the planet closest to the sun.",
    ),
    (
        ("Which planet do we live on?", "On which planet do we live?", "What planet is our home?"),
        "We live on the planet Earth.",
    ),
    (
        ("What is the longest river?", "Which river is the longest?", "Tell me the longest river."),
        "The Nile is often called the longest river.",
    ),
    (
        ("What is the highest mountain?", "Which mountain is the highest?", "Tell me the highest mountain."),
        "Mount Everest is the highest mountain.",
    ),
    (
        ("What is the largest ocean?", "Which ocean is the largest?", "Tell me the largest ocean."),
        "The Pacific is the largest ocean.",
    ),
    (
        ("What is the largest animal?", "Which animal is the largest?", "Tell me the largest animal."),
        "The blue whale is the largest animal.",
    ),
    (
        ("What is the fastest land animal?", "Which land animal is the fastest?"),
        "The cheetah is the fastest land animal.",
    ),
    (("What do bees make?", "Tell me what bees make.", "What is made by bees?"), "Bees make honey."),
    (("What do cows give?", "Tell me what cows give us.", "What do we get from cows?"), "Cows give milk."),
    (
        ("What is water made of?", "Which elements make up water?", "Tell me what water is made of."),
        "Water is made of hydrogen and oxygen.",
    ),
    (
        ("At what temperature does water boil?", "When does water boil?", "Tell me when water boils."),
        "Water boils at 100 degrees Celsius.",
    ),
    (
        ("At what temperature does water freeze?", "When does water freeze?", "Tell me when water freezes."),
        "Water freezes at 0 degrees Celsius.",
    ),
    (
        ("Where does the sun rise?", "Where does the sun come up?", "Tell me where the sun rises."),
        "The sun rises in the east.",
    ),
    (
        ("Where does the sun set?", "Where does the sun go down?", "Tell me where the sun sets."),
        "The sun sets in the west.",
    ),
    (
        ("What is San Francisco?", "Where is San Francisco?", "Tell me about San Francisco."),
        "San Francisco is a city in California, in the United States.",
    ),
    (
        ("What is the first month of the year?", "Which month comes first in the year?"),
        "January is the first month of the year.",
    ),
    (
        ("What is the last month of the year?", "Which month comes last in the year?"),
        "December is the last month of the year.",
    ),
    (
        ("What is the opposite of hot?", "Tell me the opposite of hot.", "Which word is the opposite of hot?"),
        "The opposite of hot is cold.",
    ),
    (
        ("What is the opposite of big?", "Tell me the opposite of big.", "Which word is the opposite of big?"),
        "The opposite of big is small.",
    ),
    (
        ("What is the opposite of day?", "Tell me the opposite of day.", "Which word is the opposite of day?"),
        "The opposite of day is night.",
    ),
    (
        ("What is the opposite of up?", "Tell me the opposite of up.", "Which word is the opposite of up?"),
        "The opposite of up is down.",
    ),
    (
        ("How many sides does a triangle have?", "How many sides has a triangle?"),
        "A triangle has three sides.",
    ),
    (
        ("How many sides does a square have?", "How many sides has a square?"),
        "A square has four sides.",
    ),
)
"""Questions that mean the same, with their one answer."""

FACTS_ZH: tuple[tuple[tuple[str, ...], str], ...] = (
    (("天空是什么颜色？", "天空的颜色是什么？", "天空是什么颜色的？"), "天空是蓝色的。"),
    (("草是什么颜色？", "草的颜色是什么？", "草是什么颜色的？"), "草是绿色的。"),
    (("雪是什么颜色？", "雪的颜色是什么？", "雪是什么颜色的？"), "雪是白色的。"),
    (("一周有几天？", "一个星期有几天？", "一周有多少天？"), "一周有七天。"),
    (("一年有几个月？", "一年有多少个月？", "一年有多少月？"), "一年有十二个月。"),
    (("一天有几个小时？", "一天有多少小时？", "一天有多少个小时？"), "一天有24个小时。"),
    (("一小时有多少分钟？", "一个小时有几分钟？", "一小时有几分钟？"), "一小时有60分钟。"),
    (("蜘蛛有几条腿？", "蜘蛛有多少条腿？", "一只蜘蛛有几条腿？"), "蜘蛛有八条腿。"),
    (("狗有几条腿？", "狗有多少条腿？", "一只狗有几条腿？"), "狗有四条腿。"),
    (("最大的行星是什么？", "哪颗行星最大？", "最大的行星是哪颗？"), "木星是太阳系中最大的行星。"),
    (("最高的山是什么？", "哪座山最高？", "最高的山是哪座？"), "珠穆朗玛峰是最高的山。"),
    (("最大的海洋是什么？", "哪个海洋最大？", "最大的海洋是哪个？"), "太平洋是最大的海洋。"),
    (("中国最长的河是什么？", "中国哪条河最长？", "中国最长的河是哪条？"), "长江是中国最长的河。"),
    (("水在多少度沸腾？", "水多少度会沸腾？", "水什么时候沸腾？"), "水在100摄氏度沸腾。"),
    (("水在多少度结冰？", "水多少度会结冰？", "水什么时候结冰？"), "水在0摄氏度结冰。"),
    (("太阳从哪里升起？", "太阳从哪边升起？", "太阳从哪个方向升起？"), "太阳从东方升起。"),
    (("太阳从哪里落下？", "太阳从哪边落下？", "太阳从哪个方向落下？"), "太阳从西方落下。"),
    (("蜜蜂做什么？", "蜜蜂会做什么？", "蜜蜂能做出什么？"), "蜜蜂酿蜂蜜。"),
    (("三角形有几条边？", "三角形有多少条边？", "一个三角形有几条边？"), "三角形有三条边。"),
    (("热的反义词是什么？", "热的反义词是哪个？", "什么是热的反义词？"), "热的反义词是冷。"),
    (("大的反义词是什么？", "大的反义词是哪个？", "什么是大的反义词？"), "大的反义词是小。"),
)
"""The same in Chinese."""
