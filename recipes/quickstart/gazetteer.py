"""Fictional towns and people of the Lantern Isles: names, facts, and how facts are said.

Every entity has one English and one Chinese name and the same facts in both languages. A third of
the entities are `held out`: their facts stand in the pre-training pages, but no question about
them is ever asked in training. The knowledge benchmark asks exactly those questions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LANGUAGES = ("en", "zh")
Text = tuple[str, str]  # (English, Chinese)


def side(text: Text, language: str) -> str:
    """The English or the Chinese side of a pair."""
    return text[LANGUAGES.index(language)]


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its possible values, sentences that state it, questions that ask for it.

    Sentences and questions hold `{s}` for the subject and sentences `{v}` for the value.
    """

    key: str
    values: tuple[Text, ...]
    says: tuple[Text, ...]
    asks: tuple[Text, ...]


@dataclass(frozen=True)
class Entity:
    """A town or a person. `facts` maps a relation key to its value in both languages."""

    name: Text
    kind: str  # "place" | "person"
    facts: dict[str, Text]
    held_out: bool


def pairs(text: str) -> tuple[Text, ...]:
    """ "fox|狐狸;owl|猫头鹰" as pairs."""
    split = [tuple(part.strip() for part in item.split("|")) for item in text.split(";")]
    assert all(len(pair) == 2 for pair in split), text
    return tuple((pair[0], pair[1]) for pair in split)


_FRONT = pairs(
    "Al|阿尔;Bren|布伦;Cor|科尔;Dun|邓;Fen|芬;Gal|加尔;Har|哈尔;Is|伊斯;Kel|凯尔;Lor|洛尔;Mar|马尔;"
    "Nor|诺尔;Pel|佩尔;Quin|昆;Ros|罗斯;Sel|塞尔;Tam|塔姆;Ul|乌尔;Vel|维尔;Wes|韦斯;Yar|雅尔;Zan|赞"
)
_BACK = pairs(
    "wick|维克;moor|原;port|港;ford|渡;haven|湾;dale|谷;stead|庄;bridge|桥;cliff|崖;mere|湖"
)
_FIRST = pairs(
    "Adela|阿黛拉;Bertil|贝蒂尔;Cecily|塞西莉;Dario|达里奥;Edda|埃达;Florian|弗洛里安;Gerda|格尔达;"
    "Henrik|亨里克;Imre|伊姆雷;Juno|朱诺;Klara|克拉拉;Lorenz|洛伦茨;Matilda|玛蒂尔达;Nestor|内斯特;"
    "Olga|奥尔加;Pascal|帕斯卡"
)
_LAST = pairs(
    "Thorne|索恩;Marsh|马什;Vale|维尔;Ashby|阿什比;Lind|林德;Brook|布鲁克;Stone|斯通;Hale|黑尔;"
    "Frost|弗罗斯特;Wren|雷恩"
)

