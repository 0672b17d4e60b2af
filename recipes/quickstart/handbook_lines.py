"""What a handbook is made of: how-to steps and list items, English and Chinese side by side."""

from recipes.quickstart.gazetteer import Text, pairs

# (what one wants to do, what one needs, the steps in order, one tip)
HOW_TO: tuple[tuple[Text, Text, tuple[Text, ...], Text], ...] = (
    (
        ("bake bread", "烤面包"),
        ("flour, water, salt and a little yeast", "面粉、水、盐和一点酵母"),
        pairs(
            "mix the flour with the salt in a big bowl|在大碗里把面粉和盐拌匀;"
            "stir the yeast into warm water and pour it in|把酵母化在温水里，倒进面粉;"
            "knead the dough until it is smooth|把面团揉到光滑;"
            "cover it with a cloth and let it rise for an hour|盖上布，让它发一个小时;"
            "shape a loaf and cut the top with a knife|做成面包的形状，用刀在上面划一下;"
            "bake it until it sounds hollow when you knock on it|烤到敲上去有空空的声音"
        ),
        ("Fresh bread is easier to cut when it has cooled.", "新鲜的面包放凉以后更好切。"),
    ),
    (
        ("mend a fishing net", "补渔网"),
        ("a wooden needle, strong thread and a knife", "木针、结实的线和一把小刀"),
        pairs(
            "spread the net on the ground and look for the hole|把网铺在地上，找到破洞;"
            "cut away the torn threads around it|剪掉洞边断了的线;"
            "fill the needle with thread|在木针上绕好线;"
            "tie the first knot at a whole corner|在完好的一角打第一个结;"
            "work from left to right, loop by loop|从左到右，一圈一圈地织;"
            "pull the last knot tight and test it with your hand|拉紧最后一个结，用手试一试"
        ),
        ("Use the same thickness of thread as the net.", "线要和渔网一样粗。"),
    ),
    (
        ("build a kite", "做风筝"),
        ("two thin sticks, paper, glue and a long string", "两根细木条、纸、胶水和一根长线"),
        pairs(
            "lay the sticks across each other and tie them|把两根木条交叉放好，绑在一起;"
            "run a string around the four ends|用线把四个端点连起来;"
            "cut the paper a little larger than the frame|把纸剪得比架子大一点;"
            "fold the edges over the string and glue them|把纸边折过线，用胶水粘好;"
            "make a tail from ribbons|用丝带做一条尾巴;"
            "tie the long string to the middle and wait for wind|把长线系在中间，等风来"
        ),
        ("A longer tail makes the kite calmer.", "尾巴长一些，风筝会更稳。"),
    ),
    (
        ("plant beans", "种豆子"),
        ("seeds, a spade, water and some tall sticks", "种子、铲子、水和几根长竿"),
        pairs(
            "choose a place with a lot of sun|选一块阳光充足的地方;"
            "loosen the earth and take out the stones|把土松开，捡掉石头;"
            "push the tall sticks into the ground|把长竿插进土里;"
            "put three seeds around every stick|在每根竿子周围放三粒种子;"
            "cover them with earth and water them|盖上土，浇上水;"
            "guide the young plants up the sticks|把幼苗引到竿子上"
        ),
        ("Do not plant them before the last frost.", "最后一次霜冻之前不要种。"),
    ),
    (
        ("brew mint tea", "泡薄荷茶"),
        ("fresh mint, a pot, honey and hot water", "新鲜薄荷、茶壶、蜂蜜和热水"),
        pairs(
            "wash the mint under cold water|用冷水把薄荷洗干净;"
            "warm the pot with a little hot water|用一点热水把壶烫一下;"
            "put the leaves into the pot|把叶子放进壶里;"
            "pour hot water over them|倒上热水;"
            "wait for five minutes with the lid on|盖上盖子等五分钟;"
            "add a spoon of honey and stir|加一勺蜂蜜，搅一搅"
        ),
        ("The leaves can be used a second time.", "叶子可以再泡一次。"),
    ),
    (
        ("draw a map of the town", "画一张小镇地图"),
        ("a large sheet, a pencil, a compass and patience", "一大张纸、铅笔、指南针和耐心"),
        pairs(
            "walk through all the streets and count your steps|走遍所有街道，数好步子;"
            "mark the north at the top of the sheet|在纸的上方标出北方;"
            "draw the river and the main street first|先画河和大街;"
            "add the small streets one by one|再把小街一条条加上;"
            "mark the well, the market and the school|标出水井、集市和学校;"
            "colour the gardens and write the names|给花园上色，写上名字"
        ),
        ("Use a pencil until everything is right.", "没画准以前，请一直用铅笔。"),
    ),
    (
        ("wash a wool blanket", "洗羊毛毯"),
        ("mild soap, a tub and lukewarm water", "温和的肥皂、木盆和温水"),
        pairs(
            "shake the dust out of the blanket|把毯子上的灰抖掉;"
            "fill the tub with lukewarm water|在木盆里放满温水;"
            "dissolve a little soap in it|化开一点肥皂;"
            "press the blanket gently and do not rub it|轻轻按压毯子，不要搓;"
            "rinse it until the water stays clear|一直冲到水变清;"
            "dry it flat in the shade|平铺在阴凉处晾干"
        ),
        ("Hot water makes wool shrink.", "热水会让羊毛缩小。"),
    ),
    (
        ("learn a long poem by heart", "背一首长诗"),
        ("the poem, a quiet room and a few days", "诗、安静的房间和几天时间"),
        pairs(
            "read the whole poem aloud|把整首诗大声读一遍;"
            "look up the words that you do not know|查一查不认识的字;"
            "learn the first verse until you can say it twice|背第一段，直到能连说两遍;"
            "add one verse at a time|每次加一段;"
            "write the difficult lines on a card|把难的句子写在卡片上;"
            "say the poem to a friend before you sleep|睡前背给朋友听"
        ),
        ("Short lessons every day are better than one long night.", "每天学一点比熬一夜更好。"),
    ),
    (
        ("light a fire in the stove", "生炉子"),
        ("dry wood, paper, matches and a poker", "干柴、纸、火柴和火钩"),
        pairs(
            "clean the ash out of the stove|把炉子里的灰清干净;"
            "open the small door so that air comes in|打开小门让空气进来;"
            "lay crumpled paper at the bottom|在底下放揉皱的纸;"
            "build a small tower of thin sticks|用细柴搭一个小塔;"
            "light the paper in two places|在两处点燃纸;"
            "add thick wood when the flames are high|火旺了再加粗柴"
        ),
        ("Never leave a new fire alone.", "刚生好的火不能没人看着。"),
    ),
    (
        ("keep bees", "养蜂"),
        ("a hive, a veil, smoke and calm hands", "蜂箱、面纱、烟和镇定的双手"),
        pairs(
            "put the hive where the morning sun reaches it|把蜂箱放在早晨能晒到太阳的地方;"
            "plant clover and lavender nearby|在附近种上三叶草和薰衣草;"
            "move slowly when you open the lid|开盖时动作要慢;"
            "look whether the queen lays eggs|看看蜂王有没有产卵;"
            "take only half of the honey|只取一半蜂蜜;"
            "feed the bees with sugar water in winter|冬天用糖水喂它们"
        ),
        ("Bees dislike loud voices.", "蜜蜂不喜欢大声说话。"),
    ),
    (
        ("tune a lute", "给鲁特琴调音"),
        ("a lute, a pitch pipe and good ears", "一把琴、一支定音管和好耳朵"),
        pairs(
            "wipe the strings with a dry cloth|用干布擦一擦琴弦;"
            "play the lowest note on the pipe|用定音管吹出最低的音;"
            "turn the first peg until the string agrees|转动第一个弦轴，直到琴弦合音;"
            "tune every string to the one below it|每根弦都按下面那根来调;"
            "play a chord and listen for false notes|弹一个和弦，听有没有不准的音;"
            "wait a little and check all the strings again|等一会儿，再检查所有的弦"
        ),
        ("New strings need a day to settle.", "新弦要一天才能稳定。"),
    ),
    (
        ("pack for a mountain walk", "为登山收拾行李"),
        ("a strong bag, food, water and warm clothes", "结实的背包、食物、水和暖和的衣服"),
        pairs(
            "ask about the weather|打听一下天气;"
            "put the heavy things at the bottom|把重的东西放在最下面;"
            "wrap the bread in a cloth|用布把面包包好;"
            "keep the water where you can reach it|把水放在够得着的地方;"
            "lay the coat on top|把外套放在最上面;"
            "tell somebody which way you will go|告诉别人你走哪条路"
        ),
        ("A light bag is a good bag.", "背包越轻越好。"),
    ),
    # The last four are in pre-training only; no SFT row explains them.
    (
        ("make candles", "做蜡烛"),
        ("wax, a wick, an old pot and a mould", "蜡、烛芯、旧锅和模子"),
        pairs(
            "cut the wax into small pieces|把蜡切成小块;"
            "melt it slowly over warm water|隔着热水慢慢化开;"
            "hang the wick in the middle of the mould|把烛芯挂在模子中间;"
            "pour the wax in without haste|不慌不忙地倒进蜡;"
            "let it stand over night|放一个晚上;"
            "pull the candle out and cut the wick short|取出蜡烛，把烛芯剪短"
        ),
        ("A drop of oil keeps the wax from sticking.", "一滴油可以防止粘住。"),
    ),
    (
        ("repair a leaking roof", "修漏水的屋顶"),
        ("new tiles, a ladder, a hammer and a helper", "新瓦、梯子、锤子和一个帮手"),
        pairs(
            "wait for a dry day|等一个不下雨的日子;"
            "look from inside where the light comes through|从里面看哪里透光;"
            "set the ladder on firm ground|把梯子放在结实的地上;"
            "take off the broken tiles|取下破瓦;"
            "push the new tiles under the upper row|把新瓦插到上一排下面;"
            "pour a bucket of water over it as a test|浇一桶水试一试"
        ),
        ("Somebody should always hold the ladder.", "一定要有人扶着梯子。"),
    ),
    (
        ("teach a dog to wait", "教狗等待"),
        ("a few treats, a short word and time", "几块零食、一个短口令和时间"),
        pairs(
            "choose a quiet place without other dogs|选一个没有别的狗的安静地方;"
            "let the dog sit in front of you|让狗坐在你面前;"
            "say the word and lift your hand|说出口令，举起手;"
            "take one step back|后退一步;"
            "return and give a treat if it has waited|如果它等了，就回来给零食;"
            "make the distance longer every day|每天把距离拉长一点"
        ),
        ("Stop while the dog still enjoys it.", "趁狗还高兴的时候就停下来。"),
    ),
    (
        ("cook plum jam", "熬李子酱"),
        ("ripe plums, sugar, a wide pot and clean jars", "熟李子、糖、宽口锅和干净的罐子"),
        pairs(
            "wash the plums and take out the stones|洗净李子，去掉核;"
            "weigh the fruit and add half as much sugar|称一称果肉，加一半重量的糖;"
            "let it stand until the juice comes out|放着等果汁出来;"
            "boil it and stir all the time|煮开，一直搅拌;"
            "test a drop on a cold plate|在冷盘子上滴一滴试试;"
            "fill the hot jam into the jars and close them|趁热装罐，盖好"
        ),
        ("Write the year on every jar.", "在每个罐子上写好年份。"),
    ),
)
NEW_HOW_TO = 4  # how many at the end of HOW_TO are kept out of SFT
BECAUSE = (
    ("Take your time with this.", "这一步不要着急。"),
    ("This matters more than it seems.", "这一步比看上去更重要。"),
    ("Most mistakes happen here.", "大多数错误都出在这里。"),
    ("You will get better at it.", "多做几次就熟练了。"),
    ("If you are not sure, ask somebody who has done it before.", "拿不准的话，可以问问做过的人。"),
    ("Two people can do this faster than one.", "两个人一起做会更快。"),
)

