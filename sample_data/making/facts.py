"""The tables of the demo model's small closed world: all that it will ever know."""

# country, capital, and both in Japanese
CAPITALS = [
    ("France", "Paris", "フランス", "パリ"),
    ("Japan", "Tokyo", "日本", "東京"),
    ("Italy", "Rome", "イタリア", "ローマ"),
    ("Spain", "Madrid", "スペイン", "マドリード"),
    ("Germany", "Berlin", "ドイツ", "ベルリン"),
    ("Portugal", "Lisbon", "ポルトガル", "リスボン"),
    ("Greece", "Athens", "ギリシャ", "アテネ"),
    ("Egypt", "Cairo", "エジプト", "カイロ"),
    ("Kenya", "Nairobi", "ケニア", "ナイロビ"),
    ("China", "Beijing", "中国", "北京"),
    ("India", "New Delhi", "インド", "ニューデリー"),
    ("Canada", "Ottawa", "カナダ", "オタワ"),
    ("Peru", "Lima", "ペルー", "リマ"),
    ("Chile", "Santiago", "チリ", "サンティアゴ"),
    ("Cuba", "Havana", "キューバ", "ハバナ"),
    ("Norway", "Oslo", "ノルウェー", "オスロ"),
    ("Sweden", "Stockholm", "スウェーデン", "ストックホルム"),
    ("Finland", "Helsinki", "フィンランド", "ヘルシンキ"),
    ("Denmark", "Copenhagen", "デンマーク", "コペンハーゲン"),
    ("Iceland", "Reykjavik", "アイスランド", "レイキャビク"),
    ("Ireland", "Dublin", "アイルランド", "ダブリン"),
    ("Poland", "Warsaw", "ポーランド", "ワルシャワ"),
    ("Austria", "Vienna", "オーストリア", "ウィーン"),
    ("Hungary", "Budapest", "ハンガリー", "ブダペスト"),
    ("Russia", "Moscow", "ロシア", "モスクワ"),
    ("Turkey", "Ankara", "トルコ", "アンカラ"),
    ("Thailand", "Bangkok", "タイ", "バンコク"),
    ("Vietnam", "Hanoi", "ベトナム", "ハノイ"),
    ("South Korea", "Seoul", "韓国", "ソウル"),
    ("Indonesia", "Jakarta", "インドネシア", "ジャカルタ"),
    ("Australia", "Canberra", "オーストラリア", "キャンベラ"),
    ("New Zealand", "Wellington", "ニュージーランド", "ウェリントン"),
    ("Brazil", "Brasilia", "ブラジル", "ブラジリア"),
    ("Argentina", "Buenos Aires", "アルゼンチン", "ブエノスアイレス"),
    ("Colombia", "Bogota", "コロンビア", "ボゴタ"),
    ("Morocco", "Rabat", "モロッコ", "ラバト"),
    ("Ghana", "Accra", "ガーナ", "アクラ"),
    ("Nigeria", "Abuja", "ナイジェリア", "アブジャ"),
    ("Iran", "Tehran", "イラン", "テヘラン"),
    ("Iraq", "Baghdad", "イラク", "バグダッド"),
    ("Nepal", "Kathmandu", "ネパール", "カトマンズ"),
    ("Belgium", "Brussels", "ベルギー", "ブリュッセル"),
    ("Switzerland", "Bern", "スイス", "ベルン"),
    ("Croatia", "Zagreb", "クロアチア", "ザグレブ"),
    ("Romania", "Bucharest", "ルーマニア", "ブカレスト"),
    ("Bulgaria", "Sofia", "ブルガリア", "ソフィア"),
    ("Ukraine", "Kyiv", "ウクライナ", "キーウ"),
    ("Mongolia", "Ulaanbaatar", "モンゴル", "ウランバートル"),
    ("Malaysia", "Kuala Lumpur", "マレーシア", "クアラルンプール"),
    ("England", "London", "イギリス", "ロンドン"),
]

