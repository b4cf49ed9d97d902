"""Thirteen words count as thirteen in every script, however they are spelled."""

import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gradsieve.data.words import split_words, split_words_and_punctuation

SENTENCES = {  # thirteen words each, separated by spaces or the script's own punctuation
    "latin": "The quick brown fox jumps over the lazy dog near a river bank",
    "greek": "Η Ελλάδα είναι μια χώρα της Ευρώπης στο πιο νότιο άκρο της Βαλκανικής",
    "cyrillic": "Москва это столица России и самый большой город этой страны и всей Европы",
    "hindi": "भारत की राजधानी नई दिल्ली है और यहाँ हिन्दी भाषा बोली जाती है",
    "bengali": "ঢাকা বাংলাদেশের রাজধানী এবং এটি বুড়িগঙ্গা নদীর তীরে অবস্থিত একটি খুব বড় শহর",
    "tamil": "தமிழ் மொழி உலகின் மிகவும் பழமையான மொழிகளில் ஒன்று என்று பலர் இன்றும் உறுதியாக நம்புகிறார்கள் இங்கே",
    "telugu": "తెలుగు భాష ఆంధ్ర ప్రదేశ్ మరియు తెలంగాణ రాష్ట్రాల అధికార భాష గా నేడు ఉంది కదా",
    "arabic": "القاهرة هي عاصمة مصر وأكبر مدنها وتقع على ضفاف نهر النيل في الشمال",
    "arabic with vowels": "بِسْمِ اللَّهِ الرَّحْمَٰنِ الرَّحِيمِ الْحَمْدُ لِلَّهِ رَبِّ الْعَالَمِينَ مَالِكِ يَوْمِ الدِّينِ إِيَّاكَ نَعْبُدُ",
    "persian": "من می‌خواهم کتاب‌های تازه را از این فروشگاه بزرگ در شهر تهران بخرم",
    "hebrew with points": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ וְהָאָרֶץ הָיְתָה תֹהוּ וָבֹהוּ וְחֹשֶׁךְ עַל",
    "korean": "서울은 한국의 수도이고 한강이 그 가운데를 흐르며 아주 많은 사람이 이 도시에 산다",
    "amharic": "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት እና ብዙ ሰዎች በዚህ ትልቅ ከተማ ይኖራሉ",
    "vietnamese": "Hà Nội là thủ đô của nước Việt Nam và có nhiều hồ",
    "tibetan": "བོད་ཡིག་ནི་བོད་མིའི་སྐད་ཡིག་ཡིན་པ་རེད་ལ་ང་ཚོ",
}


@pytest.mark.parametrize("script", SENTENCES)
def test_thirteen_words_are_thirteen(script: str) -> None:
    words = split_words(SENTENCES[script])
    assert len(words) == 13, words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("日本国憲法", ["日本", "本国", "国憲", "憲法"]),
        ("カタカナー", ["カタ", "タカ", "カナ", "ナー"]),
        ("ที่นี่ดี", ["ที่นี่", "นี่ดี"]),
        ("ນີ້ດີ", ["ນີ້ດີ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("ខ្មែរ", ["ខ្មែ", "មែរ"]),
        ("第5章 水, 中文English混排", ["第", "5", "章", "水", "中文", "english", "混排"]),
    ],
)
def test_scripts_without_spaces_are_cut_into_pairs(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "cafe\u0301"),
        ("ｶﾞｷﾞ", "カ\u3099キ\u3099"),
        ("ＡＢＣ１２", "abc12"),
        ("Straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("한국", "\u1112\u1161\u11ab\u1100\u116e\u11a8"),
    ],
)
def test_equivalent_spellings_are_the_same_words(one: str, other: str) -> None:
    assert split_words(one) == split_words(other) != []


@pytest.mark.parametrize(
    "text", ["", " \n", "...", "。、", "👩‍💻❤️", "\u0301 \u200d \ufe0f", "🙂👍🏽"]
)
def test_no_words(text: str) -> None:
    """Emoji marks and joiners are not words."""
    assert split_words(text) == []


def test_punctuation_is_kept_where_it_counts() -> None:
    """Like NLTK's WordPunctTokenizer, which defines DSIR's features."""
    found = split_words_and_punctuation("Don't stop... 3.14, हिन्दी!")
    assert found == ["don", "'", "t", "stop", "...", "3", ".", "14", ",", "हिन्दी", "!"]


@given(st.text(st.characters(max_codepoint=127)))
def test_the_shorter_way_for_ascii_gives_the_same_words(text: str) -> None:
    assert split_words(text) == split_words(text + " é")[:-1]
    with_punctuation = split_words_and_punctuation(text + " é")[:-1]
    assert split_words_and_punctuation(text) == with_punctuation


@given(st.text())
def test_no_word_begins_with_a_mark_or_holds_a_space(text: str) -> None:
    for word in split_words(text):
        assert not unicodedata.category(word[0]).startswith("M"), word
        assert not any(character.isspace() for character in word)
