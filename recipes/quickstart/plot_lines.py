"""Goals and episodes of stories, English and Chinese side by side; slots as in `story_lines`."""

from recipes.quickstart.gazetteer import Text

# (key, the thing, what happens, why it matters, how it is solved, how it ends)
GOALS: tuple[tuple[str, Text, Text, Text, Text, tuple[Text, Text]], ...] = (
    (
        "bell",
        ("the ferry bell", "渡船的铃"),
        ("One morning the ferry bell was gone.", "一天早上，渡船的铃不见了。"),
        (
            "Without it no boat could leave the harbour in the fog.",
            "没有它，大雾里一条船也开不了。",
        ),
        ("There, under a heap of nets, lay the ferry bell.", "在一堆渔网下面，正放着渡船的铃。"),
        (
            (
                "The next morning the bell rang over the water, and every boat went out.",
                "第二天早上，铃声在水面上响起，所有的船都出发了。",
            ),
            (
                "The ferry captain gave them a free ride whenever they liked.",
                "船长让他们以后随时免费坐船。",
            ),
        ),
    ),
    (
        "letter",
        ("the letter", "那封信"),
        (
            "One day an old man asked them to carry a letter to his sister.",
            "一天，一位老人请他们给自己的妹妹送一封信。",
        ),
        ("The sister had waited for news for ten years.", "他的妹妹已经等了十年的消息。"),
        (
            "At last a grey-haired woman opened the door and took the letter with both hands.",
            "终于，一位白发的妇人打开门，双手接过了信。",
        ),
        (
            (
                "She read it twice, and then she cried and laughed at the same time.",
                "她读了两遍，又哭又笑。",
            ),
            (
                "A week later brother and sister sat at one table again.",
                "一个星期以后，兄妹俩又坐在了同一张桌旁。",
            ),
        ),
    ),
    (
        "herb",
        ("the silver herb", "银色的草药"),
        (
            "That winter the old goat fell ill and would not eat.",
            "那年冬天，老山羊病了，什么也不肯吃。",
        ),
        (
            "Only the silver herb that grows by the spring could help.",
            "只有长在泉边的银色草药才能治好它。",
        ),
        (
            "Beside the spring, between two stones, grew the silver herb.",
            "在泉水边的两块石头中间，长着那株银色的草药。",
        ),
        (
            (
                "They cooked the herb in milk, and by the evening the goat was eating again.",
                "他们用牛奶煮了草药，到了晚上，山羊又开始吃东西了。",
            ),
            (
                "Since that day a bunch of it hangs above their door.",
                "从那天起，他们的门上总挂着一束草药。",
            ),
        ),
    ),
    (
        "lamp",
        ("the great lamp", "大灯"),
        ("One evening the great lamp of the lighthouse went out.", "一天晚上，灯塔的大灯熄灭了。"),
        ("Three fishing boats were still at sea.", "还有三条渔船在海上。"),
        (
            "At the top of the stairs they cleaned the glass and lit the great lamp again.",
            "他们爬到塔顶，擦净玻璃，重新点亮了大灯。",
        ),
        (
            ("One after another the three boats came home.", "三条船一条接一条地回来了。"),
            (
                "The fishers sang on the beach until the sun came up.",
                "渔民们在海滩上唱歌，一直唱到太阳升起。",
            ),
        ),
    ),
    (
        "donkey",
        ("the donkey", "那头驴"),
        ("On market day the donkey broke its rope and ran away.", "赶集那天，驴挣断绳子跑了。"),
        ("It carried all the flour for the week on its back.", "它背上驮着整整一个星期的面粉。"),
        (
            "In the shade of an old tree stood the donkey and ate thistles.",
            "老树的树荫下，那头驴正在吃蓟草。",
        ),
        (
            (
                "They led it home slowly, and not one sack was missing.",
                "他们慢慢地把它牵回家，一袋面粉也没有少。",
            ),
            ("The donkey got a new rope and a red ribbon.", "驴得到了一根新绳子和一条红丝带。"),
        ),
    ),
    (
        "key",
        ("the golden key", "金钥匙"),
        (
            "While sweeping the street they found a golden key.",
            "扫街的时候，他们捡到了一把金钥匙。",
        ),
        ("Nobody in the town knew which door it opened.", "镇上没有人知道它能打开哪扇门。"),
        (
            "Behind the old mill there was a low door, and the golden key turned in its lock.",
            "老磨坊后面有一扇矮门，金钥匙在锁里转动了。",
        ),
        (
            (
                "Inside stood hundreds of books that everyone had thought lost.",
                "里面放着几百本大家以为早已丢失的书。",
            ),
            (
                "The room became the library of the town, and it is open to all.",
                "这间屋子成了镇上的图书馆，人人都可以进去。",
            ),
        ),
    ),
    (
        "spice",
        ("the red spice", "红香料"),
        ("They wanted to win the soup contest at the festival.", "他们想在节日的煮汤比赛里得奖。"),
        ("But the jar with the red spice was empty.", "可是装红香料的罐子空了。"),
        (
            "An old trader opened a small box, and it was full of the red spice.",
            "一位老商人打开一个小盒子，里面装满了红香料。",
        ),
        (
            (
                "Their soup won the second prize, and they were proud of it.",
                "他们的汤得了二等奖，两人都很自豪。",
            ),
            ("Half of the spice they gave to their neighbours.", "他们把一半香料送给了邻居。"),
        ),
    ),
    (
        "kite",
        ("the paper kite", "纸风筝"),
        (
            "A strong wind tore the paper kite from {his} hand.",
            "一阵大风把纸风筝从{ta}手里吹走了。",
        ),
        (
            "{A} had promised it to a sick child for that very night.",
            "{A}答应过当晚要把它送给一个生病的孩子。",
        ),
        (
            "High in a pine tree hung the paper kite, and it was not even torn.",
            "纸风筝挂在高高的松树上，一点也没有破。",
        ),
        (
            ("The child laughed for the first time in many days.", "那孩子许多天来第一次笑了。"),
            (
                "From the window all three watched it dance in the sky.",
                "三个人从窗口看着它在天空中飞舞。",
            ),
        ),
    ),
    (
        "clock",
        ("the town clock", "镇上的大钟"),
        ("At noon the town clock stopped.", "中午，镇上的大钟停了。"),
        (
            "The bread burned, the school did not end, and nobody knew when to sleep.",
            "面包烤焦了，学校不下课，谁也不知道什么时候该睡觉。",
        ),
        (
            "In the works of the town clock they found a nest with four little birds.",
            "他们在大钟的机芯里发现了一个鸟窝，里面有四只小鸟。",
        ),
        (
            (
                "They carried the nest to a roof nearby, and the clock began to tick.",
                "他们把鸟窝搬到旁边的屋顶上，大钟又开始走了。",
            ),
            ("Now the birds sing every full hour.", "现在每到整点，小鸟就唱歌。"),
        ),
    ),
    (
        "map",
        ("the old map", "旧地图"),
        ("In a drawer lay an old map with a cross on it.", "抽屉里有一张画着叉的旧地图。"),
        ("Beneath the cross somebody had written: dig here.", "叉的下面有人写着：在这里挖。"),
        (
            "Where the old map showed the cross, they dug up an iron box.",
            "在旧地图画叉的地方，他们挖出了一个铁盒子。",
        ),
        (
            (
                "In the box there was no gold but a bag of seeds and a friendly note.",
                "盒子里没有金子，只有一袋种子和一张友好的字条。",
            ),
            (
                "In summer their garden was the most colourful of the whole street.",
                "到了夏天，他们的花园是整条街最美的。",
            ),
        ),
    ),
    (
        "boat",
        ("the small boat", "小船"),
        ("After the storm the small boat had drifted away.", "暴风雨过后，小船漂走了。"),
        ("It was the only boat that {B} owned.", "那是{B}唯一的一条船。"),
        (
            "On a sandbank, half full of water, lay the small boat.",
            "小船半满着水，躺在一片沙洲上。",
        ),
        (
            (
                "They emptied it with a bucket and rowed home under the stars.",
                "他们用水桶把水舀干，在星光下划船回家。",
            ),
            ("{B} painted a new name on it: Thank You.", "{B}给它漆上了新名字：谢谢你。"),
        ),
    ),
    (
        "song",
        ("the lost song", "失传的歌"),
        (
            "The old singer could not remember the last verse of the lost song.",
            "老歌手想不起那首失传的歌的最后一段。",
        ),
        ("Without it the festival could not begin.", "没有它，节日就不能开始。"),
        (
            "A boy by the well hummed it without knowing: it was the lost song.",
            "井边的一个男孩不知不觉地哼着，正是那首失传的歌。",
        ),
        (
            (
                "They wrote down every word, and that night the whole town sang.",
                "他们记下了每一个字，那天夜里全镇的人都唱了起来。",
            ),
            (
                "The boy sang the last verse alone, and nobody coughed.",
                "最后一段由那男孩独唱，全场鸦雀无声。",
            ),
        ),
    ),
)