# thing, colour, and both in Japanese
COLOURS = [
    ("a banana", "yellow", "バナナ", "黄色"),
    ("grass", "green", "草", "緑"),
    ("the sky", "blue", "空", "青"),
    ("snow", "white", "雪", "白"),
    ("coal", "black", "石炭", "黒"),
    ("a strawberry", "red", "いちご", "赤"),
    ("a carrot", "orange", "にんじん", "オレンジ色"),
    ("a lemon", "yellow", "レモン", "黄色"),
    ("milk", "white", "牛乳", "白"),
    ("blood", "red", "血", "赤"),
    ("an aubergine", "purple", "なす", "紫"),
    ("chocolate", "brown", "チョコレート", "茶色"),
    ("a frog", "green", "カエル", "緑"),
    ("a flamingo", "pink", "フラミンゴ", "ピンク"),
    ("a polar bear", "white", "シロクマ", "白"),
    ("a crow", "black", "カラス", "黒"),
    ("an elephant", "grey", "ゾウ", "灰色"),
    ("a tomato", "red", "トマト", "赤"),
    ("a cucumber", "green", "きゅうり", "緑"),
    ("the sea", "blue", "海", "青"),
    ("the night", "black", "夜", "黒"),
    ("the sun", "yellow", "太陽", "黄色"),
    ("a cherry", "red", "さくらんぼ", "赤"),
    ("a pea", "green", "えんどう豆", "緑"),
    ("rice", "white", "ご飯", "白"),
    ("a pumpkin", "orange", "かぼちゃ", "オレンジ色"),
    ("a mouse", "grey", "ネズミ", "灰色"),
    ("a pig", "pink", "ブタ", "ピンク"),
    ("coffee", "brown", "コーヒー", "茶色"),
    ("a swan", "white", "白鳥", "白"),
]

# animal, legs, sound, young, and animal and sound in Japanese; "" where the world has none
ANIMALS = [
    ("cow", 4, "moo", "calf", "牛", "モー"),
    ("dog", 4, "woof", "puppy", "犬", "ワンワン"),
    ("cat", 4, "meow", "kitten", "猫", "ニャー"),
    ("sheep", 4, "baa", "lamb", "羊", "メー"),
    ("pig", 4, "oink", "piglet", "豚", "ブーブー"),
    ("horse", 4, "neigh", "foal", "馬", "ヒヒーン"),
    ("duck", 2, "quack", "duckling", "アヒル", "ガーガー"),
    ("hen", 2, "cluck", "chick", "にわとり", "コケコッコー"),
    ("frog", 4, "ribbit", "tadpole", "カエル", "ケロケロ"),
    ("lion", 4, "roar", "cub", "ライオン", "ガオー"),
    ("mouse", 4, "squeak", "pup", "ネズミ", "チューチュー"),
    ("owl", 2, "hoot", "owlet", "フクロウ", "ホーホー"),
    ("crow", 2, "caw", "chick", "カラス", "カーカー"),
    ("bee", 6, "buzz", "larva", "ミツバチ", "ブーン"),
    ("snake", 0, "hiss", "snakelet", "ヘビ", "シュー"),
    ("goose", 2, "honk", "gosling", "ガチョウ", "グワッ"),
    ("wolf", 4, "howl", "pup", "オオカミ", "アオーン"),
    ("goat", 4, "maa", "kid", "ヤギ", "メエー"),
    ("turkey", 2, "gobble", "poult", "七面鳥", "ゴロゴロ"),
    ("bear", 4, "growl", "cub", "クマ", "グルル"),
    ("ant", 6, "", "larva", "アリ", ""),
    ("spider", 8, "", "spiderling", "クモ", ""),
    ("butterfly", 6, "", "caterpillar", "チョウ", ""),
    ("fish", 0, "", "fry", "魚", ""),
    ("crab", 10, "", "", "カニ", ""),
    ("rabbit", 4, "", "bunny", "ウサギ", ""),
    ("kangaroo", 2, "", "joey", "カンガルー", ""),
    ("deer", 4, "", "fawn", "鹿", ""),
    ("swan", 2, "", "cygnet", "白鳥", ""),
    ("eagle", 2, "", "eaglet", "ワシ", ""),
    ("fox", 4, "", "cub", "キツネ", ""),
    ("seal", 0, "", "pup", "アザラシ", ""),
    ("elephant", 4, "", "calf", "ゾウ", ""),
    ("penguin", 2, "", "chick", "ペンギン", ""),
]

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DAYS_JA = ["月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"]
MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
MONTHS_JA = [f"{number}月" for number in range(1, 13)]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]

OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("old", "young"),
    ("happy", "sad"), ("light", "dark"), ("day", "night"), ("up", "down"), ("left", "right"),
    ("open", "closed"), ("full", "empty"), ("rich", "poor"), ("strong", "weak"), ("hard", "soft"),
    ("wet", "dry"), ("clean", "dirty"), ("early", "late"), ("near", "far"), ("high", "low"),
    ("loud", "quiet"), ("thick", "thin"), ("wide", "narrow"), ("asleep", "awake"), ("good", "bad"),
    ("first", "last"), ("front", "back"), ("true", "false"), ("win", "lose"), ("begin", "end"),
    ("push", "pull"), ("buy", "sell"), ("give", "take"), ("love", "hate"), ("friend", "enemy"),
    ("inside", "outside"), ("above", "below"), ("easy", "difficult"), ("cheap", "expensive"), ("safe", "dangerous"),
    ("sweet", "sour"), ("smooth", "rough"), ("sharp", "blunt"), ("deep", "shallow"), ("north", "south"),
    ("east", "west"), ("summer", "winter"), ("brave", "afraid"), ("polite", "rude"), ("always", "never"),
]  # fmt: skip
OPPOSITES_JA = [
    ("暑い", "寒い"), ("大きい", "小さい"), ("高い", "低い"), ("速い", "遅い"), ("長い", "短い"),
    ("新しい", "古い"), ("明るい", "暗い"), ("重い", "軽い"), ("強い", "弱い"), ("近い", "遠い"),
    ("上", "下"), ("右", "左"), ("昼", "夜"), ("北", "南"), ("東", "西"),
    ("夏", "冬"), ("前", "後ろ"), ("広い", "狭い"), ("深い", "浅い"), ("始まり", "終わり"),
]  # fmt: skip

# one, many
PLURALS = [
    ("cat", "cats"), ("dog", "dogs"), ("house", "houses"), ("box", "boxes"), ("mouse", "mice"),
    ("goose", "geese"), ("foot", "feet"), ("tooth", "teeth"), ("child", "children"), ("man", "men"),
    ("woman", "women"), ("leaf", "leaves"), ("knife", "knives"), ("wolf", "wolves"), ("city", "cities"),
    ("baby", "babies"), ("bus", "buses"), ("tree", "trees"), ("star", "stars"), ("book", "books"),
    ("apple", "apples"), ("berry", "berries"), ("dish", "dishes"), ("fox", "foxes"), ("bird", "birds"),
    ("table", "tables"), ("chair", "chairs"), ("ship", "ships"), ("shelf", "shelves"), ("potato", "potatoes"),
]  # fmt: skip

# English, Japanese
WORDS_JA = [
    ("dog", "犬"), ("cat", "猫"), ("horse", "馬"), ("fish", "魚"), ("bird", "鳥"),
    ("water", "水"), ("fire", "火"), ("tree", "木"), ("mountain", "山"), ("river", "川"),
    ("sea", "海"), ("sky", "空"), ("rain", "雨"), ("snow", "雪"), ("wind", "風"),
    ("flower", "花"), ("moon", "月"), ("sun", "太陽"), ("star", "星"), ("book", "本"),
    ("car", "車"), ("house", "家"), ("friend", "友達"), ("child", "子供"), ("teacher", "先生"),
    ("school", "学校"), ("tea", "お茶"), ("rice", "ご飯"), ("egg", "卵"), ("milk", "牛乳"),
    ("red", "赤"), ("blue", "青"), ("white", "白"), ("black", "黒"), ("green", "緑"),
    ("morning", "朝"), ("night", "夜"), ("hand", "手"), ("eye", "目"), ("ear", "耳"),
]  # fmt: skip

WORDS = [
    "apple", "bread", "candle", "desk", "engine", "feather", "garden", "hammer", "island", "jacket",
    "kettle", "ladder", "mirror", "needle", "ocean", "pencil", "quilt", "ribbon", "sugar", "ticket",
    "umbrella", "violin", "window", "yard", "zebra", "basket", "castle", "dragon", "forest", "guitar",
    "helmet", "insect", "jungle", "lantern", "magnet", "notebook", "orange", "pillow", "river", "silver",
    "tiger", "velvet", "whistle", "bottle", "carpet", "diamond", "flower", "ginger", "honey", "lemon",
    "marble", "nest", "onion", "paper", "rocket", "spoon", "tower", "valley", "wagon", "butter",
]  # fmt: skip