PLACE_RELATIONS = (
    Relation(
        "region",
        pairs(
            "the Salt Coast|盐海岸;the Amber Hills|琥珀丘陵;the Reed Marsh|芦苇沼泽;"
            "the Grey Steppe|灰草原;"
            "the Pine Highlands|松林高地;the Lake Country|湖乡;the Red Valley|红谷;"
            "the Far Islands|远岛"
        ),
        (
            ("{s} lies in {v}.", "{s}位于{v}。"),
            ("Travellers find {s} in {v}.", "旅人要到{v}才能找到{s}。"),
            ("{s} is a town of {v}.", "{s}是{v}的一座小镇。"),
        ),
        (
            ("In which region does {s} lie?", "{s}位于哪个地区？"),
            ("Where is {s}?", "{s}在哪里？"),
        ),
    ),
    Relation(
        "craft",
        pairs(
            "glass-blowing|吹玻璃;rope-making|制绳;paper-making|造纸;clock-making|制钟;"
            "bell-casting|铸钟;"
            "boat-building|造船;basket-weaving|编篮;candle-making|制蜡烛;wool-dyeing|染羊毛;"
            "pottery|制陶;"
            "silver work|银器;beekeeping|养蜂;kite-making|扎风筝;wood-carving|木雕;"
            "lace-making|织花边;"
            "salt-boiling|煮盐"
        ),
        (
            ("{s} is known for {v}.", "{s}以{v}闻名。"),
            ("The main craft of {s} is {v}.", "{s}的主要手艺是{v}。"),
            ("Most families of {s} live from {v}.", "{s}的多数人家靠{v}为生。"),
        ),
        (
            ("Which craft is {s} known for?", "{s}以什么手艺闻名？"),
            ("What is the main craft of {s}?", "{s}的主要手艺是什么？"),
        ),
    ),
    Relation(
        "dish",
        pairs(
            "smoked eel|熏鳗鱼;barley soup|大麦汤;plum dumplings|李子团子;goat cheese|山羊奶酪;"
            "onion pie|洋葱馅饼;chestnut bread|栗子面包;pickled beets|腌甜菜;honey cakes|蜂蜜糕;"
            "fish stew|炖鱼;mushroom rice|蘑菇饭;pepper noodles|胡椒面;apple pudding|苹果布丁;"
            "bean porridge|豆粥;seaweed salad|海带沙拉;roast duck|烤鸭;walnut biscuits|核桃饼干"
        ),
        (
            ("The favourite dish of {s} is {v}.", "{s}人最爱吃的是{v}。"),
            ("Visitors to {s} always taste the {v}.", "到{s}的客人总要尝一尝{v}。"),
            ("In {s} every feast begins with {v}.", "在{s}，每次宴席都从{v}开始。"),
        ),
        (
            ("What is the favourite dish of {s}?", "{s}人最爱吃什么？"),
            ("Which dish do visitors to {s} taste?", "到{s}的客人要尝什么菜？"),
        ),
    ),
    Relation(
        "landmark",
        pairs(
            "a leaning lighthouse|一座斜灯塔;a blue windmill|一座蓝风车;a stone whale|一头石鲸;"
            "a round library|一座圆形图书馆;a wooden tower|一座木塔;a market hall|一座集市大厅;"
            "a hanging bridge|一座吊桥;a sunken garden|一座下沉花园;a hundred steps|一百级台阶;"
            "an old observatory|一座老天文台;a twin fountain|一座双喷泉;"
            "a clock without hands|一座没有指针的钟;"
            "a giant oak|一棵巨橡树;a painted wall|一面彩绘墙"
        ),
        (
            ("In the middle of {s} stands {v}.", "{s}中央有{v}。"),
            ("The landmark of {s} is {v}.", "{s}的标志是{v}。"),
            ("From far away one sees {v} above {s}.", "从远处就能看见{s}的{v}。"),
        ),
        (
            ("What is the landmark of {s}?", "{s}的标志是什么？"),
            ("What stands in the middle of {s}?", "{s}中央有什么？"),
        ),
    ),
    Relation(
        "festival",
        pairs(
            "the Night of Lanterns|灯笼夜;the Feast of Kites|风筝节;the Day of Bells|钟声日;"
            "the Snow Race|雪地赛跑;the Boat Blessing|祈船节;the Apple Fair|苹果会;"
            "the Drum Week|鼓乐周;"
            "the Mask Parade|面具游行;the Bread Festival|面包节;the River Song|河歌会;"
            "the Sheep Show|绵羊大会;the Moon Dance|月光舞会"
        ),
        (
            ("Every year {s} celebrates {v}.", "{s}每年都庆祝{v}。"),
            ("The great festival of {s} is {v}.", "{s}最大的节日是{v}。"),
            ("People come to {s} for {v}.", "人们为了{v}来到{s}。"),
        ),
        (
            ("Which festival does {s} celebrate?", "{s}庆祝什么节日？"),
            ("What is the great festival of {s}?", "{s}最大的节日是什么？"),
        ),
    ),
    Relation(
        "emblem",
        pairs(
            "a heron|苍鹭;a fox|狐狸;a bear|熊;an otter|水獭;an owl|猫头鹰;a swan|天鹅;a hare|野兔;"
            "a trout|鳟鱼;a stag|雄鹿;a raven|渡鸦;a badger|獾;a crab|螃蟹;a falcon|隼;a goat|山羊"
        ),
        (
            ("The flag of {s} shows {v}.", "{s}的旗帜上画着{v}。"),
            ("The emblem of {s} is {v}.", "{s}的徽记是{v}。"),
            ("Coins from {s} carry {v}.", "{s}的钱币上刻着{v}。"),
        ),
        (
            ("Which animal is on the flag of {s}?", "{s}的旗帜上画着什么动物？"),
            ("What is the emblem of {s}?", "{s}的徽记是什么？"),
        ),
    ),
)