# (key, obstacle, what A says, what B answers, how they get on)
EPISODES: tuple[tuple[str, Text, Text, Text, Text], ...] = (
    (
        "river",
        ("they came to a river, and the bridge was broken", "他们来到河边，桥已经断了"),
        ("The water is too deep to walk through.", "水太深了，走不过去。"),
        ("Then let us tie these logs together.", "那我们把这些木头绑起来吧。"),
        (
            "They built a raft and reached the other bank with wet feet.",
            "他们扎了一只木筏，湿着脚到了对岸。",
        ),
    ),
    (
        "fog",
        ("a thick fog covered the path", "浓雾遮住了小路"),
        ("I cannot see my own hands.", "我连自己的手都看不见。"),
        ("Hold my sleeve and count the steps.", "拉住我的袖子，数着步子走。"),
        (
            "Step by step they went on until the fog became thin.",
            "他们一步一步往前走，直到雾变薄了。",
        ),
    ),
    (
        "dog",
        ("a big dog barred the way and growled", "一条大狗挡住去路，低声吼叫"),
        ("Perhaps it is only hungry.", "也许它只是饿了。"),
        ("Give it the rest of our bread.", "把剩下的面包给它吧。"),
        (
            "The dog ate the bread, wagged its tail and let them pass.",
            "狗吃了面包，摇着尾巴让他们过去了。",
        ),
    ),
    (
        "sign",
        ("they stood at a crossroads without a sign", "他们站在一个没有路牌的岔路口"),
        ("Left or right, that is the question.", "向左还是向右，这是个问题。"),
        (
            "The moss grows on the north side, so we must go left.",
            "青苔长在北面，所以我们应该向左。",
        ),
        (
            "They went left, and soon they saw smoke above the trees.",
            "他们向左走，不久就看见树林上方的炊烟。",
        ),
    ),
    (
        "trader",
        ("they met a trader whose cart had lost a wheel", "他们遇见一位商人，他的车掉了一个轮子"),
        ("We have little time, but we cannot leave him here.", "我们时间不多，可是不能丢下他。"),
        ("You lift the cart, and I push the wheel.", "你抬车，我来装轮子。"),
        (
            "The trader thanked them and told them which way to take.",
            "商人谢过他们，又给他们指了路。",
        ),
    ),
    (
        "rain",
        ("it began to rain so hard that the road turned to mud", "大雨下个不停，路变成了泥潭"),
        ("My shoes are full of water.", "我的鞋里全是水。"),
        (
            "Come under my coat, we will wait in that barn.",
            "到我的大衣下面来，我们去那个谷仓里等。",
        ),
        (
            "In the barn they shared an apple until the rain was over.",
            "他们在谷仓里分吃一个苹果，等到雨停。",
        ),
    ),
    (
        "owl",
        ("an owl sat on a post and looked at them", "一只猫头鹰蹲在木桩上看着他们"),
        ("It looks as if it wanted to tell us something.", "它好像有话要对我们说。"),
        ("Look, it has turned its head to the hill.", "看，它把头转向了小山。"),
        (
            "They followed its look and found a path that was on no map.",
            "他们顺着它的目光，找到了一条地图上没有的小路。",
        ),
    ),
    (
        "wall",
        ("a high wall stood across the field", "一道高墙横在田野上"),
        ("I am too small to look over it.", "我太矮了，看不到墙那边。"),
        ("Climb on my shoulders.", "踩着我的肩膀上去吧。"),
        (
            "First one climbed over and then the other, and nobody fell.",
            "他们一前一后翻了过去，谁也没有摔倒。",
        ),
    ),
    (
        "child",
        ("they heard a child crying behind a hedge", "他们听见树篱后面有个孩子在哭"),
        ("Why are you crying, little one?", "小家伙，你为什么哭？"),
        ("Do not worry, we will take you home.", "别担心，我们送你回家。"),
        (
            "The mother of the child gave them warm milk and good advice.",
            "孩子的母亲给了他们热牛奶，还出了个好主意。",
        ),
    ),
    (
        "cave",
        ("the path ended in front of a dark cave", "小路在一个黑暗的山洞前到了尽头"),
        ("Something is breathing in there.", "里面有东西在呼吸。"),
        ("It is only the wind, I can smell the sea.", "那只是风，我闻到了海的味道。"),
        (
            "They lit a candle, walked through the cave and came out by the shore.",
            "他们点上蜡烛，穿过山洞，来到了海边。",
        ),
    ),
    (
        "guard",
        ("a guard with a long beard would not open the gate", "一个长胡子的卫兵不肯开门"),
        ("Please, it is important.", "求求你，事情很要紧。"),
        ("What if we tell you a riddle?", "要不我们给你出个谜语？"),
        (
            "The guard could not solve the riddle, laughed and opened the gate.",
            "卫兵猜不出谜语，笑着打开了门。",
        ),
    ),
    (
        "sleep",
        ("they were so tired that they could hardly walk", "他们累得几乎走不动了"),
        ("I will just close my eyes for a moment.", "我只闭一会儿眼睛。"),
        ("Sleep, I will keep watch.", "睡吧，我来守着。"),
        (
            "After an hour they changed places, and both felt better.",
            "一个小时以后他们换了班，两人都好多了。",
        ),
    ),
    (
        "quarrel",
        ("they quarrelled about the way", "他们为了走哪条路吵了起来"),
        ("You never listen to me.", "你从来不听我的话。"),
        ("You are right, and I am sorry.", "你说得对，对不起。"),
        (
            "They shook hands and decided to ask at the next house.",
            "他们握了握手，决定到下一户人家去问路。",
        ),
    ),
    (
        "bees",
        ("a swarm of bees filled the whole road", "一大群蜜蜂占满了整条路"),
        ("Do not move, or they will sting.", "别动，不然它们会蜇人。"),
        ("My aunt always hums when she meets bees.", "我姑妈遇到蜜蜂总是哼歌。"),
        (
            "They hummed softly, and the bees let them go by.",
            "他们轻轻地哼着歌，蜜蜂放他们过去了。",
        ),
    ),
)