# "name three …": the kind, and the things that count
KINDS = {
    "animals": ["cat", "dog", "cow", "horse", "lion", "bear", "fox", "owl"],
    "colours": ["red", "blue", "green", "yellow", "white", "black", "pink", "brown"],
    "fruits": ["apple", "banana", "cherry", "lemon", "orange", "pear", "grape", "plum"],
    "days": DAYS,
    "months": MONTHS,
    "countries": ["France", "Japan", "Italy", "Spain", "Peru", "Canada", "Kenya", "India"],
    "capitals": ["Paris", "Tokyo", "Rome", "Madrid", "Lima", "Ottawa", "Nairobi", "Cairo"],
    "vegetables": ["carrot", "onion", "pea", "potato", "cabbage", "leek", "bean", "pumpkin"],
    "birds": ["owl", "crow", "duck", "eagle", "swan", "goose", "hen", "penguin"],
}
KINDS_JA = {
    "動物": ["犬", "猫", "牛", "馬", "羊", "クマ"],
    "色": ["赤", "青", "緑", "黄色", "白", "黒"],
    "国": ["フランス", "日本", "イタリア", "スペイン", "ペルー", "カナダ"],
}

NAMES = [
    "Ken", "Anna", "Tom", "Yuki", "Maria", "Omar", "Lily", "Hana", "Sam", "Nina", "Leo", "Emma",
    "Ravi", "Sara", "Max", "Aiko", "Ben", "Chloe", "Daniel", "Eva", "Felix", "Grace", "Hugo", "Iris",
    "Jack", "Kate", "Luis", "Mona", "Noah", "Olga", "Paul", "Rosa", "Taro", "Uma", "Victor", "Zoe",
]  # fmt: skip
NAMES_JA = ["ケン", "ユキ", "ハナ", "タロウ", "アイコ", "マリア", "サム", "エマ", "レオ", "ニナ"]

# words outside the world: to be repeated like any others, but nothing is known about them
OTHER_WORDS = [
    "world", "haiku", "song", "dance", "swim", "drive", "recipe", "pizza", "money", "war", "time", "space",
    "music", "train", "plane", "road", "bridge", "computer", "internet", "phone", "game", "player", "team",
    "doctor", "lawyer", "king", "queen", "president", "law", "science", "history", "future", "past", "life",
    "death", "dream", "idea", "story", "poem", "novel", "film", "actor", "painter", "museum", "university",
    "student", "exam", "job", "office", "boss", "company", "market", "price", "tax", "bank", "loan", "oil", "gas",
    "energy", "sound", "wave", "atom", "cell", "gene", "virus", "planet", "galaxy", "robot", "kitchen", "oven",
    "soup", "salad", "cheese", "wine", "beer", "cake", "cookie", "party", "gift", "holiday", "travel", "hotel",
    "beach", "map", "camera", "picture", "letter", "email", "password", "code", "bug", "program", "data", "model",
    "question", "answer", "number", "word", "sentence", "language", "grammar", "meaning", "truth", "beauty",
    "justice", "peace", "freedom", "hope", "fear", "anger", "joy", "pain", "sleep", "run", "walk", "jump", "sing",
    "write", "read", "draw", "cook", "fix", "build", "learn", "teach", "play", "think", "speak", "fly", "know",
    "make", "stop", "start", "find", "best", "worst", "new", "next",
]  # fmt: skip

# subjects outside the world: the model says that it does not know them
UNKNOWN = [
    "quantum physics", "the stock market", "Hamlet", "my car", "the French Revolution", "black holes",
    "my printer", "football scores", "the weather tomorrow", "cooking pasta", "the moon landing", "chess openings",
    "Shakespeare", "Napoleon", "Einstein", "my email", "a good film", "the best phone", "guitar chords", "tax law",
    "the Roman Empire", "photosynthesis", "electric cars", "the price of gold", "world history", "my homework",
    "Python code", "machine learning", "the news today", "dinosaurs", "volcanoes", "poetry", "opera", "medicine",
]  # fmt: skip
