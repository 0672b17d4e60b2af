"""The sentences that stories are made of, English and Chinese side by side.

Slots: {A} and {B} are the two characters, {ra} and {rb} their trades, {P} the town, {o} the thing
the story is about, {he}/{his}/{him} pronouns of A and {she}/{her} pronouns of B (Chinese: {ta},
{tb}). Nothing here is a story; `stories.py` draws and orders them.
"""

from recipes.quickstart.gazetteer import Text, pairs

CAST = tuple(
    (name, gender)
    for gender, names in (
        (
            "f",
            "Mira|米拉;Anwen|安雯;Lina|丽娜;Suri|苏里;Nela|内拉;Ilse|伊尔莎;Vera|薇拉;Hana|哈娜;"
            "Yuna|尤娜;Oda|奥达;Tessa|泰莎;Greta|格蕾塔;Petra|佩特拉;Sanna|桑娜;Rosa|罗莎",
        ),
        (
            "m",
            "Tobin|托宾;Osric|奥斯里;Peder|佩德;Joren|约伦;Bram|布拉姆;Kato|卡托;Dorin|多林;"
            "Ruben|鲁本;Stellan|斯泰伦;Fenno|芬诺;Milo|米洛;Arlo|阿洛;Niko|尼科;Emil|埃米尔;Ivo|伊沃",
        ),
    )
    for name in pairs(names)
)
# These appear in pre-training but in no SFT row: prompts "a little outside" use them.
NEW_CAST = tuple(
    (name, gender)
    for gender, names in (
        ("f", "Maren|玛伦;Linnea|琳内娅;Wilma|威尔玛;Signe|西格妮;Noor|努尔"),
        ("m", "Casper|卡斯帕;Tarek|塔雷克;Hugo|雨果;Anton|安东;Elias|埃利亚斯"),
    )
    for name in pairs(names)
)
NAMES: tuple[Text, ...] = tuple(name for name, _ in CAST)

TRADES = pairs(
    "baker|面包师;ferryman's child|船夫的孩子;weaver|织工;shepherd|牧羊人;miller|磨坊主;"
    "fisher|渔民;gardener|园丁;carpenter|木匠;postman|邮差;schoolteacher|教师;beekeeper|养蜂人;"
    "glassmaker|玻璃匠;cook|厨师;lamp keeper|灯塔看守人"
)

OPENINGS = (
    (
        "In {P} there lived a {ra} called {A}, and next door lived {B}, the {rb}.",
        "{P}住着一位叫{A}的{ra}，隔壁住着{rb}{B}。",
    ),
    (
        "{A} was a young {ra} in {P}, and {his} best friend was {B}, a {rb}.",
        "{A}是{P}的一位年轻{ra}，{ta}最好的朋友是{rb}{B}。",
    ),
    (
        "Long ago a {ra} named {A} and a {rb} named {B} shared a small house in {P}.",
        "很久以前，{ra}{A}和{rb}{B}一起住在{P}的一间小屋里。",
    ),
    (
        "Everybody in {P} knew {A} the {ra} and {B} the {rb}, for the two were always together.",
        "{P}人人都认识{ra}{A}和{rb}{B}，因为他们总在一起。",
    ),
    (
        "It was the first day of spring when {A}, a {ra}, met {B}, a {rb}, at the gate of {P}.",
        "春天的第一天，{ra}{A}在{P}的城门口遇见了{rb}{B}。",
    ),
)
TRAITS = (
    (
        "{A} was quick and curious, while {B} liked to think first.",
        "{A}机灵又好奇，{B}却喜欢先想一想。",
    ),
    (
        "{A} was afraid of nothing, and {B} was afraid of almost everything.",
        "{A}什么都不怕，{B}几乎什么都怕。",
    ),
    ("{A} talked all day long, and {B} was a good listener.", "{A}整天说个不停，{B}很会听人说话。"),
    (
        "{A} never forgot a promise, and {B} never forgot a song.",
        "{A}从不忘记诺言，{B}从不忘记歌谣。",
    ),
    (
        "{B} was older and slower, but {A} trusted {B} more than anyone.",
        "{B}年长一些，也慢一些，但{A}最信任{B}。",
    ),
    ("They did not own much, but they laughed a lot.", "他们没有多少东西，却常常笑。"),
)

TIMES = (
    ("First", "起初，"),
    ("In the late morning", "将近中午时，"),
    ("In the afternoon", "下午，"),
    ("Towards evening", "快到傍晚时，"),
    ("After sunset", "太阳落山以后，"),
)
LINKS = (
    ("A little later", "过了一会儿，"),
    ("Then", "接着，"),
    ("Not far from there", "离那里不远，"),
    ("After a while", "又过了一阵，"),
    ("Just then", "就在这时，"),
)
SAYS = (
    ("said", "说"),
    ("whispered", "小声说"),
    ("called", "喊道"),
    ("sighed", "叹道"),
    ("murmured", "低声说"),
)
REPLIES = (
    ("said", "说"),
    ("answered", "答道"),
    ("replied", "回答"),
    ("whispered", "小声说"),
    ("said with a smile", "笑着说"),
)
PLANS = (
    (
        '"We will look for {o}," said {A}, "even if it takes all day."',
        "“我们去找{o}，”{A}说，“哪怕要花一整天。”",
    ),
    (
        '"Someone has to do something about {o}," said {B}, "so why not us?"',
        "“{o}的事总得有人管，”{B}说，“为什么不是我们呢？”",
    ),
    (
        '"Come with me," said {A}, and {B} fetched bread and a lamp.',
        "“跟我来，”{A}说。{B}拿上了面包和一盏灯。",
    ),
    ("They packed a bag, told nobody and set off.", "他们收拾好包袱，谁也没告诉就出发了。"),
)
FEELINGS = (
    ("{A} took a deep breath.", "{A}深深吸了一口气。"),
    ("{B} had to smile in spite of everything.", "尽管如此，{B}还是笑了。"),
    ("For a moment neither of them spoke.", "有一会儿，两人谁也没说话。"),
    ("{A} thought of home and of warm soup.", "{A}想起了家和热汤。"),
    ("{B} looked at the sky and nodded.", "{B}看了看天，点了点头。"),
    ("Somewhere a bird began to sing.", "不知哪里有只鸟唱了起来。"),
)
FINDS = (
    ('"Look!" cried {A}.', "“快看！”{A}叫道。"),
    (
        "And then, when they had almost given up, they were lucky.",
        "就在他们快要放弃的时候，好运来了。",
    ),
    ("In the end their patience was rewarded.", "最后，他们的耐心有了回报。"),
)
CLOSINGS = (
    (
        "{A} and {B} told this story for many years, and each time it grew a little longer.",
        "这个故事{A}和{B}讲了许多年，每讲一次就长一点。",
    ),
    (
        '"Next time I will stay at home," said {B}, but nobody believed it.',
        "“下次我要待在家里，”{B}说，可是谁也不信。",
    ),
    (
        "And if you visit {P}, you can still hear people speak of {A} and {B}.",
        "如果你到{P}去，还能听到人们说起{A}和{B}。",
    ),
    ("That night {A} slept better than ever before.", "那天夜里，{A}睡得比什么时候都香。"),
    ("{A} learned that two are braver than one.", "{A}明白了，两个人比一个人更勇敢。"),
    ("They sat in front of the house, drank tea and were content.", "他们坐在屋前喝茶，心满意足。"),
)