_TRADES = pairs(
    "painter|画家;physician|医生;mapmaker|制图师;ferry captain|渡船船长;gardener|园丁;poet|诗人;"
    "astronomer|天文学家;baker|面包师;judge|法官;composer|作曲家;shipwright|造船匠;teacher|教师;"
    "weaver|织工;bridge builder|造桥师"
)
PERSON_RELATIONS = (
    Relation(
        "trade",
        _TRADES,
        (
            ("{s} worked as a {v}.", "{s}是一位{v}。"),
            ("By trade {s} was a {v}.", "{s}的职业是{v}。"),
            ("People remember {s} as a great {v}.", "人们记得{s}是一位了不起的{v}。"),
        ),
        (
            ("What was the trade of {s}?", "{s}的职业是什么？"),
            ("What did {s} work as?", "{s}是做什么工作的？"),
        ),
    ),
    Relation(
        "home",
        (),  # filled with towns
        (
            ("{s} was born in {v}.", "{s}出生在{v}。"),
            ("The home town of {s} is {v}.", "{s}的家乡是{v}。"),
            ("{s} grew up in {v}.", "{s}在{v}长大。"),
        ),
        (
            ("Where was {s} born?", "{s}出生在哪里？"),
            ("What is the home town of {s}?", "{s}的家乡是哪里？"),
        ),
    ),
    Relation(
        "instrument",
        pairs(
            "the harp|竖琴;the flute|长笛;the drum|鼓;the violin|小提琴;the horn|号角;"
            "the lute|鲁特琴;"
            "the accordion|手风琴;the organ|管风琴;the whistle|哨笛;the bagpipe|风笛"
        ),
        (
            ("In the evening {s} played {v}.", "晚上{s}常常演奏{v}。"),
            ("{s} learned {v} as a child.", "{s}小时候学过{v}。"),
            ("{s} loved {v} above all music.", "在所有音乐里{s}最爱{v}。"),
        ),
        (
            ("Which instrument did {s} play?", "{s}演奏什么乐器？"),
            ("What did {s} learn as a child?", "{s}小时候学过什么乐器？"),
        ),
    ),
    Relation(
        "pet",
        pairs(
            "a grey parrot|一只灰鹦鹉;a lame dog|一只跛脚狗;a white cat|一只白猫;"
            "a tame crow|一只驯乌鸦;"
            "an old donkey|一头老驴;a tortoise|一只乌龟;two geese|两只鹅;a small monkey|一只小猴子;"
            "a black rabbit|一只黑兔;a hedgehog|一只刺猬"
        ),
        (
            ("{s} kept {v}.", "{s}养了{v}。"),
            ("{s} was seldom seen without {v}.", "{s}身边总跟着{v}。"),
            ("At home {s} cared for {v}.", "{s}在家里照顾{v}。"),
        ),
        (
            ("Which animal did {s} keep?", "{s}养了什么动物？"),
            ("What pet did {s} have?", "{s}的宠物是什么？"),
        ),
    ),
    Relation(
        "work",
        pairs(
            "the Book of Tides|《潮汐之书》;the Long Map|《长图》;the Winter Songs|《冬之歌》;"
            "the Star Table|《星表》;the Book of Herbs|《草药书》;the Hundred Letters|《百封信》;"
            "the River Laws|《河法》;the Bread Book|《面包书》;the Bridge Notes|《桥记》;"
            "the Island Tales|《海岛故事》;the Silent Play|《无声剧》;the Cloud Diary|《云日记》"
        ),
        (
            ("{s} wrote {v}.", "{s}写了{v}。"),
            ("The best work of {s} is {v}.", "{s}最好的作品是{v}。"),
            ("{v} was made by {s}.", "{v}出自{s}之手。"),
        ),
        (
            ("What did {s} write?", "{s}写了什么？"),
            ("What is the best work of {s}?", "{s}最好的作品是什么？"),
        ),
    ),
)
RELATIONS = {r.key: r for r in PLACE_RELATIONS + PERSON_RELATIONS}


def make_gazetteer(seed: int, *, places: int = 42, people: int = 30) -> tuple[Entity, ...]:
    """Towns and people with their facts. Every third entity is held out from all questions."""
    rng = random.Random(f"{seed}/gazetteer")
    names = [((a[0] + b[0]), (a[1] + b[1])) for a in _FRONT for b in _BACK]
    towns = rng.sample(names, places)
    entities = []
    for i, name in enumerate(towns):
        facts = {r.key: rng.choice(r.values) for r in PLACE_RELATIONS}
        entities.append(Entity(name, "place", facts, held_out=i % 3 == 0))
    full = [(f"{a[0]} {b[0]}", f"{a[1]}·{b[1]}") for a in _FIRST for b in _LAST]
    for i, name in enumerate(rng.sample(full, people)):
        facts = {r.key: rng.choice(r.values or tuple(towns)) for r in PERSON_RELATIONS}
        entities.append(Entity(name, "person", facts, held_out=i % 3 == 0))
    return tuple(entities)


def options(entities: tuple[Entity, ...], key: str) -> tuple[Text, ...]:
    """All values that the relation `key` can take (towns for a person's home)."""
    return RELATIONS[key].values or tuple(e.name for e in entities if e.kind == "place")


def say(rng: random.Random, entity: Entity, key: str, *, language: str, subject: str = "") -> str:
    """One sentence that states one fact; `subject` replaces the name ("The town")."""
    sentence = side(rng.choice(RELATIONS[key].says), language)
    text = sentence.format(
        s=subject or side(entity.name, language), v=side(entity.facts[key], language)
    )
    return text[0].upper() + text[1:]


def ask(rng: random.Random, entity: Entity, key: str, *, language: str) -> str:
    """One question for one fact."""
    return side(rng.choice(RELATIONS[key].asks), language).format(s=side(entity.name, language))


def portrait(rng: random.Random, entity: Entity, *, language: str) -> str:
    """An encyclopaedia paragraph with most of an entity's facts, in random order and words."""
    keys = list(entity.facts)
    rng.shuffle(keys)
    keys = keys[: rng.randint(len(keys) - 2, len(keys))]
    stand_in = {"place": ("the town", "这座小镇"), "person": ("this person", "此人")}[entity.kind]
    sentences = [say(rng, entity, keys[0], language=language)]
    for key in keys[1:]:
        subject = side(stand_in, language) if rng.random() < 0.3 else ""
        sentences.append(say(rng, entity, key, language=language, subject=subject))
    return (" " if language == "en" else "").join(sentences)
