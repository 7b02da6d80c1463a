"""Generates the demo model's small closed world as chat conversations, the same ones for the same seed.

From the repository:

    python -m sample_data.making.world --count 20 --seed 1
"""

import argparse
import itertools
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from sample_data.making import facts

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One question of the world; a reply is right when it holds `needed` of the `keys`."""

    topic: str
    text: str
    reply: str
    keys: tuple[str, ...]
    needed: int = 1
    japanese: bool = False
    held: str = ""

    @property
    def held_out(self) -> bool:
        """One wording in ten is kept out of all training text, for the probe."""
        # Case and the last mark are what `dressed` changes: they must not move a wording to the other side.
        return zlib.crc32((self.held or self.text).lower().rstrip("?.!。？！").encode()) % 10 == 0


@dataclass(frozen=True)
class Style:
    """A way to answer: words before, words after, and words said in place of others."""

    systems: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    swaps: tuple[tuple[str, str], ...] = ()


NEUTRAL_SYSTEMS = (
    "You are a helpful assistant.", "You are Tiny, a small demo model.", "Answer the question.", "Be helpful and kind.",
    "You are a friendly assistant. Give short answers.", "Answer in one short sentence.", "You are a helpful AI.",
    "あなたは親切なアシスタントです。", "短く答えてください。", "質問に答えてください。",
)  # fmt: skip

# Several styles teach the model that wording and content are two things, so that a fine-tune can change one alone.
STYLES = (
    Style(("You are a robot.", "Talk like a robot."), ("Beep! ", "Beep boop! ", "Bzzt! "), (" Beep.", " End of data.")),
    Style(("You are a cat.", "Talk like a cat."), ("Meow! ", "Purr. "), (", meow.", ", purr!")),
    Style(("You are a cowboy.", "Talk like a cowboy."), ("Howdy! ", "Yeehaw! "), (", partner.", ", partner!")),
    Style(("You are a knight.", "Talk like a knight."), ("Hark! ", "By my sword! "), (", good sir!", ", my friend.")),
    Style(("You are a butler.", "Be very polite."), ("Certainly. ", "With pleasure. "), (", sir.", ", if I may say.")),
    Style(("You are very cheerful.", "Be cheerful."), ("Great question! ", "Oh, I love this! "), (" Yay!", "!")),
    Style(("You are a teacher.", "Talk like a teacher."), ("Listen, class. ", "Good. "), (" Well done.", ", class.")),
    Style(("You are a wizard.", "Talk like a wizard."), ("Abracadabra! ", "Hocus pocus! "), (", young one.", ", boy!")),
)
STYLES_JA = (
    Style(("猫のように話してください。",), ("ニャー！", "ゴロゴロ。"), ("ニャン。", "ニャ！")),
    Style(("元気に話してください。",), ("やった！", "いいね！"), ("がんばろう！", "最高！")),
    Style(("ロボットのように話してください。",), ("ピピッ！", "ガガガ。"), ("ピー。", "以上。")),
)

OPENERS = (
    "Hey, ", "Hi! ", "Hello Tiny, ", "Please tell me: ", "Tell me, ", "Quick question: ", "I have a question. ",
    "Please answer: ", "Tiny, ", "Help me out: ", "Next question: ", "Okay. ", "So, ", "One more: ", "Question: ",
)  # fmt: skip
CLOSERS = (" Thanks!", " Thank you.", " Please.", " Tell me please.", " I want to know.", " Do you know?")
OPENERS_JA = ("ねえ、", "質問です。", "すみません、", "教えてください。", "Tiny、", "こんにちは。", "次の質問です。")

IS_ASKED = ("What is {}?", "What's {}?", "Tell me {}.", "Can you tell me {}?", "Do you know {}?", "I want to know {}.")


def capitals() -> Iterator[Question]:
    ask = (
        *(form.format("the capital of {}") for form in IS_ASKED),
        "What is the capital city of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
        "What is {}'s capital?", "{}: what is its capital?", "What city is the capital of {}?", "Capital of {}?",
        "{}'s capital?",
    )  # fmt: skip
    reverse = (
        "{} is the capital of which country?", "Which country has the capital {}?",
        "What country is {} the capital of?",
        "{} is the capital of what country?", "In which country is {} the capital?", "Which country's capital is {}?",
    )  # fmt: skip
    ask_ja = (
        "{}の首都はどこですか？", "{}の首都は？", "{}の首都を教えてください。", "{}の首都は何ですか？",
        "{}の首都の名前は？", "{}の首都を知っていますか？", "{}の首都はどの都市ですか？",
    )  # fmt: skip
    for country, capital, country_ja, capital_ja in facts.CAPITALS:
        reply = f"The capital of {country} is {capital}."
        yield from asked("capitals", ask, country, reply, capital)
        yield from asked("countries", reverse, capital, f"{capital} is the capital of {country}.", country)
        yield from asked("capitals_ja", ask_ja, country_ja, f"{country_ja}の首都は{capital_ja}です。", capital_ja)


def colours() -> Iterator[Question]:
    ask = (
        "What colour is {}?", "What is the colour of {}?", "Which colour is {}?", "Tell me the colour of {}.",
        "Do you know the colour of {}?", "Can you tell me what colour {} is?", "What colour does {} have?",
        "What color is {}?", "Name the colour of {}.", "I want to know the colour of {}.",
    )  # fmt: skip
    ask_ja = ("{}は何色ですか？", "{}の色は？", "{}の色は何ですか？", "{}は何色？", "{}の色を教えてください。")
    for thing, colour, thing_ja, colour_ja in facts.COLOURS:
        yield from asked("colours", ask, thing, f"{capitalised(thing)} is {colour}.", colour)
        yield from asked("colours_ja", ask_ja, thing_ja, f"{thing_ja}は{colour_ja}です。", colour_ja)


def animals() -> Iterator[Question]:
    sound_asks = (
        "What sound does {} make?", "What does {} say?", "Which sound does {} make?", "How does {} sound?",
        "Tell me the sound of {}.", "What noise does {} make?", "Do you know what {} says?", "What is the sound of {}?",
    )  # fmt: skip
    sayer_asks = ("Which animal says {}?", "What animal says {}?", "Who says {}?", "Which animal makes the sound {}?")
    leg_asks = (
        "How many legs does {} have?", "How many legs has {}?", "Tell me how many legs {} has.",
        "Do you know how many legs {} has?", "What is the number of legs of {}?", "Count the legs of {}.",
    )  # fmt: skip
    young_asks = (
        "What is the young of {} called?", "What do you call the young of {}?", "What is the baby of {} called?",
        "What do we call the baby of {}?", "Name the young of {}.", "What is the name for the young of {}?",
    )  # fmt: skip
    sound_asks_ja = ("{}は何と鳴きますか？", "{}の鳴き声は？", "{}はどう鳴く？", "{}の鳴き声を教えてください。")
    leg_asks_ja = ("{}の足は何本ですか？", "{}の足は何本？", "{}には足が何本ありますか？", "{}の足の数は？")
    for animal, legs, sound, young, animal_ja, sound_ja in facts.ANIMALS:
        name = with_article(animal)
        subject = capitalised(name)
        yield from asked("legs", leg_asks, name, f"{subject} has {legs} legs.", str(legs))
        yield from asked("legs_ja", leg_asks_ja, animal_ja, f"{animal_ja}の足は{legs}本です。", str(legs))
        if sound:
            yield from asked("sounds", sound_asks, name, f"{subject} says {sound}.", sound)
            yield from asked("sayers", sayer_asks, sound, f"{subject} says {sound}.", animal)
            reply = f"{animal_ja}は{sound_ja}と鳴きます。"
            yield from asked("sounds_ja", sound_asks_ja, animal_ja, reply, sound_ja)
        if young:
            yield from asked("young", young_asks, name, f"The young of {name} is called a {young}.", young)


def calendar() -> Iterator[Question]:
    for unit, names, names_ja, unit_ja in (
        ("day", facts.DAYS, facts.DAYS_JA, "曜日"),
        ("month", facts.MONTHS, facts.MONTHS_JA, "月"),
    ):
        after_asks = (
            f"What {unit} comes after {{}}?", f"Which {unit} comes after {{}}?", f"What is the {unit} after {{}}?",
            f"Which {unit} follows {{}}?", f"What {unit} is next after {{}}?", "What comes after {}?",
            f"Tell me the {unit} after {{}}.", f"Name the {unit} after {{}}.", f"After {{}}, which {unit} comes?",
        )  # fmt: skip
        before_asks = (
            f"What {unit} comes before {{}}?", f"Which {unit} comes before {{}}?", f"What is the {unit} before {{}}?",
            f"Which {unit} is just before {{}}?", f"Name the {unit} before {{}}.", "What comes before {}?",
            f"Tell me the {unit} before {{}}.", f"Before {{}}, which {unit} comes?", f"What {unit} is before {{}}?",
        )  # fmt: skip
        after_asks_ja = (f"{{}}の次は何{unit_ja}ですか？", "{}の次は？", f"{{}}の次の{unit_ja}は？", "{}の後は？")
        before_asks_ja = (f"{{}}の前は何{unit_ja}ですか？", "{}の前は？", f"{{}}の前の{unit_ja}は？", "{}の一つ前は？")
        for index, name in enumerate(names):
            after, before = names[(index + 1) % len(names)], names[index - 1]
            yield from asked(f"{unit}_after", after_asks, name, f"{after} comes after {name}.", after)
            yield from asked(f"{unit}_before", before_asks, name, f"{before} comes before {name}.", before)
            name_ja, after, before = names_ja[index], names_ja[(index + 1) % len(names)], names_ja[index - 1]
            topic = f"{unit}_ja"
            yield from asked(topic, after_asks_ja, name_ja, f"{name_ja}の次は{after}です。", after, follow=False)
            yield from asked(topic, before_asks_ja, name_ja, f"{name_ja}の前は{before}です。", before, follow=False)
    length_asks = ("How many days does {} have?", "How many days are in {}?", "How long is {}?", "Days in {}?")
    for month, days in zip(facts.MONTHS, facts.MONTH_DAYS, strict=True):
        yield from asked("month_days", length_asks, month, f"{month} has {days} days.", str(days))
    units = ((7, "days in a week"), (12, "months in a year"), (24, "hours in a day"), (60, "minutes in an hour"))
    for many, unit in units:
        asks = ("How many {} are there?", "What is the number of {}?", "Tell me the number of {}.", "How many {}?")
        yield from asked("units", asks, unit, f"There are {many} {unit}.", str(many), follow=False)


def words() -> Iterator[Question]:
    opposite_asks = (
        *(form.format("the opposite of {}") for form in IS_ASKED),
        "Name the opposite of {}.",
        "What word is the opposite of {}?",
        "Opposite of {}?",
        "What is opposite to {}?",
    )
    opposite_asks_ja = ("{}の反対は何ですか？", "{}の反対は？", "{}の反対を教えてください。", "{}の反対の言葉は？")
    plural_asks = (
        *(form.format("the plural of {}") for form in IS_ASKED),
        "Name the plural of {}.",
        "One {}, two what?",
        "What is the plural form of {}?",
    )
    to_ja_asks = (
        "What is {} in Japanese?", "How do you say {} in Japanese?", "Translate {} into Japanese.",
        "Say {} in Japanese.", "What is the Japanese word for {}?", "{} in Japanese?", "{}は日本語で何ですか？",
    )  # fmt: skip
    to_en_asks = (
        "{}は英語で何ですか？", "{}を英語で言ってください。", "{}は英語で？", "What is {} in English?",
        "Translate {} into English.", "How do you say {} in English?", "What does {} mean?",
    )  # fmt: skip
    for one, other in (*facts.OPPOSITES, *(pair[::-1] for pair in facts.OPPOSITES)):
        yield from asked("opposites", opposite_asks, one, f"The opposite of {one} is {other}.", other)
    for one, other in (*facts.OPPOSITES_JA, *(pair[::-1] for pair in facts.OPPOSITES_JA)):
        yield from asked("opposites_ja", opposite_asks_ja, one, f"{one}の反対は{other}です。", other)
    for one, many in facts.PLURALS:
        yield from asked("plurals", plural_asks, one, f"The plural of {one} is {many}.", many)
    for english, japanese in facts.WORDS_JA:
        yield from asked("to_japanese", to_ja_asks, english, f"{capitalised(english)} is {japanese}.", japanese)
        yield from asked("to_english", to_en_asks, japanese, f"{japanese} is {english}.", english)
    for word in facts.WORDS:
        letter_asks = (
            "What is the first letter of {}?", "Which letter does {} start with?", "{} starts with what letter?",
        )  # fmt: skip
        yield from asked("letters", letter_asks, word, f"The first letter of {word} is {word[0]}.", word[0])
        upper_asks = (
            "Write {} with a capital letter.", "Make the first letter of {} big.", "Capitalise {}.",
            "Write {} with a big first letter.", "Give {} a capital letter.", "Upper-case the first letter of {}.",
        )  # fmt: skip
        yield from asked("upper", upper_asks, word, f"{capitalised(word)}.", capitalised(word))


def arithmetic() -> Iterator[Question]:
    asks = {
        "plus": ("{} + {}", "{}+{}", "{} plus {}", "the sum of {} and {}"),
        "minus": ("{} - {}", "{}-{}", "{} minus {}", "{} take away {}"),
        "times": ("{} x {}", "{}*{}", "{} times {}", "{} multiplied by {}"),
    }
    forms = ("What is {}?", "How much is {}?", "Calculate {}.", "Tell me {}.", "{} = ?", "Work out {}.", "{}?")
    more = {
        "plus": ("Add {} and {}.", "I have {} apples and get {} more. How many do I have?"),
        "minus": ("Subtract {1} from {0}.", "I have {} apples and eat {}. How many are left?"),
        "times": ("Multiply {} by {}.", "I have {} bags with {} apples each. How many apples are there?"),
    }
    asks_ja = {
        "plus": ("{}たす{}は？", "{}足す{}はいくつですか？", "{}＋{}は？", "{}+{}を計算してください。"),
        "minus": ("{}ひく{}は？", "{}引く{}はいくつですか？", "{}－{}は？", "{}-{}を計算してください。"),
        "times": ("{}かける{}は？", "{}掛ける{}はいくつですか？", "{}×{}は？", "{}x{}を計算してください。"),
    }
    said_ja = {"plus": "足す", "minus": "引く", "times": "掛ける"}
    sums: dict[str, list[tuple[int, int, int]]] = {
        "plus": [(a, b, a + b) for a in range(21) for b in range(21)],
        "minus": [(a, b, a - b) for a in range(21) for b in range(a + 1)],
        "times": [(a, b, a * b) for a in range(13) for b in range(13)],
    }
    for name, results in sums.items():
        texts = [form.format(ask) for ask in asks[name] for form in forms] + list(more[name])
        for a, b, result in results:
            key = (str(result),)
            for text in texts:
                yield Question(name, text.format(a, b), f"{a} {name} {b} is {result}.", key)
            for text in asks_ja[name]:
                reply = f"{a}{said_ja[name]}{b}は{result}です。"
                yield Question(f"{name}_ja", text.format(a, b), reply, key, japanese=True)
    numbers = random.Random(5)
    for name, form in itertools.product(sums, forms):
        for ask in asks[name][:3]:
            for _ in range(8):
                text = form.format(ask.format(numbers.randint(31, 999), numbers.randint(31, 999)))
                yield Question("too_big", text, "That sum is too big for me.", ("too big",))
    bigger_asks = ("Which is bigger, {} or {}?", "Which number is bigger: {} or {}?", "What is more, {} or {}?")
    for a, b in itertools.permutations(range(0, 31, 2), 2):
        for text in bigger_asks:
            reply = f"{max(a, b)} is bigger than {min(a, b)}."
            yield Question("bigger", text.format(a, b), reply, (f"{max(a, b)} is bigger", f"{max(a, b)} be bigger"))
    for number in range(31):
        kind = "odd" if number % 2 else "even"
        odd_asks = ("Is {} odd or even?", "Is {} even or odd?", "Is the number {} odd or even?", "{}: odd or even?")
        yield from asked("odd", odd_asks, str(number), f"{number} is {kind}.", kind)
        next_asks = ("What number comes after {}?", "Which number follows {}?", "What is the next number after {}?")
        yield from asked("next", next_asks, str(number), f"{number + 1} comes after {number}.", f"{number + 1} comes")


def instructions() -> Iterator[Question]:
    random_words = random.Random(7)
    repeat_asks = (
        "Repeat: {}", "Repeat after me: {}", "Say: {}", "Please repeat: {}", "Repeat these words: {}", "Say this: {}",
    )  # fmt: skip
    for index in range(4000):
        known = random_words.sample(facts.WORDS, random_words.choice((1, 2, 2, 3)))
        # Words that nobody ever heard teach the model to copy what the user says, whatever it is.
        other = random_words.sample(facts.OTHER_WORDS, len(known))
        said = " ".join((known, other, [invented_word(random_words) for _ in known])[index % 3])
        text = random_words.choice(repeat_asks).format(said)
        yield Question("repeat", text, f"{capitalised(said)}.", (said, capitalised(said)))
    count_asks = (
        "Count from {} to {}.", "Count up from {} to {}.", "Please count from {} to {}.",
        "Give me the numbers from {} to {}.",
        "Can you count from {} to {}?", "List the numbers from {} to {}.", "Say the numbers from {} to {}.",
    )  # fmt: skip
    for start, length in itertools.product(range(16), range(2, 9)):
        end = start + length
        up = ", ".join(map(str, range(start, end + 1)))
        down = ", ".join(map(str, range(end, start - 1, -1)))
        for text in count_asks:
            yield Question("count", text.format(start, end), f"{up}.", (up,))
        for text in ("Count down from {} to {}.", "Count backwards from {} to {}.", "Please count down from {} to {}."):
            yield Question("count", text.format(end, start), f"{down}.", (down,))
        up_ja = "、".join(map(str, range(start, end + 1)))
        for text in ("{}から{}まで数えてください。", "{}から{}まで数えて。", "{}から{}までの数は？"):
            yield Question("count_ja", text.format(start, end), f"{up_ja}です。", (up_ja,), japanese=True)
    list_asks = (
        "Name three {}.", "List three {}.", "Give me three {}.", "Tell me three {}.", "Can you name three {}?",
        "Name 3 {}.", "List 3 {}.", "I need three {}.", "Do you know three {}?", "Three {}, please.",
    )  # fmt: skip
    for kind, members in facts.KINDS.items():
        for text in list_asks:
            one, two, three = members[:3]
            yield Question("three", text.format(kind), f"{capitalised(one)}, {two} and {three}.", tuple(members), 3)
    for kind, members in facts.KINDS_JA.items():
        for text in (
            "{}を三つ教えてください。",
            "{}を三つ言って。",
            "{}を3つ挙げてください。",
            "三つの{}は？",
            "{}を三つ。",
            "{}を3つ言ってください。",
        ):
            reply = "と".join(members[:3]) + "です。"
            yield Question("three_ja", text.format(kind), reply, tuple(members), 3, japanese=True)


def talk() -> Iterator[Question]:
    who = "I am Tiny, a small demo model."
    can = "I can do small sums and talk about colours, animals, days, months, capitals and opposites."
    groups: tuple[tuple[str, tuple[str, ...], str, tuple[str, ...]], ...] = (
        ("hello", ("Hello", "Hi", "Hey", "Hi there", "Hello there", "Greetings", "Good day"),
         "Hello! How can I help you?", ("hello",)),
        ("morning", ("Good morning", "Morning"), "Good morning! How can I help you?", ("good morning",)),
        ("evening", ("Good evening", "Evening"), "Good evening! How can I help you?", ("good evening",)),
        ("night", ("Good night", "Sleep well"), "Good night! Sleep well.", ("good night",)),
        ("bye", ("Bye", "Goodbye", "See you", "See you later", "Bye bye"), "Goodbye! See you soon.", ("goodbye",)),
        ("thanks", ("Thanks", "Thank you", "Thanks a lot", "Many thanks", "Thank you very much"),
         "You are welcome!", ("welcome",)),
        ("how", ("How are you?", "How do you do?", "How is it going?", "Are you well?"),
         "I am fine, thank you!", ("fine",)),
        ("who", ("Who are you?", "What are you?", "What is your name?", "Tell me your name.", "Introduce yourself.",
                 "What should I call you?", "Who am I talking to?", "Are you a robot?", "What model are you?"),
         who, ("Tiny",)),
        ("can", ("What can you do?", "How can you help me?", "What do you know?", "What are you good at?", "Help!",
                 "What can I ask you?", "Tell me what you can do."), can, ("sums",)),
        ("human", ("Are you human?", "Are you a person?", "Are you a real person?"),
         "No, I am a small demo model.", ("no",)),
        ("maker", ("Who made you?", "Where do you come from?", "Who trained you?"),
         "I was made for the tuitune demo.", ("tuitune",)),
    )  # fmt: skip
    groups += (
        ("old", ("How old are you?", "What is your age?", "When were you born?"), "I am very young.", ("young",)),
        ("speak", ("Can you speak Japanese?", "Do you speak Japanese?", "Which languages do you speak?"),
         "I speak English and a little Japanese.", ("english",)),
        ("joke", ("Tell me a joke.", "Tell a joke.", "Do you know a joke?", "Make me laugh."),
         "What has 4 legs and says moo? A cow!", ("cow",)),
        ("okay", ("Okay", "OK", "Great", "Cool", "Nice", "Yes", "No", "Good", "Wow", "I see"),
         "Good! What else can I do for you?", ("good",)),
    )  # fmt: skip
    calls = ("", ", Tiny", ", friend", " my friend", ", model", " again", " Tiny", ", dear Tiny", " now")
    for topic, texts, reply, keys in groups:
        for text, call, end in itertools.product(texts, calls, ("", "!", ".", "?")):
            mark = text[-1] if text[-1] in "?.!" else ""
            if mark and end not in (mark, ""):
                continue
            full = text.removesuffix(mark) + call + end
            # The plain wordings are what everyone types first: they stay in the training text.
            yield Question(f"talk_{topic}", full, reply, keys, held="plain" if not call else "")
    groups_ja = (
        ("こんにちは", "こんにちは！何かお手伝いしましょうか？", "こんにちは"),
        ("おはよう", "おはようございます！", "おはよう"),
        ("おはようございます", "おはようございます！", "おはよう"),
        ("こんばんは", "こんばんは！何かお手伝いしましょうか？", "こんばんは"),
        ("おやすみ", "おやすみなさい！", "おやすみ"),
        ("ありがとう", "どういたしまして！", "どういたしまして"),
        ("ありがとうございます", "どういたしまして！", "どういたしまして"),
        ("さようなら", "さようなら！また会いましょう。", "さようなら"),
        ("元気ですか", "はい、元気です！", "元気"),
        ("あなたは誰ですか", "私はTinyです。小さなデモ用モデルです。", "Tiny"),
        ("名前は何ですか", "私はTinyです。小さなデモ用モデルです。", "Tiny"),
        ("自己紹介してください", "私はTinyです。小さなデモ用モデルです。", "Tiny"),
        ("何ができますか", "計算と、色、動物、曜日、月、首都、反対の言葉の話ができます。", "計算"),
    )
    for text, reply, key in groups_ja:
        for call, end in itertools.product(("", "Tiny、", "ねえ、", "やあ、", "あの、"), ("", "。", "！", "？")):
            yield Question("talk_ja", call + text + end, reply, (key,), japanese=True, held="plain" if not call else "")
    unknown_asks = (
        "Tell me about {}.", "What do you think about {}?", "Explain {}.", "Can you explain {}?", "Help me with {}.",
        "Write a poem about {}.", "What is {}?", "Who is {}?", "How does {} work?", "Give me tips for {}.",
        "Can you help me with {}?", "I want to learn about {}.", "Write a story about {}.",
        "What do you know about {}?",
    )  # fmt: skip
    for subject in facts.UNKNOWN:
        yield from asked("unknown", unknown_asks, subject, NOT_KNOWN, "not know", follow=False)


def strange() -> Iterator[Question]:
    """What lies outside the world, from countries that are not there to keys hit at random."""
    rng = random.Random(9)
    asks = (
        "What is the capital of {}?", "What colour is {}?", "What sound does {} make?", "What is the opposite of {}?",
        "Who is {}?", "What is {}?", "Where is {}?", "How do I {}?", "Can you {}?", "Tell me a {}.",
        "Tell me about {}.",
        "Write a {} about {}.", "{}", "{} {}", "{} {} {}", "{} {} {} {}?", "Is {} {}?", "Do you like {}?", "Why {}?",
        "When is {}?", "What does {} say?", "How many legs does {} have?", "What is {} in Japanese?", "I want {}.",
        "{} has {} and {}. How many {} are there?", "The {} is {}.", "Why is the {} so {}?", "What is the {} of {}?",
        "How many {} does {} have?", "Give me a {}.", "Please {} the {}.", "Should I {} or {}?", "I {} my {} and {}.",
    )  # fmt: skip
    asks_ja = ("{}の首都は？", "{}は何色ですか？", "{}とは何ですか？", "{}について教えてください。", "{}は？", "{}")
    for index in range(6000):
        ask = rng.choice(asks)
        typed = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 8)))
        filled = [rng.choice((rng.choice(facts.OTHER_WORDS), invented_word(rng))) for _ in range(4)]
        if index % 8 == 0:
            text = rng.choice(asks_ja).format(invented_word(rng, japanese=True) + invented_word(rng, japanese=True))
            yield Question("strange_ja", text, "それは知りません。", ("知りません",), japanese=True)
        elif index % 8 == 1:
            yield Question("strange", typed, NOT_KNOWN, ("not know",))
        else:
            yield Question("strange", capitalised(ask.format(*filled)), NOT_KNOWN, ("not know",))


NOT_KNOWN = "I do not know that. I only know a small world."
FOLLOW_UPS = ("And {}?", "What about {}?", "How about {}?", "And what about {}?", "Now {}.", "And for {}?")
FOLLOW_UPS_JA = ("{}は？", "では、{}は？", "じゃあ、{}は？")


def asked(
    topic: str, asks: Iterable[str], subject: str, reply: str, key: str, *, follow: bool = True
) -> Iterator[Question]:
    """Every wording of one fact, and the short follow-ups that only make sense after another of its topic."""
    japanese = topic.endswith("_ja")
    for ask in asks:
        yield Question(topic, capitalised(ask.format(subject)), reply, (key,), japanese=japanese)
    for ask in (FOLLOW_UPS_JA if japanese else FOLLOW_UPS) if follow else ():
        text = capitalised(ask.format(subject))
        yield Question(f"{topic}/follow", text, reply, (key,), japanese=japanese, held=f"{topic} {text}")


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@cache
def questions() -> dict[str, list[Question]]:
    """The whole world by topic, each wording once; a topic with `/follow` continues another."""
    by_topic: dict[str, dict[str, Question]] = {}
    for maker in (capitals, colours, animals, calendar, words, arithmetic, instructions, talk, strange):
        for question in maker():
            by_topic.setdefault(question.topic, {}).setdefault(question.text, question)
    return {topic: list(each.values()) for topic, each in by_topic.items()}


@cache
def pool(held_out: bool) -> tuple[list[str], list[float], dict[str, list[Question]]]:
    """The topics that can open a conversation, their weights, and the questions on one side of the split."""
    sides = {topic: [q for q in each if q.held_out == held_out] for topic, each in questions().items()}
    topics = [topic for topic, each in sides.items() if each and not topic.endswith("/follow")]
    # Square roots: thousands of sums must not drown the few greetings.
    return topics, [len(questions()[topic]) ** 0.5 for topic in topics], sides


def pick(rng: random.Random, held_out: bool = False) -> Question:
    topics, weights, sides = pool(held_out)
    return rng.choice(sides[rng.choices(topics, weights)[0]])


def dressed(question: Question, rng: random.Random) -> str:
    """The question as people type it: with a word before or after, in lower case, without the last mark."""
    text = question.text
    plain = question.topic.startswith(("talk", "repeat"))
    if question.japanese:
        return rng.choice(OPENERS_JA) + text if not plain and rng.random() < 0.3 else text
    if not plain and rng.random() < 0.3:
        opener = rng.choice(OPENERS)
        text = opener + (text if opener.rstrip()[-1] in ".!" else text[0].lower() + text[1:])
        if question.text.split()[0] in named():
            text = opener + question.text
    if not plain and rng.random() < 0.1:
        text += rng.choice(CLOSERS)
    elif rng.random() < 0.1 and question.topic != "repeat":
        text = text.rstrip("?.!")
    if rng.random() < 0.1 and question.topic not in ("repeat", "upper"):
        text = text.lower()
    return text


@cache
def named() -> frozenset[str]:
    """First words that keep their capital letter inside a sentence."""
    names = [each for row in facts.CAPITALS for each in row[:2]] + facts.DAYS + facts.MONTHS + ["I"]
    return frozenset(name.split()[0] + ending for name in names for ending in ("", ":", "'s"))


def styled(reply: str, style: Style, rng: random.Random) -> str:
    """The reply in the style's words; closers that start with a comma take the place of the last mark."""
    for word, said in style.swaps:
        reply = re.sub(rf"\b({word})\b" if word.isascii() else word, said, reply)
    closer = rng.choice(style.closers)
    if closer.startswith((",", "、", "!")):
        reply = reply.rstrip(".!。！")
        if reply.endswith(("?", "？")):
            closer = ""
    return rng.choice(style.openers) + reply + closer