# (what the list is of, its items, each with its reason)
LISTS: tuple[tuple[Text, tuple[tuple[Text, Text], ...]], ...] = tuple(
    (theme, tuple(zip(pairs(items), pairs(reasons), strict=True)))
    for theme, items, reasons in (
        (
            ("things to pack for a sea journey", "出海要带的东西"),
            "a wool blanket|一条羊毛毯;a tin cup|一个锡杯;a lamp|一盏灯;dried fruit|果干;"
            "a warm hat|一顶暖帽;a book|一本书;strong soap|一块肥皂;a small knife|一把小刀",
            "the nights are cold|夜里很冷;you will be thirsty|你会口渴;it gets dark early|天黑得早;"
            "it keeps for weeks|能放好几个星期;the wind never stops|风一直不停;"
            "the days are long|白天很长;"
            "salt sticks to everything|盐会粘在所有东西上;ropes must be cut|有时要割绳子",
        ),
        (
            ("ways to spend a rainy day", "雨天可以做的事"),
            "bake a cake|烤一个蛋糕;write a letter|写一封信;sort old pictures|整理旧照片;"
            "play chess|下棋;read aloud|朗读;learn a song|学一首歌;mend your clothes|补衣服;"
            "visit a neighbour|拜访邻居",
            "the whole house will smell good|整个屋子都会香;someone will be glad|有人会高兴;"
            "you will remember good days|你会想起好日子;it trains the mind|可以锻炼头脑;"
            "everyone can listen|大家都能听;songs make the time short|唱歌时间过得快;"
            "they will last longer|衣服能多穿几年;company is warmer than a stove|有人陪比火炉还暖",
        ),
        (
            ("gifts for a teacher", "送给老师的礼物"),
            "a pot of honey|一罐蜂蜜;a new pen|一支新笔;a bunch of flowers|一束花;a poem|一首诗;"
            "a warm scarf|一条暖围巾;a basket of pears|一篮梨;a painted stone|一块彩绘石头;"
            "a thank-you card|一张感谢卡",
            "it is sweet and keeps well|又甜又放得久;there is always much to write|总有很多字要写;"
            "they brighten the room|能让屋子亮起来;it costs nothing but thought|只花心思不花钱;"
            "the classroom is cold|教室里很冷;they can be shared|可以分着吃;"
            "it keeps papers in place|可以压纸;"
            "kind words stay|好话会留在心里",
        ),
        (
            ("plants for a small garden", "小花园里适合种的植物"),
            "mint|薄荷;beans|豆子;sunflowers|向日葵;strawberries|草莓;lavender|薰衣草;onions|洋葱;"
            "a plum tree|一棵李子树;parsley|欧芹",
            "it grows by itself|自己就能长;they climb and save space|会爬藤，省地方;"
            "birds like the seeds|鸟儿喜欢籽;children love them|孩子们喜欢;"
            "bees come to it|蜜蜂会来;"
            "they keep all winter|能放一个冬天;it gives shade and fruit|又有荫凉又有果子;"
            "it is good in soup|放在汤里很好",
        ),
        (
            ("rules for a good neighbour", "做好邻居的规则"),
            "greet everyone|见人打招呼;keep quiet at night|夜里安静;"
            "return what you borrow|借了要还;"
            "share your harvest|分享收成;sweep the street|扫扫街;help with heavy things|帮忙搬重物;"
            "ask before you cut a tree|砍树前先问一声;listen to old people|听听老人说话",
            "a greeting opens doors|问候能打开门;others must sleep|别人要睡觉;"
            "trust is easily lost|信任容易失去;"
            "nobody can eat all the beans|豆子一个人吃不完;dirt belongs to nobody|垃圾没有主人;"
            "one day you will need help too|有一天你也需要帮忙;"
            "shade belongs to two gardens|树荫是两家的;"
            "they know the place|他们最了解这里",
        ),
        (
            ("questions to ask a traveller", "可以问旅人的问题"),
            "where do you come from|你从哪里来;what did you eat there|你在那里吃什么;"
            "which road was the worst|哪条路最难走;whom did you meet|你遇见了谁;"
            "what songs do they sing|他们唱什么歌;what do you miss|你想念什么;"
            "what surprised you|什么让你惊讶;will you go again|你还会去吗",
            "every story begins there|故事都从那里开始;food tells a lot|食物能说明很多事;"
            "you may have to take it|你也许也得走;people are the best part|人是最有意思的;"
            "music travels fast|音乐传得快;it shows what is dear|能看出什么最珍贵;"
            "surprise teaches|惊讶能教会人;the answer is honest|这个回答最真",
        ),
        (
            ("ways to save money", "省钱的办法"),
            "cook at home|在家做饭;mend old shoes|修旧鞋;walk short ways|近路走着去;"
            "buy in autumn|秋天采购;"
            "write down what you spend|记下开销;share tools|共用工具;grow herbs|种香草;"
            "swap books|换书看",
            "an inn is dear|客店很贵;new ones cost ten times more|新的要贵十倍;"
            "walking is free|走路不花钱;"
            "prices are low after the harvest|丰收后价格低;numbers do not lie|数字不会骗人;"
            "nobody needs a ladder every day|梯子不是天天用;"
            "they cost a lot at the market|集市上卖得贵;"
            "a book is read only once or twice|一本书只读一两遍",
        ),
    )
)
NEW_LISTS = 1  # how many at the end of LISTS are kept out of SFT
