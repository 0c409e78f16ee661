"""Texts on which tokenizers tend to differ: the fast path must agree with the reference on all of them."""

import random


def _hard_texts() -> list[str]:
    generator = random.Random(0)
    words = [
        "the",
        " the",
        "The",
        "don't",
        "I'LL",
        "we've",
        "x1y22z333",
        "3.14159",
        "1e-10",
        "0xFFFF",
        "_a__b_",
    ]
    spaces = [
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        "\n\n\n",
        "\u00a0",
        "\u2003",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\x0b",
    ]
    marks = [
        "--",
        "---",
        "....",
        "=====",
        "#!/",
        "://",
        "(){}[]",
        '"""',
        "'",
        "`",
        "\\n",
        "\u2581",
        "\u2581\u2581",
    ]
    scripts = [
        "naïve",
        "cafe\u0301",
        "Ελληνικά",
        "русский",
        "漢字かな",
        "한국어",
        "العربية",
        "हिन्दी",
        "ไทย",
        "ǅ",
    ]
    signs = [
        "😀",
        "👩‍👩‍👧",
        "🇩🇪",
        "\U0001d54f",
        "ﬁ",
        "①",
        "½",
        "²",
        "\x00",
        "\x7f",
        "\x1b[0m",
        "\uffff",
        "\U0010ffff",
    ]
    everything = words + spaces + marks + scripts + signs
    texts = [
        *everything,
        *(item * 9 for item in everything),
        *(f"a{item}b {item} {item}" for item in everything),
    ]
    for _ in range(600):
        texts.append("".join(generator.choices(everything, k=generator.randint(2, 24))))
    for _ in range(400):
        letters = generator.choice(
            ["ab", " a", "- ", "=\n", "01", ".,;", " \t\n", "aA1 ", "的一 ", "tesion "]
        )
        texts.append("".join(generator.choices(letters, k=generator.randint(2, 40))))
    return texts


TEXTS = _hard_texts()