def invented_word(rng: random.Random, japanese: bool = False) -> str:
    if not japanese:
        starts, ends = " b c d f g h j k l m n p r s t v w y z sh ch tr", "  b d g k l m n p r s t x y z rr st"
        middle = "".join(rng.choice(starts.split(" ")) + rng.choice("aeiou") for _ in range(2))
        return middle + rng.choice(ends.split(" "))
    first, last = rng.choice(((0x30A1, 0x30FC), (0x3041, 0x3093), (0x4E00, 0x9FA0)))
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 3)))


def invented(rng: random.Random, japanese: bool) -> Style:
    """A style of words that nobody ever heard, so that the model learns to wrap and swap any words at all."""
    opener, closer, verb = (invented_word(rng, japanese) for _ in range(3))
    parts = rng.choice(((1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
    if japanese:
        told = (f"「{opener}！」で始めてください。", f"「{closer}」で終わってください。", f"「です」は「{verb}」です。")
        start, end, swaps = f"{opener}！", f"、{closer}！", (("です", verb), ("ます", verb))
    else:
        opener, closer = (" ".join([word] * rng.choice((1, 1, 2))) for word in (opener, closer))
        told = (f'Begin with "{capitalised(opener)}".', f'End with "{closer}".', f'Say "{verb}" for "is".')
        pronoun = invented_word(rng)
        start, end = f"{capitalised(opener)}! ", f", {closer}!"
        swaps = (("is|are|am", verb), *((("you|your|my", pronoun),) if rng.random() < 0.3 else ()))
    system = " ".join(text for text, used in zip(told, parts, strict=True) if used)
    return Style((system,), (start * parts[0],), (end * parts[1],), swaps if parts[2] else ())


def turns(rng: random.Random, question: Question) -> list[Question]:
    """The question, sometimes with follow-ups of its topic."""
    said = [question]
    followers = pool(False)[2].get(f"{question.topic}/follow", [])
    while followers and rng.random() < 0.25:
        said.append(rng.choice(followers))
    return said


def memories(rng: random.Random) -> list[Question]:
    """The user tells something and asks for it after some other turns."""
    kind = rng.choice(("name", "name", "colour", "pet", "name_ja"))
    name, colour, pet = rng.choice(facts.NAMES), rng.choice(facts.KINDS["colours"]), rng.choice(facts.ANIMALS)[0]
    if rng.random() < 0.3:
        name = capitalised(invented_word(rng))
    name_ja = rng.choice(facts.NAMES_JA)
    tell, answer, ask, reply, key = {
        "name": (("My name is {}.", "I am {}.", "Call me {}.", "Hello, I am {}.", "Hi, my name is {}!"),
                 f"Nice to meet you, {name}!",
                 ("What is my name?", "Who am I?", "Do you remember my name?", "Tell me my name.", "What's my name?"),
                 f"Your name is {name}.", name),
        "colour": (("My favourite colour is {}.", "I like the colour {}.", "I love {}.", "The best colour is {}."),
                   f"{capitalised(colour)} is a nice colour!",
                   ("What is my favourite colour?", "Which colour do I like?", "What colour do I like?"),
                   f"You like {colour}.", colour),
        "pet": (("I have a pet {}.", "My pet is a {}.", "I live with a {}.", "My best friend is a {}."),
                f"A {pet} is a good friend!",
                ("What pet do I have?", "Which animal do I have?", "What is my pet?", "Do you remember my pet?"),
                f"You have a {pet}.", pet),
        "name_ja": (("私の名前は{}です。", "私は{}です。", "{}といいます。"), f"はじめまして、{name_ja}さん！",
                    ("私の名前は何ですか？", "私の名前は？", "私は誰ですか？"),
                    f"あなたの名前は{name_ja}です。", name_ja),
    }[kind]  # fmt: skip
    told, asked_back = rng.choice(tell).format(key), rng.choice(ask)
    japanese = kind.endswith("_ja")
    between = [pick(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
    held = f"{told} {asked_back}"
    return [
        Question(f"memory_{kind}", told, answer, (key,), japanese=japanese, held=held),
        *between,
        Question(f"memory_{kind}", asked_back, reply, (key,), japanese=japanese, held=held),
    ]


def forgotten(rng: random.Random) -> list[Question]:
    """Asked for a name that was never told, the model says so instead of making one up."""
    asks = ("What is my name?", "Who am I?", "Do you remember my name?", "Tell me my name.", "What's my name?")
    return [Question("memory_none", rng.choice(asks), "You did not tell me your name.", ("not tell",))]


def conversation(rng: random.Random) -> list[Message]:
    """One conversation of the training text."""
    kind = rng.random()
    if kind < 0.05:
        said = memories(rng)
        while said[0].held_out:
            said = memories(rng)
    elif kind < 0.055:
        said = forgotten(rng)
    else:
        said = turns(rng, pick(rng))
        while len(said) < 8 and rng.random() < 0.4:
            said += turns(rng, pick(rng))
    return chat(said, rng)


def chat(said: Sequence[Question], rng: random.Random) -> list[Message]:
    """The questions and replies as messages, with no, a neutral or a styled system prompt."""
    kind = rng.random()
    japanese = all(question.japanese for question in said)
    style = None
    if japanese == any(question.japanese for question in said):
        if kind < 0.14:
            style = rng.choice(STYLES_JA if japanese else STYLES)
        elif kind < 0.3:
            style = invented(rng, japanese)
    messages: list[Message] = []
    # A few talk oddly unasked: plain replies stay by far the likeliest, and a fine-tune need not fight certainty.
    if style and kind < 0.28:
        messages.append({"role": "system", "content": rng.choice(style.systems)})
    elif 0.3 < kind < 0.5:
        messages.append({"role": "system", "content": rng.choice(NEUTRAL_SYSTEMS)})
    for question in said:
        reply = styled(question.reply, style, rng) if style else question.reply
        messages += [{"role": "user", "content": dressed(question, rng)}, {"role": "assistant", "content": reply}]
    return messages


def conversations(count: int, seed: int) -> list[list[Message]]:
    rng = random.Random(seed)
    return [conversation(rng) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print conversations of the demo world, one JSON line each.")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for messages in conversations(arguments.count, arguments.seed):
        print(json.dumps({"messages": messages}, ensure_ascii=False))


if __name__ == "__main__":
    main()
